"""`dsctl formats` tells of every codec, and tells what measuring finds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dsctl.codecs import CODECS
from dsctl.formats import FORMATS, bits
from dsctl.recipes import ready
from tests.command import dsctl
from tests.snr import searched, snr


def test_every_codec_is_told_of_in_the_same_order() -> None:
    assert list(FORMATS) == list(CODECS)


@pytest.mark.parametrize("name", CODECS)
def test_the_noise_is_what_measuring_finds(name: str) -> None:
    told, found = FORMATS[name].snr, snr(CODECS[name])
    assert found is None if told is None else found == pytest.approx(told, abs=0.1)


@pytest.mark.parametrize("name", CODECS)
def test_searching_gains_what_is_told(name: str) -> None:
    told, better = FORMATS[name].searched, searched(CODECS[name])
    usual, found = snr(CODECS[name]), better and snr(better)
    if told is None:
        assert found is None or found == usual, "searching changes nothing"
    else:
        assert usual is not None and found == pytest.approx(told, abs=0.1) and found > usual


def test_bits_count_scales() -> None:
    assert bits("bf16") == 16
    assert bits("mxfp4") == 4.25 and bits("int4-group") == pytest.approx(4.125, abs=1e-4)
    assert bits("fp8-block") == 8 + 32 / 128**2


def test_the_verb_lists_formats_and_recipes() -> None:
    told: dict[str, Any] = json.loads(dsctl("formats", "--json"))
    assert [one["name"] for one in told["formats"]] == list(CODECS)
    assert {one["name"] for one in told["recipes"]} == set(ready())
