"""dev.py's tasks are what README, guides and CI call them."""

from __future__ import annotations

import re
import runpy
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
TEXTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "pyproject.toml", ".ci/run", *ROOT.glob("docs/**/*.md"))
DEV: dict[str, Any] = runpy.run_path(str(ROOT / "dev.py"))


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: Path(file).name)
def test_every_task_that_a_text_names_is_one(file: str | Path) -> None:
    text = (ROOT / file).read_text()
    assert set(re.findall(r"python3 dev\.py (\w+)", text)) <= DEV["TASKS"].keys()
    assert not re.search(r"`make \w+`", text)


def test_ci_runs_the_readmes_own_test_command() -> None:
    command = (ROOT / ".ci" / "run").read_text().splitlines()[-1]
    assert command == "python3 dev.py check"
    assert f"\n```sh\n{command}\n```\n" in (ROOT / "README.md").read_text()


def test_check_does_every_step_and_reports_every_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, Any]] = []

    def step(name: str, code: int) -> Any:
        def task(choice: str, rest: Any) -> None:
            done.append((name, rest))
            if code:
                raise DEV["Failed"](name, code)

        return task

    for name, code in (("install", 0), ("lint", 2), ("types", 3), ("test", 1)):
        monkeypatch.setitem(DEV["check"].__globals__, name, step(name, code))
    with pytest.raises(DEV["Failed"]) as failed:
        DEV["check"]("keep", ["-k", "header"])
    assert done[0] == ("install", "keep")
    assert sorted(done[1:]) == [("lint", []), ("test", ["-k", "header"]), ("types", [])]
    assert (failed.value.code, str(failed.value)) == (2, "lint\ndev: test\ndev: types")


def test_what_follows_a_task_goes_to_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, list[str]]] = []
    monkeypatch.setitem(DEV["main"].__globals__["TASKS"], "test", lambda choice, rest: seen.append((choice, rest)))
    monkeypatch.setattr(sys, "argv", ["dev.py", "test", "tests/unit", "-k", "header", "--torch", "keep"])
    assert DEV["main"]() == 0
    assert seen == [("keep", ["tests/unit", "-k", "header"])]


def test_setup_and_dev_install_torch() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {task: extra.strip("[]") for task, extra in DEV["EXTRAS"].items()} == {"setup": "torch", "dev": "dev"}
    assert extras["torch"] == [DEV["TORCH"]]
    # The extra `dev` refers to the extras of users, so that both have the same versions.
    (own,) = [text for text in extras["dev"] if text.startswith("dsctl[")]
    assert {"torch", "report", "cloud"} <= set(own.removeprefix("dsctl[").rstrip("]").split(","))


@pytest.mark.parametrize("task", DEV["TASKS"])
def test_help_of_a_task_is_one_short_line(task: str) -> None:
    text = DEV["TASKS"][task].__doc__
    assert len(text) <= 90 and "\n" not in text and text.endswith(".") and text[0].isupper()
