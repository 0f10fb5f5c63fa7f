"""Wrong sizes in `config.json`, found by comparison with the files. Does not load torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from msgspec import structs

from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.lost_files import of_files
from dsctl.checkpoint.matching import misfits, stored_shape
from dsctl.checkpoint.pieces import SHAPED, Fault
from dsctl.core.config_fields import edited, text_fields
from dsctl.core.errors import DsctlError
from dsctl.core.params import Family, Param

# At most this many wrong sizes are searched, and this many guesses at each are compared with every tensor.
SIZES, GUESSES = 4, 3
# A wrong size explains at least this share of the faults of names and shapes.
EXPLAINED = 0.9
_EXPERTS, _LAYERS, _DENSE, _MTP = (
    "n_routed_experts", "num_hidden_layers", "first_k_dense_replace", "num_nextn_predict_layers",
)  # fmt: skip


def of_config(checkpoint: Checkpoint, faults: list[Fault]) -> tuple[list[Fault], list[Fault]]:
    """Wrong sizes in `config.json`: with the sizes of the files, faults go and no new fault comes."""
    shaped = sum(fault.code in SHAPED for fault in faults)
    if shaped < 2 or checkpoint.model is None or checkpoint.config is None:
        return [], faults
    found: list[Fault] = []
    now, left = checkpoint, faults
    while len(left) > 1 and len(found) < SIZES and (better := _better(now, left)):
        field, now, gone = better
        was, holds = (text_fields(config)[field] for config in (checkpoint.config, now.config or {}))
        left = [fault for fault in left if _key(fault) not in gone]
        what = f"{field} is {was}, but the files hold {holds}; {len(gone):,} faults follow from this"
        found.append(Fault("wrong-config", "config.json", what, tuple(str(f) for f in faults if _key(f) in gone)))
    held = sum(len(header.names) for header in checkpoint.headers.values())
    if found and sum(fault.code in SHAPED for fault in left) <= (1 - EXPLAINED) * min(shaped, held):
        return found, left
    return _of_another(checkpoint, faults)


def _of_another(checkpoint: Checkpoint, faults: list[Fault]) -> tuple[list[Fault], list[Fault]]:
    """The config of a different model: most parameters that it describes are missing or have a different shape."""
    others = {fault.where for fault in faults if fault.code in SHAPED and fault.code != "extra-tensor"}
    params = len(checkpoint.params)
    shape = next((fault for fault in faults if fault.code == "wrong-shape"), None)
    if shape is None or 2 * len(others) < params:
        return [], faults
    what = f"belongs to a different model: {len(others):,} of its {params:,} parameters are missing or differ"
    gone = [fault for fault in faults if fault.code in SHAPED]
    found = Fault("wrong-config", "config.json", f"{what}; {shape}", tuple(map(str, gone)))
    return [found], [fault for fault in faults if fault.code not in SHAPED]


def _key(fault: Fault) -> tuple[str, str]:
    return fault.code, fault.where


def _better(checkpoint: Checkpoint, faults: list[Fault]) -> tuple[str, Checkpoint, set[tuple[str, str]]] | None:
    """A field whose value, if changed, explains faults; the checkpoint with the new value; the faults that then go.

    Guesses are compared with some tensors first, the best ones with all tensors, until one brings no new fault.
    """
    known = {_key(fault) for fault in faults} - {_key(fault) for fault in checkpoint.faults}
    guesses = []
    before = misfits(checkpoint.contents, _samples(checkpoint.families))
    for field, value in dict.fromkeys(_guesses(checkpoint)):
        guess = replace(
            checkpoint, config=edited(checkpoint.config or {}, {field: value}), known_traits=checkpoint.traits
        )
        try:
            count = sum(family.count for family in guess.families)
            guesses.append((misfits(guess.contents, _samples(guess.families)), -count, field, guess))
        except DsctlError:
            continue
    for score, _, field, guess in sorted(guesses, key=lambda one: one[:2])[:GUESSES]:
        left = {_key(fault) for fault in of_files(guess, guess.survey.faults)[1]} if score <= before else known
        if left < known:
            return field, guess, known - left
    return None


def _samples(families: Iterable[Family]) -> Iterator[Param]:
    """Some parameters of every family: the first and last expert of its first, middle and last layer."""
    for family in families:
        layers = tuple(dict.fromkeys(family.layers[at] for at in (0, len(family.layers) // 2, -1) if family.layers))
        for layer in layers or (None,):
            params = list(replace(family, layers=() if layer is None else (layer,)).params())
            yield from (structs.replace(param, family=family) for param in dict.fromkeys((*params[:1], *params[-1:])))


def _guesses(checkpoint: Checkpoint) -> Iterator[tuple[str, int]]:
    """Fields of the config with different values that shapes and the numbers in names suggest."""
    config = text_fields(checkpoint.config or {})
    sizes = {field: value for field, value in config.items() if type(value) is int}
    others = [
        (param.family, shape)
        for param in _samples(checkpoint.families)
        if (shape := stored_shape(checkpoint.contents, param)) not in (None, param.shape)
    ]
    for field, value in sizes.items() if others else ():
        yield from ((field, guess) for guess in _solved(checkpoint, field, value, others))
    layers, experts, first = _numbers(checkpoint)
    more = {
        _LAYERS: (layers, layers - 1, layers - 2),
        _MTP: (0, 1, layers - sizes.get(_LAYERS, layers)),
        _DENSE: (first,),
        _EXPERTS: (experts,),
        "n_shared_experts": (0, 1, 2),
        "moe_layer_freq": (1, 2),
        "num_hash_layers": (3, 2, 1, 0),
    }
    for field, guesses in more.items():
        yield from (
            (field, guess)
            for guess in guesses
            if field in sizes and guess >= (field == _EXPERTS) and guess != sizes[field]
        )


def _solved(checkpoint: Checkpoint, field: str, value: int, others: Iterable[tuple[Family, Any]]) -> Iterator[int]:
    """The values of a field that make a stored shape right: a shape grows in proportion to every field."""
    assert checkpoint.model is not None and checkpoint.config is not None
    try:
        grown = checkpoint.model.families(edited(checkpoint.config, {field: value + 1}), checkpoint.traits)
    except DsctlError:
        return
    shapes = {(family.template, family.mtp): family.shape for family in grown}
    for family, stored in others:
        shape = shapes.get((family.template, family.mtp), ())
        if len(shape) != len(stored):
            continue
        for now, after, there in zip(family.shape, shape, stored, strict=True):
            if now not in (after, there) and (there - now) % (after - now) == 0:
                guess = value + (there - now) // (after - now)
                if guess >= 0:
                    yield guess


def _numbers(checkpoint: Checkpoint) -> tuple[int, int, int]:
    """The number of layers and experts in tensor names, and the first layer with experts."""
    layers: set[int] = set()
    with_experts: set[int] = set()
    experts: set[int] = set()
    names = (name for header in checkpoint.headers.values() for name in header.names)
    for name in (*names, *(checkpoint.index or ())):
        numbers = [int(part) for part in name.split(".") if part.isdecimal() and part.isascii() and len(part) < 6]
        layers.update(numbers[:1])
        if len(numbers) > 1:
            with_experts.add(numbers[0])
            experts.add(numbers[1])
    return max(layers, default=-1) + 1, max(experts, default=-1) + 1, min(with_experts, default=0)
