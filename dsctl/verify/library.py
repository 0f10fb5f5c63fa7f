"""The format's own library as a second judge: `safetensors` opens every weight file. No weights are read.

It maps a file and parses the header (huggingface/safetensors, safetensors/src/tensor.rs), which costs about as much as
our own reading of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from dsctl.checkpoint.checkpoint import ORIGINAL
from dsctl.checkpoint.odd_scales import ODD
from dsctl.checkpoint.side_files import WHOLE
from dsctl.core.errors import SourceError
from dsctl.stores import Store
from dsctl.stores.local import LocalFolder
from dsctl.verify.findings import Finding

_SIDE_FILES = (ORIGINAL, ODD, WHOLE)
# Our own findings that say that a file is not a valid safetensors file.
_INVALID = ("wrong-size", "broken-header", "lfs-pointer")
# A message may hold a tensor's name of any length.
_LONGEST = 300

# Opens the file at a path and returns the reason if the library refuses it. Raises OSError if the system does.
_Opener = Callable[[str], str | None]


class SecondOpinion(NamedTuple):
    """The findings of a check with the library's opinion in them.

    `library` is its name and version, None if it was not used, which `skipped` explains. The numbers count files:
    those that it opened or refused, and those that the system could not map, which says nothing about their contents.
    """

    findings: list[Finding]
    library: str | None = None
    opened: int = 0
    refused: int = 0
    unmapped: int = 0
    skipped: str | None = None


def second_opinion(store: Store, findings: Iterable[Finding], accepted: Collection[str]) -> SecondOpinion:
    """Open every weight file of a folder with the library.

    A refusal that agrees with one of the findings goes into its details. A disagreement is noted in the finding, or
    becomes a separate finding. `accepted` are the files whose headers our own checks accept.
    """
    found = list(findings)
    if not isinstance(store, LocalFolder):
        return SecondOpinion(found, skipped="the source is remote")
    loaded = _loaded()
    if loaded is None:
        return SecondOpinion(found, skipped="it is not installed")
    library, opened_by = loaded
    invalid = {finding.where: place for place, finding in enumerate(found) if finding.code in _INVALID}
    opened, refused, unmapped = 0, 0, 0
    for file in store.files():
        if not file.endswith(".safetensors") and file not in _SIDE_FILES:
            continue
        try:
            reason = opened_by(store.path(file))
        except (OSError, SourceError):
            # For example, permissions or address space are missing.
            unmapped += 1
            continue
        opened, refused = opened + (reason is None), refused + (reason is not None)
        if file in invalid:
            found[invalid[file]] = _compared(found[invalid[file]], library, reason)
        elif reason is not None:
            ours = ", but dsctl's own checks accept it" if file in accepted else ""
            found.append(Finding("library-refuses", file, f"{library} refuses it{ours}: {reason}"))
    return SecondOpinion(found, library, opened, refused, unmapped)


def _compared(finding: Finding, library: str, reason: str | None) -> Finding:
    """A finding about an invalid file with the library's opinion of that file."""
    if reason is None:
        return finding._replace(what=f"{finding.what}; {library} opens it nevertheless")
    return finding._replace(details=(f"{library} refuses it too: {reason}", *finding.details))


def _loaded() -> tuple[str, _Opener] | None:
    """The library's name and version, and how to open a file with it; None if it is not installed."""
    try:
        import safetensors
    except ImportError:
        return None

    def opened_by(path: str) -> str | None:
        try:
            with safetensors.safe_open(path, framework="np"):
                return None
        except safetensors.SafetensorError as error:
            reason = str(error)
            return reason if len(reason) <= _LONGEST else f"{reason[:_LONGEST]}..."

    return f"safetensors {safetensors.__version__}", opened_by
