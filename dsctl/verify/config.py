"""Fields of `config.json` that are impossible or contradict each other or the tensors: one line of a table each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.core.config_fields import text_fields
from dsctl.verify.findings import Finding

# The model types of an architecture's releases.
_TYPES = {
    "DeepseekV2ForCausalLM": ("deepseek_v2",),
    "DeepseekV3ForCausalLM": ("deepseek_v3", "kimi_k2", "joyai_llm_flash"),
    "DeepseekV32ForCausalLM": ("deepseek_v32",),
    "DeepseekV4ForCausalLM": ("deepseek_v4",),
    "DeepseekV41ForCausalLM": ("deepseek_v41",),
    "GlmMoeDsaForCausalLM": ("glm_moe_dsa",),
    "KimiK25ForConditionalGeneration": ("kimi_k25",),
    "KimiK3ForConditionalGeneration": ("kimi_k3",),
}
_BIAS = "e_score_correction_bias"


class Check(NamedTuple):
    """A check of some fields: `what` describes the problem if `wrong` is true. Absent and null fields always pass."""

    fields: tuple[str, ...]
    what: str
    wrong: Callable[..., bool]


def fields(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Findings about every field whose meaning is known."""
    config = text_fields(checkpoint.config or {})
    for check in CHECKS:
        values = [config.get(field) for field in check.fields]
        if None not in values and _is_wrong(check, values):
            said = ", ".join(f"{field} {value!r}" for field, value in zip(check.fields, values, strict=True))
            yield Finding("odd-config", check.fields[0], f"{check.what}: {said}")
    if any(family.role == "indexer" for family in checkpoint.families) and config.get("index_topk") is None:
        yield Finding("odd-config", "index_topk", "is absent, but the indexer needs the number of tokens to choose")
    biased = any(family.template.endswith(_BIAS) for family in checkpoint.families)
    if biased and config.get("topk_method") not in (None, "noaux_tc"):
        what = f"is {config['topk_method']!r}, but the router has a bias, which only noaux_tc uses"
        yield Finding("odd-config", "topk_method", what)


def _is_wrong(check: Check, values: list[Any]) -> bool:
    try:
        return check.wrong(*values)
    except (TypeError, ValueError):
        return True


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_other(architectures: Any, model_type: Any) -> bool:
    known = [_TYPES[name] for name in architectures if name in _TYPES]
    return bool(known) and not any(model_type in types for types in known)


def _is_no_count(value: Any) -> bool:
    return type(value) is not int or value < 1


def _are_beyond(tokens: Any, vocabulary: int) -> bool:
    return not all(0 <= token < vocabulary for token in (tokens if isinstance(tokens, list) else [tokens]))


CHECKS = (
    Check(("architectures", "model_type"), "belong to different models", _is_other),
    Check(("num_experts_per_tok", "n_routed_experts"), "more experts per token than experts", lambda k, n: k > n > 0),
    Check(("num_experts_per_token", "num_experts"), "more experts per token than experts", lambda k, n: k > n > 0),
    Check(("n_group", "n_routed_experts"), "groups do not divide the experts evenly", lambda g, n: g < 1 or n % g > 0),
    Check(("topk_group", "n_group"), "more groups per token than groups", lambda k, g: k > g),
    Check(
        ("num_experts_per_tok", "topk_group", "n_group", "n_routed_experts"),
        "the chosen groups hold fewer experts than a token uses",
        lambda k, chosen, g, n: n > 0 and k > chosen * n // g,
    ),
    Check(("rms_norm_eps",), "is not a small positive number", lambda eps: not (_is_number(eps) and 0 < eps < 0.1)),
    Check(("rope_theta",), "is not a positive number", lambda base: not (_is_number(base) and base > 0)),
    Check(("eos_token_id", "vocab_size"), "is beyond the vocabulary", _are_beyond),
    Check(("bos_token_id", "vocab_size"), "is beyond the vocabulary", _are_beyond),
    Check(("pad_token_id", "vocab_size"), "is beyond the vocabulary", _are_beyond),
    Check(("dspark_noise_token_id", "vocab_size"), "is beyond the vocabulary", _are_beyond),
    Check(("dspark_block_size",), "is not a number of tokens", _is_no_count),
    Check(("sliding_window",), "is not a number of tokens", _is_no_count),
    Check(("hc_sinkhorn_iters",), "is not a number of iterations", _is_no_count),
    Check(("compress_rope_theta",), "is not a positive number", lambda base: not (_is_number(base) and base > 0)),
)
