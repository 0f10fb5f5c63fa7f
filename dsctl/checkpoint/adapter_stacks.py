"""Changes of stacked experts: which tensor a pair of factors belongs to, and which rows and columns to which expert.

huggingface/peft 0.21.2, tuners/lora/layer.py (`ParamWrapper`): A [experts * r, in] by experts, B [out, experts * r] by
vectors: expert e has rows e*r, e*r + 1, ... of A and columns e, e + experts, ... of B. Wrappers nest: the tensor that
comes first in its module, `gate_up_proj`, is the inner one, saved with `base_layer` in its name. Which dimension is
`in` has changed: up to 0.18, and for a while after, it was the first (peft#2638, #3083, #3165), so shapes decide.
Pure, no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from dsctl.checkpoint.adapter_config import CONFIG, AdapterConfig
from dsctl.checkpoint.adapter_names import Place
from dsctl.checkpoint.low_rank import Change, Factor, LowRank
from dsctl.core.errors import FormatError, PlanError
from dsctl.core.header import TensorRef

# The tensors of a module of experts in its order.
ORDER = ("gate_up_proj", "down_proj")


class Stacked(NamedTuple):
    """The factors of a stacked tensor: the path of the module of experts, and whether they are of an inner wrapper."""

    module: str
    inner: bool
    a: TensorRef
    b: TensorRef


class _Fit(NamedTuple):
    """Factors and the tensor they belong to, with its rank and number of experts.

    `straight`: `in` is the last dimension; None if the shapes do not show it.
    """

    path: str
    a: TensorRef
    b: TensorRef
    experts: Mapping[int, Sequence[Place]]
    rank: int
    straight: bool | None


def stacked_changes(
    found: Sequence[Stacked], config: AdapterConfig, stacks: Mapping[str, Mapping[str, Mapping[int, Sequence[Place]]]]
) -> Iterator[tuple[str, Change]]:
    """The change of every expert's matrices.

    Raises:
        FormatError: shapes contradict the config or the model. PlanError: shapes do not show which dimension is which.
    """
    modules: dict[str, list[Stacked]] = {}
    for one in found:
        modules.setdefault(one.module, []).append(one)
    fits = [_fit(one, many, config, stacks[one.module]) for many in modules.values() for one in many]
    known = {fit.straight for fit in fits if fit.straight is not None}
    if len(known) > 1:
        raise FormatError("--lora: its factors of stacked experts have their dimensions in different orders")
    for fit in fits:
        straight = next(iter(known)) if fit.straight is None and known else fit.straight
        if straight is None:
            what = "its factors have the same shape for both orders of the dimensions"
            hint = "which of them is right depends on the version of PEFT: merge it with that version"
            raise PlanError(f"--lora: {fit.path}: {what}", hint=hint)
        yield from _changes(fit, straight, config)


def _fit(
    one: Stacked, many: Sequence[Stacked], config: AdapterConfig, tensors: Mapping[str, Mapping[int, Sequence[Place]]]
) -> _Fit:
    tensor = _tensor(one, many, config, tensors)
    experts, path = tensors[tensor], f"{one.module}.{tensor}"
    place, rank = experts[0][0], config.rank(f"{one.module}.{tensor}")
    rows, columns, width = place.rows, place.param.shape[1], rank * len(experts)
    shapes = one.a.spec.shape, one.b.spec.shape
    straight, turned = (shapes == ((width, first), (last, width)) for first, last in ((columns, rows), (rows, columns)))
    if not (straight or turned):
        held = f"{list(shapes[0])} and {list(shapes[1])}"
        needs = f"r {rank} and {len(experts)} experts of [{rows}, {columns}] need [{width}, {columns}] and"
        raise FormatError(f"--lora: {path}: factors of shapes {held}, but {needs} [{rows}, {width}]")
    return _Fit(path, one.a, one.b, experts, rank, None if straight and turned else straight)


def _tensor(
    one: Stacked, many: Sequence[Stacked], config: AdapterConfig, tensors: Mapping[str, Mapping[int, Sequence[Place]]]
) -> str:
    """The stacked tensor that factors belong to.

    Raises:
        FormatError: the config names other tensors than there are.
    """
    named = [
        tensor
        for tensor in ORDER
        if tensor in tensors and any(f".{one.module}.{tensor}".endswith(f".{asked}") for asked in config.parameters)
    ]
    if len(named) != len(many) or not 1 <= len(many) <= len(ORDER) or (one.inner and len(many) == 1):
        what = f"{len(many)} pair{'s' * (len(many) > 1)} of factors, but target_parameters names {len(named)}"
        raise FormatError(f"--lora: {one.module}: has {what} of its tensors", hint=f"{CONFIG} does not fit it")
    return named[0] if one.inner or len(named) == 1 else named[1]


def _changes(fit: _Fit, straight: bool, config: AdapterConfig) -> Iterator[tuple[str, Change]]:
    count, scaling = len(fit.experts), config.scaling(fit.path)
    for expert, places in fit.experts.items():
        for place in places:
            # `of_a` has its vectors in rows, `of_b` in columns; turned, each is the other's side of the matrix.
            begin_a, begin_b = (0, place.row) if straight else (place.row, 0)
            of_a = Factor(fit.a, fit.rank, 1, begin_a, expert * fit.rank)
            of_b = Factor(fit.b, fit.rank, 0, begin_b, expert, count)
            left, right = (of_b, of_a) if straight else (of_a, of_b)
            yield place.param.name, Change(None, LowRank(left, right, scaling))
