"""The settings of a run, which do not change its output: workers, memory, engine, device. They are checked here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dsctl.core.choices import choose
from dsctl.core.errors import UsageError
from dsctl.stores.objects import is_url
from dsctl.stores.repositories import is_target, parse
from dsctl.work.executors import ENGINES, named_devices

BLAKE3, SHA256 = "blake3", "sha256"
DIGESTS = (BLAKE3, SHA256)
# More bytes or processes than any machine has.
MOST = 1 << 60


@dataclass(frozen=True, slots=True)
class How:
    """The settings of a run, which do not change its output. An instance holds only valid values.

    `workers` are processes, and `max_memory` is in bytes of all processes together; None uses what the machine has.
    `engine`, `address` and `device` are those of the command line. With `force` a target that dsctl made is started
    over; with `consume` source files are deleted as they are converted. With the `digest` sha256, every file also gets
    its SHA-256. `staging` are the most bytes of disk for files on their way to a URL, and with `public` a new
    repository on a hub is public.

    Raises:
        UsageError: an unknown engine or device, an address without a cluster, a number below 1.
    """

    workers: int | None = None
    max_memory: float | None = None
    engine: str = "processes"
    address: str = ""
    device: str = "cpu"
    force: bool = False
    consume: bool = False
    digest: str = BLAKE3
    staging: int | None = None
    public: bool = False

    def __post_init__(self) -> None:
        choose(self.engine, ENGINES, "engine", "--engine")
        if self.address and self.engine != "ray":
            raise UsageError("--address is for --engine ray", hint="add --engine ray, or leave --address out")
        choose(self.digest, DIGESTS, "digest", "--digest")
        named_devices(self.device)
        if not _is_amount(self.workers, int):
            raise UsageError(f"--workers: {self.workers!r} is not a number of processes", hint="1 or more")
        if not _is_amount(self.max_memory, int | float):
            raise UsageError(f"--max-memory: {self.max_memory!r} is not a number of bytes", hint="1 or more")
        if not _is_amount(self.staging, int):
            raise UsageError(f"--staging: {self.staging!r} is not a number of bytes", hint="1 or more")

    def refuse_idle(self, target: str) -> None:
        """Refuse a repository's name that cannot be one, and settings that have no effect on a target.

        Raises:
            UsageError: naming the target or the option.
        """
        if is_target(target):
            parse(target)
        if self.staging is not None and not is_url(target):
            raise UsageError("--staging: only a target at a URL has a staging folder", hint="leave --staging out")
        if self.public and not is_target(target):
            raise UsageError("--public: only a repository on a hub is public or private", hint="leave --public out")


def _is_amount(value: object, kinds: Any) -> bool:
    return value is None or (isinstance(value, kinds) and not isinstance(value, bool) and 1 <= value <= MOST)
