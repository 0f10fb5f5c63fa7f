"""Codes of four bits under dtypes that count codes or bytes, and numbers of experts that are read anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dsctl.codecs import CODECS, in_dialect
from dsctl.codecs.codec import CODES, SCALE, VALUES, BadBlock, Misaligned, moves_to
from dsctl.codecs.fp4 import Fp4
from dsctl.codecs.plain import Plain
from dsctl.codecs.renumbered import Renumbered
from dsctl.core.boxes import Box
from dsctl.core.header import TensorSpec, build
from tests.support.command import dsctl

NATIVE = in_dialect(CODECS["mxfp4"], "v4")
LOGICAL = replace(NATIVE, codes_dtype="F4")
SHAPE = 64, 256


def test_a_spec_in_bytes_is_of_the_same_bytes() -> None:
    assert TensorSpec("F4", SHAPE).in_bytes == TensorSpec("U8", (64, 128))
    assert TensorSpec("F6_E2M3", (3, 8)).in_bytes == TensorSpec("U8", (3, 6))
    assert TensorSpec("BF16", SHAPE).in_bytes == TensorSpec("BF16", SHAPE)
    assert TensorSpec("F32", ()).in_bytes == TensorSpec("F32", ())
    assert TensorSpec("F4", SHAPE).nbytes == TensorSpec("F4", SHAPE).in_bytes.nbytes == 64 * 128


def test_codes_are_read_under_either_dtype() -> None:
    assert isinstance(NATIVE, Fp4) and LOGICAL.specs(SHAPE)[CODES] == TensorSpec("F4", SHAPE)
    assert NATIVE.specs(SHAPE)[CODES] == TensorSpec("I8", (64, 128))
    for codec in (NATIVE, LOGICAL):
        assert NATIVE.reads(SHAPE, codec.specs(SHAPE)) == codec
    wrong = {CODES: TensorSpec("F4", (64, 128)), SCALE: NATIVE.specs(SHAPE)[SCALE]}
    assert NATIVE.reads(SHAPE, wrong) is None
    assert moves_to(NATIVE, LOGICAL) and moves_to(LOGICAL, NATIVE)


def test_a_cut_of_either_is_in_bytes() -> None:
    cut = Box((0, 64), (64, 128))
    assert NATIVE.box(CODES, cut, SHAPE) == LOGICAL.box(CODES, cut, SHAPE) == Box((0, 32), (64, 64))


def test_plain_values_of_four_bits_are_cut_at_whole_bytes() -> None:
    assert Plain("F4").box(VALUES, Box((0, 2), (3, 8)), (3, 8)) == Box((0, 1), (3, 4))
    assert Plain("BF16").box(VALUES, Box((0, 1), (3, 8)), (3, 8)) == Box((0, 1), (3, 8))
    with pytest.raises(Misaligned, match="F4 from 1 to 8 of 8 is not whole bytes"):
        Plain("F4").box(VALUES, Box((0, 1), (3, 8)), (3, 8))


def test_a_tensor_of_no_known_model_in_four_bits_is_moved(tmp_path: Path) -> None:
    header, _ = build({"codes": TensorSpec("F4", (6, 10))})
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "model.safetensors").write_bytes(header + bytes(range(30)))
    dsctl("convert", tmp_path / "src", tmp_path / "out", "--bf16", "--allow-extra", "--workers", 1)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == header + bytes(range(30))


def test_numbers_of_experts_are_read_anew() -> None:
    table = Renumbered("I64", 8, (2, 3, 7))
    out = torch.empty((3, 2))
    table.decode({VALUES: torch.tensor([[7, 2], [0, 3], [5, 1]])}, out)
    assert out.tolist() == [[2, 0], [0, 1], [0, 1]]
    assert table.written == Plain("I64") and table.plain is None and not table.quantized


@pytest.mark.parametrize("wrong", [-1, 8, 1 << 40])
def test_a_number_of_no_expert_is_refused(wrong: int) -> None:
    with pytest.raises(BadBlock, match=rf"expert {wrong} of 8 in block \[1, 0\]"):
        Renumbered("I64", 8, (2, 3)).decode({VALUES: torch.tensor([[0, 1], [wrong, 2]])}, torch.empty((2, 2)))
