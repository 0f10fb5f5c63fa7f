"""Outputs in README and docs, as the commands print them now: `python -m tests.tools.outputs [PAGE ...]`.

A block without `...` is replaced. Of one with `...` the lines are kept that are still printed, or replaced by the
printed line that resembles them most; those that nothing resembles are dropped, and the page is named as one to read.
"""

from __future__ import annotations

import difflib
import sys
import tempfile
from pathlib import Path

from tests.support.pages import ELIDED, PAGES, Shelf, Shown, fits, play, stripped

# How like a shown line a printed one must be to take its place, between 0 and 1.
LIKENESS = 0.6
# At most this many new lines between two adjacent ones are shown.
NEW = 3


def renewed(shown: list[str], printed: list[str]) -> tuple[list[str], list[str]]:
    """The block as it should be, and the shown lines that it lost."""
    shown = stripped(shown)
    if not any(line.strip() == ELIDED for line in shown):
        return printed, []
    taken: list[int] = []
    joined: list[bool] = []
    lost: list[str] = []
    gap = False
    for line in shown:
        if line.strip() == ELIDED:
            gap = True
            continue
        start = taken[-1] + 1 if taken else 0
        place = _place(line, printed, start)
        if place is None:
            lost.append(line)
            continue
        taken.append(place)
        joined.append(not gap)
        gap = False
    lines: list[str] = []
    end = 0
    for place, near in zip([*taken, len(printed)], [*joined, not gap], strict=True):
        between = printed[end:place]
        lines += between if near and len(between) <= NEW else [ELIDED] * bool(between)
        lines += printed[place : place + 1]
        end = place + 1
    return lines, lost


def _place(line: str, printed: list[str], start: int) -> int | None:
    rest = printed[start:]
    if line in rest:
        return start + rest.index(line)
    near = difflib.get_close_matches(line, rest, 1, LIKENESS)
    return start + rest.index(near[0]) if near else None


def renew(page: Path, outputs: list[tuple[Shown, list[str]]]) -> list[str]:
    """Write a page with its outputs as printed; the lines that a reader should look at."""
    lines, notes = page.read_text().splitlines(), []
    for shown, printed in reversed(outputs):
        if fits(shown.lines, printed):
            continue
        block, lost = renewed(shown.lines, printed)
        start = shown.line - 1
        lines[start : start + len(shown.lines)] = block
        notes += [f"{page.name}:{shown.line}: renewed", *(f"  not printed any more: {line}" for line in lost)]
    page.write_text("\n".join(lines) + "\n")
    return notes


def main(names: list[str]) -> int:
    """Renew the pages of these names, or all."""
    pages = [page for page in PAGES if not names or page.name in names or str(page) in names]
    failed = False
    with tempfile.TemporaryDirectory(prefix="o") as folder:
        shelf = Shelf(Path(folder) / "s")
        shelf.folder.mkdir()
        for number, page in enumerate(pages):
            where = Path(folder) / f"p{number}"
            where.mkdir()
            played = play(page, where, shelf)
            for run in played.runs:
                if not run.good:
                    failed = True
                    said = [f"{page.name}:{run.command.line}: {run.command}: exit {run.code}", *run.lines]
                    sys.stdout.write("".join(f"{line}\n" for line in said))
            sys.stdout.write("".join(f"{note}\n" for note in renew(page, played.outputs)))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
