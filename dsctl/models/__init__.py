"""The table of models, and the choice of one by `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsctl.core.errors import FormatError
from dsctl.models.deepseek_v2 import DeepseekV2
from dsctl.models.deepseek_v3 import DeepseekV3
from dsctl.models.deepseek_v4 import DeepseekV4
from dsctl.models.deepseek_v32 import DeepseekV32
from dsctl.models.deepseek_v41 import DeepseekV41
from dsctl.models.glm_moe_dsa import GlmMoeDsa
from dsctl.models.kimi_k2 import KimiK2
from dsctl.models.kimi_k3 import KimiK3
from dsctl.models.kimi_k25 import KimiK25
from dsctl.models.mistral_large_3 import MistralLarge3
from dsctl.models.model import Model

MODELS: dict[str, Model] = {
    "deepseek_v2": DeepseekV2(),
    "deepseek_v32": DeepseekV32(),
    "deepseek_v4": DeepseekV4(),
    "deepseek_v41": DeepseekV41(),
    "glm_moe_dsa": GlmMoeDsa(),
    "kimi_k2": KimiK2(),
    "kimi_k25": KimiK25(),
    "kimi_k3": KimiK3(),
    "mistral_large_3": MistralLarge3(),
    "deepseek_v3": DeepseekV3(),
}


class UnknownArchitecture(FormatError):
    """No known architecture matches a `config.json`."""


def recognise(config: Mapping[str, Any]) -> Model:
    """The model whose architecture a `config.json` describes.

    Raises:
        UnknownArchitecture: no known architecture matches. FormatError: `architectures` is not a list.
    """
    if not isinstance(config.get("architectures") or [], list):
        raise FormatError("config.json: architectures is not a list")
    for model in MODELS.values():
        if model.matches(config):
            return model
    what = config.get("model_type", "none given")
    raise UnknownArchitecture(f"config.json: unknown architecture (model_type: {what!r})", hint=known())


def known() -> str:
    """The known architectures, for a hint."""
    return f"known: {', '.join(MODELS)}"
