"""The command line as it is put together: verbs by name, options in groups and panels, files loaded late."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from inspect import getdoc, signature
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

import dsctl.cli
from dsctl.cli.app import ACTIONS, ASKED, VERBS, actions, application, called, function
from dsctl.cli.commands import GENERAL, RANKS, RUNNING, WHAT, WHICH
from dsctl.cli.groups import verb
from tests.support.command import call, verbs

# The modules of the command line that are no verbs.
OTHERS = {
    "app", "carrying", "commands", "completion", "conversion", "conversion_options", "deltas", "grafting", "groups",
    "hints", "options", "parts", "proving", "refusals", "requests", "sizing", "slicing", "sources",
}  # fmt: skip
PANELS = {
    "convert": {WHAT, WHICH, RUNNING, GENERAL},
    "shard": {WHAT, WHICH, RANKS, RUNNING, GENERAL},
    "merge": {WHAT, WHICH, RANKS, RUNNING, GENERAL},
}


def test_every_verb_has_a_file_of_its_name_and_every_file_is_a_verb() -> None:
    files = {path.stem for path in Path(dsctl.cli.__file__).parent.glob("*.py")} - {"__init__"}
    assert files == OTHERS | set(VERBS)


@pytest.mark.parametrize("name", VERBS)
def test_help_lists_what_a_verb_says_of_itself(name: str) -> None:
    said = (getdoc(function(name)) or "").partition("\n\n")[0]
    assert VERBS[name] == " ".join(said.split())


@pytest.mark.parametrize("name", VERBS)
def test_no_verb_has_more_than_fourteen_parameters(name: str) -> None:
    for asked in actions(name).values():
        assert len(signature(asked.__wrapped__).parameters) <= 14  # type: ignore[attr-defined]


def test_a_verb_with_actions_has_a_page_of_its_own_and_one_for_each() -> None:
    page = call("delta", "--help").stdout
    assert all(f"  {action} " in page for action in ACTIONS["delta"])
    assert call("help", "delta", "make").stdout == call("delta", "make", "-h").stdout.removesuffix("\n")
    refused = call("help", "delta", "mke")
    assert refused.returncode == 2 and "did you mean make?" in refused.stderr, refused.stderr
    assert call("help", "diff", "more").returncode == 2


@pytest.mark.parametrize("name", PANELS)
def test_options_of_a_conversion_stand_in_panels(name: str) -> None:
    panels = {param.name: param.rich_help_panel for param in verbs().commands[name].params}
    assert {panel for panel in panels.values() if panel} == PANELS[name]
    assert {option for option, panel in panels.items() if not panel} == {"source", "target"}


def loaded(*words: str) -> set[str]:
    """The verbs whose files a command loads."""
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('LOADED', *(m for m in sys.modules if m.startswith('dsctl.cli.')), "
        "file=sys.stderr))\n"
        f"sys.argv = ['dsctl', *{list(words)!r}]\n"
        "from dsctl.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    told = done.stderr.rpartition("LOADED")[2].split()
    return {module.rpartition(".")[2] for module in told} & set(VERBS)


@pytest.mark.parametrize(
    ("words", "files"),
    [
        ([], set()),
        (["--help"], set()),
        (["--version"], set()),
        (["version"], set()),
        (["help"], set()),
        (["help", "convert"], {"convert"}),
        (["help", "nothing"], set()),
        (["conver", "--help"], set()),
        (["convert", "--help"], {"convert"}),
        (["diff", "v3", "v3.2"], {"diff"}),
        (["merge", "nowhere", "out"], {"merge"}),
    ],
)
def test_a_verb_s_file_is_loaded_when_it_is_called(words: list[str], files: set[str]) -> None:
    assert loaded(*words) == files


def test_a_shell_that_completes_a_line_loads_the_verb_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert called(["--version", "diff", "v3"]) == ["diff"] and called(["--help"]) == called(["help"]) == []
    monkeypatch.setenv("_DSCTL_COMPLETE", "complete_bash")
    assert called([]) == []
    monkeypatch.setenv("COMP_WORDS", "dsctl plan v3.2 --gpu ")
    assert called([]) == ["plan"]
    monkeypatch.setenv("COMP_WORDS", "dsctl help di")
    assert called([]) == []


def test_help_and_version_are_asked_for_in_any_usual_way() -> None:
    assert call("help", "diff").stdout == call("diff", "-h").stdout.removesuffix("\n")
    assert call("help").stdout == call("-h").stdout.removesuffix("\n")
    assert call("version") == call("--version") == call("-V")
    assert {name: verbs().commands[name].help.splitlines()[0] for name in ASKED} == ASKED
    refused = call("help", "konvert")
    assert refused.returncode == 2 and "unknown command 'konvert'" in refused.stderr, refused.stderr
    assert "did you mean convert?" in refused.stderr


def test_all_verbs_are_named_though_few_are_loaded() -> None:
    few: Any = typer.main.get_command(application(["diff"]))
    assert list(few.commands) == [*VERBS, *ASKED] == list(verbs().commands)
    assert {name: command.get_short_help_str(200) for name, command in few.commands.items()} == {
        name: command.get_short_help_str(200) for name, command in verbs().commands.items()
    }


@dataclass(frozen=True, slots=True)
class Colours:
    """A group of options of these tests."""

    red: Annotated[int, typer.Option("--red")] = 1
    blue: Annotated[bool, typer.Option("--blue")] = False


def test_a_group_is_spelled_out_and_put_together_again() -> None:
    asked: list[Any] = []

    @verb
    def paint(wall: Annotated[str, typer.Argument()], colours: Colours, twice: bool = False) -> None:
        asked.append((wall, colours, twice))

    assert list(signature(paint).parameters) == ["wall", "red", "blue", "twice", "debug"]
    app = typer.Typer(add_completion=False)
    app.command()(paint)
    app(["north", "--blue", "--twice", "--debug"], standalone_mode=False)
    app(["south", "--red", "7"], standalone_mode=False)
    assert asked == [("north", Colours(1, True), True), ("south", Colours(7, False), False)]
