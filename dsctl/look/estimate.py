"""The memory and disk that a checkpoint takes, as data: per format and number of ranks. No weights, no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from dsctl import models
from dsctl.core.amounts import size
from dsctl.core.choices import choose
from dsctl.core.errors import UsageError
from dsctl.core.tables import html, table, text_table
from dsctl.core.visible import shortened, visible
from dsctl.layouts.ranks import Ranks
from dsctl.look.accelerators import ACCELERATORS, USUAL, Accelerator
from dsctl.look.cache_formats import CACHE_FORMATS
from dsctl.look.capacity import USUAL_TP, Cache, check, disk, formats
from dsctl.look.description import require_model
from dsctl.look.fitting import FITS, Reserve, Subject, fit
from dsctl.look.places import PLACES
from dsctl.look.source import describe
from dsctl.plan.cuts import Cut
from dsctl.plan.formats import Formats
from dsctl.plan.recipes import recipe


class Choice(NamedTuple):
    """One format on one number of ranks. `weights` and `cache` are bytes on the fullest rank, `disk` those of a file.
    `weights` are without n-gram tables, unless these are to be on the accelerators.
    `cuts` are the matrices that cannot be split over this number of ranks, and `fits` the accelerators whose memory
    holds one rank with 10% kept free; without a possible split it is empty."""

    format: str
    ranks: Ranks
    disk: int
    weights: int
    cache: int
    cuts: tuple[Cut, ...]
    fits: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of weights and cache on the fullest rank."""
        return self.weights + self.cache

    @property
    def possible(self) -> bool:
        """Whether every matrix can be split over the ranks."""
        return not self.cuts


@dataclass(frozen=True, slots=True)
class Estimate:
    """The choices for a source, format by format, each with the numbers of ranks in ascending order.

    `context` is in tokens per sequence, `batch` in sequences.
    """

    source: str
    context: int
    batch: int
    choices: tuple[Choice, ...]

    def __repr__(self) -> str:
        at = f"{self.batch:,} x {self.context:,} tokens"
        return f"<Estimate {shortened(self.source)}: {len(self.choices)} choices, {at}>"

    def __str__(self) -> str:
        """Return the table that `print` shows, with a line per format and number of ranks."""
        return "\n".join(text_table(visible(self._title), _COLUMNS, self._rows))

    def _repr_html_(self) -> str:
        """Return the same table as HTML for a notebook."""
        return f"<h3>{html(self.source)}</h3>{table(self._title, _COLUMNS, self._rows)}"

    @property
    def _title(self) -> str:
        return f"{self.source}: {self.batch:,} x {self.context:,} tokens of context"

    @property
    def _rows(self) -> Iterator[tuple[object, ...]]:
        for one in self.choices:
            tp, ep, pp = one.ranks.tp, one.ranks.ep, one.ranks.pp
            fits = ", ".join(one.fits) or "-" if one.possible else "cannot be split"
            yield one.format, tp, ep, pp, size(one.disk), size(one.weights), size(one.cache), fits


_COLUMNS = "format", "TP", "EP", "PP", "disk", "weights per rank", "cache per rank", "fits"


class Asked(NamedTuple):
    """The choices to weigh: names of formats, recipes and accelerators, sizes, and the cache; see `Source.plan`."""

    formats: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    tp: int | None = None
    ep: int | None = None
    pp: int | None = None
    context: int | None = None
    batch: int = 1
    kv: str | None = None
    tables: str | None = None


def estimate(source: str, asked: Asked) -> Estimate:
    """Weigh a source in every format on every number of ranks; the usual ones if none are asked for.

    Raises:
        UsageError: an unknown name, a number below 1, or an unknown architecture. PlanError: the model cannot be
            sharded so. SourceError, FormatError: the source cannot be read.
    """
    if asked.kv is not None:
        choose(asked.kv, CACHE_FORMATS, "format", "kv")
    if asked.tables is not None:
        choose(asked.tables, PLACES, "place", "tables")
    for name in ("tp", "ep", "pp", "context", "batch"):
        number = getattr(asked, name)
        if number is not None and not (type(number) is int and number >= 1):
            raise UsageError(f"{name}: {number!r} is not a number of 1 or more")
    gpus = [ACCELERATORS[choose(name.lower(), ACCELERATORS, "accelerator", "gpu")] for name in asked.gpus or USUAL]
    recipes = tuple(map(recipe, asked.recipes))
    seen = describe(source)
    if not seen.known:
        what = "its architecture is unknown, so its memory cannot be estimated"
        raise UsageError(f"{source}: {what}", hint=models.known())
    require_model(seen)
    ranks = [Ranks(size) for size in USUAL_TP]
    if asked.tp or asked.ep or asked.pp:
        ranks = [Ranks(asked.tp or 1, asked.ep or 1, asked.pp or 1)]
        check(seen, ranks[0])
    cache = Cache.of(seen, asked.context, asked.batch, asked.kv)
    choices = [
        choice
        for name, format_ in formats(seen, asked.formats, recipes).items()
        for choice in _choices(Subject.of(seen, format_, cache, Reserve(), asked.tables), name, format_, ranks, gpus)
    ]
    return Estimate(seen.name, cache.context, cache.batch, tuple(choices))


def _choices(
    subject: Subject, name: str, format_: Formats, ranks: Iterable[Ranks], gpus: Iterable[Accelerator]
) -> Iterator[Choice]:
    on_disk, cache, reserve = disk(subject.description, format_), subject.cache, subject.reserve
    for one in ranks:
        loads, found = subject.loads(one), subject.cuts(one)
        held = loads[subject.tables]
        verdicts = (
            (gpu, fit(loads[subject.place(gpu)], found, cache, gpu.memory, reserve.of(gpu.memory))) for gpu in gpus
        )
        fits = tuple(gpu.name for gpu, how in verdicts if how.verdict == FITS)
        yield Choice(name, one, on_disk, held.weights, held.cache, tuple(found), fits)
