"""What the machine or the system refuses is reported as that, and never as a fault of dsctl."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from dsctl.core.errors import PlanError, SourceError, WorkError, of_the_machine, words_of
from dsctl.core.files import failure, refusal


def test_a_library_that_fails_without_a_word_is_not_a_fault_of_dsctl() -> None:
    """Compiled code does that if memory runs out in the middle of it."""
    error = of_the_machine(SystemError("error return without exception set"))
    assert isinstance(error, WorkError) and error.exit_code == 41
    assert error.message == "a library failed without giving a reason"
    assert error.hint is not None and error.hint.startswith("too little memory is the usual cause")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "too little memory"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "too little memory"),
        (RuntimeError("can't start new thread"), "more threads"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "too little memory"),
        (ImportError("libtorch.so: failed to map segment"), "too little memory"),
        (ImportError("no such symbol\nand more"), "cannot be loaded: no such symbol"),
        (EOFError(), "a process that dsctl needs"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "/x: Permission denied"),
    ],
)
def test_what_the_machine_lacks_is_named(error: Exception, words: str) -> None:
    found = of_the_machine(error)
    assert isinstance(found, WorkError) and words in found.message


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("x"), KeyError("x")])
def test_a_fault_of_dsctl_is_not_put_on_the_machine(error: Exception) -> None:
    assert of_the_machine(error) is None


def test_the_system_s_words_are_used_if_it_has_any() -> None:
    assert words_of(OSError(errno.ENOSPC, "No space left on device")) == "No space left on device"
    assert words_of(OSError("is closed")) == "is closed"


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOSPC, "free some space and run the same command again: it resumes"),
        (errno.EACCES, "this user may not write there: change the permissions, or name another folder"),
        (errno.EROFS, "this user may not write there: change the permissions, or name another folder"),
        (errno.EIO, None),
    ],
)
def test_what_cannot_be_written_has_the_hint_of_its_reason(number: int, hint: str | None) -> None:
    error = failure(Path("/out"), OSError(number, os.strerror(number)))
    assert (error.message, error.hint) == (f"/out: {os.strerror(number)}", hint)


def test_any_other_refusal_is_of_the_kind_that_is_asked_for() -> None:
    error = refusal("/x", OSError(errno.EIO, "Input/output error"), PlanError, "choose another target")
    assert type(error) is PlanError
    assert (error.message, error.hint) == ("/x: Input/output error", "choose another target")
    assert refusal("/x", OSError(errno.EIO, "Input/output error"), SourceError).hint is None
