"""`dsctl plan`: what it takes to hold and serve a checkpoint, from its description alone."""

from __future__ import annotations

from typing import Annotated

import typer

from dsctl.cli.groups import PrintOptions, RankOptions, verb
from dsctl.cli.options import Html, Local, Remote
from dsctl.cli.sources import located
from dsctl.core.errors import UsageError
from dsctl.layouts.ranks import Ranks
from dsctl.look.accelerators import ACCELERATORS, accelerator
from dsctl.look.capacity import USUAL_TP, Cache, check, check_formats
from dsctl.look.capacity import formats as wanted_formats
from dsctl.look.costs import CACHE_FORMATS
from dsctl.look.description import Description
from dsctl.look.source import describe
from dsctl.plan.recipes import recipe as named_recipe
from dsctl.show.capacity import sections
from dsctl.show.capacity_facts import Considered, as_json
from dsctl.show.drawing import ready, save
from dsctl.show.sections import show

Source = Annotated[str, typer.Argument(metavar="SRC", help="A checkpoint folder or a release, such as v3.2.")]
To = Annotated[
    list[str] | None, typer.Option("--to", metavar="FORMAT", help="A format to consider, such as bf16; repeatable.")
]
Recipe = Annotated[
    list[str] | None,
    typer.Option("--recipe", metavar="NAME|FILE", help="A recipe to consider, with its bytes per role; repeatable."),
]
Gpu = Annotated[
    list[str] | None, typer.Option("--gpu", metavar="NAME", help="h100, h200, b200, mi300x, ...; repeatable.")
]
Context = Annotated[
    int | None,
    typer.Option("--context", metavar="N", min=1, max=1 << 32, help="Tokens per sequence [the published context]."),
]
Batch = Annotated[int, typer.Option("--batch", metavar="N", min=1, max=1 << 20, help="Sequences at a time.")]
Kv = Annotated[
    str | None,
    typer.Option("--kv", metavar="FORMAT", help="Format of the KV cache: bf16 or fp8 [bf16; fp8 for V4]."),
]


@verb
def plan(
    source: Source,
    *,
    ranks: RankOptions,
    to: To = None,
    recipe: Recipe = None,
    gpu: Gpu = None,
    context: Context = None,
    batch: Batch = 1,
    kv: Kv = None,
    remote: Remote = False,
    local: Local = False,
    html: Html = None,
    printing: PrintOptions,
) -> None:
    """Estimate disk, memory per rank and KV cache, and check which sizes of TP, EP and PP are possible.

    Weights are not read; nothing is written.

    Examples:

        dsctl plan v3.2

        dsctl plan v3.2 --tp 8 --ep 8 --context 131072 --batch 16 --gpu h200

        dsctl plan r1 --tp 32 --to bf16

        dsctl plan v3.2 --recipe w4a8-experts --tp 8

        dsctl plan v3.2 --html v3.2-plan.html
    """
    if html is not None:
        ready(html, (source,))
    if kv is not None and kv not in CACHE_FORMATS:
        raise UsageError(f"--kv: {kv!r} is unknown", hint=" or ".join(CACHE_FORMATS))
    check_formats(to or ())
    recipes = tuple(map(named_recipe, recipe or ()))
    accelerators = [accelerator(name) for name in gpu] if gpu else list(ACCELERATORS.values())
    description = describe(located(source, remote, local))
    if not description.known:
        raise UsageError(f"{source}: its architecture is unknown, so that nothing can be said of cuts and caches")
    spread, cache = _spread(description, ranks), Cache.of(description, context, batch, kv)
    formats = wanted_formats(description, tuple(to or ()), recipes)
    facts = as_json(description, Considered(formats, spread, cache, accelerators))
    output, found = printing.output(), list(sections(description, facts, [one.name for one in recipes]))
    output.data(facts)
    show(found, output)
    if html is not None:
        from dsctl.show.pages.capacity import capacity

        save(capacity(facts, description.origin.sentence, found[1:]), html)


def _spread(description: Description, sizes: RankOptions) -> list[Ranks]:
    """The numbers of ranks to weigh: those that are asked for, or the usual ones."""
    if not any((sizes.tp, sizes.ep, sizes.pp)):
        return [Ranks(number) for number in USUAL_TP]
    asked = Ranks(sizes.tp or 1, sizes.ep or 1, sizes.pp or 1)
    check(description, asked)
    return [asked]
