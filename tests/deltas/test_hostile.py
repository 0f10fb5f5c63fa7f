"""Whatever a delta says is checked: a bad one ends in one line, and nothing is written."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from dsctl.core.frames import compressed
from tests.support import fuzz
from tests.support.command import Done, at_most, call, reports
from tests.support.faults import fault, met
from tests.support.hostile_deltas import CASES, Case, side
from tests.support.little_deltas import SIGNED, Little, contents, little, record, rewritten, signed_again, weights
from tests.support.raw_tensors import INDEX, RawTensor, save, save_folder


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Little:
    return little(tmp_path_factory.mktemp("little"))


def told(done: Done, codes: tuple[int, ...], says: str) -> None:
    assert done.returncode in codes, (done.returncode, done.stderr)
    assert len(reports(done.stderr)) == 1 and "Traceback" not in done.stderr, done.stderr
    assert "internal error" not in done.stderr, done.stderr
    assert says in done.stdout + done.stderr, done.stderr


def untouched(base: Path) -> tuple[dict[str, bytes], dict[str, int]]:
    return contents(base), {path.name: path.lstat().st_ino for path in base.rglob("*")}


def refused(base: Path, delta: Path, codes: tuple[int, ...], says: str, target: Path) -> None:
    """Nothing comes of it: no target, no changed base, and the check finds it."""
    before = untouched(base)
    with at_most(30):
        for last in (target, "--in-place"):
            done = call("delta", "apply", base, delta, last)
            told(done, codes, says)
            assert not done.stdout
            assert not os.path.lexists(target) and untouched(base) == before, (last, done.stderr)
        done = call("delta", "verify", delta, "--base", base)
        told(done, (*codes, 50), "")
    assert untouched(base) == before


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_a_hostile_delta_is_refused(case: Case, good: Little, tmp_path: Path) -> None:
    delta = Path(shutil.copytree(good.deltas[case.kind], tmp_path / "delta"))
    base = Path(shutil.copytree(good.old, tmp_path / "base"))
    case.spoil(delta)
    refused(base, delta, case.codes, case.says, tmp_path / "out")


def frame_of(nbytes: int, said: int, window: int | None = None) -> bytes:
    """A frame of so many zeros (blocks of one repeated byte) that says how many it holds; RFC 8878, 3.1.1."""
    head = struct.pack("<IBBQ", 0xFD2FB528, 0b1100_0000, 0x58 if window is None else window - 10 << 3, said)
    full, rest = divmod(nbytes, 1 << 17)
    sizes = [1 << 17] * full + ([rest] if rest or not full else [])
    blocks = [struct.pack("<I", size << 3 | 1 << 1 | (place == len(sizes) - 1))[:3] for place, size in enumerate(sizes)]
    return head + b"".join(block + b"\0" for block in blocks)


ZEROS = bytes(640)
POSITIONS = struct.pack("<I2I2B", 2, 5, 9, 1, 1)
XOR_FRAMES = {
    "says a terabyte": frame_of(640, 1 << 40),
    "holds more than it says": frame_of(1 << 20, 640),
    "holds 256 MB": frame_of(1 << 28, 1 << 28),
    "holds less than it says": frame_of(600, 640),
    "of another length": compressed(ZEROS[:-1]),
    "does not say its length, and is long": compressed(ZEROS)[:4] + b"\0\x38" + frame_of(1 << 24, 0)[14:],
    "truncated": compressed(os.urandom(640))[:-3],
    "with bytes behind it": compressed(ZEROS) + b"more",
    "with a second frame": compressed(ZEROS) + compressed(ZEROS),
    "with a skippable frame behind it": compressed(ZEROS) + struct.pack("<II", 0x184D2A50, 4) + b"skip",
    "with a window of 256 MB": frame_of(640, 640, window=28),
    "with a dictionary": compressed(ZEROS)[:4] + b"\x01\x38\x07" + compressed(ZEROS)[6:],
    "no frame": b"nonsense",
    "empty": b"",
    "of other bytes": compressed(ZEROS),
}
OVERWRITE_FRAMES = {
    "positions that fall": struct.pack("<I2I2B", 2, 9, 5, 1, 1),
    "a position twice": struct.pack("<I2I2B", 2, 9, 9, 1, 1),
    "a position outside": struct.pack("<I2I2B", 2, 9, 640, 1, 1),
    "a position far outside": struct.pack("<I2I2B", 2, 9, (1 << 32) - 1, 1, 1),
    "more positions than there are": struct.pack("<I2I2B", 3, 5, 9, 1, 1),
    "fewer positions than there are": struct.pack("<I2I2B", 1, 5, 9, 1, 1),
    "as many as a number can say": struct.pack("<I2I2B", (1 << 32) - 1, 5, 9, 1, 1),
    "no number": b"abc",
    "empty": b"",
    "another value": POSITIONS,
}


@pytest.mark.parametrize("kind", ["xor", "theirs"])
@pytest.mark.parametrize("name", XOR_FRAMES)
def test_a_bad_frame_is_refused(name: str, kind: str, good: Little, tmp_path: Path) -> None:
    bad_frame(good, kind, XOR_FRAMES[name], tmp_path)


@pytest.mark.parametrize("name", OVERWRITE_FRAMES)
def test_bad_positions_are_refused(name: str, good: Little, tmp_path: Path) -> None:
    bad_frame(good, "overwrite", compressed(OVERWRITE_FRAMES[name]), tmp_path)


def bad_frame(good: Little, kind: str, frame: bytes, tmp_path: Path) -> None:
    """Even if `dsctl.json` lists the file with it: another folder is never called complete, this one never changed."""
    delta = Path(shutil.copytree(good.deltas[kind], tmp_path / "delta"))
    base, out = Path(shutil.copytree(good.old, tmp_path / "base")), tmp_path / "out"
    file = next(path for path in sorted(delta.glob("*.safetensors")) if b'"a"' in path.read_bytes()).name
    rewritten(delta, file, {"a": frame}, sign=False)
    before = untouched(base)
    with at_most(30):
        if kind != "theirs":
            refused(base, delta, (20,), "", out)
            signed_again(delta, file)
        done = call("delta", "apply", base, delta, "--in-place")
        told(done, (20, 30), "")
        assert untouched(base) == before
        for _ in range(2):
            done = call("delta", "apply", base, delta, out)
            told(done, (20, 30), "")
            assert not (out / SIGNED).exists() and not (out / "x.safetensors").exists()
            assert kind != "theirs" or not out.exists()
        told(call("delta", "verify", delta, "--base", base), (20, 30, 50), "")
    assert untouched(base) == before


def test_a_difference_that_is_called_whole_never_becomes_a_file(good: Little, tmp_path: Path) -> None:
    delta = Path(shutil.copytree(good.deltas["xor"], tmp_path / "delta"))
    base = Path(shutil.copytree(good.old, tmp_path / "base"))
    record(delta, lambda it: it.update(whole=[["x.safetensors", "a"]]))
    before = untouched(base)
    told(call("delta", "apply", base, delta, "--in-place"), (20,), "would not have the digest")
    assert untouched(base) == before
    for _ in range(2):
        told(call("delta", "apply", base, delta, tmp_path / "out"), (20,), "x.safetensors")
        assert not (tmp_path / "out" / SIGNED).exists() and not (tmp_path / "out" / "x.safetensors").exists()


def test_a_result_with_another_digest_for_what_is_not_changed_is_refused(good: Little, tmp_path: Path) -> None:
    from base64 import b64decode, b64encode

    from dsctl.core import digests

    delta = Path(shutil.copytree(good.deltas["xor"], tmp_path / "delta"))
    base = Path(shutil.copytree(good.old, tmp_path / "base"))
    head = (good.new / "x.safetensors").read_bytes()
    head = head[: 8 + int.from_bytes(head[:8], "little")]

    def other(it: Any) -> None:
        parts = list(digests.split(b64decode(it["result"]["x.safetensors"]["tensors"])))
        parts[1] = bytes(32)
        it["result"]["x.safetensors"]["tensors"] = b64encode(b"".join(parts)).decode()
        it["result"]["x.safetensors"]["tree"] = digests.tree(digests.digest(head), parts).hex()

    record(delta, other)
    refused(base, delta, (20,), "b", tmp_path / "out")


def test_an_overwriting_delta_of_a_very_long_tensor_is_refused_by_its_header(good: Little, tmp_path: Path) -> None:
    base, delta = tmp_path / "base", tmp_path / "delta"
    save_folder(base, {"x.safetensors": {"a": RawTensor("U8", (8,), good_bytes())}})
    data = json.dumps({"a": {"dtype": "U8", "shape": [1 << 32], "data_offsets": [0, 1 << 32]}}).encode()
    with (base / "x.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(data)) + data)
        file.truncate(8 + len(data) + (1 << 32))
    shutil.copytree(good.deltas["overwrite"], delta)
    (delta / SIGNED).unlink()
    for path in delta.glob("y*"):
        path.unlink()
    index = json.loads((delta / INDEX).read_text())
    (delta / INDEX).write_text(json.dumps(index | {"weight_map": {"a": "x.safetensors"}}))
    with at_most(20):
        for last in (tmp_path / "out", "--in-place"):
            told(call("delta", "apply", base, delta, last), (20,), "too long for an overwriting delta")
        shutil.copytree(base, tmp_path / "new", copy_function=os.link)
        done = call("delta", "make", base, tmp_path / "new", tmp_path / "out", "--encoding", "overwrite")
        told(done, (30,), "too long for an overwriting delta")
    assert not (tmp_path / "out").exists() and not (base / ".dsctl").exists()


def good_bytes() -> Any:
    import numpy as np

    return np.zeros(8, np.uint8)


def in_place(base: Path, delta: Path) -> Done:
    return call("delta", "apply", base, delta, "--in-place")


def test_links_of_a_base_are_replaced_and_what_they_lead_to_is_not_touched(good: Little, tmp_path: Path) -> None:
    """As in a hub's cache."""
    repository = tmp_path / "models--org--name"
    base, blobs = repository / "snapshots" / "0123", repository / "blobs"
    base.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(good.old.iterdir())):
        shutil.copy(file, blobs / str(number))
        (blobs / str(number)).chmod(0o444)
        (base / file.name).symlink_to(f"../../blobs/{number}")
    before = contents(blobs)
    for kind in ("xor", "own"):
        copy = Path(shutil.copytree(repository, tmp_path / kind / repository.name, symlinks=True))
        place = copy / "snapshots" / "0123"
        assert in_place(place, good.deltas[kind]).returncode == 0
        assert weights(place) == weights(good.result(kind))
        assert contents(place)["config.json"] == contents(good.result(kind))["config.json"]
        assert contents(copy / "blobs") == before
        assert (place / "kept.txt").is_symlink() and not (place / ".dsctl").exists()
        assert (place / "x.safetensors").stat().st_mode & 0o777 == 0o444


def test_no_link_is_written_through(good: Little, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x").write_text("x")
    for name in (".dsctl", "side-files", ".dsctl/delta"):
        base = Path(shutil.copytree(good.old, tmp_path / "base"))
        delta = Path(shutil.copytree(good.deltas["own"], tmp_path / "delta"))
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).symlink_to(outside)
        side("side-files/x")(delta)
        before = contents(base), contents(outside)
        told(in_place(base, delta), (10, 30), "is a link")
        assert (contents(base), contents(outside)) == before
        shutil.rmtree(base)
        shutil.rmtree(delta)
    # What is to be removed is looked for in the base, not behind its links.
    base = Path(shutil.copytree(good.old, tmp_path / "base"))
    delta = Path(shutil.copytree(good.deltas["own"], tmp_path / "delta"))
    (base / "inner").mkdir()
    (base / "inner" / "x").write_text("x")
    (base / "linked").symlink_to("inner")
    record(delta, lambda it: it["removed"].append("linked/x"))
    assert in_place(base, delta).returncode == 0
    assert (base / "inner" / "x").read_text() == "x" and not (base / "old.txt").exists()


def test_pipes_links_and_folders_in_a_delta_are_no_files(good: Little, tmp_path: Path) -> None:
    base = Path(shutil.copytree(good.old, tmp_path / "base"))

    def pipe(path: Path) -> None:
        path.unlink()
        os.mkfifo(path)

    def link(path: Path) -> None:
        shutil.move(path, tmp_path / path.name)
        path.symlink_to(tmp_path / path.name)

    def folder(path: Path) -> None:
        path.unlink()
        path.mkdir()

    for make in (pipe, link, folder):
        for name in (INDEX, SIGNED, "x.safetensors", "side/config.json"):
            delta = Path(shutil.copytree(good.deltas["own"], tmp_path / "delta"))
            make(delta / name)
            refused(base, delta, (10, 20), "", tmp_path / "out")
            shutil.rmtree(delta)


def test_links_and_pipes_in_a_target_are_refused(good: Little, tmp_path: Path) -> None:
    out, outside = tmp_path / "out", tmp_path / "outside"
    for make in (lambda path: path.symlink_to(outside), os.mkfifo, lambda path: path.mkdir()):
        for name in ("x.safetensors", SIGNED, ".dsctl", "side"):
            for line in (("apply", good.old, good.deltas["own"]), ("make", good.old, good.other)):
                out.mkdir()
                make(out / name)
                with at_most(20):
                    done = call("delta", *line, out)
                if done.returncode or (out / name).is_symlink():
                    told(done, (30, 40), "")
                    assert os.listdir(out) == [name]
                shutil.rmtree(out)
                assert not outside.exists()
    out.symlink_to(outside)
    told(call("delta", "apply", good.old, good.deltas["xor"], out), (30,), "is a link")


def test_a_base_of_read_only_files_can_be_patched(good: Little, tmp_path: Path) -> None:
    base = Path(shutil.copytree(good.old, tmp_path / "base"))
    for path in base.iterdir():
        path.chmod(0o400)
    assert in_place(base, good.deltas["xor"]).returncode == 0
    assert weights(base) == weights(good.new) and (base / "x.safetensors").stat().st_mode & 0o777 == 0o400


@pytest.mark.parametrize(
    ("name", "why"),
    [("side/w.safetensors", "the folder side"), ("x" * 260 + ".safetensors", ""), (".Cache/w.safetensors", ".Cache")],
)
def test_names_that_a_delta_cannot_have_are_refused_when_it_is_made(
    name: str, why: str, good: Little, tmp_path: Path
) -> None:
    new = Path(shutil.copytree(good.new, tmp_path / "new"))
    if len(name) > 255:
        name = name[20:]
    (new / name).parent.mkdir(exist_ok=True)
    save(new / name, {"n": RawTensor("U8", (8,), good_bytes())})
    told(call("delta", "make", good.old, new, tmp_path / "out"), (30,), why)
    assert not (tmp_path / "out").exists()


CHANCES = 120


def spoiled(delta: Path, chance: random.Random) -> str:
    """Change one file of a delta at random, most often what it says of itself."""
    files = [path for path in sorted(delta.rglob("*")) if path.is_file() and path.name != "dsctl.intoto.json"]
    told_ = [path for path in files if path.name in (SIGNED, INDEX)]
    path = chance.choice(told_ * 4 + files)
    data, how = path.read_bytes(), chance.random()
    if path in told_ and how < 0.7:
        value = json.loads(data)
        inner = value.get("delta") if chance.random() < 0.7 else None
        changed, what = fuzz._json(json.dumps(inner or value).encode(), chance)
        try:
            data = json.dumps(value | {"delta": json.loads(changed)}).encode() if inner else changed
        except (ValueError, RecursionError):
            data = changed
    elif path.suffix == ".safetensors" and how < 0.5:
        end = 8 + int.from_bytes(data[:8], "little")
        head, what = fuzz._json(data[8:end], chance)
        data = len(head).to_bytes(8, "little") + head + data[end:]
    else:
        at = chance.randrange(len(data) or 1)
        cut = chance.choice((0, 1, 1, 4))
        data, what = data[:at] + chance.randbytes(chance.choice((0, 1, 1, 3))) + data[at + cut :], f"bytes at {at}"
    path.write_bytes(data)
    if path not in told_ and chance.random() < 0.5:
        try:
            signed_again(delta, str(path.relative_to(delta)))
        except Exception:  # noqa: BLE001  what cannot be listed stays as it was
            what += " (not listed)"
    return f"{path.relative_to(delta)}: {what}"


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_changed_in_a_delta_gives_new_or_one_line(seed: int, good: Little, tmp_path: Path) -> None:
    for number in range(CHANCES // 4):
        fuzzed(seed, number, good, tmp_path)


def fuzzed(seed: int, number: int, good: Little, tmp_path: Path) -> None:
    chance = random.Random(f"{seed}:{number}")
    kind = chance.choice(("own", "own", "xor", "overwrite", "theirs"))
    folder = tmp_path / str(number)
    delta, out = Path(shutil.copytree(good.deltas[kind], folder / "delta")), folder / "out"
    base = Path(shutil.copytree(good.old, folder / "base"))
    what = f"{seed}:{number} {kind}: {spoiled(delta, chance)}"
    before, expected = untouched(base), weights(good.result(kind))
    with at_most(30):
        for line in (
            ("apply", base, delta, out), ("verify", delta, "--base", base), ("verify", delta),
            ("fold", delta, good.deltas["next"], folder / "folded"),
            ("apply", base, folder / "folded", folder / "both"), ("apply", base, delta, "--in-place"),
        ):  # fmt: skip
            done = call("delta", *line)
            problem = fuzz.wrong(done, tuple(map(str, line)))
            assert not problem, f"{what}: {line[0]}: {problem}: {done.stderr}"
            if line[0] == "apply" and not done.returncode:
                got = base if line[3] == "--in-place" else line[3]
                wanted = weights(good.third) if line[3] == folder / "both" else expected
                assert weights(got) == wanted, f"{what}: {line[3]}"
            elif line[0] == "apply":
                assert not (out / SIGNED).exists() or line[3] != out, what
                assert untouched(base) == before, f"{what}: {done.stderr}"
    shutil.rmtree(folder)


def test_a_mark_of_a_run_in_place_that_is_none_is_told(good: Little, tmp_path: Path) -> None:
    marks = (b"", b"[]", b"{}", b"null", b"[" * 100_000, b'{"delta": 1}', b'{"delta": "x"}', b"\xff", "folder", "pipe")
    for number, mark in enumerate(marks):
        base = Path(shutil.copytree(good.old, tmp_path / str(number)))
        path = base / ".dsctl" / "delta.json"
        path.parent.mkdir()
        if isinstance(mark, bytes):
            path.write_bytes(mark)
        elif mark == "pipe":
            os.mkfifo(path)
        else:
            path.mkdir()
        with at_most(20):
            told(in_place(base, good.deltas["xor"]), (30, 40), "")
            told(call("delta", "apply", base, good.deltas["xor"], tmp_path / "out"), (20,), "in place")
        assert weights(base) == weights(good.old) and (base / "config.json").exists()


@pytest.mark.parametrize("verb", ["make", "fold", "apply"])
def test_whatever_is_changed_in_what_a_killed_run_left_one_line_is_said(
    verb: str, good: Little, tmp_path: Path
) -> None:
    left = tmp_path / "left"
    line = {
        "make": ["make", good.old, good.new, left, "--anyway"],
        "fold": ["fold", good.deltas["xor"], good.deltas["next"], left],
        "apply": ["apply", good.old, good.deltas["xor"], left],
    }[verb]
    with met(fault("EIO", "fsync", INDEX)):
        told(call("delta", *line), (41,), INDEX)
    for number in range(20):
        chance = random.Random(f"{verb}:{number}")
        line[3] = folder = Path(shutil.copytree(left, tmp_path / str(number)))
        path = folder / ".dsctl" / chance.choice(("journal.jsonl", "journal.jsonl", "request.json"))
        change = fuzz._lines if path.suffix == ".jsonl" else fuzz._json
        data, what = change(path.read_bytes(), chance)
        path.write_bytes(data)
        with at_most(30):
            done = call("delta", *line)
        problem = fuzz.wrong(done, tuple(map(str, line)))
        assert not problem, f"{number} {path.name} {what}: {problem}: {done.stderr}"
        shutil.rmtree(folder)
