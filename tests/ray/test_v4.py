"""DeepSeek V4 on a cluster: what nodes gather of its scales is put together, and a killed node loses none of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ray.cluster import Nodes
from tests.ray.test_deaths import PATIENCE, begun
from tests.support.command import dsctl
from tests.support.folders import contents
from tests.support.unusual import same_files, unusual

pytestmark = pytest.mark.ray


def test_a_cluster_gives_one_machine_s_bytes(
    nodes: Nodes, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = unusual(tmp_path_factory, "v4-flash-0731")
    process = begun(source, tmp_path / "out", nodes, 1)
    killed = nodes.kill(nodes.nodes[1])
    said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0 and killed, said
    dsctl("convert", source, tmp_path / "here", "--bf16", "--workers", 1)
    assert contents(tmp_path / "out") == contents(tmp_path / "here")
    dsctl("convert", tmp_path / "out", tmp_path / "back", "--to", "published", "--workers", 1)
    same_files(source, tmp_path / "back")
