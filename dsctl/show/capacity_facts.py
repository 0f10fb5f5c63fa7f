"""The report of `dsctl plan` as stable JSON: bytes per rank, verdicts per accelerator, and illegal cuts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from dsctl.layouts.ranks import Ranks
from dsctl.look.accelerators import Accelerator
from dsctl.look.capacity import Cache, Load, disk, roles
from dsctl.look.description import Description
from dsctl.look.fitting import FITS, NO, SPLIT, TIGHT, Fit, Must, Reserve, Subject, best, fit
from dsctl.look.halves import passed_layers, prompt_values
from dsctl.plan.cuts import Cut
from dsctl.plan.formats import Formats

# The machine's word for a verdict that is not `fits`.
_WHY = {TIGHT: "reserve", NO: "memory", SPLIT: "cuts"}


@dataclass(frozen=True, slots=True)
class Considered:
    """The choices of a plan: formats by name, numbers of ranks, a cache, accelerators and a reserve.

    `must` are demands, each for the format `must_format` and either for exactly the given ranks (`exact`) or for any
    split. `tables` is the place that a person chose for n-gram tables.
    """

    formats: dict[str, Formats]
    ranks: Sequence[Ranks]
    cache: Cache
    accelerators: Sequence[Accelerator]
    reserve: Reserve
    must: Sequence[Must] = ()
    must_format: str = ""
    exact: bool = False
    tables: str | None = None


def as_json(description: Description, considered: Considered) -> dict[str, Any]:
    """Every number of the report as stable JSON; docs/costs.md describes the fields."""
    cache, reserve = considered.cache, considered.reserve
    subjects = {
        name: Subject.of(description, to, cache, reserve, considered.tables) for name, to in considered.formats.items()
    }
    spreads = {
        name: [Spread(one.loads(ranks), one.cuts(ranks)) for ranks in considered.ranks]
        for name, one in subjects.items()
    }
    formats = {
        name: {
            "disk_bytes": disk(description, to),
            "tables_bytes": subjects[name].table_bytes,
            "roles": roles(description, to),
            "units": subjects[name].units,
            "ranks": [_rank_json(one, subjects[name]) for one in spreads[name]],
        }
        for name, to in considered.formats.items()
    }
    tabled = next(iter(subjects.values()))
    place = {"place": tabled.tables, "from": "asked" if considered.tables else "default"}
    return {
        "source": description.name,
        "origin": description.origin._asdict(),
        "values": description.values,
        "active_values": description.active_values,
        "prompt_values": prompt_values(description),
        "prompt_layers": passed_layers(description),
        "context": cache.context,
        "context_from": cache.why,
        "published_context": description.published_context,
        "max_position_embeddings": description.positions,
        "batch": cache.batch,
        "cache": _cache_json(cache),
        "tables": place if tabled.table_bytes else None,
        "reserve": {
            "bytes": reserve.nbytes,
            "share": None if reserve.nbytes is not None else float(reserve.share),
            "from": "asked" if reserve.asked else "default",
        },
        "formats": formats,
        "accelerators": [_accelerator_json(one, subjects, spreads) for one in considered.accelerators],
        "must_fit": [_must_json(one, considered, subjects[considered.must_format]) for one in considered.must],
    }


class Spread(NamedTuple):
    """The bytes that some ranks hold, by the place of n-gram tables, and the illegal cuts of these ranks."""

    loads: dict[str, Load]
    cuts: Sequence[Cut]


def _rank_json(spread: Spread, subject: Subject) -> dict[str, Any]:
    load, cuts = spread.loads[subject.tables], spread.cuts
    ranks = load.ranks
    tables = {place: {"weights_bytes": one.weights, "bytes": one.nbytes} for place, one in spread.loads.items()}
    sizes = {"tp": ranks.tp, "ep": ranks.ep, "pp": ranks.pp, "world": ranks.world}
    held = {"weights_bytes": load.weights, "cache_bytes": load.cache, "bytes": load.nbytes}
    shares = {"sequences": load.sequences, "layers": load.fullest.layers}
    placed = {"tables": tables if subject.table_bytes else None}
    return sizes | held | placed | shares | {"cuts": [cut._asdict() for cut in cuts]}


def _cache_json(cache: Cache) -> dict[str, Any] | None:
    attention, kept = cache.attention, cache.sequence
    if attention is None:
        return None
    return {
        "format": cache.format,
        "index_format": attention.keys,
        "window_format": attention.window_format(cache.format) if kept.window else None,
        "latent_bytes_per_token": attention.cache_bytes(cache.format),
        "index_bytes_per_token": attention.index_bytes(),
        "latent_bytes": kept.entries * cache.batch,
        "index_bytes": kept.keys * cache.batch,
        "window_bytes_per_sequence": kept.window,
        "state_bytes_per_sequence": kept.state,
        "window_bytes": kept.window * cache.batch,
        "state_bytes": kept.state * cache.batch,
        "bytes": kept.nbytes * cache.batch,
    }


def _accelerator_json(
    one: Accelerator, subjects: dict[str, Subject], spreads: dict[str, list[Spread]]
) -> dict[str, Any]:
    """An accelerator with its verdict by format: the best of the spreads, and each of them."""
    formats, kept = {}, 0
    for name, subject in subjects.items():
        tables, kept = subject.place(one), subject.reserve.of(one.memory)
        fits = [fit(spread.loads[tables], spread.cuts, subject.cache, one.memory, kept) for spread in spreads[name]]
        formats[name] = _fit_json(best(fits)) | {"spreads": [_fit_json(each) for each in fits]}
    return _device_json(one, kept) | {"formats": formats}


def _device_json(one: Accelerator, kept: int) -> dict[str, Any]:
    return {
        "gpu": one.key,
        "name": one.name,
        "label_gb": one.label,
        "memory_bytes": one.memory,
        "source": one.source,
        "bandwidth": one.bandwidth,
        "fp8_units": one.fp8,
        "fp4_units": one.fp4,
        "shared_memory": one.shared,
        "reserve_bytes": kept,
    }


def _fit_json(one: Fit) -> dict[str, Any]:
    """A verdict on ranks. `left_bytes` and `short_bytes` do not count the reserve."""
    ranks, cut = one.ranks, one.verdict == SPLIT
    return {
        "verdict": one.verdict,
        "fits": one.verdict == FITS,
        "why": _WHY.get(one.verdict),
        "tp": ranks.tp,
        "ep": ranks.ep,
        "pp": ranks.pp,
        "world": ranks.world,
        "left_bytes": None if cut or one.left < 0 else one.left,
        "short_bytes": max(0, -one.left),
        "tokens": one.tokens,
        "sequences": one.sequences,
    }


def _must_json(must: Must, considered: Considered, subject: Subject) -> dict[str, Any]:
    """A demand and its answer, with the number of accelerators that would be enough if these are not."""
    one = must.accelerator
    found = subject.hold(one, considered.ranks if considered.exact else list(subject.splits(must.number)))
    more = None if considered.exact or found.verdict == FITS else subject.enough(one, must.number)
    sizes = {"asked": must.text, "count": must.number, "format": considered.must_format}
    enough = {"enough": more.ranks.world if more else must.number if found.verdict == FITS else None}
    return sizes | _device_json(one, subject.reserve.of(one.memory)) | _fit_json(found) | enough
