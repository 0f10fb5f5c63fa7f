"""What vLLM makes of a checkpoint: `PYTHON engine.py FOLDER DTYPE TOKEN...` prints, as JSON, what follows the tokens.

Run by the Python of an environment that holds vLLM and knows nothing of dsctl.
"""

from __future__ import annotations

import json
import sys
from typing import Any

BEST = 5
LENGTH = 4


def generated(folder: str, dtype: str, prompt: list[int]) -> list[dict[str, Any]]:
    """Each generated token, and the best with their log-probabilities; `dtype` is what it computes in."""
    from vllm import LLM, SamplingParams

    engine = LLM(folder, dtype=dtype, max_model_len=64, max_num_seqs=1, enforce_eager=True, skip_tokenizer_init=True)
    wanted = SamplingParams(temperature=0, max_tokens=LENGTH, logprobs=BEST, detokenize=False)
    done = engine.generate([{"prompt_token_ids": prompt}], wanted)[0].outputs[0]
    best = [{str(token): found.logprob for token, found in step.items()} for step in done.logprobs]
    return [{"token": token, "best": of} for token, of in zip(done.token_ids, best, strict=True)]


if __name__ == "__main__":
    tokens = generated(sys.argv[1], sys.argv[2], [int(word) for word in sys.argv[3:]])
    sys.stdout.write("generated " + json.dumps(tokens) + "\n")
