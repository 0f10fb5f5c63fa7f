"""Two runs on one target, started at once or one as the other ends: one works, the other is refused, no byte is lost.

`pytest tests/soak/test_pairs.py -m soak -s`; DSCTL_SOAK_PAIRS says how many of each kind, DSCTL_TEST_SEED which.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.soak.conftest import Ground, Known
from tests.soak.undertow import WORDS, Case, foreseen, settled
from tests.support.forks import Done, Running

PAIRS = int(os.environ.get("DSCTL_SOAK_PAIRS", "100"))
FORCE = ("--force",)
# What the two runs are given besides the command.
KINDS = {
    "plain": {
        "the same": ((), ()),
        "then force": ((), FORCE),
        "force twice": (FORCE, FORCE),
        "another request": ((), ("--no-mtp",)),
        "another source": ((), ()),
    },
    "consume": {
        "the same": ((), ()),
        "then force": ((), FORCE),
        "then without": ((), ()),
    },
}
CASES = {"plain": ("bf16", "shard", "merge"), "consume": ("consume bf16", "consume shard", "consume merge")}


@pytest.fixture(scope="module")
def another(ground: Ground) -> Path:
    """A checkpoint with the same headers and other weights."""
    folder = ground.place("another")
    ground.start.good("tiny", "v3.2", folder, *WORDS, "--seed", "1")
    return folder


@pytest.mark.soak
@pytest.mark.parametrize("family", KINDS)
def test_of_two_runs_one_works_and_no_byte_is_lost(ground: Ground, another: Path, family: str) -> None:
    chance, met = random.Random(int(os.environ.get("DSCTL_TEST_SEED", "3"))), Counter[str]()
    failures = []
    for number in range(PAIRS):
        kind, known = chance.choice(list(KINDS[family])), ground.known(chance.choice(CASES[family]))
        if kind == "another source":
            known = ground.known("bf16")
        place = known.case.ready(ground.place("pair"))
        if kind == "another source":
            shutil.copytree(another, place / "another")
        offset = chance.uniform(0, 0.005) if chance.random() < 0.4 else chance.uniform(0, 1.2) * known.seconds
        done: list[Done] = []
        try:
            done += pair(ground, both(known.case, family, kind, place), offset)
            met[f"{kind}: {' and '.join(str(one.code) for one in done)}"] += 1
            judge(ground, known, place, kind, done)
        except (AssertionError, TimeoutError) as error:
            kept = place.rename(ground.place(f"failed-{family}-{number}"))
            codes = [one.code for one in done]
            failures.append(f"{known.case.name}, {kind}, {offset:.4f} s apart, exits {codes}; see {kept}\n{error}")
    print(f"\n{PAIRS} pairs, {family}: {dict(met)}; {len(failures)} failed")  # noqa: T201  what the soak met
    assert not failures, "\n\n".join(failures)


def both(case: Case, family: str, kind: str, place: Path) -> list[list[str]]:
    """The arguments of the two runs."""
    found = [[*case.words(place), *more] for more in KINDS[family][kind]]
    if kind == "another source":
        found[1][1] = str(place / "another")
    if kind == "then without":
        found[1] = [word for word in found[1] if word != "--consume"]
    return found


def pair(ground: Ground, arguments: list[list[str]], offset: float) -> list[Done]:
    """Two runs, the second of which begins so many seconds after the first."""
    runs = [ground.start.start(*words, stopped=True) for words in arguments]
    for run in runs:
        _await_stop(run)
    os.kill(runs[0].pid, signal.SIGCONT)
    time.sleep(offset)
    os.kill(runs[1].pid, signal.SIGCONT)
    return [run.wait() for run in runs]


def _await_stop(run: Running) -> None:
    until = time.monotonic() + 20
    while Path(f"/proc/{run.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < until, "did not stop"
        time.sleep(0.001)


def judge(ground: Ground, known: Known, place: Path, kind: str, done: list[Done]) -> None:
    """One worked, or both did in turn; the other was refused; the target is whole and known as such."""
    for one in done:
        if one.code:
            foreseen(one, (40,), str(place / "out"))
    good = [one for one in done if not one.code]
    assert good, "\n".join(one.told() for one in done)
    there = settled(place / "out")
    whole = known.whole
    untouched = settled(place / "in") == settled(known.case.given["in"]) if kind == "then without" else False
    assert untouched or kind != "then without" or good != done[1:], "refused, yet the source is not whole"
    if untouched:
        # The second was the first at work; what it left complete is no reason to remove a source.
        whole = {name: digest for name, digest in whole.items() if not name.startswith(".cache/")}
    if kind in ("another request", "another source"):
        assert len(good) == 1, "both ended well, but only one can be right"
    if kind in ("another request", "another source") and good[0] is done[1]:
        words = list(good[0].arguments)
        shutil.rmtree(direct := ground.place("direct"), ignore_errors=True)
        ground.start.good(*words[:2], direct, *words[3:])
        assert there == settled(direct)
        return
    assert there == whole, {name for name in there.keys() | whole.keys() if there.get(name) != whole.get(name)}
    again = ground.start.run(*(word for word in good[0].arguments if word != "--force"))
    assert again.code == 0 and settled(place / "out") == whole, again.told()
