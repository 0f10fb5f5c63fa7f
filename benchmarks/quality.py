"""What each format loses on trained weights and on Gaussian ones: `python benchmarks/quality.py FILE.safetensors`.

Every matrix of the file whose rows are whole groups of 128, embeddings apart, is cast to bfloat16, as releases store
weights, encoded and decoded. Signal over error in decibels: over all matrices, over those of attention and the others,
and of the matrix that loses most; beside them, bfloat16 values of normal distribution.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from safetensors import safe_open

from dsctl.codecs import CODECS
from dsctl.codecs.codec import PEAK, Codec
from dsctl.codecs.facts import bits
from dsctl.codecs.plain import Plain
from dsctl.plan.request import SEARCHED
from dsctl.work.buffers import DTYPES

GROUP = 128
GAUSSIAN = 1024, 2048


class Loss(NamedTuple):
    """Sums of squares: of values and of what is lost of them."""

    signal: float
    noise: float

    def __add__(self, other: object) -> Loss:
        assert isinstance(other, Loss)
        return Loss(self.signal + other.signal, self.noise + other.noise)

    @property
    def decibels(self) -> float:
        return 10 * math.log10(self.signal / self.noise) if self.noise else math.inf


def loss(codec: Codec, values: torch.Tensor) -> Loss:
    """What a matrix loses when it is stored by a codec."""
    shape = tuple(values.shape)
    stored = {suffix: torch.empty(spec.shape, dtype=DTYPES[spec.dtype]) for suffix, spec in codec.specs(shape).items()}
    peak = {PEAK: values.abs().amax().float().view(1)} if codec.surveys else {}
    codec.encode(values, stored | peak)
    back = torch.empty_like(values)
    codec.decode(stored, back)
    error = values.double() - back.double()
    return Loss(float(values.double().square().sum()), float(error.square().sum()))


def trained(path: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The matrices of a file by name, as bfloat16."""
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118
            shape = file.get_slice(name).get_shape()
            if len(shape) == 2 and shape[1] % GROUP == 0 and "embedding" not in name:
                yield name, file.get_tensor(name).bfloat16().contiguous()


def kind(name: str) -> str:
    """encoder.layer.0.attention.self.query.weight -> attention."""
    return "attention" if "attention" in name else "mlp"


def codecs() -> Iterator[tuple[str, Codec]]:
    """Every format that quantizes, and those with a search again."""
    for name, codec in CODECS.items():
        if isinstance(codec, Plain):
            continue
        yield name, codec
        if name in SEARCHED:
            searching: Any = codec
            yield f"{name} --search", replace(searching, search=True)


def row(name: str, codec: Codec, matrices: Mapping[str, torch.Tensor], gaussian: torch.Tensor) -> str:
    """One line of the table."""
    lost = {matrix: loss(codec, values) for matrix, values in matrices.items()}
    sums: dict[str, Loss] = {}
    for matrix, one in lost.items():
        for group in ("all", kind(matrix)):
            sums[group] = sums.get(group, Loss(0.0, 0.0)) + one
    worst = min(one.decibels for one in lost.values())
    figures = (loss(codec, gaussian).decibels, *(sums[group].decibels for group in ("all", "attention", "mlp")), worst)
    size = bits(name.partition(" ")[0])
    return f"| `{name}` | {size:.2f} | " + " | ".join(f"{figure:.1f}" for figure in figures) + " |"


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", help="trained weights in safetensors")
    options = parser.parse_args()
    matrices = dict(trained(options.file))
    values = sum(matrix.numel() for matrix in matrices.values())
    gaussian = (torch.randn(GAUSSIAN, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    print(f"{len(matrices)} trained matrices, {values:,} values; dB\n")
    print("| format | bits | Gaussian | trained | attention | MLP | worst matrix |\n|---|--:|--:|--:|--:|--:|--:|")
    for name, codec in codecs():
        print(row(name, codec, matrices, gaussian), flush=True)


if __name__ == "__main__":
    main()
