"""What was asked for. Data only."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from dsctl.core.choices import choose
from dsctl.core.errors import UsageError
from dsctl.core.lists import globs, numbers
from dsctl.layouts import layout_name, recorded_name

# The format of a request that leaves every parameter stored as it is.
KEEP = "keep"
# The format of a request whose recipe says, parameter by parameter, what is stored how.
RECIPE = "recipe"
# The format of a request for what the releases of the architecture store.
PUBLISHED = "published"
# What is done with the drafter where nothing is asked for: what is usual for the layout, of such a model.
USUAL = "usual"
# The formats for which a search finds better scales, and those whose scales have a format of their own.
SEARCHED = ("int4-group", "int4-group-32", "mxfp4", "nvfp4", "nvfp4-modelopt")
BLOCKS = "fp8-block"
SCALED = (BLOCKS, PUBLISHED)
SCALE_FORMATS = ("auto", "float32", "ue8m0")
# The formats that hold some values of four-bit experts only where their scales are near one another.
INEXACT = ("fp8-block", "fp8-block-e8m0", "nvfp4", "nvfp4-modelopt")


# Fields that earlier versions did not know: a request without them is the same as then.
_LATER = ("allow_inexact",)


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for; its JSON form is the request's identity.

    `to` is a codec's name, `KEEP`, or `RECIPE`, whose `rules` are (role, glob, format) in order, one of the first two
    empty. `mtp` is keep, drop or `USUAL`. `search` asks for the scales of least error where a format has four bits.
    `layers` and `experts`, where given, are the only ones wanted. `slice` tells what a renumbered source was cut from.
    `tp` is 0 for a whole checkpoint; otherwise it is spread over `tp`, `ep` and `pp` ranks (dsctl/layouts/ranks.py), of
    which `ranks`, where given, are the only ones written, and `placed` names the experts by place
    (dsctl/plan/experts.py). `recode` allows what a cut leaves in parts of blocks to be encoded anew, `allow_inexact`
    blocks that another form does not hold exactly.
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "layout", layout_name(self.layout))
        for name in ("only", "skip"):
            object.__setattr__(self, name, globs(name, getattr(self, name)))
        for name in ("layers", "experts", "ranks"):
            object.__setattr__(self, name, numbers(name, getattr(self, name)))

    def json(self) -> dict[str, Any]:
        said = {**asdict(self), "layout": recorded_name(self.layout)}
        for name in _LATER:
            if not said[name]:
                del said[name]
        return json.loads(json.dumps(said))  # type: ignore[no-any-return]


def refuse_idle(request: Request) -> None:
    """Refuse options that no format asked for would heed.

    Raises:
        UsageError: with what they are for.
    """
    asked = {format_ for _, _, format_ in request.rules} or {request.to}
    choose(request.scale_fmt, SCALE_FORMATS, "scale format", "--scale-fmt")
    for option, given, formats in (
        ("--search", request.search, SEARCHED),
        ("--scale-fmt", request.scale_fmt != "auto", SCALED),
        ("--allow-inexact", request.allow_inexact, INEXACT),
    ):
        if given and not asked & set(formats):
            names = ", ".join(sorted(asked))
            raise UsageError(f"{option}: does nothing for {names}", hint=f"it is for {', '.join(formats)}")
