"""README and docs are true: every command shown runs and prints what is shown, every verb and option is explained."""

from __future__ import annotations

import difflib
import itertools
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from dsctl.core import errors
from tests.support.command import call
from tests.support.pages import PAGES, ROOT, STAND_INS, Shelf, fits, play
from tests.tools import pictures, reference, releases
from tests.tools.outputs import renewed
from tests.tools.reference import commands


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """The stand-ins, made once for all pages."""
    return Shelf(tmp_path_factory.mktemp("s"))


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder with a short name: a long path would break the lines of an output elsewhere."""
    return tmp_path_factory.mktemp("p")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_shown_does_what_the_page_says(page: Path, folder: Path, shelf: Shelf) -> None:
    played = play(page, folder, shelf)
    bad = [f"{page.name}:{run.command.line}: {run.command}: exit {run.code}" for run in played.runs if not run.good]
    assert bad == [], "\n".join(line for run in played.runs if not run.good for line in run.lines)
    stale = [
        "\n".join(difflib.unified_diff(shown.lines, printed, f"{page.name}:{shown.line}", "printed", lineterm=""))
        for shown, printed in played.outputs
        if not fits(shown.lines, printed)
    ]
    assert not stale, "\n".join(["run: python -m tests.tools.outputs", *stale])


def test_a_wrong_output_and_one_that_no_command_claims_are_seen(folder: Path, shelf: Shelf) -> None:
    page = folder / "page.md"
    page.write_text(
        "```sh\ndsctl version-of-nothing  # exit code 2\ndsctl plan v9  # exit code 10\n```\n\n```text\n...\n```\n"
    )
    ((shown, printed),) = play(page, folder, shelf).outputs
    assert fits(shown.lines, printed)
    assert fits([printed[0], "...", printed[-1]], printed)
    assert not fits([printed[0] + ".", "..."], printed) and not fits(printed[:-1], printed)
    page.write_text("```sh\ndsctl models\n```\n\nProse.\n\n```text\n...\n```\n")
    with pytest.raises(ValueError, match="no command claims this output"):
        play(page, folder, shelf)


def test_a_renewed_output_keeps_the_lines_that_are_still_printed() -> None:
    printed = ["from  a", "parameters  155", "new", "  moved  43", "write  30.1 MB", "time  1 s"]
    assert renewed(["from  b"], printed) == (printed, [])
    shown = ["...", "parameters  155", "  moved  43", "write  29.9 MB", "gone entirely", "..."]
    lines, lost = renewed(shown, printed)
    assert lines == ["...", "parameters  155", "new", "  moved  43", "write  30.1 MB", "..."] and fits(lines, printed)
    assert lost == ["gone entirely"]


def blocks(page: Path) -> list[str]:
    """The Python that a page shows, block by block."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_the_python_shown_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shelf: Shelf) -> None:
    monkeypatch.chdir(tmp_path)
    code = "".join(blocks(page)).replace('"./', '"')
    shelf.put((name for name in STAND_INS if f'"{name}"' in code), tmp_path)
    for number, block in enumerate(blocks(page)):
        exec(compile(block, f"{page.name}, block {number}", "exec"), {"__name__": "__main__"})


def test_the_action_shown_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shelf: Shelf) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "guides" / "ci.md").read_text()
    (found,) = re.findall(r"^```yaml\n(jobs:.*?)^```", text, re.MULTILINE | re.DOTALL)
    steps = yaml.safe_load(found)["jobs"]["checkpoint"]["steps"]
    install, *lines = [step["run"] for step in steps if "run" in step]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (named,) = re.findall(r"\$DSCTL\[([\w,]+)\]", install)
    assert set(named.split(",")) <= extras.keys()
    shelf.put(("DeepSeek-V3.2", "DeepSeek-V3.2-bf16"), tmp_path)
    places = {"$CHECKPOINT": "DeepSeek-V3.2-bf16", "$REFERENCE": "DeepSeek-V3.2"}
    for line in lines:
        words = itertools.takewhile(lambda word: word not in (">", ">>"), shlex.split(line))
        done = call(*[places.get(word, word) for word in words][1:])
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


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


def test_the_page_of_releases_is_what_their_descriptions_say() -> None:
    assert releases.PAGE.read_text() == releases.page(), "run: python -m tests.tools.releases"


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


def test_the_nav_has_every_page_once_and_no_two_of_the_same_title() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    pages = [page for section in nav for names in section.values() for page in names]
    titles = [re.findall(r"^# (.+)$", (ROOT / "docs" / page).read_text(), re.MULTILINE)[0] for page in pages]
    assert len(set(pages)) == len(pages) and len(set(titles)) == len(titles)


def test_the_picture_is_what_is_printed() -> None:
    assert pictures.FILE.read_text() == pictures.picture(), "run: python -m tests.tools.pictures"
