"""`dsctl convert --lora`: an adapter is merged, only what it touches is encoded again, and what arrives is counted."""

from __future__ import annotations

import json
from math import log10
from pathlib import Path
from typing import Any

import pytest
import torch

import dsctl as api
from dsctl.checkpoint.adapters import with_adapter
from dsctl.checkpoint.opening import open_checkpoint
from dsctl.codecs import CODECS
from dsctl.core.header import TensorSpec
from dsctl.plan.plan import BAND_BYTES
from dsctl.plan.planner import make_plan
from dsctl.plan.request import Request
from dsctl.stores.local import LocalFolder
from dsctl.work.buffers import JobFiles
from tests.support.checkpoints import smaller
from tests.support.command import call, dsctl
from tests.support.factors import fitting, handmade, pair
from tests.support.folders import contents, tensors
from tests.support.schemas import faults

O_PROJ = "model.layers.1.self_attn.o_proj"
EXPERT = "model.layers.1.mlp.experts.2.down_proj"


@pytest.fixture(scope="module")
def fp8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smaller(tmp_path_factory, "v3.2")


@pytest.fixture(scope="module")
def bf16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smaller(tmp_path_factory, "v3.2", bf16=True)


def usual(source: Path, place: Path, scale: float = 0.02) -> Path:
    """An adapter of an attention matrix and of one matrix of one expert."""
    return fitting(source, place, (O_PROJ, EXPERT), scale)


def changes(adapter: Path, module: str, scaling: float = 2.0) -> torch.Tensor:
    """D as PEFT computes it."""
    held, name = tensors(adapter), f"base_model.model.{module}"
    return (held[f"{name}.lora_B.weight"] @ held[f"{name}.lora_A.weight"]) * scaling


def spread(scales: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return scales.repeat_interleave(128, 0).repeat_interleave(128, 1)[: shape[0], : shape[1]]


def by_blocks(values: torch.Tensor, keep: torch.Tensor, held: dict[str, torch.Tensor], name: str) -> tuple[Any, Any]:
    """FP8 codes and scales of values by DeepSeek's recipe, block by block; of blocks in `keep` what is stored."""
    codes, scales = held[name].clone(), held[f"{name}_scale_inv"].clone()
    for row in range(scales.shape[0]):
        for column in range(scales.shape[1]):
            if keep[row, column]:
                continue
            place = slice(128 * row, 128 * row + 128), slice(128 * column, 128 * column + 128)
            block = values[place]
            scale = block.abs().max().clamp_min(1e-4) / torch.tensor(448.0)
            codes[place] = (block / scale).to(torch.float8_e4m3fn)
            scales[row, column] = scale
    return codes, scales


@pytest.mark.parametrize("sparse", [False, True])
def test_fp8_is_decoded_summed_and_quantized_again_block_by_block(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, sparse: bool
) -> None:
    fp8 = smaller(tmp_path_factory, "v3")
    before = tensors(fp8)
    rows, columns = before[f"{O_PROJ}.weight"].shape
    factors = pair(O_PROJ, rows, columns)
    if sparse:
        # Only the block in the second row and the third column is asked to change.
        a, b = factors
        factors[a][:, :256] = factors[a][:, 384:] = 0
        factors[b][:128] = 0
        assert rows == 256 and columns == 512
    adapter = handmade(tmp_path / "adapter", factors)
    dsctl("convert", fp8, tmp_path / "out", "--lora", adapter)
    after = tensors(tmp_path / "out")
    name = f"{O_PROJ}.weight"
    codes, scales = before[name], before[f"{name}_scale_inv"]
    summed = codes.float() * spread(scales, codes.shape) + changes(adapter, O_PROJ)
    keep = torch.full(scales.shape, sparse)
    if sparse:
        keep[1, 2] = False
    wanted = by_blocks(summed, keep, before, name)
    for found, one in zip((after.pop(name), after.pop(f"{name}_scale_inv")), wanted, strict=True):
        assert torch.equal(found.view(torch.uint8), one.view(torch.uint8))
    assert all(torch.equal(one.view(torch.uint8), before[key].view(torch.uint8)) for key, one in after.items())
    kept = json.loads((tmp_path / "out" / "dsctl.json").read_text())["audit"].get("blocks_restored", 0)
    assert kept == (scales.numel() - 1 if sparse else 0)


@pytest.mark.parametrize("format_", ["keep", "bf16"])
def test_the_figures_are_those_of_the_stored_values(
    fp8: Path, tmp_path: Path, format_: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    adapter = usual(fp8, tmp_path / "adapter", 0.0002)
    asked = () if format_ == "keep" else ("--to", format_)
    dsctl("convert", fp8, tmp_path / "with", "--lora", adapter, *asked)
    dsctl("convert", fp8, tmp_path / "without", "--to", "f32")
    base = {key: one.float() for key, one in tensors(tmp_path / "without").items()}
    if format_ == "bf16":
        base = {key: one.to(torch.bfloat16).float() for key, one in base.items()}
    dsctl("convert", tmp_path / "with", tmp_path / "decoded", "--to", "f32")
    now = tensors(tmp_path / "decoded")
    said = json.loads((tmp_path / "with" / "dsctl.json").read_text())["lora"]
    for role, module in (("attention", O_PROJ), ("routed experts", EXPERT)):
        change = changes(adapter, module).double()
        arrived = now[f"{module}.weight"].double() - base[f"{module}.weight"].double()
        same = (arrived == 0) & (change != 0)
        energy, error = change.square().sum(), (arrived - change).square().sum()
        found = said["roles"][role]
        assert found["values"] == int((change != 0).sum()) and found["values_unchanged"] == int(same.sum())
        assert found["lost_energy_share"] == pytest.approx(float(change[same].square().sum() / energy), abs=2e-6)
        assert found["signal_to_noise_db"] == pytest.approx(10 * log10(energy / error), abs=0.01)
    assert said["roles"]["attention"]["matrices"] == 1 and said["modules"] == 2
    assert not faults("convert", json.loads(dsctl("convert", fp8, tmp_path / "again", "--lora", adapter, "--json")))


def test_most_of_a_small_change_drowns_in_fp8_and_that_is_said(fp8: Path, tmp_path: Path) -> None:
    adapter = usual(fp8, tmp_path / "adapter", 0.0001)
    done = call("convert", fp8, tmp_path / "fp8", "--lora", adapter)
    assert "most of the adapter's change drowned in rounding: attention, routed experts; --bf16" in done.stderr
    assert "lora: attention: 1 matrix, " in done.stdout and "stay the same after rounding" in done.stdout
    done = call("convert", fp8, tmp_path / "bf16", "--bf16", "--lora", adapter)
    assert not done.returncode and "drowned" not in done.stderr


@pytest.mark.parametrize("format_", [name for name in CODECS if name not in ("bf16", "f16", "f32", "nvfp4-modelopt")])
@pytest.mark.parametrize("zero", [True, False])
def test_in_every_format_what_the_adapter_leaves_alone_keeps_its_bytes(
    fp8: Path, tmp_path: Path, format_: str, zero: bool
) -> None:
    dsctl("convert", fp8, tmp_path / "base", "--to", format_)
    adapter = usual(fp8, tmp_path / "adapter", 0.0 if zero else 0.02)
    dsctl("convert", tmp_path / "base", tmp_path / "out", "--lora", adapter)
    before, after = tensors(tmp_path / "base"), tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    other = {key for key in before if not torch.equal(before[key].view(torch.uint8), after[key].view(torch.uint8))}
    touched = {key for key in before if key.startswith((f"{O_PROJ}.weight", f"{EXPERT}.weight"))}
    assert not other if zero else other and other <= touched


@pytest.mark.parametrize(
    ("release", "layout"), [("v3", "stacked"), ("v3", "fused"), ("v3", "transformers"), ("v4-flash", "transformers")]
)
def test_from_and_to_every_layout(
    release: str, layout: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = smaller(tmp_path_factory, release)
    modules = {"v3": (O_PROJ, EXPERT), "v4-flash": ("layers.1.attn.wq_b", "layers.1.ffn.experts.2.w1")}[release]
    if release == "v3":
        adapter = fitting(source, tmp_path / "adapter", modules)
    else:
        dsctl("convert", source, tmp_path / "f32", "--to", "f32")
        adapter = fitting(tmp_path / "f32", tmp_path / "adapter", modules)
    mtp = ("--no-mtp",) if layout == "transformers" and release == "v4-flash" else ()
    dsctl("convert", source, tmp_path / "published", "--lora", adapter, *mtp)
    dsctl("convert", source, tmp_path / "relaid", "--lora", adapter, "--layout", layout, *mtp)
    dsctl("convert", tmp_path / "relaid", tmp_path / "back", *("--layout", "published"))
    assert contents_of_weights(tmp_path / "back") == contents_of_weights(tmp_path / "published")
    dsctl("convert", source, tmp_path / "base", "--layout", layout, *mtp)
    dsctl("convert", tmp_path / "base", tmp_path / "from", "--lora", adapter)
    assert contents_of_weights(tmp_path / "from") == contents_of_weights(tmp_path / "published")


def test_blocks_that_the_adapter_leaves_alone_come_back_from_bf16(fp8: Path, tmp_path: Path) -> None:
    before = tensors(fp8)
    factors = pair(O_PROJ, *before[f"{O_PROJ}.weight"].shape)
    factors[f"base_model.model.{O_PROJ}.lora_B.weight"][128:] = 0
    dsctl("convert", fp8, tmp_path / "bf16", "--bf16", "--lora", handmade(tmp_path / "adapter", factors))
    done = call("convert", tmp_path / "bf16", tmp_path / "fp8", "--fp8")
    assert not done.returncode and "SHA-256" not in done.stderr
    after = tensors(tmp_path / "fp8")
    assert before.keys() == after.keys()
    other = {key for key in before if not torch.equal(before[key].view(torch.uint8), after[key].view(torch.uint8))}
    assert other == {f"{O_PROJ}.weight", f"{O_PROJ}.weight_scale_inv"}
    for key, rows in ((f"{O_PROJ}.weight", 128), (f"{O_PROJ}.weight_scale_inv", 1)):
        assert torch.equal(before[key][rows:].view(torch.uint8), after[key][rows:].view(torch.uint8))


def test_the_bytes_do_not_depend_on_workers_bands_or_threads(
    fp8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, usual_threads = usual(fp8, tmp_path / "adapter"), torch.get_num_threads()
    set_threads = torch.set_num_threads
    made: list[Any] = []
    for workers, band, threads in ((1, BAND_BYTES, 1), (2, BAND_BYTES, 1), (1, 1 << 16, 1), (1, BAND_BYTES, 2)):
        monkeypatch.setattr("dsctl.run.resources._bands", lambda band=band: [band])
        monkeypatch.setattr("torch.set_num_threads", lambda number, threads=threads: set_threads(threads))
        found: list[Any] = []
        for format_ in ("keep", "bf16", "int4-group"):
            target = tmp_path / f"{len(made)}-{format_}"
            api.open(str(fp8)).to(format_, lora=adapter).run(target, workers=workers)
            audit = json.loads((target / "dsctl.json").read_text())
            found += [contents(target), audit["lora"], audit["audit"]]
        made.append(found)
    set_threads(usual_threads)
    assert all(one == made[0] for one in made)


def test_buffers_are_no_larger_than_planned(fp8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, used = usual(fp8, tmp_path / "adapter"), dict[str, int]()
    buffer = JobFiles.buffer

    def noted(files: JobFiles, name: str, spec: TensorSpec) -> torch.Tensor:
        used[name] = max(used.get(name, 0), spec.nbytes)
        return buffer(files, name, spec)

    monkeypatch.setattr(JobFiles, "buffer", noted)
    for format_ in ("keep", "bf16", "nvfp4", "fp8-channel"):
        used.clear()
        conversion = api.open(str(fp8)).to(format_, lora=adapter, only=[f"{O_PROJ}.weight", f"{EXPERT}.weight"])
        conversion.run(tmp_path / format_, workers=1)
        planned: dict[str, int] = {}
        for step in conversion.plan.steps:
            planned |= {name: max(planned.get(name, 0), most) for name, most in step.buffers(BAND_BYTES).items()}
        assert "lora:merged" in used and not {name for name in used if used[name] > planned.get(name, 0)}


@pytest.mark.parametrize("sizes", [{"tp": 2}, {"tp": 2, "ep": 2, "pp": 2}])
def test_ranks_get_the_merged_weights(fp8: Path, tmp_path: Path, sizes: Any) -> None:
    adapter, source = usual(fp8, tmp_path / "adapter"), api.open(str(fp8))
    ranks = source.shard("bf16", lora=adapter, mtp=True, **sizes).run(tmp_path / "ranks")
    dsctl("merge", tmp_path / "ranks", tmp_path / "merged")
    direct = source.to("bf16", lora=adapter).run(tmp_path / "bf16")
    assert contents_of_weights(tmp_path / "merged") == contents_of_weights(tmp_path / "bf16")
    assert ranks["lora"]["roles"] == direct["lora"]["roles"]


def contents_of_weights(folder: Path) -> dict[str, bytes]:
    return {name: one.view(torch.uint8).numpy().tobytes() for name, one in tensors(folder).items()}


def test_a_plan_names_the_adapter_and_what_it_changes(fp8: Path, tmp_path: Path) -> None:
    adapter = usual(fp8, tmp_path / "adapter")
    said = dsctl("convert", fp8, tmp_path / "out", "--lora", adapter, "--dry-run")
    assert "merged     2 changed by the adapter" in said and f"{adapter}: r 4, alpha 8; 2 pairs of factors" in said
    assert "lora: routed experts: changes 1 matrix, " in said
    planned = json.loads(dsctl("convert", fp8, tmp_path / "out", "--lora", adapter, "--dry-run", "--json"))
    assert not faults("convert-plan", planned)
    assert planned["audit"]["merged"] == 2 and planned["lora"]["changed"] == {"attention": 1, "routed experts": 1}
    checkpoint, found = with_adapter(open_checkpoint(LocalFolder.at(fp8)), str(adapter))
    plan = make_plan(checkpoint, Request("keep", lora=str(adapter)), None, found)
    assert {step.name for step in plan.steps if step.low_rank} == {f"{O_PROJ}.weight", f"{EXPERT}.weight"}
    assert not (tmp_path / "out").exists()
