"""What exists: a model yields its parameters from `config.json`. Names are generated here and never parsed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from dsctl.core.errors import FormatError
from dsctl.core.params import Family


class Model(Protocol):
    """One architecture."""

    name: str

    def matches(self, config: Mapping[str, Any]) -> bool:
        """Whether this `config.json` is of this architecture."""

    def families(self, config: Mapping[str, Any]) -> tuple[Family, ...]:
        """Every parameter of the model, MTP layers included.

        Raises:
            FormatError: a field that sets a shape is missing or absurd.
        """

    def tiny(self, config: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
        """The same config with small dimensions: `sizes` holds layers, experts, hidden, heads, vocab."""


from dsctl.models.deepseek_v2 import DeepseekV2  # noqa: E402
from dsctl.models.deepseek_v3 import DeepseekV3  # noqa: E402
from dsctl.models.deepseek_v32 import DeepseekV32  # noqa: E402
from dsctl.models.glm_moe_dsa import GlmMoeDsa  # noqa: E402
from dsctl.models.kimi_k2 import KimiK2  # noqa: E402

MODELS: dict[str, Model] = {
    "deepseek_v2": DeepseekV2(),
    "deepseek_v32": DeepseekV32(),
    "glm_moe_dsa": GlmMoeDsa(),
    "kimi_k2": KimiK2(),
    "deepseek_v3": DeepseekV3(),
}


def recognise(config: Mapping[str, Any]) -> Model:
    """The model whose architecture a `config.json` describes.

    Raises:
        FormatError: no known architecture matches.
    """
    if not isinstance(config.get("architectures") or [], list):
        raise FormatError("config.json: architectures is not a list")
    for model in MODELS.values():
        if model.matches(config):
            return model
    what = config.get("model_type", "none given")
    raise FormatError(f"config.json: unknown architecture (model_type: {what!r})", hint=f"known: {', '.join(MODELS)}")
