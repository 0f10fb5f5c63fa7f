"""The experts that each layer keeps, from a plan and a model: checked, and in their new order. Pure, no torch.

The new number of an expert is its place in the list. A router may choose among groups of neighbouring experts first, so
each group must stay whole or lose as many experts as the others (vllm-project/llm-compressor pull 2864 does the same).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from dsctl.core.errors import FormatError, PlanError, UsageError
from dsctl.core.params import Family
from dsctl.layouts.ranks import main_layers
from dsctl.models.model import ExpertGroups, Model
from dsctl.plan.expert_plan import ExpertPlan, Row
from dsctl.plan.experts import layers_of_rows

Lists = dict[int, tuple[int, ...]]
COPY = "--copy-to-drafter"


@dataclass(frozen=True, slots=True)
class Routed:
    """The layers of a model with routed experts: how many there are, how many a token uses, and the drafter's layers.

    `shared`: config.json has one number of experts for main layers and drafter. `main` is the number of main layers,
    `groups` are the router's.
    """

    held: Mapping[int, int]
    active: Mapping[int, int]
    drafter: tuple[int, ...]
    main: int
    groups: ExpertGroups
    shared: bool

    def name(self, layer: int) -> str:
        """A layer for people: 42, or mtp.0 for a stage of the drafter."""
        return f"mtp.{layer - self.main}" if layer >= self.main else str(layer)


def routed(model: Model, config: Mapping[str, Any], families: Sequence[Family]) -> Routed:
    """The layers with routed experts of a model.

    Raises:
        PlanError: there are none.
    """
    with_experts = [family for family in families if family.experts]
    held = {layer: family.experts for family in with_experts for layer in family.layers}
    active = {layer: family.active for family in with_experts for layer in family.layers}
    drafter = tuple(sorted({layer for family in with_experts if family.mtp for layer in family.layers}))
    if not held:
        raise PlanError("--experts: the model has no routed experts")
    groups, shared = model.expert_groups(config), _has_one_number(model, config)
    return Routed(held, active, drafter, len(main_layers(families)), groups, shared)


def _has_one_number(model: Model, config: Mapping[str, Any]) -> bool:
    """Whether a config cannot have different numbers of experts for main layers and drafter."""
    try:
        model.pruned(config, 2, 3)
    except PlanError:
        return True
    return False


def lists_of(plan: ExpertPlan, model: Routed, kept: Sequence[int], copy: bool = False) -> Lists:
    """The experts of each kept layer that the plan lists, in their new order; `copy` gives the drafter's layers the
    lists of the last main layers.

    Raises:
        FormatError: the plan contradicts itself or the model. PlanError: routers or loaders could not use the result.
        UsageError: `copy` would do nothing.
    """
    found = {layer: _list(plan, row, layer, model) for layer, row in _by_layer(plan, model).items()}
    _check_declared(plan, found, model)
    for layer, experts in found.items():
        _check_groups(plan, experts, layer, model)
    if copy:
        _copy(plan, found, model, kept)
    lists = {layer: experts for layer, experts in found.items() if layer in kept}
    if not lists:
        raise PlanError(f"{plan.label}: does not list experts for the layers that are kept")
    _check_counts(plan, lists, model, kept)
    return lists


def _by_layer(plan: ExpertPlan, model: Routed) -> dict[int, Row]:
    """The plan's rows by layers with experts, numbered through the model."""
    if plan.rows:
        numbers = layers_of_rows(len(plan.rows), tuple(sorted(model.held)), model.main, plan.label)
        return {layer: row for layer, row in zip(numbers, plan.rows, strict=True) if layer in model.held}
    found: dict[int, Row] = {}
    for key, row in plan.by_layer.items():
        layer = int(key.removeprefix("mtp.")) + (model.main if key.startswith("mtp.") else 0)
        if layer not in model.held:
            known = ", ".join(_spans(sorted(model.held), model))
            raise FormatError(f"{plan.label}: layer {key} has no routed experts", hint=f"layers with experts: {known}")
        if layer in found:
            raise FormatError(f"{plan.label}: layer {layer} and {model.name(layer)} are the same layer")
        found[layer] = row
    return found


def _list(plan: ExpertPlan, row: Row, layer: int, model: Routed) -> tuple[int, ...]:
    """A layer's list: of a mask, the experts that it marks."""
    held, label = model.held[layer], f"{plan.label}: layer {model.name(layer)}"
    numbers = tuple(map(int, row))
    marks = {*numbers} <= {0, 1}
    if isinstance(row[0], bool) or (marks and len(row) == held and len({*row}) < len(row)):
        if len(row) != held:
            raise FormatError(f"{label}: the mask has {len(row)} entries for {held} experts")
        return tuple(expert for expert, stays in enumerate(numbers) if stays)
    if plan.places and len(row) > held:
        what = f"{len(row)} places for {held} experts: two equal router rows would both be chosen"
        raise PlanError(f"{label}: {what}", hint="`dsctl shard --expert-map` places replicas on ranks")
    if max(numbers) >= held:
        raise FormatError(f"{label}: there is no expert {max(numbers)}: there are {held}, numbered from 0")
    twice = [expert for expert, times in Counter(numbers).items() if times > 1]
    if twice:
        raise FormatError(f"{label}: expert {twice[0]} appears twice")
    if plan.places and len(row) < held:
        raise FormatError(f"{label}: {len(row)} places for {held} experts: some have no place")
    return numbers


def _check_declared(plan: ExpertPlan, lists: Lists, model: Routed) -> None:
    """Refuse a plan that was made for a different model, or whose lists are not as long as it says."""
    main = {number for layer, number in model.held.items() if layer not in model.drafter}
    for number in plan.before - main:
        what = f"is for a model with {number} experts per layer, and this one has {max(main)}"
        raise FormatError(f"{plan.label}: {what}")
    for number in plan.after:
        wrong = next((layer for layer, one in lists.items() if layer not in model.drafter and len(one) != number), None)
        if wrong is not None:
            what = f"says that each layer keeps {number} experts, but lists {len(lists[wrong])} for layer {wrong}"
            raise FormatError(f"{plan.label}: {what}")


def _check_groups(plan: ExpertPlan, experts: tuple[int, ...], layer: int, model: Routed) -> None:
    """Refuse a list after which a router would not find its groups, or not enough experts in them."""
    label, (number, chosen, scored) = f"{plan.label}: layer {model.name(layer)}", model.groups
    if len(experts) < max(2, model.active[layer]):
        what = f"keeps {len(experts)} experts, but a token uses {max(2, model.active[layer])}"
        raise PlanError(f"{label}: {what}", hint="keep more experts")
    if number < 2 or layer not in model.held or model.held[layer] % number:
        return
    size = model.held[layer] // number
    counts = Counter(expert // size for expert in experts)
    fewest, most = (pick(range(number), key=lambda group: counts[group]) for pick in (min, max))
    if counts[fewest] != counts[most]:
        one, other = f"group {fewest} keeps {counts[fewest]}", f"group {most} keeps {counts[most]}"
        what = f"{one} of its {size} experts and {other}: groups must stay equal"
        raise PlanError(f"{label}: {what}", hint=f"keep the same number of each {size} neighbouring experts: n_group")
    each = len(experts) // number
    for place, expert in enumerate(experts):
        if expert // size != experts[place - place % each] // size:
            group = experts[place - place % each] // size
            what = f"expert {expert} of group {expert // size} would be among those of group {group}"
            raise PlanError(
                f"{label}: {what}", hint="list the experts of a group one after another, or in ascending order"
            )
    if each < scored or each * chosen < model.active[layer]:
        least = max(scored, -(-model.active[layer] // chosen))
        raise PlanError(f"{label}: each group keeps {each} experts, but its router needs {least}", hint="keep more")


def _copy(plan: ExpertPlan, found: Lists, model: Routed, kept: Iterable[int]) -> None:
    """Give each layer of the drafter the list of one of the last main layers, in order."""
    stages = [layer for layer in model.drafter if layer in kept]
    listed = [layer for layer in model.drafter if layer in found]
    why = (
        "no layer of a drafter is kept" if not stages
        else f"the plan has a list for layer {model.name(listed[0])}" if listed
        else "" if model.shared
        else "the drafter has a number of experts of its own, and stays whole"
    )  # fmt: skip
    if why:
        raise UsageError(f"{COPY}: does nothing here: {why}", hint=f"leave {COPY} out")
    last = sorted(layer for layer in model.held if layer < model.main)[-len(model.drafter) :]
    for stage, layer in zip(model.drafter, last[:1] * (len(model.drafter) - len(last)) + last, strict=True):
        if layer not in found:
            raise PlanError(
                f"{COPY}: the plan does not list experts for layer {layer}, which {model.name(stage)} would take"
            )
        found[stage] = found[layer]


def _check_counts(plan: ExpertPlan, lists: Lists, model: Routed, kept: Iterable[int]) -> None:
    """Refuse different numbers of experts in layers for which config.json has one number."""
    here = [layer for layer in sorted(model.held) if layer in kept]
    numbers = {layer: len(lists.get(layer, ())) or model.held[layer] for layer in here}
    main = {layer: number for layer, number in numbers.items() if layer < model.main}
    drafter = {layer: number for layer, number in numbers.items() if layer >= model.main}
    left = [layer for layer in (drafter if model.shared else ()) if layer not in lists]
    if left and {numbers[layer] for layer in left} != {*main.values()} and len({*main.values()}) == 1:
        what = f"does not list experts for {', '.join(_spans(left, model))}, and config.json has one number for all"
        hint = f"add lists for them, copy those of the last layers with {COPY}, or leave the drafter out: --layers 0-"
        raise PlanError(f"{plan.label}: {what}", hint=f"{hint}{model.main - 1}")
    for some in ({**main, **drafter},) if model.shared else (main, drafter):
        by_number: dict[tuple[int, str], list[int]] = {}
        for layer, number in some.items():
            by_number.setdefault((number, "" if layer in lists else ", not in the plan"), []).append(layer)
        if len({*some.values()}) > 1:
            parts = [f"{one} ({', '.join(_spans(layers, model))}{more})" for (one, more), layers in by_number.items()]
            what = f"layers would have different numbers of experts: {'; '.join(parts)}"
            hint = "loaders read one number for all layers from config.json: keep the same number in each"
            raise PlanError(f"{plan.label}: {what}", hint=hint)


def _spans(layers: Sequence[int], model: Routed) -> list[str]:
    """Ascending layers with runs folded: ["0-2", "5", "mtp.0-mtp.2"]."""
    cuts = [place for place, (one, two) in enumerate(pairwise(layers), 1) if two != one + 1 or two == model.main]
    runs = [layers[begin:end] for begin, end in pairwise((0, *cuts, len(layers)))]
    return [model.name(run[0]) + (f"-{model.name(run[-1])}" if len(run) > 1 else "") for run in runs if run]


def remarks(lists: Mapping[int, tuple[int, ...]], model: Routed, kept: Iterable[int]) -> list[str]:
    """What the lists do, for people: how many experts stay in which layers, and which layers the plan does not list."""
    found: list[str] = []
    counts: dict[tuple[int, int], list[int]] = {}
    for layer in sorted(lists):
        counts.setdefault((len(lists[layer]), model.held[layer]), []).append(layer)
    for (number, held), layers in counts.items():
        where = f"layers {', '.join(_spans(layers, model))}"
        moved = sum(lists[layer] != tuple(sorted(lists[layer])) for layer in layers)
        stay = f"{number} of {held} stay" if number < held else f"all {held} stay"
        found.append(f"experts: {stay} in each of {where}" + (f", in a new order in {moved} of them" if moved else ""))
    left = [layer for layer in sorted(model.held) if layer in kept and layer not in lists]
    if left:
        found.append(f"experts: the plan does not list layers {', '.join(_spans(left, model))}: they stay as they are")
    return found
