"""A process that has imported dsctl and torch, computes nothing, and forks for each command that it reads.

Hundreds of runs are affordable that way: importing torch takes seconds. A fork stands for a process of its own: it has
its own session, its own signal handlers, and the files and the environment that the command asks for. It is asked by
tests/support/forks.py in lines of JSON, and answers each with a pid and later with an exit code.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import select
import signal
import sys
import traceback
from typing import Any, NoReturn

# The commands that run, each with the end of a pipe that is closed when it ends.
RUNNING: dict[int, int] = {}


def serve() -> None:
    """Fork for each line of stdin; tell the pid and the exit code of each fork on stdout."""
    import dsctl.cli.carrying
    import dsctl.cli.conversion
    import dsctl.cli.convert
    import dsctl.cli.inspect
    import dsctl.cli.plan
    import dsctl.cli.tiny
    import dsctl.cli.verify
    import dsctl.tiny
    import dsctl.verify
    import dsctl.work.executors.processes
    import dsctl.work.executors.serial
    import dsctl.work.job  # noqa: F401  what each command would import

    # What huggingface_hub imports; it reads its settings when it is imported itself.
    for name in ("anyio", "encodings.idna", "filelock", "filelock._soft", "httpcore2", "httpx2", "tqdm.auto", "yaml"):
        importlib.import_module(name)

    signal.set_wakeup_fd(ends := _pipe()[1])
    signal.signal(signal.SIGCHLD, lambda *_: None)
    woken = WAKE[0]
    tell({"ready": os.getpid()})
    rest = b""
    while True:
        ready, _, _ = select.select([0, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            _reap()
        if 0 in ready:
            read = os.read(0, 65536)
            if not read:
                return
            *lines, rest = (rest + read).split(b"\n")
            for line in lines:
                asked = json.loads(line)
                pid = os.fork()
                if not pid:
                    signal.set_wakeup_fd(-1)
                    os.close(woken), os.close(ends)
                    _become(asked)
                tell({"asked": asked["number"], "pid": pid})


WAKE: list[int] = []


def _pipe() -> list[int]:
    WAKE[:] = os.pipe()
    for end in WAKE:
        os.set_blocking(end, False)
    return WAKE


def _reap() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        tell({"ended": pid, "code": os.waitstatus_to_exitcode(status)})


def tell(what: dict[str, Any]) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


def _become(asked: dict[str, Any]) -> NoReturn:
    """What a new process with these arguments, files and variables would do."""
    code = 70
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, path in ((0, os.devnull), (1, asked["out"]), (2, asked["err"])):
            file = os.open(path, os.O_RDONLY if not number else os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            os.dup2(file, number)
            os.close(file)
        os.environ.update(asked["environment"])
        for place, value in asked["settings"].items():
            module, _, name = place.rpartition(".")
            setattr(importlib.import_module(module), name, value)
        if asked["last"][0]:
            _end_after(*asked["last"])
        if asked["stopped"]:
            os.kill(os.getpid(), signal.SIGSTOP)
        try:
            _begin(asked["script"], asked["arguments"])
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001  as an interpreter does
        traceback.print_exc()
        code = 1
    finally:
        _end(code)


def _begin(script: str, arguments: list[str]) -> None:
    """Run a script as `python -c` does, or `dsctl`."""
    if script:
        sys.argv = ["-c", *arguments]
        exec(script, {"__name__": "__main__"})
    else:
        from dsctl.__main__ import main

        sys.argv = ["dsctl", *arguments]
        main()


def _end_after(place: str, times: int) -> None:
    """End this process right after a call of a function, wherever its name stands for it."""
    module, _, name = place.rpartition(".")
    owner = pkgutil.resolve_name(module)
    real, left = getattr(owner, name), [times]

    def ending(*arguments: Any, **options: Any) -> Any:
        result = real(*arguments, **options)
        left[0] -= 1
        if not left[0]:
            os._exit(9)
        return result

    for holder in (owner, *(held for key, held in list(sys.modules.items()) if key.startswith("dsctl."))):
        if getattr(holder, name, None) is real:
            setattr(holder, name, ending)


def _end(code: int) -> NoReturn:
    """End as an interpreter does: what was registered for the end is called, what is buffered is written."""
    import atexit
    import threading

    try:
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    serve()
