"""`dsctl inspect`: show the contents of a checkpoint."""

from __future__ import annotations

from typing import Annotated

import typer

from dsctl.cli import completion
from dsctl.cli.groups import PrintOptions, verb
from dsctl.cli.options import Html, Local, Remote
from dsctl.cli.sources import located
from dsctl.show.drawing import ready, save
from dsctl.show.sections import show

Looked = Annotated[
    str,
    typer.Argument(
        metavar="SRC",
        autocompletion=completion.sources,
        help="A checkpoint folder, a .safetensors file, a release or a Hub repository.",
    ),
]
Glob = Annotated[str | None, typer.Argument(metavar="[GLOB]", help="With --tensors: list only names that match.")]
Tensors = Annotated[bool, typer.Option("--tensors", help="List the stored tensors.")]
Folded = Annotated[bool, typer.Option("--fold", help="Group tensors that differ only in layer or expert number.")]
AsTree = Annotated[bool, typer.Option("--tree", help="Draw where the bytes are, from embedding to head.")]
Files = Annotated[bool, typer.Option("--files", help="List every file.")]


@verb
def inspect(
    source: Looked,
    glob: Glob = None,
    *,
    tensors: Tensors = False,
    fold: Folded = False,
    files: Files = False,
    tree: AsTree = False,
    remote: Remote = False,
    local: Local = False,
    html: Html = None,
    printing: PrintOptions,
) -> None:
    """Show the contents of a checkpoint, from its headers alone.

    Problems are printed to stderr. A release named by its alias is described from built-in data, offline.

    Examples:

        dsctl inspect ./DeepSeek-V3.2

        dsctl inspect v3.2 --json

        dsctl inspect ./DeepSeek-V3.2 --tensors '*.indexer.*' --fold

        dsctl inspect v3.2 --tree

        dsctl inspect v3.2 --html v3.2.html
    """
    if html is not None:
        ready(html, (source,))
    from dsctl.look.inspection import inspect as look
    from dsctl.show.inspection import as_json, drawn_tree, sections, show_tensors, warn_of_faults

    output, seen = printing.output(), look(located(source, remote, local))
    wanted = (glob or "*") if tensors or fold or glob else None
    if output.json:
        output.data(as_json(seen, wanted, fold))
    elif tree:
        output.text(drawn_tree(seen))
    elif wanted is None:
        show(sections(seen, files), output)
    else:
        show_tensors(seen, wanted, fold, output)
    if html is not None:
        from dsctl.show.pages.inspection import inspection

        save(inspection(seen, sections(seen)[1:]), html)
    if not output.quiet:
        warn_of_faults(seen.faults, output)
