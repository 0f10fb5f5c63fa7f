"""The places that a request names beside its source: the original's scales, and an adapter. No torch."""

from __future__ import annotations

from typing import NamedTuple

from dsctl.checkpoint.adapters import Adapter, with_adapter
from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.originals import Elsewhere, joined
from dsctl.plan.request import Request


class Opened(NamedTuple):
    """What `make_plan` takes: a checkpoint that can also read the other places, the request, and what is in them."""

    checkpoint: Checkpoint
    request: Request
    original: Elsewhere | None = None
    adapter: Adapter | None = None


def with_places(checkpoint: Checkpoint, request: Request) -> Opened:
    """A checkpoint together with the places that the request names.

    Raises:
        SourceError, FormatError: a place cannot be read, or contradicts itself. PlanError: it does not fit.
    """
    original = adapter = None
    if request.original:
        checkpoint, original = joined(checkpoint, request.original)
    if request.lora:
        checkpoint, adapter = with_adapter(checkpoint, request.lora)
    return Opened(checkpoint, request, original, adapter)
