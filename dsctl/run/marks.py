"""The mark of a target folder: the owner of its work, the source, and the files to be made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dsctl.checkpoint.odd_scales import ODD
from dsctl.core.files import read_own, replace_file
from dsctl.plan.model_card import README
from dsctl.plan.plan import Plan
from dsctl.run.identity import HeldFile, parse
from dsctl.stores import SIGNED, STATEMENT, WORKING, Store
from dsctl.version import __version__

BEGUN = "request.json"
# The fingerprint of a folder that is being emptied.
NOBODY = ""


@dataclass(frozen=True, slots=True)
class Route:
    """A run's plan, source store and target folder, and the identity of the source's files.

    `held` are the identities when the run began; for consumed files, those in the folder's mark. `sent` are the files
    of a staging folder that were uploaded and take no space in it any more.
    """

    plan: Plan
    store: Store
    target: Path
    held: dict[str, HeldFile]
    sent: frozenset[str] = frozenset()


class Mark(NamedTuple):
    """A folder's mark: in `dsctl.json` if it is complete, else in `.dsctl/request.json`.

    `held` are the identities of the source's files, `work` is the digest of `work_of`, `files` are the target's files,
    `boot` is the start of the system under which the journal was written (see `boot`), or empty.
    """

    complete: bool
    fingerprint: str
    version: str
    request: Any
    revision: str
    place: str
    held: dict[str, HeldFile]
    work: str
    files: tuple[str, ...]
    boot: str = ""


def boot() -> str:
    """The identifier of this start of the system; empty if the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def mark_of(said: Any, complete: bool) -> Mark | None:
    """The mark in the JSON of `dsctl.json` or `request.json`, or None if it is neither."""
    try:
        source = said.get("source") or {}
        files = said["files"] if complete else said.get("files", ())
        if not isinstance(said["fingerprint"], str) or not isinstance(files, dict if complete else (list, tuple)):
            return None
        return Mark(
            complete, said["fingerprint"], str(said.get("dsctl" if complete else "version", "")), said.get("request"),
            str(said.get("revision", "")), str(source.get("place", "")), parse(source.get("identity") or {}),
            str(said.get("work", "")), tuple(map(str, files)), str(said.get("boot", "")),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None


def read_mark(target: Path) -> Mark | None:
    """A folder's mark, or None if it does not have one that can be read."""
    for complete, file in ((True, target / SIGNED), (False, target / WORKING / BEGUN)):
        try:
            return mark_of(json.loads(read_own(file)), complete)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RecursionError):
            return None
    return None


def source_json(plan: Plan, held: Mapping[str, HeldFile]) -> dict[str, Any]:
    """The place and the identity of a source, as marks record them."""
    modified = {file: one.times.modified for file, one in held.items() if one.times}
    return {
        "place": plan.source,
        "modified": modified,
        "identity": {file: one.json() for file, one in sorted(held.items())},
    }


def work_of(plan: Plan) -> str:
    """A digest of the bytes that each job writes, which gives the job numbers of a journal their meaning."""
    digest = hashlib.sha256()
    for file in plan.files:
        digest.update(file.header)
    for job in plan.jobs:
        parts = [
            (step.name, region.box.start, region.box.stop, region.ending(part), part.file, part.offset)
            for step in job.steps
            for region in step.writes
            for part in region.parts
        ]
        digest.update(f"\n{job.number} {parts}".encode())
    return digest.hexdigest()


def outputs(plan: Plan) -> set[str]:
    """Every file that a complete target holds."""
    repeated = {f"{folder}/{name}" for name in plan.repeated for folder in plan.folders}
    copied = (plan.renamed.get(name, name) for name in plan.carried)
    others = ((ODD,) if plan.gathers else ()) + ((README,) if plan.card else ())
    return {*(file.name for file in plan.files), *plan.texts, *copied, *repeated, *others, STATEMENT, SIGNED}


def begun_json(plan: Plan, store: Store, held: Mapping[str, HeldFile]) -> dict[str, Any]:
    """The fields of an unfinished target's mark that folders and object stores share."""
    return {
        "fingerprint": plan.fingerprint,
        "version": __version__,
        "request": plan.request.json(),
        "revision": store.revision,
        "source": source_json(plan, held),
    }


def sign_begun(route: Route) -> None:
    """Write the mark of a folder with unfinished work.

    Raises:
        WorkError: the folder cannot be written.
    """
    begun = begun_json(route.plan, route.store, route.held)
    _write(route.target, begun | {"work": work_of(route.plan), "boot": boot(), "files": sorted(outputs(route.plan))})


def sign_nobody(target: Path, files: Sequence[str]) -> None:
    """Write the mark of a folder that is being emptied of these files, and has no owner.

    Raises:
        WorkError: the folder cannot be written.
    """
    _write(target, {"fingerprint": NOBODY, "files": files})


def _write(target: Path, begun: dict[str, Any]) -> None:
    replace_file(target / WORKING / BEGUN, json.dumps(begun, indent=1).encode())
