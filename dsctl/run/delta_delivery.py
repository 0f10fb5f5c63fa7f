"""A delta whose target is at a URL: made in a staging folder, then sent; `dsctl.json` comes last. No torch."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dsctl.checkpoint.reading import read_json
from dsctl.core.errors import DsctlError, PlanError
from dsctl.plan.plan import Plan
from dsctl.plan.texts import WEIGHTS
from dsctl.run.audits import valid_audit
from dsctl.run.claim import refuse_unlike
from dsctl.run.finished import finished
from dsctl.run.how import How
from dsctl.run.locks import Lock
from dsctl.run.marks import mark_of, outputs
from dsctl.run.object_target import ObjectTarget
from dsctl.run.staging import fingerprint_of, staging
from dsctl.run.upload_order import UploadOrder
from dsctl.run.uploading import Uploading
from dsctl.stores import SIGNED, Store, store_at
from dsctl.stores.repositories import RepositoryWriter, is_target
from dsctl.stores.uploads import Uploads

_MESSAGE = "Upload a delta with dsctl"


def deliver(url: str, plan: Plan, store: Store, how: How, make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Make a delta and send it, or go on with that; gives what its `dsctl.json` says.

    `make` makes it in a folder, or goes on there. A repository that does not exist is made, private unless
    `how.public`.

    Raises:
        PlanError, ResumeError: the target holds something else. WorkError: it cannot be written; the same call goes on.
    """
    known = None if how.force else _complete(url, plan, store)
    if known is not None:
        return known
    here, folder = staging(url), staging(url) / "made"
    lock = Lock(here.with_suffix(".at-work"), url)
    try:
        send = _to_hub(url, plan, how) if is_target(url) else _to_objects(url, plan, store, how.force)
        if fingerprint_of(folder) != plan.fingerprint:
            shutil.rmtree(here, ignore_errors=True)
        audit = make(folder)
        send(folder, audit)
        shutil.rmtree(here, ignore_errors=True)
    finally:
        lock.release()
    return audit


def _complete(url: str, plan: Plan, source: Store) -> dict[str, Any] | None:
    """The audit of a target that has the same delta already, with files of the recorded sizes.

    Raises:
        ResumeError: its source had the same headers and sizes, but has changed since.
    """
    try:
        store = store_at(url)
        sizes = store.files()
        audit = valid_audit(read_json(store, SIGNED, sizes))
    except (DsctlError, TypeError, ValueError):
        return None
    same = all(sizes.get(name) == file["size"] for name, file in audit["files"].items())
    mark = mark_of(audit, True)
    if not same or mark is None or mark.fingerprint != plan.fingerprint:
        return None
    refuse_unlike(plan, source, url, mark)
    return audit


def _to_objects(url: str, plan: Plan, store: Store, force: bool) -> Callable[[Path, dict[str, Any]], None]:
    target = ObjectTarget(url, plan, force, Uploads(url))
    state = target.check(store)

    def send(folder: Path, audit: dict[str, Any]) -> None:
        try:
            target.begin(store, state)
            for name in audit["files"]:
                target.send(name, folder / name, "", lambda nbytes: None)
            target.finish(folder)
        finally:
            target.stop()

    return send


def _to_hub(url: str, plan: Plan, how: How) -> Callable[[Path, dict[str, Any]], None]:
    writer = RepositoryWriter.at(url)
    there = writer.look().head
    strange = sorted(
        name for name in (there.files if there else {}) if name.endswith(WEIGHTS) and name not in outputs(plan)
    )
    if strange and not how.force:
        what = f"holds {strange[0]}, which is not a file of this delta"
        raise PlanError(f"{writer.place}: {what}", hint="choose a new branch, as in @v2, or a new repository")

    def send(folder: Path, audit: dict[str, Any]) -> None:
        order = UploadOrder(finished(str(folder)), None, writer.look(), how.force)
        Uploading(order, writer, _MESSAGE).run(private=not how.public)

    return send
