"""The placement of experts by a load balancer such as EPLB. Data from a JSON file.

deepseek-ai/EPLB (README): `physical_to_logical_map`, [layers, replicas], gives the expert at every place; places are
assigned to ranks in contiguous runs of equal length.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from dsctl.core.errors import FormatError, SourceError
from dsctl.core.files import read_small, refusal

# V3's map of 58 layers and 288 places has less than 100 kB.
MAX_BYTES = 16 << 20
Expert = Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]


class _Map(msgspec.Struct):
    physical_to_logical_map: list[list[Expert]]


def placement(path: str) -> tuple[tuple[int, ...], ...]:
    """For every row of the map, the experts by place.

    Raises:
        SourceError: the file cannot be read. FormatError: it is not such a map.
    """
    try:
        raw = read_small(path, MAX_BYTES)
    except OSError as error:
        raise refusal(f"--expert-map: {path}", error, SourceError) from None
    try:
        rows = msgspec.json.decode(raw, type=_Map).physical_to_logical_map
    except (ValueError, RecursionError) as error:
        hint = 'as {"physical_to_logical_map": [[0, 1, ...], ...]}, a row per MoE layer'
        raise FormatError(f"--expert-map: {path}: is not a map of experts: {error}", hint=hint) from None
    if not rows:
        raise FormatError(f"--expert-map: {path}: the map has no rows")
    return tuple(map(tuple, rows))


def layers_of_rows(count: int, layers: tuple[int, ...], main: int, label: str) -> list[int]:
    """The layer of each of `count` rows: the MoE layers among `layers`, with or without those of the drafter, or all of
    the `main` layers of the model; `label` begins errors.

    Raises:
        FormatError: no reading fits, or several different ones do.
    """
    known = [layer for layer in layers if layer < main]
    readings = [numbers for numbers in (known, list(layers), list(range(main))) if len(numbers) == count]
    if not readings:
        raise FormatError(f"{label}: {count} rows do not match {len(known)} MoE layers")
    numbers = readings[0]
    if any(other != numbers for other in readings):
        what = "match both the MoE layers with the MTP layer and all layers without it"
        raise FormatError(f"{label}: {count} rows {what}", hint=f"write {len(known)} rows, one per MoE layer")
    return numbers


def dealt_out(
    rows: tuple[tuple[int, ...], ...], layers: tuple[int, ...], main: int, experts: int, parts: int
) -> dict[int, tuple[frozenset[int], ...]]:
    """The experts of each of `parts` parts, for every layer in a map.

    A map has a row for each of `layers` (the MoE layers, with or without the MTP layer) or for each of the `main`
    layers of the model; rows of layers without experts are ignored.

    Raises:
        FormatError: the number of rows is wrong or ambiguous, the places do not divide, or an expert is missing.
    """
    numbers = layers_of_rows(len(rows), layers, main, "expert map")
    found = {}
    for layer, row in zip(numbers, rows, strict=True):
        if layer not in layers:
            continue
        if len(row) % parts:
            raise FormatError(f"expert map: layer {layer}: {len(row)} places do not divide into {parts} equal parts")
        left = sorted(set(range(experts)).symmetric_difference(row))
        if left:
            what = f"expert {left[0]} has no place, or is not one of the {experts} experts"
            raise FormatError(f"expert map: layer {layer}: {what}")
        each = len(row) // parts
        found[layer] = tuple(frozenset(row[part * each : (part + 1) * each]) for part in range(parts))
    return found
