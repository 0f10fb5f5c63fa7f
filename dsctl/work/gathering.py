"""Odd scales, which do not follow from the values: found when their codes are read, kept in pieces, and used again.

Each job writes its odd scales to a file of its own in the working folder, whole or not at all. Loads torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from dsctl.checkpoint.odd_scales import ENTRY, MOST, piece_file
from dsctl.codecs import native_fp4
from dsctl.codecs.codec import CODES, SCALE, Codec
from dsctl.codecs.native_fp4 import NONE
from dsctl.core.boxes import Box
from dsctl.core.files import replace_file
from dsctl.core.header import TensorSpec, build
from dsctl.layouts.naming import DIALECTS
from dsctl.plan.steps import Part, Step

if TYPE_CHECKING:
    from dsctl.work.buffers import JobFiles

Bytes = np.ndarray[tuple[int, int], np.dtype[np.uint8]]


class Gathered:
    """The odd scales that one job has found: by band for the current parameter, whole for earlier ones."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._bands: list[Bytes] = []
        self._found: dict[str, tuple[TensorSpec, bytes]] = {}

    def note(self, step: Step, band: Box, stored: dict[str, torch.Tensor]) -> None:
        """Note the odd scales of a band."""
        odd = native_fp4.odd(stored[CODES], stored[SCALE])
        rows, columns = odd.nonzero(as_tuple=True)
        codes = stored[SCALE].view(torch.uint8)[rows, columns].numpy()
        places = (rows.numpy() + band.start[0]) * odd.shape[1] + columns.numpy()
        self._bands.append(entries(places, codes))

    def end(self, step: Step, files: JobFiles) -> dict[str, int]:
        """Keep the odd scales of a parameter: as entries, or all of its scales if that takes fewer bytes."""
        found = np.concatenate(self._bands) if self._bands else np.empty((0, ENTRY), np.uint8)
        self._bands = []
        if not len(found):
            return {}
        read = step.reads[0]
        part = next(part for part in read.parts if part.name == SCALE)
        name = DIALECTS[read.codec.dialect].tensor(step.name, SCALE)
        if found.nbytes < part.spec.nbytes <= MOST:
            self._found[name] = TensorSpec("U8", found.shape), found.tobytes()
        else:
            whole = files.read("odd", part, Box.whole(part.spec.shape))
            self._found[name] = part.spec, whole.view(torch.uint8).numpy().tobytes()
        return {"scales_odd": len(found)}

    def write(self, job: int) -> None:
        """Write the odd scales to the disk.

        Raises:
            WorkError: it cannot be written.
        """
        header, begins = build({name: spec for name, (spec, _) in self._found.items()}, {})
        data = [self._found[name][1] for name in sorted(begins, key=begins.__getitem__)]
        replace_file(Path(self._folder) / piece_file(job), [header, *data])


def entries(
    places: np.ndarray[tuple[int], np.dtype[np.int64]], codes: np.ndarray[tuple[int], np.dtype[np.uint8]]
) -> Bytes:
    """Places and codes in the form in which they are kept."""
    found = np.empty((len(places), ENTRY), np.uint8)
    found[:, :4] = places.astype("<u4").view(np.uint8).reshape(-1, 4)
    found[:, 4] = codes
    return found


def odd_scales(part: Part, codec: Codec, shape: tuple[int, ...], box: Box, files: JobFiles) -> torch.Tensor:
    """The kept scales of a band of a parameter (uint8, in the shape of its scales), `NONE` where no scale is kept."""
    place = codec.box(SCALE, box, shape)
    if part.spec.dtype != "U8":
        return files.read("odd", part, place).view(torch.uint8)
    raw = files.read("odd", part, Box.whole(part.spec.shape)).numpy()
    columns = codec.specs(shape)[SCALE].shape[1]
    places = np.ascontiguousarray(raw[:, :4]).view("<u4").reshape(-1).astype(np.int64)
    rows, across = places // columns, places % columns
    inside = (rows >= place.start[0]) & (rows < place.stop[0]) & (across >= place.start[1]) & (across < place.stop[1])
    found = torch.full(place.shape, NONE, dtype=torch.uint8)
    found.numpy()[rows[inside] - place.start[0], across[inside] - place.start[1]] = raw[inside, 4]
    return found
