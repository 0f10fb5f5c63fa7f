"""Digests in `dsctl.json` are those of the bytes on the disk, whoever wrote them and whatever happened in between."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dsctl.checkpoint.opening import open_checkpoint
from dsctl.checkpoint.signed_files import SignedFile
from dsctl.plan.planner import make_plan
from dsctl.plan.request import Request
from dsctl.run.dispatch import Dispatch
from dsctl.run.driver import run
from dsctl.run.journal import Journal
from dsctl.run.resuming import RunState
from dsctl.stores.local import LocalFolder
from dsctl.work.executors.serial import Serial
from dsctl.work.tasks import Context
from tests.support import trees
from tests.support.checkpoints import tiny
from tests.support.command import call, dsctl
from tests.support.forks import Launcher


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory, "v3.2")


def signed(folder: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads((folder / "dsctl.json").read_text())["files"]
    return found


def check(folder: Path) -> None:
    for name, entry in signed(folder).items():
        if "tree" in entry:
            assert entry == trees.entry(folder / name, entry.get("cuts")), name


@pytest.mark.parametrize(
    "line",
    [
        ("convert", "--bf16"), ("convert", "--to", "nvfp4"), ("convert", "--layout", "stacked"),
        ("convert", "--layout", "fused"), ("shard", "--tp", "2", "--ep", "2"),
        ("shard", "--tp", "2", "--layout", "deepseek"), ("slice", "--layers", "0-1", "--experts", "2"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_they_are_what_the_page_describes_with_any_number_of_workers(
    source: Path, tmp_path: Path, line: tuple[str, ...], launcher: Launcher
) -> None:
    verb, *more = line
    for workers in ("1", "3"):
        launcher.good(verb, source, tmp_path / workers, *more, "--workers", workers)
    check(tmp_path / "1")
    assert signed(tmp_path / "1") == signed(tmp_path / "3")
    assert "no problems found" in dsctl("verify", tmp_path / "3", "--deep")


def test_small_bands_and_large_ones_give_the_same_digests(source: Path, tmp_path: Path) -> None:
    store = LocalFolder.at(source)
    plan = make_plan(open_checkpoint(store), Request("bf16"))
    for band in (1 << 14, 8 << 20):
        folder = tmp_path / str(band)
        run(plan, store, folder, lambda folder=folder, band=band: Serial(Context(store, str(folder), band)))
    assert signed(tmp_path / str(1 << 14)) == signed(tmp_path / str(8 << 20))


def test_the_parts_of_a_joined_tensor_are_told(source: Path, tmp_path: Path) -> None:
    dsctl("convert", source, tmp_path / "out", "--layout", "stacked")
    cuts = {name: cut for entry in signed(tmp_path / "out").values() for name, cut in entry.get("cuts", {}).items()}
    assert any(name.endswith("experts.gate_up_proj") for name in cuts)
    assert all(count * length > 0 for cut in cuts.values() for count, length in cut)


def damage(path: Path, place: int) -> None:
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 4]))


@pytest.mark.parametrize("layout", ["published", "stacked"])
def test_a_damaged_tensor_is_named(source: Path, tmp_path: Path, layout: str) -> None:
    out = tmp_path / "out"
    dsctl("convert", source, out, "--bf16", "--layout", layout)
    file = max(out.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    raw = file.read_bytes()
    begin = 8 + int.from_bytes(raw[:8], "little")
    tensors = json.loads(raw[8:begin])
    name = max((one for one in tensors if one != "__metadata__"), key=lambda one: tensors[one]["data_offsets"])
    damage(file, begin + tensors[name]["data_offsets"][1] - 1)
    assert call("verify", out).returncode == 0
    done = call("verify", out, "--deep")
    assert done.returncode == 50 and f"{file.name}: differs from dsctl.json: {name}" in done.stdout.replace("  ", ": ")


def test_a_changed_side_file_and_a_changed_text_are_named(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    dsctl("convert", source, out, "--bf16")
    damage(out / "original.dsctl", (out / "original.dsctl").stat().st_size - 1)
    damage(out / "LICENSE", 3)
    done = call("verify", out, "--deep", "--json")
    told = {one["where"]: one["what"] for one in json.loads(done.stdout)["findings"] if one["code"] == "digest"}
    assert set(told) == {"original.dsctl", "LICENSE"} and "BLAKE3" in told["LICENSE"]


def test_sha256_is_had_for_the_asking(source: Path, tmp_path: Path) -> None:
    for workers in ("1", "2"):
        out = tmp_path / workers
        dsctl("convert", source, out, "--bf16", "--digest", "sha256", "--workers", workers)
        for name, entry in signed(out).items():
            assert entry["sha256"] == hashlib.sha256((out / name).read_bytes()).hexdigest()
            assert entry.keys() & {"tree", "blake3"}
    assert signed(tmp_path / "1") == signed(tmp_path / "2")
    assert "no problems found" in dsctl("verify", tmp_path / "1", "--deep")
    changed = json.loads((tmp_path / "1" / "dsctl.json").read_text())
    changed["files"]["config.json"]["sha256"] = "0" * 64
    (tmp_path / "1" / "dsctl.json").write_text(json.dumps(changed))
    done = call("verify", tmp_path / "1", "--deep")
    assert done.returncode == 50 and "SHA-256" in done.stdout


def test_a_resumed_run_gives_sha256_to_files_that_were_finished_without(
    source: Path, tmp_path: Path, launcher: Launcher
) -> None:
    out = tmp_path / "out"
    line = ("convert", source, out, "--bf16", "--workers", "1")
    launcher.start(*line, last=("dsctl.run.journal.Journal.append", 5)).wait()
    assert any("file" in record for record in lines(out))
    dsctl(*line, "--digest", "sha256")
    for name, entry in signed(out).items():
        assert entry["sha256"] == hashlib.sha256((out / name).read_bytes()).hexdigest()


def test_placeholders_of_uploaded_files_are_not_read_back(source: Path, tmp_path: Path, begun: Path) -> None:
    plan = make_plan(open_checkpoint(LocalFolder.at(source)), Request("bf16"))
    state = RunState(committed={file.name: SignedFile(file.size, tree="0" * 64) for file in plan.files})
    with Journal(tmp_path) as journal:
        names = frozenset(file.name for file in plan.files)
        assert not Dispatch(plan, begun, journal, state, sha256=True).is_done
        assert Dispatch(plan, begun, journal, state, sha256=True, sent=names).is_done


def test_a_finished_folder_without_sha256_says_so(source: Path, tmp_path: Path) -> None:
    dsctl("convert", source, tmp_path / "out", "--bf16")
    done = call("convert", source, tmp_path / "out", "--bf16", "--digest", "sha256")
    assert done.returncode == 0 and "no SHA-256" in done.stderr


@pytest.fixture
def cached(source: Path, tmp_path: Path) -> Path:
    """The checkpoint as a hub's client keeps it: links to files whose names are their SHA-256."""
    home = tmp_path / "models--acme--small"
    (home / "blobs").mkdir(parents=True)
    folder = home / "snapshots" / "0123"
    folder.mkdir(parents=True)
    for path in source.iterdir():
        blob = home / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        blob.write_bytes(path.read_bytes())
        (folder / path.name).symlink_to(f"../../blobs/{blob.name}")
    return folder


@pytest.mark.parametrize("format_", ["fp8-block", "published"])
def test_the_way_back_is_compared_with_the_release(cached: Path, tmp_path: Path, format_: str) -> None:
    dsctl("convert", cached, tmp_path / "bf16", "--bf16")
    kept = json.loads((tmp_path / "bf16" / "dsctl.json").read_text())["source"]["sha256"]
    weights = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in cached.glob("*.safetensors")}
    assert kept == weights
    told = dsctl("convert", tmp_path / "bf16", tmp_path / "back", "--to", format_)
    assert "release: 4 of 4 files have the SHA-256 that the hub stated" in told
    found = {name: entry.get("sha256") for name, entry in signed(tmp_path / "back").items() if "tree" in entry}
    assert found == weights
    counts = json.loads((tmp_path / "back" / "dsctl.json").read_text())["audit"]
    assert (counts["files_as_released"], counts["files_unlike_released"]) == (4, 0)


def test_a_file_that_is_not_the_release_s_is_counted(cached: Path, tmp_path: Path) -> None:
    out = tmp_path / "bf16"
    dsctl("convert", cached, out, "--bf16")
    audit = json.loads((out / "dsctl.json").read_text())
    name = min(audit["source"]["sha256"])
    audit["source"]["sha256"] |= {name: "0" * 64, "../else": "1" * 64, "x": 7}
    (out / "dsctl.json").write_text(json.dumps(audit))
    done = call("convert", out, tmp_path / "back", "--fp8")
    assert done.returncode == 0 and "1 restored file has a different SHA-256" in done.stderr
    assert "release: 3 of 4 files" in done.stdout


def test_what_no_hub_states_is_not_compared(source: Path, tmp_path: Path) -> None:
    dsctl("convert", source, tmp_path / "bf16", "--bf16")
    assert "sha256" not in json.loads((tmp_path / "bf16" / "dsctl.json").read_text())["source"]
    assert "release:" not in dsctl("convert", tmp_path / "bf16", tmp_path / "back", "--fp8")


def test_an_unknown_digest_is_a_mistake(source: Path, tmp_path: Path) -> None:
    done = call("convert", source, tmp_path / "out", "--bf16", "--digest", "md5")
    assert done.returncode == 2 and "--digest" in done.stderr and not (tmp_path / "out").exists()


def as_before(folder: Path) -> None:
    """Give a folder the entries of an earlier version: a SHA-256 for every file, and no statement."""
    audit = json.loads((folder / "dsctl.json").read_text())
    del audit["files"]["dsctl.intoto.json"]
    (folder / "dsctl.intoto.json").unlink()
    for name, entry in audit["files"].items():
        raw = (folder / name).read_bytes()
        audit["files"][name] = {"size": entry["size"], "sha256": hashlib.sha256(raw).hexdigest()}
    (folder / "dsctl.json").write_text(json.dumps(audit, indent=1))


def test_folders_of_earlier_versions_still_verify(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    dsctl("convert", source, out, "--bf16")
    as_before(out)
    assert "no problems found" in dsctl("verify", out, "--deep")
    assert "is already complete" in dsctl("convert", source, out, "--bf16")
    dsctl("convert", out, tmp_path / "back", "--fp8")
    damage(min(out.glob("*.safetensors")), 100_000)
    done = call("verify", out, "--deep")
    assert done.returncode == 50 and "its SHA-256" in done.stdout


@pytest.fixture
def begun(source: Path, tmp_path: Path, launcher: Launcher) -> Path:
    """A run that ended itself after its third receipt."""
    last = ("dsctl.run.journal.Journal.append", 3)
    done = launcher.start("convert", source, tmp_path / "out", "--bf16", "--workers", "1", last=last).wait()
    assert done.code == 9, done.told()
    return tmp_path / "out"


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "out"
    dsctl("convert", source, folder, "--bf16", "--workers", "1")
    return folder


def lines(target: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (target / ".dsctl" / "journal.jsonl").read_text().splitlines()]


def test_a_run_that_an_earlier_version_began_is_resumed(source: Path, begun: Path, whole: Path) -> None:
    """Its receipts had no digests, and its files a SHA-256."""
    for record in (records := lines(begun)):
        record.pop("digests", None)
        if "file" in record:
            record["sha256"] = hashlib.sha256((begun / record["file"]).read_bytes()).hexdigest()
    (begun / ".dsctl" / "journal.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    mark = json.loads((begun / ".dsctl" / "request.json").read_text())
    del mark["boot"]
    (begun / ".dsctl" / "request.json").write_text(json.dumps(mark))
    done = call("convert", source, begun, "--bf16")
    assert done.returncode == 0 and "resumed: " in done.stderr
    kept = {name: {key: entry[key] for key in entry if key != "sha256"} for name, entry in signed(begun).items()}
    # The statement has the SHA-256 of these files, too.
    assert kept.keys() == signed(whole).keys()
    assert {name for name in kept if kept[name] != signed(whole)[name]} == {"dsctl.intoto.json"}


def restart(target: Path) -> None:
    """Make a target look as if the system was restarted since the run."""
    mark = json.loads((target / ".dsctl" / "request.json").read_text())
    assert mark["boot"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    (target / ".dsctl" / "request.json").write_text(json.dumps(mark | {"boot": "another"}))


def parts(target: Path) -> list[Path]:
    """The files in which something was written."""
    named = {record["file"] for record in lines(target) if "file" in record}
    return [path for path in target.glob("*.safetensors*") if path.name in named or path.name.endswith(".part")]


def test_a_write_that_was_lost_before_a_restart_is_done_again(source: Path, begun: Path, whole: Path) -> None:
    for path in parts(begun):
        raw = bytearray(path.read_bytes())
        begin = 8 + int.from_bytes(raw[:8], "little")
        raw[begin:] = bytes(len(raw) - begin)
        path.write_bytes(raw)
    restart(begun)
    done = call("convert", source, begun, "--bf16")
    assert done.returncode == 0 and "must be done again" in done.stderr and "system was restarted" in done.stderr
    assert {path.name: path.read_bytes() for path in begun.iterdir()} == {
        path.name: path.read_bytes() for path in whole.iterdir()
    }


def test_a_header_that_was_lost_before_a_restart_is_written_again(
    source: Path, tmp_path: Path, whole: Path, launcher: Launcher
) -> None:
    out = tmp_path / "out"
    last = ("dsctl.run.journal.Journal.append", 5)
    launcher.start("convert", source, out, "--bf16", "--workers", "1", last=last).wait()
    named = next(record["file"] for record in lines(out) if "file" in record)
    damage(out / named, 20)
    restart(out)
    done = call("convert", source, out, "--bf16")
    assert done.returncode == 0 and (out / named).read_bytes() == (whole / named).read_bytes()


def test_a_journal_that_names_a_file_before_its_jobs_is_refused(source: Path, begun: Path) -> None:
    journal = begun / ".dsctl" / "journal.jsonl"
    name = min(path.name for path in begun.glob("*.part")).removesuffix(".part")
    record = {"file": name, "size": (begun / f"{name}.part").stat().st_size}
    (begun / name).write_bytes((begun / f"{name}.part").read_bytes())
    journal.write_text(json.dumps(record) + "\n")
    done = call("convert", source, begun, "--bf16")
    assert done.returncode == 40 and "a line is not valid" in done.stderr


def test_after_a_restart_that_lost_nothing_nothing_is_done_again(source: Path, begun: Path, whole: Path) -> None:
    restart(begun)
    done = call("convert", source, begun, "--bf16")
    assert done.returncode == 0 and "reading back" in done.stderr and "again" not in done.stderr
    assert "resumed: " in done.stderr and signed(begun) == signed(whole)


def test_without_a_restart_nothing_is_read_back(source: Path, begun: Path, whole: Path) -> None:
    done = call("convert", source, begun, "--bf16")
    assert done.returncode == 0 and "reading back" not in done.stderr and signed(begun) == signed(whole)


@pytest.mark.parametrize("digests", ["x", "AAAA", "A" * 43 + "=", 7, ""])
def test_digests_in_a_journal_that_are_none_are_refused(source: Path, begun: Path, digests: Any) -> None:
    records = lines(begun)
    first = next(record for record in records if "job" in record)
    first["digests"] = digests
    (begun / ".dsctl" / "journal.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    done = call("convert", source, begun, "--bf16")
    assert done.returncode == 40 and "a line is not valid" in done.stderr


def test_nothing_is_read_back_when_files_are_finished(source: Path, tmp_path: Path, launcher: Launcher) -> None:
    """No output is opened for reading: what is digested is what is written."""
    opened = tmp_path / "opened"
    script = (
        "import sys\n"
        "def hook(event, args):\n"
        "    if event == 'open' and str(args[0]).startswith(target) and str(args[0]).endswith(('.part', 'tensors')):\n"
        "        if args[2] & 3 == 0: open_log(args[0])\n"
        "target = sys.argv[1]\n"
        "log = open(sys.argv[2], 'a')\n"
        "def open_log(name): log.write(f'{name}\\n'); log.flush()\n"
        "sys.addaudithook(hook)\n"
        "sys.argv = ['dsctl', 'convert', sys.argv[3], sys.argv[1], '--bf16', '--workers', '1', '--quiet']\n"
        "from dsctl.__main__ import main\n"
        "main()\n"
    )
    out = str(tmp_path / "out")
    done = subprocess.run([sys.executable, "-c", script, out, str(opened), str(source)], check=False)
    assert done.returncode == 0 and opened.read_text() == ""
