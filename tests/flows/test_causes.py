"""Faults are told by their causes: one line for a missing file, a wrong size in `config.json`, a whole layer."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load_file, save_file

from dsctl.releases import find
from tests.flows.planted import EXPERT, INDEX, NORM, Folder, drop
from tests.support.checkpoints import tiny
from tests.support.command import Done, call

SMALL = {
    "layers": 3, "experts": 8, "hidden": 256, "heads": 2, "vocab": 256, "intermediate": 256, "moe_intermediate": 128,
}  # fmt: skip
SECOND = "model-00002-of-000004.safetensors"


def sizes(**fields: int) -> Callable[[Folder], Any]:
    return lambda folder: folder.config(lambda config: config.update(fields))


def without(*parts: str) -> Callable[[Folder], Any]:
    """Every tensor away whose name has one of these parts."""

    def change(folder: Folder) -> None:
        for path in folder.path.glob("model-*.safetensors"):
            held = {name: tensor for name, tensor in load_file(path).items() if not any(p in name for p in parts)}
            path.unlink()
            if held:
                save_file(held, path, {"format": "pt"})
                path.chmod(0o644)
        folder.reindex()

    return change


def unlinked(*numbers: int) -> Callable[[Folder], Any]:
    return lambda folder: [(folder.path / f"model-0000{n}-of-000004.safetensors").unlink() for n in numbers]


def both(*changes: Callable[[Folder], Any]) -> Callable[[Folder], Any]:
    return lambda folder: [change(folder) for change in changes]


def renamed(folder: Folder) -> None:
    def change(header: dict[str, Any]) -> None:
        for name in [name for name in header if name != "__metadata__"]:
            header[f"base.{name}"] = header.pop(name)

    for path in folder.path.glob("model-*.safetensors"):
        folder.reheader(path, change)
    folder.reindex()


def of_another(folder: Folder) -> None:
    """With fewer layers than the release has: tens of thousands of names take seconds to compare."""
    (folder.path / "config.json").write_text(json.dumps(find("v3.2").config | {"num_hidden_layers": 8}))


def config(field: str, was: int, holds: int) -> str:
    return f"config.json: {field} is {was}, but the files hold {holds}; "


class Cause(NamedTuple):
    """What is done to a folder, and how the only error begins that a check then finds, or all of them."""

    change: Callable[[Folder], Any]
    lines: tuple[str, ...]


CAUSES = {
    "a file is missing": Cause(unlinked(2), (f"{SECOND}: missing, but the index names it; it holds 80 of 267 ",)),
    "a file is cut off": Cause(
        lambda folder: os.truncate(folder.path / SECOND, (folder.path / SECOND).stat().st_size - 1),
        (f"{SECOND}: file is truncated",),
    ),
    "files are missing": Cause(unlinked(1, 2, 4), tuple(f"model-0000{n}-of-000004.safetensors" for n in (1, 2, 4))),
    **{
        f"{field} {value}": Cause(sizes(**{field: value}), (config(field, value, holds),))
        for field, value, holds in (
            ("n_routed_experts", 16, 8), ("num_hidden_layers", 4, 3), ("num_hidden_layers", 12, 3),
            ("num_hidden_layers", 2, 3), ("num_hidden_layers", 1, 3), ("hidden_size", 7168, 256),
            ("vocab_size", 129280, 256), ("intermediate_size", 18432, 256), ("moe_intermediate_size", 2048, 128),
            ("num_attention_heads", 128, 2), ("q_lora_rank", 1536, 256), ("kv_lora_rank", 256, 512),
            ("qk_rope_head_dim", 32, 64), ("qk_nope_head_dim", 64, 128), ("v_head_dim", 64, 128),
            ("index_n_heads", 32, 2), ("index_head_dim", 64, 128), ("first_k_dense_replace", 2, 1),
            ("first_k_dense_replace", 0, 1), ("n_shared_experts", 2, 1),
        )
    },
    "num_nextn_predict_layers 0": Cause(
        sizes(num_nextn_predict_layers=0), ("model.layers.3: MTP, 1 layer (model.layers.3) is stored, but config.json",)
    ),
    "num_nextn_predict_layers 2": Cause(
        sizes(num_nextn_predict_layers=2), ("config.json: declares MTP, 2 layers (model.layers.3 to model.layers.4), ",)
    ),
    "two sizes": Cause(
        sizes(hidden_size=512, vocab_size=129280), (config("hidden_size", 512, 256), config("vocab_size", 129280, 256))
    ),
    "a file and a size": Cause(
        both(sizes(n_routed_experts=16), unlinked(2)), (f"{SECOND}: missing", config("n_routed_experts", 16, 8))
    ),
    "a size and a norm": Cause(
        both(sizes(n_routed_experts=16), lambda folder: drop(folder, NORM)),
        (config("n_routed_experts", 16, 8), f"{NORM}: missing"),
    ),
    "the MTP layer is missing": Cause(
        without("layers.3."), ("config.json: declares MTP, 1 layer (model.layers.3), but no tensor of this drafter",)
    ),
    "a layer is missing": Cause(without("layers.1."), ("model.layers.1: all 43 parameters are missing",)),
    "an expert is missing": Cause(
        without("layers.1.mlp.experts.3."), ("expert 3 of layer 1: all 3 parameters are missing",)
    ),
    "experts are missing": Cause(
        without(*(f"experts.{number}." for number in range(4, 8))),
        ("experts 4 to 7 of layers 1 to 3: all 36 parameters are missing",),
    ),
    "other names": Cause(renamed, ("config.json: all 155 parameters that it describes are missing",)),
    "another model's config": Cause(of_another, ("config.json: belongs to a different model: 4,770 of ",)),
    "a kind of scale is missing": Cause(
        without(*(f"experts.{number}.down_proj.weight_scale_inv" for number in range(8))),
        ("model.layers.*.mlp.experts.*.down_proj.weight: 24 such tensors",),
    ),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return Folder(Path(shutil.copytree(tiny(tmp_path_factory, "v3.2", **SMALL), tmp_path / "spoiled")))


def errors(done: Done) -> list[dict[str, Any]]:
    return [finding for finding in json.loads(done.stdout)["findings"] if finding["severity"] == "error"]


@pytest.mark.parametrize("name", CAUSES)
def test_a_cause_is_told_once_and_first(name: str, folder: Folder, tmp_path: Path) -> None:
    cause = CAUSES[name]
    cause.change(folder)
    done = call("verify", folder.path, "--json", "--ignore", "odd-config")
    found = errors(done)
    said = [f"{finding['where']}: {finding['what']}" for finding in found]
    begun = [line for line in cause.lines if any(one.startswith(line) for one in said)]
    assert done.returncode == 50 and begun == list(cause.lines), said
    assert len(found) == len(cause.lines), said
    assert all(finding["details"] for finding in found if NORM not in finding["where"])
    for words in (
        ["convert", folder.path, tmp_path / "out", "--bf16"],
        ["shard", folder.path, tmp_path / "o", "--tp", 2],
    ):
        refused = call(*words)
        assert refused.returncode == 20 and refused.stderr.count("error: ") == 1
        first = refused.stderr.splitlines()[0]
        assert cause.lines[0].partition(";")[0] in refused.stderr, refused.stderr
        if len(cause.lines) == 1:
            assert cause.lines[0].partition(";")[0] in first and "  - " not in refused.stderr


def test_what_follows_is_listed_where_it_is_asked_for(folder: Folder) -> None:
    weights = json.loads((folder.path / INDEX).read_text())["weight_map"]
    held = [name for name, file in weights.items() if file == SECOND]
    (folder.path / SECOND).unlink()
    assert errors(call("verify", folder.path, "--json"))[0]["details"] == held
    shown, listed = call("verify", folder.path), call("verify", folder.path, "--all")
    assert shown.stdout.count(held[0]) == 0 and listed.stdout.count(f"        {held[0]}\n") == 1


def test_the_hint_fetches_the_missing_file_alone(folder: Folder, tmp_path: Path) -> None:
    (folder.path / SECOND).unlink()
    for words in (["verify"], ["convert", tmp_path / "out", "--bf16"]):
        said = call(words[0], folder.path, *words[1:]).stderr
        assert f"hint: `dsctl download REPOSITORY {folder.path} --include {SECOND}` fetches only this file" in said
    unlinked(1)(folder)
    assert (
        f"`dsctl download REPOSITORY {folder.path}` fetches the 2 missing or broken files"
        in call("verify", folder.path).stderr
    )


def test_the_hint_of_a_missing_mtp_layer_stays(folder: Folder, tmp_path: Path) -> None:
    without("layers.3.")(folder)
    refused = call("convert", folder.path, tmp_path / "out", "--bf16")
    assert "--mtp drop" in refused.stderr and "--allow-missing" in refused.stderr
    assert call("convert", folder.path, tmp_path / "out", "--bf16", "--no-mtp").returncode == 0


def test_what_may_be_missing_is_not_told(folder: Folder, tmp_path: Path) -> None:
    sizes(n_routed_experts=16)(folder)
    refused = call("convert", folder.path, tmp_path / "out", "--bf16", "--allow-missing")
    assert (
        refused.returncode == 20 and "n_routed_experts is 16, but the files hold 8; 6 faults follow" in refused.stderr
    )
    without("layers.2.")(Folder(folder.path))
    sizes(n_routed_experts=8)(folder)
    assert call("convert", folder.path, tmp_path / "out", "--bf16", "--allow-missing").returncode == 0


def test_scales_that_are_missing_do_not_unquantize_the_config(folder: Folder) -> None:
    """Codes without scales are no unquantized weights: `--fix` must not say so in config.json."""
    without("_scale_inv")(folder)
    folder.config(lambda values: values.update(torch_dtype="float16"))
    call("verify", folder.path, "--fix")
    mended = json.loads((folder.path / "config.json").read_text())
    assert mended["torch_dtype"] == "bfloat16" and "quantization_config" in mended
    assert {finding["code"] for finding in errors(call("verify", folder.path, "--json"))} == {"missing-scale"}


def test_a_single_fault_is_told_as_it_is(folder: Folder) -> None:
    drop(folder, EXPERT)
    assert [finding["where"] for finding in errors(call("verify", folder.path, "--json"))] == [EXPERT]
