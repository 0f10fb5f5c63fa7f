"""`dsctl plan`: what it takes to hold and serve a checkpoint, from its description alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsctl.cli.options import Debug, Html, Json, Local, Quiet, Remote, located
from dsctl.core.errors import UsageError
from dsctl.show.output import Output, plural, size

if TYPE_CHECKING:
    from dsctl.layouts.ranks import Ranks
    from dsctl.look.accelerators import Accelerator
    from dsctl.look.capacity import Cache, Load
    from dsctl.look.description import Description
    from dsctl.plan.formats import Formats
    from dsctl.show.sections import Section

Source = Annotated[str, typer.Argument(metavar="SRC", help="A checkpoint folder or a release, such as v3.2.")]


def _ranks(name: str, what: str) -> Any:
    return typer.Option(f"--{name}", metavar="N", min=1, max=4096, help=f"{what} parallel ranks.")


Tp = Annotated[int | None, _ranks("tp", "Tensor")]
Ep = Annotated[int | None, _ranks("ep", "Expert")]
Pp = Annotated[int | None, _ranks("pp", "Pipeline")]
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
Kv = Annotated[str, typer.Option("--kv", metavar="FORMAT", help="How the cache keeps latents: bf16 or fp8.")]


def plan(
    source: Source,
    tp: Tp = None,
    ep: Ep = None,
    pp: Pp = None,
    to: To = None,
    recipe: Recipe = None,
    gpu: Gpu = None,
    context: Context = None,
    batch: Batch = 1,
    kv: Kv = "bf16",
    remote: Remote = False,
    local: Local = False,
    json: Json = False,
    quiet: Quiet = False,
    html: Html = None,
    debug: Debug = False,
) -> None:
    """Show what it takes to hold and serve a checkpoint: disk, bytes per rank, cache, and which cuts go through blocks.

    Weights are not read; nothing is written.

    Examples:

        dsctl plan v3.2

        dsctl plan v3.2 --tp 8 --ep 8 --context 131072 --batch 16 --gpu h200

        dsctl plan r1 --tp 32 --to bf16

        dsctl plan v3.2 --recipe w4a8-experts --tp 8

        dsctl plan v3.2 --html v3.2-plan.html
    """
    from dsctl.layouts.ranks import Ranks
    from dsctl.look.accelerators import ACCELERATORS, accelerator
    from dsctl.look.capacity import USUAL_TP, Cache, check, formats
    from dsctl.look.costs import CACHE_FORMATS
    from dsctl.look.source import describe
    from dsctl.plan import recipes
    from dsctl.show.sections import show

    if html is not None:
        from dsctl.show.drawing import ready

        ready(html, (source,))
    if kv not in CACHE_FORMATS:
        raise UsageError(f"--kv: {kv!r} is unknown", hint=" or ".join(CACHE_FORMATS))
    asked = any((tp, ep, pp))
    wanted = [accelerator(name) for name in gpu] if gpu else list(ACCELERATORS.values())
    description = describe(located(source, remote, local))
    if not description.known:
        raise UsageError(f"{source}: its architecture is unknown, so that nothing can be said of cuts and caches")
    spread = [Ranks(tp or 1, ep or 1, pp or 1)] if asked else [Ranks(number) for number in USUAL_TP]
    for ranks in spread if asked else ():
        check(description, ranks)
    kept = Cache.of(description, context, batch, kv)
    asked_recipes = tuple(map(recipes.recipe, recipe or ()))
    facts = figures(description, formats(description, tuple(to or ()), asked_recipes), spread, kept, wanted)
    output = Output(json, quiet)
    sections = list(_sections(description, facts, tuple(one.name for one in asked_recipes)))
    output.data(facts)
    show(sections, output)
    if html is not None:
        from dsctl.show.drawing import save
        from dsctl.show.pages.capacity import capacity

        save(capacity(facts, description.origin.sentence, sections[1:]), html)


def figures(
    description: Description,
    wanted_formats: dict[str, Formats],
    spread: list[Ranks],
    cache: Cache,
    wanted: list[Accelerator],
) -> dict[str, Any]:
    """Every number of the report, as stable JSON: docs/costs.md says what is in it."""
    from dsctl.look.capacity import disk, load, roles

    formats = {
        name: {
            "disk_bytes": disk(description, codec),
            "roles": roles(description, codec),
            "ranks": [
                _rank_json(load(description, ranks, codec, cache)) | {"cuts": _cuts_json(description, ranks, codec)}
                for ranks in spread
            ],
        }
        for name, codec in wanted_formats.items()
    }
    return {
        "source": description.name,
        "origin": description.origin._asdict(),
        "values": description.values,
        "active_values": description.active_values,
        "context": cache.context,
        "context_from": cache.why,
        "published_context": description.published_context,
        "max_position_embeddings": description.positions,
        "batch": cache.batch,
        "cache": _cache_json(cache),
        "formats": formats,
        "accelerators": [_accelerator_json(one, formats) for one in wanted],
    }


def _rank_json(load: Load) -> dict[str, Any]:
    ranks = load.ranks
    sizes = {"tp": ranks.tp, "ep": ranks.ep, "pp": ranks.pp, "world": ranks.world}
    return sizes | {"weights_bytes": load.weights, "cache_bytes": load.cache, "bytes": load.nbytes}


def _cuts_json(description: Description, ranks: Ranks, codec: Formats) -> list[dict[str, Any]]:
    from dsctl.look.capacity import cuts

    return [cut._asdict() for cut in cuts(description, ranks, codec)]


def _cache_json(cache: Cache) -> dict[str, Any] | None:
    attention, tokens = cache.attention, cache.context * cache.batch
    if attention is None:
        return None
    return {
        "format": cache.format,
        "latent_bytes_per_token": attention.cache_bytes(cache.format),
        "index_bytes_per_token": attention.index_bytes(),
        "latent_bytes": attention.cache_bytes(cache.format) * tokens,
        "index_bytes": attention.index_bytes() * tokens,
    }


def _accelerator_json(one: Accelerator, formats: dict[str, Any]) -> dict[str, Any]:
    """An accelerator, and by format the first spread that it holds: bytes left on the fullest rank.

    A spread with cuts that cannot be made does not count: `why` is cuts where all are such, whatever their bytes.
    """
    fits: dict[str, Any] = {}
    for name, facts in formats.items():
        whole = [rank for rank in facts["ranks"] if not rank["cuts"]]
        held = [rank for rank in whole if rank["bytes"] <= one.memory]
        best = min(held, key=lambda rank: rank["world"]) if held else None
        short = max(0, min(rank["bytes"] for rank in whole or facts["ranks"]) - one.memory)
        fits[name] = (
            {
                "fits": True,
                **{key: best[key] for key in ("tp", "ep", "pp", "world")},
                "left_bytes": one.memory - best["bytes"],
            }
            if best
            else {"fits": False, "why": "memory" if whole else "cuts", "short_bytes": short}
        )
    return {"name": one.name, "memory_bytes": one.memory, "source": one.source, "formats": fits}


def _sections(description: Description, facts: dict[str, Any], recipes: tuple[str, ...]) -> Iterator[Section]:
    from dsctl.show.sections import Section

    yield Section("", description.origin.sentence)
    yield _weights(description, facts)
    yield from (_roles(name, facts["formats"][name]["roles"]) for name in recipes)
    yield from _cache(facts)
    yield _accelerators(facts)
    yield _cuts(facts)


def _weights(description: Description, facts: dict[str, Any]) -> Section:
    from dsctl.show.sections import Column, Row, Section

    spreads = next(iter(facts["formats"].values()))["ranks"]
    columns = [Column("weights"), Column("disk", True)]
    first_to_go = {1: 2, 2: 1} if len(spreads) > 1 else {}
    columns += [Column(_spread(rank), True, first_to_go.get(rank["world"], 0)) for rank in spreads]
    rows = [
        Row((_format(name, description), size(of["disk_bytes"]), *(_held(rank) for rank in of["ranks"])))
        for name, of in facts["formats"].items()
    ]
    if any(rank["cuts"] for of in facts["formats"].values() for rank in of["ranks"]):
        rows.append(Row(("* cuts what must stay whole, see below",), "note"))
    values = f"{facts['values']:,} values, {facts['active_values']:,} active per token"
    return Section(description.name, values, tuple(columns), tuple(rows))


def _roles(name: str, roles: dict[str, dict[str, int]]) -> Section:
    from dsctl.show.sections import Column, Row, Section

    rows = [
        Row((role if not place else "", format_, size(nbytes)))
        for role, formats in roles.items()
        for place, (format_, nbytes) in enumerate(formats.items())
    ]
    columns = (Column("role"), Column("format"), Column("bytes", True))
    return Section(f"Recipe {name}", "what each role is stored as", columns, tuple(rows))


def _format(name: str, description: Description) -> str:
    from dsctl.look.capacity import STORED
    from dsctl.look.wording import form

    if name != STORED:
        return name
    forms = dict.fromkeys(form(group.codec) for group in description.known if group.family.quantizable)
    return f"{name}: {', '.join(forms)}"


def _spread(rank: dict[str, Any]) -> str:
    """TP 8; TP 8 EP 8 PP 2: parts that are 1 go unsaid."""
    sizes = [f"{word.upper()} {rank[word]}" for word in ("tp", "ep", "pp") if rank[word] > 1]
    return " ".join(sizes) or "1 rank"


def _held(rank: dict[str, Any]) -> str:
    return size(rank["weights_bytes"]) + ("*" if rank["cuts"] else "")


def _cache(facts: dict[str, Any]) -> Iterator[Section]:
    from dsctl.show.sections import Column, Row, Section

    cache = facts["cache"]
    if cache is None:
        return
    rows = [
        (f"KV cache, {cache['format']}", cache["latent_bytes_per_token"], cache["latent_bytes"]),
        ("indexer's keys, fp8", cache["index_bytes_per_token"], cache["index_bytes"]),
    ]
    tokens = f"{plural(facts['batch'], 'sequence')} of {facts['context']:,} tokens"
    columns = (Column(""), Column("per token", True), Column("all", True))
    shown = tuple(Row((name, f"{each:,} B", size(whole))) for name, each, whole in rows if each)
    yield Section("Cache", f"{tokens}; whole on every TP rank", columns, shown, tuple(_contexts(facts)))


def _contexts(facts: dict[str, Any]) -> Iterator[str]:
    """The published context and that of the config, both by their names."""
    published, positions = facts["published_context"], facts["max_position_embeddings"]
    told = [f"{published:,} tokens are published (model card)"] if published else []
    told += [f"config.json allows {positions:,} (max_position_embeddings)"] if positions else []
    default = "" if facts["context_from"] == "asked" else f"; --context is {facts['context']:,} unless given"
    if told:
        yield f"Context: {'; '.join(told)}{default}."


def _accelerators(facts: dict[str, Any]) -> Section:
    from dsctl.show.sections import Column, Row, Section

    names = list(facts["formats"])
    columns = (Column(""), Column("memory", True), *(Column(name, rank=n) for n, name in enumerate(names)))
    rows = tuple(
        Row((one["name"], size(one["memory_bytes"]), *(_fit(one["formats"][name]) for name in names)))
        for one in facts["accelerators"]
    )
    return Section("Fits on", "weights and cache; what is left must hold activations and buffers", columns, rows)


def _fit(fit: dict[str, Any]) -> str:
    if not fit["fits"]:
        return "no, cannot be cut so" if fit["why"] == "cuts" else f"no, {size(fit['short_bytes'])} short"
    return f"{_spread(fit)}, {size(fit['left_bytes'])} left"


def _cuts(facts: dict[str, Any]) -> Section:
    from dsctl.show.sections import Column, Row, Section

    rows = []
    for name, of in facts["formats"].items():
        found: dict[tuple[str, str], list[str]] = {}
        for template, (spreads, why) in _refused(of["ranks"]).items():
            short = template.removeprefix("model.layers.{layer}.").removesuffix(".weight")
            found.setdefault((spreads, why), []).append(short)
        rows += [Row((name, spreads, why, ", ".join(which))) for (spreads, why), which in found.items()]
    if not rows:
        return Section("Cuts", "all parts are whole heads and blocks")
    columns = (Column("format"), Column("ranks"), Column("each part"), Column("templates"))
    return Section("Cuts that cannot be made", "choose other sizes, or recode these", columns, tuple(rows))


def _refused(ranks: list[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    """By template: the spreads that cut it wrongly, and why the first of them does."""
    refused: dict[str, list[tuple[int, str]]] = {}
    for place, rank in enumerate(ranks):
        for cut in rank["cuts"]:
            refused.setdefault(cut["template"], []).append((place, cut["why"]))
    said = {}
    for template, found in refused.items():
        first, last = found[0][0], found[-1][0]
        names = [_spread(ranks[place]) for place, _ in found]
        run = len(found) == last - first + 1 > 2
        said[template] = (f"{names[0]} to {names[-1].removeprefix('TP ')}" if run else ", ".join(names), found[0][1])
    return said


def add_to(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(plan)
