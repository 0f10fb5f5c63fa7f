"""What a verb that keeps what it has done adds to the hints of errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dsctl.core.errors import LATER, DsctlError, Interrupted


@contextmanager
def resumable(again: str) -> Iterator[None]:
    """Say what the same command does after an interrupt, or if a store does not answer: `again` is a verb's phrase."""
    try:
        yield
    except Interrupted as interrupted:
        interrupted.hint = f"run the same command again: it {again}"
        raise
    except DsctlError as error:
        if error.hint == LATER:
            error.hint = f"{LATER}: the same command {again}"
        raise
