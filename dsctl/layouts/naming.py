"""What the parts of a stored parameter are called, by dialect. A part's name is the parameter's, with another end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

# By part: what is taken off the end of the parameter's name, and what is put there.
Ending = tuple[str, str]
_ITSELF: Ending = ("", "")


class Dialect(NamedTuple):
    """The endings of parts. A part that it does not name, such as values stored as they are, has the bare name."""

    endings: Mapping[str, Ending]

    def tensor(self, parameter: str, part: str) -> str:
        """The stored tensor's name."""
        off, on = self.endings.get(part, _ITSELF)
        return parameter.removesuffix(off) + on


DIALECTS: dict[str, Dialect] = {
    # deepseek-ai/DeepSeek-V3, README_WEIGHTS.md; SGLang's blockwise_int8 has the same names.
    "deepseek": Dialect({"scale": ("", "_scale_inv")}),
    # deepseek-ai/DeepSeek-V4-Flash, its published tensors; and what the reference models of V3 and V3.2 load.
    "v4": Dialect({"scale": ("weight", "scale")}),
    # vllm-project/compressed-tensors, compressors/quantized_compressors (naive) and (pack).
    "compressed-tensors": Dialect({"scale": ("", "_scale")}),
    "compressed-tensors-packed": Dialect({
        "codes": ("", "_packed"), "scale": ("", "_scale"), "global_scale": ("", "_global_scale"),
        "shape": ("", "_shape"),
    }),
    # NVIDIA/Model-Optimizer, its exported checkpoints; vllm-project/vllm, quantization/modelopt.py.
    "modelopt": Dialect({
        "scale": ("", "_scale"), "global_scale": ("", "_scale_2"), "input_scale": ("weight", "input_scale"),
    }),
}  # fmt: skip


def tensors(dialect: str, parameter: str, parts: Iterable[str]) -> list[str]:
    """The names of some parts of a parameter in the published layout."""
    known = DIALECTS[dialect]
    return [known.tensor(parameter, part) for part in parts]


class Speaks(Protocol):
    """Whoever names tensors: `respelled` are the dialects that it spells as another."""

    @property
    def respelled(self) -> Mapping[str, str]: ...


def dialect_of(layout: Speaks, dialect: str) -> Dialect:
    """The dialect that a layout uses in place of another."""
    return DIALECTS[layout.respelled.get(dialect, dialect)]


def endings(layout: Speaks, dialect: str, parts: Iterable[str]) -> tuple[tuple[str, Ending], ...]:
    """The endings of some parts, for whoever names many."""
    known = dialect_of(layout, dialect).endings
    return tuple((part, known.get(part, _ITSELF)) for part in parts)


def stored_name(layout: Speaks, tensor: str, dialect: str, part: str) -> str:
    """What a layout calls a part of what it keeps in a tensor."""
    return dialect_of(layout, dialect).tensor(tensor, part)
