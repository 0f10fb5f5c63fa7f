"""Run `dsctl` as a user does: in a process of its own, or in this one where only what it does matters."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from typing import Any, NamedTuple
from unittest import mock

import typer

from dsctl import cli
from dsctl.cli.app import application


class Hung(BaseException):
    """What takes longer than it may."""


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raise `Hung` in what takes longer, wherever it is."""

    def ring(number: int, frame: object) -> None:
        raise Hung(f"not done after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Done(NamedTuple):
    """A finished command: exit code and text."""

    returncode: int
    stdout: str
    stderr: str


def run(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """The finished process of its own, with its text."""
    command = [sys.executable, "-m", "dsctl", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)


@cache
def verbs() -> Any:
    """The command line, made once: typer reads the signatures of all verbs for each call of an app."""
    return typer.main.get_command(application())


def actions() -> dict[str, Any]:
    """Every command that does something, by the words that call it: `diff`, `delta make`."""
    found: dict[str, Any] = {}
    for name, command in verbs().commands.items():
        inner = getattr(command, "commands", None)
        found |= {name: command} if inner is None else {f"{name} {word}": one for word, one in inner.items()}
    return found


def _renew_server() -> None:
    """End the process that forks workers if it was started with other variables: a command's own would have these.

    It is kept otherwise, because it imports torch.
    """
    now = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    if _SERVED and now != _SERVED:
        cli._end_server()
    _SERVED.clear()
    _SERVED.update(now)


_SERVED: dict[str, str] = {}


def call(*arguments: Any, both: io.StringIO | None = None, encoding: str = "") -> Done:
    """The same entry point within this process: nothing is imported or made again.

    `both` takes both streams as they come, as a terminal does. With an `encoding` they are streams of bytes, which it
    has to pass, as those of a process are.
    """
    command = verbs()
    _renew_server()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    out, err, code = both or _stream(encoding), both or _stream(encoding), 0
    made = mock.patch.object(cli, "application", return_value=command)
    kept = mock.patch.object(cli, "_end_server")
    argv = mock.patch.object(sys, "argv", ["dsctl", *map(str, arguments)])
    with (
        redirect_stdout(out),
        redirect_stderr(err),
        argv,
        made,
        kept,
    ):
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return Done(code, _said(out), _said(err))


def _stream(encoding: str) -> io.TextIOBase:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding) if encoding else io.StringIO()


def _said(stream: Any) -> str:
    if isinstance(stream, io.StringIO):
        return stream.getvalue()
    stream.flush()
    return str(stream.buffer.getvalue(), stream.encoding)


def dsctl(*arguments: Any) -> str:
    """Its stdout; a failure fails the test with what was said."""
    done = call(*arguments)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def reports(stderr: str) -> list[str]:
    """The lines of stderr that report an error, as text or, with `--json`, as JSON."""
    return [line for line in stderr.splitlines() if line.startswith(("error: ", '{"error": {'))]


def dsctl_fails(*arguments: Any) -> int:
    """Its exit code, which must be of a refusal told in words: one error line, no traceback, nothing on stdout."""
    done = call(*arguments)
    assert done.returncode != 0, done.stdout
    assert len(reports(done.stderr)) == 1 and "Traceback" not in done.stderr, done.stderr
    assert "internal error" not in done.stderr, done.stderr
    assert not done.stdout
    return done.returncode
