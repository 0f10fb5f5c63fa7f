"""Verbs on a hub: downloads whole and in part, slices, conversion while downloading; with and without faults."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.hub.conftest import REPOSITORY, Run, Started
from tests.hub.server import Hub, one_in
from tests.support.checkpoints import smaller, tiny
from tests.support.command import call, dsctl
from tests.support.forks import Launcher
from tests.support.schemas import faults

INDEX = "model.safetensors.index.json"
# Settings of a process that soon gives up what stalls.
IMPATIENT = {"HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_ETAG_TIMEOUT": "1"}
FAULTS = ("reset", "cut", "500", "503", "429", "length", "range", "stall", "html", "json")


def weights(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.safetensors"))}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    index = folder / INDEX
    assert not index.exists() or set(json.loads(index.read_text())["weight_map"]) == set(found)
    return found


def same(one: torch.Tensor, two: torch.Tensor) -> bool:
    bits = [tensor.contiguous().view(torch.uint8) for tensor in (one, two)]
    return one.dtype == two.dtype and torch.equal(*bits)


def done(result: Any) -> str:
    assert result.returncode == 0, f"exit {result.returncode}\n{result.stdout}\n{result.stderr}"
    return str(result.stdout)


@pytest.mark.parametrize("cached", [True, False])
def test_a_whole_download_is_the_repository(hub: Hub, source: Path, command: Run, tmp_path: Path, cached: bool) -> None:
    hub.fault = one_in(5, *FAULTS)
    target = [] if cached else [tmp_path / "copy"]
    told = json.loads(done(command("download", REPOSITORY, *target, "--json", **IMPATIENT)))
    assert faults("download", told) == []
    folder = Path(told["folder"])
    assert set(told["verified"]) == {path.name for path in source.iterdir()}
    for path in source.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()
    hub.fault = lambda number, method, path: None
    hub.log.clear()
    done(command("download", REPOSITORY, *target, "--verify-only"))
    done(command("download", REPOSITORY, *target))
    assert hub.sent(".safetensors") == 0


def test_a_flipped_bit_on_the_way_is_downloaded_again(hub: Hub, source: Path, command: Run, tmp_path: Path) -> None:
    name, flipped = sorted(weights(source))[1], []

    def flip(number: int, method: str, path: str) -> str | None:
        if method == "GET" and path.startswith("/blob") and path.endswith(name) and not flipped:
            flipped.append(path)
            return "flip"
        return None

    hub.fault = flip
    done(command("download", REPOSITORY, tmp_path / "copy"))
    assert flipped and weights(tmp_path / "copy") == weights(source)


def test_what_stays_wrong_is_exit_50(hub: Hub, source: Path, command: Run, tmp_path: Path) -> None:
    name = sorted(weights(source))[1]
    hub.fault = lambda number, method, path: "flip" if method == "GET" and path.endswith(name) else None
    failed = command("download", REPOSITORY, tmp_path / "copy")
    assert failed.returncode == 50 and name in failed.stderr and failed.stderr.count("error: ") == 1
    hub.fault = lambda number, method, path: None
    again = command("download", REPOSITORY, tmp_path / "copy", "--verify-only")
    assert again.returncode == 50 and name in again.stderr
    done(command("download", REPOSITORY, tmp_path / "copy"))
    assert weights(tmp_path / "copy") == weights(source)


@pytest.mark.parametrize("broken", ["missing", "truncated"])
def test_one_file_is_fetched_into_a_folder_that_has_the_others(
    hub: Hub, source: Path, command: Run, tmp_path: Path, broken: str
) -> None:
    """What the hint says where a file is missing."""
    copy = Path(shutil.copytree(source, tmp_path / "copy"))
    name = sorted(weights(source))[1]
    (copy / name).unlink() if broken == "missing" else (copy / name).write_bytes((copy / name).read_bytes()[:-1])
    found = command("verify", copy)
    words = found.stderr.partition("hint: `dsctl ")[2].partition("`")[0].replace("REPOSITORY", REPOSITORY).split()
    done(command(*words))
    assert weights(copy) == weights(source) and name in words and done(command("verify", copy))
    assert hub.sent(".safetensors") == hub.sent(name) > 0


@pytest.mark.parametrize("cached", [True, False])
def test_a_trickle_is_taken_up_over_another_connection(
    hub: Hub, source: Path, command: Run, tmp_path: Path, cached: bool
) -> None:
    name, trickled = sorted(weights(source))[1], []

    def trickle(number: int, method: str, path: str) -> str | None:
        if method == "GET" and path.startswith("/blob") and path.endswith(name) and not trickled:
            trickled.append(path)
            return "trickle"
        return None

    hub.fault = trickle
    target = [] if cached else [tmp_path / "copy"]
    begun = time.monotonic()
    folder = Path(json.loads(done(command("download", REPOSITORY, *target, "--json", **IMPATIENT)))["folder"])
    assert trickled and weights(folder) == weights(source) and time.monotonic() - begun < 20
    assert hub.sent(name) <= (source / name).stat().st_size + 16


@pytest.mark.parametrize("signalled", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("cached", [True, False])
def test_a_download_ends_when_told_to_and_goes_on_where_it_was(
    hub: Hub, source: Path, started: Started, command: Run, tmp_path: Path, signalled: int, cached: bool
) -> None:
    hub.fault = lambda number, method, path: "trickle" if method == "GET" and path.startswith("/blob") else None
    target = [] if cached else [str(tmp_path / "copy")]
    running = started("download", REPOSITORY, *target, HF_HUB_DOWNLOAD_TIMEOUT="60")
    while hub.started < 2 + 2 * len(list(source.iterdir())):
        time.sleep(0.02)
    time.sleep(1)
    told = time.monotonic()
    os.kill(running.pid, signalled)
    said = running.wait(10)
    assert time.monotonic() - told < 5 and said.code == 130
    assert "interrupted" in said.err and "hint: run the same command again" in said.err and "Traceback" not in said.err
    hub.fault = lambda number, method, path: None
    folder = Path(json.loads(done(command("download", REPOSITORY, *target, "--json")))["folder"])
    assert weights(folder) == weights(source)
    later = [
        request for request in hub.log if request.host == "storage" and not str(request.range).startswith("bytes=0-")
    ]
    for path in source.glob("*.safetensors"):
        sent = [request.sent for request in later if request.path.endswith(path.name)]
        assert len(sent) == 1 and 0 < sent[0] < 0.8 * path.stat().st_size


VERBS = [("inspect", f"hf://{REPOSITORY}"), ("download", REPOSITORY, "DST", "--layers", "0"),
         ("convert", REPOSITORY, "DST", "--bf16")]  # fmt: skip


@pytest.mark.parametrize(("line", "from_"), [(VERBS[0], 5), (VERBS[1], 5), (VERBS[1], 14), (VERBS[2], 14)])
def test_what_reads_ranges_ends_when_told_to(
    hub: Hub, started: Started, tmp_path: Path, line: tuple[str, ...], from_: int
) -> None:
    hub.fault = lambda number, method, path: "trickle" if number >= from_ and path.startswith("/blob") else None
    words = [str(tmp_path / "out") if word == "DST" else word for word in line]
    running = started(*words, HF_HUB_DOWNLOAD_TIMEOUT="60")
    while hub.started < from_ and not running.ended:
        time.sleep(0.02)
    time.sleep(0.5)
    told = time.monotonic()
    os.kill(running.pid, signal.SIGINT)
    assert running.wait(20).code == 130 and time.monotonic() - told < 10


@pytest.mark.parametrize("named", ["main", "stable"])
def test_what_was_downloaded_is_there_offline(
    hub: Hub, source: Path, launcher: Launcher, settings: dict[str, str], command: Run, named: str
) -> None:
    hub.publish(REPOSITORY, source, named)
    text = REPOSITORY if named == "main" else f"{REPOSITORY}@{named}"
    done(command("download", text))
    offline = {"HF_HUB_OFFLINE": "1"}
    assert json.loads(done(command("inspect", text, "--json", **offline)))
    code = f"from huggingface_hub import snapshot_download as s; print(s({REPOSITORY!r}, revision={named!r}))"
    seen = launcher.script(code, environment=settings | offline)
    assert weights(Path(seen.strip())) == weights(source)


def test_dry_run_and_globs(hub: Hub, source: Path, command: Run, tmp_path: Path) -> None:
    arguments = ("download", REPOSITORY, tmp_path / "copy", "--include", "*.json", "--exclude", "tok*")
    told = json.loads(done(command(*arguments, "--dry-run", "--json")))
    expected = {p.name: p.stat().st_size for p in source.glob("*.json") if not p.name.startswith("tok")}
    assert told["files"] == expected and told["lacking"] == sum(expected.values())
    assert not (tmp_path / "copy").exists()
    done(command(*arguments))
    assert {path.name for path in (tmp_path / "copy").iterdir() if path.is_file()} == set(expected)


def test_part_of_a_checkpoint(hub: Hub, source: Path, command: Run, tmp_path: Path) -> None:
    hub.fault = one_in(5, *FAULTS)
    arguments = ("download", REPOSITORY, tmp_path / "part", "--layers", "1,3", "--experts", "0-2")
    plan = json.loads(done(command(*arguments, "--dry-run", "--json", **IMPATIENT)))
    assert not (tmp_path / "part").exists()
    done(command(*arguments, **IMPATIENT))
    found, whole = tensors(tmp_path / "part"), tensors(source)
    layers = {name: tensor for name, tensor in whole.items() if name.startswith(("model.layers.1.", "model.layers.3."))}
    wanted = {name for name in layers if ".experts." not in name or int(name.split(".")[5]) <= 2}
    assert set(found) == wanted and all(same(found[name], whole[name]) for name in found)
    one, two = ((folder / "config.json").read_text() for folder in (tmp_path / "part", source))
    assert json.loads(one) == json.loads(two)
    assert plan["bytes_in"] >= sum(tensor.nbytes for tensor in found.values())


@pytest.mark.parametrize("only", ["*indexer*", "*.experts.3.*", "*norm*"])
def test_a_part_reads_little_more_than_it_writes(hub: Hub, command: Run, tmp_path: Path, only: str) -> None:
    done(command("download", REPOSITORY, tmp_path / "part", "--only", only, "--dry-run"))
    hub.log.clear()
    done(command("download", REPOSITORY, tmp_path / "part", "--only", only))
    nbytes = sum(tensor.nbytes for tensor in tensors(tmp_path / "part").values())
    assert nbytes <= hub.sent(".safetensors") <= 1.02 * nbytes


def test_a_part_reads_little_more_than_it_writes_with_headers_too(
    hub: Hub, command: Run, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Of files that are large beside their headers."""
    hub.publish("acme/larger", tiny(tmp_path_factory, "v3.2"))
    done(command("download", "acme/larger", tmp_path / "part", "--only", "*"))
    nbytes = sum(tensor.nbytes for tensor in tensors(tmp_path / "part").values())
    assert nbytes <= hub.sent(".safetensors") <= 1.02 * nbytes


@pytest.mark.parametrize("release", ["v3", "v3.2"])
def test_converting_from_the_hub_gives_the_bytes_of_a_folder(
    hub: Hub, release: str, command: Run, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = smaller(tmp_path_factory, release)
    hub.publish("acme/other", source)
    hub.fault = one_in(5, *FAULTS)
    done(command("convert", "acme/other", tmp_path / "remote", "--bf16", "--workers", "2", **IMPATIENT))
    dsctl("convert", source, tmp_path / "local", "--bf16")
    assert not list((tmp_path / "hf").rglob("*.safetensors"))
    for path in (tmp_path / "local").iterdir():
        if path.name not in ("dsctl.json", "dsctl.intoto.json"):
            assert (tmp_path / "remote" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("config", [None, {"num_hidden_layers": "x"}, {"num_nextn_predict_layers": None}])
def test_a_slice_of_a_config_that_says_nothing_is_refused(
    source: Path, tmp_path: Path, config: dict[str, Any] | None
) -> None:
    shutil.copytree(source, tmp_path / "odd")
    path = tmp_path / "odd" / "config.json"
    if config is None:
        path.unlink()
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
    refused = call("slice", tmp_path / "odd", tmp_path / "out", "--layers", "0-1,mtp")
    assert refused.returncode in (20, 30) and "internal error" not in refused.stderr


def test_a_moved_branch_is_not_mixed_with_the_old_one(hub: Hub, source: Path, command: Run, tmp_path: Path) -> None:
    begun = tmp_path / "out" / ".dsctl" / "journal.jsonl"
    hub.fault = lambda number, method, path: "404" if begun.exists() and "00003-of" in path else None
    assert command("convert", REPOSITORY, tmp_path / "out", "--bf16").returncode == 10
    hub.fault = lambda number, method, path: None
    other = tmp_path / "other"
    shutil.copytree(source, other)
    (other / "README.md").write_text("another commit")
    old = hub.branches[REPOSITORY, "main"]
    hub.publish(REPOSITORY, other)
    refused = command("convert", REPOSITORY, tmp_path / "out", "--bf16")
    assert refused.returncode == 40 and old in refused.stderr
    assert "resumed" in command("convert", f"{REPOSITORY}@{old}", tmp_path / "out", "--bf16").stderr


def test_a_hub_that_serves_other_bytes_for_a_commit_is_not_believed(
    hub: Hub, source: Path, command: Run, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(source, tmp_path / "published"))
    commit = hub.publish("acme/moving", folder)
    done(command("convert", "acme/moving", tmp_path / "out", "--bf16"))
    assert "already complete" in command("convert", "acme/moving", tmp_path / "out", "--bf16").stdout
    file = folder / "model-00002-of-000004.safetensors"
    raw = bytearray(file.read_bytes())
    body = 8 + int.from_bytes(raw[:8], "little")
    file.write_bytes(raw[:body] + bytes(byte ^ 1 for byte in raw[body:]))
    assert hub.branches["acme/moving", "main"] == commit
    refused = command("convert", "acme/moving", tmp_path / "out", "--bf16")
    assert refused.returncode == 40 and file.name in refused.stderr, refused.stderr


def test_a_slice_is_a_working_checkpoint(hub: Hub, source: Path, command: Run, tmp_path: Path) -> None:
    hub.fault = one_in(5, *FAULTS)
    done(command("slice", REPOSITORY, tmp_path / "remote", "--layers", "0,2,mtp", "--experts", "1-2,6-7", **IMPATIENT))
    dsctl("slice", source, tmp_path / "local", "--layers", "0,2,mtp", "--experts", "1-2,6-7")
    assert weights(tmp_path / "remote") == weights(tmp_path / "local")
    small, large = tensors(tmp_path / "local"), tensors(source)
    config = json.loads((tmp_path / "local" / "config.json").read_text())
    assert (config["num_hidden_layers"], config["n_routed_experts"], config["num_nextn_predict_layers"]) == (2, 4, 1)
    assert same(small["model.layers.1.mlp.gate.weight"], large["model.layers.2.mlp.gate.weight"][[1, 2, 6, 7]])
    bias = "mlp.gate.e_score_correction_bias"
    assert same(small[f"model.layers.2.{bias}"], large[f"model.layers.3.{bias}"][[1, 2, 6, 7]])
    for new, old in enumerate((1, 2, 6, 7)):
        for suffix in ("weight", "weight_scale_inv"):
            one = small[f"model.layers.1.mlp.experts.{new}.up_proj.{suffix}"]
            assert same(one, large[f"model.layers.2.mlp.experts.{old}.up_proj.{suffix}"])
    assert same(small["model.embed_tokens.weight"], large["model.embed_tokens.weight"])


@pytest.mark.parametrize(("release", "experts"), [("v3", "4"), ("v3.2", "4"), ("v3.2", "2"), ("v3.2", "1,4,7")])
def test_a_slice_loads_in_transformers(
    release: str, experts: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from transformers import AutoModelForCausalLM

    source = smaller(tmp_path_factory, release)
    dsctl("slice", source, tmp_path / "small", "--layers", "0-1", "--experts", experts, "--bf16")
    model, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "small", dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    logits = model(torch.tensor([[1, 2, 3]])).logits
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("slice", "SRC", "DST", "--layers", "0-9"), 30),
        (("slice", "SRC", "DST", "--layers", "mtp"), 30),
        (("slice", "SRC", "DST", "--experts", "99"), 30),
        (("slice", "SRC", "DST", "--experts", "x"), 2),
        (("slice", "SRC", "DST", "--layers", "3-1"), 2),
        (("slice", "SRC", "DST", "--experts", "1"), 30),
        (("download", "SRC", "DST", "--layers", "0,77"), 30),
        (("download", "SRC", "DST", "--layers", "77"), 30),
        (("download", "SRC", "DST", "--experts", "77"), 30),
        (("download", f"{REPOSITORY}/extra", "DST"), 2),
        (("download", "SRC", "--layers", "1"), 2),
        (("download", "no-such-release"), 2),
        (("download", "SRC", "DST", "--only", "nothing"), 30),
        (("download", "SRC", "DST", "--include", "nothing"), 30),
        (("download", "SRC", "DST", "--include", "*.json", "--only", "*"), 2),
    ],
)
def test_what_cannot_be_done_is_refused(
    hub: Hub, command: Run, tmp_path: Path, arguments: tuple[str, ...], code: int
) -> None:
    names = {"SRC": REPOSITORY, "DST": str(tmp_path / "out")}
    failed = command(*[names.get(word, word) for word in arguments])
    assert failed.returncode == code and failed.stderr.count("error: ") == 1, failed.stderr
    assert not (tmp_path / "out").exists()


def test_python_downloads_whole_and_in_part(
    hub: Hub, source: Path, launcher: Launcher, settings: dict[str, str], tmp_path: Path
) -> None:
    code = (
        "import os, dsctl\n"
        f"os.chdir({str(tmp_path)!r})\n"
        f"here = dsctl.open({REPOSITORY!r})\n"
        "print(here.download('copy', include='*.json').place)\n"
        "print([one.name for one in here.download('part', only='lm_head.weight').inspect().tensors()])\n"
        "for wrong in ({'only': 'x'}, {'only': 'x', 'target': 'y', 'include': 'z'}):\n"
        "    try:\n"
        "        here.download(**wrong)\n"
        "    except dsctl.DsctlError as error:\n"
        "        print(error)\n"
    )
    told = launcher.script(code, environment=settings)
    assert told.splitlines()[:2] == ["copy", "['lm_head.weight']"]
    assert told.count("only: needs a target") == 2
    copied = {path.name for path in (tmp_path / "copy").glob("*.*") if path.is_file()}
    assert copied == {path.name for path in source.glob("*.json")}
