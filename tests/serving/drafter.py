"""What vLLM loads as a draft: `PYTHON drafter.py TARGET DRAFT` prints, as JSON, a digest of every parameter and tokens.

Run by the Python of an environment that holds vLLM and knows nothing of dsctl. DRAFT is "-" for the target's own.
"""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Any

LENGTH = 8


def drafted(target: str, draft: str) -> dict[str, Any]:
    """The draft model's parameters as digests, the generated tokens, and how many were drafted."""
    import torch
    from vllm import LLM, SamplingParams

    chosen = {"method": "mtp", "num_speculative_tokens": 1} | ({} if draft == "-" else {"model": draft})
    engine = LLM(
        target, dtype="float32", max_model_len=64, max_num_seqs=1, enforce_eager=True, skip_tokenizer_init=True,
        speculative_config=chosen, disable_log_stats=False,
    )  # fmt: skip
    model = engine.llm_engine.model_executor.driver_worker.worker.model_runner.drafter.model
    held = {name: one.detach().contiguous().view(torch.uint8).numpy() for name, one in model.named_parameters()}
    wanted = SamplingParams(temperature=0, max_tokens=LENGTH, ignore_eos=True, detokenize=False)
    done = engine.generate([{"prompt_token_ids": [7, 8, 9]}], wanted)[0].outputs[0]
    counts = {one.name: one.value for one in engine.get_metrics() if one.name.endswith("spec_decode_num_drafts")}
    return {
        "parameters": {name: hashlib.sha256(one.tobytes()).hexdigest() for name, one in sorted(held.items())},
        "tokens": list(done.token_ids),
        "drafts": sum(counts.values()),
    }


if __name__ == "__main__":
    sys.stdout.write("drafted " + json.dumps(drafted(sys.argv[1], sys.argv[2])) + "\n")
