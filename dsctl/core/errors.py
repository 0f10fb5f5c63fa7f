"""Every error that dsctl raises on purpose.

    DsctlError                1   anything below; also a diff with --exit-code that differs
    |-- UsageError            2   the command line asks for something that does not exist
    |-- SourceError          10   the source cannot be found, opened or read
    |-- FormatError          20   the source exists, but contradicts its format or its config
    |-- PlanError            30   the request cannot be carried out on this source
    |-- ResumeError          40   the target folder belongs to a different or a running request
    |-- WorkError            41   reading, converting or writing failed during the run
    |-- VerifyFailed         50   a check found problems
    `-- Interrupted         130   Ctrl-C, or a different signal to stop

Several problems of one kind are reported together in `issues`.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

# The hint if a store does not answer. A verb that keeps finished work adds that to it.
LATER = "try again later"


class DsctlError(Exception):
    """Root of the tree: a one-line message, an optional hint and an optional list of single problems."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None, issues: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.issues = tuple(issues)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.hint, self.issues)


def _rebuild(kind: type[DsctlError], message: str, hint: str | None, issues: tuple[str, ...]) -> DsctlError:
    return kind(message, hint=hint, issues=issues)


class UsageError(DsctlError):
    """The command line names something that does not exist or contradicts itself."""

    exit_code = 2


class SourceError(DsctlError):
    """A source cannot be found, opened or read."""

    exit_code = 10


class FormatError(DsctlError):
    """A source's files contradict their format, each other or the architecture."""

    exit_code = 20


class PlanError(DsctlError):
    """The request is understood, but cannot be carried out on this source or this machine."""

    exit_code = 30


class ResumeError(DsctlError):
    """The target holds work of a different request, or a running process works on it."""

    exit_code = 40


class WorkError(DsctlError):
    """Reading, converting or writing failed while the plan was carried out."""

    exit_code = 41


class VerifyFailed(DsctlError):
    """A check found problems."""

    exit_code = 50


class Interrupted(DsctlError):
    """Ctrl-C, or a different signal to stop."""

    exit_code = 130


def words_of(error: OSError) -> str:
    """The system's own message for a refused call, such as "Permission denied"."""
    return error.strerror or str(error)


def of_the_machine(error: BaseException) -> WorkError | None:
    """The error to report if the machine lacks memory or the system refuses a call; None for any other failure.

    torch raises RuntimeErrors if it cannot allocate memory: its CPU allocator (c10/core/impl/alloc_cpu.cpp) and a
    device (OutOfMemoryError). Python raises one for a thread that cannot start, and the loader an ImportError for a
    library that does not fit. A SystemError means that compiled code failed without saying why, as it does if memory
    runs out in the middle of it.
    """
    words = str(error)
    if isinstance(error, RuntimeError) and "can't start new thread" in words:
        return WorkError(
            "the system cannot start more threads", hint="raise the limit on processes (ulimit -u), or memory"
        )
    if _lacks_memory(error, words):
        hint = "use fewer --workers or a smaller --max-memory, or free memory, and run the same command again"
        return WorkError("this machine has too little memory", hint=hint)
    if isinstance(error, ImportError):
        what = str(error).splitlines()[0] if words else "its loading failed"
        hint = "memory may be too small for it, or the installation incomplete: install dsctl again"
        return WorkError(f"a library cannot be loaded: {what}", hint=hint)
    if isinstance(error, EOFError):
        hint = "memory may have run out: use fewer --workers and run the same command again; it resumes"
        return WorkError("a process that dsctl needs has ended", hint=hint)
    if isinstance(error, SystemError):
        what = "a library failed without giving a reason"
        hint = "too little memory is the usual cause: fewer --workers or a smaller --max-memory; --debug shows where"
        return WorkError(what, hint=hint)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return WorkError(f"{where}{words_of(error)}", hint="the system refused a call; --debug shows where")
    return None


def _lacks_memory(error: BaseException, words: str) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, ImportError):
        return "failed to map segment" in words or "annot allocate memory" in words
    allocator = "can't allocate memory" in words or "out of memory" in words
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and allocator)
