"""The texts of a target: config, index and manifests are true, and come back byte for byte where nothing changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsctl.checkpoint.checkpoint import ORIGINAL, Checkpoint
from dsctl.checkpoint.opening import open_checkpoint
from dsctl.checkpoint.side_files import WHOLE
from dsctl.codecs import CODECS
from dsctl.codecs.codec import Codec
from dsctl.codecs.plain import Plain
from dsctl.core.header import TensorSpec
from dsctl.layouts import LAYOUTS
from dsctl.layouts.deepseek import CONFIG
from dsctl.layouts.manifests import MANIFEST, decode
from dsctl.plan.plan import PlacedPart
from dsctl.plan.planner import make_plan
from dsctl.plan.request import Request
from dsctl.plan.target import target_of
from dsctl.plan.texts import carried, edit_config, index_of, index_text, json_text, rank_texts
from dsctl.stores import INDEX, SIGNED, store_at
from tests.support.headers import BF16_CONFIG, FP8, FP8_CONFIG, bf16, fp8, lay_out, opened, write_header

NAMES = st.text("abc.01", min_size=1, max_size=6)


def _texts(checkpoint: Checkpoint, request: Request) -> dict[str, bytes]:
    return make_plan(checkpoint, request).texts


def _config(checkpoint: Checkpoint, request: Request) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(_texts(checkpoint, request)["config.json"])
    return said


@given(st.lists(st.tuples(NAMES, st.sampled_from(["a.safetensors", "rank-00001/b.safetensors"]), st.integers(0, 9))))
def test_an_index_names_every_tensor_once_and_counts_its_bytes_once(found: list[tuple[str, str, int]]) -> None:
    parts = [PlacedPart("values", name, file, TensorSpec("BF16", (count,))) for name, file, count in found]
    index = index_of([*parts, *parts])
    last = {part.tensor: part for part in parts}
    assert list(index["weight_map"]) == sorted(last)
    assert index["weight_map"] == {name: part.file.rpartition("/")[2] for name, part in last.items()}
    assert index["metadata"] == {"total_size": sum(part.spec.nbytes for part in last.values())}


@given(st.dictionaries(st.text(), st.text()), st.integers(0, 1 << 60))
def test_an_index_is_written_as_any_other_text(weights: dict[str, str], total: int) -> None:
    index = {"metadata": {"total_size": total}, "weight_map": weights}
    assert json.loads(index_text(index)) == json.loads(json_text(index)) == index
    assert index_text(index).endswith(b"\n")


def test_texts_are_indented_and_not_escaped() -> None:
    assert json_text({"a": "ü", "b": [1.5]}) == '{\n  "a": "ü",\n  "b": [\n    1.5\n  ]\n}\n'.encode()


@pytest.mark.parametrize(
    ("config", "codec", "edited"),
    [
        ({"quantization_config": FP8}, Plain("BF16"), {"torch_dtype": "bfloat16"}),
        ({"torch_dtype": "bfloat16"}, Plain("F32"), {"torch_dtype": "float32"}),
        ({"dtype": "bfloat16"}, Plain("F16"), {"dtype": "float16"}),
        ({"dtype": "x", "torch_dtype": "y"}, Plain("F16"), {"dtype": "float16", "torch_dtype": "y"}),
        ({"torch_dtype": "bfloat16"}, CODECS["fp8-block"], {"torch_dtype": "bfloat16"}),
    ],
)
def test_a_config_says_how_values_are_stored(config: dict[str, Any], codec: Codec, edited: dict[str, Any]) -> None:
    assert edit_config(config, codec) == edited
    assert edit_config(config, codec, {"a": 1}) == edited | {"quantization_config": {"a": 1}}
    assert "quantization_config" not in edited


def test_the_order_of_a_config_stays() -> None:
    assert list(edit_config({"b": 1, "torch_dtype": "x", "a": 2}, Plain())) == ["b", "torch_dtype", "a"]


@pytest.mark.parametrize("to", ["bf16", "f32", "f16"])
def test_a_decoded_config_declares_nothing(source: Checkpoint, to: str) -> None:
    said = _config(source, Request(to))
    assert "quantization_config" not in said
    assert said == BF16_CONFIG | {"torch_dtype": {"bf16": "bfloat16", "f32": "float32", "f16": "float16"}[to]}


@pytest.mark.parametrize("to", [name for name, codec in CODECS.items() if codec.quantized])
def test_what_is_written_is_read_as_it_is_declared(tmp_path: Path, to: str) -> None:
    made = opened(lay_out(make_plan(bf16(tmp_path / "src"), Request(to)), tmp_path / "dst"))
    assert made.survey.faults == [] and made.survey.extra == []
    assert CODECS[to].form.codes in {codec.form.codes for codec in made.stored_codecs}


def test_a_config_that_is_kept_is_the_same_bytes(source: Checkpoint, tmp_path: Path) -> None:
    """Ranks keep the bytes; one folder of it is written as every text is."""
    raw = source.store.read("config.json", 0, source.files["config.json"])
    ranks = make_plan(source, Request("keep", tp=2))
    assert {ranks.texts[f"rank-0000{rank}/config.json"] for rank in (0, 1)} == {raw} == {ranks.texts["config.json"]}
    assert _texts(source, Request("keep"))["config.json"] == json_text(FP8_CONFIG)
    merged = make_plan(opened(lay_out(ranks, tmp_path / "ranks")), Request("keep"))
    assert merged.texts["config.json"] == raw


def test_without_its_mtp_layer_a_config_says_so(source: Checkpoint) -> None:
    assert _config(source, Request("keep", mtp="drop")) == FP8_CONFIG | {"num_nextn_predict_layers": 0}
    ranks = _config(source, Request("keep", tp=2, mtp="drop"))
    assert ranks["num_nextn_predict_layers"] == 0


def test_the_way_back_gives_the_config_and_index_byte_for_byte(source: Checkpoint, tmp_path: Path) -> None:
    decoded = opened(lay_out(make_plan(source, Request("bf16")), tmp_path / "dst"))
    back = make_plan(decoded, Request("fp8-block"))
    for file in ("config.json", INDEX):
        assert back.texts[file] == source.store.read(file, 0, source.files[file])


@pytest.mark.parametrize(
    "request_",
    [
        Request("fp8-block", mtp="drop"),
        Request("fp8-block", scale_fmt="float32"),
        Request("fp8-block", shard_size=10_000_000),
    ],
)
def test_another_way_back_does_not_give_all_of_them(source: Checkpoint, tmp_path: Path, request_: Request) -> None:
    decoded = opened(lay_out(make_plan(source, Request("bf16")), tmp_path / "dst"))
    before = [source.store.read(file, 0, source.files[file]) for file in ("config.json", INDEX)]
    found = make_plan(decoded, request_).texts
    assert [found["config.json"], found[INDEX]] != before


def test_a_config_edited_in_between_is_not_undone(source: Checkpoint, tmp_path: Path) -> None:
    folder = lay_out(make_plan(source, Request("bf16")), tmp_path / "dst")
    (folder / "config.json").write_text(json.dumps(BF16_CONFIG | {"rope_theta": 5}))
    said = _config(opened(folder), Request("fp8-block"))
    assert said["rope_theta"] == 5 and said["quantization_config"]["scale_fmt"] == "ue8m0"


def test_one_file_needs_no_index(source: Checkpoint) -> None:
    assert INDEX in _texts(source, Request("keep"))
    assert INDEX in _texts(source, Request("keep", shard_size=10**9))


def test_a_single_file_without_a_config_gets_none(tmp_path: Path) -> None:
    write_header(tmp_path / "a.safetensors", {"w": TensorSpec("BF16", (2, 2))})
    source = open_checkpoint(store_at(tmp_path / "a.safetensors"))
    assert set(_texts(source, Request("keep"))) == {INDEX}


def test_the_index_of_what_is_left(source: Checkpoint) -> None:
    plan = make_plan(source, Request("keep", only=("model.layers.0.*",)))
    index = json.loads(plan.texts[INDEX])
    assert all(name.startswith("model.layers.0.") for name in index["weight_map"])
    assert index["metadata"]["total_size"] == sum(file.size - len(file.header) for file in plan.files)


@pytest.mark.parametrize("tp", [1, 2])
def test_every_rank_is_complete_in_itself(source: Checkpoint, tp: int) -> None:
    texts = _texts(source, Request("keep", tp=tp))
    for rank in range(tp):
        folder = f"rank-{rank:05d}"
        index = json.loads(texts[f"{folder}/{INDEX}"])
        manifest = decode(texts[f"{folder}/{MANIFEST}"], "m")
        assert (manifest.layout, manifest.rank, manifest.tp, manifest.dealt) == ("hf", rank, tp, False)
        assert len(index["weight_map"]) == len(list(source.tensors))
    assert INDEX not in texts


def test_a_layout_of_one_folder_has_no_rank_texts(source: Checkpoint) -> None:
    assert rank_texts(LAYOUTS["published"], {}, [], b"") == {}
    texts = _texts(source, Request("keep", layout="deepseek", tp=2, ep=2, mtp="drop"))
    assert set(texts) == {"config.json", CONFIG}
    assert json.loads(texts[CONFIG])["n_layers"] == 2


def test_other_files_are_carried_and_weights_are_not(tmp_path: Path) -> None:
    folder = Path(fp8(tmp_path).store.place)
    for name in ("README.md", "a.bin", "b.gguf", "c.onnx", "code.py", SIGNED, WHOLE, "sub/d.txt", "x.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("abc")
    assert carried(target_of(opened(folder), Request("bf16"))) == {
        "README.md": 3, "code.py": 3, "sub/d.txt": 3, "tokenizer.json": 2,
    }  # fmt: skip


def test_what_ranks_repeat_is_carried_once(source: Checkpoint, tmp_path: Path) -> None:
    folder = lay_out(make_plan(source, Request("keep", tp=2)), tmp_path / "ranks")
    for name in ("tokenizer.json", "rank-00000/tokenizer.json", "rank-00001/tokenizer.json"):
        (folder / name).write_text("{}")
    assert carried(target_of(opened(folder), Request("keep"))) == {"tokenizer.json": 2}


@pytest.mark.parametrize(
    ("request_", "there"),
    [
        (Request("keep"), True),
        (Request("f32"), True),
        (Request("fp8-block"), False),
        (Request("int8-channel"), False),
        (Request("keep", only=("model.*",)), False),
        (Request("keep", skip=("nothing",)), False),
        (Request("keep", layers=(0,)), False),
        (Request("keep", mtp="drop"), True),
    ],
)
def test_the_side_file_goes_along_while_it_is_true(
    source: Checkpoint, tmp_path: Path, request_: Request, there: bool
) -> None:
    decoded = opened(lay_out(make_plan(source, Request("bf16")), tmp_path / "dst"))
    assert (ORIGINAL in carried(target_of(decoded, request_))) is there


def test_a_side_file_is_made_anew_by_who_decodes(source: Checkpoint, tmp_path: Path) -> None:
    """An FP8 checkpoint with a side file of an earlier life: its own scales are what is to be kept."""
    decoded = lay_out(make_plan(source, Request("bf16")), tmp_path / "decoded")
    (Path(source.store.place) / ORIGINAL).write_bytes((decoded / ORIGINAL).read_bytes())
    again = opened(Path(source.store.place))
    assert ORIGINAL in carried(target_of(again, Request("keep")))
    plan = make_plan(again, Request("bf16"))
    assert ORIGINAL not in plan.carried and ORIGINAL in {file.name for file in plan.files}
