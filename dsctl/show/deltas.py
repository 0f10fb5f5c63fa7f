"""Print deltas: what one will hold, what was made, and what a check found; as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from dsctl.show.output import Output, plural, size
from dsctl.show.sections import Column, Row, Section, show
from dsctl.show.tables import two_columns

if TYPE_CHECKING:
    from dsctl.checkpoint.delta import Delta
    from dsctl.run.delta_apply import Application
    from dsctl.run.delta_fold import Folding
    from dsctl.run.delta_in_place import InPlace
    from dsctl.run.delta_make import MadeDelta, Order
    from dsctl.run.delta_verify import DeltaCheck

# Tensors of which the figures are printed unless all are asked for.
LISTED = 10


class TensorFigures(NamedTuple):
    """A changed tensor: its bytes, its elements and those that changed, its frame's bytes and their limit."""

    name: str
    nbytes: int
    elements: int
    changed: int
    stored: int
    limit: float


def figures(order: Order, made: MadeDelta) -> list[TensorFigures]:
    """The changed tensors of a delta that was made now, the largest frames first."""
    found = [
        TensorFigures(pair.new.name, pair.new.nbytes, one.elements, one.changed, one.stored, one.limit)
        for file in order.differing.files
        if file.name in made.found
        for pair, one in zip(file.pairs, made.found[file.name].differences, strict=True)
        if not one.equal
    ]
    return sorted(found, key=lambda one: (-one.stored, one.name))


def order_json(order: Order, target: str) -> dict[str, Any]:
    """A delta that is not made yet: upper bounds in bytes."""
    differing = order.differing
    return {
        "old": order.sources.old.store.place,
        "new": order.sources.new.store.place,
        "target": target,
        "request": order.options.request.json(),
        "tensors": sum(len(file.pairs) for file in differing.files),
        "tensors_whole": sum(pair.whole for pair in differing.pairs),
        "tensors_removed": len(differing.left),
        "bytes_in": differing.bytes_in,
        "bytes_new": order.sources.new.nbytes,
        "bytes_most": differing.most,
        "files": {file.name: file.most for file in differing.files},
        "other_files": sorted(order.sides),
        "removed_files": list(order.removed),
        "only_dsctl": list(differing.own),
    }


def show_order(order: Order, target: str, output: Output) -> None:
    """Print a delta that is not made yet."""
    facts, table = order_json(order, target), two_columns()
    output.data(facts)
    table.add_row("old", facts["old"])
    table.add_row("new", facts["new"])
    table.add_row("to", target)
    table.add_row(
        "tensors", f"{facts['tensors']:,}, {facts['tensors_whole']:,} of them without an old one of their size"
    )
    table.add_row("read", size(facts["bytes_in"]))
    most = f"at most {size(facts['bytes_most'])} in {plural(len(facts['files']), 'file')}"
    table.add_row("write", f"{most}; equal tensors take nothing")
    others = f"{plural(len(order.sides), 'other file')} changed, {len(order.removed):,} removed"
    table.add_row("copy", others)
    table.add_row("readers", _readers(order))
    output.text(table)
    output.note("dry run: no tensor was compared, and nothing was written")


def _readers(order: Order) -> str:
    if not order.differing.own:
        return "engines and trainers (docs/delta.md says which), and dsctl"
    return f"only dsctl: {'; '.join(order.differing.own)}"


def made_json(order: Order, made: MadeDelta, target: str) -> dict[str, Any]:
    """A delta that was made."""
    counts = made.audit["audit"]
    return order_json(order, target) | {
        "audit": counts,
        "bytes_delta": sum(file["size"] for file in made.audit["files"].values()),
        "changed": [one._asdict() | {"limit": round(one.limit, 1)} for one in figures(order, made)],
    }


def show_made(order: Order, made: MadeDelta, target: str, every: bool, output: Output) -> None:
    """Print a delta that was made: in all, and by tensor."""
    output.data(made_json(order, made, target))
    counts = made.audit["audit"]
    if order.differing.own:
        output.warn(f"only dsctl can apply this delta: {'; '.join(order.differing.own)}")
    found = figures(order, made)
    if found and not output.json:
        shown = found if every else found[:LISTED]
        show([_section(shown, len(found) - len(shown))], output)
    changed, values = counts["tensors_changed"], counts["values_changed"]
    share = f", {values:,} of {counts['values']:,} values" if counts["values"] else ""
    output.text(("delta", "bold"), f": {changed:,} of {plural(counts['parameters'], 'tensor')} changed{share}")
    if changed:
        limit, new = counts["bytes_limit"], max(counts["bytes_new"], 1)
        frames = f"{size(counts['bytes_frames'])} of frames, {counts['bytes_frames'] / new:.2%} of the new tensors"
        output.text(
            f"bytes: {frames}; the limit (order-0 entropy of the difference) is {size(limit)}, {limit / new:.2%}"
        )
    total = sum(file["size"] for file in made.audit["files"].values())
    files = f"{plural(len(made.audit['files']), 'file')}, {size(total)} in {target}"
    output.text(("complete", "green"), f": {files} (digests of both sides in dsctl.json)")


def _section(shown: list[TensorFigures], more: int) -> Section:
    columns = (
        Column("bytes", right=True), Column("changed", right=True), Column("frame", right=True),
        Column("limit", right=True), Column("tensor"),
    )  # fmt: skip
    rest = (f"{more:,} more have smaller frames: --all lists them",) if more else ()
    return Section("Largest frames", columns=columns, rows=tuple(Row(_cells(one)) for one in shown), paragraphs=rest)


def _cells(one: TensorFigures) -> tuple[str, ...]:
    share = one.changed / one.elements if one.elements else 0.0
    return size(one.nbytes), f"{share:.2%}", size(one.stored), size(one.limit), one.name


def check_json(delta: Delta, found: DeltaCheck) -> dict[str, Any]:
    """A check of a delta."""
    return {
        "delta": delta.store.place,
        "version": delta.version,
        "base_version": delta.base_version,
        "encoding": delta.encoding,
        "checksum": delta.checksum,
        "only_dsctl": not delta.shared,
        "tensors": found.frames,
        "files_with_digests": found.files,
        "base_checked": found.base,
        "results_with_checksum": found.results,
        "results_with_digest": found.digests,
        "problems": found.problems,
    }


def show_check(delta: Delta, found: DeltaCheck, output: Output) -> None:
    """Print what was looked at, and every problem."""
    output.data(check_json(delta, found))
    for problem in found.problems:
        output.text(("error", "bold red"), f"  {problem}")
    output.text(f"looked at: {'; '.join(_looked(delta, found))}")
    if not found.problems:
        what = "nothing wrong in these" if found.base else "nothing wrong in these; --base BASE also tries the result"
        output.text((what, "green"))


def _looked(delta: Delta, found: DeltaCheck) -> Iterator[str]:
    yield f"version {delta.version} of {delta.base_version}, {delta.encoding}"
    yield f"{plural(found.frames, 'frame')} decompressed"
    if found.files:
        yield f"{plural(found.files, 'file')} compared with the digests in dsctl.json"
    else:
        yield "no dsctl.json: the delta's own files have no digests"
    if found.base:
        known = f", {found.digests:,} of them with the BLAKE3" if found.digests else ""
        yield f"{plural(found.results, 'result')} with the {delta.checksum} that the delta states{known}"


def fold_json(asked: Folding, target: str, audit: dict[str, Any] | None) -> dict[str, Any]:
    """A fold; `audit` is None if it is not carried out."""
    first, last = asked.deltas[0], asked.deltas[-1]
    return {
        "deltas": [delta.store.place for delta in asked.deltas],
        "target": target,
        "version": last.version,
        "base_version": first.base_version,
        "encoding": last.encoding,
        "tensors": [len(delta.tensors) for delta in asked.deltas],
        "bytes": [delta.stored_bytes for delta in asked.deltas],
        "base_known": asked.records is not None,
        "audit": audit and audit["audit"],
        "bytes_delta": audit and sum(file["size"] for file in audit["files"].values()),
    }


def show_fold(asked: Folding, target: str, audit: dict[str, Any] | None, output: Output) -> None:
    """Print a fold."""
    for delta in asked.deltas:
        what = f"{delta.base_version} to {delta.version}, {plural(len(delta.tensors), 'tensor')}"
        output.text(f"  {delta.store.place}: {what}, {size(delta.stored_bytes)}")
    if asked.records is None:
        output.warn(
            "a delta has no digests of its base: the folded one has none either, so that a wrong base is "
            "noticed by checksums of the result only"
        )
    if audit is None:
        output.note("dry run: nothing was written")
        return
    counts = audit["audit"]
    back = f", {counts['tensors_equal']:,} changed back and dropped out" if counts["tensors_equal"] else ""
    number = plural(counts["tensors_changed"], "tensor")
    output.text(("delta", "bold"), f": {number} changed{back}, {size(counts['bytes_frames'])} of frames")
    total = sum(file["size"] for file in audit["files"].values())
    output.text(("complete", "green"), f": {plural(len(audit['files']), 'file')}, {size(total)} in {target}")


def show_in_place(asked: Application, run: InPlace, output: Output) -> None:
    """Print what a delta in place would replace."""
    files, counts = run.changed, asked.plan.counts
    gone = sorted(asked.base.headers.keys() - {file.name for file in asked.plan.files})
    others = sorted(asked.plan.texts)
    output.data(
        {
            "folder": str(run.folder),
            "request": asked.plan.request.json(),
            "audit": counts,
            "replaced": {file.name: file.size for file in files},
            "removed": [*gone, *(asked.delta.record.removed if asked.delta.record else ())],
            "other_files": others,
            "bytes_beside": max((file.size for file in files), default=0),
        }
    )
    table = two_columns()
    table.add_row("folder", str(run.folder))
    table.add_row("tensors", f"{counts['patched']:,} patched, {counts['moved']:,} as they are")
    table.add_row("replace", f"{plural(len(files), 'weight file')}, {plural(len(others), 'other file')}")
    table.add_row("disk", f"{size(max((file.size for file in files), default=0))} beside the folder's files")
    output.text(table)
    output.note("dry run: the base was not compared, and nothing was written")
