"""docs/images, drawn from what the commands print: `python -m tests.tools.pictures` after a change that is meant."""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console

from dsctl.look.diff import Diff
from dsctl.look.source import describe
from dsctl.show.differences import sections
from dsctl.show.output import Output
from dsctl.show.sections import show

FILE = Path(__file__).parents[2] / "docs" / "images" / "diff-v3-v3.2.svg"
WIDTH = 110


def picture() -> str:
    """`dsctl diff v3 v3.2` in a terminal, as SVG that fetches no font."""
    output = Output()
    output.bounded = True
    output.out = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, highlight=False)
    show(list(sections(Diff(describe("v3"), describe("v3.2")), None, False)), output)
    drawn = output.out.export_svg(title="dsctl diff v3 v3.2", unique_id="diff")
    drawn = re.sub(r"\s*@font-face \{.*?\}", "", drawn, flags=re.DOTALL)
    return "\n".join(line.rstrip() for line in drawn.splitlines()) + "\n"


if __name__ == "__main__":
    FILE.write_text(picture())
