"""`dsctl delta` on the command line: what one side and the delta make is the other side, byte for byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dsctl.checkpoint.delta_form import CHECKSUMS, ENCODINGS
from tests.deltas.conftest import States
from tests.support import changed, shared_deltas
from tests.support.command import call, dsctl
from tests.support.raw_tensors import INDEX, RawTensor, bytes_of, places_of, save, save_folder
from tests.support.shared_deltas import Version

OWN = {"dsctl.json", "dsctl.intoto.json"}


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, without dsctl's audit."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if name not in OWN}


def made(old: Path, new: Path, target: Path, *options: object) -> dict[str, Any]:
    return json.loads(dsctl("delta", "make", old, new, target, "--json", *options))


def copied(folder: Path, place: Path) -> Path:
    return Path(shutil.copytree(folder, place))


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("kind", CHECKSUMS)
def test_the_result_is_the_new_folder(states: States, tmp_path: Path, encoding: str, kind: str) -> None:
    said = made(states.first, states.second, tmp_path / "delta", "--encoding", encoding, "--checksum", kind)
    assert said["audit"]["tensors_equal"] >= len(states.equal) and said["removed_files"] == []
    assert {*said["other_files"]} == {"config.json", "generation_config.json", "chat_template.jinja"}
    dsctl("delta", "apply", states.first, tmp_path / "delta", tmp_path / "got")
    assert files(tmp_path / "got") == files(states.second)
    dsctl("delta", "verify", tmp_path / "delta", "--base", states.first)
    place = copied(states.first, tmp_path / "place")
    dsctl("delta", "apply", place, tmp_path / "delta", "--in-place")
    assert files(place) == files(states.second) and not (place / ".dsctl").exists()


@pytest.mark.parametrize("encoding", ["xor", "overwrite"])
def test_deltas_of_others_are_verified_by_their_results(states: States, tmp_path: Path, encoding: str) -> None:
    other = shared_deltas.write(states.first, states.second, tmp_path / "other", encoding=encoding, files=2)
    said = dsctl("delta", "verify", other, "--base", states.first)
    assert "no dsctl.json: the delta's own files have no digests" in said and "nothing wrong in these" in said


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_fold_has_the_effect_of_its_deltas(states: States, tmp_path: Path, encoding: str) -> None:
    made(states.first, states.second, tmp_path / "d1", "--encoding", encoding)
    made(states.second, states.third, tmp_path / "d2", "--encoding", encoding, "--version", 2)
    dsctl("delta", "fold", tmp_path / "d1", tmp_path / "d2", tmp_path / "both")
    said = json.loads((tmp_path / "both" / INDEX).read_text())["metadata"]
    assert (said["version"], said["base_version"]) == ("000002", "000000")
    dsctl("delta", "verify", tmp_path / "both", "--base", states.first)
    dsctl("delta", "apply", states.first, tmp_path / "both", tmp_path / "got")
    assert files(tmp_path / "got") == files(states.third)
    if encoding != "shuffled":
        shared_deltas.check(tmp_path / "both")


def test_deltas_of_others_fold_too(states: States, tmp_path: Path) -> None:
    shared_deltas.write(states.first, states.second, tmp_path / "d1", files=2)
    shared_deltas.write(states.second, states.third, tmp_path / "d2", files=3, version=Version(2, 1))
    done = call("delta", "fold", tmp_path / "d1", tmp_path / "d2", tmp_path / "both")
    assert done.returncode == 0 and "has no digests of its base" in done.stderr
    shared_deltas.check(tmp_path / "both")
    dsctl("delta", "apply", states.first, tmp_path / "both", tmp_path / "got")
    assert bytes_of(tmp_path / "got") == bytes_of(states.third)


def test_what_changes_back_drops_out(states: States, tmp_path: Path) -> None:
    made(states.first, states.second, tmp_path / "there")
    made(states.second, states.first, tmp_path / "back", "--version", 2)
    dsctl("delta", "fold", tmp_path / "there", tmp_path / "back", tmp_path / "none")
    assert json.loads((tmp_path / "none" / INDEX).read_text())["weight_map"] == {}
    assert not list((tmp_path / "none").glob("*.safetensors"))
    dsctl("delta", "apply", states.first, tmp_path / "none", tmp_path / "got")
    assert files(tmp_path / "got") == files(states.first)


def test_deltas_that_do_not_follow_each_other_do_not_fold(states: States, tmp_path: Path) -> None:
    made(states.first, states.second, tmp_path / "d1")
    made(states.second, states.third, tmp_path / "d2", "--version", 2)
    made(states.first, states.third, tmp_path / "d3", "--version", 2)
    made(states.second, states.third, tmp_path / "d4", "--version", 2, "--encoding", "overwrite")
    for chain, why in (
        (("d2", "d1"), "it is for version 000000, that one leads to 000002"),
        (("d1", "d3"), "is not the same between them"),
        (("d1", "d4"), "different encodings: overwrite, xor"),
        (("d1",), "needs at least two deltas"),
    ):
        done = call("delta", "fold", *(tmp_path / name for name in chain), tmp_path / "out")
        assert done.returncode in (2, 30) and why in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


def test_another_base_is_refused_before_anything_is_written(states: States, tmp_path: Path) -> None:
    made(states.first, states.second, tmp_path / "ours")
    theirs = shared_deltas.write(states.first, states.second, tmp_path / "theirs")
    touched = copied(states.first, tmp_path / "touched")
    name, place = next((name, place) for name, place in places_of(touched).items() if "norm" in name)
    data = place.read().copy()
    data[-1] ^= 1
    place.write(data)
    for base, delta, why in (
        (states.third, tmp_path / "ours", "is not the base of the delta"),
        # One bit of a tensor that the delta does not change.
        (touched, tmp_path / "ours", name),
        (states.third, theirs, "does not become the delta's result"),
    ):
        done = call("delta", "apply", base, delta, tmp_path / "got")
        assert done.returncode == 30 and why in done.stderr and "nothing was written" in done.stderr, done.stderr
        assert not (tmp_path / "got").exists()
        before = files(base)
        place_ = copied(base, tmp_path / "place")
        done = call("delta", "apply", place_, delta, "--in-place")
        assert done.returncode == 30 and files(place_) == before and not (place_ / ".dsctl").exists(), done.stderr
        shutil.rmtree(place_)


def test_in_place_again_changes_nothing(states: States, tmp_path: Path) -> None:
    made(states.first, states.second, tmp_path / "delta")
    place = copied(states.first, tmp_path / "place")
    dsctl("delta", "apply", place, tmp_path / "delta", "--in-place")
    before = {path: path.stat().st_ino for path in place.glob("*.safetensors")}
    done = call("delta", "apply", place, tmp_path / "delta", "--in-place")
    assert done.returncode == 0 and "has the delta's result already" in done.stderr
    assert {path: path.stat().st_ino for path in place.glob("*.safetensors")} == before
    dsctl("delta", "verify", tmp_path / "delta", "--base", states.first)


def test_new_removed_and_reshaped_tensors_are_told_and_kept(states: States, tmp_path: Path) -> None:
    new = copied(states.second, tmp_path / "new")
    extra = {"added.weight": RawTensor("F32", (2, 3), changed.odd_tensors()["odd.bytes"].data.repeat(2)[:24])}
    changed.added(new, extra, "extra.safetensors")
    file = new / "part-0.safetensors"
    held = {
        name: RawTensor(place.dtype, place.shape, place.read())
        for name, place in places_of(new).items()
        if place.file == file
    }
    gone = next(name for name in held if "mlp" in name)
    del held[gone]
    name = next(name for name, one in held.items() if one.dtype == "BF16" and len(one.shape) == 2)
    tensor = held[name]
    held[name] = RawTensor(tensor.dtype, (tensor.shape[0] - 1, tensor.shape[1]), tensor.data[: -2 * tensor.shape[1]])
    save(file, held)
    done = call("delta", "make", states.first, new, tmp_path / "delta")
    assert done.returncode == 0 and "only dsctl can apply this delta" in done.stderr
    assert "added.weight is new" in done.stderr and f"{gone} is removed" in done.stderr and name in done.stderr
    assert json.loads((tmp_path / "delta" / INDEX).read_text())["metadata"]["delta_encoding"] == "dsctl-xor"
    dsctl("delta", "apply", states.first, tmp_path / "delta", tmp_path / "got")
    assert files(tmp_path / "got") == files(new)
    place = copied(states.first, tmp_path / "place")
    dsctl("delta", "apply", place, tmp_path / "delta", "--in-place")
    assert files(place) == files(new)
    with pytest.raises(AssertionError):
        shared_deltas.check(tmp_path / "delta")


def test_another_layout_of_files_is_told_and_kept(states: States, tmp_path: Path) -> None:
    new = changed.rearranged(copied(states.second, tmp_path / "new"), count=2, seed=5)
    made(states.first, new, tmp_path / "delta")
    dsctl("delta", "apply", states.first, tmp_path / "delta", tmp_path / "got")
    assert files(tmp_path / "got") == files(new)
    # Other readers patch tensors where they lie.
    shared_deltas.check(tmp_path / "delta")
    got = copied(states.first, tmp_path / "theirs")
    shared_deltas.apply_in_place(got, tmp_path / "delta")
    assert bytes_of(got) == bytes_of(new)
    place = copied(states.first, tmp_path / "place")
    done = call("delta", "apply", place, tmp_path / "delta", "--in-place")
    assert done.returncode == 30 and "cannot be replaced one after another" in done.stderr
    assert files(place) == files(states.first)


def test_ranks_hold_names_twice(tmp_path: Path) -> None:
    random = changed.odd_tensors(3)["odd.bytes"].data
    old = save_folder(
        tmp_path / "old", {f"model{n}-mp2.safetensors": {"w": RawTensor("U8", (13,), random + n)} for n in (0, 1)}
    )
    new = save_folder(
        tmp_path / "new", {f"model{n}-mp2.safetensors": {"w": RawTensor("U8", (13,), random ^ n)} for n in (0, 1)}
    )
    said = made(old, new, tmp_path / "delta", "--anyway")
    assert any("hold w" in why for why in said["only_dsctl"])
    dsctl("delta", "apply", old, tmp_path / "delta", tmp_path / "got")
    assert files(tmp_path / "got") == files(new)


def test_a_delta_that_saves_nothing_is_said_and_not_made(states: States, tmp_path: Path) -> None:
    other = changed.make(states.first, tmp_path / "other", lambda place, data, random: random.permutation(data))
    done = call("delta", "make", states.first, other, tmp_path / "delta")
    assert done.returncode == 30 and "saves nothing" in done.stderr and "none was made" in done.stderr
    assert not (tmp_path / "delta").exists()
    made(states.first, other, tmp_path / "delta", "--anyway")
    dsctl("delta", "apply", states.first, tmp_path / "delta", tmp_path / "got")
    assert bytes_of(tmp_path / "got") == bytes_of(other)


def test_equal_tensors_are_named_once_and_take_nothing(states: States, tmp_path: Path) -> None:
    said = made(states.first, copied(states.first, tmp_path / "same"), tmp_path / "delta")
    assert said["audit"]["tensors_changed"] == 0 == said["audit"]["bytes_frames"]
    assert sorted(path.name for path in (tmp_path / "delta").iterdir()) == ["dsctl.intoto.json", "dsctl.json", INDEX]
    text = (tmp_path / "delta" / "dsctl.json").read_text()
    assert all(text.count(f'"{name}"') == 1 for name in places_of(states.first))


def test_the_figures_by_tensor_add_up(states: States, tmp_path: Path) -> None:
    said = made(states.first, states.second, tmp_path / "delta")
    assert sum(one["stored"] for one in said["changed"]) == said["audit"]["bytes_frames"]
    assert round(sum(one["limit"] for one in said["changed"])) == pytest.approx(said["audit"]["bytes_limit"], abs=20)
    assert len(said["changed"]) == said["audit"]["tensors_changed"]
    text = dsctl("delta", "make", states.first, states.second, tmp_path / "again", "--all")
    assert all(one["name"] in text for one in said["changed"]) and "order-0 entropy" in text
    found = dsctl("delta", "make", states.first, states.second, tmp_path / "again")
    assert f"{said['audit']['tensors_changed']:,} of " in found


def test_the_output_does_not_depend_on_threads(states: States, tmp_path: Path) -> None:
    for workers in (1, 3):
        made(states.first, states.second, tmp_path / str(workers), "--workers", workers)
        dsctl("delta", "apply", states.first, tmp_path / "1", tmp_path / f"got{workers}", "--workers", workers)
    assert files(tmp_path / "1") == files(tmp_path / "3") and files(tmp_path / "got1") == files(tmp_path / "got3")


def test_what_is_only_looked_at_writes_nothing(states: States, tmp_path: Path) -> None:
    said = made(states.first, states.second, tmp_path / "none", "--dry-run")
    delta = tmp_path / "delta"
    found = made(states.first, states.second, delta)
    sizes = {path.name: path.stat().st_size for path in delta.glob("*.safetensors")}
    assert all(sizes[name] <= said["files"][name] for name in sizes)
    assert sum(sizes.values()) <= said["bytes_most"] == found["bytes_most"]
    for line in (
        ("apply", states.first, delta, tmp_path / "none"),
        ("apply", states.first, delta, "--in-place"),
        ("fold", delta, delta, tmp_path / "none"),
    ):
        done = call("delta", *line, "--dry-run")
        assert (done.returncode == 0) == (line[0] == "apply"), done.stderr
    assert not (tmp_path / "none").exists() and not (states.first / ".dsctl").exists()


@pytest.mark.parametrize(
    ("line", "code", "why"),
    [
        (("make", "OLD", "nowhere", "out"), 10, "no such file or folder"),
        (("make", "OLD", "NEW", "OLD"), 30, "source and target must be separate"),
        (("make", "OLD", "NEW", "OLD/inner"), 30, "source and target must be separate"),
        (("make", "OLD", "NEW", "out", "--encoding", "xr"), 2, "did you mean xor?"),
        (("make", "OLD", "NEW", "out", "--checksum", "md5"), 2, "--checksum"),
        (("make", "OLD", "NEW", "out", "--level", "0"), 2, "is not a level of zstd"),
        (("make", "OLD", "NEW", "out", "--level", "20"), 2, "is not a level of zstd"),
        (("make", "OLD", "NEW", "out", "--version", "0"), 2, "--version: 0"),
        (("make", "OLD", "NEW", "out", "--version", "3", "--base-version", "3"), 2, "--base-version: 3"),
        (("make", "DELTA", "NEW", "out"), 20, "is a delta, not a checkpoint"),
        (("apply", "OLD", "NEW", "out"), 20, "of a checkpoint, not of a delta"),
        (("apply", "OLD", "DELTA"), 2, "no DST"),
        (("apply", "OLD", "DELTA", "out", "--in-place"), 2, "exclude each other"),
        (("apply", "OLD", "DELTA", "OLD"), 30, "source and target must be separate"),
        (("apply", "OLD", "DELTA", "DELTA/inner"), 30, "source and target must be separate"),
        (("verify", "OLD"), 20, "of a checkpoint, not of a delta"),
        (("verify", "DELTA", "--base", "THIRD"), 50, "1 problem"),
        (("verify", "DELTA", "--dry-run"), 2, "writes nothing"),
        (("unmake",), 2, "unknown command 'unmake'"),
        ((), 2, "missing command"),
    ],
)  # fmt: skip
def test_bad_input_gives_one_line(states: States, tmp_path: Path, line: tuple[str, ...], code: int, why: str) -> None:
    if "DELTA" in " ".join(line):
        made(states.first, states.second, tmp_path / "delta")
    names = {"OLD": states.first, "NEW": states.second, "THIRD": states.third, "DELTA": tmp_path / "delta"}
    names["out"] = tmp_path / "out"
    words = [
        str(names.get(word.partition("/")[0], word.partition("/")[0])) + word[len(word.partition("/")[0]) :]
        for word in line
    ]
    done = call("delta", *words)
    assert done.returncode == code and why in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()
    assert not (states.first / "inner").exists()


def test_single_files_beside_each_other(tmp_path: Path) -> None:
    data = changed.odd_tensors(4)["odd.bytes"].data
    old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    save(old, {"a": RawTensor("U8", (13,), data), "b": RawTensor("U8", (13,), data)})
    save(new, {"a": RawTensor("U8", (13,), data), "b": RawTensor("U8", (13,), data ^ 1)})
    made(old, new, tmp_path / "delta", "--anyway")
    dsctl("delta", "apply", old, tmp_path / "delta", tmp_path / "got")
    assert (tmp_path / "got" / "new.safetensors").read_bytes() == new.read_bytes()
    for target in (old, tmp_path):
        done = call("delta", "make", old, new, target)
        assert done.returncode == 30 and "source and target must be separate" in done.stderr


def test_the_card_of_a_delta_says_what_it_is(states: States, tmp_path: Path) -> None:
    made(states.first, states.second, tmp_path / "delta", "--version", 7)
    text = dsctl("card", tmp_path / "delta")
    assert "| delta | from version 000006 to 000007 |" in text and "dsctl delta apply BASE . DST" in text
    assert "dsctl verify . --deep" not in text
