"""The Python interface: a source, its contents, and the checkpoints it can be converted to. No torch.

    import dsctl

    source = dsctl.open("DeepSeek-V3.2")
    print(source.inspect())
    source.to("bf16").run("DeepSeek-V3.2-bf16")

Nothing is read before it is needed, and no weight before `run` and `compare`. Modules that need numpy are imported by
the call that needs them: an inspection and a diff do without.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.grafting import grafted
from dsctl.checkpoint.names import repository_of
from dsctl.checkpoint.opening import open_checkpoint, source_at, weights_at
from dsctl.checkpoint.slice import SHARD_BYTES
from dsctl.core.errors import UsageError
from dsctl.core.lists import globs, names, numbers
from dsctl.core.visible import shortened
from dsctl.look.diff import Diff
from dsctl.look.estimate import Asked, Estimate, estimate
from dsctl.look.inspection import Inspection, inspect
from dsctl.look.source import describe
from dsctl.plan.beside import Opened, with_places
from dsctl.plan.expert_plan import read_plan
from dsctl.plan.graft_options import OWN, GraftOptions, Sources, graft_request
from dsctl.plan.options import ConversionOptions, chosen_drafter, request_of
from dsctl.plan.parts import Part
from dsctl.plan.plan import Plan
from dsctl.plan.planner import make_plan
from dsctl.plan.request import KEEP, KEPT, Request
from dsctl.run.result import Result
from dsctl.stores.hub import SCHEME

if TYPE_CHECKING:
    from dsctl.look.comparison import Comparison
    from dsctl.look.proof import Proof
    from dsctl.run.events import Event
    from dsctl.verify.findings import Report

__all__ = ["Conversion", "Result", "Source", "open"]


def open(place: str | os.PathLike[str]) -> Source:  # noqa: A001  the usual name
    """A source by its folder, file, release or repository. Nothing is read yet; errors are raised when it is used."""
    return Source(os.fspath(place))


@dataclass(frozen=True)
class Source:
    """A checkpoint: a folder, a .safetensors file, a release by any of its names, or `hf://org/name[@revision]`."""

    place: str

    def __repr__(self) -> str:
        return f"<Source {shortened(self.place)}>"

    def _repr_html_(self) -> str:
        """Return the name of the source, as HTML for a notebook. Reads nothing."""
        return f"<code>{escape(repr(self))}</code>"

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Its config, index and headers, read and checked. For a release they are read from its repository.

        Raises:
            SourceError: there is no checkpoint, or it cannot be read. FormatError: a file's structure is broken.
        """
        return open_checkpoint(source_at(self.place))

    def inspect(self) -> Inspection:
        """Its contents: `roles`, `dtypes`, `files`, `tensors(glob)`, `description`. A release is described offline.

        Raises:
            SourceError, FormatError: see `checkpoint`.
        """
        return inspect(self.place)

    def diff(self, other: Source | str) -> Diff:
        """The changes from this source to another: `config`, `added`, `removed`, `changed`, `totals`, `verdict`.

        Raises:
            SourceError, FormatError: see `checkpoint`.
        """
        return Diff(describe(self.place), describe(_place(other)))

    def compare(
        self, other: Source | str, only: str | Iterable[str] = (), skip: str | Iterable[str] = ()
    ) -> Comparison:
        """The differences between the values of two checkpoints, by parameter and by role, in any formats.

        `only` and `skip` are one glob or several.

        Raises:
            SourceError, FormatError: see `checkpoint`.
        """
        from dsctl.look.compare import compare, pair

        return compare(pair(weights_at(self.place), weights_at(_place(other)), only, skip))

    def verify(self, against: Source | str | None = None, deep: bool = False) -> Report:
        """Its problems, as findings by severity; `deep` reads every byte. `prove` compares values.

        Raises:
            SourceError: there is no checkpoint, or a file cannot be read.
        """
        from dsctl.verify import verify
        from dsctl.verify.against import other

        return verify(weights_at(self.place), None if against is None else other(_place(against)), deep)

    def prove(self, source: Source | str, sample: float | None = None, seed: int = 0) -> Proof:
        """Whether its parameters are those of a source: `holds`, `line`, `counts`, `others`, `lost`, in any formats.

        `sample` is the share of rows to read, above 0 and up to 1, chosen by `seed`; None reads everything.

        Raises:
            UsageError: `sample` is not a share. SourceError, FormatError: see `checkpoint`. PlanError: no torch.
        """
        from dsctl.look.proof import sample_of
        from dsctl.look.proving import prepare, prove

        chosen = None if sample is None else sample_of(sample, seed)
        here, there = (open_checkpoint(weights_at(place)) for place in (self.place, _place(source)))
        return prove(prepare(here, there, sample=chosen))

    def plan(
        self,
        *,
        to: str | Iterable[str] = (),
        recipe: str | Iterable[str] = (),
        tp: int | None = None,
        ep: int | None = None,
        pp: int | None = None,
        context: int | None = None,
        batch: int = 1,
        kv: str | None = None,
        gpu: str | Iterable[str] = (),
        tables: str | None = None,
    ) -> Estimate:
        """Disk, memory per rank and KV cache, as `dsctl plan` gives them; weights are not read.

        `to`, `recipe` and `gpu` are one name or several. `tables` is the place of Engram tables: host or gpu.
        Without `tp`, `ep` and `pp` the usual sizes are estimated, without `gpu` all known accelerators.

        Raises:
            UsageError: an unknown name, a number below 1, or an unknown architecture. PlanError: the model cannot be
                sharded so. SourceError, FormatError: see `checkpoint`.
        """
        asked = Asked(
            names("to", to), names("recipe", recipe), names("gpu", gpu), tp, ep, pp, context, batch, kv, tables
        )
        return estimate(self.place, asked)

    def to(self, codec: str = KEEP, **options: Unpack[ConversionOptions]) -> Conversion:
        """A conversion to a format, or in the formats that are stored; `ConversionOptions` lists the options.

        Nothing is done yet.

        Raises:
            UsageError: an unknown format, recipe or layout, or a member of `only`, `skip` or `ranks` has a wrong type.
            TypeError: an unknown option.
        """
        return Conversion(self, request_of(codec, options))

    def shard(self, codec: str = KEEP, **options: Unpack[ConversionOptions]) -> Conversion:
        """A conversion that shards the checkpoint: `tp`, `ep` and `pp` are its sizes, `layout` that of the ranks.

        Raises:
            UsageError, TypeError: as `to`, or no size is given.
        """
        if not any(options.get(name) for name in ("tp", "ep", "pp")):
            hint = "give tp=N, ep=N or pp=N, or several of them"
            raise UsageError("shard: the number of ranks is missing", hint=hint)
        return self.to(codec, **options)

    def slice(
        self,
        *,
        layers: Iterable[int] | None = None,
        experts: int | Iterable[int] | str | os.PathLike[str] | None = None,
        mtp: bool | str | None = None,
        copy_to_drafter: bool = False,
        to: str = KEEP,
    ) -> Conversion:
        """A conversion that cuts a small working checkpoint, as `dsctl slice` does.

        `layers` are numbers, and `experts` numbers, how many of the first to keep, or the file of a plan; None keeps
        all. `mtp` is keep, drop or only, or a bool for the first two; None keeps the drafter if all layers are kept.
        `copy_to_drafter` prunes the drafter's layers with a plan's lists of the last main layers.

        Raises:
            UsageError: an unknown format, or layers and experts that are not numbers. SourceError, FormatError: the
                plan cannot be read.
        """
        plan = read_plan(os.fspath(experts)) if isinstance(experts, str | os.PathLike) else None
        kept = range(experts) if isinstance(experts, int) else () if plan or experts is None else experts
        chosen = numbers("experts", kept)  # type: ignore[arg-type]
        if experts is not None and not chosen and plan is None:
            raise UsageError("experts: at least one must be kept", hint="leave experts out to keep all")
        drafter = None if mtp is None else chosen_drafter(mtp)
        part = Part(None if layers is None else numbers("layers", layers), chosen, drafter, plan, copy_to_drafter)
        request = replace(request_of(to, {"shard_size": SHARD_BYTES, "keep_scales": False}), mtp=KEPT)
        return Conversion(self, request, part)

    def graft(
        self, others: Mapping[Source | str, str | Iterable[str]], *, forms: str = OWN, **options: Unpack[GraftOptions]
    ) -> Conversion:
        """A conversion that puts parameters of other checkpoints in the place of this one's, as `dsctl graft` does.

        `others` has one glob or several for each of them; of two that name the same parameter the later one counts.
        `forms` are own, or base for those of this checkpoint. Raises UsageError without a glob, or for other `forms`.
        """
        named = tuple((_place(other), globs("graft", given)) for other, given in others.items())
        return Conversion(self, graft_request(named, forms, **options), grafts=named)

    def download(
        self,
        target: str | os.PathLike[str] | None = None,
        *,
        only: str | Iterable[str] = (),
        include: str | Iterable[str] = (),
        exclude: str | Iterable[str] = (),
    ) -> Source:
        """Download a release or a repository, compare its files with the hub's digests, and return the copy.

        `include` and `exclude` choose files; without a target they go to the hub's cache. `only` chooses parameters:
        just these are read, and written as a small checkpoint. All of them are one glob or several.

        Raises:
            UsageError: not a release or repository; `only` without a target or with `include`.
            SourceError: the hub does not have it. VerifyFailed: a file is different from the hub's. PlanError: the
                disk has no room, or no file or parameter is left.
        """
        from dsctl.stores.download import download, order

        repository = repository_of(self.place)
        only, include, exclude = globs("only", only), globs("include", include), globs("exclude", exclude)
        if only:
            if include or exclude or target is None:
                hint = "name a target folder, and leave out include and exclude"
                raise UsageError("only: needs a target, and cannot be combined with include or exclude", hint=hint)
            Source(SCHEME + repository.removeprefix(SCHEME)).to(only=only).run(target)
            return Source(os.fspath(target))
        ordered = order(repository, None if target is None else Path(target), include, exclude)
        download(ordered)
        return Source(str(ordered.place))


@dataclass(frozen=True)
class Conversion:
    """A source, its part or other sources, and a request; `plan` names every byte of the output, `run` writes it."""

    source: Source
    request: Request
    part: Part | None = None
    grafts: Sources = ()

    def __repr__(self) -> str:
        cut = "slice of " if self.part else ""
        return f"<Conversion of {cut}{shortened(self.source.place)}, {self.request.towards}>"

    def __str__(self) -> str:
        """Return the plan as text, which `print` shows. Reads headers."""
        return str(self.plan)

    def _repr_html_(self) -> str:
        """Return the plan as HTML for a notebook. Reads headers."""
        return self.plan._repr_html_()

    @cached_property
    def plan(self) -> Plan:
        """Steps, files, sizes, and the parameters that are left out and why. No weight is read.

        Raises:
            SourceError, FormatError: the source. PlanError: the request cannot be carried out on it.
        """
        return make_plan(*(self.part.of(self.source.checkpoint, self.request) if self.part else self._opened))

    @cached_property
    def _opened(self) -> Opened:
        return with_places(grafted(self.source.checkpoint, self.grafts), self.request)

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
        digest: str = "blake3",
        staging: int | None = None,
        public: bool = False,
        report: Callable[[Event], None] = lambda event: None,
    ) -> Result:
        """Carry the plan out, or resume an interrupted run, and return the result with the audit of `dsctl.json`.

        `workers` and `max_memory` (bytes, all processes together) default to what the machine has; with several
        workers the calling script needs the `if __name__ == "__main__":` that multiprocessing asks for. The other
        settings are those of `dsctl convert`; `staging` is in bytes.

        Raises:
            UsageError: an unknown engine, device or digest, a setting without effect, a number below 1.
            PlanError, ResumeError: the target holds different work, or has no room. FormatError: a scale is impossible.
            SourceError, WorkError: reading or writing failed; the same call resumes.
        """
        from dsctl.run.carry_out import carry_out, set_up
        from dsctl.run.how import How

        how = How(workers, max_memory, engine, address, device, force, False, digest, staging, public)
        setup = set_up(self.plan, self._opened[0].store, os.fspath(target), how)
        return Result(setup.target, carry_out(setup, report).audit)


def _place(source: Source | str | os.PathLike[str]) -> str:
    return source.place if isinstance(source, Source) else os.fspath(source)
