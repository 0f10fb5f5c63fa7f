"""Files that the index names and that are not there: with what was in them, and what follows from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.faults import single_faults
from dsctl.checkpoint.lost_files import lost, of_files, with_tensors
from dsctl.checkpoint.pieces import Fault
from tests.support.headers import BLOCKS, FP8_CONFIG, Files, files_of, fp8, opened, write


def _without(folder: Path, number: int, files: Files | None = None) -> tuple[Checkpoint, str, Files]:
    """A checkpoint of which one file is gone, its name, and the tensors of every file."""
    found = files or files_of(FP8_CONFIG, BLOCKS, 3)
    write(folder, FP8_CONFIG, found)
    name = sorted(found)[number]
    (folder / name).unlink()
    return opened(folder), name, found


def test_no_file_is_lost(tmp_path: Path) -> None:
    checkpoint = fp8(tmp_path)
    faults = [Fault("missing-tensor", "w", "missing")]
    assert lost(checkpoint) == {} and of_files(checkpoint, faults) == ([], faults)


def test_no_file_is_lost_without_an_index(tmp_path: Path) -> None:
    assert lost(replace(fp8(tmp_path), index=None)) == {}


def test_a_lost_file_has_the_tensors_that_the_index_places_in_it(tmp_path: Path) -> None:
    checkpoint, name, files = _without(tmp_path, 1)
    assert lost(checkpoint) == {name: tuple(files[name])}


def test_what_follows_from_a_lost_file_is_summed_up(tmp_path: Path) -> None:
    checkpoint, name, files = _without(tmp_path, 1)
    found, rest = of_files(checkpoint, list(single_faults(checkpoint)))
    count = sum(map(len, files.values()))
    assert rest == [] and [fault.code for fault in found] == ["missing-shard"]
    assert found[0].what == f"missing, but the index names it; it holds {len(files[name])} of {count} tensors"
    assert set(found[0].details) == set(files[name])


def test_scales_in_a_lost_file_are_why_codes_have_none(tmp_path: Path) -> None:
    files = files_of(FP8_CONFIG, BLOCKS)
    last = "scales.safetensors"
    scales = {name: spec for specs in files.values() for name, spec in specs.items() if name.endswith("_scale_inv")}
    files = {file: {n: s for n, s in specs.items() if n not in scales} for file, specs in files.items()}
    checkpoint, name, _ = _without(tmp_path, 2, files | {last: scales})
    assert name == last and {fault.code for fault in checkpoint.survey.faults} == {"missing-scale"}
    found, rest = of_files(checkpoint, list(single_faults(checkpoint)))
    assert rest == [] and [fault.where for fault in found] == [last]


def test_what_is_missing_besides_is_told_besides(tmp_path: Path) -> None:
    files = files_of(FP8_CONFIG, BLOCKS, 3)
    first = min(files)
    del files[first]["model.embed_tokens.weight"]
    checkpoint, _, _ = _without(tmp_path, 2, files)
    _, rest = of_files(checkpoint, list(single_faults(checkpoint)))
    assert [fault.where for fault in rest] == ["model.embed_tokens.weight"]


def test_a_file_is_found_to_be_lost_by_its_tensors_alone(tmp_path: Path) -> None:
    """`verify` may not have told of it, as where the file's header cannot be read."""
    checkpoint, name, files = _without(tmp_path, 0)
    found, rest = of_files(checkpoint, [Fault("missing-tensor", "model.embed_tokens.weight", "missing")])
    assert [fault.where for fault in found] == [name] and rest == []
    assert found[0].details == tuple(files[name])


def test_words_for_a_lost_file(tmp_path: Path) -> None:
    checkpoint, _, files = _without(tmp_path, 0)
    count = sum(map(len, files.values()))
    assert with_tensors(checkpoint, "is broken", ["a", "b"]) == f"is broken; it holds 2 of {count} tensors"
