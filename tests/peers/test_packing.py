"""Every format that compressed-tensors has: its compressors and ours give the same bytes, and decode them alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.compressors.format import infer_module_format
from compressed_tensors.quantization import QuantizationScheme, preset_name_to_scheme
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from compressed_tensors.quantization.utils.helpers import maybe_pad_tensor_for_block_quant

from dsctl.codecs import CODECS
from dsctl.codecs.codec import BadBlock
from dsctl.layouts.naming import tensors
from dsctl.work.buffers import DTYPES

PRESETS = {
    "fp8-block-ct": "FP8_BLOCK", "fp8-channel": "FP8_DYNAMIC", "int8-channel": "W8A8", "int8-group": "W8A16",
    "int4-group": "W4A16", "int4-group-32": "W4A16", "mxfp4": "MXFP4A16", "mxfp8": "MXFP8", "nvfp4": "NVFP4A16",
}  # fmt: skip
Stored = dict[str, torch.Tensor]


def scheme(name: str) -> QuantizationScheme:
    made = preset_name_to_scheme(PRESETS[name], ["Linear"])
    if name == "int4-group-32":
        made.weights.group_size = 32
    return made


def compressor(of: QuantizationScheme) -> Any:
    return BaseCompressor.get_value_from_registry(infer_module_format(torch.nn.Linear, of).value)


def extremes(values: torch.Tensor, of: QuantizationScheme) -> tuple[torch.Tensor, torch.Tensor]:
    """The least and greatest value that share a scale, as compressed-tensors' observers see them."""
    weights = of.weights
    if weights.strategy == "channel":
        return values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    if weights.strategy == "block":
        padded = maybe_pad_tensor_for_block_quant(values, (128, 128))
        blocks = padded.view(padded.shape[0] // 128, 128, padded.shape[1] // 128, 128)
        return blocks.amin((1, 3)), blocks.amax((1, 3))
    groups = values.view(values.shape[0], -1, weights.group_size)
    return groups.amin(2), groups.amax(2)


def theirs(values: torch.Tensor, of: QuantizationScheme) -> Stored:
    state: Stored = {"weight": values}
    if of.weights.strategy == "tensor_group":
        state["weight_global_scale"] = generate_gparam(values.amin(), values.amax())
    state["weight_scale"], _ = calculate_qparams(*extremes(values, of), of.weights, state.get("weight_global_scale"))
    return compressor(of).compress(state, of)  # type: ignore[no-any-return]


def ours(values: torch.Tensor, name: str) -> Stored:
    codec, shape = CODECS[name], tuple(values.shape)
    specs = codec.specs(shape)
    stored = {suffix: torch.empty(spec.shape, dtype=DTYPES[spec.dtype]) for suffix, spec in specs.items()}
    codec.encode(values, stored)
    for suffix, data in codec.stated(shape).items():
        stored[suffix] = torch.frombuffer(bytearray(data), dtype=stored[suffix].dtype)
    named = tensors(CODECS[name].dialect, "weight", stored)
    return dict(zip(named, stored.values(), strict=True))


def random(rows: int, columns: int, scale: float = 0.02, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn((rows, columns), generator=generator) * scale).bfloat16()


def constant() -> torch.Tensor:
    return torch.tensor([0.37, -1.0, 0.0, 6.0]).repeat_interleave(128).repeat(128, 1).bfloat16()


def every_exponent() -> torch.Tensor:
    """Rows whose magnitudes go through bfloat16's whole range below its last two binades."""
    steps = torch.arange(-133, 126, dtype=torch.float64)
    return (random(len(steps), 256, 1.0).clamp(-1.9, 1.9).double() * torch.exp2(steps)[:, None]).bfloat16()


VALUES = {
    "random": random(128, 512),
    "outliers": random(128, 256, 0.02) * torch.where(random(128, 256, 1.0, 1).abs() > 3, 40, 1).bfloat16(),
    "zeros": torch.zeros((128, 256), dtype=torch.bfloat16),
    "huge": random(64, 256, 1e36),
    "tiny": random(64, 256, 1e-37),
    "subnormal": random(64, 256, 1e-39),
    "constant": constant(),
    "one row": random(1, 128),
    "ragged rows": random(576, 256),
    "zero groups": random(128, 256) * (torch.arange(256) % 128 >= 64),
    "every exponent": every_exponent(),
    "uniform": (torch.rand((256, 256), generator=torch.Generator().manual_seed(5)) - 0.5).bfloat16(),
}


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    one, other = one.contiguous(), other.contiguous()
    return one.dtype == other.dtype and torch.equal(one.view(-1).view(torch.uint8), other.view(-1).view(torch.uint8))


@pytest.mark.parametrize("case", VALUES)
@pytest.mark.parametrize("name", PRESETS)
def test_packing_is_the_same_bit_for_bit(name: str, case: str) -> None:
    values, of = VALUES[case], scheme(name)
    mine, peer = ours(values, name), theirs(values.clone(), of)
    assert mine.keys() == peer.keys()
    for tensor in mine:
        assert mine[tensor].shape == peer[tensor].shape
        assert same_bits(mine[tensor], peer[tensor]), tensor


@pytest.mark.parametrize("case", VALUES)
@pytest.mark.parametrize("name", PRESETS)
def test_their_decompressor_reads_what_we_store_as_we_do(name: str, case: str) -> None:
    values, codec, of = VALUES[case], CODECS[name], scheme(name)
    stored = ours(values, name)
    mine = torch.empty_like(values)
    names = tensors(codec.dialect, "weight", codec.parts)
    codec.decode({part: stored[tensor] for part, tensor in zip(codec.parts, names, strict=True)}, mine)
    if name == "fp8-block-ct" and values.shape[0] % 128:
        # Their decompressor leaves the rows of a cut block padded.
        padded = maybe_pad_tensor_for_block_quant(stored["weight"].float(), (128, 128))
        stored["weight"] = padded.to(torch.float8_e4m3fn)
    peer = compressor(of).decompress(dict(stored), of)["weight"][: len(values)]
    assert peer.dtype == mine.dtype
    assert torch.equal(mine, peer)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", sorted(CODECS.keys() - {"bf16", "f16", "f32"}))
def test_what_is_not_finite_is_refused_by_its_block(name: str, bad: float) -> None:
    values = random(256, 512)
    values[200, 300] = bad
    rows, columns = CODECS[name].block
    if name in ("fp8-channel", "int8-channel"):
        columns = 512
    with pytest.raises(BadBlock, match=rf"in block \[{200 // rows}, {300 // columns}\]"):
        ours(values, name)
