"""The command line: a file per verb, loaded when it is called. Errors end here, with one line and an exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import sys

import typer

from dsctl.cli.app import application, called
from dsctl.core.errors import DsctlError, Interrupted, UsageError, of_the_machine
from dsctl.show.output import end_unread, prepare, show_error, show_trace


def main() -> None:
    """Run `dsctl`; the console script's entry point."""
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    prepare()
    words = sys.argv[1:]
    # Before anything is parsed: what fails on the way there can be traced too.
    debug = "--debug" in words
    try:
        code = application(called(words))(words or ["--help"], prog_name="dsctl", standalone_mode=False)
        sys.exit((code or 0) if words else UsageError.exit_code)
    except DsctlError as error:
        show_trace(error) if debug else show_error(error)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        end_unread()
    except typer.Abort as aborted:
        # What typer makes of an EOFError: a process beside this one has ended.
        show_error(ended := of_the_machine(aborted.__cause__ or aborted) or Interrupted("aborted"))
        sys.exit(ended.exit_code)
    except Exception as error:  # noqa: BLE001  whatever ends a command is reported here
        if (wrong := _usage(error)) is not None:
            show_error(wrong)
            sys.exit(wrong.exit_code)
        if debug:
            show_trace(error)
            sys.exit(DsctlError.exit_code)
        if (refused := of_the_machine(error)) is not None:
            show_error(refused)
            sys.exit(refused.exit_code)
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        show_error(DsctlError(f"internal error: {what}", hint="this is a fault of dsctl: --debug shows where"))
        sys.exit(DsctlError.exit_code)
    finally:
        _end_server()


def _end_server() -> None:
    """End the process that forks workers, where this command has begun one: its workers have ended before.

    It ends by itself when its driver has, but for the case that a library which it imports spins, as some do for want
    of memory: then it would stay, and hold the output open.
    """
    started = sys.modules.get("multiprocessing.forkserver")
    pid = getattr(getattr(started, "_forkserver", None), "_forkserver_pid", None)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _usage(error: Exception) -> UsageError | None:
    """What the parser refuses, or None where it is not the parser that does. Its own classes are private to Typer."""
    said, context = getattr(error, "format_message", None), getattr(error, "ctx", None)
    if said is None:
        return None
    words = " ".join(said().split()).removesuffix(".")
    path = context.command_path if context else "dsctl"
    return UsageError(f"{path}: {words[:1].lower()}{words[1:]}", hint=f"`{path} --help` shows what it takes")


def _interrupt(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise Interrupted("interrupted")
