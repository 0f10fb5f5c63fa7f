"""How fast each codec is beside compressed-tensors: `python benchmarks/codecs.py [--rows N] [--columns N] [FORMAT...]`.

GB/s of the BF16 values, by the processor time of one thread, in which other work on the machine does not count; the two
are timed in turn within one run; medians. Their encode is calculate_qparams and compress, their decode is decompress.
`v4` is the four-bit format of DeepSeek V4's experts on its way to other formats; theirs decompresses their mxfp4, which
is the same for them, and compresses again.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.compressors.format import infer_module_format
from compressed_tensors.quantization import QuantizationScheme, preset_name_to_scheme
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

from dsctl.codecs import CODECS, NATIVE, in_dialect
from dsctl.codecs.codec import CODES, SCALE, Codec
from dsctl.codecs.group_scales import bounds
from dsctl.codecs.plain import Plain
from dsctl.codecs.recasts import recast
from dsctl.work.buffers import DTYPES

PRESETS = {
    "fp8-block-ct": "FP8_BLOCK", "fp8-channel": "FP8_DYNAMIC", "int8-channel": "W8A8", "int8-group": "W8A16",
    "int4-group": "W4A16", "int4-group-32": "W4A16", "mxfp4": "MXFP4A16", "mxfp8": "MXFP8", "nvfp4": "NVFP4A16",
}  # fmt: skip
WARM = 5
# What V4's experts become, and what compressed-tensors makes of them instead.
V4 = {"fp8-block-e8m0": "fp8-block-ct", "nvfp4": "nvfp4"}
Stored = dict[str, torch.Tensor]


class Case(NamedTuple):
    """One direction of one format: ours, and theirs where they have it."""

    name: str
    ours: Callable[[], object]
    theirs: Callable[[], object] | None


def extremes(values: torch.Tensor, weights: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The least and greatest value that share a scale."""
    if weights.strategy == "channel":
        return values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    if weights.strategy == "block":
        blocks = values.view(values.shape[0] // 128, 128, -1, 128)
        return blocks.amin((1, 3)), blocks.amax((1, 3))
    groups = values.view(values.shape[0], -1, weights.group_size)
    return groups.amin(2), groups.amax(2)


def compress(values: torch.Tensor, scheme: QuantizationScheme, compressor: Any) -> Stored:
    """compressed-tensors from weights to what is stored."""
    weights, state = scheme.weights, {"weight": values}
    assert weights is not None
    if weights.strategy == "tensor_group":
        state["weight_global_scale"] = generate_gparam(values.amin(), values.amax())
    state["weight_scale"], _ = calculate_qparams(*extremes(values, weights), weights, state.get("weight_global_scale"))
    return compressor.compress(state, scheme)  # type: ignore[no-any-return]


def empty(codec: Codec, shape: tuple[int, int]) -> Stored:
    """What a codec fills."""
    return {suffix: torch.empty(spec.shape, dtype=DTYPES[spec.dtype]) for suffix, spec in codec.specs(shape).items()}


def cases(name: str, values: torch.Tensor) -> Iterator[Case]:
    """Encoding and decoding in one format."""
    codec, out = CODECS[name], torch.empty_like(values)
    stored, filled = empty(codec, tuple(values.shape)), empty(codec, tuple(values.shape))
    codec.encode(values, stored)
    encode = lambda: codec.encode(values, filled)  # noqa: E731
    decode = lambda: codec.decode(stored, out)  # noqa: E731
    if name not in PRESETS:
        yield Case(f"{name} encode", encode, None)
        yield Case(f"{name} decode", decode, None)
        return
    scheme, compressor = peer_of(name)
    peer = compress(values, scheme, compressor)
    yield Case(f"{name} encode", encode, lambda: compress(values, scheme, compressor))
    yield Case(f"{name} decode", decode, lambda: compressor.decompress(dict(peer), scheme))


def peer_of(name: str) -> tuple[QuantizationScheme, Any]:
    """compressed-tensors' scheme and compressor of a format."""
    scheme = preset_name_to_scheme(PRESETS[name], ["Linear"])
    if name == "int4-group-32":
        assert scheme.weights is not None
        scheme.weights.group_size = 32
    return scheme, BaseCompressor.get_value_from_registry(infer_module_format(torch.nn.Linear, scheme).value)


def expert_cases(values: torch.Tensor) -> Iterator[Case]:
    """V4's experts on their way to BF16, FP8 and NVFP4."""
    source, shape, out = (
        in_dialect(CODECS["mxfp4"], NATIVE),
        (values.shape[0], values.shape[1]),
        torch.empty_like(values),
    )
    held = empty(source, shape)
    source.encode(values, held)
    scheme, compressor = peer_of("mxfp4")
    peer = compress(values, scheme, compressor)
    decompress = lambda: compressor.decompress(dict(peer), scheme)["weight"]  # noqa: E731
    yield Case("v4 to bf16", lambda: source.decode(held, out), decompress)
    for name, theirs in V4.items():
        way, made, other = recast(source, CODECS[name]), empty(CODECS[name], shape), peer_of(theirs)
        assert way is not None
        largest = (lambda: bounds(held[SCALE], held[CODES])[1]) if way.surveys else (lambda: None)
        yield Case(
            f"v4 to {name}",
            lambda way=way, made=made, largest=largest: way.write(held, made, largest()),  # type: ignore[misc]
            lambda other=other: compress(decompress(), *other),  # type: ignore[misc]
        )


def seconds(function: Callable[[], object]) -> float:
    """The processor time of one call."""
    begin = time.thread_time()
    function()
    return time.thread_time() - begin


def report(case: Case, size: int, runs: int) -> str:
    """One line of the table."""
    functions = [function for function in (case.ours, case.theirs) if function]
    # The first calls find memory that the machine has yet to provide.
    times = [[seconds(function) for function in functions] for _ in range(runs + WARM)][WARM:]
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    line = f"{case.name:24}{size / medians[0] / 1e9:8.2f}"
    if case.theirs is None:
        return line + f"{'-':>20}{'-':>9}"
    return line + f"{size / medians[1] / 1e9:20.2f}{medians[1] / medians[0]:8.1f}x"


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    known = [*(name for name, codec in CODECS.items() if not isinstance(codec, Plain)), "v4"]
    parser.add_argument("formats", nargs="*", metavar="FORMAT", help=", ".join(known))
    parser.add_argument("--rows", type=int, default=2048, help="a multiple of 128")
    parser.add_argument("--columns", type=int, default=7168, help="a multiple of 128")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    values = (torch.randn(options.rows, options.columns, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    print(f"{options.rows} x {options.columns}, torch {torch.__version__}, 1 thread, median of {options.runs}")
    print(f"{'GB/s of BF16':24}{'ours':>8}{'compressed-tensors':>20}{'ratio':>9}")
    for name in options.formats or known:
        for case in expert_cases(values) if name == "v4" else cases(name, values):
            print(report(case, 2 * values.numel(), options.runs), flush=True)


if __name__ == "__main__":
    main()
