"""The findings of a check: a stable code, a place and a description. docs/verify.md explains every code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from dsctl.core.amounts import plural
from dsctl.core.tables import html, table, text_table
from dsctl.core.visible import shortened, visible

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)


class Code(NamedTuple):
    """A kind of finding: its severity, and whether `--fix` can correct it."""

    severity: str
    mendable: bool = False


CODES: dict[str, Code] = {
    # files
    "unreadable-file":      Code(ERROR),
    "private-file":         Code(WARNING),
    "lfs-pointer":          Code(ERROR),
    "wrong-size":           Code(ERROR),
    "broken-header":        Code(ERROR),
    "library-refuses":      Code(ERROR),
    "broken-json":          Code(ERROR),
    "missing-shard":        Code(ERROR),
    "stray-file":           Code(WARNING),
    "unfinished":           Code(ERROR),
    "leftover":             Code(WARNING, True),
    "no-tokenizer":         Code(WARNING),
    "missing-code":         Code(NOTE),
    "missing-side-file":    Code(ERROR, True),
    "side-file-differs":    Code(WARNING),
    # metadata
    "no-config":            Code(ERROR),
    "bad-config":           Code(ERROR),
    "odd-config":           Code(ERROR),
    "wrong-config":         Code(ERROR),
    "unknown-architecture": Code(NOTE),
    "unread-form":          Code(NOTE),
    "torch-dtype":          Code(WARNING, True),
    "no-index":             Code(ERROR, True),
    "index-wrong":          Code(ERROR, True),
    "index-unknown":        Code(ERROR, True),
    "duplicate-name":       Code(ERROR),
    "total-size":           Code(NOTE, True),
    "no-format-pt":         Code(NOTE, True),
    "format-not-declared":  Code(ERROR, True),
    "declared-not-stored":  Code(ERROR, True),
    "block-size":           Code(ERROR, True),
    "scale-fmt-undeclared": Code(WARNING, True),
    "scale-fmt-missing":    Code(ERROR, True),
    "expert-dtype":         Code(ERROR, True),
    "expert-dtype-missing": Code(WARNING, True),
    "compress-ratios":      Code(ERROR),
    "drafter-missing":      Code(ERROR),
    "drafter-undeclared":   Code(ERROR),
    "drafter-stages":       Code(ERROR),
    "drafter-config":       Code(ERROR),
    "drafter-targets":      Code(ERROR),
    "drafter-alone":        Code(NOTE),
    "drafter-apart":        Code(NOTE),
    "cache-sources":        Code(ERROR),
    "engram-tables":        Code(ERROR),
    # tensors
    "missing-rank":         Code(ERROR),
    "one-rank":             Code(NOTE),
    "missing-tensor":       Code(ERROR),
    "missing-weight":       Code(ERROR),
    "missing-scale":        Code(ERROR),
    "wrong-shape":          Code(ERROR),
    "wrong-dtype":          Code(ERROR),
    "wrong-scale":          Code(ERROR),
    "wrong-scale-dtype":    Code(ERROR),
    "other-grid":           Code(ERROR),
    "not-packed":           Code(ERROR),
    "extra-tensor":         Code(ERROR),
    "odd-dtype":            Code(ERROR),
    "router-bias-narrowed": Code(ERROR),
    "hyper-connections-narrowed": Code(ERROR),
    "float32-narrowed":     Code(ERROR),
    "narrowed":             Code(WARNING),
    "widened":              Code(NOTE),
    "mixed-names":          Code(WARNING),
    "not-quantized":        Code(ERROR),
    "other-format":         Code(ERROR),
    "not-quantizable":      Code(WARNING),
    "scale-dtype":          Code(WARNING),
    # scales
    "bad-scale":            Code(ERROR),
    "scale-bytes":          Code(ERROR),
    "odd-scale":            Code(WARNING),
    "not-power-of-two":     Code(ERROR, True),
    "scales-apart":         Code(NOTE),
    # dsctl.json
    "signed-missing":       Code(ERROR),
    "signed-size":          Code(ERROR),
    "digest":               Code(ERROR),
    "unsigned-file":        Code(NOTE),
    "statement-broken":     Code(ERROR),
    "statement-subjects":   Code(ERROR, True),
    "statement-differs":    Code(ERROR),
    # another checkpoint or release
    "other-architecture":   Code(ERROR),
    "config-differs":       Code(WARNING),
    "other-storage":        Code(WARNING),
    "other-values":         Code(ERROR),
    "lost-parameter":       Code(ERROR),
    "added-parameter":      Code(ERROR),
    "unread-values":        Code(ERROR),
    "odd-rounding":         Code(WARNING),
    # contents
    "not-finite":           Code(ERROR),
    "huge-value":           Code(WARNING),
    "out-of-range":         Code(ERROR),
    "repeated-expert":      Code(WARNING),
    "all-zero":             Code(ERROR),
    "zero-part":            Code(WARNING),
    "scale-too-large":      Code(WARNING),
    "odd-magnitude":        Code(WARNING),
    "copies-differ":        Code(ERROR),
    "duplicate":            Code(ERROR),
    "twin-differs":         Code(WARNING),
    "twin-equal":           Code(NOTE),
}  # fmt: skip


class Finding(NamedTuple):
    """One finding: its code, the file or tensor, and a description; `details` lists its consequences."""

    code: str
    where: str
    what: str
    details: tuple[str, ...] = ()

    @property
    def severity(self) -> str:
        return CODES[self.code].severity

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


class CheckScope(NamedTuple):
    """What was checked: files and tensors by their headers, scales as numbers, digests, bytes of weights.

    `drafter` is the drafter that the tensors show: its `kind` (mtp or dspark), the number of its `stages`, the same as
    `text`, and whether it is `alone`, without its model; None if there is none. If `architecture` is None, it is
    unknown: which parameters there should be was not checked. `digests` counts the files whose bytes were compared with
    `dsctl.json`, by the digests named in `algorithms`. `statement` counts the subjects of the statement that were
    compared with `dsctl.json`: 0 if that was not possible, None if there is no statement. A signature is never checked.
    `scales_unread` counts the scales of groups that were not read because there are too many of them. The fields of
    `library` are those of `dsctl.verify.library.SecondOpinion`.
    """

    files: int = 0
    tensors: int = 0
    parameters: int = 0
    nbytes: int = 0
    scales: int = 0
    scales_unread: int = 0
    signed: bool = False
    digests: int = 0
    algorithms: tuple[str, ...] = ()
    contents: int = 0
    against: str | None = None
    architecture: str | None = None
    drafter: dict[str, Any] | None = None
    library: str | None = None
    library_opened: int = 0
    library_refused: int = 0
    library_unmapped: int = 0
    library_skipped: str | None = None
    statement: int | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """All findings, the worst first, and the scope of the check."""

    place: str
    findings: tuple[Finding, ...]
    checked: CheckScope

    def __repr__(self) -> str:
        return f"<Report {shortened(self.place)}: {self.summary}>"

    def __str__(self) -> str:
        """Return the text that `print` shows: the number of findings, and the findings, the worst first."""
        lines = [f"{visible(self.place)}: {self.summary}"]
        return "\n".join([*lines, *text_table("", _COLUMNS, map(_row, self.findings))[1:]])

    def _repr_html_(self) -> str:
        """Return the same as HTML for a notebook."""
        found = table("Findings", _COLUMNS, map(_row, self.findings))
        return f"<h3>{html(self.place)}</h3><p>{self.summary}</p>{found}"

    @property
    def summary(self) -> str:
        """The number of findings of each severity, in words."""
        return ", ".join(plural(self.count(severity), severity) for severity in SEVERITIES)

    @property
    def ok(self) -> bool:
        """Whether there is not a single error; warnings and notes do not count."""
        return not self.count(ERROR)

    def count(self, severity: str) -> int:
        return sum(finding.severity == severity for finding in self.findings)

    @property
    def worst(self) -> str | None:
        """The worst severity found, or None."""
        return next((severity for severity in SEVERITIES if self.count(severity)), None)


_COLUMNS = "severity", "code", "where", "problem"


def _row(finding: Finding) -> tuple[str, ...]:
    return finding.severity, finding.code, finding.where, finding.what


def ordered(findings: list[Finding]) -> tuple[Finding, ...]:
    """The worst first, grouped by code, then in the order in which they were found."""
    codes = list(CODES)
    rank = {code: (SEVERITIES.index(CODES[code].severity), codes.index(code)) for code in codes}
    return tuple(sorted(findings, key=lambda finding: rank[finding.code]))
