"""The target of a request: what side files tell, and what is refused before anything is chosen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsctl.checkpoint.checkpoint import ORIGINAL, Checkpoint
from dsctl.checkpoint.side_files import WHOLE
from dsctl.core.errors import DsctlError, FormatError, PlanError, UsageError
from dsctl.core.params import Unit
from dsctl.plan.planner import make_plan
from dsctl.plan.request import Request
from dsctl.plan.target import target_of
from dsctl.stores import SIGNED
from tests.support.headers import BLOCKS, bf16, lay_out, opened

READ_AS = "loaders read the indexer in FP8 blocks or unquantized"


@pytest.fixture
def ranks(source: Checkpoint, tmp_path: Path) -> Checkpoint:
    return opened(lay_out(make_plan(source, Request("keep", tp=2)), tmp_path / "ranks"))


def test_a_target_of_what_has_no_side_files(source: Checkpoint) -> None:
    target = target_of(source, Request("bf16"))
    assert (target.original, target.whole, target.restores, target.kept, target.notes) == (None, None, False, (), ())
    assert target.subject.units == (Unit(4, "heads"),) and target.subject.families == source.families


@pytest.mark.parametrize("to", ["fp8-block", "published"])
def test_what_was_decoded_comes_back(decoded: Checkpoint, to: str) -> None:
    target = target_of(decoded, Request(to))
    assert target.original is not None and target.restores and target.kept[0] == target.original
    assert [one.config for one in target.kept] == [target.original.config, decoded.config]
    assert target.formats.kept == BLOCKS
    assert target.notes == ("scales: ue8m0; original scales are reused if they still fit",)


def _spoil(checkpoint: Checkpoint) -> Checkpoint:
    """The same with a side file whose header is whole and whose kept config.json is not JSON."""
    assert checkpoint.original is not None
    path = Path(checkpoint.store.place) / ORIGINAL
    with path.open("r+b") as file:
        file.seek(checkpoint.original.tensors["config.json"].begin)
        file.write(b"?")
    return opened(path.parent)


@pytest.mark.parametrize("to", ["keep", "f32", "int8-channel", "nvfp4", "fp8-block-ct"])
def test_no_other_format_looks_into_the_side_file(decoded: Checkpoint, to: str) -> None:
    assert target_of(_spoil(decoded), Request(to)).original is None


@pytest.mark.parametrize("to", ["fp8-block", "published"])
def test_a_side_file_that_contradicts_itself_refuses_the_way_back(decoded: Checkpoint, to: str) -> None:
    with pytest.raises(FormatError, match=f"^{ORIGINAL}: kept JSON is not valid"):
        target_of(_spoil(decoded), Request(to))


def test_a_recipe_that_asks_for_blocks_looks_into_it_without_restoring_all(decoded: Checkpoint) -> None:
    target = target_of(decoded, Request("recipe", rules=(("dense mlp", "", "fp8-block"),)))
    assert target.original is not None and not target.restores and target.formats.kept == BLOCKS


def test_parts_are_put_together_to_what_the_whole_was(ranks: Checkpoint, source: Checkpoint) -> None:
    target = target_of(ranks, Request("keep"))
    assert target.whole is not None and target.whole.files == source.index
    assert target.kept == (target.whole,)


def test_a_whole_checkpoint_is_not_made_of_parts(source: Checkpoint) -> None:
    (Path(source.store.place) / WHOLE).write_bytes(b"somebody left it there")
    assert target_of(opened(Path(source.store.place)), Request("keep")).whole is None


def test_a_side_file_that_was_altered_is_told(decoded: Checkpoint) -> None:
    folder = Path(decoded.store.place)
    (folder / SIGNED).write_text(json.dumps({"files": {ORIGINAL: {"sha256": "0"}}}))
    notes = target_of(opened(folder), Request("fp8-block")).notes
    assert notes[0].startswith(f"{ORIGINAL}: was altered since it was written: {SIGNED} has a different digest; ")


@pytest.mark.parametrize("to", ["keep", "fp8-block"])
def test_a_side_file_without_a_header_is_refused_whatever_is_asked_for(decoded: Checkpoint, to: str) -> None:
    (Path(decoded.store.place) / ORIGINAL).write_bytes(b"broken")
    with pytest.raises(FormatError, match=ORIGINAL):
        target_of(opened(Path(decoded.store.place)), Request(to))


@pytest.mark.parametrize("to", ["fp9", "", "BF16", "hf"])
def test_an_unknown_format_is_refused_with_those_known(source: Checkpoint, to: str) -> None:
    with pytest.raises(UsageError, match=f"^--to: unknown format '{to}'") as found:
        target_of(source, Request(to))
    assert found.value.hint is not None and found.value.hint.endswith(", published")


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (("", "nothing.*", "bf16"), "recipe: match 'nothing.*' -> bf16: no parameter matches"),
        (("norm", "", "fp8-block"), "recipe: role 'norm' -> fp8-block: model.norm.weight is never quantized"),
        (
            ("indexer", "", "nvfp4"),
            "recipe: role 'indexer' -> nvfp4: loaders read the indexer in FP8 blocks or unquantized",
        ),
    ],
)
def test_a_rule_that_no_parameter_can_follow(source: Checkpoint, rule: tuple[str, str, str], words: str) -> None:
    with pytest.raises(PlanError) as found:
        target_of(source, Request("recipe", rules=(rule,)))
    assert found.value.message == words


def test_notes_of_a_recipe_come_before_those_of_formats(tmp_path: Path) -> None:
    rules = (("", "*indexer*", "fp8-block"), ("dense mlp", "", "fp8-block"))
    notes = target_of(bf16(tmp_path), Request("recipe", rules=rules)).notes
    assert notes[-1].startswith("scales: ") and len(notes) == 1


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request("bf16", search=True), "does nothing for bf16"),
        (Request("fp8-block", layout="x"), "unknown layout"),
        (Request("fp8-block", tp=2, ep=3), "one must be a multiple of the other"),
        (Request("fp9"), "unknown format"),
    ],
)
def test_what_makes_no_sense_is_refused_before_a_side_file_is_read(
    decoded: Checkpoint, request_: Request, words: str
) -> None:
    (Path(decoded.store.place) / ORIGINAL).write_bytes(b"broken")
    with pytest.raises(DsctlError, match=words):
        target_of(opened(Path(decoded.store.place)), request_)
