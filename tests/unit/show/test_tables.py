"""Tables of a release's size."""

from __future__ import annotations

from dsctl.show.sections import Column, Row, Section, terminal
from tests.support.command import at_most


def test_a_table_as_long_as_a_release_is_laid_out_line_by_line() -> None:
    rows = tuple(Row((f"layers.{number}", str(number))) for number in range(100_000))
    with at_most(30):
        lines = [line.plain for line in terminal(Section("", columns=(Column("name"), Column()), rows=rows), 100)]
    assert len(lines) == 100_001 and lines[-1].split() == ["layers.99999", "99999"]
