"""Nodes and drivers of a Ray cluster die in the middle of a run; the bytes are those of a serial run."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.flows.test_resume import command, contents
from tests.ray.cluster import Nodes
from tests.support.command import dsctl, dsctl_fails, run

pytestmark = pytest.mark.ray
# Seconds for whatever a machine that others use may take.
PATIENCE = 300


@pytest.fixture(scope="module")
def serial(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    target = tmp_path_factory.mktemp("serial") / "out"
    dsctl("convert", source, target, "--bf16", "--workers", "1")
    return contents(target)


def begun(source: Path, target: Path, nodes: Nodes, jobs: int, *more: str) -> subprocess.Popen[str]:
    """A run on the cluster that has done some jobs."""
    arguments = command(source, target, "--bf16", "--engine", "ray", "--address", nodes.address, *more)
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    journal, deadline = target / ".dsctl" / "journal.jsonl", time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        if journal.exists() and journal.read_bytes().count(b'"job"') >= jobs:
            return process
        time.sleep(0.02)
    raise AssertionError(f"ended or never began: {process.communicate()}")


def test_a_killed_node_costs_time_and_no_byte(
    source: Path, serial: dict[str, str], nodes: Nodes, tmp_path: Path
) -> None:
    process = begun(source, tmp_path / "out", nodes, 2)
    killed = nodes.kill(nodes.nodes[1])
    said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    assert killed, "no worker of the node was at work"
    assert contents(tmp_path / "out") == serial


def test_a_killed_driver_s_run_resumes(source: Path, serial: dict[str, str], nodes: Nodes, tmp_path: Path) -> None:
    target = tmp_path / "out"
    process = begun(source, target, nodes, 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = (target / ".dsctl" / "journal.jsonl").read_bytes().count(b'"job"')
    assert 3 <= done < 24
    again = run("convert", source, target, "--bf16", "--engine", "ray", "--address", nodes.address)
    assert again.returncode == 0, again.stderr
    assert contents(target) == serial


def test_when_all_nodes_are_gone_new_ones_take_over(
    source: Path, serial: dict[str, str], nodes: Nodes, tmp_path: Path
) -> None:
    process = begun(source, tmp_path / "out", nodes, 1)
    for node in nodes.nodes:
        nodes.kill(node)
    assert process.stderr
    assert any("waiting: no node is left that can take a task" in line for line in process.stderr)
    nodes.add()
    said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    assert contents(tmp_path / "out") == serial


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_it_with_a_hint(source: Path, nodes: Nodes, tmp_path: Path, how: signal.Signals) -> None:
    process = begun(source, tmp_path / "out", nodes, 1)
    process.send_signal(how)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130 and "same command" in said and "Traceback" not in said, said


def test_a_killed_worker_costs_no_byte_and_its_obituary_is_no_data(
    source: Path, serial: dict[str, str], nodes: Nodes, tmp_path: Path
) -> None:
    process = begun(source, tmp_path / "out", nodes, 2, "--json")
    while not (at_work := [pid for node in nodes.nodes for pid in nodes.workers(node)]):
        assert process.poll() is None, process.communicate()
    os.kill(at_work[0], signal.SIGKILL)
    out, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    assert json.loads(out)["audit"]["unexplained"] == 0
    assert contents(tmp_path / "out") == serial


def test_a_cluster_that_can_take_no_task_is_refused(source: Path, nodes: Nodes, tmp_path: Path) -> None:
    words = ("convert", source, tmp_path / "out", "--bf16", "--engine", "ray", "--address", nodes.address)
    done = run(*words, "--device", "cuda")
    assert done.returncode == 30 and "no node can take a task" in done.stderr and "GPU" in done.stderr, done.stderr


def test_an_object_store_takes_what_a_cluster_makes(
    source: Path, serial: dict[str, str], nodes: Nodes, tmp_path: Path
) -> None:
    from tests.cloud.server import BUCKET, Objects

    objects = Objects()
    try:
        words = ("convert", source, f"s3://{BUCKET}/made", "--bf16", "--engine", "ray", "--address", nodes.address)
        done = run(*words, env=os.environ | objects.environment | {"DSCTL_STAGING": str(tmp_path / "staging")})
        assert done.returncode == 0, done.stderr
        made = {name: hashlib.sha256(data).hexdigest() for name, data in objects.contents("made").items()}
    finally:
        objects.close()
    assert made == serial


def test_where_there_is_no_cluster_it_is_said(source: Path, tmp_path: Path) -> None:
    assert dsctl_fails("convert", source, tmp_path / "a", "--bf16", "--engine", "ray", "--address", "127.0.0.1:9") == 41
    assert dsctl_fails("convert", source, tmp_path / "b", "--bf16", "--engine", "dask") == 2
    assert dsctl_fails("convert", source, tmp_path / "c", "--bf16", "--address", "auto") == 2
