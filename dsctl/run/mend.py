"""Mend a checkpoint's metadata: what a check finds is mended and checked again. No weight is changed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from dsctl.core.errors import DsctlError
from dsctl.core.files import alone_in
from dsctl.stores import Store
from dsctl.stores.local import LocalFolder
from dsctl.verify.against import Other
from dsctl.verify.findings import CODES, Report
from dsctl.verify.repair import Mend, mend, mends

# One mend can bring out another, as a killed one does.
ROUNDS = 3


def undisturbed(store: Store) -> AbstractContextManager[None]:
    """What is found must still be so when it is mended, and no other run may write the same siblings."""
    return alone_in(Path(store.root)) if isinstance(store, LocalFolder) else nullcontext()


def mend_all(
    store: Store, report: Report, their: Other | None, check: Callable[[], Report], tell: Callable[[Mend], None]
) -> tuple[Report, list[Mend]]:
    """Mend what can be mended; give the report of the last check, and every mend, of which `tell` hears first.

    Raises:
        SourceError: a file cannot be read. WorkError: one cannot be written.
    """
    done: list[Mend] = []
    for _ in range(ROUNDS):
        planned = mends(store, report, their)
        if not planned:
            break
        for one in planned:
            tell(one)
        done += planned
        assert isinstance(store, LocalFolder)
        mend(store, planned)
        report = check()
    return report, done


def can_mend(store: Store, report: Report, their: Other | None) -> bool:
    """Whether anything that was found can be mended here."""
    if not any(CODES[finding.code].mendable for finding in report.findings):
        return False
    try:
        return bool(mends(store, report, their))
    except DsctlError:
        return False
