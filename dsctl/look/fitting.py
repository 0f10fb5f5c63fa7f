"""Whether a checkpoint fits on accelerators, and how many tokens of KV cache fit beside it. Numbers.

A rank fits if its weights, the cache of its sequences and the reserve are at most the memory. docs/costs.md explains
the reserve and the tokens that fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import NamedTuple

from dsctl.checkpoint.groups import Group
from dsctl.codecs.codec import Codec
from dsctl.core.errors import UsageError
from dsctl.layouts.ranks import Ranks, main_layers
from dsctl.look.accelerators import Accelerator
from dsctl.look.capacity import Cache, Load, cuts_of, load_of, stored, table_bytes, units
from dsctl.look.description import Description
from dsctl.look.places import GPU, HOST, PLACES
from dsctl.plan.cuts import Cut, legal_sizes
from dsctl.plan.formats import Formats

FITS, TIGHT, NO, SPLIT = "fits", "tight", "no", "cannot be split"
# A share of the memory: vLLM's gpu_memory_utilization was 0.9 for long and is 0.92 now. aiconfigurator's `other_mem`
# is 3.5 GiB per GPU.
USUAL_SHARE = Fraction(1, 10)
# How far a search for enough accelerators doubles their number.
DOUBLINGS = 5


class Reserve(NamedTuple):
    """Memory of each accelerator that must stay free: bytes, or if they are None a share of the memory."""

    nbytes: int | None = None
    share: Fraction = USUAL_SHARE
    asked: bool = False

    def of(self, memory: int) -> int:
        """Bytes that stay free of `memory` bytes."""
        return ceil(memory * self.share) if self.nbytes is None else self.nbytes


class Fit(NamedTuple):
    """How ranks fit on accelerators of one kind.

    `left` is memory minus weights and cache on the fullest rank, in bytes; below 0, that many are missing. `sequences`
    (of the cache's context) and `tokens` are the KV cache that fits beside weights and reserve, on all ranks together.
    They are None if the cuts are illegal or the sizes of the attention unknown.
    """

    ranks: Ranks
    verdict: str
    left: int
    tokens: int | None
    sequences: int | None


def fit(load: Load, cuts: Sequence[Cut], cache: Cache, memory: int, reserve: int) -> Fit:
    """The fit of ranks into `memory` bytes each, with `reserve` of them kept free."""
    left = memory - load.nbytes
    if cuts:
        return Fit(load.ranks, SPLIT, left, None, None)
    verdict = FITS if left >= reserve else TIGHT if left >= 0 else NO
    if cache.attention is None:
        return Fit(load.ranks, verdict, left, None, None)
    # Each copy serves sequences of its own, and each of its stages keeps a share of every one of them.
    caching = [stage for stage in load.stages if stage.sequence]
    rooms = [(max(0, memory - reserve - stage.weights), stage.sequence) for stage in caching]
    sequences = load.ranks.copies * min(room // each for room, each in rooms)
    if not cache.attention.linear:
        return Fit(load.ranks, verdict, left, sequences * cache.context, sequences)
    tokens = load.ranks.copies * min(room * cache.context // each for room, each in rooms)
    return Fit(load.ranks, verdict, left, tokens, sequences)


def best(fits: Sequence[Fit]) -> Fit:
    """The fit with the fewest ranks that fits or is tight; if there is no such fit, the one that misses the fewest
    bytes; if every split is illegal, one with cuts."""
    for verdict in (FITS, TIGHT):
        held = [one for one in fits if one.verdict == verdict]
        if held:
            return min(held, key=lambda one: one.ranks.world)
    return max([one for one in fits if one.verdict == NO] or fits, key=lambda one: one.left)


class Must(NamedTuple):
    """A demand: the checkpoint fits on `number` accelerators; `text` is how a person wrote it."""

    text: str
    accelerator: Accelerator
    number: int


@dataclass(frozen=True, slots=True)
class Subject:
    """A checkpoint in one format, with a cache, a reserve and the place of its tables (one of `PLACES`): everything
    that fitting needs but ranks and memory."""

    description: Description
    groups: Sequence[tuple[Group, Codec]]
    cache: Cache
    reserve: Reserve
    tables: str = HOST

    @classmethod
    def of(
        cls, description: Description, to: Formats, cache: Cache, reserve: Reserve, tables: str | None = None
    ) -> Subject:
        """`tables` defaults to the host.

        Raises:
            UsageError: `tables` is given, but the model has no tables.
        """
        groups = stored(description, to)
        if tables and not any(group.family.table for group, _ in groups):
            what = f"{description.name}: has no Engram tables"
            raise UsageError(what, hint="leave --tables out")
        return cls(description, groups, cache, reserve, tables or HOST)

    @property
    def units(self) -> list[str]:
        """The units that multiply such weights as they are stored: fp8, fp4."""
        codes = {codec.form.codes for _, codec in self.groups}
        return [unit for unit, code in (("fp8", "e4m3"), ("fp4", "e2m1")) if code in codes]

    @property
    def table_bytes(self) -> int:
        """Bytes of its tables."""
        return table_bytes(self.groups)

    def place(self, accelerator: Accelerator) -> str:
        """The place whose memory its tables take: that of the accelerator if it is the host's too."""
        return GPU if accelerator.shared else self.tables

    def load(self, ranks: Ranks, tables: str = "") -> Load:
        """The bytes that ranks hold, with its tables in this place or in its own."""
        return load_of(self.groups, ranks, self.cache, tables or self.tables)

    def loads(self, ranks: Ranks) -> dict[str, Load]:
        """The bytes that ranks hold, by the place of its tables."""
        if not self.table_bytes:
            return dict.fromkeys(PLACES, self.load(ranks))
        return {tables: self.load(ranks, tables) for tables in PLACES}

    def cuts(self, ranks: Ranks) -> list[Cut]:
        """The illegal cuts of these ranks."""
        return list(cuts_of(self.description, self.groups, ranks))

    def sizes(self, ep: int) -> list[int]:
        """Tensor-parallel sizes without illegal cuts, for `ep` expert-parallel parts."""
        families = [(group.family, codec) for group, codec in self.groups]
        return legal_sizes(families, ep, units(self.description))

    def splits(self, count: int) -> Iterator[Ranks]:
        """Every split of `count` ranks whose experts and layers divide: fewest stages, then most TP, come first."""
        families = [group.family for group, _ in self.groups]
        experts = {family.experts for family in families if family.experts}
        layers = len(main_layers(families))
        for pp in _divisors(count):
            stage = count // pp
            shared = [Ranks(stage, ep, pp) for ep in _divisors(stage)]
            copied = [Ranks(tp, stage, pp) for tp in reversed(_divisors(stage)[:-1])]
            for ranks in (*shared, *copied) if pp <= layers else ():
                if ranks.ep == 1 or (experts and not any(number % ranks.ep for number in experts)):
                    yield ranks

    def hold(self, accelerator: Accelerator, splits: Iterator[Ranks] | Sequence[Ranks]) -> Fit:
        """The first of these splits that fits with the reserve kept; if none fits, the nearest one.

        Cuts are looked up last, because they take longest.
        """
        memory, reserve = accelerator.memory, self.reserve.of(accelerator.memory)
        tables = self.place(accelerator)
        found = [fit(self.load(ranks, tables), (), self.cache, memory, reserve) for ranks in splits]
        ordered = [one for one in found if one.verdict == FITS]
        ordered += sorted((one for one in found if one.verdict != FITS), key=lambda one: -one.left)
        legal = next((one for one in ordered if not self.cuts(one.ranks)), None)
        return legal or ordered[0]._replace(verdict=SPLIT, tokens=None, sequences=None)

    def enough(self, accelerator: Accelerator, count: int) -> Fit | None:
        """The first fit on twice, four times, ... as many accelerators, or None."""
        for power in range(1, DOUBLINGS + 1):
            found = self.hold(accelerator, self.splits(count << power))
            if found.verdict == FITS:
                return found
        return None


def _divisors(number: int) -> list[int]:
    return [part for part in range(1, number + 1) if number % part == 0]
