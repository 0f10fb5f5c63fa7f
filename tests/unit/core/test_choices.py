"""A value out of a table, or a refusal that says which value was meant."""

from __future__ import annotations

import pytest

from dsctl.core.choices import choose
from dsctl.core.errors import UsageError

FORMATS = ("bf16", "fp8-block", "int4-group")


def test_a_known_value_is_returned() -> None:
    assert choose("bf16", FORMATS, "format", "--to") == "bf16"


def test_a_near_miss_is_answered_with_what_was_meant() -> None:
    with pytest.raises(UsageError) as refused:
        choose("fp8-blok", FORMATS, "format", "--to")
    assert refused.value.message == "--to: unknown format 'fp8-blok'"
    assert refused.value.hint == "did you mean fp8-block? known: bf16, fp8-block, int4-group"


def test_the_beginning_of_values_is_answered_with_them() -> None:
    with pytest.raises(UsageError, match="unknown format 'int4'") as refused:
        choose("int4", ("int8", *FORMATS, "int4-group-32"), "format")
    assert refused.value.hint is not None
    assert refused.value.hint.startswith("did you mean int4-group or int4-group-32 or int8? known: int8, ")


def test_a_value_far_from_all_is_answered_with_the_table_alone() -> None:
    with pytest.raises(UsageError) as refused:
        choose("q", FORMATS, "format")
    assert (refused.value.message, refused.value.hint) == ("unknown format 'q'", "known: bf16, fp8-block, int4-group")
