"""From options to a request, and to how it is carried out. All options are checked here, before any file is opened."""

from __future__ import annotations

from dataclasses import replace

from dsctl.cli.groups import FormatOptions, LayoutOptions, PartOptions, RankOptions, RunOptions, SpreadOptions
from dsctl.cli.options import parse_numbers
from dsctl.codecs import CODECS
from dsctl.core.choices import choose
from dsctl.core.errors import UsageError
from dsctl.core.extras import require_torch
from dsctl.layouts import usual_ep
from dsctl.plan.experts import placement
from dsctl.plan.recipes import recipe
from dsctl.plan.request import DROPPED, KEEP, KEPT, PUBLISHED, RECIPE, USUAL, Request, refuse_idle
from dsctl.plan.spread import known_layout
from dsctl.run.how import How

_SHORT = {"fp8": "fp8-block", "fp16": "f16", "fp32": "f32"}


def drafter(mtp: str | None, no_mtp: bool) -> str | None:
    """Return the choice for the drafter, from --mtp and its shorthand; None if neither is given.

    Raises:
        UsageError: they contradict each other.
    """
    if no_mtp and mtp not in (None, DROPPED):
        raise UsageError(f"--mtp {mtp} and --no-mtp exclude each other", hint="give one of them")
    return DROPPED if no_mtp else mtp


def converted(formats: FormatOptions, part: PartOptions) -> Request:
    """Return the request for these formats and this part; without a format, parameters stay as they are stored.

    Raises:
        UsageError: an unknown format or recipe, or several of them.
    """
    format_ = choose_format(formats.to, formats.bf16, formats.fp8)
    chosen = recipe(formats.recipe) if formats.recipe else None
    rules = tuple((rule.role, rule.match, rule.format) for rule in chosen.rules) if chosen else ()
    if rules and format_:
        raise UsageError(f"--recipe and {format_} exclude each other", hint="a recipe names every format itself")
    return Request(
        to=RECIPE if rules else format_ or KEEP,
        rules=rules,
        scale_fmt=formats.scale_fmt,
        shard_size=formats.shard_size,
        allow_inexact=formats.allow_inexact,
        only=tuple(part.only or ()),
        skip=tuple(part.skip or ()),
        mtp=drafter(part.mtp, part.no_mtp) or KEPT,
        notes=(chosen.note,) if chosen and chosen.note else (),
        allow_missing=part.allow_missing,
        allow_extra=part.allow_extra,
    )


def laid_out(request: Request, options: LayoutOptions) -> Request:
    """Return the request in this layout.

    Raises:
        UsageError: there is no such layout.
    """
    chosen = replace(request, layout=options.layout, recode=options.recode)
    known_layout(chosen)
    return chosen


def spread(request: Request, sizes: RankOptions, which: SpreadOptions, asked: bool) -> Request:
    """Return the request sharded over ranks; `asked`: its choice for the drafter was made, and is not the usual one.

    Raises:
        UsageError: no size, sizes that contradict each other or the layout, or a wrong list of ranks or experts.
    """
    if not any((sizes.tp, sizes.ep, sizes.pp)):
        raise UsageError("the number of ranks is missing", hint="give --tp N, --ep N or --pp N, or several of them")
    tp = sizes.tp or 1
    ep = sizes.ep or usual_ep(request.layout, tp)
    if which.expert_map and ep == 1:
        raise UsageError("--expert-map: one part would have all experts", hint="set the number of parts with --ep N")
    if asked and request.mtp != DROPPED and request.layout == "vllm":
        raise UsageError(f"--mtp {request.mtp}: layout vllm does not support the drafter", hint="leave --mtp out")
    return replace(
        request,
        tp=tp,
        ep=ep,
        pp=sizes.pp or 1,
        ranks=parse_numbers(which.rank, "--rank", "ranks"),
        mtp=request.mtp if asked else USUAL,
        placed=placement(which.expert_map) if which.expert_map else (),
    )


def judged(request: Request, options: RunOptions) -> How:
    """Return how a request is carried out; options that would have no effect on it are refused.

    Raises:
        UsageError: an option has a value that it cannot have, or does nothing here.
        PlanError: torch is not installed, and this is not a dry run.
    """
    refuse_idle(request)
    how = How(
        options.workers,
        options.max_memory,
        options.engine,
        options.address or "",
        options.device,
        options.force,
        _twice(options.consume),
        options.digest,
        options.staging,
        options.public,
    )
    if not options.dry_run:
        require_torch("writing weights")
    return how


def choose_format(to: str | None, bf16: bool, fp8: bool = False) -> str | None:
    """Return the format of --to and its shorthands, or None.

    Raises:
        UsageError: there is more than one, or it is unknown.
    """
    chosen = [name for name, asked in (("bf16", bf16), ("fp8-block", fp8), (to or "", bool(to))) if asked]
    if len(set(chosen)) > 1:
        raise UsageError(f"several target formats: {', '.join(chosen)}", hint="give one of them")
    if not chosen:
        return None
    name = _SHORT.get(chosen[0], chosen[0])
    return choose(name, (*CODECS, PUBLISHED), "format", "--to")


def _twice(consume: int) -> bool:
    """Whether the source is deleted: --consume must be given twice, because it cannot be undone."""
    if consume == 1:
        raise UsageError("--consume deletes the source's weight files for good", hint="pass it twice to confirm")
    return consume > 1
