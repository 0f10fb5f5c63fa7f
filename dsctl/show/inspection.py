"""Show an inspection: sections, a tree of where the bytes are, lists of tensors, and JSON."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.text import Text
from rich.tree import Tree

from dsctl.checkpoint.groups import NUMBERS, Group, folded
from dsctl.checkpoint.pieces import Fault
from dsctl.codecs.codec import Codec
from dsctl.core.visible import visible
from dsctl.look.halves import passed_layers, prompt_values
from dsctl.look.inspection import Fold, Inspection, Tensor, fold
from dsctl.look.wording import drafting, form, ranges
from dsctl.show.drawing.architecture import called, last_name, staged
from dsctl.show.output import Output, count, plural, size
from dsctl.show.sections import Column, Row, Section, show

FILES_SHOWN = 6
TREE_BAR = 40
FAULTS_SHOWN = 5


def as_json(seen: Inspection, glob: str | None = None, folded: bool = False) -> dict[str, Any]:
    """Format an inspection as stable JSON: sizes in bytes, null if unknown."""
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
        "drafter": one.drafter.json(one.alone) if known else None,
        "prompt_values": prompt_values(one) if known else None,
        "prompt_layers": passed_layers(one) if known else None,
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


def _folded_json(one: Fold) -> dict[str, Any]:
    facts = {"template": one.template, "numbers": [list(numbers) for numbers in one.ranges], "tensors": one.number}
    return facts | {"dtype": one.spec.dtype, "shape": list(one.spec.shape), "bytes": one.nbytes}


def _forms(codecs: Iterable[Iterable[Codec]]) -> list[str]:
    return list(dict.fromkeys(form(codec) for some in codecs for codec in some))


def sections(seen: Inspection, all_files: bool = False) -> list[Section]:
    """The sections of an inspection: origin, facts, and tables by role, dtype and file."""
    found = [_origin(seen), _facts(seen)]
    if seen.description.model is not None:
        found.append(_roles(seen))
    found.append(_dtypes(seen))
    if seen.files:
        found.append(_files(seen, all_files))
    return found


def _origin(seen: Inspection) -> Section:
    return Section("", seen.description.origin.sentence)


def _facts(seen: Inspection) -> Section:
    one, known = seen.description, seen.description.model is not None
    number = sum(total.number for total in seen.dtypes)
    rows = [("architecture", one.model or "unknown: no config.json of a supported one")]
    if seen.alike:
        derived = seen.alike_derived
        read = [name for name in seen.alike if name not in derived]
        names = f"{', '.join(read)}{'; ' * bool(read and derived)}" + "by derived configs: " * bool(derived)
        rows.append(("drafter of" if one.alone else "same parameters as", names + ", ".join(derived)))
    if one.alone:
        rows.append(("holds", f"the drafter alone, without its model: {one.drafter}"))
    if forms := _forms([seen.formats]):
        rows.append(("stored as", ", ".join(forms)))
    if known:
        prediction = one.values - one.main_values
        and_mtp = f", and {count(prediction)} of {drafting(one.traits)}" if prediction else ""
        prompt, passed = prompt_values(one), passed_layers(one)
        active = f"{count(one.active_values)} active per token"
        active += f" ({count(prompt)} in a prompt, which passes {passed} layers)" if prompt else ""
        rows.append(("values", count(prediction) if one.alone else f"{count(one.main_values)}, {active}{and_mtp}"))
        rows.append(("parameters", f"{one.parameters:,} in {plural(number, 'tensor')}"))
    else:
        rows.append(("tensors", f"{number:,}"))
    nbytes = sum(total.nbytes for total in seen.dtypes)
    files = len(seen.headers) or one.files
    rows.append(("bytes", size(nbytes) + (f" in {plural(files, 'file')}" if files else "")))
    cells = tuple(Row((label, visible(text))) for label, text in rows)
    return Section(visible(one.name), "", (Column(), Column()), cells)


def _roles(seen: Inspection) -> Section:
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
    columns = (Column("dtype"), Column("tensors", True), Column("values", True), Column("bytes", True))
    whole = sum(total.nbytes for total in seen.dtypes) or 1
    rows = [
        Row((t.name, f"{t.number:,}", count(t.values), size(t.nbytes), _share(t.nbytes, whole))) for t in seen.dtypes
    ]
    return Section("By dtype", "", (*columns, Column("share", True)), tuple(rows))


def _files(seen: Inspection, everything: bool) -> Section:
    files = seen.files
    shown = files if everything or len(files) <= FILES_SHOWN + 1 else files[:FILES_SHOWN]
    rows = [Row((visible(file.name), f"{file.tensors:,}", size(file.nbytes))) for file in shown]
    if len(shown) < len(files):
        rows.append(Row((f"... and {len(files) - len(shown):,} more: --files lists them",), "note"))
    return Section("By file", "", (Column("file"), Column("tensors", True), Column("bytes", True)), tuple(rows))


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if part * 2000 >= whole else "< 0.1 %"


def show_tensors(seen: Inspection, glob: str, folded: bool, output: Output) -> None:
    """List the stored tensors whose names match; with `folded`, group those that differ only in numbers."""
    listed = list(seen.tensors(glob))
    show([_origin(seen), _folded(listed) if folded else _single(listed)], output)
    output.note(f"{plural(len(listed), 'tensor')}, {size(sum(tensor.spec.nbytes for tensor in listed))}")


def drawn_tree(seen: Inspection) -> Tree:
    """Draw a tree of stages, roles and projections, each with its bytes and its share of the total."""
    one = seen.description
    whole = sum(group.nbytes for group in one.groups) or 1
    drawn = Tree(Text(f"{visible(one.name)}  {size(whole)}  {visible(one.origin.sentence)}"))
    for stage, groups in staged(one.groups).items():
        layers = ranges({number for group in groups for number in group.numbers})
        branch = drawn.add(_branch(f"{called(stage, one.traits)} {layers}".strip(), groups, whole))
        for role in dict.fromkeys(group.family.role for group in groups):
            members = [group for group in groups if group.family.role == role]
            twig = branch.add(_branch(role, members, whole))
            for (_, what), number in _leaves(members).items():
                twig.add(Text(f"{visible(what)}  {number:,} x" if number > 1 else visible(what)))
    return drawn


def _leaves(groups: Iterable[Group]) -> dict[tuple[str, str], int]:
    """Projections in words, and the number of parameters of each; those of vision's blocks are counted together."""
    found: dict[tuple[str, str], int] = {}
    for place, group in enumerate(groups):
        name = group.family.template
        apart = folded(name)[0] if group.family.role == "vision" else str(place)
        key = apart, f"{last_name(name)}  {_shape(group.family.shape)}  {form(group.codec)}"
        found[key] = found.get(key, 0) + group.count
    return found


def _branch(name: str, groups: list[Group], whole: int) -> Text:
    """Format a name, its bytes, and a bar of its share with a mark per fortieth."""
    nbytes = sum(group.nbytes for group in groups)
    return Text.assemble(
        f"{name}  {size(nbytes)}  ", ("█" * round(TREE_BAR * nbytes / whole), "cyan"), f" {_share(nbytes, whole)}"
    )


def _single(listed: list[Tensor]) -> Section:
    columns = (
        Column("dtype"), Column("shape", True), Column("bytes", True), Column("file", rank=1), Column("tensor"),
    )  # fmt: skip
    rows = [(t.spec.dtype, _shape(t.spec.shape), size(t.spec.nbytes), visible(t.file), visible(t.name)) for t in listed]
    return Section("", "", columns, tuple(map(Row, rows)))


def _folded(listed: list[Tensor]) -> Section:
    columns = (
        Column("dtype"), Column("shape", True), Column("tensors", True), Column("bytes", True), Column("tensor"),
    )  # fmt: skip
    rows = [(f.spec.dtype, _shape(f.spec.shape), f"{f.number:,}", size(f.nbytes), _ranged(f)) for f in fold(listed)]
    return Section("", "", columns, tuple(map(Row, rows)))


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


def _ranged(fold: Fold) -> str:
    """Format a template with the numbers in each place: model.layers.{3-60}.mlp.gate.weight."""
    numbered = iter([f"{{{ranges(numbers)}}}" if len(numbers) > 1 else str(numbers[0]) for numbers in fold.ranges])
    return visible(".".join(next(numbered, part) if part in NUMBERS else part for part in fold.template.split(".")))


def warn_of_faults(faults: Iterable[Fault], output: Output) -> None:
    """Warn of problems, at most `FAULTS_SHOWN` of each kind."""
    by_code: dict[str, list[Fault]] = {}
    for fault in faults:
        by_code.setdefault(fault.code, []).append(fault)
    for code, found in by_code.items():
        for fault in found[:FAULTS_SHOWN]:
            output.warn(str(fault))
        if len(found) > FAULTS_SHOWN:
            output.warn(f"... and {len(found) - FAULTS_SHOWN:,} more of this kind ({code})")
