"""The disk of a target is measured with as many bytes as are asked for: little for a small checkpoint."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from dsctl.run.speed import PIECE_BYTES, write_speed


@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize(("most", "longest"), [(1, 0), (1000, 0), (2 * PIECE_BYTES + 2, 2 * PIECE_BYTES)])
def test_no_more_is_written_than_is_asked_for(tmp_path: Path, at_once: int, most: int, longest: int) -> None:
    """`longest`: what whole pieces add; each file has a byte."""
    with ExitStack() as stack:
        rate, files = write_speed(tmp_path, at_once, stack, most)
        written = [os.fstat(file.fileno()).st_size for file in files]
    assert rate > 0 and len(written) == at_once
    assert most // at_once <= min(written) and sum(written) <= max(most, at_once) + longest
