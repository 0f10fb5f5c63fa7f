"""Groups of options as frozen values that verbs share; `verb` lists their options in a verb's signature."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any, get_type_hints

from dsctl.cli.conversion_options import (
    Address,
    AllowExtra,
    AllowInexact,
    AllowMissing,
    Bf16,
    Consume,
    CopyToDrafter,
    Device,
    Digest,
    Engine,
    Ep,
    ExpertMap,
    Fp8,
    KeptExperts,
    KeptLayers,
    Layout,
    MaxMemory,
    Mtp,
    NoMtp,
    Pp,
    Public,
    Rank,
    Recipe,
    Recode,
    ScaleFmt,
    ShardSize,
    Staging,
    To,
    Tp,
    Verbose,
)
from dsctl.cli.options import ByteThreads, Debug, DryRun, Force, Json, Only, Quiet, Skip, Workers
from dsctl.show.output import Output


@dataclass(frozen=True, slots=True)
class FormatOptions:
    """The target format, and the largest size of a file in bytes."""

    to: To = None
    bf16: Bf16 = False
    fp8: Fp8 = False
    recipe: Recipe = None
    scale_fmt: ScaleFmt = "auto"
    allow_inexact: AllowInexact = False
    shard_size: ShardSize = None


@dataclass(frozen=True, slots=True)
class PartOptions:
    """The part of a checkpoint to convert."""

    only: Only = None
    skip: Skip = None
    mtp: Mtp = None
    no_mtp: NoMtp = False
    allow_missing: AllowMissing = False
    allow_extra: AllowExtra = False


@dataclass(frozen=True, slots=True)
class SliceOptions:
    """The layers and experts that a slice keeps, as texts such as 0-4,mtp and 8 or a plan's file, and its drafter; None
    keeps all."""

    layers: KeptLayers = None
    experts: KeptExperts = None
    copy_to_drafter: CopyToDrafter = False
    mtp: Mtp = None
    no_mtp: NoMtp = False


@dataclass(frozen=True, slots=True)
class RankOptions:
    """The numbers of ranks into which a checkpoint is sharded; None if a size is not given."""

    tp: Tp = None
    ep: Ep = None
    pp: Pp = None


@dataclass(frozen=True, slots=True)
class SpreadOptions:
    """The ranks to write, and the experts of each rank."""

    rank: Rank = None
    expert_map: ExpertMap = None


@dataclass(frozen=True, slots=True)
class LayoutOptions:
    """The layout of tensors in files, and whether blocks that a split goes through are quantized again."""

    layout: Layout = "published"
    recode: Recode = False


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The settings of a run. `consume` counts how often the option is given; `max_memory` is in bytes."""

    dry_run: DryRun = False
    workers: Workers = None
    engine: Engine = "processes"
    address: Address = None
    device: Device = "cpu"
    digest: Digest = "blake3"
    max_memory: MaxMemory = None
    force: Force = False
    verbose: Verbose = False
    consume: Consume = 0
    staging: Staging = None
    public: Public = False


@dataclass(frozen=True, slots=True)
class DeliveryOptions:
    """The settings of a target at a URL."""

    staging: Staging = None
    public: Public = False


@dataclass(frozen=True, slots=True)
class DeltaRunOptions:
    """The settings of a run over deltas."""

    dry_run: DryRun = False
    threads: ByteThreads = None
    force: Force = False
    verbose: Verbose = False


@dataclass(frozen=True, slots=True)
class PrintOptions:
    """The format of the output."""

    json: Json = False
    quiet: Quiet = False

    def output(self) -> Output:
        """Return the output of a command with these options."""
        return Output(self.json, self.quiet)


def verb(asked: Callable[..., None]) -> Callable[..., None]:
    """Make a verb that Typer can read: a parameter per option of each group, and `--debug`, which only `main` reads."""
    hints = get_type_hints(asked, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    spelled = [*_spelled(asked, hints), Parameter("debug", Parameter.KEYWORD_ONLY, default=False, annotation=Debug)]

    @wraps(asked)
    def called(**given: Any) -> None:
        del given["debug"]
        made = {name: group(*[given.pop(one.name) for one in fields(group)]) for name, group in groups.items()}
        asked(**given, **made)

    called.__signature__ = Signature(spelled)  # type: ignore[attr-defined]
    called.__annotations__ = {one.name: one.annotation for one in spelled}
    return called


def _spelled(asked: Callable[..., None], hints: dict[str, Any]) -> Iterator[Parameter]:
    """The parameters of a verb, with each group replaced by its options."""
    for name, parameter in signature(asked).parameters.items():
        group = hints[name]
        if not is_dataclass(group):
            yield parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=group)
            continue
        options = get_type_hints(group, include_extras=True)
        for one in fields(group):
            yield Parameter(one.name, Parameter.KEYWORD_ONLY, default=one.default, annotation=options[one.name])
