"""The Python interface: a source, what it shows, what it can be made into. Reads like a view, builds data. No torch.

    import dsctl

    source = dsctl.open("DeepSeek-V3.2")
    print(source.inspect().description.values)
    source.to("bf16").run("DeepSeek-V3.2-bf16")

Nothing is read before it is asked for, and no weight before `run`. What needs numpy is loaded by
the call that needs it: an inspection and a diff do without.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.opening import open_checkpoint, source_at, weights_at
from dsctl.codecs import CODECS
from dsctl.core.choices import choose
from dsctl.core.errors import UsageError
from dsctl.core.lists import globs, numbers
from dsctl.layouts import usual_ep
from dsctl.look.diff import Diff
from dsctl.look.inspection import Inspection, inspect
from dsctl.look.source import describe
from dsctl.plan.plan import Plan
from dsctl.plan.planner import make_plan
from dsctl.plan.recipes import recipe as named
from dsctl.plan.request import KEEP, PUBLISHED, RECIPE, USUAL, Request

if TYPE_CHECKING:
    from dsctl.look.comparison import Comparison
    from dsctl.run.events import Event
    from dsctl.verify.findings import Report

__all__ = ["Conversion", "Source", "open"]


def open(place: str | os.PathLike[str]) -> Source:  # noqa: A001  what it is called everywhere
    """A source by its folder, file, release or repository. What is wrong with it shows when it is used."""
    return Source(os.fspath(place))


class ConversionOptions(TypedDict, total=False):
    """The words of `dsctl convert` and `dsctl shard`, each of which may be left out; sizes are in bytes.

    `only` and `skip` are a glob or several. `mtp` keeps the MTP layer or drops it; without it, layouts that have none
    drop it. With one of `tp`, `ep` and `pp` it is spread over ranks, as by `dsctl shard`; `ranks` are the only ones
    written.
    """

    recipe: str | None
    scale_fmt: str
    search: bool
    only: str | Iterable[str]
    skip: str | Iterable[str]
    mtp: bool | None
    shard_size: int | None
    keep_scales: bool
    allow_missing: bool
    allow_extra: bool
    allow_inexact: bool
    layout: str
    tp: int
    ep: int
    pp: int
    ranks: Iterable[int]
    recode: bool


@dataclass(frozen=True)
class Source:
    """A checkpoint: a folder, a .safetensors file, a release by any of its names, or `hf://org/name[@revision]`."""

    place: str

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Config, index and every header, read and checked. A release's are those of its repository.

        Raises:
            SourceError: there is none, or it cannot be read. FormatError: a file's structure is broken.
        """
        return open_checkpoint(source_at(self.place))

    def inspect(self) -> Inspection:
        """What it is and holds: `roles`, `dtypes`, `files`, `tensors(glob)`, `description`. A release offline.

        Raises:
            SourceError, FormatError: see `checkpoint`.
        """
        return inspect(self.place)

    def diff(self, other: Source | str) -> Diff:
        """What changes from this one to the other: `config`, `added`, `removed`, `changed`, `totals`, `verdict`.

        Raises:
            SourceError, FormatError: see `checkpoint`.
        """
        return Diff(describe(self.place), describe(_place(other)))

    def compare(
        self, other: Source | str, only: str | Iterable[str] = (), skip: str | Iterable[str] = ()
    ) -> Comparison:
        """How far the other one's numbers are from this one's, by parameter and by role, whatever the formats.

        Raises:
            SourceError, FormatError: see `checkpoint`.
        """
        from dsctl.look.compare import compare, pair

        return compare(pair(weights_at(self.place), weights_at(_place(other)), only, skip))

    def verify(self, against: Source | str | None = None, deep: bool = False) -> Report:
        """What is wrong with it: findings by severity; `deep` reads every byte.

        Raises:
            SourceError: there is no checkpoint, or a file cannot be read.
        """
        from dsctl.verify import verify
        from dsctl.verify.against import other

        return verify(weights_at(self.place), None if against is None else other(_place(against)), deep)

    def to(self, codec: str = KEEP, **options: Unpack[ConversionOptions]) -> Conversion:
        """What it shall become, in a codec or as it is stored; `ConversionOptions` has the other words.

        Nothing is done yet.

        Raises:
            UsageError: no such codec or recipe; `only`, `skip` or `ranks` hold something else than globs and integers.
            TypeError: no such option.
        """
        unknown = options.keys() - ConversionOptions.__annotations__.keys()
        if unknown:
            raise TypeError(f"to() has no option {min(unknown)!r}")
        recipe = options.get("recipe")
        if codec != KEEP:
            choose(codec, (*CODECS, PUBLISHED), "codec")
        if recipe and codec != KEEP:
            raise UsageError(f"recipe and {codec} are both asked for", hint="a recipe names every format itself")
        rules = named(recipe).rules if recipe else ()
        request = Request(
            to=RECIPE if recipe else codec,
            rules=tuple((rule.role, rule.match, rule.format) for rule in rules),
            search=options.get("search", False),
            scale_fmt=options.get("scale_fmt", "auto"),
            shard_size=options.get("shard_size"),
            only=globs("only", options.get("only", ())),
            skip=globs("skip", options.get("skip", ())),
            allow_missing=options.get("allow_missing", False),
            allow_extra=options.get("allow_extra", False),
            allow_inexact=options.get("allow_inexact", False),
            keep_scales=options.get("keep_scales", True),
            layout=options.get("layout", "published"),
            recode=options.get("recode", False),
            ranks=tuple(sorted(set(numbers("ranks", options.get("ranks", ()))))),
        )
        return Conversion(self, _spread(request, options))


def _spread(request: Request, options: ConversionOptions) -> Request:
    """The request over the ranks asked for, with the MTP layer if its layout has one or it is asked for."""
    tp, ep, pp = (options.get("tp") or 0, options.get("ep") or 0, options.get("pp") or 0)
    mtp = options.get("mtp")
    return replace(
        request,
        mtp=USUAL if mtp is None else "keep" if mtp else "drop",
        tp=(tp or 1) if tp or ep or pp else 0,
        ep=ep or usual_ep(request.layout, tp or 1),
        pp=pp or 1,
    )


@dataclass(frozen=True)
class Conversion:
    """A source and what is asked for; `plan` tells every byte of the output, `run` makes it."""

    source: Source
    request: Request

    @cached_property
    def plan(self) -> Plan:
        """Steps, files, sizes, what is dropped and why. No weight is read.

        Raises:
            SourceError, FormatError: the source. PlanError: what is asked for cannot be done with it.
        """
        return make_plan(self.source.checkpoint, self.request)

    def run(
        self,
        target: str | os.PathLike[str],
        *,
        workers: int | None = None,
        max_memory: float | None = None,
        force: bool = False,
        engine: str = "processes",
        address: str = "",
        device: str = "cpu",
        report: Callable[[Event], None] = lambda event: None,
    ) -> dict[str, Any]:
        """Carry the plan out, from wherever an interrupted run left it, and return the audit that `dsctl.json` keeps.

        `workers` and `max_memory` (bytes, all processes together) are what the machine has where not given; with
        several workers the calling script needs the `if __name__ == "__main__":` that multiprocessing asks for.
        `engine`, `address` and `device` are those of `dsctl convert`.

        Raises:
            UsageError: no such engine or device, an address without a cluster, a number below 1; nothing was opened.
            PlanError, ResumeError: the target is not this plan's, or has no room. FormatError: a scale cannot be one.
            SourceError, WorkError: something failed on the way; the same call resumes.
        """
        from dsctl.run.carry_out import carry_out, set_up
        from dsctl.run.how import How

        how = How(workers, max_memory, engine, address, device, force)
        setup = set_up(self.plan, self.source.checkpoint.store, os.fspath(target), how)
        return carry_out(setup, report)


def _place(source: Source | str) -> str:
    return source.place if isinstance(source, Source) else source
