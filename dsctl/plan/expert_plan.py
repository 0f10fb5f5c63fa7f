"""A plan of experts in a JSON file: which experts each layer keeps, and in which order. Nothing is guessed.

There is no common form. These were read in public code: an object of lists by layer, under a key or alone
(`kept_by_layer`; `keep_maps.keep_by_layer` of the reap_plan.json of 0xSero/DeepSeek-V4-Flash-162B; `experts_to_keep`),
the same with an object per layer (`layers` of reap-expert-mask-v1), a list of objects (`layers` of a MiMo prune map), a
list of lists (`keep.per_layer` and `keep` of hipfire-reap), and EPLB's map (deepseek-ai/EPLB, README). Masks, lists of
lists alone and `kept_experts` were not seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dsctl.checkpoint.reading import strict_json
from dsctl.core.errors import FormatError, SourceError
from dsctl.core.files import read_small, refusal
from dsctl.core.visible import shortened

# A plan of V4-Pro, with 61 layers of 384 experts, has less than 150 kB.
MAX_BYTES = 16 << 20
MOST_EXPERTS = 1 << 16
MAP = "physical_to_logical_map"
HINT = (
    'such as {"layers": {"3": [0, 2, 5], "mtp.0": [0, 1, 4]}}: for each layer the experts that stay;'
    f' or a list of lists, or {{"{MAP}": [[1, 0, 2], ...]}}'
)
# Where the lists are, as keys from the outside in.
_HOLDERS = (
    ("layers",), ("kept_by_layer",), ("keep_by_layer",), ("keep_maps", "keep_by_layer"), ("keep",),
    ("keep", "per_layer"), ("kept_experts",), ("experts_to_keep",), (MAP,),
)  # fmt: skip
# The list of a layer, if the layer has an object, and the layer's number there.
_LISTS, _LAYER = ("kept_experts", "retained", "retained_expert_ids"), "layer"
# What a plan says about numbers of experts: of each layer before and after.
_BEFORE = ("experts", "original_experts", "original_experts_per_layer", "old_num_experts", "num_experts_original")
_AFTER = ("declared_k", "kept_per_layer", "kept_experts_per_layer", "retained_count")

Row = tuple[int, ...] | tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class ExpertPlan:
    """A plan as its file gives it: experts or a mask for each layer, by the layer's number or "mtp.N", or in `rows`.

    A mask has a boolean for each expert; 0 and 1 in their place are not told apart from numbers of experts here.
    `places`: the rows are EPLB's, with an expert for each place. `before` and `after` are the numbers of experts that
    the file mentions beside its lists.
    """

    place: str
    by_layer: dict[str, Row] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    places: bool = False
    before: frozenset[int] = frozenset()
    after: frozenset[int] = frozenset()

    @property
    def label(self) -> str:
        """The beginning of each error about it."""
        return f"--experts: {self.place}"


def read_plan(path: str) -> ExpertPlan:
    """The plan in a file.

    Raises:
        SourceError: the file cannot be read. FormatError: it is not JSON, or not one of the known forms.
    """
    label = f"--experts: {shortened(path)}"
    try:
        raw = read_small(path, MAX_BYTES)
    except OSError as error:
        raise refusal(label, error, SourceError) from None
    except ValueError as error:
        raise SourceError(f"{label}: is not the name of a file: {error}") from None
    try:
        said = strict_json(raw, label)
    except (ValueError, RecursionError) as error:
        hint = "write the lists as JSON; files of torch or numpy are not read"
        raise FormatError(f"{label}: is not JSON: {_first_line(error)}", hint=hint) from None
    return parse_plan(said, shortened(path))


def _first_line(error: BaseException) -> str:
    return shortened((str(error).splitlines() or [type(error).__name__])[0])


def parse_plan(said: Any, place: str) -> ExpertPlan:
    """The plan in a decoded JSON document; `place` names it in errors.

    Raises:
        FormatError: it has none of the known forms, or several of them.
    """
    label = f"--experts: {place}"
    where, held = _holder(said, label)
    facts = said if isinstance(said, dict) else {}
    before = frozenset(number for key in _BEFORE if type(number := facts.get(key)) is int)
    after = frozenset(number for key in _AFTER if type(number := facts.get(key)) is int)
    if isinstance(held, dict):
        layers = {key: _row(value, f"{label}: layer {key}") for key, value in held.items()}
        return ExpertPlan(place, _canonical(layers, label), before=before, after=after)
    if any(isinstance(one, dict) for one in held):
        return ExpertPlan(place, _numbered(held, label), before=before, after=after)
    rows = tuple(_row(value, f"{label}: row {number}") for number, value in enumerate(held))
    return ExpertPlan(place, rows=rows, places=where == (MAP,), before=before, after=after)


def _holder(said: Any, label: str) -> tuple[tuple[str, ...], Any]:
    """The keys of the lists, and the lists."""
    if _holds(said):
        return (), said
    found = [(keys, value) for keys in _HOLDERS if _holds(value := _at(said, keys))]
    if len(found) > 1:
        names = " and ".join(".".join(keys) for keys, _ in found)
        raise FormatError(f"{label}: has several plans: {names}", hint="leave one of them in the file")
    if not found:
        raise FormatError(f"{label}: does not list experts by layer", hint=HINT)
    return found[0]


def _at(said: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        said = said.get(key) if isinstance(said, dict) else None
    return said


def _holds(value: Any) -> bool:
    """Whether a value has an entry for each layer: an object by layer, or a list of lists or objects."""
    if isinstance(value, dict):
        return bool(value) and all(map(is_layer, value))
    return isinstance(value, list) and any(isinstance(one, list | dict) for one in value)


def is_layer(key: str) -> bool:
    """Whether a key names a layer: its number, or mtp.N for a stage of the drafter."""
    number = key.removeprefix("mtp.")
    return number.isascii() and number.isdecimal() and len(number) <= 5


def _canonical(layers: dict[str, Row], label: str) -> dict[str, Row]:
    """The same with numbers without leading zeros."""
    found: dict[str, Row] = {}
    for key, row in layers.items():
        head = "mtp." if key.startswith("mtp.") else ""
        name = f"{head}{int(key.removeprefix('mtp.'))}"
        if name in found:
            raise FormatError(f"{label}: layer {name} appears twice")
        found[name] = row
    return found


def _numbered(held: list[Any], label: str) -> dict[str, Row]:
    """The lists of objects that have their layer's number."""
    found: dict[str, Row] = {}
    for place, one in enumerate(held):
        layer = one.get(_LAYER) if isinstance(one, dict) else None
        if type(layer) is not int or not 0 <= layer < MOST_EXPERTS:
            raise FormatError(f"{label}: entry {place} does not have the number of a layer", hint=HINT)
        if str(layer) in found:
            raise FormatError(f"{label}: layer {layer} appears twice")
        found[str(layer)] = _row(one, f"{label}: layer {layer}")
    return found


def _row(value: Any, label: str) -> Row:
    """A layer's experts or mask."""
    if isinstance(value, dict):
        lists = [key for key in _LISTS if isinstance(value.get(key), list)]
        if len(lists) != 1:
            what = f"has {len(lists)} lists of experts" if lists else "does not list its experts"
            raise FormatError(f"{label}: {what}", hint=f"as {', '.join(_LISTS)}, or the list alone")
        value = value[lists[0]]
    if not isinstance(value, list):
        raise FormatError(f"{label}: {_shown(value)} is not a list of experts", hint=HINT)
    if not value:
        raise FormatError(f"{label}: the list is empty", hint="a layer keeps at least two experts")
    if all(type(one) is bool for one in value):
        return tuple(value)
    for one in value:
        if type(one) is not int or not 0 <= one < MOST_EXPERTS:
            raise FormatError(f"{label}: {_shown(one)} is not the number of an expert", hint=HINT)
    return tuple(value)


def _shown(value: Any) -> str:
    """A value in an error; a nested one by its kind, because it may be deep."""
    if isinstance(value, list | dict):
        return "an object" if isinstance(value, dict) else "a list"
    return shortened(repr(value), 40)
