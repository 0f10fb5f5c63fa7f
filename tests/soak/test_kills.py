"""Hundreds of kills, at any moment and at any call, of every verb that writes; each is then run to the same bytes.

`pytest tests/soak/test_kills.py -m soak -s`; DSCTL_SOAK_KILLS says how many, DSCTL_TEST_SEED which.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import pytest

from tests.soak.conftest import Ground, Known
from tests.soak.undertow import Case, at_call, foreseen, settled
from tests.support.forks import Done

KILLS = int(os.environ.get("DSCTL_SOAK_KILLS", "500"))
# Of so many sequences one is of worker processes, which take seconds to start.
FEW = 6


@pytest.mark.soak
def test_hundreds_of_kills_change_no_byte(ground: Ground) -> None:
    chance, met = random.Random(int(os.environ.get("DSCTL_TEST_SEED", "7"))), Counter[str]()
    failures, sequences, outran = [], 0, 0
    for number, name in enumerate(cycle(ground.cases)):
        if sum(met.values()) >= KILLS:
            break
        known = ground.known(name)
        case = with_workers(known.case) if number % FEW == FEW - 1 else known.case
        place = case.ready(ground.place("kill"))
        sequences += 1
        told: list[str] = []
        try:
            for _ in range(chance.randint(1, 4)):
                how, done = killed(ground, known, case, place, chance)
                told.append(f"{how}: exit {done.code}")
                if done.code == 0:
                    outran += 1
                    break
                if done.code != -signal.SIGKILL:
                    foreseen(done, (41,))
                met[how.split(" at ")[0]] += 1
                signed_is_complete(known, place)
            ended(ground, known, case, place)
        except (AssertionError, TimeoutError) as error:
            kept = place.rename(ground.place(f"failed-{number}"))
            failures.append(f"{name}, {'; '.join(told)}; see {kept}\n{error}")
    print(  # noqa: T201  what the soak met
        f"\n{sum(met.values())} kills in {sequences} sequences: {dict(met)}; {outran} runs outran theirs; "
        f"{len(failures)} sequences failed"
    )
    assert not failures, "\n\n".join(failures)


def with_workers(case: Case) -> Case:
    """The same with two worker processes."""
    if "--workers" not in case.arguments:
        return case
    at = case.arguments.index("--workers") + 1
    return replace(case, arguments=(*case.arguments[:at], "2", *case.arguments[at + 1 :]))


def killed(ground: Ground, known: Known, case: Case, place: Path, chance: random.Random) -> tuple[str, Done]:
    """Run a command that is killed, and say how."""
    words, many = case.words(place), "2" in case.arguments
    if chance.random() < (0.2 if many else 0.5):
        # Most calls write weights: as often one of the others.
        others = [number for number, (call, _) in enumerate(known.calls, 1) if call != "pwrite"]
        number = chance.choice(others if chance.random() < 0.7 else range(1, len(known.calls) + 10))
        what = chance.choice(("kill", "kill-all"))
        return f"{what} at call {number}", ground.start.run(*words, environment=at_call(number, what, place))
    whom = chance.choice(("group", "driver", "worker", "worker", "forkserver") if many else ("group", "driver"))
    moment = chance.uniform(0, 1.1) * known.seconds + (chance.uniform(0, 3) if many else 0)
    running = ground.start.start(*words)
    time.sleep(moment)
    until = time.monotonic() + 5
    while not running.kill(whom) and not running.ended and time.monotonic() < until:
        time.sleep(0.01)
    return f"{whom} at {moment:.3f} s", running.wait()


def signed_is_complete(known: Known, place: Path) -> None:
    """A folder with `dsctl.json` is complete, whatever lies in `.dsctl`."""
    made = place / known.case.made
    if known.case.made == "out" and (made / "dsctl.json").exists():
        there = {name: digest for name, digest in settled(made).items() if not name.startswith(".dsctl/")}
        assert there == known.whole, "signed, but not complete"


def ended(ground: Ground, known: Known, case: Case, place: Path, again: bool = True) -> None:
    """The same command, undisturbed, ends with the same bytes; given `again` it changes nothing."""
    for _ in range(2 if again and case.made == "out" else 1):
        done = ground.start.run(*case.words(place))
        assert done.code == 0, done.told()
        there = settled(place / case.made)
        assert there == known.whole, {
            name for name in there.keys() | known.whole.keys() if there.get(name) != known.whole.get(name)
        }
    if case.consumes:
        assert not list((place / "in").rglob("*.safetensors")), "weights of the source are left"
