"""Causes of faults: a missing file, a size in `config.json` that does not match the files, whole layers or experts that
are missing. Each cause is reported once, with the faults that follow from it. Does not load torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Protocol

from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.drafter_faults import LOST, OTHER_KIND, STAGES, UNDECLARED, explains, of_drafter
from dsctl.checkpoint.lost_files import of_files
from dsctl.checkpoint.pieces import Fault
from dsctl.checkpoint.wrong_config import of_config
from dsctl.core.params import Param
from dsctl.stores import Store

# This many faults that differ only in layer and expert are reported as one.
ALIKE = 3
WEIGHTS = ".safetensors"
# Codes of files that have to be fetched again.
_FETCHED = ("missing-shard", "wrong-size", "broken-header", "lfs-pointer")

BELONGS = "replace config.json with the one that belongs to these files"
_DROPPED = "fetch the drafter's files, or leave it out: `dsctl convert SRC DST --mtp drop`"
_REMEDIES = {LOST: _DROPPED, STAGES: _DROPPED, UNDECLARED: BELONGS, OTHER_KIND: BELONGS}


class Told(Protocol):
    """A fault or a finding: its code, and the file or tensor."""

    @property
    def code(self) -> str: ...
    @property
    def where(self) -> str: ...


def remedy(store: Store, found: Iterable[Told]) -> str | None:
    """Advice on how to remove a cause of other faults, or None if there is no such cause."""
    found = list(found)
    files = list(dict.fromkeys(one.where for one in found if one.code in _FETCHED and one.where.endswith(WEIGHTS)))
    if files and not store.remote:
        command = f"`dsctl download REPOSITORY {store.place}"
        if len(files) == 1:
            return f"{command} --include {files[0]}` fetches only this file"
        return f"{command}` fetches the {len(files)} missing or broken files and keeps the others"
    if any(
        one.code == "wrong-config" or (one.code == "missing-tensor" and one.where == "config.json") for one in found
    ):
        return BELONGS
    for one in found:
        if one.code in _REMEDIES:
            return _REMEDIES[one.code]
    return None


def told(checkpoint: Checkpoint, faults: Iterable[Fault]) -> list[Fault]:
    """The same faults grouped by cause, causes first; the `details` of a cause list the faults that follow from it."""
    said, faults = set(checkpoint.contradictions), list(faults)
    files, rest = of_files(checkpoint, [fault for fault in faults if fault not in said])
    config = [fault for fault in faults if fault in said]
    sizes: list[Fault] = []
    if not explains(checkpoint, [*config, *rest]):
        sizes, rest = of_config(checkpoint, rest)
    # A wrong size may be why a config contradicts itself.
    drafts, rest = of_drafter(checkpoint, [*(() if sizes else config), *rest])
    whole, rest = _of_layers(checkpoint, rest)
    config = [fault for fault in rest if fault in said]
    return [*files, *sizes, *drafts, *config, *whole, *_alike([fault for fault in rest if fault not in said])]


def _of_layers(checkpoint: Checkpoint, faults: list[Fault]) -> tuple[list[Fault], list[Fault]]:
    """Layers and experts that are missing completely; the whole model, if no parameter is stored."""
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
    found = [*_told_layers(layers, params), *_told_experts(experts)]
    known = {name for fault in found for name in fault.details}
    return found, [fault for fault in faults if fault.code != "missing-tensor" or fault.where not in known]


def _of_nothing(checkpoint: Checkpoint, faults: list[Fault]) -> tuple[list[Fault], list[Fault]]:
    name = next((fault.where for fault in faults if fault.code == "extra-tensor"), None)
    count = len(checkpoint.params)
    names = f"; tensors have names such as {name}" if name else ""
    what = f"all {count:,} parameters that it describes are missing{names}"
    of_names = ("missing-tensor", "extra-tensor")
    details = tuple(str(fault) for fault in faults if fault.code in of_names)
    found = Fault("missing-tensor", "config.json", what, details)
    return [found], [fault for fault in faults if fault.code not in of_names]


def _whole(params: Iterable[Param], missing: set[str], key: Any) -> dict[Any, list[str]]:
    """The parts of a model whose parameters are all missing, more than one each, with these parameters."""
    held: dict[Any, list[str]] = {}
    for param in params:
        held.setdefault(key(param), []).append(param.name)
    return {part: names for part, names in held.items() if len(names) > 1 and missing.issuperset(names)}


def _told_layers(layers: Mapping[int, list[str]], params: Iterable[Param]) -> Iterator[Fault]:
    first = {param.layer: param for param in reversed(list(params))}
    for run in _runs(sorted(layers)):
        names = tuple(name for layer in run for name in layers[layer])
        family = first[run[0]].family
        where = family.named(family.template.partition("{layer}")[0] + "{layer}", run[0])
        where += f" to {run[-1] - family.first_layer}" if len(run) > 1 else ""
        yield Fault("missing-tensor", where, f"all {len(names):,} parameters are missing", names)


def _told_experts(experts: Mapping[tuple[int, int], list[str]]) -> Iterator[Fault]:
    """Missing experts, those with the same numbers in several layers as one fault."""
    by_layer: dict[int, list[int]] = {}
    for layer, expert in sorted(experts):
        by_layer.setdefault(layer, []).append(expert)
    alike: dict[tuple[int, ...], list[int]] = {}
    for layer, numbers in by_layer.items():
        alike.setdefault(tuple(numbers), []).append(layer)
    for same, layers in alike.items():
        names = tuple(name for layer in layers for expert in same for name in experts[layer, expert])
        where = f"{_listed('expert', same)} of {_listed('layer', layers)}"
        yield Fault("missing-tensor", where, f"all {len(names):,} parameters are missing", names)


def _alike(faults: list[Fault]) -> list[Fault]:
    """Faults of the same kind whose names differ only in numbers, as one, in place of the first."""
    kinds: dict[tuple[str, str], list[Fault]] = {}
    for fault in faults:
        kinds.setdefault((fault.code, _template(fault.where)), []).append(fault)
    found = []
    for (_, template), some in kinds.items():
        if len(some) < ALIKE or template == some[0].where:
            found += some
            continue
        what = f"{len(some):,} such tensors; the first is {some[0]}"
        found.append(Fault(some[0].code, template, what, tuple(map(str, some))))
    return found


def _template(name: str) -> str:
    """A name with `*` in place of its numbers."""
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))


def _listed(noun: str, numbers: Sequence[int]) -> str:
    runs = _runs(numbers)
    shown = ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
    return f"{noun}{'s' * (len(numbers) > 1)} {shown}"


def _runs(numbers: Sequence[int]) -> list[list[int]]:
    """Runs of consecutive numbers."""
    groups = groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])
    return [[number for _, number in group] for _, group in groups]
