"""`dsctl plan` and tables of which a token looks up single rows: in host memory, or with every rank's share."""

from __future__ import annotations

import json
from typing import Any

import pytest

import dsctl as library
from dsctl.core.errors import UsageError, VerifyFailed
from dsctl.layouts.ranks import Ranks
from dsctl.look.accelerators import ACCELERATORS
from dsctl.look.capacity import Cache, load
from dsctl.look.fitting import FITS, Reserve, Subject, fit
from dsctl.look.places import GPU, HOST
from dsctl.look.source import describe
from dsctl.plan.formats import known_formats
from dsctl.plan.request import KEEP, Request
from tests.support.command import call, dsctl, dsctl_fails

FLASH = describe("v4.1-flash")
# Two tables: rows of 256 FP8 values with 8 scales, 24 rows for a token in each.
ROWS = (384_006_168, 384_016_682)
TABLES = sum(ROWS) * (256 + 8)


def facts(*words: str) -> dict[str, Any]:
    return json.loads(dsctl("plan", "v4.1-flash", *words, "--json"))


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_both_numbers_are_given_whatever_counts(tp: int) -> None:
    shares = sum(-(-rows // tp) for rows in ROWS) * (256 + 8)
    for words, place, asked in (
        ((), HOST, "default"),
        (("--tables", "host"), HOST, "asked"),
        (("--tables", "gpu"), GPU, "asked"),
    ):
        found = facts("--tp", str(tp), *words)
        assert found["tables"] == {"place": place, "from": asked}
        one = found["formats"]["as stored"]
        (rank,) = one["ranks"]
        assert one["tables_bytes"] == TABLES and not rank["cuts"]
        assert rank["tables"][GPU]["weights_bytes"] - rank["tables"][HOST]["weights_bytes"] == shares
        assert rank["tables"][GPU]["bytes"] - rank["tables"][HOST]["bytes"] == shares
        assert {name: rank[name] for name in ("weights_bytes", "bytes")} == rank["tables"][place]
    assert one["disk_bytes"] == FLASH.nbytes


def test_a_single_rank_without_tables_holds_the_rest() -> None:
    held = load(FLASH, Ranks(), known_formats(FLASH.contents, Request(KEEP)), Cache.of(FLASH, 1, 1, None))
    assert held.weights == FLASH.nbytes - TABLES


def test_verdicts_count_tables_where_they_are() -> None:
    """Two B200 hold the rest of the model, but not the tables too."""
    host, gpu = (facts("--gpu", "b200", "--tp", "2", "--tables", place)["accelerators"][0] for place in (HOST, GPU))
    assert host["formats"]["as stored"]["verdict"] == FITS
    assert gpu["formats"]["as stored"]["short_bytes"] > 60e9
    dsctl("plan", "v4.1-flash", "--must-fit", "h100x8", "--tp", "8")
    assert call("plan", "v4.1-flash", "--must-fit", "h100x4", "--tables", "gpu").returncode == VerifyFailed.exit_code


def test_a_device_that_shares_its_memory_with_the_host_holds_its_share() -> None:
    found = facts("--gpu", "gb10", "--gpu", "h200", "--tp", "8")["accelerators"]
    assert [one["shared_memory"] for one in found] == [True, False]
    subject = Subject.of(FLASH, known_formats(FLASH.contents, Request(KEEP)), Cache.of(FLASH, None, 1, None), Reserve())
    for one, place in zip(found, (GPU, HOST), strict=True):
        device = ACCELERATORS[one["gpu"]]
        loaded = subject.load(Ranks(8), place)
        expected = fit(loaded, (), subject.cache, device.memory, subject.reserve.of(device.memory))
        assert one["formats"]["as stored"]["left_bytes"] == expected.left
    assert "host and GPU share the memory" in dsctl("plan", "v4.1-flash", "--gpu", "gb10")


def test_stages_hold_the_tables_of_their_layers() -> None:
    """Layers 1 and 14 are in the first of two stages, and in different ones of four."""
    formats, cache = known_formats(FLASH.contents, Request(KEEP)), Cache.of(FLASH, 1, 1, None)
    for pp, tables in ((2, [sum(ROWS), 0]), (4, [ROWS[0], ROWS[1], 0, 0])):
        host, gpu = (load(FLASH, Ranks(pp=pp), formats, cache, place) for place in (HOST, GPU))
        added = [after.weights - before.weights for before, after in zip(host.stages, gpu.stages, strict=True)]
        assert added == [rows * 264 for rows in tables]


def test_a_report_says_where_tables_are() -> None:
    said = dsctl("plan", "v4.1-flash", "--tp", "8", "--gpu", "h100")
    assert "host memory" in said and "tables on the GPUs" in said and "sum with Engram tables on the GPUs" in said
    assert "Engram tables in host memory, with 10% of each GPU" in " ".join(said.split())
    asked = dsctl("plan", "v4.1-flash", "--tp", "8", "--gpu", "h100", "--tables", "gpu")
    assert "tables in host memory" in asked and "sum with Engram tables" not in asked
    assert "Engram tables" not in dsctl("plan", "v4-flash")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("v3.2", "--tables", "host"), "DeepSeek-V3.2: has no Engram tables"),
        (("v4.1-flash", "--tables", "disk"), "--tables: unknown place 'disk'"),
        (("v3.2", "--kv", "fp4"), "DeepSeek-V3.2: its KV cache is not stored in fp4"),
        (("v4-pro", "--kv", "fp4"), "DeepSeek-V4-Pro: its KV cache is not stored in fp4"),
    ],
)
def test_a_word_that_does_not_apply_is_refused(words: tuple[str, ...], said: str) -> None:
    assert dsctl_fails("plan", *words) == UsageError.exit_code
    assert said in call("plan", *words).stderr


def test_python_has_the_same_numbers() -> None:
    source = library.open("v4.1-flash")
    for place in (None, HOST, GPU):
        (choice, *_) = source.plan(tp=8, tables=place).choices
        (rank,) = facts("--tp", "8", *(("--tables", place) if place else ()))["formats"]["as stored"]["ranks"]
        assert choice.weights == rank["weights_bytes"]
    with pytest.raises(UsageError, match="no Engram tables"):
        library.open("v3.2").plan(tables="gpu")
