"""The meaning of differences that V4.1 brought, as `dsctl.look.meanings` has those of earlier models. Data."""

from __future__ import annotations

from dsctl.look.meaning import Meaning
from dsctl.look.shared_facts import (
    blocks_changed,
    caches_own,
    caches_shared,
    candidates_gained,
    drafter_experts,
    entries_narrowed,
    halves_gained,
    halves_lost,
    head_streams_gained,
    head_streams_lost,
    routed_by_score,
    tables_gained,
    tables_lost,
    vision_lost,
)

_V41, _CODE = "DeepSeek-V4.1-Flash report (DeepSeek_V41_Tech_Report.pdf)", "deepseek-ai/DeepSeek-V4.1-Flash inference/"
_PLACE = "docs/features/engram.md of vllm-project/vllm; docs.sglang.io, Engram Tables"

SHARED: tuple[Meaning, ...] = (
    Meaning(
        "halves-gained", halves_gained,
        "Causal encoder-decoder: a prompt needs to pass only the first {passed} of {layers} layers, because later "
        "layers read a cache that is made of the state after these. A token of a prompt takes {prompt} active values, "
        "a generated one {active}.{last}",
        f"{_V41}, sections 2.2 and 3.2.2; docs/costs.md",
    ),
    Meaning(
        "halves-lost", halves_lost,
        "A prompt passes all layers. In A it needs to pass only the first {passed} of {layers}, with {prompt} of "
        "{active} active values.",
        f"{_V41}, section 2.2",
    ),
    Meaning(
        "caches-shared", caches_shared,
        "Shared caches: layers {owners} keep compressed entries, and {using} layers attend to them; in A, {own} layers "
        "keep their own. In addition to a window of {window} tokens, a query attends to the {topk} best entries of the "
        "last of these layers. An entry stands for {kinds}. The lightning indexers of {indexers} layers choose, with "
        "{heads} small heads each; the other layers use the choice of the last one before them.{alone}",
        f"{_V41}, section 2.3.1; config.json, kv_source_layer_ids, index_source_layer_ids",
    ),
    Meaning(
        "caches-own", caches_own,
        "Caches are no longer shared: {own} layers keep their own. In A, {using} layers attend to those of {many}.",
        f"{_V41}, section 2.3.1",
    ),
    Meaning(
        "candidates-gained", candidates_gained,
        "Hierarchical indexing: the indexer of layer {source} also chooses {pool} candidates, and those of layers "
        "{later} score only these. The first {first} indexers still score every entry.",
        f"{_V41}, section 2.3.2; {_CODE}model.py",
    ),
    Meaning(
        "entries-narrowed", entries_narrowed,
        "Cache entries have four bits: E2M1 with an E4M3 scale for every 16 values, {entry} bytes each. The window "
        "stays in FP8, with {window} bytes per token and layer. Engines decode entries before they multiply, so that "
        "no FP4 units are needed. vLLM stores all of them in FP8 ({wider} bytes; plan --kv fp8).",
        f"{_V41}, section 2.4.4; sgl-project/sglang pull request 39123; vllm-project/vllm pull request 56893",
    ),
    Meaning(
        "tables-gained", tables_gained,
        "Engram: layers {layers} look up n-grams of 2 to {longest} tokens in tables of {rows} rows. A token looks up "
        "{each} rows of {width} values in each, {read} bytes in all with scales. The tables take {bytes}, {share} % of "
        "all bytes, and no arithmetic; one matrix per layer (engram.wkv) turns the rows into a key for each residual "
        "stream and a value. By default, vLLM keeps the tables in host memory and SGLang splits them over the GPUs.",
        f"{_V41}, section 2.4.2; {_CODE}engram.py; {_PLACE}",
    ),
    Meaning(
        "tables-lost", tables_lost,
        "No Engram: the n-gram tables of layers {layers} are removed ({bytes}, {share} % of all bytes).",
        f"{_V41}, section 2.4.2",
    ),
    Meaning(
        "head-streams-lost", head_streams_lost,
        "The {streams} residual streams no longer have weights of their own (hc_head_*) that reduce them to one for "
        "the head. Every hyper-connection computes how the next one reads the streams, and that of the last experts "
        "how the head does.",
        f"{_V41}, section 2.4.1; {_CODE}model.py; ikawrakow/ik_llama.cpp pull request 2455",
    ),
    Meaning(
        "head-streams-gained", head_streams_gained,
        "The {streams} residual streams have weights of their own (hc_head_*) that reduce them to one for the head. "
        "Every hyper-connection computes how it reads the streams itself.",
        "deepseek-ai/DeepSeek-V4-Flash inference/model.py",
    ),
    Meaning(
        "routed-by-score", routed_by_score,
        "No table of experts by token: {layers} layers of A look up a token's experts in tid2eid; all routers of B "
        "choose by score.",
        "config.json, num_hash_layers, and tensor names",
    ),
    Meaning(
        "blocks-changed", blocks_changed,
        "FP8 matrices have a scale for every block of {after} instead of {before}. A loader that assumes A's block "
        "finds scales of the wrong shape; parts of a matrix can begin at multiples of {rows} rows.",
        "config.json, quantization_config.weight_block_size",
    ),
    Meaning(
        "drafter-experts", drafter_experts,
        "Routed experts in each layer that drafts: {before} → {after}; active per token: {active}. Main layers of B "
        "have {main}.",
        "config.json, dspark_n_routed_experts, dspark_num_experts_per_tok",
    ),
    Meaning(
        "vision-lost", vision_lost,
        "No image input: the parts that read images are removed ({values} million values){routers}.",
        "config.json and tensor names of both",
    ),
)  # fmt: skip
