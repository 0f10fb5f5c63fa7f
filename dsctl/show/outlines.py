"""How the plan of a release is told that is spread over ranks from its description alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dsctl.checkpoint.origin import Origin
from dsctl.look.outline import Outline
from dsctl.plan.request import Request
from dsctl.show.output import Output, plural, size
from dsctl.show.plans import show_recoded, spread
from dsctl.show.tables import two_columns


def show_outline(found: Outline, request: Request, origin: Origin, target: str, output: Output) -> None:
    """Print what spreading a release would write."""
    output.data(describe_outline(found, request, origin, target))
    table = two_columns()
    table.add_row("from", origin.text)
    table.add_row("to", f"{target}{spread(request)}")
    for name, words in _rows(found):
        table.add_row(name, words)
    output.text(table)
    show_recoded(found.recoded, output)
    output.note("dry run: nothing was written")


def describe_outline(found: Outline, request: Request, origin: Origin, target: str) -> dict[str, Any]:
    """The same as stable JSON: sizes in bytes."""
    return {
        "source": found.source,
        "origin": origin._asdict(),
        "target": target,
        "request": request.json(),
        "audit": {"moved": found.moved, "converted": found.converted, "recoded": _recoded(found)},
        "recoded": [kind._asdict() for kind in found.recoded],
        "ranks": [
            {"rank": rank, "tensors": found.tensors[rank], "weights_bytes": nbytes}
            for rank, nbytes in found.nbytes.items()
        ],
        "legal_tp": list(found.legal),
        "bytes_out": sum(found.nbytes.values()),
    }


def _recoded(found: Outline) -> int:
    return sum(kind.parameters for kind in found.recoded)


def _rows(found: Outline) -> Iterator[tuple[str, str]]:
    recoded = _recoded(found)
    yield "parameters", f"{found.moved + found.converted + recoded:,}"
    yield "  moved", f"{found.moved:,} moved byte for byte"
    if found.converted:
        yield "  converted", f"{found.converted:,} converted to another format"
    yield "  recoded", f"{recoded:,} recoded because of a cut"
    sizes = sorted(found.nbytes.values())
    each = size(sizes[-1]) if sizes[0] == sizes[-1] else f"{size(sizes[0])} to {size(sizes[-1])}"
    yield "write", f"{size(sum(sizes))} of weights on {plural(len(sizes), 'rank')}, {each} each"
    yield "legal TP", f"{', '.join(map(str, found.legal))}: sizes that cut no block"
