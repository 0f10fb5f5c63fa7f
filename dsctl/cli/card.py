"""`dsctl card`: print the stub of a model card."""

from __future__ import annotations

from typing import Annotated

import typer

from dsctl.cli.groups import PrintOptions, verb
from dsctl.cli.options import Source
from dsctl.look.card import card as facts
from dsctl.show.cards import as_json, markdown
from dsctl.stores import store_at

BaseModel = Annotated[
    str | None,
    typer.Option(
        "--base-model", metavar="ORG/NAME", help="Use this as the source's repository, if the folder does not name it."
    ),
]


@verb
def card(source: Source, *, base_model: BaseModel = None, printing: PrintOptions) -> None:
    """Print a stub of a model card for a folder that dsctl made.

    Markdown on stdout, from dsctl.json and dsctl.intoto.json: base model, format, sizes, audit, how to check it. The
    base model is never guessed: without a repository on a hub as source, name it with --base-model. Writes nothing: the
    README.md that was copied from the source stays.

    Examples:

        dsctl card ./DeepSeek-V3.2-bf16

        dsctl card ./DeepSeek-V3.2-bf16 --base-model deepseek-ai/DeepSeek-V3.2 > card.md
    """
    output, found = printing.output(), facts(store_at(source), base_model or "")
    output.data(as_json(found))
    for line in markdown(found).splitlines():
        output.text(line)
