"""A PEFT adapter of low rank (LoRA) in a folder: its files read and checked, its names mapped to parameters. No torch.

Names of tensors: huggingface/peft 0.21.2, utils/save_and_load.py (`get_peft_model_state_dict`), tuners/lora/layer.py
(`Linear`, `Embedding`), tuners/lora/model.py (the magnitude vector of DoRA has no `.weight`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from msgspec import structs

from dsctl.checkpoint.adapter_config import CONFIG, MOST_MATCHES, AdapterConfig, read_config
from dsctl.checkpoint.adapter_names import Place, names_of
from dsctl.checkpoint.adapter_stacks import Stacked, stacked_changes
from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.low_rank import ADAPTER, Change, Factor, LowRank
from dsctl.checkpoint.reading import read_header
from dsctl.codecs.plain import FLOATS
from dsctl.core.errors import DsctlError, FormatError, PlanError, SourceError
from dsctl.core.header import TensorRef
from dsctl.core.params import Family, Param
from dsctl.core.visible import shortened
from dsctl.stores.joined import Joined
from dsctl.stores.local import LocalFolder

WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_A, _B, _MAGNITUDE, _BASE = "A", "B", "magnitude_vector", ""
# The ending of a module that is wrapped twice.
_INNER = ".base_layer"
_EMBEDDING_A, _EMBEDDING_B = "embedding_A", "embedding_B"
# The endings of an adapter's tensors; some programs leave the adapter's own name, `default`, in them.
_ENDINGS = {
    ".lora_A.weight": _A, ".lora_B.weight": _B, ".lora_A.default.weight": _A, ".lora_B.default.weight": _B,
    ".lora_embedding_A": _EMBEDDING_A, ".lora_embedding_B": _EMBEDDING_B, ".lora_embedding_A.default": _EMBEDDING_A,
    ".lora_embedding_B.default": _EMBEDDING_B, ".lora_magnitude_vector": _MAGNITUDE,
    ".lora_magnitude_vector.default.weight": _MAGNITUDE, ".base_layer.weight": _BASE,
}  # fmt: skip
# A refusal names at most this many tensors.
NAMED = 20


@dataclass(frozen=True)
class Adapter:
    """An adapter's settings, the change of every parameter that it touches (by name), and its files.

    `files` have their sizes and headers' JSON, under their names in the joined store; `modules` is the number of pairs
    of factors.
    """

    place: str
    config: AdapterConfig
    changes: dict[str, Change]
    files: dict[str, tuple[int, bytes]]
    modules: int
    notes: tuple[str, ...] = ()


@dataclass
class _Module:
    """The tensors of one module by kind."""

    tensors: dict[str, TensorRef] = field(default_factory=dict)


def with_adapter(checkpoint: Checkpoint, path: str) -> tuple[Checkpoint, Adapter]:
    """A checkpoint that can also read from the adapter's folder at `path`, and the adapter.

    Raises:
        SourceError, FormatError: the folder cannot be read, or contradicts itself.
        PlanError: it is of a kind that dsctl does not merge, or does not fit the checkpoint's model.
    """
    try:
        folder = LocalFolder.at(path)
        files = folder.files()
    except SourceError as error:
        raise SourceError(f"--lora: {error}", hint="name the folder of a PEFT adapter") from None
    if folder.only:
        raise SourceError(f"--lora: {path}: is not a folder", hint=f"name the folder with {CONFIG}")
    config = read_config(folder, files)
    if WEIGHTS not in files:
        pickled = next((file for file in files if file.startswith("adapter_model") and file.endswith(".bin")), None)
        what = f"{pickled} is pickled, which can run code" if pickled else f"has no {WEIGHTS}"
        hint = "save the adapter again with PEFT, as safetensors" if pickled else "name the folder of a PEFT adapter"
        raise SourceError(f"--lora: {folder.place}: {what}", hint=hint)
    try:
        header = read_header(folder, WEIGHTS, files[WEIGHTS])
    except DsctlError as error:
        raise type(error)(f"--lora: {error.message}", hint=error.hint) from None
    if checkpoint.model is None or not checkpoint.params:
        what = f"--lora: {checkpoint.store.place}: the architecture is unknown, and with it the names of its modules"
        raise PlanError(what)
    tensors = {name: structs.replace(ref, file=ADAPTER + WEIGHTS) for name, ref in header.tensors.items()}
    changes, modules = _changes(tensors, config, checkpoint.families)
    held = {ADAPTER + WEIGHTS: (files[WEIGHTS], header.raw)}
    held[ADAPTER + CONFIG] = (files[CONFIG], folder.read(CONFIG, 0, files[CONFIG]))
    adapter = Adapter(folder.place, config, changes, held, modules, tuple(_notes(config, changes, checkpoint)))
    return replace(checkpoint, store=Joined(checkpoint.store, folder, ADAPTER)), adapter


def _changes(
    tensors: Mapping[str, TensorRef], config: AdapterConfig, families: Sequence[Family]
) -> tuple[dict[str, Change], int]:
    """The change of every parameter, and the number of matrices of low rank.

    Raises:
        FormatError, PlanError: a tensor belongs to nothing, or contradicts the others, the config or the model.
    """
    modules, whole = _grouped(tensors)
    if not modules:
        hint = "adapters of LoRA hold tensors named lora_A and lora_B"
        raise PlanError(f"--lora: {WEIGHTS}: changes no matrix", hint=hint)
    patterns = len(config.ranks) + len(config.alphas)
    if patterns * len(modules) > MOST_MATCHES:
        raise PlanError(f"--lora: {CONFIG}: {patterns:,} patterns for {len(modules):,} modules are too many")
    names = names_of(families, (*modules, *(path.removesuffix(_INNER) for path in modules), *whole))
    changes: dict[str, Change] = {}
    stacked: list[Stacked] = []
    unknown = []
    for path, module in modules.items():
        if path in names.modules:
            _add(changes, _module_changes(path, module, config, names.modules[path]))
        elif (inner := path.removesuffix(_INNER)) in names.stacks:
            a, b = _pair(path, module, _A, _B)
            if config.dora or len(module.tensors) > 2:
                raise PlanError(f"--lora: {path}: DoRA of stacked experts is not supported", hint=_BY_PEFT)
            stacked.append(Stacked(inner, path != inner, a, b))
        else:
            unknown.append(path)
    _add(changes, stacked_changes(stacked, config, names.stacks))
    for name, ref in whole.items():
        if (param := names.tensors.get(name)) is None:
            unknown.append(name)
        else:
            _add(changes, [(param.name, _replacement(name, ref, param))])
    if unknown:
        what = shortened(unknown[0]) if len(unknown) == 1 else f"{len(unknown):,} of its tensors and modules"
        hint = "it was trained on a different model"
        issues = [shortened(one, 160) for one in unknown[:NAMED]]
        raise PlanError(f"--lora: {what}: not in this model", hint=hint, issues=issues if len(unknown) > 1 else ())
    _refuse_unsaved(config, whole)
    return changes, len(modules)


_BY_PEFT = "merge it with PEFT"


def _grouped(tensors: Mapping[str, TensorRef]) -> tuple[dict[str, _Module], dict[str, TensorRef]]:
    """The modules of low rank by path, and the tensors that replace a parameter by name."""
    modules: dict[str, _Module] = {}
    whole: dict[str, TensorRef] = {}
    for name, ref in tensors.items():
        if ref.spec.dtype not in FLOATS:
            hint = f"adapters hold {', '.join(FLOATS)}"
            raise FormatError(f"--lora: {WEIGHTS}: {shortened(name)} has dtype {ref.spec.dtype}", hint=hint)
        path = name.removeprefix(_PREFIX)
        ending = next((one for one in _ENDINGS if path.endswith(one)), None)
        if ending is None:
            held, key = whole, path
        elif _ENDINGS[ending] == _BASE:
            held, key = whole, path.removesuffix(ending) + ".weight"
        else:
            held, key = modules.setdefault(path.removesuffix(ending), _Module()).tensors, _ENDINGS[ending]
        if key in held:
            raise FormatError(f"--lora: {WEIGHTS}: {shortened(name)} is there under two names")
        held[key] = ref
    return modules, whole


def _add(changes: dict[str, Change], made: Iterable[tuple[str, Change]]) -> None:
    """Add changes; a parameter may be replaced and changed, but neither of them twice."""
    for name, change in made:
        before = changes.get(name, Change())
        if (before.whole and change.whole) or (before.low_rank and change.low_rank):
            raise FormatError(f"--lora: {WEIGHTS}: changes {name} twice, under two names")
        changes[name] = Change(before.whole or change.whole, before.low_rank or change.low_rank)


def _pair(path: str, module: _Module, *kinds: str) -> tuple[TensorRef, TensorRef]:
    """Both factors of a module, each a matrix.

    Raises:
        FormatError: one is missing, or is not a matrix.
    """
    missing = [kind for kind in kinds if kind not in module.tensors]
    if missing:
        held = ", ".join(f"lora_{kind}" for kind in module.tensors)
        raise FormatError(f"--lora: {shortened(path)}: has {held}, but not lora_{missing[0]}")
    a, b = (module.tensors[kind] for kind in kinds)
    for ref in (a, b):
        if len(ref.spec.shape) != 2 or not ref.spec.values:
            raise FormatError(f"--lora: {shortened(ref.name)} of shape {list(ref.spec.shape)} is not a matrix")
    return a, b


def _module_changes(
    path: str, module: _Module, config: AdapterConfig, places: list[Place]
) -> Iterator[tuple[str, Change]]:
    """The changes of the parameters of one module.

    Raises:
        FormatError: a shape contradicts the config or the model. PlanError: DoRA of an embedding.
    """
    embedding = _EMBEDDING_A in module.tensors or _EMBEDDING_B in module.tensors
    a, b = _pair(path, module, *((_EMBEDDING_A, _EMBEDDING_B) if embedding else (_A, _B)))
    magnitude, rank = module.tensors.get(_MAGNITUDE), config.rank(path)
    rows, columns = places[0].rows, places[0].param.shape[1]
    wanted = ((rank, rows), (columns, rank)) if embedding else ((rank, columns), (rows, rank))
    if (a.spec.shape, b.spec.shape) != wanted or any(one.param.shape[1] != columns for one in places):
        held = f"{list(a.spec.shape)} and {list(b.spec.shape)}"
        what = f"factors of shapes {held}, but r {rank} and {places[0].param.name} need {list(wanted[0])} and"
        hint = f"r, rank_pattern or the base model is different from those of {WEIGHTS}"
        raise FormatError(f"--lora: {shortened(path)}: {what} {list(wanted[1])}", hint=hint)
    if embedding and config.dora:
        raise PlanError(f"--lora: {shortened(path)}: DoRA of an embedding is not supported", hint=_BY_PEFT)
    if config.dora != (magnitude is not None):
        what = "has no lora_magnitude_vector" if config.dora else "has a lora_magnitude_vector, but use_dora is not set"
        raise FormatError(f"--lora: {shortened(path)}: {what}")
    if magnitude is not None and magnitude.spec.shape != (rows,):
        what = f"lora_magnitude_vector of shape {list(magnitude.spec.shape)}, needs [{rows}]"
        raise FormatError(f"--lora: {shortened(path)}: {what}")
    for place in places:
        left, right = Factor(b, rank, 0, place.row), Factor(a, rank, 1)
        if embedding:
            left, right = Factor(a, rank, 1), Factor(b, rank, 0)
        yield place.param.name, Change(None, LowRank(left, right, config.scaling(path), magnitude, place.row))


def _replacement(name: str, ref: TensorRef, param: Param) -> Change:
    """The tensor that replaces a parameter.

    Raises:
        FormatError: its shape is different.
    """
    if ref.spec.shape != param.shape:
        what = f"shape {list(ref.spec.shape)}, but the model's is {list(param.shape)}"
        hint = "a changed vocabulary needs a changed config: merge it with PEFT"
        raise FormatError(f"--lora: {shortened(name)}: {what}", hint=hint)
    return Change(ref)


def _refuse_unsaved(config: AdapterConfig, whole: Mapping[str, TensorRef]) -> None:
    """Refuse an adapter without a module that its config says it saves.

    Raises:
        FormatError: naming it.
    """
    modules = {name.rpartition(".")[0] for name in whole}
    for one in config.saved:
        if not any(module == one or module.endswith(f".{one}") for module in modules):
            hint = f"{WEIGHTS} is incomplete: save the adapter again"
            raise FormatError(f"--lora: {CONFIG}: modules_to_save {shortened(one)} has no tensor", hint=hint)


def _notes(config: AdapterConfig, changes: Mapping[str, Change], checkpoint: Checkpoint) -> Iterator[str]:
    """Remarks on settings that dsctl does not know, and on copies of changed parameters in the MTP layer."""
    if config.unknown:
        named = ", ".join(config.unknown[:4]) + (", ..." if len(config.unknown) > 4 else "")
        yield f"lora: {CONFIG} has settings that dsctl does not know, and that have no effect here: {named}"
    twins = [family for family in checkpoint.families if family.twin in changes]
    for family in twins:
        yield f"lora: {family.twin} changes; its copy in the MTP layer, {family.names()[0]}, does not"
