"""What was asked for. Data only."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

# The format of a request that leaves every parameter stored as it is.
KEEP = "keep"


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for; its JSON form is the request's identity.

    `to` is a codec's name or `KEEP`. `layers` and `experts`, where given, are the only ones wanted. `slice` tells what
    a renumbered source was cut from.
    """

    to: str
    layout: str = "hf"
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

    def json(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]
