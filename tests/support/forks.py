"""Commands as forks of one process that has imported what they need: importing torch takes seconds each time.

A fork stands for a process of its own, with its own session, signal handlers, files and environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

LAYER = Path(__file__).parent / "layer"
# No command here takes longer, however busy the machine is.
PATIENCE = 120.0


class Done(NamedTuple):
    """A finished command: the arguments, the exit code (negative: the signal that ended it), its text, its seconds."""

    arguments: tuple[str, ...]
    code: int
    out: str
    err: str
    seconds: float

    def told(self) -> str:
        """What to print where it did not do as it should."""
        return f"dsctl {' '.join(self.arguments)}\nexit {self.code}\n{self.out[-1500:]}{self.err[-3000:]}"


@dataclass
class Running:
    """A command under way."""

    arguments: tuple[str, ...]
    pid: int
    out: Path
    err: Path
    began: float
    _ended: threading.Event = field(default_factory=threading.Event)
    _code: int = 0
    _at: float = 0.0

    def end(self, code: int) -> None:
        self._code, self._at = code, time.monotonic()
        self._ended.set()

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    def wait(self, seconds: float = PATIENCE) -> Done:
        """The finished command.

        Raises:
            TimeoutError: it has not ended.
        """
        if not self._ended.wait(seconds):
            self.kill("group")
            raise TimeoutError(f"dsctl {' '.join(self.arguments)}: not ended after {seconds:.1f} s")
        took = self._at - self.began
        return Done(self.arguments, self._code, self.out.read_text(), self.err.read_text(), took)

    def kill(self, whom: str) -> bool:
        """Send SIGKILL to the `group`, the `driver`, a `worker` or the `forkserver`; whether there was such a one."""
        if self._ended.is_set():
            return False
        servers = [pid for pid in children(self.pid) if b"forkserver" in cmdline(pid)] if whom != "group" else []
        try:
            if whom == "group":
                os.killpg(self.pid, signal.SIGKILL)
            elif whom == "driver":
                os.kill(self.pid, signal.SIGKILL)
            elif whom == "forkserver" and servers:
                os.kill(servers[0], signal.SIGKILL)
            elif whom == "worker" and servers and children(servers[0]):
                os.kill(children(servers[0])[-1], signal.SIGKILL)
            else:
                return False
        except ProcessLookupError:
            return False
        return True


class Launcher:
    """Starts commands as forks of a process that has imported everything."""

    def __init__(
        self, folder: Path, environment: dict[str, str] | None = None, settings: dict[str, float] | None = None
    ) -> None:
        """Keep what commands print in a folder.

        `environment` is that of this process if not given; `settings` are values of modules, such as
        `{"dsctl.plan.jobs.JOB_BYTES": 300_000}`, which every command finds set.
        """
        self._folder, self._number, self._settings = folder, 0, settings or {}
        self._running: dict[int, Running] = {}
        self._asked: dict[int, Running] = {}
        self._changed = threading.Condition()
        environment = dict(os.environ) if environment is None else environment
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(LAYER.parents[2])}
        self._server = subprocess.Popen(
            [sys.executable, str(LAYER / "forking.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True,
        )  # fmt: skip
        assert self._server.stdout is not None
        assert "ready" in json.loads(self._server.stdout.readline())
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._server.stdout is not None
        for line in self._server.stdout:
            said = json.loads(line)
            with self._changed:
                if "asked" in said:
                    running = self._asked.pop(said["asked"])
                    running.pid = said["pid"]
                    self._running[running.pid] = running
                else:
                    self._running.pop(said["ended"]).end(said["code"])
                self._changed.notify_all()

    def start(
        self,
        *arguments: Any,
        environment: Mapping[str, str] | None = None,
        stopped: bool = False,
        last: tuple[str, int] = ("", 0),
        script: str = "",
    ) -> Running:
        """Start `dsctl` with these arguments and more environment, or a `script` of Python if there is one.

        `stopped`, it waits for SIGCONT before anything. `last` is a function, such as dsctl.run.driver.drive, and the
        call of it after which the process ends with 9 and without any clean-up.
        """
        self._number += 1
        words = tuple(map(str, arguments))
        out, err = (self._folder / f"{self._number}.{name}" for name in ("out", "err"))
        # A command may be killed before it opens them.
        out.touch()
        err.touch()
        running = Running(words, 0, out, err, time.monotonic())
        asked = {
            "number": self._number, "arguments": words, "out": str(out), "err": str(err), "stopped": stopped,
            "environment": dict(environment or {}), "settings": self._settings, "last": last,
            "script": script,
        }  # fmt: skip
        with self._changed:
            self._asked[self._number] = running
            assert self._server.stdin is not None
            self._server.stdin.write(json.dumps(asked).encode() + b"\n")
            self._server.stdin.flush()
            while not running.pid:
                assert self._changed.wait(30), "the forking process does not answer"
        return running

    def run(self, *arguments: Any, environment: Mapping[str, str] | None = None) -> Done:
        """Run `dsctl` to its end."""
        return self.start(*arguments, environment=environment).wait()

    def script(self, script: str, *arguments: Any, environment: Mapping[str, str] | None = None) -> str:
        """What a script of Python prints, which succeeds; dsctl and torch have been imported before it begins."""
        done = self.start(*arguments, environment=environment, script=script).wait()
        assert done.code == 0, done.err
        return done.out

    def good(self, *arguments: Any) -> Done:
        """Run `dsctl`, which succeeds."""
        done = self.run(*arguments)
        assert done.code == 0, done.told()
        return done

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(30)


def children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        # A thread may have ended since it was listed.
        with contextlib.suppress(OSError):
            found += map(int, task.read_text().split())
    return found


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
