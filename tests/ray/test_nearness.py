"""Jobs go where their files are."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsctl.checkpoint.opening import open_checkpoint
from dsctl.plan.planner import make_plan
from dsctl.plan.request import Request
from dsctl.stores.local import LocalFolder
from dsctl.work.executors.ray import Ray, holds
from dsctl.work.tasks import Context, Seal
from tests.ray.cluster import Nodes

pytestmark = pytest.mark.ray


def test_a_job_goes_to_a_node_that_holds_its_files(source: Path, nodes: Nodes, tmp_path: Path) -> None:
    store = LocalFolder.at(source)
    plan = make_plan(open_checkpoint(store), Request("bf16"))
    workers = Ray(Context(store, str(tmp_path)), address=nodes.address)
    try:
        assert workers.capacity == 3 * 2 + 4 and workers._holders == {}
        node = nodes.nodes[1].node_id
        workers._holders = {step.reads[0].parts[0].file: frozenset({node}) for step in plan.jobs[0].steps}
        assert workers._near(plan.jobs[0])["scheduling_strategy"].node_id == node
        assert workers._near(Seal("any")) == {}
    finally:
        workers.close()


def test_a_node_holds_what_it_sees(source: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    files = set(LocalFolder.at(source).files())
    assert holds(LocalFolder.at(source), files) == files
    assert holds(LocalFolder(str(tmp_path)), files) == {"config.json"}
