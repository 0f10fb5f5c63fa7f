"""`convert --to` and `--recipe`: what is stored, what config.json says of it, and what is refused."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsctl.api import open as open_checkpoint
from dsctl.codecs import CODECS
from dsctl.core.errors import FormatError, UsageError
from dsctl.layouts.naming import tensors as tensors_of
from dsctl.plan.recipes import FOR_EXPERTS, ready
from tests.support.checkpoints import smaller, tiny
from tests.support.command import call, dsctl, dsctl_fails
from tests.support.folders import tensors

QUANTIZED = sorted(CODECS.keys() - {"bf16", "f16", "f32"})
EXPERT = "model.layers.1.mlp.experts.1.down_proj.weight"


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype and torch.equal(_bits(tensor), _bits(other[name]))
        for name, tensor in one.items()
    )


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def quantization(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())["quantization_config"]  # type: ignore[no-any-return]


def error(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Relative error over all matrices."""
    names = [name for name, tensor in one.items() if tensor.ndim == 2]
    off = sum((one[name].double() - other[name].double()).square().sum() for name in names)
    return float(off / sum(other[name].double().square().sum() for name in names)) ** 0.5


@pytest.fixture
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smaller(tmp_path_factory, "v3.2", layers=2, experts=2)


@pytest.fixture
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smaller(tmp_path_factory, "v3.2", layers=2, experts=2, bf16=True)


@pytest.mark.parametrize("format_", QUANTIZED)
def test_every_format_goes_there_and_back(format_: str, plain: Path, tmp_path: Path) -> None:
    dsctl("convert", plain, tmp_path / "stored", "--to", format_)
    audit = json.loads(dsctl("convert", tmp_path / "stored", tmp_path / "back", "--bf16", "--json"))
    assert audit["audit"]["dequantized"] > 0 and audit["audit"]["unexplained"] == 0
    off = error(tensors(tmp_path / "back"), tensors(plain))
    assert 0 < off < (0.15 if "4" in format_ else 0.04)
    assert "quantization_config" not in json.loads((tmp_path / "back" / "config.json").read_text())


@pytest.mark.parametrize("format_", QUANTIZED)
def test_a_second_encoding_of_what_was_decoded_moves_nothing_far(format_: str, plain: Path, tmp_path: Path) -> None:
    dsctl("convert", plain, tmp_path / "stored", "--to", format_)
    dsctl("convert", tmp_path / "stored", tmp_path / "again", "--to", format_)
    assert same(tensors(tmp_path / "stored"), tensors(tmp_path / "again"))


@pytest.mark.parametrize("format_", ["int4-group", "nvfp4", "mxfp8", "int8-block"])
def test_one_worker_and_small_bands_give_the_same_bytes(format_: str, plain: Path, tmp_path: Path) -> None:
    dsctl("convert", plain, tmp_path / "one", "--to", format_, "--workers", "1")
    dsctl("convert", plain, tmp_path / "two", "--to", format_, "--workers", "2", "--max-memory", "1200MB")
    assert same(tensors(tmp_path / "one"), tensors(tmp_path / "two"))


@pytest.mark.parametrize("other", ["fp8-block-ct", "fp8-block-e8m0"])
def test_fp8_blocks_change_their_dress_without_loss(other: str, small: Path, tmp_path: Path) -> None:
    dsctl("convert", small, tmp_path / "dressed", "--to", other, "--no-mtp")
    dsctl("convert", tmp_path / "dressed", tmp_path / "back", "--to", "fp8-block")
    before, after = tensors(small), tensors(tmp_path / "back")
    indexer = [name for name in after if ".indexer." in name]
    kept = {name: tensor for name, tensor in after.items() if other.endswith("e8m0") or name not in indexer}
    assert len(kept) > 50
    assert same(kept, {name: before[name] for name in kept})


@pytest.mark.parametrize(
    "format_", [name for name in QUANTIZED if not name.startswith("fp8-block") and name not in FOR_EXPERTS]
)
def test_every_linear_module_is_either_stored_quantized_or_named(format_: str, plain: Path, tmp_path: Path) -> None:
    dsctl("convert", plain, tmp_path / "stored", "--to", format_)
    stored, said = tensors(tmp_path / "stored"), quantization(tmp_path / "stored")
    spared = said["ignored_layers" if format_ == "int8-block" else "ignore"]
    linear = {name.removesuffix(".weight") for name, tensor in tensors(plain).items() if tensor.ndim == 2}
    linear -= {name for name in linear if name.endswith("embed_tokens")}
    quantized = {name for name in linear if f"{name}.weight_scale" in stored or f"{name}.weight_scale_inv" in stored}
    if format_ == "int8-block":
        assert set(spared) == {name for name in linear if name.endswith(("indexer.wk", "indexer.wq_b"))}
        return
    assert set(spared) == linear - quantized
    assert {"lm_head", "model.layers.1.mlp.gate", "model.layers.0.self_attn.indexer.weights_proj"} <= set(spared)
    assert {"model.layers.2.eh_proj", "model.layers.2.shared_head.head"} <= set(spared)


@pytest.mark.parametrize("format_", FOR_EXPERTS)
def test_what_is_not_of_experts_alone_is_named_by_a_glob(format_: str, plain: Path, tmp_path: Path) -> None:
    dsctl("convert", plain, tmp_path / "stored", "--to", format_)
    stored, said = tensors(tmp_path / "stored"), quantization(tmp_path / "stored")
    linear = {name.removesuffix(".weight") for name, tensor in tensors(plain).items() if tensor.ndim == 2}
    linear -= {name for name in linear if name.endswith("embed_tokens")}
    quantized = {name for name in linear if f"{name}.weight_scale" in stored}
    assert quantized == {name for name in linear if ".mlp.experts." in name}
    spared = {name for name in linear if any(fnmatchcase(name, glob) for glob in said["ignore"])}
    assert spared == linear - quantized
    layers = {name.partition(".experts.")[0] + ".experts" for name in quantized}
    assert said["quantized_layers"].keys() == layers and said["moe_quant_algo"] == "NVFP4"


def test_what_loaders_fuse_shares_nvfp4s_global_scale(plain: Path, tmp_path: Path) -> None:
    dsctl("convert", plain, tmp_path / "stored", "--to", "nvfp4")
    stored, before = tensors(tmp_path / "stored"), tensors(plain)
    scales = {name: tensor for name, tensor in stored.items() if name.endswith("_global_scale")}
    pairs = {"gate_proj": "up_proj", "q_a_proj": "kv_a_proj_with_mqa"}
    seen = 0
    for name, scale in scales.items():
        head, _, module = name.removesuffix(".weight_global_scale").rpartition(".")
        partners = [module, *([pairs[module]] if module in pairs else [])]
        peak = max(before[f"{head}.{partner}.weight"].abs().amax() for partner in partners)
        if module in pairs:
            assert torch.equal(scale, scales[f"{head}.{pairs[module]}.weight_global_scale"])
            seen += 1
        if module not in pairs.values():
            assert scale == (2688 / peak).float()
    assert seen > 5
    plan = json.loads(dsctl("convert", plain, tmp_path / "other", "--to", "nvfp4", "--dry-run", "--json"))
    assert any("read twice" in note for note in plan["notes"])


# MXFP4's scales are powers of two: there is little to choose from.
@pytest.mark.parametrize(
    ("format_", "share"), [("int4-group", 0.985), ("int4-group-32", 0.985), ("mxfp4", 0.997), ("nvfp4", 0.985)]
)
def test_searched_scales_lose_less(format_: str, share: float, plain: Path, tmp_path: Path) -> None:
    found = []
    for name, options in (("usual", ()), ("searched", ("--search",))):
        dsctl("convert", plain, tmp_path / name, "--to", format_, *options)
        dsctl("convert", tmp_path / name, tmp_path / f"{name}-back", "--bf16")
        found.append(error(tensors(tmp_path / f"{name}-back"), tensors(plain)))
    assert found[1] < share * found[0]


@pytest.mark.parametrize("name", sorted(ready()))
def test_ready_recipes_store_what_they_say(name: str, small: Path, tmp_path: Path) -> None:
    audit = json.loads(dsctl("convert", small, tmp_path / "out", "--recipe", name, "--json"))
    assert audit["audit"]["unexplained"] == 0
    rules = ready()[name].rules
    expected = next(rule.format for rule in rules if rule.role == "routed experts")
    codec = CODECS[expected]
    expert = tensors_of(codec.dialect, EXPERT, codec.parts)
    stored = tensors(tmp_path / "out")
    assert set(expert) <= stored.keys()
    assert stored["model.layers.1.mlp.gate.weight"].dtype == torch.bfloat16
    kept = torch.float8_e4m3fn if expected in FOR_EXPERTS else torch.bfloat16
    assert stored["model.layers.0.self_attn.indexer.wk.weight"].dtype == kept
    plan = json.loads(dsctl("convert", small, tmp_path / "dry", "--recipe", name, "--dry-run", "--json"))
    assert plan["roles"]["routed experts"].keys() == {expected}


def test_a_mixed_checkpoint_says_which_modules_are_stored_how(small: Path, tmp_path: Path) -> None:
    dsctl("convert", small, tmp_path / "out", "--recipe", "int4-experts-fp8")
    stored, said = tensors(tmp_path / "out"), quantization(tmp_path / "out")
    assert said["format"] == "mixed-precision"
    formats = {group["format"]: group["targets"] for group in said["config_groups"].values()}
    assert formats.keys() == {"float-quantized", "pack-quantized"}

    def fits(module: str, targets: list[str]) -> bool:
        return any(
            re.match(target.removeprefix("re:"), module) if target.startswith("re:") else target == module
            for target in targets
        )

    modules = {name.removesuffix(".weight") for name, tensor in tensors(small).items() if tensor.ndim == 2}
    for module in modules - {name for name in modules if name.endswith(("embed_tokens", "_scale_inv"))}:
        kinds = [kind for kind, targets in (*formats.items(), ("plain", said["ignore"])) if fits(module, targets)]
        packed, scaled = f"{module}.weight_packed" in stored, f"{module}.weight_scale" in stored
        assert kinds == ["pack-quantized" if packed else "float-quantized" if scaled else "plain"], module
    dsctl("convert", tmp_path / "out", tmp_path / "back", "--bf16")
    assert "quantization_config" not in json.loads((tmp_path / "back" / "config.json").read_text())


def write(path: Path, *rules: str, about: str = "") -> Path:
    path.write_text("".join(f"[[rule]]\n{rule}\n" for rule in rules) + about)
    return path


DOCS = Path(__file__).parents[2] / "docs"
SHOWN = [
    (page.name, text)
    for page in sorted(DOCS.rglob("*.md"))
    for text in re.findall(r"^```toml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    if "[[rule]]" in text
]


@pytest.mark.parametrize("text", [text for _, text in SHOWN], ids=[page for page, _ in SHOWN])
def test_recipes_shown_in_the_docs_run_on_fp8_and_on_bf16(text: str, small: Path, plain: Path, tmp_path: Path) -> None:
    (tmp_path / "shown.toml").write_text(text)
    for number, source in enumerate((small, plain)):
        dsctl("convert", source, tmp_path / str(number), "--recipe", tmp_path / "shown.toml")


def test_the_first_rule_that_fits_decides(plain: Path, tmp_path: Path) -> None:
    recipe = write(
        tmp_path / "mine.toml",
        'match = "model.layers.0.self_attn.o_proj.weight"\nformat = "keep"',
        'role = "attention"\nformat = "int8-channel"',
    )
    dsctl("convert", plain, tmp_path / "out", "--recipe", recipe)
    stored = tensors(tmp_path / "out")
    assert stored["model.layers.0.self_attn.o_proj.weight"].dtype == torch.bfloat16
    assert stored["model.layers.1.self_attn.o_proj.weight"].dtype == torch.int8
    ignored = quantization(tmp_path / "out")["ignore"]
    assert "model.layers.0.self_attn.o_proj" in ignored and "model.layers.1.self_attn.o_proj" not in ignored
    assert any(entry.startswith("re:") and "experts" in entry for entry in ignored)


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("[[rule", 2, "not a recipe"),
        ("rules = 1", 2, "not a recipe"),
        ("rule = []", 2, "holds no"),
        ('[[rule]]\nformat = "int4-group"', 2, "either role or match"),
        ('[[rule]]\nrole = "attention"\nmatch = "*"\nformat = "bf16"', 2, "either role or match"),
        ('[[rule]]\nrole = "attentive"\nformat = "bf16"', 2, "unknown role 'attentive'"),
        ('[[rule]]\nrole = "attention"\nformat = "int3"', 2, "unknown format 'int3'"),
        ('[[rule]]\nrole = "attention"\nformat = "bf16"\nsize = 3', 2, "size"),
        ('[[rule]]\nmatch = "nothing.*"\nformat = "bf16"', 30, "no parameter matches"),
        ('[[rule]]\nmatch = "lm_head.weight"\nformat = "nvfp4"', 30, "lm_head.weight is never quantized"),
        ('[[rule]]\nrole = "norm"\nformat = "int4-group"', 30, "model.norm.weight is never quantized"),
        ('[[rule]]\nrole = "head"\nformat = "nvfp4"', 30, "lm_head.weight is never quantized"),
        ('[[rule]]\nrole = "indexer"\nformat = "int4-group"', 30, "loaders read the indexer in FP8 blocks"),
        ('[[rule]]\nmatch = "*.indexer.*"\nformat = "fp8-channel"', 30, "loaders read the indexer in FP8 blocks"),
        ('[[rule]]\nmatch = "*.gate_proj.weight"\nformat = "mxfp4"', 30, "loaders fuse"),
        ('[[rule]]\nrole = "attention"\nformat = "int8-block"', 30, "SGLang, needs routed experts in the same format"),
        ('[[rule]]\nmatch = "*.experts.1.*"\nformat = "mxfp4"', 30, "routed experts in one format"),
        (
            '[[rule]]\nrole = "routed experts"\nformat = "mxfp4"\n[[rule]]\nrole = "attention"\nformat = "int8-block"',
            30,
            "cannot declare",
        ),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused(
    text: str, code: int, said: str, plain: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.toml").write_text(text)
    arguments = ("convert", plain, tmp_path / "out", "--recipe", tmp_path / "mine.toml")
    assert dsctl_fails(*arguments) == code
    assert said in call(*arguments).stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--recipe", "no-such"), "int4-experts-fp8"),
        (("--recipe", "int4"), "did you mean int4-experts-fp8 or int4-experts or int8?"),
        (("--recipe", "int4.toml"), "No such file"),
        (("--recipe", "int8", "--bf16"), "exclude each other"),
        (("--to", "int5"), "unknown format"),
        ((), "no target format"),
        (("--to", "int8-channel", "--search"), "--search: does nothing for int8-channel"),
        (("--bf16", "--search"), "--search: does nothing for bf16"),
        (("--recipe", "int8", "--search"), "--search: does nothing for bf16, int8-channel"),
        (("--to", "int4-group", "--scale-fmt", "ue8m0"), "--scale-fmt: does nothing for int4-group"),
        (("--recipe", "int4-experts-fp8", "--scale-fmt", "float32"), "--scale-fmt: does nothing for"),
        (("--fp8", "--scale-fmt", "e8m0"), "--scale-fmt: unknown scale format 'e8m0'"),
    ],
)
def test_options_that_name_no_format_are_refused(
    options: tuple[str, ...], said: str, plain: Path, tmp_path: Path
) -> None:
    assert dsctl_fails("convert", plain, tmp_path / "out", *options) == 2
    assert said in call("convert", plain, tmp_path / "out", *options).stderr
    assert not (tmp_path / "out").exists()


def test_the_python_interface_refuses_options_that_do_nothing(plain: Path) -> None:
    for options in ({"codec": "int8-channel", "search": True}, {"codec": "int4-group", "scale_fmt": "ue8m0"}):
        with pytest.raises(UsageError, match="does nothing"):
            _ = open_checkpoint(str(plain)).to(**options).plan


def test_ranks_of_a_release_refuse_them_too(tmp_path: Path) -> None:
    words = ("shard", "v3", tmp_path / "out", "--tp", "2", "--dry-run")
    for options in (("--search",), ("--to", "fp8-channel", "--scale-fmt", "ue8m0")):
        assert dsctl_fails(*words, *options) == 2


def test_a_format_for_everything_leaves_the_indexer_and_says_so(small: Path, tmp_path: Path) -> None:
    recipe = write(tmp_path / "mine.toml", 'match = "*"\nformat = "int4-group"')
    dsctl("convert", small, tmp_path / "recipe", "--recipe", recipe)
    dsctl("convert", small, tmp_path / "to", "--to", "int4-group")
    assert same(tensors(tmp_path / "recipe"), tensors(tmp_path / "to"))
    plan = json.loads(dsctl("convert", small, tmp_path / "dry", "--recipe", recipe, "--dry-run", "--json"))
    assert any("the indexer is left unquantized" in note for note in plan["notes"])
    planned = json.loads(dsctl("plan", "v3.2", "--recipe", recipe, "--json"))
    assert "int4-group" not in json.dumps(planned["formats"]["mine"]["roles"]["indexer"])


@pytest.mark.parametrize("name", sorted(ready()))
def test_ready_recipes_run_where_there_is_no_indexer(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = smaller(tmp_path_factory, "v3", layers=2, experts=2)
    plan = json.loads(dsctl("convert", source, tmp_path / "out", "--recipe", name, "--dry-run", "--json"))
    # Ready recipes are written for all models, so a rule for what a model lacks is no news.
    assert not any("the model has no such parameter" in note for note in plan["notes"])


def test_a_recipe_keeps_the_kind_of_scales_that_the_source_has(small: Path, plain: Path, tmp_path: Path) -> None:
    recipe = write(
        tmp_path / "mine.toml",
        'role = "routed experts"\nformat = "bf16"',
        'role = "attention"\nformat = "fp8-block"',
        'role = "dense mlp"\nformat = "fp8-block"',
    )
    dsctl("convert", small, tmp_path / "kept", "--recipe", recipe)
    assert quantization(tmp_path / "kept")["scale_fmt"] == "ue8m0"
    dsctl("convert", plain, tmp_path / "asked", "--recipe", recipe, "--scale-fmt", "float32")
    assert "scale_fmt" not in quantization(tmp_path / "asked")


@pytest.mark.parametrize("format_", QUANTIZED)
def test_nan_is_refused_by_name_and_block(format_: str, plain: Path, tmp_path: Path) -> None:
    name = MATRIX_OF[format_]
    for path in plain.iterdir():
        (tmp_path / "bad").mkdir(exist_ok=True)
        (tmp_path / "bad" / path.name).write_bytes(path.read_bytes())
    for path in (tmp_path / "bad").glob("*.safetensors"):
        held = load_file(path)
        if name in held:
            held[name][130, 200] = float("nan")
            save_file(held, path, {"format": "pt"})
    (tmp_path / "bad" / "dsctl.json").unlink(missing_ok=True)
    assert dsctl_fails("convert", tmp_path / "bad", tmp_path / "out", "--to", format_) == 41
    said = call("convert", tmp_path / "bad", tmp_path / "out", "--to", format_).stderr
    rows, columns = CODECS[format_].block
    width = 10**9 if columns == 1 else columns
    assert f"{name}: NaN or infinity in block [{130 // rows}, {200 // width}]" in said
    assert "hint: `dsctl verify" in said


def test_groups_that_do_not_divide_are_refused_before_any_work(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = tiny(tmp_path_factory, "v3", layers=2, experts=2, hidden=320, bf16=True)
    assert dsctl_fails("convert", source, tmp_path / "out", "--to", "int4-group") == 30
    assert "do not divide into groups of 128" in call("convert", source, tmp_path / "out", "--to", "int4-group").stderr
    assert not (tmp_path / "out").exists()


SCALE_OF = {name: tensors_of(CODECS[name].dialect, "", ["scale"])[0] for name in QUANTIZED}
MATRIX_OF = {name: EXPERT if name in FOR_EXPERTS else "model.layers.0.self_attn.o_proj.weight" for name in QUANTIZED}
BAD_BYTES = {
    torch.float32: {"nan": b"\0\0\xc0\x7f", "zero": b"\0\0\0\0", "negative": b"\0\0\x80\xbf"},
    torch.bfloat16: {"nan": b"\xc0\x7f", "zero": b"\0\0", "negative": b"\x80\xbf"},
    torch.float8_e4m3fn: {"nan": b"\x7f", "negative": b"\xb8"},
    torch.float8_e8m0fnu: {"nan": b"\xff"},
    torch.uint8: {"nan": b"\xff"},
}


def spoiled(folder: Path, name: str, raw: bytes) -> None:
    """Write over the first bytes of a tensor."""
    path = next(path for path in folder.glob("*.safetensors") if name in load_file(path))
    held = load_file(path)
    held[name].view(-1).view(torch.uint8)[: len(raw)] = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    save_file(held, path, {"format": "pt"})
    path.chmod(0o644)


def faults(folder: Path) -> list[tuple[str, str]]:
    """Code and place of what a deep check finds wrong."""
    found = json.loads(call("verify", folder, "--deep", "--json").stdout)["findings"]
    return [(one["code"], one["where"]) for one in found if one["severity"] != "note"]


@pytest.mark.parametrize("format_", QUANTIZED)
def test_every_format_is_found_right_and_its_bad_scales_are_named(format_: str, plain: Path, tmp_path: Path) -> None:
    stored = tmp_path / "stored"
    dsctl("convert", plain, stored, "--to", format_)
    assert faults(stored) == []
    (stored / "dsctl.json").unlink()
    scale = f"{MATRIX_OF[format_]}{SCALE_OF[format_]}"
    for fault in ("nan", "zero", "negative"):
        raw = BAD_BYTES[tensors(stored)[scale].dtype].get(fault)
        if raw is None:
            continue
        spoiled(stored, scale, raw)
        assert ("bad-scale", scale) in faults(stored)
        done = call("convert", stored, tmp_path / "never", "--bf16")
        assert done.returncode == FormatError.exit_code and scale in done.stderr
        assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("format_", ["int4-group", "int8-channel", "mxfp4"])
def test_experts_that_hold_the_same_codes_or_none_are_named(format_: str, plain: Path, tmp_path: Path) -> None:
    stored = tmp_path / "stored"
    dsctl("convert", plain, stored, "--to", format_)
    (stored / "dsctl.json").unlink()
    suffix = tensors_of(CODECS[format_].dialect, "", CODECS[format_].parts)[0]
    one, two = (f"model.layers.1.mlp.experts.{number}.up_proj.weight{suffix}" for number in (0, 1))
    codes = tensors(stored)[one].contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    spoiled(stored, two, codes)
    assert [code for code, _ in faults(stored)] == ["duplicate"]
    spoiled(stored, two, bytes(len(codes)))
    assert faults(stored) == [("all-zero", two)]


@pytest.mark.parametrize(
    ("one", "other"),
    [("mxfp4", "int4-group"), ("fp8-channel", "nvfp4"), ("int8-group", "int8-block"), ("fp8-block", "int4-group-32")],
)
def test_any_pair_of_formats_is_compared_role_by_role(one: str, other: str, plain: Path, tmp_path: Path) -> None:
    for name in (one, other):
        dsctl("convert", plain, tmp_path / name, "--to", name)
    found = json.loads(dsctl("compare", tmp_path / one, tmp_path / other, "--json"))
    for role in ("attention", "dense mlp", "routed experts", "shared experts"):
        assert 15 < found["roles"][role]["snr_db"] < 45
    assert found["roles"]["embedding"]["snr_db"] is None
