"""`dsctl plan`: the disk, memory and ranks that a checkpoint needs, from its description alone."""

from __future__ import annotations

from typing import Annotated

import typer

from dsctl import models
from dsctl.cli import completion
from dsctl.cli.conversion_options import CopyToDrafter, KeptExperts
from dsctl.cli.groups import PrintOptions, RankOptions, SliceOptions, verb
from dsctl.cli.options import Html, Local, Remote
from dsctl.cli.parts import part_of
from dsctl.cli.sizing import Gpu, MustFit, Reserved, ServingOptions, accelerators
from dsctl.cli.sources import located
from dsctl.core.errors import PlanError, UsageError
from dsctl.layouts.ranks import Ranks
from dsctl.look.capacity import STORED, USUAL_TP, Cache, check, check_formats
from dsctl.look.capacity import formats as wanted_formats
from dsctl.look.description import Description, require_model
from dsctl.look.fitting import Must, Reserve, Subject
from dsctl.look.pruned import without_experts
from dsctl.look.source import describe
from dsctl.plan.recipes import recipe as named_recipe
from dsctl.show.audits import warn
from dsctl.show.capacity import sections
from dsctl.show.capacity_facts import Considered, as_json
from dsctl.show.drawing import ready, save
from dsctl.show.fits import spread_words, unmet
from dsctl.show.sections import show

Source = Annotated[
    str,
    typer.Argument(
        metavar="SRC", autocompletion=completion.sources, help="A checkpoint folder or a release, such as v3.2."
    ),
]
To = Annotated[
    list[str] | None,
    typer.Option(
        "--to",
        metavar="FORMAT",
        autocompletion=completion.formats,
        help="Consider this format, such as bf16; repeatable.",
    ),
]
Recipe = Annotated[
    list[str] | None,
    typer.Option(
        "--recipe",
        metavar="NAME|FILE",
        autocompletion=completion.recipes,
        help="Consider this recipe, with its bytes per role; repeatable.",
    ),
]


@verb
def plan(
    source: Source,
    *,
    ranks: RankOptions,
    to: To = None,
    recipe: Recipe = None,
    experts: KeptExperts = None,
    copy_to_drafter: CopyToDrafter = False,
    gpu: Gpu = None,
    reserve: Reserved = None,
    must_fit: MustFit = None,
    serving: ServingOptions,
    remote: Remote = False,
    local: Local = False,
    html: Html = None,
    printing: PrintOptions,
) -> None:
    """Estimate disk, memory per rank and KV cache, and check which sizes of TP, EP and PP are possible.

    Reads headers or the built-in description of a release, never weights. Writes nothing.

    Exits 30 if no considered format can be split over the given --tp, --ep and --pp. Exits 50 if --must-fit is not met.

    Examples:

        dsctl plan v3.2

        dsctl plan v3.2 --tp 8 --ep 8 --context 128k --batch 16 --gpu h200

        dsctl plan r1 --tp 32 --to bf16

        dsctl plan v3.2 --must-fit h200x8

        dsctl plan v3.2 --recipe int4-experts-fp8 --tp 8

        dsctl plan v4-flash-0731 --experts reap_plan.json --copy-to-drafter --gpu h100

        dsctl plan v3.2 --html v3.2-plan.html
    """
    if html is not None:
        ready(html, (source,))
    serving.check()
    check_formats(to or ())
    part = part_of(SliceOptions(experts=experts, copy_to_drafter=copy_to_drafter))
    recipes = tuple(map(named_recipe, recipe or ()))
    warn((one.note for one in recipes), printing.output())
    devices, demands = accelerators(gpu), list(must_fit or ())
    form = _must_format([*(to or ()), *(one.name for one in recipes)]) if demands else STORED
    description = describe(located(source, remote, local))
    if not description.known:
        what = "the architecture is unknown, so splits and caches cannot be computed"
        raise UsageError(f"{source}: {what}", hint=models.known())
    require_model(description)
    if part.experts or part.plan is not None:
        description, notes = without_experts(description, part)
        for note in notes:
            printing.output().note(note)
    spreads, exact = _spreads(description, ranks)
    if exact:
        _check_counts(demands, spreads[0])
    cache = Cache.of(description, serving.context, serving.batch, serving.kv)
    formats = wanted_formats(description, tuple(to or ()), recipes)
    kept = reserve or Reserve()
    facts = as_json(
        description, Considered(formats, spreads, cache, devices, kept, demands, form, exact, serving.tables)
    )
    output, found = printing.output(), list(sections(description, facts, [one.name for one in recipes], not gpu))
    output.data(facts)
    show(found, output)
    if html is not None:
        from dsctl.show.pages.capacity import capacity

        save(capacity(facts, description.origin.sentence, found[1:]), html)
    cut = [one["ranks"][0] for one in facts["formats"].values() if exact and one["ranks"][0]["cuts"]]
    if cut and len(cut) == len(formats):
        sizes = {name: Subject.of(description, one, cache, kept).sizes(spreads[0].ep) for name, one in formats.items()}
        work = "; ".join(f"{name}: {', '.join(map(str, fits)) or 'none'}" for name, fits in sizes.items())
        reasons = ", ".join(dict.fromkeys(one["why"] for one in cut[0]["cuts"]))
        what = f"{description.name}: cannot be split over {spread_words(cut[0])}: {reasons}"
        raise PlanError(what, hint=f"--tp sizes that work: {work}")
    failed = unmet(facts)
    if failed:
        raise failed


def _spreads(description: Description, sizes: RankOptions) -> tuple[list[Ranks], bool]:
    """The numbers of ranks to consider, and whether a person gave them: one if so, else the usual ones."""
    if not any((sizes.tp, sizes.ep, sizes.pp)):
        return [Ranks(number) for number in USUAL_TP], False
    asked = Ranks(sizes.tp or 1, sizes.ep or 1, sizes.pp or 1)
    check(description, asked)
    return [asked], True


def _must_format(names: list[str]) -> str:
    """The format to which --must-fit applies: the given one, or as stored."""
    if len(names) > 1:
        raise UsageError(f"--must-fit: {len(names)} formats are given", hint="give at most one --to or --recipe")
    return names[0] if names else STORED


def _check_counts(demands: list[Must], ranks: Ranks) -> None:
    """Refuse a demand for a different number of accelerators than there are ranks."""
    for one in demands:
        if one.number != ranks.world:
            given = f"--tp {ranks.tp}, --ep {ranks.ep} and --pp {ranks.pp} make {ranks.world}"
            raise UsageError(
                f"--must-fit {one.text}: is for {one.number} ranks, but {given}",
                hint="give matching sizes, or leave all of them out to try every split",
            )
