"""Every format at the shapes of whole releases and at extreme ones: `pytest tests/soak -m soak`."""

from __future__ import annotations

import pytest

from tests.flows.test_memory import far, growths

SHAPES = (
    "7168x18432", "18432x7168", "576x7168", "32768x512", "2048x7168", "129280x7168", "1x1048576", "32x1048576",
    "1048576x128",
)  # fmt: skip


@pytest.mark.soak
@pytest.mark.parametrize("shape", SHAPES)
def test_every_format_takes_what_is_planned(shape: str) -> None:
    assert not [one for one in growths(shape) if far(one)]
