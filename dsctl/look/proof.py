"""Whether a checkpoint's parameters are those of a source: the verdicts, what they rest on, and one line. Data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from dsctl.core.amounts import plural
from dsctl.core.errors import UsageError
from dsctl.core.params import in_order
from dsctl.look.verdicts import ENCODED, EXACT, KEPT, KINDS, MOVED, OTHER, ROUNDED, SAME, Judged

# A sample of n rows misses a share of wrong rows above 3.0 / n with a probability of at most 5 % (the rule of three).
CONFIDENCE = 0.95


class Sample(NamedTuple):
    """What a check looked at instead of everything: the asked share, the seed, rows and bytes that were read."""

    share: float
    seed: int
    rows: int = 0
    nbytes: int = 0
    of: int = 0

    @property
    def read(self) -> float:
        """The share of the bytes that was read."""
        return self.nbytes / self.of if self.of else 1.0

    @property
    def bound(self) -> float:
        """The largest share of other rows that a sample without one is compatible with, at `CONFIDENCE`."""
        return min(1.0, -math.log(1 - CONFIDENCE) / max(1, self.rows))

    def __str__(self) -> str:
        return f"a sample of {100 * self.read:.3g} % of the bytes, seed {self.seed}"


def sample_of(share: float, seed: int) -> Sample:
    """The sample of a share of all rows.

    Raises:
        UsageError: the share is not above 0 and up to 1.
    """
    if not 0 < share <= 1:
        raise UsageError(f"sample: {share!r} is not a share above 0 and up to 1", hint="0.01 is one percent")
    return Sample(share, seed)


@dataclass(frozen=True, slots=True)
class Proof:
    """Every parameter's verdict, in the order of the architecture, and the parameters that only one side has.

    `places` are this checkpoint and its source, `name` is the source's short name. `reshaped` has names and both
    shapes. `unread` are parameters that could not be compared, and why; of the `partial` ones this checkpoint holds
    only a part, as a rank does. `drafter`: it holds a drafter alone, so nothing else was compared. `odd` are
    parameters that are as this format rounds, while nearly all others of their kind are byte for byte what the encoder
    gives.
    """

    places: tuple[str, str]
    name: str
    judged: tuple[Judged, ...]
    lost: tuple[str, ...]
    added: tuple[str, ...]
    reshaped: tuple[tuple[str, str], ...]
    unread: tuple[tuple[str, str], ...] = ()
    odd: tuple[Judged, ...] = ()
    partial: tuple[str, ...] = ()
    drafter: bool = False
    sample: Sample | None = None

    def __repr__(self) -> str:
        return f"<Proof {self.line}>"

    def __str__(self) -> str:
        return self.line

    @property
    def counts(self) -> dict[str, int]:
        """The number of parameters of each kind."""
        counts = dict.fromkeys(KINDS, 0)
        for one in self.judged:
            counts[one.kind] += 1
        return counts

    @property
    def total(self) -> int:
        """The number of this checkpoint's parameters."""
        return len(self.judged) + len(self.added) + len(self.reshaped) + len(self.unread)

    @property
    def holds(self) -> bool:
        """Whether every parameter is the source's, and none is lost."""
        return not (self.lost or self.added or self.reshaped or self.unread or self.counts[OTHER])

    @property
    def line(self) -> str:
        """The result in one line that can be pasted."""
        counts = self.counts
        same = sum(counts[kind] for kind in SAME)
        encoded = counts[ENCODED] + counts[KEPT]
        said = [
            f"{number:,} {words}"
            for number, words in (
                (counts[EXACT], "exact"), (counts[MOVED], "moved"), (encoded, "as the encoder rounds"),
                (counts[ROUNDED], "within rounding"), (counts[OTHER], "other"),
                (len(self.reshaped), "of other shapes"), (len(self.unread), "not compared"),
                (len(self.added), "not in it"),
            )
            if number
        ]  # fmt: skip
        lost = f"; {len(self.lost):,} of its parameters are missing here" if self.lost else ""
        alone = ", of its drafter alone" if self.drafter else ""
        part = f"; of {len(self.partial):,} only a part is here" if self.partial else ""
        by = f" ({self.sample})" if self.sample else ""
        verb = "is" if self.total == 1 else "are"
        counted = f"{same:,} of {plural(self.total, 'parameter')} {verb} {self.name}'s: {', '.join(said)}"
        return f"{counted}{alone}{lost}{part}{by}"

    @property
    def rests_on(self) -> str:
        """What was compared for it, and what a sample without a fault shows, in words."""
        both = f"the {plural(len(self.judged), 'parameter')} on both sides"
        if self.sample is None:
            return f"every value here of {both} was compared"
        if self.counts[OTHER]:
            return f"some rows here of each of {both} were compared: others may differ as well"
        rare = f"fewer than 1 in {max(1, int(1 / self.sample.bound)):,} rows"
        return (
            f"some rows here of each of {both} were compared: an error all through a parameter would show; "
            f"if errors are scattered, {rare} are other, with {CONFIDENCE:.0%} confidence"
        )

    @property
    def roles(self) -> dict[str, dict[str, int]]:
        """The number of parameters of each kind, by role."""
        found: dict[str, dict[str, int]] = {}
        for one in self.judged:
            counts = found.setdefault(one.role, dict.fromkeys(KINDS, 0))
            counts[one.kind] += 1
        return {role: found[role] for role in in_order(found)}

    @property
    def others(self) -> list[Judged]:
        """The parameters that are not the source's."""
        return [one for one in self.judged if one.kind == OTHER]

    def json(self) -> dict[str, Any]:
        """The proof as stable JSON; of parameters that are the source's only numbers."""
        return {
            "not_compared": None,
            "line": self.line,
            "rests_on": self.rests_on,
            "holds": self.holds,
            "places": list(self.places),
            "source": self.name,
            "parameters": self.total,
            "counts": self.counts,
            "roles": self.roles,
            "other": [_json(one) for one in self.others],
            "odd": [_json(one) for one in self.odd],
            "lost": list(self.lost),
            "added": list(self.added),
            "reshaped": [{"name": name, "shapes": shapes} for name, shapes in self.reshaped],
            "unread": [{"name": name, "why": why} for name, why in self.unread],
            "partial": list(self.partial),
            "drafter": self.drafter,
            "sample": _sample_json(self.sample),
        }


def _json(one: Judged) -> dict[str, Any]:
    tally = one.tally
    return {
        "name": one.name, "role": one.role, "formats": list(one.formats), "kind": one.kind, "values": tally.values,
        "others": tally.others, "rows": tally.rows, "columns": tally.columns, "parts": tally.parts,
        "largest": tally.largest if math.isfinite(tally.largest) else None, "relative": tally.relative,
        "looks_like": one.looks_like or None, "what": one.where,
    }  # fmt: skip


def _sample_json(sample: Sample | None) -> dict[str, Any] | None:
    if sample is None:
        return None
    return {
        "share": sample.share, "seed": sample.seed, "rows": sample.rows, "bytes": sample.nbytes, "of": sample.of,
        "confidence": CONFIDENCE, "bound": sample.bound,
    }  # fmt: skip
