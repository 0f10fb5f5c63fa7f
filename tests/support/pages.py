"""The commands and outputs that README and docs show, and what the commands print.

A block of ```sh holds commands. A block of ```text is an output, and one of three things claims it:

- the ```sh block directly before it (blank lines may lie between): all commands of that block, in order;
- `<!-- output of: dsctl ... -->` directly before it, if the page has shown that command above: that run of it;
- the same comment with a new command: it is run there, and readers see its output only.

Both streams are shown as they come, at a width of 100 columns. A line `...` stands for any number of lines. The folder
in which the commands run is shown as `/models`, and spaces at the end of a line do not count. Nothing else is fuzzy:
what depends on the machine (speed, free space, workers) is left to `...`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from tests.support.changed import last_bits, make
from tests.support.command import call
from tests.support.factors import fitting
from tests.support.folders import linked

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WIDTH = 100
PLACE = "/models"
ELIDED = "..."
CLAIM = re.compile(r"<!-- output of: dsctl (.+) -->")
# What the pages call the checkpoints that their reader has, and how small ones of the same kind are made.
STAND_INS = {
    "DeepSeek-V3.2": "tiny v3.2 DeepSeek-V3.2",
    "DeepSeek-V3.2-bf16": "convert DeepSeek-V3.2 DeepSeek-V3.2-bf16 --bf16",
    "DeepSeek-V4-Flash": "tiny v4-flash DeepSeek-V4-Flash --hidden 256",
    "DeepSeek-V4.1-Flash": "tiny v4.1-flash DeepSeek-V4.1-Flash --hidden 128",
    "requantized": "convert DeepSeek-V3.2-bf16 requantized --fp8 --scale-fmt float32",
    "DeepSeek-R1": "tiny r1 DeepSeek-R1 --seed 7",
    "DeepSeek-V3-0324": "tiny v3-0324 DeepSeek-V3-0324",
    "DeepSeek-V4-Flash-0731": "tiny v4-flash-0731 DeepSeek-V4-Flash-0731 --hidden 256",
    "step-100": "tiny v3.2 step-100 --bf16",
    "V3.2-trained": "convert DeepSeek-V3.2 V3.2-trained --layout published --no-mtp",
    "V4-Flash-tuned": "convert DeepSeek-V4-Flash V4-Flash-tuned --bf16 --layout transformers --no-mtp",
}
# The same after a step of training that changed so many of the last bits, and the seed.
STEPS = {"step-101": ("step-100", 0.01, 1), "step-102": ("step-101", 0.01, 2)}
# And the plans of experts: for V4-Flash-0731, the small V3.2 and the small V4-Flash.
PLANS = {
    "reap_plan.json": {
        "keep_maps": {
            "keep_by_layer": {str(at): [one for one in range(256) if (one + at) % 8 < 5] for at in range(43)},
        },
        "kept_experts_per_layer": 160,
    },
    "order.json": {"layers": {"1": [5, 4, 7, 6, 0, 1, 3, 2], "2": [0, 2, 1, 3, 6, 5, 4, 7]}},
    "uneven.json": {
        "layers": {key: [0, 2, 3, 5, 7, 6][: 5 + (key != "2")] for key in ("0", "1", "2", "3", "4", "mtp.0")}
    },
}
# A PEFT adapter, and the checkpoint and the modules that it is for.
ADAPTERS = {
    "my-adapter": (
        "DeepSeek-V3.2",
        [f"model.layers.{layer}.self_attn.{name}" for layer in (0, 1) for name in ("q_a_proj", "q_b_proj", "o_proj")],
    ),
}
# Commands with words that begin so need a hub, an object store or a cluster; tests/hub, tests/cloud and tests/ray have
# them.
REMOTE = ("download", "--remote", "hf://", "deepseek-ai/", "s3://", "gs://", "ray")


class Command(NamedTuple):
    """A command that a page shows, and the exit codes that a comment beside it promises: `# exit code 1`."""

    line: int
    words: tuple[str, ...]
    codes: tuple[int, ...] = (0,)

    @property
    def remote(self) -> bool:
        return any(word.startswith(REMOTE) for word in self.words)

    def __str__(self) -> str:
        return f"dsctl {shlex.join(self.words)}"


class Shown(NamedTuple):
    """An output that a page shows: the lines between its fences, of which `line` is the number of the first."""

    line: int
    lines: list[str]
    commands: tuple[Command, ...]


class Step(NamedTuple):
    """Commands to run, and the output shown beneath them, if there is one."""

    commands: tuple[Command, ...]
    shown: Shown | None


def steps(page: Path) -> list[Step]:
    """What a page shows, from top to bottom.

    Raises:
        ValueError: an output that no command claims.
    """
    found: list[Step] = []
    before: tuple[Command, ...] | None = None
    for tag, start, lines, claim in _blocks(page.read_text().splitlines()):
        if tag == "sh":
            before = tuple(_commands(lines, start))
            found.append(Step(before, None))
            continue
        if tag == "text":
            if claim is not None:
                run = Command(start, tuple(shlex.split(claim)))
                known = any(command.words == run.words for step in found for command in step.commands)
                found.append(Step(() if known else (run,), Shown(start, lines, (run,))))
            elif before:
                found[-1] = Step(before, Shown(start, lines, before))
            else:
                raise ValueError(f"{page.name}:{start}: no command claims this output")
        before = None
    return found


def _blocks(lines: list[str]) -> Iterator[tuple[str, int, list[str], str | None]]:
    """Fenced blocks as tag, number of the first line inside, lines and claim; prose as a block with an empty tag."""
    inside, claim = None, None
    for number, line in enumerate(lines, 1):
        if inside is not None:
            if line.startswith("```"):
                yield inside[0], inside[1], lines[inside[1] - 1 : number - 1], claim
                inside, claim = None, None
        elif line.startswith("```"):
            inside = (line[3:].strip() or "none", number + 1)
        elif found := CLAIM.fullmatch(line.strip()):
            claim = found[1]
        elif line.strip():
            claim = None
            yield "", number, [], None


def _commands(lines: list[str], start: int) -> Iterator[Command]:
    held = ""
    for number, text in enumerate(lines, start):
        if text.endswith("\\"):
            held += text[:-1]
            continue
        joined, held = (held + text).split(" && "), ""
        for part in joined:
            if not part.startswith("dsctl "):
                continue
            promise = re.search(r"# exit code (\d+)", part)
            words = tuple(shlex.split(part, comments=True)[1:])
            usual = (0, 1) if {"--exit-code", "--fail-on"} & set(words) else (0,)
            yield Command(number, words, (int(promise[1]),) if promise else usual)


@dataclass
class Shelf:
    """Stand-ins, each made once: a page gets copies, whose weights no command may change in place."""

    folder: Path
    _made: dict[str, Path] = field(default_factory=dict)
    _times: dict[Path, int] = field(default_factory=dict)

    def put(self, names: Iterable[str], where: Path) -> None:
        for name in names:
            if name in PLANS:
                (where / name).write_text(json.dumps(PLANS[name]))
                continue
            linked(self._kept(name), where / name)
        for file in self.folder.rglob("*.safetensors"):
            changed = file.stat().st_mtime_ns
            assert self._times.setdefault(file, changed) == changed, f"{file} was changed in place"

    def _kept(self, name: str) -> Path:
        if name in ADAPTERS and name not in self._made:
            source, modules = ADAPTERS[name]
            self._made[name] = fitting(self._kept(source), self.folder / name, modules, scale=0.001)
        if name in STEPS and name not in self._made:
            before, share, seed = STEPS[name]
            self._made[name] = make(self._kept(before), self.folder / name, last_bits(share), seed)
        if name not in self._made:
            words = STAND_INS[name].split()
            for word in words[1:]:
                if word != name and word in STAND_INS:
                    self._kept(word)
            with contextlib.chdir(self.folder):
                done = call(*words)
            assert done.returncode == 0, done.stderr
            self._made[name] = self.folder / name
        return self._made[name]


class Run(NamedTuple):
    """A command that ran: its exit code, and both streams as they came, as a page shows them."""

    command: Command
    code: int
    lines: list[str]

    @property
    def good(self) -> bool:
        return self.code in self.command.codes and not any("Traceback" in line for line in self.lines)


class Played(NamedTuple):
    """A page whose commands ran: all runs, and each shown output with the lines that its commands printed."""

    runs: list[Run]
    outputs: list[tuple[Shown, list[str]]]


def play(page: Path, where: Path, shelf: Shelf) -> Played:
    """Run in the empty folder `where` every command that a page shows and that needs nothing but this machine."""
    shown = steps(page)
    shelf.put(needed(command for step in shown for command in step.commands if not command.remote), where)
    runs: dict[tuple[str, ...], Run] = {}
    every: list[Run] = []
    outputs = []
    with contextlib.chdir(where), mock.patch.dict(os.environ, {"COLUMNS": str(WIDTH)}):
        for step in shown:
            for command in step.commands:
                if not command.remote:
                    runs[command.words] = run(command, where)
                    every.append(runs[command.words])
            if step.shown:
                remote = [str(command) for command in step.shown.commands if command.remote]
                assert not remote, f"{page.name}:{step.shown.line}: shows an output of what is not run: {remote}"
                printed = [line for command in step.shown.commands for line in runs[command.words].lines]
                outputs.append((step.shown, printed))
    return Played(every, outputs)


def run(command: Command, where: Path) -> Run:
    """Run it in the current folder, which is `where`."""
    both = io.StringIO()
    done = call(*command.words, both=both)
    lines = both.getvalue().replace(str(where), PLACE).splitlines()
    return Run(command, done.returncode, stripped(lines))


def needed(commands: Iterable[Command]) -> list[str]:
    """The stand-ins that these commands need and do not make themselves."""
    wanted: list[str] = []
    made: set[str] = set()
    for command in commands:
        places = [word.removeprefix("./") for word in command.words]
        new = places[2:3] if places[0] == "convert" and places[1] != places[2] else []
        known = STAND_INS.keys() | PLANS.keys() | ADAPTERS.keys() | STEPS.keys()
        wanted += [name for name in places if name in known and name not in {*made, *new, *wanted}]
        made.update(new)
    return wanted


def stripped(lines: list[str]) -> list[str]:
    """Without spaces at the ends of lines, and without empty lines at the beginning and the end."""
    return "\n".join(line.rstrip() for line in lines).strip("\n").splitlines()


def fits(shown: list[str], printed: list[str]) -> bool:
    """Whether the lines that a page shows are those that were printed, `...` being any number of them."""
    pattern = "".join(r"(?:.*\n)*?" if line.strip() == ELIDED else re.escape(line) + r"\n" for line in stripped(shown))
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in printed)) is not None
