"""A tensor of any size is compared, patched, folded and checked in pieces."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from tests.flows.test_memory import STARTER
from tests.support.command import dsctl
from tests.support.raw_tensors import INDEX, places_of, write_index

NBYTES = 192 << 20
MOST = 150 << 20


def sparse(folder: Path, nbytes: int, dtype: str = "BF16") -> Path:
    """A checkpoint of one tensor of zeros that takes no room on the disk."""
    folder.mkdir(parents=True)
    shape = [nbytes // 2] if dtype == "BF16" else [nbytes]
    data = f'{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{nbytes}]}}}}'.encode()
    data += b" " * (-len(data) % 8)
    with (folder / "x.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(data)) + data)
        file.truncate(8 + len(data) + nbytes)
    write_index(folder, {}, {"w": "x.safetensors"})
    return folder


def touched(folder: Path, every: int, value: int) -> Path:
    """Change a byte here and there."""
    place = places_of(folder)["w"]
    with place.file.open("r+b") as file:
        for at in range(0, place.nbytes, every):
            file.seek(place.offset + at)
            file.write(bytes([value]))
    return folder


def peak(*words: object) -> int:
    """The resident bytes of a command at their most."""
    command = [sys.executable, "-m", "dsctl", "delta", *map(str, words), "--quiet", "--workers", "2"]
    done = subprocess.run([sys.executable, "-c", STARTER, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


def test_no_command_holds_a_tensor(tmp_path: Path) -> None:
    states = [touched(sparse(tmp_path / str(value), NBYTES), 1 << 20, value) for value in (0, 1, 2)]
    dsctl("delta", "make", states[1], states[2], tmp_path / "d2", "--anyway", "--version", 2)
    assert peak("make", states[0], states[1], tmp_path / "d1", "--anyway") < MOST
    assert peak("fold", tmp_path / "d1", tmp_path / "d2", tmp_path / "both") < MOST
    assert peak("apply", states[0], tmp_path / "both", "--in-place") < MOST
    assert np.array_equal(places_of(states[0])["w"].read(), places_of(states[2])["w"].read())


def test_a_fold_behind_a_whole_tensor_holds_neither(tmp_path: Path) -> None:
    small = sparse(tmp_path / "small", 64)
    states = [touched(sparse(tmp_path / str(value), NBYTES), 1 << 20, value) for value in (1, 2)]
    dsctl("delta", "make", small, states[0], tmp_path / "d1", "--anyway", "--encoding", "overwrite")
    dsctl("delta", "make", *states, tmp_path / "d2", "--encoding", "overwrite", "--version", 2, "--anyway")
    assert peak("fold", tmp_path / "d1", tmp_path / "d2", tmp_path / "both") < MOST
    dsctl("delta", "apply", small, tmp_path / "both", tmp_path / "out")
    assert np.array_equal(places_of(tmp_path / "out")["w"].read(), places_of(states[1])["w"].read())


def test_a_frame_of_the_longest_window_that_readers_take(tmp_path: Path) -> None:
    base, delta = sparse(tmp_path / "base", NBYTES), tmp_path / "delta"
    frame = bytearray(compressed_in_window(bytes(1 << 20) + bytes([7]) * 5, NBYTES, 27))
    delta.mkdir()
    new = np.zeros(NBYTES, np.uint8)
    new[1 << 20 : (1 << 20) + 5] = 7
    header = f'{{"__metadata__":{{"w":"{zlib.adler32(new):08x}"}},"w":{{"dtype":"U8","shape":[{len(frame)}],'
    data = f'{header}"data_offsets":[0,{len(frame)}]}}}}'.encode()
    (delta / "x.safetensors").write_bytes(struct.pack("<Q", len(data)) + data + frame)
    said = {"version": "000001", "base_version": "000000", "delta_encoding": "xor", "compression_format": "zstd"}
    write_index(delta, said | {"checksum_format": "adler32"}, {"w": "x.safetensors"})
    assert (delta / INDEX).exists()
    # Each of two threads may need the window.
    assert peak("apply", base, delta, tmp_path / "out") < MOST + (128 << 20)
    assert np.array_equal(places_of(tmp_path / "out")["w"].read(), new)


def compressed_in_window(start: bytes, nbytes: int, log: int) -> bytes:
    """A frame of these bytes and zeros, whose window has 2 ** log bytes."""
    zstd = pytest.importorskip("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    options = {zstd.CompressionParameter.compression_level: 1, zstd.CompressionParameter.window_log: log}
    made = zstd.ZstdCompressor(options=options)
    made.set_pledged_input_size(nbytes)
    frame = made.compress(start)
    zeros = bytes(1 << 20)
    for at in range(len(start), nbytes, 1 << 20):
        frame += made.compress(zeros[: min(1 << 20, nbytes - at)])
    return frame + made.flush()
