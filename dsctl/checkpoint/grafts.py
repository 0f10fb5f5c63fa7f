"""What a checkpoint has from others: the record of each source of a graft. Data, no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from msgspec import structs

from dsctl.checkpoint.pieces import Piece
from dsctl.core.header import Header
from dsctl.core.params import Param


@dataclass(frozen=True, slots=True)
class Graft:
    """The parameters that a checkpoint takes from another one.

    `prefix` is that of the other one's files in the joined store. `params` are the parameters by name, `nbytes` their
    stored bytes, `read` the files that hold them (with the prefix). `files` are the sizes of all of its files,
    `headers` the headers of those with tensors (both without it). `spelled` is its layout's spelling of codes. `texts`
    are the files whose bytes the result may repeat. `notes` are remarks. `renamed`: its files have other names for
    these tensors than the headers here.
    """

    place: str
    revision: str
    globs: tuple[str, ...]
    prefix: str
    params: Mapping[str, Param]
    nbytes: int
    read: frozenset[str]
    files: Mapping[str, int]
    headers: Mapping[str, Header]
    config: Mapping[str, Any] | None
    spelled: Mapping[str, str]
    texts: tuple[str, ...]
    notes: tuple[str, ...] = ()
    renamed: bool = False

    @property
    def named(self) -> str:
        """Its globs, as one argument."""
        return ",".join(self.globs)

    def without(self, params: Iterable[str], pieces: Mapping[str, tuple[Piece, ...]]) -> Graft:
        """The same record after a later graft took these parameters' places."""
        gone = set(params)
        kept = {name: param for name, param in self.params.items() if name not in gone}
        read, nbytes = taken(pieces[name] for name in kept)
        return replace(self, params=kept, read=read, nbytes=nbytes)


def taken(pieces: Iterable[tuple[Piece, ...]]) -> tuple[frozenset[str], int]:
    """The files that hold these pieces, and their bytes; of several copies each counts."""
    refs = {(ref.file, ref.begin): ref.nbytes for held in pieces for piece in held for ref in piece.refs}
    return frozenset(file for file, _ in refs), sum(refs.values())


def prefixed(pieces: tuple[Piece, ...], prefix: str) -> tuple[Piece, ...]:
    """The same pieces in a joined store."""
    return tuple(
        structs.replace(piece, refs=tuple(structs.replace(ref, file=prefix + ref.file) for ref in piece.refs))
        for piece in pieces
    )


def folded(params: Iterable[Param]) -> list[str]:
    """The names of parameters, those of a family in one: model.layers.{3-60}.mlp.experts.{0-255}.up_proj.weight."""
    families: dict[str, list[Param]] = {}
    for param in params:
        families.setdefault(param.template, []).append(param)
    return [name for template, members in families.items() for name in _folded(template, members)]


def _folded(template: str, members: list[Param]) -> Iterator[str]:
    experts: dict[int | None, list[int]] = {}
    for param in members:
        held = experts.setdefault(param.number, [])
        if param.expert is not None:
            held.append(param.expert)
    layers: dict[tuple[int, ...], list[int]] = {}
    for layer, held in experts.items():
        layers.setdefault(tuple(sorted(held)), []).extend(() if layer is None else (layer,))
    for chosen, numbers in layers.items():
        yield template.format(layer=_runs(sorted(numbers)), expert=_runs(chosen))


def _runs(numbers: Iterable[int]) -> str:
    """Runs of consecutive numbers: {3-60}, or {1,4-6}; a single number by itself."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    told = ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    return told if told.isdigit() else f"{{{told}}}"
