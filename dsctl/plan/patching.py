"""Plan the result of a delta: the bytes that are moved, those that are patched, the other files. Pure, no torch."""

from __future__ import annotations

import hashlib
import json
from base64 import b64decode
from collections.abc import Iterator, Mapping

from dsctl.checkpoint.delta import Changed, Delta
from dsctl.checkpoint.delta_change import Change
from dsctl.checkpoint.delta_form import OVERWRITE, OVERWRITE_MOST
from dsctl.checkpoint.weight_files import WeightFiles, identified
from dsctl.codecs.codec import VALUES
from dsctl.codecs.plain import Plain
from dsctl.core import digests
from dsctl.core.amounts import plural
from dsctl.core.boxes import Box
from dsctl.core.errors import FormatError, PlanError
from dsctl.core.file_names import clashing
from dsctl.core.header import DTYPE_BITS, Header, TensorRef, TensorSpec, parse
from dsctl.plan.jobs import jobs_of, source_order
from dsctl.plan.plan import COUNTED, OutFile, Plan
from dsctl.plan.request import KEEP, Request
from dsctl.plan.steps import Part, Region, Step
from dsctl.stores import SIGNED

# Before the names of the delta's files.
PREFIX = "delta://"
_BYTES = Plain("U8")
_OTHER_BASE = "name the base that the delta was made from"


def plan_patch(base: WeightFiles, delta: Delta, sides: Mapping[str, bytes]) -> Plan:
    """The plan of a delta on a base; `sides` are the other files that the delta brings.

    Raises:
        PlanError: the base lacks a tensor that the delta needs, or has another size.
        FormatError: the delta is damaged.
    """
    request = Request(KEEP, delta=f"apply {delta.identity}")
    headers = {file: delta.header(file, base.headers) for file in _files(base, delta)}
    parsed = {file: parse(raw[8:], file, None) for file, raw in headers.items()}
    _refuse_unfit(base, delta, parsed)
    _refuse_strangers(base, delta, parsed)
    steps = sorted((step for header in parsed.values() for step in _steps(base, delta, header)), key=source_order)
    removed = {*(delta.record.removed if delta.record else ()), *sides}
    carried = {name: size for name, size in base.sides.items() if name not in removed}
    if why := clashing([*parsed, *sides, *carried]):
        raise PlanError(f"{base.store.place}: does not fit the delta: {why}", hint=_OTHER_BASE)
    files = [OutFile(file, raw, parsed[file].size + parsed[file].nbytes) for file, raw in headers.items()]
    plan = Plan(
        request, base.store.place, steps, files, dict(sides), carried, [], _counts(steps, base, parsed), [],
        _fingerprint(request, base, delta), _described(base, delta), as_bytes=True, trees=_trees(delta),
    )  # fmt: skip
    plan.jobs = list(jobs_of(steps))
    return plan


def _files(base: WeightFiles, delta: Delta) -> list[str]:
    return sorted(delta.record.result if delta.record else base.headers)


def _trees(delta: Delta) -> dict[str, str]:
    return {file: entry.tree for file, entry in delta.record.result.items()} if delta.record else {}


def _refuse_unfit(base: WeightFiles, delta: Delta, parsed: Mapping[str, Header]) -> None:
    """Refuse a record whose digests of the result are not of its headers: the result could not have them."""
    for file, header in parsed.items() if delta.record else ():
        assert delta.record is not None
        entry, raw = delta.record.result[file], len(header.raw).to_bytes(8, "little") + header.raw
        try:
            found = list(digests.split(b64decode(entry.tensors, validate=True)))
        except ValueError:
            found = []
        number = sum(1 for spec in header.specs if spec.nbytes)
        fits = len(found) == number and header.size + header.nbytes == entry.size
        if not fits or digests.tree(digests.digest(raw), found).hex() != entry.tree:
            if file not in delta.record.headers:
                what = f"has a different header in {file} than the delta's base"
                raise PlanError(f"{base.store.place}: {what}", hint=_OTHER_BASE)
            what = f"the digests of {file} are not of its header"
            raise FormatError(f"{delta.store.place}/{SIGNED}: {what}", hint="fetch the delta again")


def _refuse_strangers(base: WeightFiles, delta: Delta, parsed: Mapping[str, Header]) -> None:
    """Refuse a delta that changes tensors which the result does not have."""
    known = {(file, name) for file, header in parsed.items() for name in header.names}
    names = {name for _, name in known}
    for file, name in delta.tensors:
        if (file, name) not in known if delta.record else name not in names:
            place = base.store.place
            what = f"has no tensor {name}, which the delta changes"
            raise PlanError(f"{place}: {what}", hint=_OTHER_BASE)
    if delta.record is None and (name := base.repeated) and any(name == changed for _, changed in delta.tensors):
        raise PlanError(f"{base.store.place}: several files hold {name}, and the delta does not say which it changes")


def _steps(base: WeightFiles, delta: Delta, header: Header) -> Iterator[Step]:
    for ref in header.tensors.values():
        changed, old = delta.of(header.file, ref.name), base.tensor(header.file, ref.name)
        if changed is not None and changed.whole:
            yield _step(ref, _frame_part(changed), _change(delta, changed, ref))
            continue
        if old is None or old.nbytes != ref.nbytes:
            what = f"has no tensor {ref.name}" if old is None else f"{ref.name} has {old.nbytes:,} bytes there"
            need = f"the delta is for one of {ref.nbytes:,} bytes"
            raise PlanError(f"{base.store.place}: {what}, and {need}", hint=_OTHER_BASE)
        source = Part(VALUES, old.file, old.begin, TensorSpec("U8", (old.nbytes,)))
        yield _step(ref, source, _change(delta, changed, ref) if changed else None)


def _frame_part(changed: Changed) -> Part:
    ref = changed.ref
    return Part(VALUES, PREFIX + ref.file, ref.begin, TensorSpec("U8", (ref.nbytes,)))


def _change(delta: Delta, changed: Changed, ref: TensorRef) -> Change:
    width = max(1, DTYPE_BITS[ref.spec.dtype] // 8)
    at = changed.ref
    if delta.encoding == OVERWRITE and not changed.whole and ref.nbytes >= OVERWRITE_MOST:
        what = f"a tensor of {ref.nbytes:,} bytes is too long for an overwriting delta"
        raise FormatError(f"{delta.store.place}: {ref.name}: {what}")
    return Change(
        ref.name, PREFIX + at.file, at.begin, at.nbytes, ref.nbytes, width, delta.encoding, delta.checksum,
        changed.checksum, changed.whole, delta.record is not None,
    )  # fmt: skip


def _step(ref: TensorRef, source: Part, change: Change | None) -> Step:
    target = Part(VALUES, ref.file, ref.begin, TensorSpec("U8", (ref.nbytes,)))
    read, written = (
        Region(Box.whole(part.spec.shape), _BYTES, (part,), part.spec.shape, (0,)) for part in (source, target)
    )
    return Step(ref.name, target.spec.shape, "patch" if change else "move", (read,), (written,), change=change)


def _counts(steps: list[Step], base: WeightFiles, parsed: Mapping[str, Header]) -> dict[str, int]:
    patched = [step for step in steps if step.change]
    left = {name for header in base.headers.values() for name in header.names}
    left -= {name for header in parsed.values() for name in header.names}
    return dict.fromkeys(COUNTED, 0) | {
        "parameters": len(steps),
        "values": sum(spec.values for header in parsed.values() for spec in header.specs),
        "moved": len(steps) - len(patched),
        "patched": len(patched),
        "dropped": len(left),
    }


def _fingerprint(request: Request, base: WeightFiles, delta: Delta) -> str:
    digest = hashlib.sha256(json.dumps(request.json(), sort_keys=True).encode())
    digest.update(f"{base.store.revision}\n{delta.store.revision}".encode())
    for file, size in sorted(base.sizes.items()):
        digest.update(f"\n{file}\0{size}".encode())
        if file in base.headers:
            digest.update(base.headers[file].raw)
    return digest.hexdigest()


def _described(base: WeightFiles, delta: Delta) -> dict[str, str]:
    """What identifies each weight file that is read."""
    found = {file: identified(header, base.sizes[file]) for file, header in base.headers.items()}
    return found | {f"{PREFIX}{file}": identified(header, delta.sizes[file]) for file, header in delta.headers.items()}


def refuse_in_place(plan: Plan) -> None:
    """Refuse a plan whose files cannot be replaced one after the other.

    Raises:
        PlanError: a file is made from another file of the base.
    """
    for step in plan.steps:
        source, target = step.reads[0].parts[0].file, step.writes[0].parts[0].file
        if source != target and not source.startswith(PREFIX):
            what = f"{step.name} moves from {source} to {target}, so its files cannot be replaced one after another"
            raise PlanError(f"{plan.source}: {what}", hint="name a new folder in the place of --in-place")


def check_sides(delta: Delta, sides: Mapping[str, bytes], sums: Mapping[str, str]) -> None:
    """Refuse other files that are not those which the delta lists.

    Raises:
        FormatError: naming them.
    """
    entries = delta.record.sides if delta.record else {}
    wrong = [name for name in sides if sums[name] != entries[name].blake3]
    if wrong:
        what = f"{plural(len(wrong), 'file')} beside the weights changed since the delta was made, such as {wrong[0]}"
        raise FormatError(f"{delta.store.place}: {what}", hint="fetch the delta again")
