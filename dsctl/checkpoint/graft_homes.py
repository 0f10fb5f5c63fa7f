"""The files of grafted parameters: the base's own for these parameters, or new ones. No torch.

If the base is what is left of the other checkpoint's files, as after a trainer dropped its MTP layer, the tensors
return to the files that they have there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.pieces import Piece

# The largest file of parameters that the base lacks, in bytes.
SHARD_BYTES = 5 * 10**9
_NEW = "grafted"

Held = Mapping[str, tuple[Piece, ...]]


def homes(base: Checkpoint, other: Checkpoint, own: Held, filled: Held) -> dict[str, str]:
    """The file of each grafted parameter, by its name and by the names of its tensors; "" if it is unknown.

    `own` are the parameters' pieces in the other checkpoint, `filled` those of copies of the base's own tensors.
    """
    held = {**own, **filled}
    before = dict(base.view.homes) if base.view is not None else {}
    found, new = {}, []
    for name in held:
        pieces = base.survey.pieces.get(name) or ()
        if name in before:
            found[name] = before[name]
        elif pieces:
            found |= {ref.name: base.layout.home(ref.file) or "" for piece in pieces for ref in piece.refs}
            found[name] = base.layout.home(pieces[0].refs[0].file) or ""
        else:
            new.append(name)
    if new:
        known = None if filled else _returned(base, other, new, own)
        found |= known if known is not None else dict(_filled(base, new, held))
    return before | found


def _returned(base: Checkpoint, other: Checkpoint, new: list[str], held: Held) -> dict[str, str] | None:
    """The other's files, if the base's are those without these parameters; None if they are not."""
    if not (base.layout.published and other.layout.published and base.view is None):
        return None
    if not base.headers.keys() <= other.headers.keys():
        return None
    refs = {ref.name: ref for name in new for piece in held[name] for ref in piece.refs}
    for file in {ref.file for ref in refs.values()}:
        whole, left = {*other.headers[file].names}, {*(base.headers[file].names if file in base.headers else ())}
        # A matrix may have lost only its scale.
        if not whole - refs.keys() <= left <= whole:
            return None
    own = {name: held[name][0].refs[0].file for name in new}
    return own | {tensor: ref.file for tensor, ref in refs.items()}


def _filled(base: Checkpoint, new: list[str], held: Held) -> Iterator[tuple[str, str]]:
    """New files, filled in the order of parameters; their names are not those of a file of the base."""
    taken = {*base.headers, *(base.view.homes.values() if base.view is not None else ())}
    stem, number = _NEW, 1
    while any(file.startswith(f"{stem}-") for file in taken):
        number += 1
        stem = f"{_NEW}{number}"
    sizes: list[int] = []
    places: list[tuple[str, int]] = []
    for name in new:
        nbytes = sum(piece.nbytes for piece in held[name])
        if not sizes or (sizes[-1] and sizes[-1] + nbytes > SHARD_BYTES):
            sizes.append(0)
        sizes[-1] += nbytes
        places.append((name, len(sizes)))
    for name, place in places:
        yield name, f"{stem}-{place:05d}-of-{len(sizes):05d}.safetensors"
