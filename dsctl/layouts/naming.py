"""Names of a stored parameter's parts, by dialect. A part's name is the parameter's name with a different ending."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

# By part: the ending to remove from the parameter's name, and the ending to add.
Ending = tuple[str, str]
_ITSELF: Ending = ("", "")


class Dialect(NamedTuple):
    """The endings of parts. A part without an entry, such as unquantized values, has the parameter's own name."""

    endings: Mapping[str, Ending]

    def tensor(self, parameter: str, part: str) -> str:
        """The stored tensor's name."""
        off, on = self.ending(part)
        return parameter.removesuffix(off) + on

    def ending(self, part: str) -> Ending:
        """The ending that a part's name takes away from the parameter's, and the one that it adds."""
        return self.endings.get(part, _ITSELF)


DIALECTS: dict[str, Dialect] = {
    # deepseek-ai/DeepSeek-V3, README_WEIGHTS.md; SGLang's blockwise_int8 has the same names.
    "deepseek": Dialect({"scale": ("", "_scale_inv")}),
    # deepseek-ai/DeepSeek-V4-Flash, its published tensors; the tensors that the reference models of V3 and V3.2 load.
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
    """An object that names tensors: `respelled` maps dialects to their replacements."""

    @property
    def respelled(self) -> Mapping[str, str]: ...


def dialect_of(layout: Speaks, dialect: str) -> Dialect:
    """The dialect that a layout uses for a codec's dialect."""
    return DIALECTS[layout.respelled.get(dialect, dialect)]


def endings(layout: Speaks, dialect: str, parts: Iterable[str]) -> tuple[tuple[str, Ending], ...]:
    """The endings of some parts, to name many tensors quickly."""
    known = dialect_of(layout, dialect).endings
    return tuple((part, known.get(part, _ITSELF)) for part in parts)


def stored_name(layout: Speaks, tensor: str, dialect: str, part: str) -> str:
    """A layout's name for a part of a tensor."""
    return dialect_of(layout, dialect).tensor(tensor, part)
