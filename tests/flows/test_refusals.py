"""What once ended in an internal error is one error line of the right kind, with a hint, or works."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsctl.work import job as work
from tests.flows.test_hostile import SIZES, config, named, quantization
from tests.support.checkpoints import tiny
from tests.support.command import Done, call, dsctl, reports, run

ALIGNED = SIZES | {"heads": 4, "intermediate": 256, "moe_intermediate": 256}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory, "v3.2", **ALIGNED)


@pytest.fixture(scope="module")
def decoded(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decoded") / "bf16"
    dsctl("convert", source, folder, "--bf16", "--workers", 1)
    return folder


@pytest.fixture
def copy(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "source"))


def refused(done: Done | subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """One error line that holds these words, with a hint, of this exit code."""
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and all(word in lines[0] for word in words), done.stderr
    assert "\nhint: " in done.stderr and "internal error" not in done.stderr and "Traceback" not in done.stderr


def test_a_page_of_tensors_of_no_known_role(copy: Path, tmp_path: Path) -> None:
    """More groups than the charts had colours."""
    named("something.of.no.role")(copy)
    assert call("inspect", copy, "--html", tmp_path / "page.html").returncode == 0
    assert "something.of.no.role" in (tmp_path / "page.html").read_text()


def half(value: dict[str, Any]) -> None:
    value["x"] = "\ud800"


def half_key(value: dict[str, Any]) -> None:
    value["\ud800"] = {}


@pytest.mark.parametrize("change", [half, half_key])
def test_half_a_character_in_the_config_is_refused_by_every_verb(
    change: Callable[[dict[str, Any]], None], copy: Path, source: Path, tmp_path: Path
) -> None:
    config(change)(copy)
    out = tmp_path / "out"
    for line in (
        ["inspect", copy], ["inspect", copy, "--json"], ["compare", copy, source], ["diff", source, copy],
        ["plan", copy], ["convert", copy, out, "--bf16"], ["shard", copy, out, "--tp", 2], ["merge", copy, out],
        ["slice", copy, out, "--layers", 0], ["verify", source, "--against", copy],
    ):  # fmt: skip
        done = call(*line)
        assert done.returncode == 20 and "half of a surrogate pair" in done.stderr, (line, done.stderr)
        assert "internal error" not in done.stderr
    done = call("verify", copy)
    assert done.returncode == 50 and "half of a surrogate pair" in done.stdout
    assert not out.exists()


@pytest.mark.parametrize("deep", [[], ["--deep"]])
def test_a_rank_s_manifest_that_is_gone(source: Path, tmp_path: Path, deep: list[str]) -> None:
    dsctl("shard", source, tmp_path / "ranks", "--tp", 2, "--workers", 1)
    next((tmp_path / "ranks" / "rank-00001").glob("dsctl-rank.json")).unlink()
    done = call("verify", tmp_path / "ranks", *deep)
    assert done.returncode == 50 and "internal error" not in done.stderr, done.stderr
    done = call("merge", tmp_path / "ranks", tmp_path / "whole")
    assert done.returncode == 20 and "internal error" not in done.stderr, done.stderr


def test_a_list_among_the_modules_that_a_slice_renames(decoded: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    dsctl("convert", decoded, mixed, "--recipe", "int4-experts-fp8", "--workers", 1)
    quantization(ignore=[["lm_head"], "lm_head"])(mixed)
    done = call("slice", mixed, tmp_path / "out", "--layers", "0-1", "--workers", 1)
    refused(done, 20, "quantization_config.ignore", "not a module's name")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda audit: audit["audit"].pop("moved"),
        lambda audit: audit["audit"].update(moved="many"),
        lambda audit: audit["audit"].update(other=None),
        lambda audit: audit.update(audit=None),
        lambda audit: audit.pop("notes"),
        lambda audit: audit.update(notes=[{}]),
        lambda audit: audit["files"].update(x=5),
        lambda audit: audit.update(files=None),
    ],
)
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_signature_that_lacks_what_is_told_of_it(
    change: Callable[[dict[str, Any]], Any], more: list[str], source: Path, decoded: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(decoded, tmp_path / "copy"))
    audit = json.loads((copy / "dsctl.json").read_text())
    change(audit)
    (copy / "dsctl.json").write_text(json.dumps(audit))
    done = call("convert", source, copy, "--bf16", "--workers", 1, *more)
    assert done.returncode in (30, 40) and "internal error" not in done.stderr, done.stderr
    assert len(reports(done.stderr)) == 1 and not done.stdout
    verified = call("verify", copy)
    assert verified.returncode in (0, 20, 50) and "internal error" not in verified.stderr, verified.stderr


LONG = {"a name": "a" * 300, "a path": "/".join(["b" * 200] * 30), "a path of one": "/tmp/" + "c" * 300}


@pytest.mark.parametrize("name", LONG.values(), ids=LONG)
def test_names_that_are_too_long(name: str, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for line in (["convert", source, name, "--bf16"], ["shard", source, name, "--tp", 2], ["merge", source, name]):
        refused(call(*line), 2, "the name is too long")
    for line in (
        ["inspect", name], ["verify", name], ["plan", name], ["compare", source, name], ["diff", name, source],
        ["verify", source, "--against", name], ["inspect", source, "--html", name], ["slice", source, name],
        ["convert", name, out, "--bf16"],
        ["doctor", name, "--no-hub"], ["tiny", "v3.2", name], ["convert", source, out, "--recipe", name],
    ):  # fmt: skip
        done = call(*line)
        assert done.returncode in (2, 10, 30, 41) and "internal error" not in done.stderr, done.stderr
        assert done.stderr.count("error: ") == 1, done.stderr


@pytest.mark.parametrize("url", ["zip://", "zip://::/tmp", "tar://", "ftp://", "github://", "reference://", "x://y"])
def test_urls_that_name_nothing(url: str, source: Path, tmp_path: Path) -> None:
    for verb in (["inspect", url], ["verify", url], ["plan", url], ["convert", url, tmp_path / "out", "--bf16"]):
        refused(call(*verb), 10, url.partition(":")[0])


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate 68719476736 bytes. Error code 12 (Cannot allocate memory)"
        ),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_memory_that_is_not_there_is_the_machine_s_lack(
    error: Exception, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*rest: Any) -> None:
        raise error

    monkeypatch.setattr(work, "_step", full)
    done = call("convert", source, tmp_path / "out", "--bf16", "--workers", 1)
    refused(done, 41, "this machine has too little memory")
    assert "--max-memory" in done.stderr
    monkeypatch.undo()
    monkeypatch.setattr("dsctl.look.compare.compare", full)
    refused(call("compare", source, source), 41, "this machine has too little memory")


@pytest.mark.parametrize("megabytes", [150, 600])
def test_a_process_that_may_have_no_more_memory(megabytes: int, source: Path, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))

    for line in (["compare", source, source], ["inspect", source], ["verify", source, "--deep"]):
        done = run(*line, preexec_fn=limit, env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})
        if done.returncode == 0:
            continue
        assert done.returncode == 41 and done.stderr.count("error: ") == 1, done.stderr
        assert "Traceback" not in done.stderr and "internal error" not in done.stderr, done.stderr


@pytest.mark.parametrize("megabytes", [540, 800])
def test_workers_that_may_have_no_more_memory(megabytes: int, source: Path, tmp_path: Path) -> None:
    """Whether the process that forks them or one of them lacks it: the driver alone says so."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))

    few = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = run("convert", source, tmp_path / "out", "--bf16", "--workers", "2", preexec_fn=limit, env=few)
    assert done.returncode in (0, 41), done.stderr
    assert done.stderr.count("error: ") == (done.returncode == 41) and "Traceback" not in done.stderr, done.stderr


def test_the_end_of_a_process_beside_it_is_told(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*rest: Any) -> None:
        raise EOFError

    monkeypatch.setattr("dsctl.look.inspection.inspect", gone)
    refused(call("inspect", source), 41, "a process that dsctl needs has ended")


def test_what_the_system_refuses_is_no_fault_of_dsctl(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*rest: Any) -> None:
        raise OSError(5, "Input/output error", "/some/where")

    monkeypatch.setattr("dsctl.look.inspection.inspect", broken)
    refused(call("inspect", source), 41, "/some/where: Input/output error")
    monkeypatch.setattr(
        "dsctl.look.inspection.inspect", lambda *rest: (_ for _ in ()).throw(ImportError("libx.so: no file"))
    )
    refused(call("inspect", source), 41, "a library cannot be loaded: libx.so: no file")


def test_a_real_fault_is_still_told_as_one(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsctl.look.inspection.inspect", lambda *rest: {}["x"])
    done = call("inspect", source)
    assert done.returncode == 1 and "internal error: KeyError" in done.stderr and "--debug" in done.stderr


def test_a_library_s_finalizer_that_fails_prints_nothing() -> None:
    code = "import sys; sys.argv = ['dsctl', 'inspect', 'ftp://']; from dsctl.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    refused(done, 10, "ftp://")
    assert "Exception ignored" not in done.stderr, done.stderr
