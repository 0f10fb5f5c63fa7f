"""Thousands of changes at random to checkpoints and targets: `pytest tests/soak/test_fuzz.py -m soak`.

DSCTL_TEST_SEED chooses others. A case that failed is made again by `python -m tests.support.fuzz SEED NUMBER NUMBER+1`.
"""

from __future__ import annotations

import os

import pytest

from tests.support.fuzz import Corpus, fuzz

CASES = 6000


@pytest.mark.soak
def test_whatever_is_changed_every_verb_says_what_is_wrong(tmp_path_factory: pytest.TempPathFactory) -> None:
    corpus = Corpus(tmp_path_factory.mktemp("good"), tmp_path_factory.mktemp("scratch"))
    found = fuzz(corpus, int(os.environ.get("DSCTL_TEST_SEED", "19")), range(CASES))
    assert not found, "\n".join(found)


@pytest.mark.soak
def test_of_v4_too(tmp_path_factory: pytest.TempPathFactory) -> None:
    good, scratch = tmp_path_factory.mktemp("good"), tmp_path_factory.mktemp("scratch")
    kinds = {"beside": ("v4-flash-base",), "mixed": ("--to", "published"), "split": ("--ep", "2")}
    corpus = Corpus(good, scratch, whole="v4-flash-0731", **kinds)
    found = fuzz(corpus, int(os.environ.get("DSCTL_TEST_SEED", "19")), range(CASES // 3))
    assert not found, "\n".join(found)
