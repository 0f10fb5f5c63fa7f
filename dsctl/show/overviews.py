"""The plan of a release from its built-in description, as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dsctl.checkpoint.origin import Origin
from dsctl.plan.overview import Overview
from dsctl.show.audits import DONE, show_notes, show_partial, warn
from dsctl.show.output import Output, plural, size
from dsctl.show.plans import show_recoded, spread, stored_as
from dsctl.show.tables import two_columns


def show_overview(found: Overview, origin: Origin, target: str, output: Output) -> None:
    """Print the output that a request on a release would write."""
    output.data(describe_overview(found, origin, target))
    table = two_columns()
    table.add_row("from", origin.text)
    table.add_row("to", f"{target}{stored_as(found.request)}{spread(found.request)}")
    for name, words in (*_roles(found), *(_ranks(found) if found.nbytes else _whole(found))):
        table.add_row(name, words)
    output.text(table)
    warn(found.notes, output)
    show_notes(() if found.nbytes else found.notes, output)
    show_recoded(found.recoded, output)
    show_partial(found.notes, output)
    output.note("dry run: nothing was written")


def describe_overview(found: Overview, origin: Origin, target: str) -> dict[str, Any]:
    """The same as stable JSON: sizes in bytes, of tensors alone."""
    facts: dict[str, Any] = {
        "source": found.source,
        "origin": origin._asdict(),
        "target": target,
        "request": found.request.json(),
        "recoded": [kind._asdict() for kind in found.recoded],
        "bytes_out": found.bytes_out,
    }
    if found.nbytes:
        counts = {"moved": found.counts["moved"], "converted": found.converted, "recoded": _recoded(found)}
        ranks = [
            {"rank": rank, "tensors": found.tensors[rank], "weights_bytes": nbytes}
            for rank, nbytes in found.nbytes.items()
        ]
        return facts | {"audit": counts, "ranks": ranks, "legal_tp": list(found.legal), "notes": list(found.notes)}
    return facts | {
        "audit": found.counts, "roles": found.roles, "bytes_in": found.bytes_in, "notes": list(found.notes),
    }  # fmt: skip


def _recoded(found: Overview) -> int:
    return sum(kind.parameters for kind in found.recoded)


def _roles(found: Overview) -> Iterator[tuple[str, str]]:
    """Under a recipe: the format of each role, and its bytes."""
    for role, formats in found.roles.items() if found.request.rules else ():
        yield f"  {role}", ", ".join(f"{size(nbytes)} {name}" for name, nbytes in formats.items())


def _ranks(found: Overview) -> Iterator[tuple[str, str]]:
    recoded, moved = _recoded(found), found.counts["moved"]
    yield "parameters", f"{moved + found.converted + recoded:,}"
    yield "  moved", f"{moved:,} copied unchanged"
    if found.converted:
        yield "  converted", f"{found.converted:,} converted to a different format"
    yield "  recoded", f"{recoded:,} quantized again because of a cut"
    sizes = sorted(found.nbytes.values())
    each = size(sizes[-1]) if sizes[0] == sizes[-1] else f"{size(sizes[0])} to {size(sizes[-1])}"
    yield "write", f"{size(sum(sizes))} of weights on {plural(len(sizes), 'rank')}, {each} each"
    yield "legal TP", f"{', '.join(map(str, found.legal))}: sizes that cut no block"


def _whole(found: Overview) -> Iterator[tuple[str, str]]:
    yield "parameters", f"{found.counts['parameters']:,}"
    for name, words in DONE.items():
        if found.counts.get(name):
            yield f"  {name}", f"{found.counts[name]:,} {words}"
    yield "read", f"{size(found.bytes_in)} of weights"
    yield "write", f"{size(found.bytes_out)} of weights, plus headers, index and other files"
