"""`--bf16` or `--to f32`, and `--to published`: the same files, for every form that a checkpoint may be stored in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support import lantern as made
from tests.support.checkpoints import smaller, tiny
from tests.support.command import dsctl
from tests.support.folders import contents
from tests.support.lantern import held

FORMS = (
    "fp8-channel", "int8-channel", "int4-group", "int4-group-32", "int8-group", "mxfp4", "mxfp8", "nvfp4",
    "fp8-block-ct", "fp8-block", "int8-block", "fp8-block-e8m0",
)  # fmt: skip
SMALL = {
    "layers": 2, "experts": 4, "hidden": 256, "heads": 4, "vocab": 256, "intermediate": 256, "moe_intermediate": 256,
}  # fmt: skip
MIX = "trunk.1.mix.weight"


@pytest.fixture(scope="module")
def lantern(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.lantern(tmp_path_factory.mktemp("lantern") / "src")


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory, "v3.2", **SMALL)


def stored(source: Path, folder: Path, *words: object) -> Path:
    """The source in another form, as if somebody else had written it: a folder without an audit."""
    dsctl("convert", source, folder, *words, "-q", "--workers", 1)
    for name in ("dsctl.json", "original.dsctl", "odd-scales.dsctl"):
        (folder / name).unlink(missing_ok=True)
    return folder


def damped(folder: Path) -> None:
    """Make the codes smaller than the recipe would choose them, and give some zeros a sign."""
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        for name, tensor in tensors.items():
            if tensor.dtype in (torch.int8, torch.float8_e4m3fn) and tensor.dim() == 2 and "scale" not in name:
                tensor.view(torch.uint8)[1::3] &= 0xBF
                tensor.view(torch.uint8)[::5, ::7] = 0 if tensor.dtype == torch.int8 else 0x80
            elif tensor.dtype == torch.uint8 and name.endswith("_packed"):
                tensor[1::3] &= 0xBB
                tensor[::5, ::7] = 0x88
        save_file(tensors, file, {"format": "pt"})


def counts(folder: Path) -> dict[str, int]:
    found: dict[str, int] = json.loads((folder / "dsctl.json").read_text())["audit"]
    return found


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
@pytest.mark.parametrize("form", FORMS)
def test_an_unknown_architecture_comes_back_in_every_form(lantern: Path, tmp_path: Path, form: str, dtype: str) -> None:
    one = stored(lantern, tmp_path / "one", "--to", form)
    damped(one)
    dsctl("convert", one, tmp_path / "plain", "--to", dtype, "-q", "--workers", 1)
    said = dsctl("convert", tmp_path / "plain", tmp_path / "back", "--to", "published", "--workers", 1)
    assert contents(tmp_path / "back") == contents(one)
    assert "original scales are reused if they still fit" in said or form in ("fp8-block", "fp8-block-e8m0")
    assert not {"groups_computed", "blocks_computed"} & counts(tmp_path / "back").keys()


@pytest.mark.parametrize("form", FORMS)
def test_the_original_elsewhere_gives_the_same(lantern: Path, tmp_path: Path, form: str) -> None:
    one = stored(lantern, tmp_path / "one", "--to", form)
    dsctl("convert", one, tmp_path / "plain", "--bf16", "--no-keep-scales", "-q", "--workers", 1)
    dsctl("convert", tmp_path / "plain", tmp_path / "back", "--to", "published", "--original", one, "-q")
    assert contents(tmp_path / "back") == contents(one)


@pytest.mark.parametrize("form", ["int4-group-32", "nvfp4", "mxfp4", "int8-channel", "fp8-block-ct"])
def test_a_changed_value_changes_its_group_alone(lantern: Path, tmp_path: Path, form: str) -> None:
    one = stored(lantern, tmp_path / "one", "--to", form)
    dsctl("convert", one, tmp_path / "plain", "--bf16", "-q", "--workers", 1)
    (file,) = [file for file in (tmp_path / "plain").glob("*.safetensors") if MIX in load_file(file)]
    tensors = load_file(file)
    tensors[MIX][3, 40] = 0.0117 * tensors[MIX].abs().max()
    save_file(tensors, file, {"format": "pt"})
    dsctl("convert", tmp_path / "plain", tmp_path / "back", "--to", "published", "-q", "--workers", 1)
    assert counts(tmp_path / "back")["groups_computed"] == 1
    before, after = held(one), held(tmp_path / "back")
    changed = {name for name, tensor in before.items() if (made.bits_of(tensor) != made.bits_of(after[name])).any()}
    assert changed and all(name.startswith("trunk.1.mix.weight") for name in changed)


@pytest.mark.parametrize(
    "words",
    [
        *(
            ("--to", form)
            for form in ("int8-channel", "int4-group", "mxfp8", "nvfp4", "fp8-block-ct", "int8-block", "fp8-block-e8m0")
        ),
        *(("--recipe", recipe) for recipe in ("int4-experts-fp8", "int4-experts", "nvfp4-experts")),
    ],
)
def test_what_somebody_else_quantized_comes_back(release: Path, tmp_path: Path, words: tuple[str, str]) -> None:
    """`--to published` means what was decoded, not the release's own form."""
    one = stored(release, tmp_path / "one", *words)
    dsctl("convert", one, tmp_path / "plain", "--bf16", "-q", "--workers", 1)
    dsctl("convert", tmp_path / "plain", tmp_path / "back", "--to", "published", "-q", "--workers", 1)
    assert contents(tmp_path / "back") == contents(one)


@pytest.mark.parametrize("words", [("--to", "fp8-block"), ("--to", "int4-group")])
def test_a_part_of_what_was_decoded_comes_back(release: Path, tmp_path: Path, words: tuple[str, str]) -> None:
    one = stored(release, tmp_path / "one", *words)
    dsctl("convert", one, tmp_path / "plain", "--bf16", "-q", "--workers", 1)
    part = "--to", "published", "--only", "model.layers.0.*"
    dsctl("convert", tmp_path / "plain", tmp_path / "back", *part, "-q", "--workers", 1)
    before, after = held(one), held(tmp_path / "back")
    assert after and all((made.bits_of(before[name]) == made.bits_of(tensor)).all() for name, tensor in after.items())


def test_v4_with_nvfp4_experts_comes_back(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    one = stored(smaller(tmp_path_factory, "v4-flash"), tmp_path / "one", "--recipe", "nvfp4-modelopt-experts")
    dsctl("convert", one, tmp_path / "plain", "--bf16", "-q", "--workers", 1)
    dsctl("convert", tmp_path / "plain", tmp_path / "back", "--to", "published", "-q", "--workers", 1)
    assert contents(tmp_path / "back") == contents(one)


def test_the_source_may_be_consumed_on_the_way(lantern: Path, tmp_path: Path) -> None:
    one = stored(lantern, tmp_path / "one", "--to", "int4-group-32")
    shutil.copytree(one, tmp_path / "eaten")
    dsctl("convert", tmp_path / "eaten", tmp_path / "plain", "--bf16", "--consume", "--consume", "-q", "--workers", 1)
    assert not list((tmp_path / "eaten").glob("*.safetensors"))
    dsctl("convert", tmp_path / "plain", tmp_path / "back", "--to", "published", "-q", "--workers", 1)
    assert contents(tmp_path / "back") == contents(one)


def test_the_plan_counts_the_kept_scales() -> None:
    """A scale of two bytes for every 32 values of the routed experts."""
    formats = json.loads(dsctl("plan", "kimi-k2-thinking", "--to", "bf16", "--json"))["formats"]
    roles = sum(sum(each.values()) for each in formats["bf16"]["roles"].values())
    assert formats["bf16"]["disk_bytes"] - roles == 60 * 384 * 3 * 7168 * 2048 // 32 * 2
