"""Threads that are given up: what they did is there, what they had not begun is not done, nobody waits for them."""

from __future__ import annotations

import time
from concurrent.futures import wait
from functools import partial
from threading import Event

import pytest

from dsctl.stores.threads import threads


def test_tasks_give_their_results_and_their_errors() -> None:
    with threads(3) as pool:
        squares = [pool.submit(partial(pow, number, 2)) for number in range(20)]
        failed = pool.submit(lambda: 1 // 0)
        assert [square.result(timeout=10) for square in squares] == [number**2 for number in range(20)]
        with pytest.raises(ZeroDivisionError):
            failed.result(timeout=10)


def test_a_block_that_fails_waits_for_none() -> None:
    entered, stuck, begun = Event(), Event(), time.monotonic()
    with pytest.raises(KeyboardInterrupt), threads(1) as pool:
        going = pool.going
        first, second = pool.submit(lambda: entered.set() or stuck.wait()), pool.submit(list)
        assert entered.wait(10) and going()
        raise KeyboardInterrupt
    assert time.monotonic() - begun < 5 and not going() and second.cancelled()
    stuck.set()
    assert wait([first], timeout=10).done
