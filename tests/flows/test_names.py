"""`dsctl convert --layout`: other names and the way back, byte for byte; folders whose names are mixed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.checkpoints import tiny
from tests.support.command import call, dsctl, dsctl_fails
from tests.support.folders import contents, tensors

SMALL: dict[str, Any] = {"layers": 5, "experts": 2, "hidden": 256, "heads": 2, "vocab": 128, "moe_intermediate": 128}
FLASH = "v4-flash"


@pytest.mark.parametrize(
    ("release", "there", "back"),
    [
        (FLASH, (), ()),
        (FLASH, ("--fp8",), ("--to", "published")),
        ("v4-flash-base", ("--bf16",), ("--to", "published")),
        ("v4-flash-0731", ("--bf16",), ("--to", "published")),
    ],
)
def test_names_of_transformers_there_and_back(
    release: str,
    there: tuple[str, ...],
    back: tuple[str, ...],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    source = tiny(tmp_path_factory, release, **SMALL)
    said = call("convert", source, tmp_path / "named", *there, "--layout", "transformers", "--workers", 1)
    assert said.returncode == 0 and ("only on a GPU" in said.stderr) == ("--bf16" not in there), said
    names = tensors(tmp_path / "named").keys()
    assert "model.layers.0.mlp.experts.gate_up_proj" in names and "mtp.0.attn_norm.weight" in names
    assert ("model.layers.0.mlp.experts.down_proj_scale_inv" in names) == ("--bf16" not in there)
    dsctl("convert", tmp_path / "named", tmp_path / "back", *back, "--layout", "published", "--workers", 1)
    assert contents(tmp_path / "back") == contents(source)


def test_the_way_back_in_two_steps(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    source = tiny(tmp_path_factory, FLASH, **SMALL)
    dsctl("convert", source, tmp_path / "named", "--bf16", "--layout", "transformers", "--workers", 1)
    dsctl("convert", tmp_path / "named", tmp_path / "bf16", "--layout", "published", "--workers", 1)
    dsctl("convert", tmp_path / "bf16", tmp_path / "back", "--to", "published", "--workers", 1)
    assert contents(tmp_path / "back") == contents(source)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a name, dtypes and a config as transformers saves them, without its drafter."""
    source, folder = tiny(tmp_path_factory, FLASH, **SMALL, mtp=False), tmp_path_factory.mktemp("mixed")
    dsctl(
        "convert", source, folder / "named", "--bf16", "--layout", "transformers", "--shard-size", "1GB", "--workers", 1
    )
    (weights,) = (folder / "named").glob("*.safetensors")
    found = load_file(weights)
    for layer in range(5):
        norm = found.pop(f"model.layers.{layer}.self_attn.kv_norm.weight")
        found[f"model.layers.{layer}.attn.norm.weight"] = norm.float()
    shutil.rmtree(folder / "named")
    (folder / "named").mkdir()
    save_file(found, folder / "named" / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    kinds = {0: "sliding_attention", 4: "compressed_sparse_attention", 128: "heavily_compressed_attention"}
    ratios, hashed = config.pop("compress_ratios"), config.pop("num_hash_layers")
    rope = {**config.pop("rope_scaling"), "rope_type": "yarn", "rope_theta": config["compress_rope_theta"]}
    config |= {
        "layer_types": [kinds[ratio] for ratio in ratios[:5]],
        "mlp_layer_types": ["hash_moe"] * hashed + ["moe"] * (5 - hashed),
        "rope_parameters": {"compress": rope, "main": {"rope_type": "default", "rope_theta": config["rope_theta"]}},
        "dtype": config.pop("torch_dtype"),
    }
    del config["quantization_config"]
    (folder / "named" / "config.json").write_text(json.dumps(config))
    return folder / "named"


def test_a_folder_of_mixed_names_becomes_a_release_again(
    mixed: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = tiny(tmp_path_factory, FLASH, **SMALL, mtp=False)
    dsctl("convert", source, tmp_path / "bf16", "--bf16", "--workers", 1)
    said = call("convert", mixed, tmp_path / "repaired", "--layout", "published", "--workers", 1)
    assert "the source has no mtp.* tensors" in said.stdout
    wanted, found = tensors(tmp_path / "bf16"), tensors(tmp_path / "repaired")
    assert wanted.keys() == found.keys()
    assert all(found[name].dtype == one.dtype and torch.equal(found[name], one) for name, one in wanted.items())
    one, other = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("bf16", "repaired"))
    assert one == other
    audit = json.loads((tmp_path / "repaired" / "dsctl.json").read_text())["audit"]
    assert audit["cast"] == 5 and audit["moved"] == audit["parameters"] - 5


def test_what_only_looks_reads_mixed_names_too(mixed: Path) -> None:
    found = json.loads(call("verify", mixed, "--json").stdout)["findings"]
    assert {"mixed-names", "widened"} <= {finding["code"] for finding in found}
    assert not any(finding["code"] in ("missing-tensor", "extra-tensor", "bad-config") for finding in found)
    assert "deepseek_v4" in dsctl("inspect", mixed)
    assert "100.00%" in dsctl("compare", mixed, mixed)


def test_values_that_a_release_would_not_hold_are_refused(mixed: Path, tmp_path: Path) -> None:
    shutil.copytree(mixed, tmp_path / "tuned")
    weights = tmp_path / "tuned" / "model.safetensors"
    found = load_file(weights)
    found["model.layers.1.attn.norm.weight"][3] = 1.0001
    save_file(found, weights, {"format": "pt"})
    said = call("convert", tmp_path / "tuned", tmp_path / "out", "--layout", "published")
    assert said.returncode == 41
    assert "layers.1.attn.kv_norm.weight: value that BF16 cannot hold" in said.stderr and "--bf16" in said.stderr
    dsctl("convert", tmp_path / "tuned", tmp_path / "rounded", "--bf16", "--workers", 1)
    assert tensors(tmp_path / "rounded")["layers.1.attn.kv_norm.weight"].dtype == torch.bfloat16


def test_a_config_that_does_not_say_what_layers_are_is_refused(mixed: Path, tmp_path: Path) -> None:
    shutil.copytree(mixed, tmp_path / "bare")
    config = json.loads((mixed / "config.json").read_text())
    for field, what in (("mlp_layer_types", "no mlp_layer_types"), ("layer_types", "compress_ratios")):
        del config[field]
        (tmp_path / "bare" / "config.json").write_text(json.dumps(config))
        said = call("convert", tmp_path / "bare", tmp_path / "out", "--layout", "published")
        assert said.returncode == 20 and what in said.stderr, said.stderr


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--layout", "deepseek"), 2),
        (("--layout", "nope"), 2),
        (("--layout", "stacked"), 30),
        (("--layout", "transformers", "--to", "int4-group"), 30),
        ((), 2),
    ],
)
def test_what_a_layout_cannot_hold_is_refused(
    words: tuple[str, ...], code: int, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = tiny(tmp_path_factory, FLASH, **SMALL)
    assert dsctl_fails("convert", source, tmp_path / "out", *words) == code
    assert dsctl_fails("shard", source, tmp_path / "out", "--tp", 2, "--layout", "transformers") == 30
