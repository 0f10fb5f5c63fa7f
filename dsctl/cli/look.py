"""`dsctl inspect`: what a checkpoint is and what it holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from dsctl.cli.options import Debug, Html, Json, Local, Quiet, Remote, located
from dsctl.core.visible import visible
from dsctl.show.output import Output, count, plural, size

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.tree import Tree

    from dsctl.checkpoint.groups import Group
    from dsctl.checkpoint.pieces import Fault
    from dsctl.codecs.codec import Codec
    from dsctl.look.inspection import Fold, Inspection, Tensor
    from dsctl.show.sections import Section

FILES_SHOWN = 6
TREE_BAR = 40
FAULTS_SHOWN = 5

Looked = Annotated[
    str,
    typer.Argument(metavar="SRC", help="A checkpoint folder, a .safetensors file, a release or a hub repository."),
]
Glob = Annotated[str | None, typer.Argument(metavar="[GLOB]", help="With --tensors: only names that match.")]
Tensors = Annotated[bool, typer.Option("--tensors", help="List the stored tensors.")]
Folded = Annotated[bool, typer.Option("--fold", help="List tensors alike but for their numbers in one line.")]
AsTree = Annotated[bool, typer.Option("--tree", help="Draw where the bytes are, from embedding to head.")]
Files = Annotated[bool, typer.Option("--files", help="List every file.")]


def inspect(
    source: Looked,
    glob: Glob = None,
    tensors: Tensors = False,
    fold: Folded = False,
    files: Files = False,
    tree: AsTree = False,
    remote: Remote = False,
    local: Local = False,
    html: Html = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show what a checkpoint is and what it holds, from its headers alone.

    What is wrong with it is told on stderr. A release by its name is described from what is known of it, offline.

    Examples:

        dsctl inspect ./DeepSeek-V3.2

        dsctl inspect v3.2 --json

        dsctl inspect ./DeepSeek-V3.2 --tensors '*.indexer.*' --fold

        dsctl inspect v3.2 --tree

        dsctl inspect v3.2 --html v3.2.html
    """
    from dsctl.look.inspection import inspect as look

    if html is not None:
        from dsctl.show.drawing import ready

        ready(html, (source,))
    output, seen = Output(json, quiet), look(located(source, remote, local))
    wanted = (glob or "*") if tensors or fold or glob else None
    if json:
        output.data(as_json(seen, wanted, fold))
    elif tree:
        output.text(_tree(seen))
    elif wanted is None:
        _show(seen, files, output)
    else:
        _list(seen, wanted, fold, output)
    if html is not None:
        from dsctl.show.drawing import save
        from dsctl.show.pages.inspection import inspection

        save(inspection(seen, _sections(seen, False)[1:]), html)
    if not quiet:
        _warn(seen.faults, output)


def as_json(seen: Inspection, glob: str | None = None, folded: bool = False) -> dict[str, Any]:
    """An inspection as stable JSON: sizes in bytes, null where nothing is known."""
    from dsctl.look.inspection import fold

    one, known = seen.description, seen.description.model is not None
    facts: dict[str, Any] = {
        "source": one.name,
        "place": one.place,
        "origin": one.origin._asdict(),
        "release": one.release.name if one.release else None,
        "architecture": one.model,
        "parameters_as_in": list(seen.alike),
        "parameters_as_in_derived": list(seen.alike_derived),
        "formats": _forms([seen.formats]),
        "parameters": one.parameters if known else None,
        "values": one.values if known else None,
        "main_values": one.main_values if known else None,
        "active_values": one.active_values if known else None,
        "tensors": sum(total.number for total in seen.dtypes),
        "bytes": sum(total.nbytes for total in seen.dtypes),
        "roles": [
            {
                "role": total.name,
                "parameters": total.number,
                "values": total.values,
                "active_values": total.active,
                "bytes": total.nbytes,
                "formats": _forms([total.codecs]),
            }
            for total in seen.roles
        ],
        "dtypes": [
            {"dtype": total.name, "tensors": total.number, "values": total.values, "bytes": total.nbytes}
            for total in seen.dtypes
        ],
        "files": [{"file": file.name, "tensors": file.tensors, "bytes": file.nbytes} for file in seen.files],
        "missing": list(one.missing),
        "faults": [fault._asdict() for fault in seen.faults],
    }
    if glob is not None:
        listed = seen.tensors(glob)
        facts["tensor_list"] = [_folded_json(f) for f in fold(listed)] if folded else [_tensor_json(t) for t in listed]
    return facts


def _tensor_json(tensor: Tensor) -> dict[str, Any]:
    spec = tensor.spec
    facts = {"name": tensor.name, "dtype": spec.dtype, "shape": list(spec.shape), "bytes": spec.nbytes}
    return facts | {"file": tensor.file or None}


def _folded_json(fold: Fold) -> dict[str, Any]:
    facts = {"template": fold.template, "numbers": [list(numbers) for numbers in fold.ranges], "tensors": fold.number}
    return facts | {"dtype": fold.spec.dtype, "shape": list(fold.spec.shape), "bytes": fold.nbytes}


def _forms(codecs: Iterable[Iterable[Codec]]) -> list[str]:
    from dsctl.look.wording import form

    return list(dict.fromkeys(form(codec) for some in codecs for codec in some))


def _show(seen: Inspection, all_files: bool, output: Output) -> None:
    from dsctl.show.sections import show

    show(_sections(seen, all_files), output)


def _sections(seen: Inspection, all_files: bool) -> list[Section]:
    sections = [_origin(seen), _facts(seen)]
    if seen.description.model is not None:
        sections.append(_roles(seen))
    sections.append(_dtypes(seen))
    if seen.files:
        sections.append(_files(seen, all_files))
    return sections


def _origin(seen: Inspection) -> Section:
    from dsctl.show.sections import Section

    return Section("", seen.description.origin.sentence)


def _facts(seen: Inspection) -> Section:
    from dsctl.show.sections import Column, Row, Section

    one, known = seen.description, seen.description.model is not None
    number = sum(total.number for total in seen.dtypes)
    rows = [("architecture", one.model or "not known: no config.json of a known one")]
    if seen.alike:
        derived = seen.alike_derived
        read = [name for name in seen.alike if name not in derived]
        told = f"{', '.join(read)}{'; ' * bool(read and derived)}" + "by derived configs: " * bool(derived)
        rows.append(("parameters as in", told + ", ".join(derived)))
    if forms := _forms([seen.formats]):
        rows.append(("stored as", ", ".join(forms)))
    if known:
        prediction = one.values - one.main_values
        and_mtp = f", and {count(prediction)} of multi-token prediction" if prediction else ""
        rows.append(("values", f"{count(one.main_values)}, {count(one.active_values)} active per token{and_mtp}"))
        rows.append(("parameters", f"{one.parameters:,} in {plural(number, 'tensor')}"))
    else:
        rows.append(("tensors", f"{number:,}"))
    nbytes = sum(total.nbytes for total in seen.dtypes)
    files = len(seen.headers) or one.files
    rows.append(("bytes", size(nbytes) + (f" in {plural(files, 'file')}" if files else "")))
    cells = tuple(Row((label, visible(text))) for label, text in rows)
    return Section(visible(one.name), "", (Column(), Column()), cells)


def _roles(seen: Inspection) -> Section:
    from dsctl.show.sections import Column, Row, Section

    columns = (
        Column("role"), Column("parameters", True, 2), Column("values", True), Column("active", True),
        Column("bytes", True), Column("share", True, 1), Column("stored as"),
    )  # fmt: skip
    whole = sum(total.nbytes for total in seen.roles) or 1
    rows = [
        Row(
            (
                total.name,
                f"{total.number:,}",
                count(total.values),
                count(total.active) if total.active else "-",
                size(total.nbytes),
                _share(total.nbytes, whole),
                ", ".join(_forms([total.codecs])),
            )
        )
        for total in seen.roles
    ]
    return Section("By role", "", columns, tuple(rows))


def _dtypes(seen: Inspection) -> Section:
    from dsctl.show.sections import Column, Row, Section

    columns = (Column("dtype"), Column("tensors", True), Column("values", True), Column("bytes", True))
    whole = sum(total.nbytes for total in seen.dtypes) or 1
    rows = [
        Row((t.name, f"{t.number:,}", count(t.values), size(t.nbytes), _share(t.nbytes, whole))) for t in seen.dtypes
    ]
    return Section("By dtype", "", (*columns, Column("share", True)), tuple(rows))


def _files(seen: Inspection, everything: bool) -> Section:
    from dsctl.show.sections import Column, Row, Section

    files = seen.files
    shown = files if everything or len(files) <= FILES_SHOWN + 1 else files[:FILES_SHOWN]
    rows = [Row((visible(file.name), f"{file.tensors:,}", size(file.nbytes))) for file in shown]
    if len(shown) < len(files):
        rows.append(Row((f"... and {len(files) - len(shown):,} more: --files lists them",), "note"))
    return Section("By file", "", (Column("file"), Column("tensors", True), Column("bytes", True)), tuple(rows))


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if part * 2000 >= whole else "< 0.1 %"


def _list(seen: Inspection, glob: str, folded: bool, output: Output) -> None:
    from dsctl.show.sections import show

    listed = list(seen.tensors(glob))
    show([_origin(seen), _folded(listed) if folded else _single(listed)], output)
    output.note(f"{plural(len(listed), 'tensor')}, {size(sum(tensor.spec.nbytes for tensor in listed))}")


def _tree(seen: Inspection) -> Tree:
    """Stages, roles in them, projections in those: each with its bytes and its share of all."""
    from rich.tree import Tree

    from dsctl.look.wording import form, ranges
    from dsctl.show.drawing.architecture import staged

    one = seen.description
    whole = sum(group.nbytes for group in one.groups) or 1
    drawn = Tree(Text(f"{visible(one.name)}  {size(whole)}  {visible(one.origin.sentence)}"))
    for stage, groups in staged(one.groups).items():
        layers = ranges({layer for group in groups for layer in group.layers})
        branch = drawn.add(_branch(f"{stage} {layers}".strip(), groups, whole))
        for role in dict.fromkeys(group.family.role for group in groups):
            members = [group for group in groups if group.family.role == role]
            twig = branch.add(_branch(role, members, whole))
            for group in members:
                what = f"{_last(group.family.template)}  {_shape(group.family.shape)}  {form(group.codec)}"
                twig.add(Text(f"{visible(what)}  {group.count:,} x" if group.count > 1 else visible(what)))
    return drawn


def _branch(name: str, groups: list[Group], whole: int) -> Text:
    """A name, its bytes, and a bar of its share, a mark for each fortieth."""
    nbytes = sum(group.nbytes for group in groups)
    return Text.assemble(
        f"{name}  {size(nbytes)}  ", ("█" * round(TREE_BAR * nbytes / whole), "cyan"), f" {_share(nbytes, whole)}"
    )


def _last(template: str) -> str:
    parts = template.removesuffix(".weight").split(".")
    return ".".join(parts[-2:] if parts[-1] == "bias" else parts[-1:])


def _single(listed: list[Tensor]) -> Section:
    from dsctl.show.sections import Column, Row, Section

    columns = (
        Column("dtype"), Column("shape", True), Column("bytes", True), Column("file", rank=1), Column("tensor"),
    )  # fmt: skip
    rows = [(t.spec.dtype, _shape(t.spec.shape), size(t.spec.nbytes), visible(t.file), visible(t.name)) for t in listed]
    return Section("", "", columns, tuple(map(Row, rows)))


def _folded(listed: list[Tensor]) -> Section:
    from dsctl.look.inspection import fold
    from dsctl.show.sections import Column, Row, Section

    columns = (
        Column("dtype"), Column("shape", True), Column("tensors", True), Column("bytes", True), Column("tensor"),
    )  # fmt: skip
    rows = [(f.spec.dtype, _shape(f.spec.shape), f"{f.number:,}", size(f.nbytes), _ranged(f)) for f in fold(listed)]
    return Section("", "", columns, tuple(map(Row, rows)))


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


def _ranged(fold: Fold) -> str:
    """A template with the numbers that stand in each place: model.layers.{3-60}.mlp.gate.weight."""
    from dsctl.checkpoint.groups import NUMBERS
    from dsctl.look.wording import ranges

    said = iter([f"{{{ranges(numbers)}}}" if len(numbers) > 1 else str(numbers[0]) for numbers in fold.ranges])
    return visible(".".join(next(said, part) if part in NUMBERS else part for part in fold.template.split(".")))


def _warn(faults: Iterable[Fault], output: Output) -> None:
    by_code: dict[str, list[Fault]] = {}
    for fault in faults:
        by_code.setdefault(fault.code, []).append(fault)
    for code, found in by_code.items():
        for fault in found[:FAULTS_SHOWN]:
            output.warn(str(fault))
        if len(found) > FAULTS_SHOWN:
            output.warn(f"... and {len(found) - FAULTS_SHOWN:,} more of this kind ({code})")


def add_to(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(inspect)
