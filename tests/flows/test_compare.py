"""`dsctl compare`: its numbers are those of plain torch, for tensors and for whole checkpoints."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dsctl.look import comparison
from dsctl.look import summing as numbers
from dsctl.look.compare import compare, pair
from dsctl.look.comparison import Comparison, Sums, histogram
from dsctl.look.summing import summed
from dsctl.stores.local import LocalFolder
from tests.support.checkpoints import tiny
from tests.support.command import call, dsctl

SMALL = {
    "layers": 2, "experts": 4, "hidden": 256, "heads": 2, "vocab": 256, "intermediate": 384, "moe_intermediate": 128,
}  # fmt: skip
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@pytest.fixture(scope="module")
def fp8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory, "v3", **SMALL)


@pytest.fixture(scope="module")
def bf16(fp8: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("compare") / "bf16"
    dsctl("convert", fp8, target, "--bf16", "-q")
    return target


def changed(folder: Path, target: Path, change: Any) -> Path:
    """A copy of a folder with every tensor that `change` answers replaced."""
    shutil.copytree(folder, target)
    for path in target.glob("model-*.safetensors"):
        held = load_file(path)
        after = {name: change(name, tensor) for name, tensor in held.items()}
        save_file({name: tensor for name, tensor in after.items() if tensor is not None}, path, {"format": "pt"})
    return target


def shaken(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dim() < 2:
        return tensor
    noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(name)))
    return (tensor.float() * (1 + 0.01 * noise)).to(tensor.dtype)


def drawn(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dim() < 2:
        return tensor
    return torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(name))).to(tensor.dtype)


def compared(*arguments: Any) -> dict[str, Any]:
    return json.loads(dsctl("compare", *arguments, "--json"))


def expected(a: torch.Tensor, b: torch.Tensor) -> dict[str, float]:
    """The formulas, in one pass of float64."""
    a, b = a.double().flatten(), b.double().flatten()
    d = b - a
    largest = torch.maximum(a.abs(), b.abs())
    return {
        "snr_db": 10 * math.log10(float((a * a).sum() / (d * d).sum())),
        "cosine": float((a * b).sum() / torch.sqrt((a * a).sum() * (b * b).sum())),
        "max_abs": float(d.abs().max()),
        "max_rel": float((d.abs() / largest)[largest > 0].max()),
        "identical_values": int((a == b).sum()),
    }


@pytest.mark.parametrize("ours", DTYPES)
@pytest.mark.parametrize("theirs", DTYPES)
def test_sums_are_the_formulas(ours: torch.dtype, theirs: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbers, "CHUNK", 1000)
    generator = torch.Generator().manual_seed(1)
    a = torch.randn((57, 131), generator=generator)
    b = torch.where(
        torch.rand(a.shape, generator=generator) < 0.3, a, a + 0.01 * torch.randn(a.shape, generator=generator)
    )
    a[0, :5], b[0, 2:9] = 0, 0
    a, b = a.to(ours), b.to(theirs)
    sums = summed(a, b)
    found = {"snr_db": sums.snr, "cosine": sums.cosine, "max_abs": sums.max_abs, "max_rel": sums.max_rel,
             "identical_values": sums.identical}  # fmt: skip
    assert found == pytest.approx(expected(a, b), rel=1e-6)
    assert sums.values == a.numel() and not sums.not_finite
    assert sum(count for _, count in histogram(sums)) == sums.values - sums.identical


@given(st.lists(st.floats(width=32, allow_nan=True), min_size=1, max_size=40), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_a_tensor_equals_itself_whatever_it_holds(values: list[float], at: int) -> None:
    tensor = torch.tensor(values)
    sums = summed(tensor, tensor.clone())
    assert sums.same and sums.dd == 0 and sums.max_abs == 0 and sums.max_rel == 0
    other = tensor.clone()
    place = min(at, len(values) - 1)
    other[place] = 1.5 if values[place] != 1.5 else 2.5
    assert summed(tensor, other).identical == len(values) - 1


def test_adding_sums_is_the_sum_over_all() -> None:
    a, b = torch.randn(300), torch.randn(300)
    parts = Sums()
    for begin in (0, 100, 200):
        parts.add(summed(a[begin : begin + 100], b[begin : begin + 100]))
    one = summed(a, b)
    assert parts.snr == pytest.approx(one.snr) and parts.bins == one.bins and parts.max_rel == one.max_rel


def test_infinite_and_missing_numbers_are_counted_apart() -> None:
    nan, inf = math.nan, math.inf
    a = torch.tensor([1.0, nan, nan, inf, inf, 2.0])
    b = torch.tensor([1.0, nan, 1.00, inf, -inf, 3.0])
    sums = summed(a, b)
    assert (sums.values, sums.not_finite, sums.identical) == (6, 4, 3)
    assert sums.dd == 1 and sums.aa == 5 and sums.snr is None


def test_differences_beyond_float32_are_numbers() -> None:
    sums = summed(torch.tensor([3e38, 1.0]), torch.tensor([-3e38, 1.0]))
    assert sums.max_abs == pytest.approx(6e38) and sums.max_rel == 2 and sums.identical == 1 and not sums.not_finite


def test_relative_error_of_opposite_signs_is_two_and_of_zero_one() -> None:
    sums = summed(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([-1.0, 5.0, -0.0]))
    assert sums.max_rel == 2 and sums.identical == 1 and dict(histogram(sums)) == {0: 1, 1: 1}


def test_fp8_and_its_own_bf16_are_identical(fp8: Path, bf16: Path) -> None:
    for sides in ((fp8, bf16), (bf16, fp8), (fp8, fp8)):
        found = compared(*sides, "--fail-under", 1000)
        total = found["total"]
        assert total["identical"] and total["snr_db"] is None and total["cosine"] == 1 and total["histogram"] == []
        assert total["values"] == total["identical_values"] > 10**6
    assert "all identical" in dsctl("compare", fp8, bf16)


def test_fp8_and_its_own_f16_are_identical(fp8: Path, tmp_path: Path) -> None:
    dsctl("convert", fp8, tmp_path / "f16", "--to", "f16", "-q")
    found = compared(fp8, tmp_path / "f16", "--only", "*.mlp.experts.*")
    assert found["total"]["identical"]


def test_numbers_of_a_checkpoint_are_the_formulas(bf16: Path, tmp_path: Path) -> None:
    other = changed(bf16, tmp_path / "other", shaken)
    found = compared(bf16, other)
    before, after = ({n: t for path in folder.glob("model-*.safetensors") for n, t in load_file(path).items()}
                     for folder in (bf16, other))  # fmt: skip
    assert {one["name"] for one in found["parameters"]} == before.keys()
    for one in found["parameters"]:
        a, b = before[one["name"]], after[one["name"]]
        assert one["values"] == a.numel()
        if one["identical"]:
            assert torch.equal(a, b)
            continue
        assert {key: one[key] for key in expected(a, b)} == pytest.approx(expected(a, b), rel=1e-6)
    everything = [torch.cat([held[n].double().flatten() for n in sorted(before)]) for held in (before, after)]
    total = expected(*everything)
    assert {key: found["total"][key] for key in total} == pytest.approx(total, rel=1e-6)
    assert sum(role["values"] for role in found["roles"].values()) == found["total"]["values"]
    assert {"attention", "routed experts", "mtp"} <= found["roles"].keys()


def test_rows_that_threads_share_add_up_to_the_parameter(
    fp8: Path, bf16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed(bf16, tmp_path / "shaken", shaken)

    def found() -> tuple[Comparison, list[int]]:
        pairing = pair(LocalFolder(str(fp8)), LocalFolder(str(tmp_path / "shaken")))
        read: list[int] = []
        return compare(pairing, read.append), read

    whole, at_once = found()
    monkeypatch.setattr(comparison, "SHARE_BYTES", 1 << 18)
    cut, in_shares = found()
    assert len(in_shares) > len(at_once) and sum(in_shares) == sum(at_once)
    for one, other in zip(whole.compared, cut.compared, strict=True):
        assert (one.name, one.scales, one.sums.identical, one.sums.bins) == (
            other.name, other.scales, other.sums.identical, other.sums.bins)  # fmt: skip
        assert [one.sums.aa, one.sums.bb, one.sums.ab] == pytest.approx([other.sums.aa, other.sums.bb, other.sums.ab])
        assert one.sums.dd == pytest.approx(other.sums.dd)


def test_quantization_noise_is_what_three_bits_of_mantissa_give(bf16: Path, tmp_path: Path) -> None:
    normal = changed(bf16, tmp_path / "normal", drawn)
    dsctl("convert", normal, tmp_path / "fp8", "--fp8", "-q")
    found = compared(normal, tmp_path / "fp8")
    quantized = [one for one in found["parameters"] if one["b_format"] == "fp8-block"]
    assert len(quantized) > 40
    assert all(31 < one["snr_db"] < 32 for one in quantized), [one["snr_db"] for one in quantized]
    # Half a step of a mantissa of 1.0 is 2^-4; only what is smaller than the least code is further off, at most by all.
    assert 2**-5 < found["total"]["max_rel"] <= 1
    assert all(one["identical"] for one in found["parameters"] if one["b_format"] != "fp8-block")


def test_ragged_blocks_are_compared_whole(fp8: Path, tmp_path: Path) -> None:
    """One code of the last, partial row of blocks changes: one value differs."""
    name = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"

    def change(found: str, tensor: torch.Tensor) -> torch.Tensor:
        if found == name:
            assert tensor.shape[0] % 128
            tensor.view(torch.uint8)[-1, -1] ^= 1
        return tensor

    found = compared(fp8, changed(fp8, tmp_path / "other", change))
    apart = [one for one in found["parameters"] if not one["identical"]]
    assert [one["name"] for one in apart] == [name]
    assert apart[0]["identical_values"] == apart[0]["values"] - 1


def test_what_cannot_be_compared_is_named(bf16: Path, tmp_path: Path) -> None:
    gone = "model.layers.1.mlp.experts.2.up_proj.weight"
    other = changed(bf16, tmp_path / "other", lambda name, tensor: None if name == gone else tensor)
    index = json.loads((other / "model.safetensors.index.json").read_text())
    del index["weight_map"][gone]
    (other / "model.safetensors.index.json").write_text(json.dumps(index))
    found = compared(bf16, other)
    assert found["only_a"] == [gone] and found["only_b"] == [] and found["total"]["identical"]
    assert gone in dsctl("compare", bf16, other)
    assert call("compare", bf16, other, "--fail-under", 1).returncode == 50
    assert call("compare", bf16, other, "--fail-under", 1, "--skip", gone).returncode == 0
    assert call("compare", bf16, other, "--only", "nothing").returncode == 30


def test_other_shapes_are_named(bf16: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    wider = tiny(tmp_path_factory, "v3", **(SMALL | {"vocab": 384}))
    found = compared(bf16, wider)
    assert {one["name"] for one in found["other_shape"]} >= {"lm_head.weight", "model.embed_tokens.weight"}
    assert {"name": "lm_head.weight", "a": [256, 256], "b": [384, 256]} in found["other_shape"]


@pytest.mark.parametrize("limit", ["nan", "inf", "-inf"])
def test_fail_under_is_a_number(limit: str, bf16: Path) -> None:
    done = call("compare", bf16, bf16, f"--fail-under={limit}")
    assert done.returncode == 2 and "--fail-under" in done.stderr


def test_a_release_has_no_weights_to_compare(bf16: Path) -> None:
    for done in (call("compare", bf16, "v3.2"), call("verify", "V3.2")):
        assert done.returncode == 10
        assert "its weights are not here" in done.stderr and "hf://deepseek-ai/DeepSeek-V3.2" in done.stderr


def test_fail_under_names_what_is_below(bf16: Path, tmp_path: Path) -> None:
    other = changed(bf16, tmp_path / "other", shaken)
    assert call("compare", bf16, other, "--fail-under", 35).returncode == 0
    done = call("compare", bf16, other, "--fail-under", 45)
    assert done.returncode == 50 and done.stderr.count("error: ") == 1 and "dB" in done.stderr


def test_worst_come_first_and_globs_choose(bf16: Path, tmp_path: Path) -> None:
    worst = "model.layers.1.self_attn.o_proj.weight"
    other = changed(bf16, tmp_path / "other", lambda name, tensor: -tensor if name == worst else shaken(name, tensor))
    text = dsctl("compare", bf16, other, "--worst", 1, "--only", "*self_attn*", "--skip", "*norm*")
    lines = text[text.index("Largest differences") :].splitlines()
    assert lines[2].endswith(worst) and " -6.02 " in lines[2]
    assert "mlp" not in text


def test_files_of_unknown_architecture_are_compared_by_name(tmp_path: Path) -> None:
    codes = (torch.randn(130, 200) * 50).to(torch.float8_e4m3fn)
    scales = torch.rand(2, 2) + 0.1
    full = scales.repeat_interleave(128, 0)[:130].repeat_interleave(128, 1)[:, :200]
    save_file({"x": codes, "x_scale_inv": scales, "n": torch.ones(3, dtype=torch.int64)}, tmp_path / "a.safetensors",
              {"format": "pt"})  # fmt: skip
    save_file({"x": (codes.float() * full).bfloat16(), "n": torch.ones(3, dtype=torch.int64)},
              tmp_path / "b.safetensors", {"format": "pt"})  # fmt: skip
    found = compared(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert [one["name"] for one in found["parameters"]] == ["x"] and found["total"]["identical"]
    assert found["not_numbers"] == ["n"] and found["only_a"] == []


def test_codes_without_a_scale_are_never_compared_as_values(fp8: Path, bf16: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.experts.2.up_proj.weight_scale_inv"
    other = changed(fp8, tmp_path / "other", lambda found, tensor: None if found == name else tensor)
    index = json.loads((other / "model.safetensors.index.json").read_text())
    del index["weight_map"][name]
    (other / "model.safetensors.index.json").write_text(json.dumps(index))
    assert call("compare", bf16, other).returncode == 20
