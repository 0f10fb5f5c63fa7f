"""How fast the E4M3 kernels are beside the textbook formulas: `python benchmarks/kernels.py [--rows N] [--columns N]`.

One thread; the two are timed in turn within one run, so that a busy machine slows both; medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch

from dsctl.codecs import e4m3

Case = tuple[str, int, Callable[[], object], Callable[[], object]]


def spread(scales: torch.Tensor) -> torch.Tensor:
    """One scale per value."""
    return scales.repeat_interleave(128, 0).repeat_interleave(128, 1)


def textbook_decode(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The formula of DeepSeek-V3's README_WEIGHTS.md."""
    return (codes.view(torch.float8_e4m3fn).float() * spread(scales)).bfloat16()


def textbook_encode(values: torch.Tensor, power_of_two: bool) -> torch.Tensor:
    """The recipe of DeepSeek's kernels, by whole-matrix operations."""
    rows, columns = values.shape
    peaks = values.float().view(rows // 128, 128, columns // 128, 128).abs().amax((1, 3))
    scales = e4m3.recipe(peaks, power_of_two)
    return (values.float() / spread(scales)).clamp(-448, 448).to(torch.float8_e4m3fn)


def cases(rows: int, columns: int) -> Iterator[Case]:
    """What is compared: name, bytes read, textbook, ours."""
    values = (torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    out, kept = torch.empty_like(values), torch.empty_like(values)
    codes, again = torch.empty(2, rows, columns, dtype=torch.uint8)
    size = values.numel()
    for name, power_of_two in (("float32 scales", False), ("powers of two", True)):
        scales = e4m3.encode(values, codes, power_of_two=power_of_two)
        e4m3.decode(codes, scales, kept)
        plain_decode, plain_encode = (
            partial(textbook_decode, codes, scales),
            partial(textbook_encode, values, power_of_two),
        )
        yield f"decode, {name}", size, plain_decode, partial(e4m3.decode, codes, scales, out)
        yield f"encode, {name}", 2 * size, plain_encode, partial(e4m3.encode, values, again, power_of_two=power_of_two)
        yield f"restore, {name}", 2 * size, plain_encode, partial(e4m3.encode_restoring, kept, scales, again)


def seconds(function: Callable[[], object]) -> float:
    """One timed call."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2048, help="a multiple of 128")
    parser.add_argument("--columns", type=int, default=7168, help="a multiple of 128")
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{options.rows} x {options.columns}, torch {torch.__version__}, 1 thread, median of {options.runs}")
    print(f"{'GB/s read':24}{'textbook':>10}{'ours':>8}{'ratio':>9}")
    for name, size, textbook, ours in cases(options.rows, options.columns):
        seconds(textbook), seconds(ours)
        times = [(seconds(textbook), seconds(ours)) for _ in range(options.runs)]
        slow, fast = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"{name:24}{size / slow / 1e9:10.2f}{size / fast / 1e9:8.2f}{slow / fast:8.1f}x")


if __name__ == "__main__":
    main()
