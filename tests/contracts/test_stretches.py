"""What jobs write in order covers every tensor of every output file once, in every layout and format."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from dsctl.checkpoint.opening import open_checkpoint
from dsctl.codecs import CODECS
from dsctl.core.errors import DsctlError
from dsctl.core.header import parse
from dsctl.layouts import LAYOUTS
from dsctl.plan.plan import Plan
from dsctl.plan.planner import make_plan
from dsctl.plan.request import Request
from dsctl.plan.stretches import written
from dsctl.stores.local import LocalFolder
from tests.support.checkpoints import tiny


def planned(source: Path, request: Request) -> Plan | None:
    """The plan, or None if the release cannot be had so."""
    try:
        return make_plan(open_checkpoint(LocalFolder.at(source)), request)
    except DsctlError:
        return None


def check(plan: Plan) -> None:
    """Compare the stretches and the known bytes of each file with the tensors of its header."""
    found: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for job in plan.jobs:
        for one in written(job):
            assert one.begin < one.end and one.file in job.files
            found[one.file].add((one.begin, one.end))
    for file in plan.files:
        header = parse(file.header[8:], file.name, file.size)
        stretches = sorted(found.pop(file.name, set()) | {(at, at + len(data)) for at, data in file.literals if data})
        at = header.size
        for begin, end in stretches:
            assert begin == at
            at = end
        assert at == file.size
        begins = {begin for begin, _ in stretches}
        assert all(ref.begin in begins for ref in header.tensors.values() if ref.nbytes)
    assert not found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_every_layout(tmp_path_factory: pytest.TempPathFactory, layout: str) -> None:
    sources = [tiny(tmp_path_factory, release) for release in ("v3", "v3.2", "v4-flash")]
    requests = Request("keep", layout=layout), Request("keep", layout=layout, tp=2, ep=2)
    plans = [plan for source in sources for request in requests if (plan := planned(source, request))]
    for plan in plans:
        check(plan)
    assert plans


@pytest.mark.parametrize("format_", [*CODECS, "published"])
def test_in_every_format(tmp_path_factory: pytest.TempPathFactory, format_: str) -> None:
    sources = [tiny(tmp_path_factory, release) for release in ("v3.2", "v4-flash")]
    plans = [plan for source in sources if (plan := planned(source, Request(format_)))]
    for plan in plans:
        check(plan)
    assert plans
