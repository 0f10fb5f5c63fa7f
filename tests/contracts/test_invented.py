"""A model that is called otherwise than all others, with a scale's name and a dtype of its own: three tables know it.

Whatever this takes besides an entry in `MODELS`, `DIALECTS` and `SPELLINGS` would be a name that some room has welded
in. The checkpoint is written here, by safetensors alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dsctl.codecs import SPELLINGS
from dsctl.core.attention import Sizes
from dsctl.core.header import TensorSpec
from dsctl.core.params import MTP, NO_DRAFTER, PLAIN_TRAITS, Drafter, Family, Published, Traits, Unit, drafter_of
from dsctl.layouts.naming import DIALECTS, Dialect
from dsctl.models import MODELS
from dsctl.models.model import Contradiction
from tests.support.command import call, dsctl

Tensors = dict[str, torch.Tensor]
WIDTH, DEPTH, EXPERTS, WORDS = 256, 4, 4, 320
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


class Invented:
    """An embedding, layers of a mixer and four-bit experts, a draft layer counted from 0, a head."""

    name = "invented"
    usual_sizes: Mapping[str, int] = {}

    def matches(self, config: Mapping[str, Any]) -> bool:
        return config.get("model_type") == "invented"

    def traits(self, config: Mapping[str, Any], stored: Mapping[str, TensorSpec]) -> Traits:
        return PLAIN_TRAITS

    def families(self, config: Mapping[str, Any], traits: Traits = PLAIN_TRAITS) -> tuple[Family, ...]:
        depth, drafts, count = config["depth"], config["drafts"], config["specialists"]
        main, draft = tuple(range(depth)), tuple(range(depth, depth + drafts))
        outside = [
            Family("stem.table.kernel", (WORDS, WIDTH), "embedding", split=0),
            Family("out.gain", (WIDTH,), "norm", dtype="F32", last=True),
            Family("out.table.kernel", (WORDS, WIDTH), "head", split=0, last=True),
        ]
        layers = [family for at in ("tower", "draft") for family in self._layer(at, main, draft, count)]
        return (*outside, *layers)

    def _layer(self, at: str, main: tuple[int, ...], draft: tuple[int, ...], count: int) -> Iterator[Family]:
        where: dict[str, Any] = {"layers": main}
        if at == "draft":
            where = {"layers": draft, "mtp": True, "first_layer": len(main)}
        if not where["layers"]:
            return
        prefix = at + ".{layer}."
        yield Family(f"{prefix}mix.kernel", (WIDTH, WIDTH), "mixer", True, 0, **where)
        yield Family(f"{prefix}route.kernel", (count, WIDTH), "router", **where)
        for name, shape, split in (("up", (128, WIDTH), 0), ("down", (WIDTH, 128), 1)):
            family = f"{prefix}bank.{{expert}}.{name}.kernel"
            yield Family(family, shape, "specialists", True, split, experts=count, active=2, **where)

    def contradictions(
        self, config: Mapping[str, Any], stored: Mapping[str, TensorSpec], traits: Traits
    ) -> tuple[Contradiction, ...]:
        return ()

    def published(self, config: Mapping[str, Any], traits: Traits = PLAIN_TRAITS) -> Mapping[str, Published]:
        blocks = Published("fp8-block-e8m0", "invented", "ue8m0", "as it was invented")
        fields = (("bank_kind", (("e2m1", "four"),)),)
        return {"mixer": blocks, "specialists": Published("mxfp4", "invented", fields=fields)}

    def units(self, config: Mapping[str, Any]) -> tuple[Unit, ...]:
        return ()

    def attention(self, config: Mapping[str, Any]) -> Sizes | None:
        return None

    def restored(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return dict(config)

    def drafter(self, config: Mapping[str, Any]) -> Drafter:
        return drafter_of(self.families(config), MTP)

    def stored_drafter(self, config: Mapping[str, Any], stored: Mapping[str, TensorSpec]) -> Drafter:
        return Drafter(MTP, ("draft.0",)) if "draft.0.route.kernel" in stored else NO_DRAFTER

    def without_mtp(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return {**config, "drafts": 0}

    def with_mtp(self, config: Mapping[str, Any], other: Mapping[str, Any], traits: Traits) -> dict[str, Any]:
        return {**config, "drafts": other["drafts"]}

    def sliced(self, config: Mapping[str, Any], layers: Sequence[int], experts: Sequence[int]) -> dict[str, Any]:
        main = [layer for layer in layers if layer < config["depth"]]
        small = {**config, "depth": len(main), "drafts": len(layers) - len(main)}
        return small | ({"specialists": len(experts)} if experts else {})

    def tiny(self, config: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
        return dict(config)


CONFIG = {
    "model_type": "invented", "depth": DEPTH, "drafts": 1, "specialists": EXPERTS, "torch_dtype": "bfloat16",
    "bank_kind": "four",
    "quantization_config": {
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "scale_fmt": "ue8m0",
        "weight_block_size": [128, 128],
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "invented", Invented())
    monkeypatch.setitem(DIALECTS, "invented", Dialect({"scale": ("kernel", "factor")}))
    monkeypatch.setitem(SPELLINGS, "invented", {"codes_dtype": "I8", "scale_dtype": "F8_E8M0"})


def blocks(generator: torch.Generator, shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """FP8 codes and power-of-two scales of 128x128 blocks, as a release would have made them: each holds a 448."""
    codes = torch.randint(0, 127, shape, generator=generator, dtype=torch.uint8)
    codes[::128, ::128] = 0x7E
    scales = torch.randint(110, 120, (-(-shape[0] // 128), -(-shape[1] // 128)), generator=generator, dtype=torch.uint8)
    return codes.view(torch.float8_e4m3fn), scales.view(torch.float8_e8m0fnu)


def nibbles(generator: torch.Generator, shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Two E2M1 codes a byte, the first in the low half, and a scale for 32 of them: each group holds a 6."""
    codes = torch.randint(0, 256, (shape[0], shape[1] // 2), generator=generator, dtype=torch.uint8)
    codes[:, ::16] |= 0x07
    codes[codes & 15 == 8] ^= 8
    codes[codes >> 4 == 8] ^= 0x80
    scales = torch.randint(110, 120, (shape[0], shape[1] // 32), generator=generator, dtype=torch.uint8)
    return codes.view(torch.int8), scales.view(torch.float8_e8m0fnu)


def written() -> Tensors:
    generator = torch.Generator().manual_seed(14)
    plain = lambda *shape: torch.randn(*shape, generator=generator).bfloat16()  # noqa: E731
    held: Tensors = {
        "stem.table.kernel": plain(WORDS, WIDTH),
        "out.gain": plain(WIDTH).float(),
        "out.table.kernel": plain(WORDS, WIDTH),
    }
    for prefix in (*(f"tower.{layer}." for layer in range(DEPTH)), "draft.0."):
        held[f"{prefix}route.kernel"] = plain(EXPERTS, WIDTH)
        held[f"{prefix}mix.kernel"], held[f"{prefix}mix.factor"] = blocks(generator, (WIDTH, WIDTH))
        for expert in range(EXPERTS):
            for name, shape in (("up", (128, WIDTH)), ("down", (WIDTH, 128))):
                at = f"{prefix}bank.{expert}.{name}."
                held[f"{at}kernel"], held[f"{at}factor"] = nibbles(generator, shape)
    return held


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two files, some scales in another than their codes, with an index."""
    folder, held = tmp_path / "source", written()
    folder.mkdir()
    files = [f"model-{number:05d}-of-00002.safetensors" for number in (1, 2)]
    place = {name: files[("draft" in name) or name.endswith("1.mix.factor")] for name in held}
    for file in files:
        save_file({name: held[name] for name in held if place[name] == file}, folder / file, {"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": dict(sorted(place.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2))
    return folder


def tensors(folder: Path) -> Tensors:
    found: Tensors = {}
    for file in sorted(folder.rglob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  not a dict
    return found


def decoded(held: Tensors, name: str) -> torch.Tensor:
    """What a stored matrix is worth in bfloat16, by the plain formula."""
    codes, scales = held[name], held[name.removesuffix("kernel") + "factor"]
    powers = (scales.view(torch.uint8).double() - 127).exp2()
    if codes.dtype == torch.int8:
        pairs = codes.view(torch.uint8)
        values = E2M1[torch.stack((pairs & 15, pairs >> 4), -1).flatten(1).long()].double()
        return (values * powers.repeat_interleave(32, 1)).bfloat16()
    return (codes.double() * powers.repeat_interleave(128, 0).repeat_interleave(128, 1)).bfloat16()


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and raw(one[name]) == raw(other[name]) for name in one
    )


def test_it_is_inspected_whole(source: Path) -> None:
    found = json.loads(dsctl("inspect", source, "--json"))
    params = [param for family in Invented().families(CONFIG) for param in family.params()]
    assert found["architecture"] == "invented" and found["parameters"] == len(params) == 3 + 5 * (2 + 2 * EXPERTS)
    assert sum(role["parameters"] for role in found["roles"]) == len(params)
    assert {role["role"] for role in found["roles"]} >= {"mixer", "specialists", "mtp"}
    assert not found["faults"]


def test_it_is_verified_and_what_is_broken_is_found(source: Path) -> None:
    done = call("verify", source, "--deep", "--json")
    codes = {finding["code"] for finding in json.loads(done.stdout)["findings"] if finding["severity"] == "error"}
    assert done.returncode == 0 and not codes, done.stdout
    held = tensors(source)
    for file in source.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            kept = {name: held[name] for name in opened.keys() if name != "tower.2.bank.3.up.factor"}  # noqa: SIM118
        save_file(kept, file, {"format": "pt"})
    done = call("verify", source, "--json")
    assert done.returncode == 50
    assert "missing-scale" in {finding["code"] for finding in json.loads(done.stdout)["findings"]}, done.stdout


def test_what_it_takes_is_planned(source: Path) -> None:
    found = json.loads(dsctl("plan", source, "--to", "bf16", "--json"))
    params = [param for family in Invented().families(CONFIG) for param in family.params()]
    values = sum(torch.Size(param.shape).numel() for param in params)
    assert found["formats"]["bf16"]["disk_bytes"] >= 2 * values


def test_it_is_decoded_and_comes_back_byte_for_byte(source: Path, tmp_path: Path) -> None:
    before = tensors(source)
    dsctl("convert", source, tmp_path / "bf16", "--bf16", "--workers", "1")
    after = tensors(tmp_path / "bf16")
    assert after.keys() == {name for name in before if not name.endswith("factor")}
    for name, tensor in after.items():
        factor = name.removesuffix("kernel") + "factor"
        expected = decoded(before, name) if factor in before else before[name]
        assert raw(tensor) == raw(expected), name
    said = json.loads((tmp_path / "bf16" / "config.json").read_text())
    assert not {"quantization_config", "bank_kind"} & said.keys() and said["depth"] == DEPTH
    dsctl("convert", tmp_path / "bf16", tmp_path / "back", "--to", "published", "--workers", "1")
    assert same(tensors(tmp_path / "back"), before)
    assert (tmp_path / "back" / "config.json").read_bytes() == (source / "config.json").read_bytes()


def test_only_what_another_format_stores_otherwise_is_converted(source: Path, tmp_path: Path) -> None:
    """Four-bit codes of compressed-tensors' mxfp4 are the same bits: they are moved under other names."""
    recipe = tmp_path / "recipe.toml"
    rules = ('role = "specialists"\nformat = "mxfp4"', 'match = "*.mix.*"\nformat = "bf16"')
    recipe.write_text("".join(f"[[rule]]\n{rule}\n" for rule in rules))
    audit = json.loads(dsctl("convert", source, tmp_path / "out", "--recipe", recipe, "--json"))["audit"]
    assert audit["moved"] == 3 + 5 * (1 + 2 * EXPERTS) and audit["dequantized"] == 5
    before, after = tensors(source), tensors(tmp_path / "out")
    name = "tower.3.bank.2.down.kernel"
    assert after[name + "_packed"].dtype == torch.uint8 and raw(after[name + "_packed"]) == raw(before[name])
    assert raw(after[name + "_scale"]) == raw(before["tower.3.bank.2.down.factor"])


def test_stages_of_a_pipeline_are_the_model_s_and_come_together_again(source: Path, tmp_path: Path) -> None:
    dsctl("shard", source, tmp_path / "parts", "--tp", "1", "--pp", "2", "--workers", "1")
    first, second = (tensors(tmp_path / "parts" / f"rank-{rank:05d}").keys() for rank in (0, 1))
    assert "stem.table.kernel" in first and {"out.table.kernel", "out.gain", "draft.0.mix.factor"} <= second
    assert {name.split(".")[1] for name in first if name.startswith("tower")} == {"0", "1"}
    assert call("verify", tmp_path / "parts").returncode == 0
    dsctl("merge", tmp_path / "parts", tmp_path / "whole", "--workers", "1")
    assert same(tensors(tmp_path / "whole"), tensors(source))


def test_ranks_share_its_experts(source: Path, tmp_path: Path) -> None:
    dsctl("shard", source, tmp_path / "parts", "--tp", "2", "--ep", "2", "--workers", "1")
    dsctl("merge", tmp_path / "parts", tmp_path / "whole", "--workers", "1")
    assert same(tensors(tmp_path / "whole"), tensors(source))


def test_a_slice_of_it_is_whole_in_itself(source: Path, tmp_path: Path) -> None:
    dsctl("slice", source, tmp_path / "small", "--layers", "1,3,mtp", "--experts", "0,2", "--workers", "1")
    before, after = tensors(source), tensors(tmp_path / "small")
    assert raw(after["tower.1.mix.kernel"]) == raw(before["tower.3.mix.kernel"])
    assert raw(after["draft.0.bank.1.up.factor"]) == raw(before["draft.0.bank.2.up.factor"])
    assert raw(after["tower.0.route.kernel"]) == raw(before["tower.1.route.kernel"][[0, 2]])
    said = json.loads((tmp_path / "small" / "config.json").read_text())
    assert (said["depth"], said["drafts"], said["specialists"]) == (2, 1, 2)
    assert call("verify", tmp_path / "small").returncode == 0


def test_its_draft_can_be_left_out(source: Path, tmp_path: Path) -> None:
    dsctl("convert", source, tmp_path / "out", "--bf16", "--no-mtp", "--workers", "1")
    assert not [name for name in tensors(tmp_path / "out") if name.startswith("draft")]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["drafts"] == 0
    assert call("verify", tmp_path / "out").returncode == 0


def test_without_its_model_the_names_of_its_dialect_and_shapes_are_enough(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The headers show the same parameters, and the way there and back is the same."""
    dsctl("convert", source, tmp_path / "known", "--bf16", "--workers", "1")
    monkeypatch.delitem(MODELS, "invented")
    report = json.loads(dsctl("verify", source, "--deep", "--json"))
    assert report["checked"]["architecture"] is None and report["counts"]["error"] == 0
    assert report["checked"]["parameters"] == 3 + 5 * (2 + 2 * EXPERTS)
    dsctl("convert", source, tmp_path / "bf16", "--bf16", "--workers", "1")
    assert same(tensors(tmp_path / "bf16"), tensors(tmp_path / "known"))
    dsctl("convert", tmp_path / "bf16", tmp_path / "back", "--to", "published", "--workers", "1")
    for file in source.iterdir():
        assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes(), file.name
