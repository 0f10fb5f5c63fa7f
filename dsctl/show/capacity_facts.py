"""What it takes to hold and serve a checkpoint, as stable JSON: bytes per rank, what fits where, what cannot be cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dsctl.layouts.ranks import Ranks
from dsctl.look.accelerators import Accelerator
from dsctl.look.capacity import Cache, Load, cuts, disk, load, roles
from dsctl.look.description import Description
from dsctl.plan.formats import Formats


@dataclass(frozen=True, slots=True)
class Considered:
    """What a checkpoint is weighed as and on: formats by name, numbers of ranks, a cache, accelerators."""

    formats: dict[str, Formats]
    ranks: Sequence[Ranks]
    cache: Cache
    accelerators: Sequence[Accelerator]


def as_json(description: Description, considered: Considered) -> dict[str, Any]:
    """Every number of the report, as stable JSON: docs/costs.md says what is in it."""
    cache = considered.cache
    formats = {
        name: {
            "disk_bytes": disk(description, codec),
            "roles": roles(description, codec),
            "ranks": [
                _rank_json(load(description, ranks, codec, cache)) | {"cuts": _cuts_json(description, ranks, codec)}
                for ranks in considered.ranks
            ],
        }
        for name, codec in considered.formats.items()
    }
    return {
        "source": description.name,
        "origin": description.origin._asdict(),
        "values": description.values,
        "active_values": description.active_values,
        "context": cache.context,
        "context_from": cache.why,
        "published_context": description.published_context,
        "max_position_embeddings": description.positions,
        "batch": cache.batch,
        "cache": _cache_json(cache),
        "formats": formats,
        "accelerators": [_accelerator_json(one, formats) for one in considered.accelerators],
    }


def _rank_json(load: Load) -> dict[str, Any]:
    ranks = load.ranks
    sizes = {"tp": ranks.tp, "ep": ranks.ep, "pp": ranks.pp, "world": ranks.world}
    return sizes | {"weights_bytes": load.weights, "cache_bytes": load.cache, "bytes": load.nbytes}


def _cuts_json(description: Description, ranks: Ranks, codec: Formats) -> list[dict[str, Any]]:
    return [cut._asdict() for cut in cuts(description, ranks, codec)]


def _cache_json(cache: Cache) -> dict[str, Any] | None:
    attention, kept = cache.attention, cache.sequence
    if attention is None:
        return None
    return {
        "format": cache.format,
        "index_format": attention.keys,
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


def _accelerator_json(one: Accelerator, formats: dict[str, Any]) -> dict[str, Any]:
    """An accelerator, and by format the first spread that it holds: bytes left on the fullest rank.

    A spread with cuts that cannot be made does not count: `why` is cuts where all are such, whatever their bytes.
    """
    fits: dict[str, Any] = {}
    for name, facts in formats.items():
        whole = [rank for rank in facts["ranks"] if not rank["cuts"]]
        held = [rank for rank in whole if rank["bytes"] <= one.memory]
        best = min(held, key=lambda rank: rank["world"]) if held else None
        short = max(0, min(rank["bytes"] for rank in whole or facts["ranks"]) - one.memory)
        fits[name] = (
            {
                "fits": True,
                **{key: best[key] for key in ("tp", "ep", "pp", "world")},
                "left_bytes": one.memory - best["bytes"],
            }
            if best
            else {"fits": False, "why": "memory" if whole else "cuts", "short_bytes": short}
        )
    return {"name": one.name, "memory_bytes": one.memory, "source": one.source, "formats": fits}
