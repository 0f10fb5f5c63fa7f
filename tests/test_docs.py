"""README and docs are true: every command they show runs, every verb and option is explained."""

from __future__ import annotations

import itertools
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from dsctl.core import errors
from tests.support.command import call
from tests.tools import pictures, reference
from tests.tools.reference import commands

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# What the pages call the checkpoints that their reader has, and how small ones of the same kind are made.
STAND_INS = {
    "DeepSeek-V3.2": "tiny v3.2 DeepSeek-V3.2",
    "DeepSeek-V3.2-bf16": "convert DeepSeek-V3.2 DeepSeek-V3.2-bf16 --bf16",
    "DeepSeek-V4-Flash": "tiny v4-flash DeepSeek-V4-Flash",
    "requantized": "convert DeepSeek-V3.2-bf16 requantized --fp8 --scale-fmt float32",
    "V4-Flash-tuned": "convert DeepSeek-V4-Flash V4-Flash-tuned --bf16 --layout transformers --no-mtp",
}
# Commands with words that begin so need a hub, an object store or a cluster; tests/hub, tests/cloud and tests/ray have
# them.
REMOTE = ("download", "--remote", "hf://", "deepseek-ai/", "s3://", "gs://", "ray")


class Shown(NamedTuple):
    """A command that a page shows, and the exit codes that a comment beside it promises: `# exit code 1`."""

    line: int
    words: list[str]
    codes: tuple[int, ...] = (0,)


def shown(page: Path) -> Iterator[Shown]:
    inside, held = False, ""
    for number, text in enumerate(page.read_text().splitlines(), 1):
        if text.startswith("```"):
            inside = text.strip() == "```sh"
            continue
        if not inside:
            continue
        if text.endswith("\\"):
            held += text[:-1]
            continue
        command, held = held + text, ""
        if command.startswith("dsctl "):
            promise = re.search(r"# exit code (\d+)", command)
            words = shlex.split(command, comments=True)[1:]
            usual = (0, 1) if {"--exit-code", "--fail-on"} & set(words) else (0,)
            yield Shown(number, words, (int(promise[1]),) if promise else usual)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_shown_does_what_it_says(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands = [command for command in shown(page) if not any(word.startswith(REMOTE) for word in command.words)]
    for command in (*missing(commands), *commands):
        done = call(*command.words)
        said = f"{page.name}:{command.line}: dsctl {shlex.join(command.words)}\n{done.stdout}{done.stderr}"
        assert done.returncode in command.codes, said
        assert "Traceback" not in done.stderr, said


def blocks(page: Path) -> list[str]:
    """The Python that a page shows, block by block."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_the_python_shown_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, line in STAND_INS.items():
        if any(f'"{name}"' in block.replace('"./', '"') for block in blocks(page)):
            assert call(*line.split()).returncode == 0
    for number, block in enumerate(blocks(page)):
        exec(compile(block, f"{page.name}, block {number}", "exec"), {"__name__": "__main__"})


def test_the_action_shown_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "guides" / "ci.md").read_text()
    (found,) = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    steps = yaml.safe_load(found)["jobs"]["checkpoint"]["steps"]
    install, *lines = [step["run"] for step in steps if "run" in step]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (extra,) = re.findall(r"\$DSCTL\[(\w+)\]", install)
    assert extra in extras
    for name in ("DeepSeek-V3.2", "DeepSeek-V3.2-bf16"):
        assert call(*STAND_INS[name].split()).returncode == 0
    places = {"$CHECKPOINT": "DeepSeek-V3.2-bf16", "$REFERENCE": "DeepSeek-V3.2"}
    for line in lines:
        words = itertools.takewhile(lambda word: word not in (">", ">>"), shlex.split(line))
        done = call(*[places.get(word, word) for word in words][1:])
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


def missing(commands: list[Shown]) -> list[Shown]:
    """Commands that make the stand-ins which these need and do not make themselves."""
    needed = {word.removeprefix("./") for command in commands for word in command.words}
    made = {
        command.words[2]
        for command in commands
        if command.words[0] == "convert" and command.words[1] != command.words[2]
    }
    before: list[Shown] = []
    for name, line in reversed(STAND_INS.items()):
        if name in needed - made:
            before.insert(0, Shown(0, line.split()))
            needed |= set(line.split())
    return before


def test_the_functions_that_the_page_on_python_names_are_there() -> None:
    text = (ROOT / "docs" / "python.md").read_text()
    table = text[text.index("| verb | calls |") :]
    found = re.findall(r"`(dsctl\.[\w.]+)", table)
    assert len(found) > 5
    assert all(callable(pkgutil.resolve_name(name)) for name in found)


@pytest.mark.parametrize("verb", commands())
def test_the_readme_shows_every_verb(verb: str) -> None:
    assert re.search(rf"^dsctl {verb}\b", (ROOT / "README.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("verb", commands())
def test_every_verb_explains_itself(verb: str) -> None:
    command = commands()[verb]
    assert len(command.help or "") > 20
    assert f"dsctl {verb} " in command.help, "help shows no example"
    silent = [param.name for param in command.params if param.name != "help" and not param.help]
    assert not silent


def test_the_reference_is_what_help_shows() -> None:
    assert reference.PAGE.read_text() == reference.page(), "run: python -m tests.tools.reference"


def test_every_exit_code_is_listed() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.DsctlError)]
    page = (ROOT / "docs" / "errors.md").read_text()
    assert [kind.__name__ for kind in kinds if f"| {kind.exit_code} | `{kind.__name__}`" not in page] == []


def test_links_within_the_repository_lead_somewhere() -> None:
    broken = [
        f"{page.name}: {target}"
        for page in (*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md")
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert broken == []


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=quiet)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    page = (tmp_path / "site" / "index.html").read_text()
    fetched = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"', page)
    assert fetched == []


def test_the_picture_is_what_is_printed() -> None:
    assert pictures.FILE.read_text() == pictures.picture(), "run: python -m tests.tools.pictures"
