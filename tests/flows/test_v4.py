"""DeepSeek V4 from end to end: decoded, recast, and back byte for byte; what does not fit exactly is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from dsctl.api import open as open_checkpoint
from dsctl.plan import jobs as planning
from tests.flows.test_claim import convert, stopped, told
from tests.support.command import call, dsctl
from tests.support.folders import contents, tensors
from tests.support.unusual import Tensors, rewrite, same_files, unusual

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=torch.float64)
EXPERT = "layers.3.ffn.experts.2.w1."


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A small checkpoint of a release."""
    return partial(unusual, tmp_path_factory)


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def decoded(held: Tensors, name: str) -> torch.Tensor:
    """What a stored matrix is worth, in float64, by the plain formula."""
    codes, scales = held[name], held[name.removesuffix("weight") + "scale"]
    factors = scales.float().double()
    if codes.dtype == torch.int8:
        pairs = codes.view(torch.uint8)
        values = E2M1[torch.stack((pairs & 15, pairs >> 4), -1).flatten(1).long()]
        return values * factors.repeat_interleave(32, 1)
    return codes.float().double() * factors.repeat_interleave(128, 0).repeat_interleave(128, 1)


@pytest.mark.parametrize(
    ("release", "way"),
    [
        *product(("v4-flash", "v4-flash-base", "v4-flash-0731"), ("--bf16", "--fp8")),
        ("v4-flash", "--fp8 --scale-fmt float32"), ("v4-flash-base", "--fp8 --scale-fmt ue8m0"),
        ("v4-flash", "--to f32"), ("v4-flash-vision-exp", "--bf16"), ("v4-pro-0813", "--bf16"),
    ],
)  # fmt: skip
def test_the_way_back_gives_the_same_bytes(made: Callable[[str], Path], release: str, way: str, tmp_path: Path) -> None:
    source = made(release)
    dsctl("convert", source, tmp_path / "there", *way.split(), "--workers", 1)
    dsctl("convert", tmp_path / "there", tmp_path / "back", "--to", "published", "--workers", 1)
    same_files(source, tmp_path / "back")


def test_decoding_is_exact_and_leaves_what_is_not_quantized(made: Callable[[str], Path], tmp_path: Path) -> None:
    source = made("v4-flash-0731")
    audit = json.loads(dsctl("convert", source, tmp_path / "bf16", "--bf16", "--json", "--workers", 1))["audit"]
    before, after = tensors(source), tensors(tmp_path / "bf16")
    scales = {name.removesuffix("weight") + "scale" for name in before if name.endswith(".weight")} & before.keys()
    assert after.keys() == before.keys() - scales
    for name, tensor in after.items():
        if name.removesuffix("weight") + "scale" in scales and name.endswith("weight"):
            assert tensor.dtype == torch.bfloat16 and torch.equal(tensor.double(), decoded(before, name)), name
        else:
            assert tensor.dtype == before[name].dtype and raw(tensor) == raw(before[name]), name
    assert {str(tensor.dtype) for tensor in after.values()} == {"torch.bfloat16", "torch.float32", "torch.int64"}
    assert audit["dequantized"] == len(scales) and audit["unexplained"] == 0
    said = json.loads((tmp_path / "bf16" / "config.json").read_text())
    assert not {"quantization_config", "expert_dtype"} & said.keys()
    assert said["compress_ratios"] == json.loads((source / "config.json").read_text())["compress_ratios"]
    assert (tmp_path / "bf16" / "inference" / "model.py").is_file()


@pytest.mark.parametrize(("more", "dtype"), [((), torch.float8_e8m0fnu), (("--scale-fmt", "float32"), torch.float32)])
def test_experts_become_fp8_by_deepseek_s_rule(
    made: Callable[[str], Path], more: tuple[str, ...], dtype: torch.dtype, tmp_path: Path
) -> None:
    source = made("v4-flash")
    audit = json.loads(dsctl("convert", source, tmp_path / "fp8", "--fp8", *more, "--json", "--workers", 1))["audit"]
    before, after = tensors(source), tensors(tmp_path / "fp8")
    assert after.keys() == before.keys()
    experts = [name for name in before if ".experts." in name and name.endswith("weight")]
    for name in experts:
        scale = name.removesuffix("weight") + "scale"
        blocks = before[scale].float().unflatten(0, (-1, 128)).unflatten(2, (-1, 4)).amax((1, 3)) / 64
        assert after[scale].dtype == dtype and torch.equal(after[scale].float(), blocks), scale
        assert torch.equal(decoded(after, name), decoded(before, name)), name
        codes = before[name].view(torch.uint8)
        zeros = torch.stack((codes & 15, codes >> 4), -1).flatten(1) == 8
        assert (after[name].view(torch.uint8)[zeros] == 0x80).all()
    kept = {name for name in before if ".experts." not in name and before[name].dtype != torch.float8_e8m0fnu}
    assert all(raw(after[name]) == raw(before[name]) for name in kept)
    assert audit["recast"] >= len(experts) and "blocks_inexact" not in audit
    said = json.loads((tmp_path / "fp8" / "config.json").read_text())
    assert said["expert_dtype"] == "fp8" and said["quantization_config"]["scale_fmt"] == "ue8m0"


def test_a_block_that_does_not_fit_is_named_or_counted(made: Callable[[str], Path], tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(made("v4-flash"), source)

    def plant(held: Tensors) -> None:
        if EXPERT + "weight" in held:
            held[EXPERT + "weight"].view(torch.uint8)[5, 70] = 0x02
            held[EXPERT + "weight"].view(torch.uint8)[5, 71] = 0x10
        if EXPERT + "scale" in held:
            scales = held[EXPERT + "scale"].view(torch.uint8)
            scales[5, 4] = int(scales[:, 4:].amax()) - 15

    rewrite(source, plant)
    done = call("convert", source, tmp_path / "out", "--fp8", "--workers", 1)
    told(done, 41, f"{EXPERT}weight", "scales differ by 2^15", "block [0, 1]", "--allow-inexact")
    assert not (tmp_path / "out" / "dsctl.json").exists()
    audit = json.loads(dsctl("convert", source, tmp_path / "all", "--fp8", "--allow-inexact", "--json", "--workers", 1))
    assert audit["audit"]["blocks_inexact"] == 1 and audit["audit"]["blocks_recast"] > 1
    before, after = tensors(source), tensors(tmp_path / "all")
    differ = decoded(before, EXPERT + "weight") != decoded(after, EXPERT + "weight")
    assert differ.nonzero().tolist() == [[5, 143]]


@pytest.mark.parametrize("recipe", ["nvfp4-modelopt-experts", "nvfp4-experts", "mxfp4-experts"])
def test_four_bits_stay_four_bits_without_loss(made: Callable[[str], Path], recipe: str, tmp_path: Path) -> None:
    source = made("v4-flash")
    audit = json.loads(dsctl("convert", source, tmp_path / "out", "--recipe", recipe, "--json", "--workers", 1))[
        "audit"
    ]
    assert audit["requantized"] == audit["quantized"] == 0
    found = json.loads(dsctl("compare", source, tmp_path / "out", "--json"))
    assert found["total"]["identical"] is True
    before, after = tensors(source), tensors(tmp_path / "out")
    packed = EXPERT + ("weight" if "modelopt" in recipe else "weight_packed")
    assert after[packed].dtype == torch.uint8 and raw(after[packed]) == raw(before[EXPERT + "weight"])
    if "nvfp4" in recipe:
        pair = [after[f"layers.3.ffn.experts.2.{one}.weight_{end}"] for one in ("w1", "w3") for end in _ends(recipe)]
        assert torch.equal(*pair), "gate and up have one global scale"
    assert audit["unexplained"] == 0


def _ends(recipe: str) -> tuple[str, ...]:
    return ("scale_2",) if "modelopt" in recipe else ("global_scale",)


@pytest.mark.parametrize("way", ["--bf16", "--fp8"])
@pytest.mark.parametrize("lost", [False, True])
def test_a_run_that_was_killed_goes_on_with_the_scales_it_had_gathered(
    made: Callable[[str], Path], way: str, lost: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "JOB_BYTES", 300_000)
    source, target = made("v4-flash"), tmp_path / "out"
    if way == "--fp8":
        monkeypatch.setattr("tests.flows.test_claim.convert", _fp8)
    pieces: list[Path] = []
    for records in range(20, 100, 10):
        shutil.rmtree(target, ignore_errors=True)
        stopped(source, target, records)
        pieces = sorted((target / ".dsctl").glob("odd-scales-*.dsctl"))
        if len(pieces) > 1:
            break
    assert len(pieces) > 1
    if lost:
        pieces[0].unlink()
        pieces[-1].write_bytes(b"torn")
    dsctl("convert", source, target, way, "--workers", 1)
    dsctl("convert", source, tmp_path / "whole", way, "--workers", 1)
    assert (target / "odd-scales.dsctl").read_bytes() == (tmp_path / "whole" / "odd-scales.dsctl").read_bytes()
    assert not (target / ".dsctl").exists()
    dsctl("convert", target, tmp_path / "back", "--to", "published", "--workers", 1)
    same_files(source, tmp_path / "back")


def _fp8(source: Path, target: Path, *more: Any) -> Any:
    return call("convert", source, target, "--fp8", "--workers", "1", *more)


def test_without_the_kept_scales_the_values_are_the_same(made: Callable[[str], Path], tmp_path: Path) -> None:
    source = made("v4-flash")
    assert convert(source, tmp_path / "bf16", "--no-keep-scales").returncode == 0
    assert not list((tmp_path / "bf16").glob("*.dsctl"))
    dsctl("convert", tmp_path / "bf16", tmp_path / "back", "--to", "published", "--workers", 1)
    before, after = tensors(source), tensors(tmp_path / "back")
    assert after.keys() == before.keys()
    for name in (name for name in before if ".experts." in name and name.endswith("weight")):
        assert torch.equal(decoded(before, name), decoded(after, name)), name


def test_a_changed_expert_gets_a_new_scale_and_the_others_keep_theirs(
    made: Callable[[str], Path], tmp_path: Path
) -> None:
    source, trained = made("v4-flash"), tmp_path / "bf16"
    assert convert(source, trained).returncode == 0

    def train(held: Tensors) -> None:
        if EXPERT + "weight" in held:
            held[EXPERT + "weight"][1, 32] = 0.7

    rewrite(trained, train)
    dsctl("convert", trained, tmp_path / "back", "--to", "published", "--workers", 1)
    before, after = tensors(source), tensors(tmp_path / "back")
    differ = {name for name in before if raw(before[name]) != raw(after[name])}
    assert differ == {EXPERT + "weight", EXPERT + "scale"}
    changed = (before[EXPERT + "scale"].view(torch.uint8) != after[EXPERT + "scale"].view(torch.uint8)).nonzero()
    assert changed.tolist() == [[1, 1]]


def test_the_drafter_can_be_left_out(made: Callable[[str], Path], tmp_path: Path) -> None:
    source = made("v4-flash-0731")
    dsctl("convert", source, tmp_path / "out", "--bf16", "--no-mtp", "--workers", 1)
    assert not [name for name in tensors(tmp_path / "out") if name.startswith("mtp.")]
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert len(said["compress_ratios"]) == said["num_hidden_layers"] and said["num_nextn_predict_layers"] == 0
    assert not [field for field in said if field.startswith("dspark")]
    assert json.loads(dsctl("inspect", tmp_path / "out", "--json"))["faults"] == []


def test_a_source_that_is_consumed_comes_back_whole(made: Callable[[str], Path], tmp_path: Path) -> None:
    source = made("v4-flash-0731")
    for way in ("--bf16", "--fp8"):
        doomed = Path(shutil.copytree(source, tmp_path / f"doomed{way}"))
        dsctl("convert", doomed, tmp_path / way, way, "--consume", "--consume", "--workers", 1)
        assert not list(doomed.glob("*.safetensors")) and (doomed / "inference").is_dir()
        dsctl("convert", source, tmp_path / f"kept{way}", way, "--workers", 1)
        made_of_it = contents(tmp_path / way)
        assert {name: data for name, data in made_of_it.items() if not name.startswith(".cache/")} == contents(
            tmp_path / f"kept{way}"
        )
        dsctl("convert", tmp_path / way, tmp_path / f"back{way}", "--to", "published", "--workers", 1)
        same_files(source, tmp_path / f"back{way}")


def test_the_python_interface_is_the_command_line(made: Callable[[str], Path], tmp_path: Path) -> None:
    source = open_checkpoint(made("v4-flash"))
    dsctl("convert", made("v4-flash"), tmp_path / "theirs", "--fp8", "--scale-fmt", "float32", "--workers", 1)
    audit = source.to("fp8-block", scale_fmt="float32", allow_inexact=True).run(tmp_path / "ours")
    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")
    assert audit["audit"]["recast"] and "blocks_inexact" not in audit["audit"]
    assert source.compare(open_checkpoint(tmp_path / "ours")).total.same
    assert not [finding for finding in source.verify(deep=True).findings if finding.severity == "error"]


def test_formats_of_one_checkpoint_hold_the_same_values(made: Callable[[str], Path], tmp_path: Path) -> None:
    source = made("v4-flash-0731")
    dsctl("convert", source, tmp_path / "out", "--bf16", "--workers", 1)
    found = json.loads(dsctl("compare", source, tmp_path / "out", "--json"))
    assert found["total"]["identical"] is True and found["only_a"] == found["only_b"] == []
