"""A checkpoint of an unknown architecture: every form to every other, its config, what is refused, what is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.compressors.format import infer_module_format
from compressed_tensors.quantization import preset_name_to_scheme
from safetensors.torch import load_file, save_file

from tests.support import lantern as made
from tests.support.command import call, dsctl
from tests.support.lantern import CONFIG, FP8, bits_of, held, said, verified, write

FORMS = (
    "fp8-channel", "int8-channel", "int4-group", "int4-group-32", "int8-group", "mxfp4", "mxfp8", "nvfp4",
    "fp8-block-ct", "fp8-block", "int8-block", "fp8-block-e8m0",
)  # fmt: skip


@pytest.fixture(scope="module")
def lantern(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.lantern(tmp_path_factory.mktemp("lantern") / "src")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_converts_to_bf16_and_to_every_other_form(lantern: Path, tmp_path: Path, form: str) -> None:
    dsctl("convert", lantern, tmp_path / "one", "--to", form, "-q", "--workers", 1)
    assert verified(tmp_path / "one") == []
    dsctl("convert", tmp_path / "one", tmp_path / "bf16", "--bf16", "-q", "--workers", 1)
    assert verified(tmp_path / "bf16") == [] and said(tmp_path / "bf16") is None
    dsctl("convert", tmp_path / "bf16", tmp_path / "back", "--to", "published", "--workers", 1)
    for file in (tmp_path / "one").iterdir():
        if file.name not in ("dsctl.json", "dsctl.intoto.json"):
            assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes(), file.name
    plan = json.loads(dsctl("convert", tmp_path / "one", tmp_path / "two", "--to", "fp8-channel", "--json"))
    assert plan["audit"]["parameters"] == 16 and verified(tmp_path / "two") == []
    for folder in ("one", "bf16", "two"):
        before, after = held(lantern), held(tmp_path / folder)
        for name in (name for name in before if "norm" in name or "gate" in name or "head" in name):
            assert (bits_of(before[name]) == bits_of(after[name])).all(), (folder, name)


@pytest.mark.parametrize(
    ("form", "preset"), [("int4-group", "W4A16"), ("int8-group", "W8A16"), ("mxfp4", "MXFP4A16"), ("mxfp8", "MXFP8")]
)
def test_groups_decode_as_compressed_tensors_decodes_them(
    lantern: Path, tmp_path: Path, form: str, preset: str
) -> None:
    scheme = preset_name_to_scheme(preset, ["Linear"])
    compressor = BaseCompressor.get_value_from_registry(infer_module_format(torch.nn.Linear, scheme).value)
    dsctl("convert", lantern, tmp_path / "one", "--to", form, "-q", "--workers", 1)
    dsctl("convert", tmp_path / "one", tmp_path / "bf16", "--bf16", "-q", "--workers", 1)
    stored, found = held(tmp_path / "one"), held(tmp_path / "bf16")
    for layer in range(3):
        module = f"trunk.{layer}.mix."
        parts = {name.removeprefix(module): tensor for name, tensor in stored.items() if name.startswith(module)}
        expected = compressor.decompress(parts, scheme)["weight"].bfloat16()
        assert torch.equal(found[f"{module}weight"], expected)


def test_modules_that_stay_plain_are_listed_and_what_the_source_lists_is_kept(lantern: Path, tmp_path: Path) -> None:
    dsctl("convert", lantern, tmp_path / "channel", "--to", "fp8-channel", "-q")
    gates = [f"trunk.{layer}.gate" for layer in range(3)]
    ignored = (said(tmp_path / "channel") or {})["ignore"]
    assert ignored[:2] == ["gate", "head"] and sorted(ignored[2:]) == gates
    dsctl("convert", tmp_path / "channel", tmp_path / "blocks", "--to", "fp8-block", "-q")
    found = said(tmp_path / "blocks") or {}
    assert found["modules_to_not_convert"] == found["ignored_layers"] == ignored
    dsctl("convert", lantern, tmp_path / "powers", "--fp8", "--scale-fmt", "ue8m0", "-q")
    found = said(tmp_path / "powers") or {}
    assert (found["scale_fmt"], found["modules_to_not_convert"]) == ("ue8m0", ["gate", "head"])
    bare = json.loads((lantern / "config.json").read_text())
    del bare["quantization_config"]["modules_to_not_convert"]
    copied = write(tmp_path / "bare", {file.name: load_file(file) for file in lantern.glob("*.safetensors")}, bare)
    dsctl("convert", copied, tmp_path / "named", "--to", "int8-channel", "-q")
    assert sorted((said(tmp_path / "named") or {})["ignore"]) == ["head", *gates]


def test_plain_matrices_are_quantized_only_by_name(lantern: Path, tmp_path: Path) -> None:
    bf16 = tmp_path / "bf16"
    dsctl("convert", lantern, bf16, "--bf16", "--no-keep-scales", "-q")
    for words in (["--to", "int4-group"], ["--fp8"]):
        done = call("convert", bf16, tmp_path / "no", *words)
        assert (done.returncode, len(done.stderr.splitlines())) == (30, 3) and not (tmp_path / "no").exists()
        assert "which matrices to quantize must be named" in done.stderr and "--only GLOB" in done.stderr
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[[rule]]\nmatch = "*.bank.*.weight"\nformat = "mxfp8"\n')
    dsctl("convert", bf16, tmp_path / "mixed", "--recipe", recipe, "-q")
    stored = held(tmp_path / "mixed")
    assert {name for name in stored if name.endswith("_scale")} == {
        f"trunk.{layer}.bank.{expert}.up.weight_scale" for layer in range(3) for expert in range(2)
    }
    assert verified(tmp_path / "mixed") == []
    assert {"head", "trunk.0.gate", "trunk.2.mix"} <= {*(said(tmp_path / "mixed") or {})["ignore"]}
    dsctl("convert", bf16, tmp_path / "part", "--to", "fp8-channel", "--only", "*.mix.*", "--only", "*norm*", "-q")
    assert sorted(held(tmp_path / "part")) == sorted(
        f"trunk.{layer}.{name}" for layer in range(3) for name in ("mix.weight", "mix.weight_scale", "norm.weight")
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("shard SRC OUT --tp 2", "ranks need a config.json of a known architecture"),
        ("slice SRC OUT --layers 0-1", "a slice needs a config.json of a known architecture"),
        ("plan SRC --tp 8", "the architecture is unknown"),
        ("plan SRC", "the architecture is unknown"),
        ("convert SRC OUT --bf16 --layout transformers", "layout transformers needs a config.json"),
        ("convert SRC OUT --to nvfp4-modelopt", "which is for routed experts, needs a config.json"),
    ],
)
def test_what_needs_an_architecture_is_refused_with_the_known_ones(
    lantern: Path, tmp_path: Path, words: str, says: str
) -> None:
    places = {"SRC": str(lantern), "OUT": str(tmp_path / "out")}
    done = call(*(places.get(word, word) for word in words.split()))
    assert done.returncode in (2, 30) and says in done.stderr and not (tmp_path / "out").exists()
    assert "known: deepseek_v2, " in done.stderr and done.stderr.count("error: ") == 1


def test_published_without_an_original_is_what_is_stored_or_refused(lantern: Path, tmp_path: Path) -> None:
    assert "already stored as published" in call("convert", lantern, tmp_path / "copy", "--to", "published").stderr
    for file in lantern.iterdir():
        assert (tmp_path / "copy" / file.name).read_bytes() == file.read_bytes()
    dsctl("convert", lantern, tmp_path / "bf16", "--bf16", "--no-keep-scales", "-q")
    done = call("convert", tmp_path / "bf16", tmp_path / "no", "--to", "published")
    assert done.returncode == 30 and "--to published without original.dsctl" in done.stderr
    dsctl("convert", tmp_path / "bf16", tmp_path / "back", "--to", "published", "--original", lantern, "-q")
    for file in lantern.iterdir():
        assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes()


def test_forms_that_are_not_read_are_copied_and_the_config_stays_true(tmp_path: Path) -> None:
    codes = torch.full((2, 3, 4), 0x7E, dtype=torch.uint8).view(torch.float8_e4m3fn)
    tensors = {
        "stack.weight": codes, "stack.weight_scale_inv": torch.ones(2, 1, 1),
        "mix.weight": codes.reshape(6, 4).clone(), "mix.weight_scale_inv": torch.ones(1, 1),
        "head.weight": torch.ones(2, 4),
    }  # fmt: skip
    config = CONFIG | {"quantization_config": FP8 | {"weight_block_size": [128, 128]}}
    source = write(tmp_path / "src", {"model.safetensors": tensors}, config)
    (code, where), *more = verified(source)
    assert (code, where, more) == ("unread-form", "stack.weight", [])
    done = call("convert", source, tmp_path / "bf16", "--bf16")
    told = "warning: 2 tensors stored in a form that dsctl does not read, such as stack.weight: copied unchanged"
    assert done.returncode == 0 and told in done.stderr
    found = held(tmp_path / "bf16")
    assert found["mix.weight"].dtype == torch.bfloat16 and found["stack.weight"].dtype == torch.float8_e4m3fn
    assert (said(tmp_path / "bf16") or {})["modules_to_not_convert"] == ["mix"]
    done = call("convert", source, tmp_path / "no", "--to", "fp8-channel")
    assert done.returncode == 30 and "stack.weight stays in a form that dsctl does not read" in done.stderr
    dsctl("convert", source, tmp_path / "rest", "--to", "fp8-channel", "--skip", "stack.*", "-q")
    assert (said(tmp_path / "rest") or {})["quant_method"] == "compressed-tensors"


def test_faults_are_found_and_refused(lantern: Path, tmp_path: Path) -> None:
    tensors = held(lantern)
    del tensors["trunk.0.mix.weight_scale_inv"], tensors["trunk.1.mix.weight"]
    tensors["trunk.2.mix.weight_scale_inv"] = torch.ones(3, 2)
    tensors["trunk.2.gate.weight"][1] = torch.nan
    config = json.loads((lantern / "config.json").read_text())
    source = write(tmp_path / "src", {"model.safetensors": tensors}, config)
    assert sorted(verified(source)) == [
        ("missing-scale", "trunk.0.mix.weight"), ("missing-weight", "trunk.1.mix.weight"),
        ("not-finite", "trunk.2.gate.weight"), ("wrong-scale", "trunk.2.mix.weight"),
    ]  # fmt: skip
    assert call("verify", source).returncode == 50
    done = call("convert", source, tmp_path / "no", "--bf16")
    assert done.returncode == 20 and not (tmp_path / "no").exists()


def test_a_check_says_that_the_architecture_is_unknown(lantern: Path, tmp_path: Path) -> None:
    done = call("verify", lantern)
    told = "architecture unknown: which parameters there should be was not checked"
    assert done.returncode == 0 and told in done.stdout and "no problems" not in done.stderr
    done = call("verify", lantern, "--require-architecture", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["ok"], report["counts"]["error"]) == (50, False, 0)
    assert "an unknown architecture" in done.stderr
    assert not verified(lantern, "--against", str(lantern))
    other = write(tmp_path / "other", {"model.safetensors": {"x.weight": torch.ones(2, 2)}}, CONFIG)
    assert ("other-architecture", "x.weight") in verified(lantern, "--against", str(other))
    assert ("other-architecture", "DeepSeek-V3") in verified(lantern, "--against", "v3")


def test_looking_knows_matrices_and_their_scales(lantern: Path, tmp_path: Path) -> None:
    seen = json.loads(dsctl("inspect", lantern, "--json"))
    assert (seen["architecture"], seen["formats"]) == (None, ["FP8", "BF16", "F32"])
    assert seen["roles"][0]["parameters"] == 16 and seen["faults"][0]["code"] == "unknown-architecture"
    dsctl("convert", lantern, tmp_path / "bf16", "--bf16", "-q")
    facts = json.loads(dsctl("diff", lantern, tmp_path / "bf16", "--json"))
    assert facts["verdict"] == "storage"
    compared = json.loads(dsctl("compare", lantern, tmp_path / "bf16", "--json"))
    assert compared["total"]["identical"] and len(compared["parameters"]) == 16


def test_a_weight_file_alone_is_converted(lantern: Path, tmp_path: Path) -> None:
    one = tmp_path / "from" / "one.safetensors"
    one.parent.mkdir()
    save_file(held(lantern), one, {"format": "pt"})
    dsctl("convert", one, tmp_path / "bf16", "--bf16", "-q")
    found = held(tmp_path / "bf16")
    assert len(found) == 16 and {tensor.dtype for tensor in found.values()} == {torch.bfloat16, torch.float32}


def test_a_config_that_declares_nothing_is_an_error_and_converts_by_what_shapes_show(
    lantern: Path, tmp_path: Path
) -> None:
    files = {file.name: load_file(file) for file in lantern.glob("*.safetensors")}
    source = write(tmp_path / "src", files, CONFIG)
    assert verified(source) == [("format-not-declared", "config.json")]
    fixed = shutil.copytree(source, tmp_path / "fixed")
    dsctl("verify", fixed, "--fix", "-q")
    spared = (said(fixed) or {})["modules_to_not_convert"]
    assert verified(fixed) == [] and sorted(spared) == ["head", *(f"trunk.{layer}.gate" for layer in range(3))]
    told = dsctl("convert", source, tmp_path / "bf16", "--bf16")
    assert "note: config.json declares no quantization: forms follow from names and shapes" in told
    assert held(tmp_path / "bf16").keys() == {name for name in held(source) if not name.endswith("_inv")}
    dsctl("convert", tmp_path / "bf16", tmp_path / "back", "--to", "published", "-q")
    for file in source.iterdir():
        assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes(), file.name


def test_a_lost_file_is_the_only_cause(lantern: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(lantern, tmp_path / "src")
    (copy / "model-1.safetensors").unlink()
    assert verified(copy) == [("missing-shard", "model-1.safetensors")]
    assert call("convert", copy, tmp_path / "no", "--bf16").returncode == 20


def test_parts_of_forms_that_are_not_read_keep_their_dtype(tmp_path: Path) -> None:
    """GPTQ's scales have the dtype of the other values, which a conversion changes."""
    tensors = {
        "mix.qweight": torch.arange(32, dtype=torch.int32).view(4, 8), "mix.scales": torch.ones(1, 8).half(),
        "mix.qzeros": torch.ones(1, 1, dtype=torch.int32), "head.weight": torch.ones(60, 8).half(),
    }  # fmt: skip
    config = CONFIG | {"torch_dtype": "float16", "quantization_config": {"quant_method": "gptq", "bits": 4}}
    source = write(tmp_path / "src", {"model.safetensors": tensors}, config)
    assert verified(source) == [("unread-form", "mix.qweight")]
    dsctl("convert", source, tmp_path / "bf16", "--bf16", "-q")
    found = held(tmp_path / "bf16")
    assert found["head.weight"].dtype == torch.bfloat16 and found["mix.scales"].dtype == torch.float16
    assert said(tmp_path / "bf16") == config["quantization_config"]


def test_a_difference_from_a_known_model_is_not_explained(lantern: Path) -> None:
    """What its tensors are for is not known, so nothing is said of what was lost or decoded."""
    said = json.loads(dsctl("diff", "v3", lantern, "--json"))
    assert not {one["key"] for one in said["meanings"]} - {"vocabulary", "context"}
