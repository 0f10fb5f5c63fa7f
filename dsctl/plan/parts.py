"""The part of a checkpoint that a slice keeps: layers, and experts by number or by a plan. Pure, no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.groups import Known
from dsctl.checkpoint.known_slice import bytes_kept, sliced_description
from dsctl.checkpoint.slice import SliceCut, cut_of, sliced
from dsctl.core.errors import UsageError
from dsctl.layouts.ranks import main_layers
from dsctl.plan.expert_lists import COPY, lists_of, remarks, routed
from dsctl.plan.expert_plan import ExpertPlan
from dsctl.plan.request import DROPPED, KEEP, KEPT, ONLY, Request

# The config of the reference implementation, beside V4's weights.
INFERENCE = "inference/config.json"


@dataclass(frozen=True, slots=True)
class Part:
    """Layers by number, None for all of them, and experts: those of `plan`, or by number; empty keeps all.

    `mtp` is the choice for the drafter; None keeps it if all layers are kept. `copy`: the drafter's layers take the
    plan's lists of the last main layers.
    """

    layers: tuple[int, ...] | None = None
    experts: tuple[int, ...] = ()
    mtp: str | None = None
    plan: ExpertPlan | None = None
    copy: bool = False

    def __post_init__(self) -> None:
        if self.copy and self.plan is None:
            raise UsageError(f"{COPY}: is for a plan of experts", hint="give one with --experts PLAN.json")

    def cut(self, source: Checkpoint | Known, request: Request) -> tuple[SliceCut, Request]:
        """The cut of a source, and the request for it, with notes on what a plan does.

        Raises:
            PlanError: the source does not have this part, or loaders could not use the rest. FormatError: the plan
                does not fit the source. UsageError: `copy` would do nothing.
        """
        layers = main_layers(source.families) if self.layers is None and self.mtp == DROPPED else self.layers
        drafted = layers is not None and self.mtp in (KEPT, ONLY)
        cut, notes = cut_of(source, layers or (), drafted, self.experts), request.notes
        request = replace(request, mtp=ONLY) if self.mtp == ONLY else request
        if self.plan is not None:
            assert source.model is not None and source.config is not None
            model = routed(source.model, source.config, source.families)
            cut = replace(cut, planned=lists_of(self.plan, model, cut.layers, self.copy))
            notes = (*notes, *remarks(cut.planned, model, cut.layers))
        return cut, replace(request, slice=str(cut), notes=notes)

    def of(self, source: Checkpoint, request: Request) -> tuple[Checkpoint, Request]:
        """The part as a view of an open checkpoint, and the request for it.

        Raises:
            PlanError, FormatError, UsageError: as `cut`.
        """
        cut, request = self.cut(source, request)
        view = sliced(source, cut)
        request = self._weighed(request, source.nbytes, bytes_kept(view) if self.plan else 0)
        if self.plan is not None and INFERENCE in source.files and view.config != source.config:
            note = f"{INFERENCE} is copied unchanged: its number of experts is that of the source"
            request = replace(request, notes=(*request.notes, note))
        return view, request

    def described(self, source: Known, request: Request) -> tuple[Known, Request]:
        """The description of the part, and the request for it.

        Raises:
            PlanError, FormatError, UsageError: as `cut`.
        """
        cut, request = self.cut(source, request)
        small = sliced_description(source, cut)
        return small, self._weighed(request, sum(group.nbytes for group in source.groups), bytes_kept(small))

    def _weighed(self, request: Request, before: int, after: int) -> Request:
        """The request with a note on the bytes of all tensors before and after, if a plan chooses experts."""
        if self.plan is None:
            return request
        stored = "" if request.to == KEEP else " in the formats of the source"
        note = f"weights: {before:,} bytes before, {after:,} bytes after{stored}"
        return replace(request, notes=(*request.notes, note))
