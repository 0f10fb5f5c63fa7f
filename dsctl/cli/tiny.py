"""`dsctl tiny`: make a small checkpoint of a release."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsctl.checkpoint.origin import Origin
from dsctl.cli import completion
from dsctl.cli.groups import PrintOptions, verb
from dsctl.cli.options import Target, parse_size
from dsctl.releases import find
from dsctl.show.bars import reading
from dsctl.show.output import Output, count, plural, span
from dsctl.show.output import size as shown_size

if TYPE_CHECKING:
    from dsctl.tiny import Made


def _size(name: str, help_: str, at_least: int = 1, at_most: int = 1 << 20) -> Any:
    return typer.Option(f"--{name}", metavar="N", min=at_least, max=at_most, help=help_)


Release = Annotated[
    str,
    typer.Argument(
        metavar="RELEASE", autocompletion=completion.releases, help="A release by any of its names, such as v3.2."
    ),
]
Layers = Annotated[
    int | None, _size("layers", "Set the number of layers without MTP; the first is dense. [default: 3]", 2, 4096)
]
Experts = Annotated[
    int | None, _size("experts", "Set the number of routed experts per layer. [default: 8]", 2, 1 << 16)
]
Hidden = Annotated[int | None, _size("hidden", "Set the hidden size. [default: 512]")]
Heads = Annotated[int | None, _size("heads", "Set the number of attention heads. [default: 4]")]
Vocab = Annotated[int | None, _size("vocab", "Set the vocabulary size. [default: 2048]", 4)]
Intermediate = Annotated[int | None, _size("intermediate", "Set the width of a dense MLP. [default: 1024]")]
MoeIntermediate = Annotated[int | None, _size("moe-intermediate", "Set the width of an expert. [default: 256]")]
Size = Annotated[
    str | None,
    typer.Option("--size", metavar="SIZE", help="Grow the sizes that you leave open to about this total, such as 2GB."),
]
Shards = Annotated[
    int | None, _size("shards", "Set the number of weight files. [default: 4, or more to keep each under 4.3 GB]")
]
Seed = Annotated[
    int, typer.Option("--seed", metavar="N", min=0, show_default=False, help="Set the random seed of the weights.")
]
NoMtp = Annotated[bool, typer.Option("--no-mtp", help="Leave out the MTP layer (multi-token prediction).")]
Bf16 = Annotated[bool, typer.Option("--bf16", help="Store all weights in BF16.")]
Aligned = Annotated[
    bool,
    typer.Option("--aligned", help="Use whole 128x128 blocks only, for loaders that get partial blocks wrong."),
]


@dataclass(frozen=True, slots=True)
class SizeOptions:
    """The sizes of the small model; sizes that are None are chosen."""

    layers: Layers = None
    experts: Experts = None
    hidden: Hidden = None
    heads: Heads = None
    vocab: Vocab = None
    intermediate: Intermediate = None
    moe_intermediate: MoeIntermediate = None


@verb
def tiny(
    release: Release,
    target: Target,
    *,
    sizes: SizeOptions,
    size: Size = None,
    shards: Shards = None,
    seed: Seed = 0,
    no_mtp: NoMtp = False,
    bf16: Bf16 = False,
    aligned: Aligned = False,
    printing: PrintOptions,
) -> None:
    """Make a small checkpoint of a release, with random weights.

    Names, dtypes, config keys and files are those of the release. The same command always writes the same bytes. The
    result has about 30 MB unless you set sizes.

    Examples:

        dsctl tiny v3.2 small

        dsctl tiny r1 larger --size 200MB --seed 7

        dsctl tiny v3 plain --layers 2 --experts 4 --bf16
    """
    from dsctl.tiny import make_planned
    from dsctl.tiny.blueprint import TinyRecipe, blueprint

    recipe = TinyRecipe(
        **asdict(sizes),
        size=parse_size(size, "--size"),
        shards=shards,
        seed=seed,
        mtp=not no_mtp,
        bf16=bf16,
        aligned=aligned,
    )
    plan, output = blueprint(release, recipe), printing.output()
    began = time.monotonic()
    with reading(output, plan.nbytes, "making") as advance:
        made = make_planned(plan, target, seed, advance, workers=None)
    seconds = time.monotonic() - began
    origin = Origin.of_release(find(made.release))
    output.data(made._asdict() | {"seed": seed, "origin": origin._asdict()})
    _show(made, output)
    # The line goes with the bar: what a pipe receives does not depend on the speed.
    if output.err.is_terminal and not made.present:
        output.note(f"wrote {shown_size(made.nbytes)} in {span(seconds)}: {shown_size(made.nbytes / seconds)}/s")
    if origin.derived:
        output.note(f"from {origin.text}")


def _show(made: Made, output: Output) -> None:
    what = f"{made.parameters:,} parameters, {count(made.values)} values"
    files = f"{plural(len(made.files), 'weight file')}, {shown_size(made.nbytes)}"
    done = "already made" if made.present else "made"
    output.text((done, "green"), f": tiny {made.release} with {what}, {files} in {made.folder}")
