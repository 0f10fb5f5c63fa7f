"""The options of a delta, judged before anything is opened. Data only."""

from __future__ import annotations

from dataclasses import dataclass

from dsctl.checkpoint.delta_form import ADLER32, CHECKSUMS, ENCODINGS, XOR
from dsctl.core.choices import choose
from dsctl.core.errors import UsageError
from dsctl.core.frames import LEVELS, SPARSE
from dsctl.plan.request import KEEP, Request

# Versions are numbers of six digits: SGLang takes int() of them, and of the names of their folders.
DIGITS = 6
_MOST = 10**DIGITS - 1


@dataclass(frozen=True, slots=True)
class DeltaOptions:
    """How a delta is made: its encoding, its checksums, the level of zstd (`SPARSE` for differences), the number of its
    version, and that of its base, None for the one before. `anyway` makes a delta that saves nothing.

    Raises:
        UsageError: an unknown encoding or checksum, or a number out of range.
    """

    encoding: str = XOR
    checksum: str = ADLER32
    level: int = SPARSE
    version: int = 1
    base: int | None = None
    anyway: bool = False

    def __post_init__(self) -> None:
        choose(self.encoding, ENCODINGS, "encoding", "--encoding")
        choose(self.checksum, CHECKSUMS, "checksum", "--checksum")
        if self.level != SPARSE and self.level not in LEVELS:
            raise UsageError(f"--level: {self.level} is not a level of zstd", hint=f"{LEVELS[0]} to {LEVELS[-1]}")
        if not 1 <= self.version <= _MOST:
            raise UsageError(f"--version: {self.version} is not between 1 and {_MOST:,}")
        if self.base is not None and not 0 <= self.base < self.version:
            hint = "a delta leads from an earlier version to a later one"
            raise UsageError(f"--base-version: {self.base} is not between 0 and {self.version - 1:,}", hint=hint)

    @property
    def version_text(self) -> str:
        return f"{self.version:0{DIGITS}d}"

    @property
    def base_text(self) -> str:
        return f"{self.version - 1 if self.base is None else self.base:0{DIGITS}d}"

    @property
    def request(self) -> Request:
        """The request of `delta make`; its identity has everything that changes the delta's bytes."""
        said = (
            f"make {self.encoding} {self.checksum} level {self.level} version {self.version_text} of {self.base_text}"
        )
        return Request(KEEP, delta=said)
