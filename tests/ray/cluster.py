"""A Ray cluster of several node processes on this machine, for tests."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

# Seconds between looks at a node, looks that may fail, and so the time until a killed node counts as dead.
SETTINGS = {"health_check_period_ms": 500, "health_check_timeout_ms": 500, "health_check_failure_threshold": 3}


class Nodes:
    """A head without processors and some nodes of two each, every one a process that can be killed."""

    def __init__(self, nodes: int) -> None:
        from ray.cluster_utils import Cluster

        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        self.cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": SETTINGS}
        )
        self.nodes: list[Any] = [self.add() for _ in range(nodes)]

    @property
    def address(self) -> str:
        """Where a driver joins."""
        return str(self.cluster.address)

    def add(self) -> Any:
        """One more node."""
        return self.cluster.add_node(num_cpus=2)

    def kill(self, node: Any) -> list[int]:
        """SIGKILL a node: its raylet and with it, as on a machine that loses power, all of its workers."""
        workers = _descendants(_raylet(node))
        for pid in (_raylet(node), *workers):
            os.kill(pid, signal.SIGKILL)
        return workers

    def workers(self, node: Any) -> list[int]:
        """The processes of a node that are at a task."""
        return [pid for pid in _descendants(_raylet(node)) if _title(pid).startswith("ray::_perform")]

    def close(self) -> None:
        """End every process."""
        self.cluster.shutdown()


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def _descendants(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    children = [int(line) for line in found.stdout.split()]
    return [*children, *(inner for child in children for inner in _descendants(child))]
