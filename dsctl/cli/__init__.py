"""The command line: a file per verb, loaded when it is called. Errors end here, with one line and an exit code.

With --json that line is a JSON object (docs/json.md).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from itertools import takewhile
from typing import NoReturn

import typer

from dsctl.cli.app import application, called
from dsctl.cli.refusals import usage
from dsctl.core.errors import DsctlError, Interrupted, UsageError, of_the_machine
from dsctl.show.output import end_unread, prepare, show_error, show_error_as_json, show_trace


def main() -> None:
    """Run `dsctl`; the console script's entry point."""
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    prepare()
    words = sys.argv[1:]
    # Before anything is parsed: an error of the parser is traced and printed as asked, too.
    options = list(takewhile(lambda word: word != "--", words))
    debug, as_json = "--debug" in options, "--json" in options
    try:
        code = application(called(words))(words or ["--help"], prog_name="dsctl", standalone_mode=False)
        sys.exit((code or 0) if words else UsageError.exit_code)
    except DsctlError as error:
        _end(error, as_json, error if debug else None)
    except BrokenPipeError:
        end_unread()
    except typer.Abort as aborted:
        # Typer raises it for an EOFError: a process beside this one has ended.
        _end(of_the_machine(aborted.__cause__ or aborted) or Interrupted("aborted"), as_json)
    except Exception as error:  # noqa: BLE001  every error that ends a command is reported here
        if (wrong := usage(error)) is not None:
            _end(wrong, as_json)
        what = f"internal error: {type(error).__name__}: {error}".splitlines()[0]
        defect = DsctlError(what, hint="this is a defect of dsctl: --debug shows where")
        _end(of_the_machine(error) or defect, as_json, error if debug else None)
    finally:
        _end_server()


def _end(error: DsctlError, as_json: bool, traced: BaseException | None = None) -> NoReturn:
    """Report an error and exit with its code. A traceback, if asked for, replaces the text and precedes the JSON."""
    if traced is not None:
        show_trace(traced)
    if as_json:
        show_error_as_json(error)
    elif traced is None:
        show_error(error)
    sys.exit(error.exit_code)


def _end_server() -> None:
    """End the process that forks workers, if this command has started one; its workers have ended before.

    It ends by itself after its driver, except if a library that it imports spins, as some do if memory runs out: then
    it would stay and hold the output open.
    """
    started = sys.modules.get("multiprocessing.forkserver")
    pid = getattr(getattr(started, "_forkserver", None), "_forkserver_pid", None)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _interrupt(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise Interrupted("interrupted")
