"""Checkpoints that differ as trained ones do: a step of an optimiser, a fine-tune, quantizing again, other codes.

Everything follows from a seed. Tensors are changed where they lie, one after another, so that a folder may be large.
Nothing of dsctl is used here but the pattern of FP8 blocks of 128 x 128 (DeepSeek V3, `weight_block_size`).
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests.support.raw_tensors import BITS, INDEX, Raw, RawPlace, RawTensor, places_of, save, write_index

Change = Callable[[RawPlace, Raw, np.random.Generator], Raw]
Floats = npt.NDArray[np.float32]

SCALE = "_scale_inv"
BLOCK = 128
LARGEST = 448.0
RATIO = (0.1 / 1.9) ** 0.5
EXPONENT = {"F16": 0x7C00, "BF16": 0x7F80, "F32": 0x7F800000, "F64": 0x7FF0000000000000, "F8_E5M2": 0x7C}


def make(old: Path, new: Path, change: Change, seed: int = 0, untouched: Collection[str] = ()) -> Path:
    """A copy of a checkpoint with every tensor changed, but the `untouched`. Each draws numbers of its own, which
    depend on its name and the seed only."""
    shutil.copytree(old, new)
    for name, place in places_of(new).items():
        if name not in untouched and place.nbytes:
            place.write(change(place, place.read(), _generator(name, seed)))
    return new


def _generator(name: str, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def optimiser_step(rate: float = 1e-6) -> Change:
    """One step of AdamW on BF16 tensors. The weights in float32, of which those stored are the rounded ones, lie
    anywhere within half a unit in the last place. Each moves by the rate times m / sqrt(v), whose deviation for
    independent gradients is sqrt((1 - beta1) / (1 + beta1)), 0.23 for a beta1 of 0.9."""

    def change(place: RawPlace, data: Raw, random: np.random.Generator) -> Raw:
        if place.dtype != "BF16":
            return data
        stored = from_bf16(data)
        step = np.float32(rate * RATIO) * random.standard_normal(stored.size, np.float32)
        return to_bf16(_before_rounding(stored, 8, -125, random) - step)

    return change


def fine_tune(sigma: float = 1e-4) -> Change:
    """N(0, sigma) added to every value of BF16 tensors."""

    def change(place: RawPlace, data: Raw, random: np.random.Generator) -> Raw:
        if place.dtype != "BF16":
            return data
        stored = from_bf16(data)
        return to_bf16(stored + np.float32(sigma) * random.standard_normal(stored.size, np.float32))

    return change


def last_bits(fraction: float) -> Change:
    """The last bit of so many elements, chosen at random, whatever their dtype. None becomes infinite or NaN, or stops
    being so."""

    def change(place: RawPlace, data: Raw, random: np.random.Generator) -> Raw:
        width = max(BITS[place.dtype], 8)
        if place.dtype == "BOOL" or width % 8 or data.size * 8 % width:
            return data
        words = data.view(f"<u{width // 8}").copy()
        chosen = random.random(words.size, np.float32) < fraction
        exponent = EXPONENT.get(place.dtype)
        if exponent is not None:
            chosen &= (words & exponent) != exponent
        if place.dtype in ("F8_E4M3", "F8_E8M0"):
            low = 0x7F if place.dtype == "F8_E4M3" else 0xFF
            chosen &= (words | 1) & low != low
        words[chosen] ^= 1
        return words.view(np.uint8)

    return change


def codes(fraction: float, dtypes: Collection[str] = ("F4", "I8", "U8")) -> Change:
    """So many FP4 codes, two in a byte as DeepSeek V4 packs them, replaced by a neighbour with the same sign."""

    def change(place: RawPlace, data: Raw, random: np.random.Generator) -> Raw:
        if place.dtype not in dtypes:
            return data
        nibbles = np.stack([data & 15, data >> 4], axis=-1)
        size = nibbles & 7
        up = (random.random(nibbles.shape, np.float32) < 0.5) & (size < 7) | (size == 0)
        chosen = random.random(nibbles.shape, np.float32) < fraction
        other = np.where(up, nibbles + 1, nibbles - 1)
        moved = np.where(chosen, other, nibbles).astype(np.uint8)
        return np.ascontiguousarray(moved[:, 0] | moved[:, 1] << 4)

    return change


def shuffled(place: RawPlace, data: Raw, random: np.random.Generator) -> Raw:
    """The same elements in another order: a checkpoint as alike as one of another seed."""
    width = max(BITS[place.dtype], 8) // 8
    return random.permutation(data.reshape(-1, width)).reshape(-1) if width else data


def quantized_again(old: Path, new: Path, relative: float = 1e-3, seed: int = 0) -> Path:
    """A copy of a checkpoint in FP8 blocks, as if its values before quantization had changed a little.

    Each F8_E4M3 matrix with an F32 tensor of its name and `_scale_inv`: values that round to its codes, times
    1 + N(0, `relative`), quantized once more, the largest of a block to 448. If all scales of a matrix are powers of
    two, so are its new ones.
    """
    shutil.copytree(old, new)
    places = places_of(new)
    for name, place in places.items():
        scale = places.get(f"{name}{SCALE}")
        if place.dtype == "F8_E4M3" and scale is not None and scale.dtype == "F32" and place.nbytes:
            scales = scale.read().view("<f4").reshape(scale.shape)
            made, scales = _once_more(place.read().reshape(place.shape), scales, relative, _generator(name, seed))
            place.write(made.reshape(-1))
            scale.write(scales.reshape(-1).view(np.uint8))
    return new


def _once_more(stored: Raw, scales: Floats, relative: float, random: np.random.Generator) -> tuple[Raw, Floats]:
    rounded = from_e4m3(stored)
    hidden = np.clip(_before_rounding(rounded, 4, -5, random), -LARGEST, LARGEST)
    hidden *= 1 + np.float32(relative) * random.standard_normal(stored.shape, np.float32)
    values = hidden * _spread(scales, stored.shape)
    found = np.maximum(_largest(values), np.float32(1e-12)) / np.float32(LARGEST)
    if np.all(np.frexp(scales)[0] == 0.5):
        found = np.exp2(np.ceil(np.log2(found)))
        # A largest value a little above 224 was rounded to it: half the scale would have been too small for it.
        found = np.where((_largest(rounded) == LARGEST / 2) & (found < scales), scales, found)
    found = found.astype("<f4")
    return to_e4m3(values / _spread(found, stored.shape)), found


def _before_rounding(values: Floats, bits: int, least: int, random: np.random.Generator) -> Floats:
    """Numbers that round to these values, which have `bits` bits of precision and exponents (of frexp) from `least`."""
    mantissa, exponent = np.frexp(values)
    unit = np.ldexp(np.float32(1), np.maximum(exponent, least) - bits)
    aside = (random.random(values.shape, np.float32) - np.float32(0.5)) * np.float32(0.999)
    # Below a power of two, values lie twice as close.
    close = (np.abs(mantissa) == 0.5) & (exponent > least) & (np.signbit(aside) != np.signbit(values))
    return values + unit * np.where(close, aside / 2, aside)


def _spread(scales: Floats, shape: tuple[int, ...]) -> Floats:
    rows, columns = shape
    return np.repeat(np.repeat(scales, BLOCK, 0)[:rows], BLOCK, 1)[:, :columns]


def _largest(values: Floats) -> Floats:
    rows, columns = values.shape
    padded = np.pad(np.abs(values), ((0, -rows % BLOCK), (0, -columns % BLOCK)))
    blocks = padded.reshape(padded.shape[0] // BLOCK, BLOCK, padded.shape[1] // BLOCK, BLOCK)
    return blocks.max((1, 3))


def from_bf16(data: Raw) -> Floats:
    """BF16 as float32."""
    return (data.view("<u2").astype("<u4") << 16).view("<f4")


def to_bf16(values: Floats) -> Raw:
    """Finite float32 to BF16, to the nearest, ties to even."""
    bits = values.astype("<f4").view("<u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").view(np.uint8)


def from_e4m3(data: Raw) -> Floats:
    """F8_E4M3 (no infinities; 0x7F and 0xFF are NaN) as float32."""
    return _E4M3[data]


def to_e4m3(values: Floats) -> Raw:
    """Float32 to the nearest F8_E4M3, ties to even codes, with 448 as the largest."""
    size = np.minimum(np.abs(values), np.float32(LARGEST))
    positive = _E4M3[:0x7F]
    middles = (positive[1:] + positive[:-1]) / 2
    code = np.searchsorted(middles, size, side="left").astype(np.uint8)
    tie = (code < 0x7E) & (size == middles[np.minimum(code, 0x7D)]) & (code & 1 == 1)
    return (code + tie) | np.where(np.signbit(values), 0x80, 0).astype(np.uint8)


def _e4m3() -> Floats:
    code = np.arange(256)
    exponent, fraction = code >> 3 & 15, code & 7
    size = np.where(exponent, np.ldexp(8.0 + fraction, exponent - 10), np.ldexp(fraction * 1.0, -9))
    size[(code & 0x7F) == 0x7F] = np.nan
    return np.where(code & 0x80, -size, size).astype(np.float32)


_E4M3 = _e4m3()


def rearranged(folder: Path, count: int = 3, seed: int = 0) -> Path:
    """Put the tensors of a folder into other files, in another order, with an index whose `total_size` is wrong; the
    scales of a matrix may be in a file other than its codes."""
    tensors = {
        name: RawTensor(place.dtype, place.shape, place.read()) for name, place in sorted(places_of(folder).items())
    }
    random = np.random.default_rng(seed)
    names = [str(name) for name in random.permutation(list(tensors))]
    for file in folder.glob("*.safetensors"):
        file.unlink()
    weights: dict[str, str] = {}
    for number in range(count):
        file, held = f"part-{number}.safetensors", {name: tensors[name] for name in names[number::count]}
        save(folder / file, held, {"format": "pt"})
        weights |= dict.fromkeys(held, file)
    write_index(folder, {"total_size": 1}, weights)
    return folder


def added(folder: Path, tensors: Mapping[str, RawTensor], file: str = "more.safetensors") -> Path:
    """One more file of a folder, and its index with it."""
    save(folder / file, tensors, {"format": "pt"})
    index = json.loads((folder / INDEX).read_text())
    write_index(folder, index["metadata"], index["weight_map"] | dict.fromkeys(tensors, file))
    return folder


def odd_tensors(seed: int = 0) -> dict[str, RawTensor]:
    """Tensors that are easy to forget: without values, without dimensions, of one byte, of an odd number of bytes."""
    random = np.random.default_rng(seed)

    def raw(dtype: str, *shape: int) -> RawTensor:
        size = int(np.prod(shape, dtype=int)) * BITS[dtype] // 8
        return RawTensor(dtype, shape, random.integers(0, 64, size, np.uint8))

    return {
        "odd.empty": raw("BF16", 0, 7), "odd.scalar": raw("F32"), "odd.count": raw("I64"), "odd.flag": raw("BOOL", 1),
        "odd.bytes": raw("U8", 13), "odd.codes": raw("F4", 3, 6), "odd.small": raw("F8_E8M0", 5),
    }  # fmt: skip


def side_files(folder: Path, temperature: float = 0.7) -> Path:
    """The other files as a new training leaves them: the config with another key, a tokenizer, a template."""
    config = json.loads((folder / "config.json").read_text()) if (folder / "config.json").exists() else {}
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": 7}, indent=2))
    (folder / "generation_config.json").write_text(json.dumps({"temperature": temperature}))
    (folder / "chat_template.jinja").write_text("{{ messages }}\n")
    return folder
