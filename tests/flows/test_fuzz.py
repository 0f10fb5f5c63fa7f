"""A short run of the fuzzer; `tests/soak` has the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.fuzz import Corpus, fuzz

SEED, CASES = 1, 200


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("good"), tmp_path_factory.mktemp("scratch"))


def test_the_good_folders_are_good(corpus: Corpus) -> None:
    """What is changed at random was accepted before."""
    from tests.support.command import call

    for kind, folder in corpus.kinds.items():
        done = call("verify", folder)
        assert done.returncode == (50 if kind == "begun" else 0), (kind, done.stdout, done.stderr)


def test_whatever_is_changed_every_verb_says_what_is_wrong(corpus: Corpus) -> None:
    found = fuzz(corpus, SEED, range(CASES))
    assert not found, "\n".join(found)


def test_a_case_is_the_same_again(corpus: Corpus, tmp_path: Path) -> None:
    import random

    one, other = (corpus.case(random.Random("1:7")) for _ in range(2))
    assert one == other
