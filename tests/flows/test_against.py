"""`dsctl verify --against`: every conversion is its source's, and no planted fault passes as one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dsctl.checkpoint.opening import open_checkpoint
from dsctl.look.proof import Proof, Sample, sample_of
from dsctl.look.proving import prepare, prove
from dsctl.stores.local import LocalFolder
from tests.support.checkpoints import smaller, tiny
from tests.support.command import call, dsctl

EXPERT = "model.layers.1.mlp.experts.1.gate_proj.weight"
BLOCKS, NORM = f"{EXPERT}_scale_inv", "model.norm.weight"
PACKED, GROUPS = (EXPERT.replace("weight", part) for part in ("weight_packed", "weight_scale"))
# What `dsctl` makes of a small V3.2, and with which options.
MADE: dict[str, tuple[str, tuple[str, ...]]] = {
    "bf16": ("fp8", ("--bf16",)),
    "bare": ("fp8", ("--bf16", "--no-keep-scales")),
    "f32": ("fp8", ("--to", "f32")),
    "again": ("bf16", ("--fp8",)),
    "new": ("bare", ("--fp8",)),
    "int4": ("bare", ("--to", "int4-group")),
    "searched": ("bare", ("--to", "int4-group-32", "--search")),
    "int8": ("fp8", ("--to", "int8-channel")),
    "mxfp4": ("bare", ("--to", "mxfp4")),
    "mxfp8": ("fp8", ("--to", "mxfp8")),
    "nvfp4": ("bare", ("--to", "nvfp4")),
    "mixed": ("fp8", ("--recipe", "int4-experts-fp8")),
}


class Stored(NamedTuple):
    """A stored tensor: its file, and the place of its bytes."""

    file: Path
    begin: int
    end: int


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Checkpoints by name, each made once."""
    found = {"fp8": smaller(tmp_path_factory, "v3.2", layers=2, experts=4)}

    def make(name: str) -> Path:
        if name not in found:
            source, options = MADE[name]
            before, found[name] = make(source), tmp_path_factory.mktemp("against") / name
            dsctl("convert", before, found[name], *options, "--workers", 1, "-q")
        return found[name]

    return make


def proof(folder: Path, source: Path, sample: Sample | None = None) -> Proof:
    here, there = (open_checkpoint(LocalFolder.at(one)) for one in (folder, source))
    return prove(prepare(here, there, sample=sample))


def stored(folder: Path, name: str) -> Stored:
    for file in sorted(folder.rglob("*.safetensors")):
        raw = file.read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8:start])
        if name in header:
            begin, end = header[name]["data_offsets"]
            return Stored(file, start + begin, start + end)
    raise KeyError(name)


def patch(folder: Path, name: str, change: Callable[[bytearray], Any]) -> None:
    """Change the bytes of a stored tensor in place; `change` answers new bytes, or changes those it gets."""
    at = stored(folder, name)
    data = bytearray(at.file.read_bytes()[at.begin : at.end])
    data = change(data) or data
    assert len(data) == at.end - at.begin
    with at.file.open("r+b") as file:
        file.seek(at.begin)
        file.write(data)


def held(folder: Path, name: str) -> bytes:
    at = stored(folder, name)
    return at.file.read_bytes()[at.begin : at.end]


def copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


EXPECTED = [
    ("fp8", "fp8", {"moved"}), ("bf16", "fp8", {"moved", "exact"}), ("fp8", "bf16", {"moved", "exact"}),
    ("f32", "fp8", {"moved", "exact"}), ("again", "fp8", {"moved"}), ("again", "bf16", {"moved", "exact"}),
    ("new", "bare", {"moved", "exact"}), ("int4", "bare", {"moved", "encoded"}),
    ("int4", "fp8", {"moved", "exact", "encoded"}),
    ("searched", "bare", {"moved", "encoded", "rounded"}), ("int8", "fp8", {"moved", "exact", "encoded"}),
    ("mxfp4", "bare", {"moved", "encoded"}), ("mxfp8", "fp8", {"moved", "exact"}),
    ("nvfp4", "bare", {"moved", "encoded"}), ("mixed", "fp8", {"moved", "exact", "encoded"}),
    ("f32", "bf16", {"moved", "exact"}),
]  # fmt: skip


@pytest.mark.parametrize("case", EXPECTED, ids=lambda case: f"{case[0]}-{case[1]}")
def test_every_conversion_is_its_source_s(made: Callable[[str], Path], case: tuple[str, str, set[str]]) -> None:
    folder, source, kinds = case
    found = proof(made(folder), made(source))
    assert found.holds and not found.odd, found.line
    assert {kind for kind, number in found.counts.items() if number} <= kinds
    assert found.total == len(found.judged) == 88
    assert {one.name for one in found.judged if one.kind == "moved"} >= {"model.norm.weight"} or "moved" not in kinds
    for share in (0.02, 0.5, 1.0):
        assert proof(made(folder), made(source), sample_of(share, 3)).holds


def test_the_line_can_be_pasted(made: Callable[[str], Path]) -> None:
    text = dsctl("verify", made("bf16"), "--against", made("fp8"))
    assert f"88 of 88 parameters are {made('fp8').name}'s: 54 exact, 34 moved\n" in text
    assert "every value here of the 88 parameters on both sides was compared" in text and "no problems found" in text


SWAPPED = "it looks like model.layers.1.mlp.experts.2.gate_proj.weight there"
FAULTS: dict[str, tuple[str, str, Callable[[Path], None], str]] = {
    "one bit of a code": ("fp8", "fp8", lambda f: patch(f, EXPERT, lambda d: flip(d, 1000, 0)), "row 3, column 232"),
    "one low bit of a scale": (
        "fp8", "fp8", lambda f: patch(f, BLOCKS, lambda d: flip(d, 4, 0)), "(1 byte of its scale)",
    ),
    "one low bit of a norm": ("fp8", "fp8", lambda f: patch(f, NORM, lambda d: flip(d, 6, 0)), "in place 1"),
    "a block with another scale": (
        "fp8", "fp8", lambda f: patch(f, BLOCKS, lambda d: doubled(d, 3)), "in block [1, 1]",
    ),
    "the same, from BF16": (
        "new", "bare", lambda f: patch(f, BLOCKS, lambda d: doubled(d, 3)), "in block [1, 1]",
    ),
    "one bit of BF16": ("bf16", "fp8", lambda f: patch(f, EXPERT, lambda d: flip(d, 1000, 0)), "row 1, column 244"),
    "another expert": ("fp8", "fp8", lambda f: swapped(f, "weight", "weight_scale_inv"), SWAPPED),
    "another expert in BF16": ("bf16", "fp8", lambda f: swapped(f, "weight"), SWAPPED),
    "another expert in INT4": ("int4", "fp8", lambda f: swapped(f, "weight_packed", "weight_scale"), SWAPPED),
    "a code of INT4": (
        "int4", "bare", lambda f: patch(f, PACKED, lambda d: flip(d, 500, 6)), "differ in row",
    ),
    "a scale of INT4": (
        "int4", "bare", lambda f: patch(f, GROUPS, lambda d: flip(d, 9, 1)), "differ in row",
    ),
    "a code of NVFP4": (
        "nvfp4", "bare", lambda f: patch(f, PACKED, lambda d: flip(d, 500, 3)), "differ in row",
    ),
    "a tensor of zeros": ("bf16", "fp8", lambda f: patch(f, EXPERT, lambda d: bytes(len(d))), "off by 100 %"),
    "NaN": ("bf16", "fp8", lambda f: patch(f, EXPERT, lambda d: d[:200] + b"\xff\x7f" + d[202:]), "row 0, column 100"),
}  # fmt: skip


def flip(data: bytearray, byte: int, bit: int) -> None:
    data[byte] ^= 1 << bit


def doubled(data: bytearray, place: int) -> bytes:
    scales = np.frombuffer(bytes(data), "<f4").copy()
    scales[place] *= 2
    return scales.tobytes()


def swapped(folder: Path, *parts: str) -> None:
    """Exchange two experts' matrices."""
    for part in parts:
        exchanged(folder, *(EXPERT.replace("weight", part).replace("experts.1", f"experts.{n}") for n in (1, 2)))


def exchanged(folder: Path, one: str, other: str) -> None:
    first, second = held(folder, one), held(folder, other)
    patch(folder, one, lambda _: second)
    patch(folder, other, lambda _: first)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_and_named(made: Callable[[str], Path], tmp_path: Path, fault: str) -> None:
    name, source, plant, words = FAULTS[fault]
    folder = copied(made(name), tmp_path / "changed")
    plant(folder)
    seen = call("verify", folder, "--against", made(source), "--json")
    found = json.loads(seen.stdout)
    assert seen.returncode == 50 and not found["ok"] and not found["values"]["holds"]
    others = [one for one in found["findings"] if one["code"] == "other-values"]
    names = {one["where"] for one in others}
    swapped = {EXPERT, EXPERT.replace("experts.1", "experts.2")} if "expert" in fault else None
    assert names == (swapped or {"model.norm.weight" if "norm" in fault else EXPERT})
    assert words in others[0]["what"], others[0]["what"]
    assert found["values"]["counts"]["other"] == len(names)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_single_bit_is_found(made: Callable[[str], Path], data: st.DataObject) -> None:
    """In a copy of the same form every bit counts; in BF16 of FP8 all but the sign of a zero."""
    kind = data.draw(st.sampled_from(["fp8", "bf16"]))
    file = data.draw(st.sampled_from(sorted(made(kind).glob("model-*.safetensors"))))
    with safe_open(file, "pt") as opened:
        name = data.draw(st.sampled_from(sorted(opened.keys())))
    at = stored(made(kind), name)
    byte, bit = data.draw(st.integers(0, at.end - at.begin - 1)), data.draw(st.integers(0, 7))
    raw = file.read_bytes()
    width = 2 if kind == "bf16" else 1
    word = raw[at.begin + byte // width * width :][:width]
    if kind == "bf16" and byte % 2 and bit == 7 and not any(word):
        return
    # Only what is changed is looked at, so that many bits can be tried.
    target = Path(f"{made(kind)}-changed")
    if not target.exists():
        shutil.copytree(made(kind), target)
    patch(target, name, lambda old: flip(old, byte, bit))
    try:
        param = name.removesuffix("_scale_inv")
        task = prepare(*(open_checkpoint(LocalFolder.at(one)) for one in (target, made("fp8"))))
        units = tuple(unit for unit in task.units if unit.subject.param.name == param)
        subjects = tuple(one for one in task.subjects if one.param.name == param)
        others = tuple(one for one in task.subjects if one.param.name != param)[:8]
        more = tuple(unit for unit in task.units if unit.subject in others)
        found = prove(task._replace(units=(*units, *more), subjects=(*subjects, *others)))
        assert [one.name for one in found.others] == [param], (byte, bit, found.line)
    finally:
        patch(target, name, lambda old: flip(old, byte, bit))


def test_a_low_bit_of_a_scale_that_rounding_hides_is_other(made: Callable[[str], Path], tmp_path: Path) -> None:
    """The changed scale gives the same BF16 values, but everything else is exact."""
    folder = copied(made("new"), tmp_path / "changed")
    patch(folder, BLOCKS, lambda data: flip(data, 4, 0))
    found = proof(folder, made("bare"))
    assert [one.name for one in found.others] == [EXPERT] and "perhaps a changed bit" in found.others[0].where


def test_a_low_bit_among_rounded_parameters_is_odd(made: Callable[[str], Path], tmp_path: Path) -> None:
    """A scale of BF16 that is off by one in its last place is as near as codes can be; no encoder gives it."""
    folder = copied(made("int8"), tmp_path / "changed")
    patch(folder, GROUPS, lambda data: flip(data, 6, 0))
    found = proof(folder, made("fp8"))
    assert [one.name for one in found.odd] == [EXPERT] and found.holds, found.line
    text = call("verify", folder, "--against", made("fp8"), "--strict")
    assert text.returncode == 50 and f"odd-rounding  {EXPERT}" in text.stdout


def test_another_checkpoint_of_the_same_shapes_is_not_its_source(made: Callable[[str], Path], tmp_path: Path) -> None:
    dsctl("tiny", "v3.2", tmp_path / "other", "--layers", 2, "--experts", 4, "--hidden", 256, "--vocab", 512,
          "--intermediate", 512, "--seed", 99, "-q")  # fmt: skip
    found = proof(made("bf16"), tmp_path / "other")
    assert not found.holds and found.counts["other"] > 40


def strange(folder: Path, source: Path, encode: Callable[[torch.Tensor], dict[str, torch.Tensor]]) -> None:
    """Write every FP8 matrix of a source as someone else encodes it."""
    shutil.copytree(source, folder)
    for file in folder.glob("model-*.safetensors"):
        tensors = load_file(file)
        for name in [name for name in tensors if f"{name}_scale_inv" in tensors]:
            scale = tensors[f"{name}_scale_inv"].repeat_interleave(128, 0).repeat_interleave(128, 1)
            weight = tensors[name].float()
            value = (weight * scale[: weight.shape[0], : weight.shape[1]]).bfloat16()
            tensors |= {f"{name}{end}": one for end, one in encode(value).items()}
        save_file(tensors, file, {"format": "pt"})


def blocks(value: torch.Tensor) -> torch.Tensor:
    rows, columns = value.shape
    whole = torch.nn.functional.pad(value, (0, -columns % 128, 0, -rows % 128))
    return whole.view(whole.shape[0] // 128, 128, -1, 128).abs().amax((1, 3)).float()


def spread(scales: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return scales.repeat_interleave(128, 0).repeat_interleave(128, 1)[: like.shape[0], : like.shape[1]]


def by_another_rule(value: torch.Tensor) -> dict[str, torch.Tensor]:
    """FP8 by blocks whose largest code is 416, with a multiplication by the inverse: no one's usual bytes."""
    scales = (blocks(value) / 416).clamp_min(1e-12)
    codes = (value.float() * spread(1 / scales, value)).to(torch.float8_e4m3fn)
    return {"": codes, "_scale_inv": scales}


def test_another_encoder_s_bytes_are_within_rounding(made: Callable[[str], Path], tmp_path: Path) -> None:
    strange(tmp_path / "theirs", made("fp8"), by_another_rule)
    for source in ("fp8", "bf16"):
        found = proof(tmp_path / "theirs", made(source))
        assert found.holds, [(one.name, one.where) for one in found.others[:3]]
        assert found.counts["rounded"] == 51 and found.counts["exact"] + found.counts["moved"] == 37


@pytest.mark.parametrize("factor", [0.125, 3.0])
def test_a_scale_out_of_proportion_is_other(made: Callable[[str], Path], tmp_path: Path, factor: float) -> None:
    """Codes that fit their scale, but a scale that wastes the codes or cuts the values off."""

    def wasteful(value: torch.Tensor) -> dict[str, torch.Tensor]:
        scales = (blocks(value) / 448 * factor).clamp_min(1e-12)
        codes = (value.float() / spread(scales, value)).clamp(-448, 448).to(torch.float8_e4m3fn)
        return {"": codes, "_scale_inv": scales}

    strange(tmp_path / "theirs", made("fp8"), wasteful)
    assert proof(tmp_path / "theirs", made("bf16")).counts["other"] == 51


@pytest.mark.parametrize(
    "options", [("--tp", 2), ("--tp", 2, "--ep", 4), ("--tp", 2, "--layout", "deepseek", "--mtp", "keep")], ids=str
)
def test_ranks_are_their_source_s_and_every_copy_counts(
    made: Callable[[str], Path], tmp_path: Path, options: tuple[Any, ...]
) -> None:
    dsctl("shard", made("fp8"), tmp_path / "ranks", *options, "-q")
    assert proof(tmp_path / "ranks", made("fp8")).holds
    assert proof(made("fp8"), tmp_path / "ranks").holds
    assert proof(made("bf16"), tmp_path / "ranks").holds
    files = sorted((tmp_path / "ranks").rglob("*.safetensors"))
    norm = "model.norm.weight" if "deepseek" not in options else "norm.weight"
    for file in files[::-1]:
        if norm in load_file(file):
            tensors = load_file(file)
            tensors[norm][5] += 1
            save_file(tensors, file, {"format": "pt"})
            break
    found = proof(tmp_path / "ranks", made("fp8"))
    assert [one.name for one in found.others] == ["model.norm.weight"] and "place 5" in found.others[0].where


def test_one_rank_is_a_part_and_says_so(made: Callable[[str], Path], tmp_path: Path) -> None:
    dsctl("shard", made("fp8"), tmp_path / "ranks", "--tp", 2, "--rank", 1, "-q")
    found = proof(tmp_path / "ranks", made("fp8"))
    assert found.partial and not found.counts["other"] and "only a part is here" in found.line
    back = proof(made("fp8"), tmp_path / "ranks")
    assert not back.holds and not back.counts["other"]
    assert {name for name, _ in back.unread} == set(found.partial)


def test_a_drafter_alone_is_held_against_the_drafter(made: Callable[[str], Path], tmp_path: Path) -> None:
    copies = ("--skip", "*.embed_tokens.weight", "--skip", "*.shared_head.head.weight")
    for more in ((), copies):
        draft = tmp_path / f"draft{len(more)}"
        dsctl("convert", made("fp8"), draft, "--mtp", "only", *more, "-q")
        found = proof(draft, made("fp8"))
        assert found.holds and found.drafter and "of its drafter alone" in found.line
        seen = call("verify", draft, "--against", made("fp8"))
        assert seen.returncode == 0, seen.stdout


def test_what_only_one_side_has_is_named(made: Callable[[str], Path], tmp_path: Path) -> None:
    dsctl("convert", made("fp8"), tmp_path / "less", "--bf16", "--no-mtp", "-q")
    found = proof(tmp_path / "less", made("fp8"))
    assert found.lost and not found.added and not found.counts["other"]
    assert all(name.startswith("model.layers.2.") for name in found.lost)
    seen = call("verify", tmp_path / "less", "--against", made("fp8"))
    assert seen.returncode == 50 and "lost-parameter" in seen.stdout
    assert f"{len(found.lost)} of its parameters are missing here" in seen.stdout
    codes = "other-architecture,lost-parameter,config-differs"
    assert call("verify", tmp_path / "less", "--against", made("fp8"), "--ignore", codes).returncode == 0
    back = proof(made("fp8"), tmp_path / "less")
    assert back.added == found.lost and not back.holds and not back.lost


@pytest.mark.parametrize("release", ["v4-flash", "v4-flash-0731", "v4.1-flash", "kimi-k2-thinking", "v2-lite"])
def test_other_architectures(release: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    source = smaller(tmp_path_factory, release)
    for to, more in (("bf16", ()), ("f32", ())):
        dsctl("convert", source, tmp_path / to, "--to", to, *more, "-q")
        for sample in (None, sample_of(0.05, 1)):
            found = proof(tmp_path / to, source, sample)
            assert found.holds and not found.odd, found.line
    dsctl("convert", tmp_path / "bf16", tmp_path / "back", "--to", "published", "-q")
    assert proof(tmp_path / "back", source).counts["moved"] == proof(source, source).total
    assert proof(tmp_path / "back", tmp_path / "bf16").holds


def test_unknown_architectures_are_compared_by_name(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(4)
    (tmp_path / "a").mkdir()
    save_file({f"x{n}": torch.randn((64, 96), generator=generator) for n in range(3)}, tmp_path / "a/model.safetensors")
    dsctl("convert", tmp_path / "a", tmp_path / "b", "--bf16", "-q")
    found = proof(tmp_path / "b", tmp_path / "a")
    assert found.holds and found.counts["encoded"] == 3


# Samples


def test_a_sample_says_what_it_rests_on(made: Callable[[str], Path]) -> None:
    first, again, other = (
        json.loads(dsctl("verify", made("bf16"), "--against", made("fp8"), "--sample", "10%", "--seed", seed, "--json"))
        for seed in (7, 7, 8)
    )
    sample = first["values"]["sample"]
    assert first == again and other["values"]["sample"]["seed"] == 8
    assert sample["share"] == 0.1 and 0.1 <= sample["bytes"] / sample["of"] < 0.2
    assert sample["bound"] == pytest.approx(-np.log(0.05) / sample["rows"])
    said = first["values"]["rests_on"]
    assert (
        said.startswith("some rows here of each of the 88 parameters on both sides were compared")
        and "95% confidence" in said
    )
    assert f"a sample of {100 * sample['bytes'] / sample['of']:.3g} % of the bytes, seed 7" in first["values"]["line"]


@pytest.mark.parametrize("kind", ["fp8", "bf16", "int4"])
def test_any_sample_finds_another_expert(made: Callable[[str], Path], tmp_path: Path, kind: str) -> None:
    folder = copied(made(kind), tmp_path / "changed")
    parts = {"fp8": ("weight", "weight_scale_inv"), "int4": ("weight_packed", "weight_scale")}.get(kind, ("weight",))
    swapped(folder, *parts)
    for seed in range(5):
        found = proof(folder, made("fp8"), sample_of(0.001, seed))
        assert {one.name for one in found.others} == {EXPERT, EXPERT.replace("experts.1", "experts.2")}
        assert found.others[0].looks_like == EXPERT.replace("experts.1", "experts.2")
        assert "confidence" not in found.rests_on


def test_a_sample_finds_rows_with_the_probability_of_its_share(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    source = tiny(tmp_path_factory, "v3.2", layers=2, experts=4, hidden=512, intermediate=1024, vocab=512)
    folder, name = copied(source, tmp_path / "changed"), "model.layers.0.mlp.gate_proj.weight"
    patch(folder, name, lambda data: flip(data, 512 * 300, 6))
    found = sum(not proof(folder, source, sample_of(0.25, seed)).holds for seed in range(40))
    assert 2 <= found <= 20, found


# Refusals


@pytest.mark.parametrize("share", ["0", "-1%", "101%", "2", "one", "nan", "inf", ""])
def test_a_share_that_is_none_is_refused(made: Callable[[str], Path], share: str) -> None:
    seen = call("verify", made("bf16"), "--against", made("fp8"), f"--sample={share}")
    assert seen.returncode == 2 and "--sample" in seen.stderr and "1%" in seen.stderr and not seen.stdout


def test_options_without_effect_are_refused(made: Callable[[str], Path]) -> None:
    assert call("verify", made("bf16"), "--sample", "1%").returncode == 2
    assert call("verify", made("bf16"), "--against", made("fp8"), "--seed", 1).returncode == 2


def test_a_description_has_no_values_and_the_report_says_so(made: Callable[[str], Path]) -> None:
    found = json.loads(call("verify", made("bf16"), "--against", "v3.2", "--json").stdout)
    assert "built-in description" in found["values"]["not_compared"]
    assert "values      not compared: only the built-in" in call("verify", made("bf16"), "--against", "v3.2").stdout


def test_a_folder_without_weights_and_a_broken_source(made: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    shutil.copy(made("fp8") / "config.json", tmp_path / "config")
    found = json.loads(call("verify", made("fp8"), "--against", tmp_path / "config", "--json").stdout)
    assert "has no weights" in found["values"]["not_compared"]
    broken = copied(made("fp8"), tmp_path / "broken")
    file = next(broken.glob("model-*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])
    seen = call("verify", made("bf16"), "--against", broken)
    assert seen.returncode == 20 and file.name in seen.stderr and seen.stderr.count("\n") <= 3
    own = json.loads(call("verify", broken, "--against", made("fp8"), "--json").stdout)
    assert not own["ok"] and "contradict" in own["values"]["not_compared"]


def test_a_scale_of_the_source_that_is_impossible_is_told(made: Callable[[str], Path], tmp_path: Path) -> None:
    source = copied(made("fp8"), tmp_path / "source")
    patch(source, f"{EXPERT}_scale_inv", lambda data: b"\0\0\xc0\x7f" + data[4:])
    seen = call("verify", made("bf16"), "--against", source)
    assert seen.returncode == 20 and EXPERT in seen.stderr and "in the source" in seen.stderr
