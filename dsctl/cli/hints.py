"""Hints of a verb that can resume its work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dsctl.core.errors import LATER, DsctlError, Interrupted


@contextmanager
def resumable(again: str) -> Iterator[None]:
    """Add to hints the effect of running the same command again, such as `resumes`, after an interrupt or if a store
    does not answer."""
    try:
        yield
    except Interrupted as interrupted:
        interrupted.hint = f"run the same command again: it {again}"
        raise
    except DsctlError as error:
        if error.hint == LATER:
            error.hint = f"{LATER}: the same command {again}"
        raise
