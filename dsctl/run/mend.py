"""Fix a checkpoint's metadata: findings are fixed and checked again. No weight is changed."""

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

# One fix can reveal the need for another, for example after a killed one.
ROUNDS = 3


def undisturbed(store: Store) -> AbstractContextManager[None]:
    """Lock out other runs: findings must still be true when they are fixed, and only one run may write the files."""
    return alone_in(Path(store.root)) if isinstance(store, LocalFolder) else nullcontext()


def mend_all(
    store: Store, report: Report, their: Other | None, check: Callable[[], Report], tell: Callable[[Mend], None]
) -> tuple[Report, list[Mend]]:
    """Fix every finding that can be fixed; return the report of the last check and all fixes.

    `tell` is called with each fix before it is made.

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
    """Whether any finding can be fixed here."""
    if not any(CODES[finding.code].mendable for finding in report.findings):
        return False
    try:
        return bool(mends(store, report, their))
    except DsctlError:
        return False
