"""`--original`: the way back to FP8 with scales from elsewhere, for a folder that does not keep them itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import dsctl as package
from tests.support.checkpoints import smaller, tiny
from tests.support.command import call, dsctl

SMALL = {
    "layers": 2, "experts": 4, "hidden": 256, "heads": 4, "vocab": 256, "intermediate": 256, "moe_intermediate": 256,
}  # fmt: skip
WEIGHT = "model.layers.0.self_attn.o_proj.weight"


@pytest.fixture(scope="module", params=["v3.1", "v3.2"])
def release(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory, request.param, **SMALL)


@pytest.fixture(scope="module")
def decoded(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in BF16, without a side file."""
    folder = tmp_path_factory.mktemp("decoded") / release.name
    dsctl("convert", release, folder, "--bf16", "--no-keep-scales")
    return folder


def restored(made: Path, release: Path) -> bool:
    """Whether weights, index and config are those of the release, byte for byte."""
    names = [path.name for path in release.iterdir() if path.name.startswith(("model", "config"))]
    assert len(names) > 4
    return all((made / name).read_bytes() == (release / name).read_bytes() for name in names)


def counts(made: Path) -> dict[str, int]:
    found: dict[str, int] = json.loads((made / "dsctl.json").read_text())["audit"]
    return found


def test_the_original_itself_gives_the_scales(release: Path, decoded: Path, tmp_path: Path) -> None:
    line = ("convert", decoded, tmp_path / "out", "--fp8", "--original", release)
    assert f"scales: the original ones are those of {release}" in dsctl(*line, "--dry-run")
    dsctl(*line)
    assert restored(tmp_path / "out", release) and not counts(tmp_path / "out").get("blocks_computed")
    assert "is already complete" in dsctl(*line)
    dsctl("verify", tmp_path / "out", "--deep", "--strict")


def test_a_side_file_elsewhere_gives_the_scales(release: Path, decoded: Path, tmp_path: Path) -> None:
    dsctl("convert", release, tmp_path / "kept", "--bf16")
    dsctl("convert", decoded, tmp_path / "out", "--to", "published", "--original", tmp_path / "kept", "--workers", 2)
    assert restored(tmp_path / "out", release)


def test_python_takes_it_too(release: Path, decoded: Path, tmp_path: Path) -> None:
    assert package.open(decoded).to("fp8-block", original=str(release)).run(tmp_path / "out").ok
    assert restored(tmp_path / "out", release)


def test_v4_comes_back_from_either_kind_of_folder(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """Its experts' scales follow from the values, except for the odd ones."""
    release = smaller(tmp_path_factory, "v4-flash")
    dsctl("convert", release, tmp_path / "plain", "--bf16", "--no-keep-scales")
    dsctl("convert", release, tmp_path / "kept", "--bf16")
    for number, original in enumerate((release, tmp_path / "kept")):
        out = tmp_path / f"out{number}"
        dsctl("convert", tmp_path / "plain", out, "--to", "published", "--original", original)
        assert restored(out, release)


def test_a_block_that_changed_gets_a_new_scale(release: Path, decoded: Path, tmp_path: Path) -> None:
    tuned = tmp_path / "tuned"
    shutil.copytree(decoded, tuned)
    (file,) = [path for path in tuned.glob("*.safetensors") if WEIGHT in load_file(path)]
    tensors = load_file(file)
    tensors[WEIGHT][0, 0] += 1
    save_file(tensors, file, {"format": "pt"})
    dsctl("convert", tuned, tmp_path / "out", "--fp8", "--original", release)
    found = counts(tmp_path / "out")
    assert found["blocks_computed"] == 1 and found["blocks_restored"] > 100
    assert not restored(tmp_path / "out", release)


def test_without_it_the_plan_says_that_scales_are_new(decoded: Path, tmp_path: Path) -> None:
    said = dsctl("convert", decoded, tmp_path / "out", "--fp8", "--dry-run")
    assert "so every block gets a new scale" in said and "--original FOLDER" in said


def test_what_cannot_give_scales_is_refused(release: Path, decoded: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    dsctl("tiny", release.name, tmp_path / "wide", "--layers", 2, "--hidden", 512)
    for words, code, said in (
        (("--fp8", "--original", decoded), 30, "holds no original scales"),
        (("--fp8", "--original", tmp_path / "wide"), 30, "do not fit the parameters"),
        (("--fp8", "--original", tmp_path / "none"), 10, "no such file or folder"),
        (("--bf16", "--original", release), 2, "--original: does nothing for bf16"),
        (("--fp8", "--original", release, "--consume", "--consume"), 2, "--consume and --original"),
    ):
        done = call("convert", decoded, out, *words)
        assert done.returncode == code and said in done.stderr, done.stderr
    assert call("convert", decoded, release / "inside", "--fp8", "--original", release).returncode == 30
    assert not out.exists()


@pytest.mark.parametrize("value", [float("nan"), 0.0, -1.0])
def test_an_impossible_scale_in_the_original_is_refused(
    release: Path, decoded: Path, tmp_path: Path, value: float
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(release, damaged)
    (file,) = [path for path in damaged.glob("*.safetensors") if f"{WEIGHT}_scale_inv" in load_file(path)]
    tensors = load_file(file)
    tensors[f"{WEIGHT}_scale_inv"][0, 0] = value
    save_file(tensors, file, {"format": "pt"})
    done = call("convert", decoded, tmp_path / "out", "--fp8", "--original", damaged)
    assert done.returncode == 20 and WEIGHT in done.stderr and not (tmp_path / "out").exists()


def test_scales_of_another_shape_or_dtype_are_refused(release: Path, decoded: Path, tmp_path: Path) -> None:
    """Planted in a side file, whose tensors no architecture has matched."""
    dsctl("convert", release, tmp_path / "kept", "--bf16")
    side = tmp_path / "kept" / "original.dsctl"
    held = load_file(side)
    scale = f"{WEIGHT}_scale_inv"
    for planted in (held[scale].repeat(2, 1), held[scale].half()):
        save_file(held | {scale: planted.contiguous()}, side)
        done = call("convert", decoded, tmp_path / "out", "--fp8", "--original", tmp_path / "kept")
        assert done.returncode == 30, done.stderr
    side.write_bytes(side.read_bytes()[:-3])
    done = call("convert", decoded, tmp_path / "out", "--fp8", "--original", tmp_path / "kept")
    assert done.returncode == 20, done.stderr
    assert not (tmp_path / "out").exists()


def test_the_original_is_part_of_a_targets_identity(release: Path, decoded: Path, tmp_path: Path) -> None:
    original, out = tmp_path / "original", tmp_path / "out"
    shutil.copytree(release, original)
    line = ("convert", decoded, out, "--fp8", "--original", original)
    dsctl(*line)
    (file,) = [path for path in original.glob("*.safetensors") if f"{WEIGHT}_scale_inv" in load_file(path)]
    tensors = load_file(file)
    tensors[f"{WEIGHT}_scale_inv"] *= 2
    raw = bytearray(file.read_bytes())
    length = int.from_bytes(raw[:8], "little")
    begin, end = json.loads(raw[8 : 8 + length])[f"{WEIGHT}_scale_inv"]["data_offsets"]
    raw[8 + length + begin : 8 + length + end] = (
        tensors[f"{WEIGHT}_scale_inv"].view(torch.uint8).flatten().numpy().tobytes()
    )
    file.write_bytes(raw)
    done = call(*line)
    assert done.returncode == 40 and file.name in done.stderr, done.stderr
    assert call("convert", decoded, out, "--fp8").returncode == 40, "another request"
    dsctl(*line, "--force")
    assert counts(out)["blocks_restored"]
