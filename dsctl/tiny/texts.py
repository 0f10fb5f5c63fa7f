"""The small files beside the weights: config, generation config, a byte-level tokenizer, model card and licence."""
# ruff: noqa: RUF001  the tokens are written with these bars

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from dsctl.core.config_fields import text_fields

# The special tokens at the begin and end of the real tokenizers' texts.
BEGIN, END, USER, ASSISTANT = (
    "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>",
)  # fmt: skip
SPECIAL = (BEGIN, END, USER, ASSISTANT)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '<｜Assistant｜>' + message['content'] + eos_token }}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
)
CARD = """# {release}, tiny

Made by `dsctl tiny`: the names, dtypes, config keys and files of {release}, small dimensions, random weights.
For testing programs that read or convert checkpoints. The model is untrained.
"""
OTHER = "# The release has a file of this name. Its contents are not part of this small checkpoint.\n"
LICENCE = "These weights are random numbers, and this tokenizer knows only bytes: use them as you like.\n"


def texts(release: str, config: Mapping[str, Any], others: Iterable[str] = ()) -> dict[str, str]:
    """Every small file by name; `others` are names of the release's further files, which get placeholder contents."""
    values: dict[str, Any] = {
        "config.json": config,
        "generation_config.json": _generation(config),
        "tokenizer.json": _tokenizer(text_fields(config)["vocab_size"]),
        "tokenizer_config.json": _tokenizer_config(config),
        "special_tokens_map.json": {"bos_token": BEGIN, "eos_token": END, "pad_token": END},
    }
    written = {name: json.dumps(value, indent=2, ensure_ascii=False) + "\n" for name, value in values.items()}
    return (
        written
        | {"README.md": CARD.format(release=release), "LICENSE": LICENCE}
        | {name: "{}\n" if name.endswith(".json") else OTHER for name in others}
    )


def _generation(config: Mapping[str, Any]) -> dict[str, Any]:
    config = text_fields(config)
    ids = {field: config[field] for field in ("bos_token_id", "eos_token_id") if config.get(field) is not None}
    return {"_from_model_config": True, **ids, "do_sample": True, "temperature": 0.6, "top_p": 0.95}


def _tokenizer_config(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": END,
        "clean_up_tokenization_spaces": False,
        "model_max_length": text_fields(config).get("max_position_embeddings", 4096),
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
    }


def _tokenizer(vocabulary: int) -> dict[str, Any]:
    """Bytes as tokens, in the form of the tokenizers library; a smaller vocabulary has fewer of them."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokens = (*SPECIAL, *_alphabet())[:vocabulary]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": text, **flags} for number, text in enumerate(tokens[: len(SPECIAL)])
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [],
        },
    }


def _alphabet() -> tuple[str, ...]:
    """A visible character for each byte: itself, or the next free one from 256 on (openai/gpt-2 src/encoder.py)."""
    shown = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
    hidden = [byte for byte in range(256) if byte not in shown]
    return tuple(map(chr, (*shown, *range(256, 256 + len(hidden)))))
