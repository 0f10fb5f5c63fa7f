"""Values that come from a table are completed by the shell, quickly, and beside the files of the folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dsctl.cli import completion
from dsctl.cli.app import ASKED, VERBS
from dsctl.codecs import CODECS
from dsctl.layouts import LAYOUTS, SHARDED
from dsctl.look.accelerators import ACCELERATORS
from dsctl.look.cache_formats import CACHE_FORMATS
from dsctl.look.diff import PARTS
from dsctl.plan.recipes import ready
from dsctl.releases import releases
from dsctl.verify.findings import CODES
from dsctl.work.executors import ENGINES
from tests.support.command import actions

# The names of values that come from a table; an option whose value is one of several words has them as its name.
TABLES = {"CODE", "COMMAND", "FORMAT", "KIND", "NAME", "NAMExCOUNT", "PART", "RELEASE", "REPOSITORY", "SRC"}
WORDS = re.compile(r"[a-z][a-z0-9-]+")
# A or B of these verbs may be a release, too.
SIDES = {"diff": {"a", "b"}}
# Not a table: any number, or a word beside it.
NUMBERS = {"N|auto"}


def params() -> list[tuple[str, Any]]:
    return [(verb, param) for verb, command in actions().items() for param in command.params]


def of_a_table(verb: str, param: Any) -> bool:
    """Whether the values of a parameter come from a table, by what it calls them."""
    if param.metavar is None or param.metavar in NUMBERS:
        return False
    names = param.metavar.strip("[]").split("|")
    return param.name in SIDES.get(verb, ()) or any(name in TABLES or WORDS.fullmatch(name) for name in names)


def test_every_value_of_a_table_is_completed() -> None:
    tabled = [(verb, param) for verb, param in params() if of_a_table(verb, param)]
    silent = [f"{verb}: {param.name}" for verb, param in tabled if param._custom_shell_complete is None]
    assert silent == [] and len(tabled) > 30


def test_no_value_is_left_without_a_name() -> None:
    """A parameter without one would show its type, and nobody could say whether it has a table."""
    nameless = [
        f"{verb}: {param.name}"
        for verb, param in params()
        if param.metavar is None and not getattr(param, "is_flag", False) and param.name != "help"
    ]
    assert nameless == []


def completed(words: str, folder: Path | None = None, **more: str) -> list[str]:
    """What a shell is offered for a line; its last word is begun."""
    parts = words.split(" ")
    environment = os.environ | {
        "_DSCTL_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(parts) - 1),
        "PYTHONPATH": str(Path.cwd()),
    } | more  # fmt: skip
    command = [sys.executable, "-X", "importtime", "-m", "dsctl"]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert not re.search(r"\| +torch$", done.stderr, re.MULTILINE), "torch was loaded"
    return done.stdout.split()


ALIASES = [alias for release in releases() for alias in release.alias]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("dsctl ", [*VERBS, *ASKED]),
        ("dsctl help ve", ["verify", "version"]),
        ("dsctl inspect v3.2", [name for name in ALIASES if name.startswith("v3.2")]),
        ("dsctl plan ", [release.alias[0] for release in releases()]),
        ("dsctl diff v3 r1", ["r1", "r1-zero", "r1-1776", "r1t-chimera", "r1-0528", "r1t2-chimera"]),
        ("dsctl tiny glm", [name for name in ALIASES if name.startswith("glm")]),
        ("dsctl download zai-org/", [r.repository for r in releases() if r.repository.startswith("zai-org/")]),
        ("dsctl convert a b --to ", [*CODECS, "published"]),
        ("dsctl slice a b --to fp8-block-", [name for name in CODECS if name.startswith("fp8-block-")]),
        ("dsctl convert a b --recipe ", list(ready())),
        ("dsctl convert a b --layout ", [name for name in LAYOUTS if name not in SHARDED]),
        ("dsctl shard a b --layout ", list(LAYOUTS)),
        ("dsctl shard a b --layout v", ["vllm"]),
        ("dsctl convert a b --scale-fmt ", ["auto", "float32", "ue8m0"]),
        ("dsctl convert a b --engine ", list(ENGINES)),
        ("dsctl convert a b --device ", ["cpu", "cuda", "auto"]),
        ("dsctl plan v3 --gpu ", list(ACCELERATORS)),
        ("dsctl plan v3 --must-fit h200", ["h200x8"]),
        ("dsctl plan v3 --kv ", list(CACHE_FORMATS)),
        ("dsctl plan v3 --kv=f", ["fp8", "fp4"]),
        ("dsctl plan v4.1 --tables ", ["host", "gpu"]),
        ("dsctl diff a b --only ", list(PARTS)),
        ("dsctl diff a b --fail-on config,a", ["config,architecture", "config,any"]),
        ("dsctl verify a --ignore missing-s", [code for code in CODES if code.startswith("missing-s")]),
        ("dsctl verify a --against kimi", [name for name in ALIASES if name.startswith("kimi")]),
        ("dsctl convert a b --recipe ./", []),
        ("dsctl inspect ./", []),
        ("dsctl convert a ", []),
    ],
)
def test_a_shell_is_offered_what_the_table_has(words: str, found: list[str], tmp_path: Path) -> None:
    assert completed(words, tmp_path) == found


def test_folders_and_weight_files_stand_beside_releases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("v3.2-mine", ".v3"):
        (tmp_path / name).mkdir()
    for name in ("v3.safetensors", "v3.txt"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert completion.sources("v3.2-")[-1] == "v3.2-mine/"
    assert completion.sources("v3")[-2:] == ["v3.2-mine/", "v3.safetensors"]
    assert ".v3/" not in completion.sources("") and completion.sources("mine") == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes(tmp_path: Path) -> None:
    program = tmp_path / "dsctl"
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{Path.cwd()}" exec "{sys.executable}" -m dsctl "$@"\n')
    program.chmod(0o755)
    script = (
        'eval "$(_DSCTL_COMPLETE=source_bash dsctl)"\n'
        "COMP_WORDS=(dsctl plan v3.2 --gpu h2) COMP_CWORD=4\n"
        "_dsctl_completion dsctl\n"
        'echo "${COMPREPLY[*]}"\n'
    )
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", script], env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == [name for name in ACCELERATORS if name.startswith("h2")], done.stderr
