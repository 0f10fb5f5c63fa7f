"""Every call by which a verb changes a folder fails once, is cut short, or is the last that the disk has room for.

`pytest tests/soak/test_errors.py -m soak -s`; of DSCTL_SOAK_EVERY calls one is met (default: each).
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.soak.conftest import Ground, Known
from tests.soak.test_kills import ended, signed_is_complete
from tests.soak.test_pairs import _await_stop
from tests.soak.undertow import at_call, foreseen
from tests.support.forks import Done

EVERY = int(os.environ.get("DSCTL_SOAK_EVERY", "1"))
NAMES = (
    "bf16", "fp8", "shard", "merge", "slice", "graft", "tiny", "fix", "fix signed", "consume bf16", "consume fp8",
    "consume shard", "consume merge",
)  # fmt: skip
# The exit codes of what cannot be read and what cannot be written.
CODES = (10, 41)
ROOM = {"write", "pwrite", "open", "mkdir", "ftruncate"}
# strace counts each kind of call by itself.
STRACED = (
    "write", "pwrite64", "fsync", "fdatasync", "rename", "renameat", "renameat2", "link", "linkat", "ftruncate",
    "mkdir", "mkdirat", "unlink", "unlinkat", "rmdir", "openat",
)  # fmt: skip


def points(known: Known) -> list[tuple[int, str, str]]:
    """Number, name and file of the calls that are met: of like ones in a row the first, the second and the last."""
    found, calls = [], known.calls
    for number, one in enumerate(calls):
        alike = number > 1 and calls[number - 1] == one == calls[number - 2] and calls[number + 1 : number + 2] == [one]
        if not alike:
            found.append((number + 1, *one))
    return found[::EVERY]


def faults(call: str, file: str) -> list[str]:
    """What may befall a call."""
    found = ["EIO"]
    found += ["ENOSPC"] if call in ROOM or "sync" in call else []
    found += ["short", "full"] if call in ("write", "pwrite") else []
    found += ["torn"] if call == "write" and file.endswith(".jsonl") else []
    return found


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_any_call_may_fail(ground: Ground, name: str) -> None:
    known, met, failures = ground.known(name), Counter[str](), []
    chosen = points(known)
    tries = [(number, call, file, what) for number, call, file in chosen for what in faults(call, file)]
    tries += [(number, call, file, "broken") for number, call, file in chosen[::4]]
    for number, call, file, what in tries:
        place = known.case.ready(ground.place("fault"))
        done = ground.start.run(*known.case.words(place), environment=at_call(number, what, place))
        try:
            judge(known, place, what, done)
            met[f"{what} {'told' if done.code else 'got over'}"] += 1
            ended(ground, known, known.case, place, again=False)
        except (AssertionError, TimeoutError) as error:
            failures.append(f"{name}: {what} at call {number}, {call} {file}: {error}")
            print(failures[-1], flush=True)  # noqa: T201  a soak is long
    print(  # noqa: T201  what the soak met
        f"\n{name}: {len(tries)} faults at {len(chosen)} of {len(known.calls)} calls: {dict(met)}; "
        f"{len(failures)} failed"
    )
    assert not failures, "\n\n".join(failures)


def judge(known: Known, place: Path, what: str, done: Done) -> None:
    """It did its work all the same, or said in a line what failed and where."""
    number = {"full": errno.ENOSPC, "broken": errno.EIO, "short": 0, "torn": 0}.get(what) or getattr(errno, what, 0)
    assert what != "short" or done.code == 0, done.told()
    if done.code and what != "torn":
        foreseen(done, CODES, str(place), os.strerror(number))
    signed_is_complete(known, place)


@pytest.mark.soak
@pytest.mark.parametrize("name", ["bf16", "consume shard"])
def test_any_system_call_may_fail(ground: Ground, name: str) -> None:
    """The same from outside, by the kernel's answer as strace changes it."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    known, met, failures = ground.known(name), Counter[str](), []
    for call, what in ((call, what) for call in STRACED for what in ("EIO", "ENOSPC")):
        number, reached = 1, "?"
        while reached:
            place = known.case.ready(ground.place("fault"))
            done, reached = straced(ground, known, place, call, f"error={what}:when={number}")
            number += EVERY
            if not reached:
                break
            try:
                judge(known, place, what, done)
                met[f"{call} {what} {'told' if done.code else 'got over'}"] += 1
                ended(ground, known, known.case, place, again=False)
            except (AssertionError, TimeoutError) as error:
                failures.append(f"{name}: {what} at {reached}: {error}")
                print(failures[-1], flush=True)  # noqa: T201  a soak is long
    print(f"\n{name}: {sum(met.values())} system calls failed: {dict(met)}; {len(failures)} failed")  # noqa: T201
    assert not failures, "\n\n".join(failures)


def straced(ground: Ground, known: Known, place: Path, call: str, inject: str) -> tuple[Done, str]:
    """A run of which strace changes an answer; and the line of strace on that, empty where the run had ended before."""
    paths = {str(place / file) for _, file in known.calls}
    paths |= {path + end for path in paths for end in (".new", ".part")}
    within = [word for path in sorted(paths) for word in ("-P", path)]
    log = ground.folder / "strace.log"
    log.unlink(missing_ok=True)
    run = ground.start.start(*known.case.words(place), stopped=True)
    _await_stop(run)
    command = ["strace", "-f", "-qq", "-o", str(log), *within, "-e", f"trace={call}"]
    command += ["-e", f"inject={call}:{inject}", "-p", str(run.pid)]
    tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 20
    while "TracerPid:\t0" in Path(f"/proc/{run.pid}/status").read_text():
        assert tracer.poll() is None and time.monotonic() < until, "strace does not attach"
        time.sleep(0.002)
    os.kill(run.pid, signal.SIGCONT)
    done = run.wait()
    tracer.wait(20)
    lines = [line for line in log.read_text().splitlines() if "(INJECTED)" in line]
    return done, lines[0] if lines else ""
