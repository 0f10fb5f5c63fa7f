"""What was asked for. Data only."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for; its JSON form is the request's identity."""

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

    def json(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]
