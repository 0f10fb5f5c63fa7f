"""`dsctl graft`: parameters of one checkpoint in the place of another's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import dsctl as package
from dsctl.core.errors import UsageError
from tests.flows.test_identity import flip
from tests.flows.test_resume import contents
from tests.support.checkpoints import tiny
from tests.support.command import call, dsctl
from tests.support.forks import Launcher

SMALL: dict[str, Any] = {
    "layers": 2, "experts": 4, "hidden": 256, "heads": 4, "vocab": 256, "intermediate": 256, "moe_intermediate": 256,
}  # fmt: skip
V4: dict[str, Any] = {
    "layers": 5, "experts": 4, "hidden": 256, "heads": 2, "vocab": 256, "moe_intermediate": 128,
}  # fmt: skip
MTP = "model.layers.2.*"
EXPERTS = "model.layers.*.mlp.experts.*"
Made = Callable[..., Path]


@pytest.fixture(scope="module")
def v32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory, "v3.2", seed=5, **SMALL)


@pytest.fixture(scope="module")
def v3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory, "v3", **SMALL)


@pytest.fixture(scope="module")
def r1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory, "r1", seed=7, **SMALL)


@pytest.fixture(scope="module")
def flash(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory, "v4-flash", **V4)


@pytest.fixture(scope="module")
def dspark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory, "v4-flash-0731", seed=9, **V4)


@pytest.fixture(scope="module")
def without_mtp(v32: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a trainer saves that drops the MTP layer, and says so."""
    folder = tmp_path_factory.mktemp("lost") / "lost"
    dsctl("convert", v32, folder, "--layout", "published", "--no-mtp")
    return folder


@pytest.fixture(scope="module")
def bf16(v32: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bf16") / "bf16"
    dsctl("convert", v32, folder, "--bf16")
    return folder


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder, read with the safetensors library."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  not a dict
    return found


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def copied(source: Path, target: Path, keep: Callable[[str], bool]) -> Path:
    """A folder with some tensors of a checkpoint and its whole config, as publishers of a drafter alone upload it."""
    target.mkdir()
    save_file({name: one for name, one in stored(source).items() if keep(name)}, target / "model.safetensors")
    shutil.copy(source / "config.json", target)
    return target


def is_sound(folder: Path, *allowed: str) -> None:
    """`dsctl verify --deep` finds nothing, except notes that its base has too."""
    found = json.loads(dsctl("verify", folder, "--deep", "--json"))["findings"]
    assert {one["code"] for one in found if one["severity"] != "note"} <= {*allowed}, found


def same(made: Path, whole: Path) -> None:
    """Weights, index, config and all other files are equal, byte for byte."""
    ours, theirs = (contents(folder) for folder in (made, whole))
    for named in ("dsctl.json", "dsctl.intoto.json"):
        ours.pop(named)
        theirs.pop(named, None)
    assert ours == theirs


def config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def audit(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "dsctl.json").read_text())["grafts"]
    return found


def test_an_mtp_layer_that_was_dropped_is_put_back_byte_for_byte(v32: Path, without_mtp: Path, tmp_path: Path) -> None:
    told = dsctl("graft", without_mtp, tmp_path / "back", "--from", v32, MTP)
    same(tmp_path / "back", v32)
    assert f"parameters of {v32}: {MTP}\n" in told
    (found,) = audit(tmp_path / "back")
    held = [name for name in stored(v32) if name.startswith("model.layers.2.")]
    assert found["place"] == str(v32) and found["globs"] == [MTP] and found["revision"] == ""
    assert found["bytes"] == sum(stored(v32)[name].nbytes for name in held)
    assert found["parameters"] == sum(not name.endswith("_scale_inv") for name in held)
    assert "model.layers.2.mlp.experts.{0-3}.up_proj.weight" in found["names"]
    is_sound(tmp_path / "back")


def test_a_config_that_promises_tensors_that_are_lost_with_their_files(dspark: Path, tmp_path: Path) -> None:
    """The index still names them; a matrix has lost only its scale."""
    base = Path(shutil.copytree(dspark, tmp_path / "base"))
    (base / max(path.name for path in base.glob("*.safetensors"))).unlink()
    done = call("graft", base, tmp_path / "part", "--from", dspark, "mtp.2.norm.weight")
    assert done.returncode == 30 and "of its drafter would still be missing" in done.stderr
    dsctl("graft", base, tmp_path / "back", "--from", dspark, "mtp.*")
    same(tmp_path / "back", dspark)


def test_experts_of_a_second_checkpoint_as_r1t_has_them(v3: Path, r1: Path, tmp_path: Path) -> None:
    """Every tensor is read with the safetensors library: routed experts are R1's, all others V3's."""
    dsctl("graft", v3, tmp_path / "chimera", "--from", r1, EXPERTS, "--workers", "2")
    ours, base, other = stored(tmp_path / "chimera"), stored(v3), stored(r1)
    assert ours.keys() == base.keys()
    taken = {name for name in ours if ".mlp.experts." in name}
    assert len(taken) == 2 * 3 * 4 * 2
    assert all(raw(one) == raw((other if name in taken else base)[name]) for name, one in ours.items())
    assert any(raw(other[name]) != raw(base[name]) for name in taken)
    for name in ("config.json", "model.safetensors.index.json"):
        assert (tmp_path / "chimera" / name).read_bytes() == (v3 / name).read_bytes()
    assert [path.name for path in sorted(v3.glob("*.safetensors"))] == [
        path.name for path in sorted((tmp_path / "chimera").glob("*.safetensors"))
    ]
    is_sound(tmp_path / "chimera")


def test_of_two_sources_that_name_a_parameter_the_later_one_counts(
    v3: Path, r1: Path, v32: Path, tmp_path: Path
) -> None:
    more = "model.layers.1.mlp.experts.[0,2].*,model.norm.weight"
    dsctl("graft", v3, tmp_path / "made", "--from", r1, EXPERTS, "--from", v32, more)
    ours, sources = stored(tmp_path / "made"), {"v3": stored(v3), "r1": stored(r1), "v32": stored(v32)}

    def source_of(name: str) -> str:
        if name == "model.norm.weight" or name.startswith(
            ("model.layers.1.mlp.experts.0", "model.layers.1.mlp.experts.2")
        ):
            return "v32"
        return "r1" if ".mlp.experts." in name else "v3"

    assert all(raw(one) == raw(sources[source_of(name)][name]) for name, one in ours.items())
    first, second = audit(tmp_path / "made")
    assert first["parameters"] + second["parameters"] == 2 * 4 * 3 + 1
    assert second["globs"] == ["model.layers.1.mlp.experts.[0,2].*", "model.norm.weight"]
    assert {"model.layers.1.mlp.experts.{0,2}.gate_proj.weight", "model.norm.weight"} < {*second["names"]}
    done = call("graft", v3, tmp_path / "none", "--from", r1, "model.norm.weight", "--from", v32, "model.*")
    assert done.returncode == 30 and not (tmp_path / "none").exists()


def test_a_drafter_in_bf16_for_an_fp8_base_is_listed_as_unquantized(
    without_mtp: Path, bf16: Path, tmp_path: Path
) -> None:
    dsctl("graft", without_mtp, tmp_path / "made", "--from", bf16, MTP)
    is_sound(tmp_path / "made")
    said = config(tmp_path / "made")["quantization_config"]
    listed = {name for name in said["modules_to_not_convert"] if name.startswith("model.layers.2.")}
    assert {"model.layers.2.eh_proj", "model.layers.2.mlp.experts", "model.layers.2.self_attn.o_proj"} <= listed
    assert not any(name.startswith("model.layers.1.self_attn.o") for name in said["modules_to_not_convert"])
    assert config(without_mtp)["quantization_config"].items() <= said.items()
    ours = stored(tmp_path / "made")
    assert all(raw(one) == raw(ours[name]) for name, one in stored(bf16).items() if name.startswith("model.layers.2."))


def test_as_base_converts_to_the_forms_of_the_base(without_mtp: Path, v32: Path, bf16: Path, tmp_path: Path) -> None:
    """FP8 decodes to the same BF16 that `convert --bf16` writes; BF16 gets blocks, as the base's other layers have."""
    dsctl("graft", bf16, tmp_path / "plain", "--from", v32, MTP, "--as", "base")
    same(tmp_path / "plain", bf16)
    dsctl("graft", without_mtp, tmp_path / "blocks", "--from", bf16, MTP, "--as", "base")
    is_sound(tmp_path / "blocks")
    ours, theirs = stored(tmp_path / "blocks"), stored(v32)
    assert {name: (one.dtype, one.shape) for name, one in ours.items()} == {
        name: (one.dtype, one.shape) for name, one in theirs.items()
    }
    assert config(tmp_path / "blocks") == config(v32)
    files = {path.name for path in (tmp_path / "blocks").glob("*.safetensors")}
    assert "grafted-00001-of-00001.safetensors" in files


def test_fp8_in_a_bf16_base_is_declared(bf16: Path, v32: Path, tmp_path: Path) -> None:
    done = call("graft", bf16, tmp_path / "made", "--from", v32, MTP)
    assert done.returncode == 0 and "original.dsctl: left out" in done.stdout
    assert (bf16 / "original.dsctl").exists() and not (tmp_path / "made" / "original.dsctl").exists()
    is_sound(tmp_path / "made")
    said = config(tmp_path / "made")["quantization_config"]
    assert said["quant_method"] == "fp8" and "model.layers.1.mlp.experts" in said["ignored_layers"]
    assert "model.layers.2.mlp.experts" not in said["ignored_layers"]


def test_fp8_beside_int4_gets_the_names_of_compressed_tensors(without_mtp: Path, v32: Path, tmp_path: Path) -> None:
    """The bytes are the same; loaders read one method."""
    dsctl("convert", without_mtp, tmp_path / "int4", "--recipe", "int4-experts")
    dsctl("graft", tmp_path / "int4", tmp_path / "made", "--from", v32, MTP)
    is_sound(tmp_path / "made")
    ours, theirs = stored(tmp_path / "made"), stored(v32)
    name = "model.layers.2.mlp.experts.1.up_proj.weight"
    assert raw(ours[name]) == raw(theirs[name]) and raw(ours[f"{name}_scale"]) == raw(theirs[f"{name}_scale_inv"])
    groups = config(tmp_path / "made")["quantization_config"]["config_groups"]
    assert {group["format"] for group in groups.values()} == {"pack-quantized", "float-quantized"}


def test_a_block_drafter_on_classic_v4_and_back(flash: Path, dspark: Path, tmp_path: Path) -> None:
    dsctl("graft", flash, tmp_path / "blocks", "--from", dspark, "mtp.*")
    is_sound(tmp_path / "blocks")
    made, whole = config(tmp_path / "blocks"), config(dspark)
    assert made == whole | {
        name: made[name] for name in made if not name.startswith(("dspark_", "compress", "num_next"))
    }
    ours, base, other = stored(tmp_path / "blocks"), stored(flash), stored(dspark)
    assert {name for name in ours if name.startswith("mtp.")} == {name for name in other if name.startswith("mtp.")}
    assert all(raw(one) == raw((other if name.startswith("mtp.") else base)[name]) for name, one in ours.items())
    dsctl("graft", tmp_path / "blocks", tmp_path / "classic", "--from", flash, "mtp.*")
    is_sound(tmp_path / "classic")
    back = stored(tmp_path / "classic")
    assert back.keys() == base.keys() and all(raw(one) == raw(back[name]) for name, one in base.items())
    assert (tmp_path / "classic" / "config.json").read_bytes() == (flash / "config.json").read_bytes()


def test_mxfp4_stages_beside_nvfp4_experts_are_not_among_the_quantized_layers(
    flash: Path, dspark: Path, tmp_path: Path
) -> None:
    """nvidia/DeepSeek-V4-Pro-nvfp4-DSpark: only what is NVFP4 is listed."""
    dsctl("convert", flash, tmp_path / "nvfp4", "--recipe", "nvfp4-modelopt-experts")
    dsctl("graft", tmp_path / "nvfp4", tmp_path / "made", "--from", dspark, "mtp.*")
    is_sound(tmp_path / "made")
    said = config(tmp_path / "made")["quantization_config"]
    assert set(said["quantized_layers"]) == {f"layers.{layer}.ffn.experts" for layer in range(5)}
    assert "mtp.*" in said["ignore"]


@pytest.mark.parametrize("release", ["v4.1-flash", "glm-5.2"])
def test_drafters_of_other_architectures_return(
    release: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = tiny(tmp_path_factory, release)
    dsctl("convert", whole, tmp_path / "lost", "--layout", "published", "--no-mtp")
    layer = config(whole).get("num_hidden_layers")
    glob = "mtp.*" if release.startswith("v4") else f"model.layers.{layer}.*"
    dsctl("graft", tmp_path / "lost", tmp_path / "back", "--from", whole, glob)
    is_sound(tmp_path / "back")
    ours = stored(tmp_path / "back")
    assert all(raw(one) == raw(ours[name]) for name, one in stored(whole).items())
    assert (tmp_path / "back" / "config.json").read_bytes() == (whole / "config.json").read_bytes()


def test_a_folder_with_the_drafter_alone(v32: Path, without_mtp: Path, tmp_path: Path) -> None:
    """Without the copies of embedding and head, as NextN exports leave them out: those are the base's own."""

    def keep(name: str) -> bool:
        return name.startswith("model.layers.2.") and not name.endswith(("embed_tokens.weight", "head.head.weight"))

    draft = copied(v32, tmp_path / "draft", keep)
    told = dsctl("graft", without_mtp, tmp_path / "made", "--from", draft, MTP)
    assert "copied from model.embed_tokens.weight" in told
    is_sound(tmp_path / "made")
    ours, theirs = stored(tmp_path / "made"), stored(v32)
    assert ours.keys() == theirs.keys()
    for name, twin in (("embed_tokens", "model.embed_tokens"), ("shared_head.head", "lm_head")):
        assert raw(ours[f"model.layers.2.{name}.weight"]) == raw(ours[f"{twin}.weight"])
    assert all(raw(ours[name]) == raw(one) for name, one in stored(draft).items())


def test_ranks_and_other_layouts_as_source_and_as_base(
    v32: Path, without_mtp: Path, flash: Path, dspark: Path, tmp_path: Path
) -> None:
    dsctl("shard", v32, tmp_path / "ranks", "--tp", "2", "--mtp", "keep")
    dsctl("graft", without_mtp, tmp_path / "made", "--from", tmp_path / "ranks", MTP)
    ours = stored(tmp_path / "made")
    assert all(raw(one) == raw(ours[name]) for name, one in stored(v32).items()) and config(
        tmp_path / "made"
    ) == config(v32)
    dsctl("convert", flash, tmp_path / "hf", "--layout", "transformers")
    dsctl("graft", tmp_path / "hf", tmp_path / "hf-base", "--from", dspark, "mtp.*")
    dsctl("graft", flash, tmp_path / "plain", "--from", dspark, "mtp.*")
    same(tmp_path / "hf-base", tmp_path / "plain")
    dsctl("graft", tmp_path / "plain", tmp_path / "again", "--from", tmp_path / "hf", "layers.1.*")
    same(tmp_path / "again", tmp_path / "plain")


def test_a_single_file_gets_an_index_if_tensors_go_into_a_second_one(v32: Path, bf16: Path, tmp_path: Path) -> None:
    base = copied(v32, tmp_path / "base", lambda name: not name.startswith("model.layers.2."))
    said = config(base) | {"num_nextn_predict_layers": 0}
    (base / "config.json").write_text(json.dumps(said))
    dsctl("graft", base, tmp_path / "made", "--from", bf16, MTP)
    index = json.loads((tmp_path / "made" / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(index.values()) == {"model.safetensors", "grafted-00001-of-00001.safetensors"}
    is_sound(tmp_path / "made", "no-tokenizer")
    dsctl("graft", tmp_path / "made", tmp_path / "more", "--from", v32, MTP)
    assert set(index.values()) == {path.name for path in (tmp_path / "more").glob("*.safetensors")}


def unknown(folder: Path, seed: int, mtp: bool) -> Path:
    """A checkpoint of an architecture that dsctl does not know, as an independent writer makes it."""
    made: dict[str, torch.Tensor] = {}
    chance = torch.Generator().manual_seed(seed)
    for layer in range(2):
        name = f"model.layers.{layer}.mixer.weight"
        made[name] = (torch.rand(256, 256, generator=chance) * 448).to(torch.float8_e4m3fn)
        made[f"{name}_scale_inv"] = torch.rand(2, 2, generator=chance) / 448
        made[f"model.layers.{layer}.norm.weight"] = torch.randn(256, generator=chance).bfloat16()
    made |= {"mtp.0.fc.weight": torch.randn(256, 512, generator=chance).bfloat16()} if mtp else {}
    folder.mkdir()
    save_file(made, folder / "model.safetensors", metadata={"format": "pt"})
    blocks = {"quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": ["norm"]}
    said = {"model_type": "nobody", "num_hidden_layers": 2, "quantization_config": blocks}
    (folder / "config.json").write_text(json.dumps(said))
    return folder


def test_an_unknown_architecture_takes_tensors_by_name(v3: Path, tmp_path: Path) -> None:
    base, other = unknown(tmp_path / "base", 1, False), unknown(tmp_path / "other", 2, True)
    done = call("graft", base, tmp_path / "made", "--from", other, "model.layers.1.*,mtp.*")
    assert done.returncode == 0 and "warning: 1 parameter that" in done.stderr and "mtp.0.fc.weight" in done.stderr
    ours, before, taken = stored(tmp_path / "made"), stored(base), stored(other)
    assert ours.keys() == taken.keys()
    assert all(raw(one) == raw((before if "layers.0" in name else taken)[name]) for name, one in ours.items())
    assert (tmp_path / "made" / "config.json").read_bytes() == (base / "config.json").read_bytes()
    dsctl("convert", other, tmp_path / "plain", "--bf16")
    dsctl("graft", base, tmp_path / "mixed", "--from", tmp_path / "plain", "*.1.mixer.weight")
    listed = config(tmp_path / "mixed")["quantization_config"]["modules_to_not_convert"]
    assert listed == ["norm", "model.layers.1.mixer"]
    is_sound(tmp_path / "mixed", "no-tokenizer")
    done = call("graft", base, tmp_path / "none", "--from", v3, "model.layers.*.input_layernorm.weight")
    assert done.returncode == 0 and "warning" in done.stderr
    refused(call("graft", v3, tmp_path / "no", "--from", base, "model.layers.1.*"), 30, "no such parameter")


def refused(done: Any, code: int, *words: str) -> None:
    """One line of error with these words, and a hint."""
    assert done.returncode == code, done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert sum(line.startswith("error: ") for line in lines) == 1 and "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert any(line.startswith("hint: ") for line in lines)


@pytest.mark.parametrize(
    ("base", "other", "globs", "code", "words"),
    [
        ("v3", "r1", "nothing.*", 30, "no parameter of"),
        ("v3", "r1", "model.*,nothing.*", 30, "matches nothing.*"),
        ("v3", "r1", "*.weight_scale_inv", 30, "a weight goes with its scales"),
        ("v3", "r1", "", 2, "no glob"),
        ("v3", "r1", "model.*,", 2, "no glob"),
        ("v3", "without_mtp", MTP, 30, "no parameter of"),
        ("v3", "v32", MTP, 30, "does not fit"),
        ("v32", "v3", MTP, 30, "self_attn.indexer.wk.weight: not in"),
        ("without_mtp", "v32", "model.layers.2.mlp.*", 30, "has no drafter"),
        ("flash", "dspark", "mtp.0.*", 30, "leaves out"),
        ("dspark", "flash", "mtp.0.attn.*", 30, "cannot be mixed"),
        ("flash", "v3", "*", 30, "does not fit"),
        ("flash", "v3", "model.norm.weight", 30, "has no such parameter"),
        ("v32", "v3", EXPERTS, 30, "--as base"),
        ("v32", "bf16", "*gate_proj.weight", 30, "loaders fuse"),
        ("v3", "nowhere", "*", 10, "nowhere"),
    ],
)  # fmt: skip
def test_refused_in_one_line_and_nothing_is_written(
    request: pytest.FixtureRequest, tmp_path: Path, base: str, other: str, globs: str, code: int, words: str
) -> None:
    source = tmp_path / other if other == "nowhere" else request.getfixturevalue(other)
    refused(call("graft", request.getfixturevalue(base), tmp_path / "out", "--from", source, globs), code, words)
    assert not (tmp_path / "out").exists()


def test_shapes_and_options_that_do_not_go(
    v3: Path, r1: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    larger = tiny(tmp_path_factory, "v3", **SMALL | {"vocab": 512})
    out = tmp_path / "out"
    refused(call("graft", v3, out, "--from", larger, "lm_head.weight"), 30, "is [512, 256]", "has [256, 256]")
    refused(call("graft", v3, out, "--from", larger, MTP), 30, "vocabulary of 512")
    refused(call("graft", v3, out, "--from", r1, "*", "--consume", "--consume"), 2, "--consume")
    refused(call("graft", v3, out, "--from", r1, "*", "--as", "fp9"), 2, "own, base")
    refused(call("graft", v3, out, "--from", r1), 2, "2 arguments")
    refused(call("graft", v3, out), 2, "--from")
    assert call("graft", v3, r1, "--from", r1, "*").returncode == 30
    assert not out.exists() and not (r1 / "dsctl.json").exists()


def test_a_part_of_another_checkpoint_that_is_missing_or_broken(v3: Path, r1: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(r1, tmp_path / "other"))
    held = {path: len(stored(other)) for path in other.glob("*.safetensors")}
    gone = max(held)
    gone.unlink()
    refused(call("graft", v3, tmp_path / "out", "--from", other, "*"), 30, "cannot be read", "missing")
    (other / "config.json").write_text("{")
    done = call("graft", v3, tmp_path / "out", "--from", other, "*")
    assert done.returncode == 20 and done.stderr.startswith(f"error: {other}: config.json: not valid JSON")
    (other / "config.json").write_text(json.dumps(config(r1) | {"hidden_size": -1}))
    done = call("graft", v3, tmp_path / "out", "--from", other, "*")
    assert done.returncode == 20 and done.stderr.startswith(f"error: {other}: config.json: ")
    assert not (tmp_path / "out").exists()


def test_killed_and_resumed_to_equal_bytes(v3: Path, r1: Path, tmp_path: Path, launcher: Launcher) -> None:
    words = "--from", r1, EXPERTS, "--from", r1, "lm_head.weight"
    launcher.good("graft", v3, tmp_path / "whole", *words)
    for point, times in (
        ("dsctl.run.dispatch._prepare", 1), ("dsctl.run.journal.Journal.append", 1),
        ("dsctl.run.dispatch._rename", 1), ("dsctl.core.files.replace_file", 4),
    ):  # fmt: skip
        target = tmp_path / point
        assert launcher.start("graft", v3, target, *words, last=(point, times)).wait().code == 9
        assert not (target / "dsctl.json").exists()
        launcher.good("graft", v3, target, *words)
        assert contents(target) == contents(tmp_path / "whole")


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("elsewhere", [True, False])
def test_a_changed_source_is_not_taken_for_the_same(
    v3: Path, r1: Path, tmp_path: Path, launcher: Launcher, complete: bool, elsewhere: bool
) -> None:
    """One byte of each file differs; sizes, headers and times do not. What was begun is read again."""
    other = Path(shutil.copytree(r1, tmp_path / "other"))
    last = {} if complete else {"last": ("dsctl.run.journal.Journal.append", 3)}
    begun = launcher.start("graft", v3, tmp_path / "out", "--from", other, "*", **last).wait()
    assert begun.code == (0 if complete else 9)
    now = Path(shutil.copytree(other, tmp_path / "next")) if elsewhere else other
    for file in now.glob("*.safetensors"):
        flip(file)
    words = ("graft", v3, tmp_path / "out", "--from", now, "*")
    done = call(*words)
    assert done.returncode == (40 if complete else 0), done.stderr
    if complete:
        assert "--force" in done.stderr
        dsctl(*words, "--force")
    ours, theirs = stored(tmp_path / "out"), stored(now)
    assert all(raw(one) == raw(theirs[name]) for name, one in ours.items())


def test_different_globs_are_a_different_request(v3: Path, r1: Path, tmp_path: Path) -> None:
    dsctl("graft", v3, tmp_path / "out", "--from", r1, EXPERTS)
    assert call("graft", v3, tmp_path / "out", "--from", r1, "*").returncode == 40
    assert call("graft", v3, tmp_path / "out", "--from", r1, EXPERTS, "--as", "base").returncode == 40
    assert "already complete" in dsctl("graft", v3, tmp_path / "out", "--from", r1, EXPERTS)


def test_a_dry_run_says_what_comes_from_where(v3: Path, r1: Path, tmp_path: Path) -> None:
    words = ("graft", v3, tmp_path / "out", "--from", r1, EXPERTS, "--dry-run")
    assert f"note: 24 parameters of {r1}: {EXPERTS}\n" in dsctl(*words)
    planned = json.loads(dsctl(*words, "--json"))
    assert not (tmp_path / "out").exists()
    made = json.loads(dsctl(*words[:-1], "--json"))
    assert planned["grafts"] == made["grafts"] == audit(tmp_path / "out")
    assert planned["grafts"][0]["parameters"] == 24 and planned["request"]["graft"] == [[EXPERTS]]


def test_the_python_interface_makes_the_same(v3: Path, r1: Path, tmp_path: Path) -> None:
    dsctl("graft", v3, tmp_path / "command", "--from", r1, EXPERTS, "--from", r1, "lm_head.weight,model.norm.weight")
    base, other = package.open(v3), package.open(r1)
    grafted = base.graft({other: EXPERTS})
    assert len(grafted.plan.grafts) == 1 and "24 parameters of " in str(grafted)
    made = base.graft({r1: (EXPERTS, "lm_head.weight", "model.norm.weight")}).run(tmp_path / "python", workers=1)
    ours, theirs = contents(tmp_path / "command"), contents(tmp_path / "python")
    assert {name for name in ours if ours[name] != theirs[name]} == {"dsctl.json", "dsctl.intoto.json"}
    assert made.audit["grafts"][0]["parameters"] == 26
    with pytest.raises(UsageError, match="no glob"):
        base.graft({r1: ()})


@pytest.mark.parametrize("twins", [True, False])
def test_an_export_of_the_mtp_layer_alone_as_layer_0(v3: Path, tmp_path: Path, twins: bool) -> None:
    """As sglang's scripts/export_deepseek_nextn.py writes it, and as lmsys/DeepSeek-R1-NextN is stored."""
    export, prefix, held = tmp_path / "NextN", "model.layers.2.", stored(v3)
    export.mkdir()
    made = {name.replace(prefix, "model.layers.0."): one for name, one in held.items() if name.startswith(prefix)}
    if not twins:
        made = {name: one for name, one in made.items() if "embed_tokens" not in name and "head.head" not in name}
    save_file(made, export / "nextn_layer_parameters.safetensors")
    index = dict.fromkeys(made, "nextn_layer_parameters.safetensors")
    (export / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    said = config(v3) | {"num_hidden_layers": 1, "architectures": ["DeepseekV3ForCausalLMNextN"]}
    (export / "config.json").write_text(json.dumps(said))
    dsctl("convert", v3, tmp_path / "lost", "--layout", "published", "--no-mtp")
    dsctl("graft", tmp_path / "lost", tmp_path / "made", "--from", export, "mtp")
    is_sound(tmp_path / "made")
    ours = stored(tmp_path / "made")
    assert ours.keys() == held.keys() and config(tmp_path / "made") == config(v3)
    assert all(raw(one) == raw(ours[name]) for name, one in held.items())
    dsctl("graft", v3, tmp_path / "part", "--from", export, f"{prefix}mlp.*")
    assert audit(tmp_path / "part")[0]["names"][0] == f"{prefix}mlp.gate.weight"
    refused(call("graft", v3, tmp_path / "no", "--from", export, "model.layers.0.*"), 30, "matches model.layers.0.*")


def test_the_word_mtp_leaves_the_copies_of_embedding_and_head_to_the_base(v3: Path, r1: Path, tmp_path: Path) -> None:
    """Engines share the main model's: those of a fine-tuned base are not the release's any more."""
    dsctl("convert", v3, tmp_path / "tuned", "--layout", "published", "--no-mtp")
    for base in (tmp_path / "tuned", v3):
        made = tmp_path / f"{base.name}-made"
        dsctl("graft", base, made, "--from", r1, "mtp")
        is_sound(made)
        ours, main, other = stored(made), stored(base), stored(r1)
        for name, twin in (("embed_tokens", "model.embed_tokens"), ("shared_head.head", "lm_head")):
            assert raw(ours[f"model.layers.2.{name}.weight"]) == raw(main[f"{twin}.weight"])
            assert raw(other[f"{twin}.weight"]) != raw(main[f"{twin}.weight"])
        assert raw(ours["model.layers.2.eh_proj.weight"]) == raw(other["model.layers.2.eh_proj.weight"])
    dsctl("graft", tmp_path / "tuned", tmp_path / "both", "--from", r1, "mtp,model.embed_tokens.weight")
    ours = stored(tmp_path / "both")
    assert raw(ours["model.layers.2.embed_tokens.weight"]) == raw(stored(r1)["model.embed_tokens.weight"])
    is_sound(tmp_path / "both")
