"""A request. Data only."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from dsctl.core.choices import choose
from dsctl.core.errors import UsageError
from dsctl.core.lists import globs, numbers
from dsctl.core.visible import shortened
from dsctl.layouts import layout_name, recorded_name

# The format of a request that leaves every parameter stored as it is.
KEEP = "keep"
# The format of a request whose recipe chooses the format of each parameter.
RECIPE = "recipe"
# The format of a request for the formats that the releases of the architecture use.
PUBLISHED = "published"
# The choices for the drafter; ONLY writes the drafter without its model.
KEPT, DROPPED, ONLY = DRAFTERS = ("keep", "drop", "only")
# The default for the drafter: keep or drop it as is usual for the layout and the model.
USUAL = "usual"
# The formats for which a search finds better scales, and those whose scales have a format of their own.
SEARCHED = ("int4-group", "int4-group-32", "mxfp4", "nvfp4", "nvfp4-modelopt")
BLOCKS = "fp8-block"
SCALED = (BLOCKS, PUBLISHED)
SCALE_FORMATS = ("auto", "float32", "ue8m0")
# The formats that hold the values of four-bit experts exactly only if scales of neighbouring groups are close.
INEXACT = ("fp8-block", "fp8-block-e8m0", "nvfp4", "nvfp4-modelopt")


# Fields that earlier versions did not have: a request without them has the same identity as before.
_LATER = ("allow_inexact", "original", "lora", "graft", "as_base", "delta")


@dataclass(frozen=True, slots=True)
class Request:
    """A request; its JSON form is its identity.

    `to` is a codec's name, `KEEP`, `PUBLISHED` or `RECIPE`; a recipe's `rules` are (role, glob, format) in order, with
    an empty role or glob. `mtp` is one of `DRAFTERS`, or `USUAL`. `search` looks for four-bit scales of least error.
    If `layers` or `experts` are given, only these are kept. `slice` describes the cut of a renumbered source.
    `tp` is 0 for a whole checkpoint; otherwise the target is sharded over `tp`, `ep` and `pp` ranks
    (dsctl/layouts/ranks.py). If `ranks` are given, only these are written; `placed` are the experts by place
    (dsctl/plan/experts.py). `recode` allows blocks that a cut goes through to be quantized again, `allow_inexact`
    allows blocks that the new form does not hold exactly. `original` is a folder to take the original scales from.
    `lora` is the folder of an adapter to merge.
    `graft` has the globs of each checkpoint from which parameters are taken, `as_base` converts these to the base's
    forms. `delta` says what `dsctl delta` shall make, or which delta is applied.
    `notes` are remarks, such as on a recipe's old name; they are not part of the identity.
    """

    to: str
    layout: str = "published"
    scale_fmt: str = "auto"
    shard_size: int | None = None
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    mtp: str = "keep"
    allow_missing: bool = False
    allow_extra: bool = False
    keep_scales: bool = True
    layers: tuple[int, ...] = ()
    experts: tuple[int, ...] = ()
    slice: str = ""
    rules: tuple[tuple[str, str, str], ...] = ()
    search: bool = False
    tp: int = 0
    ep: int = 1
    pp: int = 1
    ranks: tuple[int, ...] = ()
    recode: bool = False
    placed: tuple[tuple[int, ...], ...] = ()
    allow_inexact: bool = False
    original: str = ""
    lora: str = ""
    graft: tuple[tuple[str, ...], ...] = ()
    as_base: bool = False
    delta: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "layout", layout_name(self.layout))
        for name in ("only", "skip"):
            object.__setattr__(self, name, globs(name, getattr(self, name)))
        for name in ("layers", "experts", "ranks"):
            object.__setattr__(self, name, numbers(name, getattr(self, name)))

    @property
    def towards(self) -> str:
        """The format that is asked for, in words."""
        return "formats kept" if self.to == KEEP else f"to {shortened(self.to)}"

    def json(self) -> dict[str, Any]:
        said = {**asdict(self), "layout": recorded_name(self.layout)}
        del said["notes"]
        for name in _LATER:
            if not said[name]:
                del said[name]
        return json.loads(json.dumps(said))  # type: ignore[no-any-return]


def refuse_idle(request: Request) -> None:
    """Refuse options that have no effect on the requested formats.

    Raises:
        UsageError: naming the formats that the option is for.
    """
    asked = {format_ for _, _, format_ in request.rules} or {request.to}
    choose(request.scale_fmt, SCALE_FORMATS, "scale format", "--scale-fmt")
    for option, given, formats in (
        ("--search", request.search, SEARCHED),
        ("--scale-fmt", request.scale_fmt != "auto", SCALED),
        ("--original", bool(request.original), SCALED),
        ("--allow-inexact", request.allow_inexact, INEXACT),
    ):
        if given and not asked & set(formats):
            names = ", ".join(sorted(asked))
            raise UsageError(f"{option}: does nothing for {names}", hint=f"it is for {', '.join(formats)}")
