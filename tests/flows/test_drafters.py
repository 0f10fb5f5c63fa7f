"""`--mtp keep|drop|only`: a drafter alone has the bytes of its checkpoint, reads, converts, and says what it is."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import dsctl as package
from dsctl.checkpoint.opening import open_checkpoint
from dsctl.core.errors import UsageError
from dsctl.stores.local import LocalFolder
from tests.flows.planted import Folder
from tests.support.checkpoints import smaller
from tests.support.command import call, dsctl, run
from tests.support.faults import environment, fault
from tests.support.folders import contents, linked, tensors

V3, CLASSIC, DSPARK, V41, BASE = "v3.2", "v4-flash", "v4-flash-0731", "v4.1-flash", "v4-flash-base"
RELEASES = (V3, CLASSIC, DSPARK, V41, BASE)
SAID = {
    V3: "MTP, 1 layer (model.layers.3)",
    CLASSIC: "MTP, 1 layer (mtp.0)",
    DSPARK: "DSpark, 3 stages (mtp.0 to mtp.2)",
    V41: "DSpark, 3 stages (mtp.0 to mtp.2)",
    BASE: "MTP, 1 layer (mtp.0)",
}
# With and without the copies of embedding and head (lmsys/DeepSeek-R1-NextN, SGLang/DeepSeek-V3-NextN: 11.7, 15.4 GB).
WITH_COPIES, WITHOUT_COPIES = (1564, 15_424_227_552), (1562, 11_717_511_392)
COPIES = ("--skip", "*.embed_tokens.weight", "--skip", "*.shared_head.head.weight")


def is_draft(release: str, name: str) -> bool:
    return name.startswith("model.layers.3." if release == V3 else "mtp.")


def raw(found: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: one.contiguous().view(torch.uint8).numpy().tobytes() for name, one in found.items() if one.numel()}


def config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())  # type: ignore[no-any-return]


def verified(folder: Path) -> dict[str, Any]:
    return json.loads(dsctl("verify", folder, "--json"))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def drafts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """A small checkpoint of each release, and its drafter alone."""
    found = {}
    for release in RELEASES:
        source, draft = smaller(tmp_path_factory, release), tmp_path_factory.mktemp("draft") / release
        dsctl("convert", source, draft, "--mtp", "only", "-q")
        found[release] = source, draft
    return found


@pytest.mark.parametrize("release", RELEASES)
def test_a_drafter_alone_has_the_bytes_and_the_config_of_its_checkpoint(
    release: str, drafts: dict[str, tuple[Path, Path]]
) -> None:
    source, draft = drafts[release]
    whole = {name: one for name, one in tensors(source).items() if is_draft(release, name)}
    assert whole and raw(tensors(draft)) == raw(whole)
    assert (draft / "config.json").read_bytes() == (source / "config.json").read_bytes()
    index = json.loads((draft / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == whole.keys()
    assert (draft / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("release", RELEASES)
def test_it_is_known_for_what_it_is(release: str, drafts: dict[str, tuple[Path, Path]]) -> None:
    _, draft = drafts[release]
    report = verified(draft)
    kind = "dspark" if SAID[release].startswith("DSpark") else "mtp"
    told = {"kind": kind, "stages": 3 if kind == "dspark" else 1, "text": SAID[release], "alone": True}
    assert report["ok"] and report["checked"]["drafter"] == told
    assert [finding["code"] for finding in report["findings"] if finding["severity"] != "note"] == []
    assert "drafter-alone" in [finding["code"] for finding in report["findings"]]
    text = dsctl("verify", draft)
    assert f"drafter     {SAID[release]}, without its model\n" in text
    assert text.rstrip().endswith(
        "no problems found in this drafter; its model is not in this folder, and was not checked"
    )
    assert json.loads(dsctl("inspect", draft, "--json"))["drafter"] == told
    assert f"the drafter alone, without its model: {SAID[release]}" in dsctl("inspect", draft)
    assert "drafter of" in dsctl("inspect", draft) or "same parameters" not in dsctl("inspect", draft)
    assert f"a drafter without its model: {SAID[release]}" in " ".join(dsctl("diff", drafts[release][0], draft).split())


@pytest.mark.parametrize("release", RELEASES)
def test_a_whole_checkpoint_names_its_drafter(release: str, drafts: dict[str, tuple[Path, Path]]) -> None:
    report = verified(drafts[release][0])
    assert report["checked"]["drafter"]["text"] == SAID[release] and not report["checked"]["drafter"]["alone"]
    assert dsctl("verify", drafts[release][0]).rstrip().endswith("no problems found")


@pytest.mark.parametrize("release", RELEASES)
def test_it_goes_to_bf16_and_comes_back(release: str, drafts: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    source, draft = drafts[release]
    dsctl("convert", draft, tmp_path / "bf16", "--bf16")
    assert "quantization_config" not in config(tmp_path / "bf16") and verified(tmp_path / "bf16")["ok"]
    dsctl("convert", tmp_path / "bf16", tmp_path / "back", "--to", "published")
    assert contents(tmp_path / "back") == contents(draft)
    dsctl("convert", source, tmp_path / "at-once", "--bf16", "--mtp", "only")
    assert raw(tensors(tmp_path / "at-once")) == raw(tensors(tmp_path / "bf16"))
    assert config(tmp_path / "at-once") == config(tmp_path / "bf16")
    report = json.loads(dsctl("compare", draft, tmp_path / "at-once", "--json"))
    assert report["total"]["identical"]


@pytest.mark.parametrize("release", RELEASES)
def test_drop_and_only_are_the_two_halves(release: str, drafts: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    source, draft = drafts[release]
    dsctl("convert", source, tmp_path / "model", "--mtp", "drop")
    assert raw(tensors(tmp_path / "model")) | raw(tensors(draft)) == raw(tensors(source))
    assert verified(tmp_path / "model")["checked"]["drafter"] is None
    refused = call("convert", tmp_path / "model", tmp_path / "none", "--mtp", "only")
    assert refused.returncode == 30 and "there is no drafter for --mtp only" in refused.stderr
    assert not (tmp_path / "none").exists()
    dsctl("convert", source, tmp_path / "short", "--bf16", "--no-mtp")
    dsctl("convert", source, tmp_path / "long", "--bf16", "--mtp", "drop")
    assert contents(tmp_path / "short") == contents(tmp_path / "long")


def test_a_release_s_drafter_is_weighed_before_any_work(tmp_path: Path) -> None:
    for more, (count, nbytes) in (((), WITH_COPIES), (COPIES, WITHOUT_COPIES)):
        plan = json.loads(dsctl("convert", "v3", tmp_path / "draft", "--mtp", "only", *more, "--dry-run", "--json"))
        assert plan["bytes_out"] == nbytes
        assert plan["notes"][0].endswith(f"MTP, 1 layer (model.layers.61), {count:,} tensors, {nbytes:,} bytes")
        assert not any(note.startswith("partial") for note in plan["notes"])
    plan = json.loads(dsctl("convert", "v4-flash-0731", tmp_path / "draft", "--mtp", "only", "--dry-run", "--json"))
    # The tensors that sgl-project/sglang issue 36155 counts.
    assert "DSpark, 3 stages (mtp.0 to mtp.2), 4,705 tensors" in plan["notes"][0]
    assert call("convert", "v2", tmp_path / "draft", "--mtp", "only", "--dry-run").returncode == 30


def test_the_copies_of_embedding_and_head_may_be_left_out(drafts: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    source, draft = drafts[V3]
    done = call("convert", source, tmp_path / "bare", "--mtp", "only", *COPIES)
    assert done.returncode == 0 and "partial" not in done.stdout
    gone = tensors(draft).keys() - tensors(tmp_path / "bare").keys()
    assert gone == {"model.layers.3.embed_tokens.weight", "model.layers.3.shared_head.head.weight"}
    report = verified(tmp_path / "bare")
    assert report["ok"] and "no copies of the embedding and head" in report["findings"][-1]["what"]
    dsctl("convert", tmp_path / "bare", tmp_path / "bf16", "--bf16")
    assert verified(tmp_path / "bf16")["ok"]
    # One of the two alone is no fault either.
    dsctl("convert", source, tmp_path / "one", "--mtp", "only", *COPIES[:2])
    assert verified(tmp_path / "one")["ok"]


def test_a_missing_tensor_of_a_drafter_alone_is_missing(drafts: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    folder = Folder(Path(shutil.copytree(drafts[V3][1], tmp_path / "spoiled")))
    folder.tensors("model.layers.3.enorm.weight", lambda held: held.pop("model.layers.3.enorm.weight"))
    findings = [one for one in verified_anyhow(folder.path)["findings"] if one["severity"] == "error"]
    assert [one["where"] for one in findings if one["code"] == "missing-tensor"] == ["model.layers.3.enorm.weight"]


def verified_anyhow(folder: Path) -> dict[str, Any]:
    return json.loads(call("verify", folder, "--json").stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("release", "words"),
    [
        (V3, ("--tp", "2")),
        (V3, ("--tp", "2", "--layout", "deepseek")),
        (V3, ("--tp", "2", "--layout", "fused")),
        (V3, ("--tp", "2", "--ep", "2", "--layout", "stacked")),
        (DSPARK, ("--tp", "2")),
        (DSPARK, ("--tp", "2", "--layout", "deepseek")),
        (V41, ("--tp", "2")),
    ],
)
def test_ranks_of_a_drafter_alone(
    release: str, words: tuple[str, ...], drafts: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    source, draft = drafts[release]
    dsctl("shard", source, tmp_path / "ranks", *words, "--mtp", "only")
    dsctl("shard", draft, tmp_path / "same", *words)
    ranks, same = contents(tmp_path / "ranks"), contents(tmp_path / "same")
    assert {name: ranks[name] for name in ranks if name != "whole.dsctl"} == {
        name: same[name] for name in same if name != "whole.dsctl"
    }
    assert verified(tmp_path / "ranks")["ok"]
    dsctl("merge", tmp_path / "same", tmp_path / "back")
    kept = contents(draft)
    if words[2:] != ("--layout", "deepseek") or release == V3:
        assert raw(tensors(tmp_path / "back")) == raw(tensors(draft))
        assert contents(tmp_path / "back")["config.json"] == kept["config.json"]
    dsctl("merge", tmp_path / "ranks", tmp_path / "merged", "--bf16")
    assert verified(tmp_path / "merged")["checked"]["drafter"]["alone"]


def test_merge_writes_the_drafter_alone(drafts: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    source, draft = drafts[V3]
    dsctl("shard", source, tmp_path / "ranks", "--tp", "2")
    dsctl("merge", tmp_path / "ranks", tmp_path / "draft", "--mtp", "only")
    assert raw(tensors(tmp_path / "draft")) == raw(tensors(draft))


@pytest.mark.parametrize("release", [V3, DSPARK, V41])
def test_the_drafter_of_a_slice(release: str, drafts: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    source, draft = drafts[release]
    part = "--layers", "0-3" if release == V41 else "0-1", "--experts", "4"
    dsctl("slice", source, tmp_path / "draft", *part, "--mtp", "only")
    dsctl("slice", source, tmp_path / "whole", *part, "--mtp", "keep")
    dsctl("slice", source, tmp_path / "same", part[0], f"{part[1]},mtp", *part[2:])
    assert contents(tmp_path / "whole") == contents(tmp_path / "same")
    dsctl("convert", tmp_path / "whole", tmp_path / "of-whole", "--mtp", "only")
    assert contents(tmp_path / "draft") == contents(tmp_path / "of-whole")
    assert verified(tmp_path / "draft")["ok"]
    refused = call("slice", draft, tmp_path / "none", "--experts", "4")
    assert refused.returncode == 30 and "a drafter without its model" in refused.stderr


def test_a_slice_may_drop_the_drafter(drafts: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    source, _ = drafts[V3]
    dsctl("slice", source, tmp_path / "cut", "--experts", "4", "--mtp", "drop")
    assert verified(tmp_path / "cut")["checked"]["drafter"] is None
    dsctl("convert", source, tmp_path / "model", "--mtp", "drop")
    refused = call("slice", tmp_path / "model", tmp_path / "none", "--layers", "0-1", "--mtp", "only")
    assert refused.returncode == 30 and "there is no drafter" in refused.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("convert", "--mtp", "all"), "--mtp: 'all' is not keep, drop or only"),
        (("convert", "--mtp", "only", "--no-mtp"), "--mtp only and --no-mtp exclude each other"),
        (("convert", "--mtp", "keep"), "no target format"),
        (("convert", "--mtp", "only", "--layout", "transformers"), "no names for a drafter alone"),
        (("shard", "--tp", "2", "--mtp"), "--mtp: requires an argument"),
        (("shard", "--mtp", "--tp", "2"), "--mtp: '--tp' is not keep, drop or only"),
        (("shard", "--tp", "2", "--layout", "vllm", "--mtp", "only"), "layout vllm does not support the drafter"),
        (("shard", "--pp", "2", "--mtp", "only"), "a drafter is not split into 2 pipeline stages"),
        (("slice", "--layers", "0-1,mtp", "--mtp", "drop"), "--mtp drop and --layers with mtp exclude each other"),
    ],
)
def test_refusals(words: tuple[str, ...], said: str, drafts: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    verb, *more = words
    done = call(verb, drafts[V3][0], tmp_path / "out", *more)
    assert (done.returncode == 2 and f"error: {said}" in done.stderr) or said in done.stderr, done.stderr
    assert done.returncode and not (tmp_path / "out").exists() and "hint: " in done.stderr
    assert "--mtp keep" in done.stderr or "requires" not in said


def test_what_needs_the_model_is_refused(drafts: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    draft = drafts[V3][1]
    assert "without its model" in call("plan", draft).stderr
    with pytest.raises(UsageError, match="without its model"):
        package.open(draft).plan()
    assert call("shard", draft, tmp_path / "out", "--pp", "2").returncode == 2
    assert "check --mtp drop" in call("convert", draft, tmp_path / "out", "--mtp", "drop").stderr


def test_main_files_need_not_be_there(drafts: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    """Only the files that hold the drafter were fetched."""
    source, draft = drafts[V3]
    folder = linked(source, tmp_path / "part")
    weights = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {file for name, file in weights.items() if is_draft(V3, name)}
    for file in set(weights.values()) - needed:
        (folder / file).unlink()
    assert needed != set(weights.values())
    dsctl("convert", folder, tmp_path / "draft", "--mtp", "only")
    assert raw(tensors(tmp_path / "draft")) == raw(tensors(draft))
    (folder / max(needed)).unlink()
    refused = call("convert", folder, tmp_path / "none", "--mtp", "only")
    assert refused.returncode == 20 and "missing, but the index names it" in refused.stderr


def test_config_names_what_is_not_quantized_as_each_engine_does(
    drafts: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    dsctl("convert", drafts[V3][0], tmp_path / "int4", "--to", "int4-group", "--mtp", "only")
    ignored = config(tmp_path / "int4")["quantization_config"]["ignore"]
    for module in ("eh_proj", "self_attn.indexer.wq_b", "mlp.gate"):
        assert f"model.layers.3.{module}" in ignored and f"model.decoder.{module}" in ignored
    assert not any(name.startswith("model.layers.0") for name in ignored)
    dsctl("convert", drafts[V3][0], tmp_path / "mixed", "--recipe", "int4-experts-fp8", "--mtp", "only")
    targets = [
        group["targets"] for group in config(tmp_path / "mixed")["quantization_config"]["config_groups"].values()
    ]
    assert any(r"re:^model\.decoder\.mlp\.experts\.\d+\.gate_proj$" in names for names in targets)
    for name in ("int4", "mixed"):
        assert verified(tmp_path / name)["ok"]


def test_config_declares_the_formats_of_the_drafter(drafts: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    """NVIDIA's checkpoints keep the drafter in MXFP4 beside experts in NVFP4."""
    dsctl("convert", drafts[CLASSIC][0], tmp_path / "nvfp4", "--recipe", "nvfp4-modelopt-experts")
    dsctl("convert", tmp_path / "nvfp4", tmp_path / "draft", "--mtp", "only")
    before, after = (config(tmp_path / name)["quantization_config"] for name in ("nvfp4", "draft"))
    assert "moe_quant_algo" in before and "moe_quant_algo" not in after and after["quant_method"] == "fp8"
    assert config(tmp_path / "draft")["expert_dtype"] == "fp4"
    assert verified(tmp_path / "draft")["ok"]
    assert raw(tensors(tmp_path / "draft")) == raw(tensors(drafts[CLASSIC][1]))


def exported(source: Path, folder: Path) -> Path:
    """A drafter as SGLang's script writes it, by a restatement of its rules: layer 0, no copies, one file."""
    from safetensors.torch import save_file

    folder.mkdir()
    said = config(source) | {"num_hidden_layers": 1, "architectures": ["DeepseekV3ForCausalLMNextN"]}
    (folder / "config.json").write_text(json.dumps(said))
    kept = {
        "model.layers.0." + name.removeprefix("model.layers.3."): one
        for name, one in tensors(source).items()
        if name.startswith("model.layers.3.") and "embed_tokens" not in name and "shared_head.head" not in name
    }
    save_file(kept, folder / "nextn_layer_parameters.safetensors", {"format": "pt"})
    weights = dict.fromkeys(kept, "nextn_layer_parameters.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    return folder


@pytest.mark.parametrize("release", ["v3", V3])
def test_sglang_s_export_is_read(release: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    source = smaller(tmp_path_factory, release)
    folder = exported(source, tmp_path / "export")
    report = verified(folder)
    assert report["ok"] and report["checked"]["drafter"]["text"] == "MTP, 1 layer (model.layers.0)"
    assert any("SGLang's own export, which vLLM does not load" in one["what"] for one in report["findings"])
    dsctl("convert", folder, tmp_path / "bf16", "--bf16")
    dsctl("convert", source, tmp_path / "draft", "--bf16", "--mtp", "only", *COPIES)
    ours = {
        "model.layers.0." + n.removeprefix("model.layers.3."): b for n, b in raw(tensors(tmp_path / "draft")).items()
    }
    assert raw(tensors(tmp_path / "bf16")) == ours


def test_a_drafter_in_a_subfolder(drafts: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    source, draft = drafts[DSPARK]
    model = tmp_path / "model"
    dsctl("convert", source, model, "--mtp", "drop")
    before = contents(model)
    dsctl("convert", source, model / "dspark", "--mtp", "only")
    assert raw(tensors(model / "dspark")) == raw(tensors(draft))
    (found,) = [one for one in verified(model)["findings"] if one["code"] == "drafter-apart"]
    assert found["where"] == "dspark" and SAID[DSPARK] in found["what"]
    assert not [one for one in verified(model)["findings"] if one["code"] in ("unsigned-file", "stray-file")]
    # Its files are no part of a conversion, with and without an index.
    done = call("convert", model, tmp_path / "bf16", "--bf16")
    assert "dspark/ holds a drafter of its own, which is left out" in done.stdout
    assert not (tmp_path / "bf16" / "dspark").exists()
    (model / "model.safetensors.index.json").unlink()
    opened = open_checkpoint(LocalFolder.at(model))
    assert opened.survey.extra == [] and all("/" not in file for file in opened.headers)
    (model / "model.safetensors.index.json").write_bytes(before["model.safetensors.index.json"])
    for file in (model / "dspark").glob("*.safetensors"):
        file.unlink()
    (found,) = [one for one in verified_anyhow(model)["findings"] if one["code"] == "drafter-missing"]
    assert found["where"] == "dspark/config.json" and "no .safetensors files" in found["what"]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_killed_and_resumed_it_is_the_same(workers: str, drafts: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    source, _ = drafts[DSPARK]
    words = ("--bf16", "--mtp", "only", "--workers", workers)
    dsctl("convert", source, tmp_path / "whole", *words)
    kill = fault("kill", "pwrite", "model-", after=12)
    done = run("convert", source, tmp_path / "killed", *words, env=environment(kill))
    assert done.returncode in (-signal.SIGKILL, 41, 137) and not (tmp_path / "killed" / "dsctl.json").exists()
    dsctl("convert", source, tmp_path / "killed", *words)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_python(drafts: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    source, draft = drafts[V3]
    package.open(source).to(mtp="only").run(tmp_path / "only")
    assert contents(tmp_path / "only") == contents(draft)
    for said, word in ((True, "keep"), (False, "drop")):
        assert package.open(source).to("bf16", mtp=said).request == package.open(source).to("bf16", mtp=word).request
    package.open(source).slice(layers=[0, 1], mtp="only").run(tmp_path / "cut")
    assert package.open(tmp_path / "cut").verify().checked.drafter["alone"]
    with pytest.raises(UsageError, match="unknown choice for the drafter 'none'"):
        package.open(source).to("bf16", mtp="none")
