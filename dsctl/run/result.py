"""The result of a run, as the audit in `dsctl.json` describes it. Data, no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dsctl.core.amounts import plural, size
from dsctl.core.tables import html, table, text_table
from dsctl.core.visible import shortened, visible
from dsctl.layouts.ranks import Ranks
from dsctl.plan.notes import labelled
from dsctl.work.tasks import INFINITE, NAN


@dataclass(frozen=True, eq=False)
class Result(Mapping[str, Any]):
    """A finished target: `target` is its folder or URL, and `audit` the contents of its `dsctl.json`.

    It is also a mapping, that of the audit: `result["audit"]["unexplained"]`.
    """

    target: str
    audit: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.audit[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.audit)

    def __len__(self) -> int:
        return len(self.audit)

    def __repr__(self) -> str:
        return f"<Result {shortened(self.target)}: {self._summary}>"

    def __str__(self) -> str:
        """Return the text that `print` shows: whether the result is right, numbers of parameters by kind of work, and
        notes."""
        lines = [f"{visible(self.target)}: {self._summary}", *text_table("", _COLUMNS, self._rows)[1:]]
        return "\n".join([*lines, *(visible(labelled(note)) for note in self.notes)])

    def _repr_html_(self) -> str:
        """Return the same as HTML for a notebook."""
        notes = "".join(f"<p>{html(labelled(note))}</p>" for note in self.notes)
        return f"<h3>{html(self.target)}</h3>{table(self._summary, _COLUMNS, self._rows)}{notes}"

    @property
    def ok(self) -> bool:
        """Whether every parameter of the source is accounted for, and every decoded value is finite.

        Parameters that the request left out are accounted for: `partial` names them.
        """
        return not (self.unexplained or self.counts.get(NAN) or self.counts.get(INFINITE))

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of parameters by kind of work (moved, quantized, dropped and so on), and numbers of blocks that kept
        their scale."""
        return dict(self.audit["audit"])

    @property
    def unexplained(self) -> int:
        """Parameters of the source that were neither written nor left out for a reason; 0 in every finished run."""
        return int(self.counts["unexplained"])

    @property
    def files(self) -> dict[str, int]:
        """Every written file with its size in bytes; `result["files"]` also has the digests."""
        return {name: file["size"] for name, file in self.audit["files"].items()}

    @property
    def notes(self) -> list[str]:
        return list(self.audit["notes"])

    @property
    def partial(self) -> str:
        """The parameters and ranks of the source that are missing, in words; empty if the target is complete."""
        return left_out(self.audit)

    def as_dict(self) -> dict[str, Any]:
        """A copy of the audit as a dictionary, as in `dsctl.json` and `--json`."""
        return dict(self.audit)

    @property
    def _summary(self) -> str:
        state = "partial" if self.partial else "complete"
        total = size(sum(self.files.values()))
        return f"{state}, {'ok' if self.ok else 'not ok'}, {plural(len(self.files), 'file')}, {total}"

    @property
    def _rows(self) -> list[tuple[str, str]]:
        return [(name, f"{number:,}") for name, number in self.counts.items() if number or name == "unexplained"]


_COLUMNS = "what", "number"


def left_out(audit: Mapping[str, Any]) -> str:
    """The parameters of the source that a target lacks, by reason, and the ranks; empty if it holds all of them."""
    why = Counter(why for _, why in audit["dropped"])
    left = [f"{plural(number, 'parameter')} ({what})" for what, number in why.items()]
    request = audit["request"]
    world = Ranks(request["tp"], request["ep"], request["pp"]).world
    if request["ranks"] and len(request["ranks"]) < world:
        left.append(f"{world - len(request['ranks']):,} of {world:,} ranks")
    return ", ".join(left)
