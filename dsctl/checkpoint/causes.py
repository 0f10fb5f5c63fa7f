"""Why faults are there: a file that is not, a size in `config.json` that is not the files', layers or experts of which
nothing is there. One cause is told once, and names the faults that follow from it. No torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol

from dsctl.checkpoint.matching import misfits, stored_shape
from dsctl.checkpoint.pieces import Fault
from dsctl.codecs import CODECS
from dsctl.core.errors import DsctlError
from dsctl.core.params import Family, Param
from dsctl.stores import Store

if TYPE_CHECKING:
    from dsctl.checkpoint.checkpoint import Checkpoint

# So many sizes of a config are looked for at most, and so many guesses at each are held against every tensor.
SIZES, GUESSES = 4, 3
# A wrong size explains at least so much of the faults that are of names and shapes.
EXPLAINED = 0.9
# So many faults that differ in layer and expert alone are told as one.
ALIKE = 3
WEIGHTS = ".safetensors"
# What a file is found to be where another copy of it is needed.
_FETCHED = ("missing-shard", "wrong-size", "broken-header", "lfs-pointer")
_ABSENT = ("missing-tensor", "missing-weight", "missing-scale")
_SHAPED = (*_ABSENT, "wrong-shape", "wrong-scale", "extra-tensor")
_SUFFIXES = {suffix for codec in CODECS.values() for suffix in codec.suffixes}
_EXPERTS, _LAYERS, _DENSE, _MTP = (
    "n_routed_experts", "num_hidden_layers", "first_k_dense_replace", "num_nextn_predict_layers",
)  # fmt: skip


def lost(checkpoint: Checkpoint) -> dict[str, tuple[str, ...]]:
    """The files that the index names and that are not there or cannot be read, each with its tensors."""
    found: dict[str, list[str]] = {}
    for name, file in (checkpoint.index or {}).items():
        if file not in checkpoint.headers:
            found.setdefault(file, []).append(name)
    return {file: tuple(names) for file, names in found.items()}


def with_tensors(checkpoint: Checkpoint, what: str, names: Sequence[str]) -> str:
    """What is the matter with a lost file, with how many tensors were in it."""
    return f"{what}; {len(names):,} of {len(checkpoint.index or {}):,} tensors are in it"


class Told(Protocol):
    """A fault or a finding: its code, and the file or tensor."""

    @property
    def code(self) -> str: ...
    @property
    def where(self) -> str: ...


def remedy(store: Store, found: Iterable[Told]) -> str | None:
    """What to do about a cause that others follow from, or None where there is none that can be mended so."""
    found = list(found)
    files = list(dict.fromkeys(one.where for one in found if one.code in _FETCHED and one.where.endswith(WEIGHTS)))
    if files and not store.remote:
        command = f"`dsctl download REPOSITORY {store.place}"
        if len(files) == 1:
            return f"{command} --include {files[0]}` fetches that file alone"
        return f"{command}` fetches the {len(files)} files that are missing or broken and keeps the others"
    if any(one.code == "wrong-config" for one in found):
        return "put the config.json beside the files that belongs to them"
    return None


def told(checkpoint: Checkpoint, faults: Iterable[Fault]) -> list[Fault]:
    """The same faults by their causes, the causes first; each sums up in `details` what follows from it."""
    files, rest = _of_files(checkpoint, list(faults))
    sizes, rest = _of_config(checkpoint, rest)
    whole, rest = _of_layers(checkpoint, rest)
    return [*files, *sizes, *whole, *_alike(rest)]


def _of_files(checkpoint: Checkpoint, faults: list[Fault]) -> tuple[list[Fault], list[Fault]]:
    """Files that are not there, and the faults that say more than that one of their tensors is missing."""
    files = lost(checkpoint)
    if not files:
        return [], faults
    missing = {fault.where: fault for fault in faults if fault.code == "missing-shard"}
    rest = []
    for fault in faults:
        file = _file_of(checkpoint, fault) if fault.code in _ABSENT else None
        if file is not None:
            missing.setdefault(file, Fault("missing-shard", file, "named in the index, but not there"))
        elif fault.code != "missing-shard":
            rest.append(fault)
    summed = [
        fault._replace(what=with_tensors(checkpoint, fault.what, files[file]), details=files[file])
        for file, fault in missing.items()
    ]
    return summed, rest


def _file_of(checkpoint: Checkpoint, fault: Fault) -> str | None:
    """The lost file, if any, in which the index has what a fault says is missing."""
    index = checkpoint.index or {}
    files = (index.get(checkpoint.layout.stored(fault.where, suffix)) for suffix in _SUFFIXES)
    return next((file for file in files if file is not None and file not in checkpoint.headers), None)


def _of_config(checkpoint: Checkpoint, faults: list[Fault]) -> tuple[list[Fault], list[Fault]]:
    """Sizes that `config.json` has wrong: with what the files hold in their place, faults go and none comes."""
    shaped = sum(fault.code in _SHAPED for fault in faults)
    if shaped < 2 or checkpoint.model is None or checkpoint.config is None:
        return [], faults
    found: list[Fault] = []
    now, left = checkpoint, faults
    while len(left) > 1 and len(found) < SIZES and (better := _better(now, left)):
        field, now, gone = better
        was, holds = (checkpoint.config[field], (now.config or {})[field])
        left = [fault for fault in left if _key(fault) not in gone]
        what = f"{field} is {was}, the files hold {holds}: {len(gone):,} faults follow from it"
        found.append(Fault("wrong-config", "config.json", what, tuple(str(f) for f in faults if _key(f) in gone)))
    held = sum(len(header.names) for header in checkpoint.headers.values())
    if found and sum(fault.code in _SHAPED for fault in left) <= (1 - EXPLAINED) * min(shaped, held):
        return found, left
    return _of_another(checkpoint, faults)


def _of_another(checkpoint: Checkpoint, faults: list[Fault]) -> tuple[list[Fault], list[Fault]]:
    """The config of another model: most of what it describes is not there, or of another shape."""
    others = {fault.where for fault in faults if fault.code in _SHAPED and fault.code != "extra-tensor"}
    params = len(checkpoint.params)
    shape = next((fault for fault in faults if fault.code == "wrong-shape"), None)
    if shape is None or 2 * len(others) < params:
        return [], faults
    what = f"is of another model: {len(others):,} of the {params:,} parameters that it describes are missing or differ"
    gone = [fault for fault in faults if fault.code in _SHAPED]
    found = Fault("wrong-config", "config.json", f"{what}; {shape}", tuple(map(str, gone)))
    return [found], [fault for fault in faults if fault.code not in _SHAPED]


def _key(fault: Fault) -> tuple[str, str]:
    return fault.code, fault.where


def _better(checkpoint: Checkpoint, faults: list[Fault]) -> tuple[str, Checkpoint, set[tuple[str, str]]] | None:
    """A field of which another value explains faults, the checkpoint with it, and the faults that then go.

    Guesses are held against some tensors first; the best of them against all, until one brings no new fault.
    """
    known = {_key(fault) for fault in faults}
    guesses = []
    before = misfits(checkpoint, _samples(checkpoint.families))
    for field, value in dict.fromkeys(_guesses(checkpoint)):
        guess = replace(checkpoint, config={**(checkpoint.config or {}), field: value})
        try:
            count = sum(family.count for family in guess.families)
            guesses.append((misfits(guess, _samples(guess.families)), -count, field, guess))
        except DsctlError:
            continue
    for score, _, field, guess in sorted(guesses, key=lambda one: one[:2])[:GUESSES]:
        left = {_key(fault) for fault in _of_files(guess, guess.survey.faults)[1]} if score <= before else known
        if left < known:
            return field, guess, known - left
    return None


def _samples(families: Iterable[Family]) -> Iterator[Param]:
    """Some parameters of every family: of its first, middle and last layer the first and the last expert."""
    for family in families:
        layers = tuple(dict.fromkeys(family.layers[at] for at in (0, len(family.layers) // 2, -1) if family.layers))
        for layer in layers or (None,):
            params = list(replace(family, layers=() if layer is None else (layer,)).params())
            yield from (param._replace(family=family) for param in dict.fromkeys((*params[:1], *params[-1:])))


def _guesses(checkpoint: Checkpoint) -> Iterator[tuple[str, int]]:
    """Fields of the config and other values for them: those that shapes and the numbers in names ask for."""
    config = checkpoint.config or {}
    sizes = {field: value for field, value in config.items() if type(value) is int}
    others = [
        (param.family, shape)
        for param in _samples(checkpoint.families)
        if (shape := stored_shape(checkpoint, param)) not in (None, param.shape)
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
    }
    for field, guesses in more.items():
        yield from (
            (field, guess)
            for guess in guesses
            if field in sizes and guess >= (field == _EXPERTS) and guess != sizes[field]
        )


def _solved(checkpoint: Checkpoint, field: str, value: int, others: Iterable[tuple[Family, Any]]) -> Iterator[int]:
    """The values of a field with which a stored shape would be right: a shape grows in proportion to every field."""
    assert checkpoint.model is not None and checkpoint.config is not None
    try:
        grown = checkpoint.model.families({**checkpoint.config, field: value + 1})
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
    """How many layers and experts the names of tensors have, and the first layer with experts."""
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


def _of_layers(checkpoint: Checkpoint, faults: list[Fault]) -> tuple[list[Fault], list[Fault]]:
    """Layers and experts of which nothing is there; all of the model, where no parameter is."""
    absent = {fault.where for fault in faults if fault.code == "missing-tensor"}
    if len(absent) < 2:
        return [], faults
    missing = {param.name for param in checkpoint.survey.missing} & absent
    params = checkpoint.params
    if len(missing) == len(params):
        return _of_nothing(checkpoint, faults)
    layers = _whole((param for param in params if param.layer is not None), missing, lambda param: param.layer)
    experts = _whole(
        (param for param in params if param.expert is not None and param.layer not in layers),
        missing,
        lambda param: (param.layer, param.expert),
    )
    found = [*_told_layers(layers), *_told_experts(experts)]
    known = {name for fault in found for name in fault.details}
    return found, [fault for fault in faults if fault.code != "missing-tensor" or fault.where not in known]


def _of_nothing(checkpoint: Checkpoint, faults: list[Fault]) -> tuple[list[Fault], list[Fault]]:
    name = next((fault.where for fault in faults if fault.code == "extra-tensor"), "none")
    count = len(checkpoint.params)
    what = f"none of the {count:,} parameters that it describes is there; tensors have names such as {name}"
    of_names = ("missing-tensor", "extra-tensor")
    details = tuple(str(fault) for fault in faults if fault.code in of_names)
    found = Fault("missing-tensor", "config.json", what, details)
    return [found], [fault for fault in faults if fault.code not in of_names]


def _whole(params: Iterable[Param], missing: set[str], key: Any) -> dict[Any, list[str]]:
    """The parts of a model all of whose parameters are missing, several each, with these."""
    held: dict[Any, list[str]] = {}
    for param in params:
        held.setdefault(key(param), []).append(param.name)
    return {part: names for part, names in held.items() if len(names) > 1 and missing.issuperset(names)}


def _told_layers(layers: Mapping[int, list[str]]) -> Iterator[Fault]:
    for run in _runs(sorted(layers)):
        names = tuple(name for layer in run for name in layers[layer])
        where = f"model.layers.{run[0]}" + (f" to {run[-1]}" if len(run) > 1 else "")
        yield Fault("missing-tensor", where, f"nothing of it is there: {len(names):,} parameters", names)


def _told_experts(experts: Mapping[tuple[int, int], list[str]]) -> Iterator[Fault]:
    """Experts told together where the same ones are missing in several layers."""
    by_layer: dict[int, list[int]] = {}
    for layer, expert in sorted(experts):
        by_layer.setdefault(layer, []).append(expert)
    alike: dict[tuple[int, ...], list[int]] = {}
    for layer, numbers in by_layer.items():
        alike.setdefault(tuple(numbers), []).append(layer)
    for same, layers in alike.items():
        names = tuple(name for layer in layers for expert in same for name in experts[layer, expert])
        where = f"{_listed('expert', same)} of {_listed('layer', layers)}"
        yield Fault("missing-tensor", where, f"nothing of them is there: {len(names):,} parameters", names)


def _alike(faults: list[Fault]) -> list[Fault]:
    """Faults of one kind whose names differ in numbers alone told as one, in the place of the first."""
    kinds: dict[tuple[str, str], list[Fault]] = {}
    for fault in faults:
        kinds.setdefault((fault.code, _template(fault.where)), []).append(fault)
    found = []
    for (_, template), some in kinds.items():
        if len(some) < ALIKE or template == some[0].where:
            found += some
            continue
        what = f"{len(some):,} such tensors, the first: {some[0]}"
        found.append(Fault(some[0].code, template, what, tuple(map(str, some))))
    return found


def _template(name: str) -> str:
    """A name with marks in place of its numbers."""
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))


def _listed(noun: str, numbers: Sequence[int]) -> str:
    runs = _runs(numbers)
    shown = ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
    return f"{noun}{'s' * (len(numbers) > 1)} {shown}"


def _runs(numbers: Sequence[int]) -> list[list[int]]:
    """Consecutive numbers together."""
    groups = groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])
    return [[number for _, number in group] for _, group in groups]
