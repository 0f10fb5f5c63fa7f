"""transformers loads DeepSeek V4 under its own names as well as under the release's, and what it saves is repaired.

On a processor without a GPU it decodes FP8 and FP4 while it loads, but only under the names of the release: under its
own names it leaves the scales of stacked experts out. What it would compute with on a GPU is therefore compared as
tensors: with the check for one switched off it makes the quantized modules, fills them, and cannot run them here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

from tests.support.checkpoints import tiny
from tests.support.command import call, dsctl
from tests.support.folders import tensors

SMALL: dict[str, Any] = {
    "layers": 5, "experts": 4, "hidden": 256, "heads": 2, "vocab": 256, "moe_intermediate": 128, "aligned": True,
}  # fmt: skip
FLASH = "v4-flash"


class Loaded(NamedTuple):
    """A model, and what it gives for 150 tokens: more than its window, and what two compressed layers choose from."""

    model: PreTrainedModel
    logits: torch.Tensor | None

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return self.model.state_dict()


def load(folder: Path, run: bool = True) -> Loaded:
    model, told = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, output_loading_info=True)
    assert not any(told.values()), told
    if not run:
        return Loaded(model, None)
    with torch.no_grad():
        return Loaded(model, model(torch.arange(150)[None]).logits)


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are the same bytes of one dtype and shape."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return torch.equal(*(each.contiguous().view(-1).view(torch.uint8) for each in (one, other)))


def assert_same(one: Loaded, other: Loaded) -> None:
    assert one.weights.keys() == other.weights.keys()
    assert not [name for name, tensor in one.weights.items() if not same(tensor, other.weights[name])]
    assert one.logits is not None and other.logits is not None
    assert one.logits.isfinite().all() and one.logits.std() > 0.1
    assert torch.equal(one.logits, other.logits)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory, FLASH, **SMALL)


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BF16 under the names of the release and of transformers, and the formats of the release under the latter."""
    folder = tmp_path_factory.mktemp("made")
    dsctl("convert", source, folder / "bf16", "--bf16", "--workers", 1)
    dsctl("convert", source, folder / "named", "--bf16", "--layout", "transformers", "--workers", 1)
    dsctl("convert", source, folder / "coded", "--layout", "transformers", "--workers", 1)
    return folder


@pytest.fixture(scope="module")
def bf16(made: Path) -> Loaded:
    return load(made / "bf16")


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers keeps what is quantized as it is, as with a GPU."""
    monkeypatch.setattr(FineGrainedFP8HfQuantizer, "validate_environment", lambda *_, **__: None)


def test_it_decodes_a_release_as_we_do(source: Path, bf16: Loaded) -> None:
    assert_same(load(source), bf16)


def test_our_bf16_under_its_own_names_is_its_state(made: Path, bf16: Loaded) -> None:
    named = load(made / "named")
    assert_same(named, bf16)
    stored = {name for name in tensors(made / "named") if not name.startswith("mtp.")}
    assert stored == named.weights.keys()


def test_its_config_says_the_same_of_both(source: Path, made: Path) -> None:
    said = [AutoConfig.from_pretrained(folder).to_dict() for folder in (made / "bf16", made / "named")]
    assert said[0] == said[1] | {"_name_or_path": said[0]["_name_or_path"]}
    assert said[0]["layer_types"] == AutoConfig.from_pretrained(source).layer_types
    assert len(set(said[0]["layer_types"])) == 3


@pytest.mark.parametrize("release", [FLASH, "v4-flash-base"])
@pytest.mark.usefixtures("on_a_gpu")
def test_its_quantized_modules_hold_our_bytes(
    release: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Codes and scales are what a file under its own names holds. F32 scales of a base become E8M0 in memory."""
    source = tiny(tmp_path_factory, release, **SMALL)
    dsctl("convert", source, tmp_path / "coded", "--layout", "transformers", "--workers", 1)
    native, own = (load(folder, run=False).weights for folder in (source, tmp_path / "coded"))
    stored = tensors(tmp_path / "coded")
    assert native.keys() == own.keys() == {name for name in stored if not name.startswith("mtp.")}
    assert not [name for name, tensor in native.items() if not same(tensor, own[name])]
    coded = [name for name, tensor in stored.items() if tensor.element_size() == 1 and name in own]
    assert "model.layers.4.mlp.experts.gate_up_proj" in coded
    assert not [name for name in coded if not same(stored[name], own[name])]


@pytest.fixture(scope="module")
def saved(made: Path, bf16: Loaded, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What transformers saves of a model that it has loaded under three sets of names."""
    folder = tmp_path_factory.mktemp("saved")
    dsctl("convert", made / "named", folder / "alone", "--layout", "transformers", "--no-mtp", "--workers", 1)
    models = {
        "released": bf16.model, "own": load(made / "named", run=False).model,
        "own-without-mtp": load(folder / "alone", run=False).model,
    }  # fmt: skip
    for name, model in models.items():
        model.save_pretrained(folder / name)
    return {name: folder / name for name in models}


@pytest.mark.parametrize("loaded", ["released", "own", "own-without-mtp"])
def test_what_it_saves_becomes_a_release_again(
    loaded: str, saved: dict[str, Path], made: Path, bf16: Loaded, tmp_path: Path
) -> None:
    """All but the drafter, which transformers does not load."""
    config = json.loads((saved[loaded] / "config.json").read_text())
    assert "compress_ratios" not in config and "layer_types" in config
    assert set(tensors(saved[loaded])) != bf16.weights.keys()
    dsctl("convert", saved[loaded], tmp_path / "repaired", "--layout", "published", "--workers", 1)
    wanted = {name: one for name, one in tensors(made / "bf16").items() if not name.startswith("mtp.")}
    found = tensors(tmp_path / "repaired")
    assert wanted.keys() == found.keys()
    assert not [name for name, tensor in wanted.items() if not same(tensor, found[name])]
    before, after = (
        json.loads((folder / "config.json").read_text()) for folder in (made / "bf16", tmp_path / "repaired")
    )
    version = {"transformers_version": after["transformers_version"]}
    ratios = before["compress_ratios"][: before["num_hidden_layers"]]
    assert after == before | version | {"num_nextn_predict_layers": 0, "compress_ratios": ratios}


def test_a_repaired_folder_loads_whole(saved: dict[str, Path], bf16: Loaded, tmp_path: Path) -> None:
    dsctl("convert", saved["released"], tmp_path / "repaired", "--layout", "published", "--workers", 1)
    assert_same(load(tmp_path / "repaired"), bf16)


@pytest.mark.parametrize("named", ["source", "coded"])
@pytest.mark.usefixtures("on_a_gpu")
def test_what_it_saves_quantized_becomes_a_release_again(named: str, source: Path, made: Path, tmp_path: Path) -> None:
    model = load(source if named == "source" else made / named, run=False).model
    model.save_pretrained(tmp_path / "saved")
    dsctl("convert", tmp_path / "saved", tmp_path / "repaired", "--layout", "published", "--workers", 1)
    wanted = {name: one for name, one in tensors(source).items() if not name.startswith("mtp.")}
    found = tensors(tmp_path / "repaired")
    assert wanted.keys() == found.keys()
    assert not [name for name, tensor in wanted.items() if not same(tensor, found[name])]
    config, released = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "repaired", source))
    assert config["quantization_config"] == released["quantization_config"]
    assert config["expert_dtype"] == released["expert_dtype"]


def test_a_model_without_its_head_is_refused(made: Path, bf16: Loaded, tmp_path: Path) -> None:
    """`AutoModel` leaves the head out, and saves names of the release but for one."""
    bf16.model.model.save_pretrained(tmp_path / "saved")
    said = call("convert", tmp_path / "saved", tmp_path / "repaired", "--layout", "published")
    assert said.returncode == 20 and "lm_head.weight: missing" in said.stderr, said.stderr


def test_experts_of_v3_are_stacked_as_it_has_them(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    source = tiny(tmp_path_factory, "v3", aligned=True, bf16=True, mtp=False, hidden=256, heads=2, vocab=256)
    dsctl("convert", source, tmp_path / "named", "--layout", "transformers", "--workers", 1)
    named = load(tmp_path / "named", run=False)
    assert tensors(tmp_path / "named").keys() == named.weights.keys()
    plain = load(source, run=False).weights
    assert not [name for name, tensor in plain.items() if not same(tensor, named.weights[name])]
