"""Every rank's config.json must be that of the whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dsctl.checkpoint.ranks import check_repeated
from dsctl.core.errors import FormatError
from dsctl.plan.planner import make_plan
from dsctl.plan.request import Request
from tests.support.headers import FP8_CONFIG, fp8, lay_out, opened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The small checkpoint over two ranks."""
    return lay_out(make_plan(fp8(tmp_path / "src"), Request("keep", tp=2)), tmp_path / "ranks")


def _edit(folder: Path, rank: int, config: dict[str, Any]) -> None:
    (folder / f"rank-{rank:05d}" / "config.json").write_text(json.dumps(config))


def test_ranks_of_one_model(folder: Path) -> None:
    check_repeated(opened(folder))


def test_a_whole_checkpoint_repeats_nothing(tmp_path: Path) -> None:
    check_repeated(fp8(tmp_path))


def test_the_order_of_fields_is_no_difference(folder: Path) -> None:
    _edit(folder, 1, dict(reversed(FP8_CONFIG.items())))
    check_repeated(opened(folder))


def test_a_rank_without_a_config_is_no_contradiction(folder: Path) -> None:
    (folder / "rank-00001" / "config.json").unlink()
    check_repeated(opened(folder))


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({"vocab_size": 7}, "vocab_size"),
        ({"more": None}, "more"),
        ({"vocab_size": 7, "index_topk": None}, "vocab_size, index_topk"),
    ],
)
def test_a_rank_of_another_config(folder: Path, change: dict[str, Any], fields: str) -> None:
    _edit(folder, 1, FP8_CONFIG | change)
    with pytest.raises(FormatError) as found:
        check_repeated(opened(folder))
    assert found.value.message == f"{folder}: config.json and rank-00001/config.json differ in {fields}"
    assert found.value.exit_code == 20 and found.value.hint is not None


def test_a_field_that_one_of_them_lacks(folder: Path) -> None:
    _edit(folder, 0, {name: value for name, value in FP8_CONFIG.items() if name != "index_topk"})
    with pytest.raises(FormatError, match=r"differ in index_topk$"):
        check_repeated(opened(folder))


def test_all_ranks_of_another_config_are_named(folder: Path) -> None:
    for rank in (0, 1):
        _edit(folder, rank, FP8_CONFIG | {"vocab_size": rank})
    with pytest.raises(FormatError, match="2 ranks have a different config") as found:
        check_repeated(opened(folder))
    assert len(found.value.issues) == 2


def test_ranks_without_a_whole_config_have_nothing_to_repeat(folder: Path) -> None:
    _edit(folder, 1, {"vocab_size": 7})
    check_repeated(replace(opened(folder), config=None))
