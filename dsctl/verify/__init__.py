"""Check a checkpoint: structure and scales always, every byte on request. Does not load torch."""

from __future__ import annotations

from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.scales import scales_to_check
from dsctl.checkpoint.signed_files import SignedFile
from dsctl.core.errors import FormatError
from dsctl.core.progress import Advance
from dsctl.stores import SIGNED, STATEMENT, Store
from dsctl.verify import config, drafters, numbers, signed, structure
from dsctl.verify import statement as made
from dsctl.verify.against import Other, against
from dsctl.verify.contents import ReadContents, read_contents
from dsctl.verify.findings import CheckScope, Finding, Report, ordered
from dsctl.verify.formats import formats
from dsctl.verify.library import second_opinion
from dsctl.verify.opening import open_anyhow, reachable


def verify(
    store: Store, their: Other | None = None, deep: bool = False, advance: Advance = lambda nbytes: None
) -> Report:
    """Check a checkpoint. `deep` reads every byte; `advance` is called with the number of bytes read.

    Raises:
        SourceError: the source has no checkpoint, or a file cannot be read.
    """
    opened = open_anyhow(store)
    store, _ = reachable(store)
    findings = [*opened.findings, *structure.folder(store)]
    entries = _signed(store, findings, opened.lost)
    statement = made.seen(store, store.files(), entries) if STATEMENT not in opened.lost else made.Seen()
    findings += statement.findings
    checkpoint = opened.checkpoint
    if checkpoint is not None:
        findings = list(structure.with_tensors(checkpoint, findings))
    second = second_opinion(store, findings, checkpoint.headers if checkpoint else ())
    findings = second.findings
    scope = CheckScope(
        files=len(opened.lost),
        library=second.library,
        library_opened=second.opened,
        library_refused=second.refused,
        library_unmapped=second.unmapped,
        library_skipped=second.skipped,
        statement=statement.compared,
    )
    if checkpoint is None:
        return Report(store.place, ordered(findings), scope)
    findings += [*structure.tensors(checkpoint), *drafters.findings(checkpoint)]
    surveyed = not {finding.code for finding in findings} & {"bad-config"} and _has_survey(checkpoint)
    all_scales = numbers.scale_refs(checkpoint) if surveyed else {}
    scales = all_scales if deep else {ref: all_scales[ref] for ref in scales_to_check(all_scales)}
    if surveyed:
        findings += config.fields(checkpoint) if checkpoint.model else ()
        findings += formats(checkpoint)
        findings += numbers.scales(checkpoint, scales)
    if their is not None:
        findings += against(checkpoint, their)
    contents = ReadContents()
    if deep and surveyed:
        contents = read_contents(checkpoint, entries or {}, advance)
    refs = [ref for header in checkpoint.headers.values() for ref in header.tensors.values()]
    checked = scope._replace(
        files=len(checkpoint.headers) + len(opened.lost),
        tensors=len(refs),
        parameters=len(checkpoint.survey.pieces) if surveyed else 0,
        nbytes=sum(ref.nbytes for ref in refs),
        scales=sum(ref.spec.values for ref in scales),
        scales_unread=sum(ref.spec.values for ref in all_scales.keys() - scales.keys()),
        signed=entries is not None,
        digests=contents.digests,
        algorithms=tuple(sorted(contents.algorithms)),
        contents=contents.nbytes,
        against=their.name if their else None,
        architecture=checkpoint.model.name if checkpoint.model else None,
        drafter=drafters.known_drafter(checkpoint),
    )
    return Report(store.place, ordered([*findings, *contents.findings]), checked)


def deep_bytes(store: Store) -> int:
    """The approximate number of bytes that a deep check reads, for a progress bar."""
    return sum(size for file, size in reachable(store)[0].files().items() if file.endswith(".safetensors"))


def _has_survey(checkpoint: Checkpoint) -> bool:
    """Whether parameters can be matched with tensors: not if two files without an index hold the same name."""
    try:
        return checkpoint.survey is not None
    except FormatError:
        return False


def _signed(store: Store, findings: list[Finding], lost: frozenset[str]) -> dict[str, SignedFile] | None:
    files = store.files()
    if SIGNED in lost:
        return None
    try:
        entries = signed.read_signed(store, files)
    except FormatError as error:
        findings.append(Finding("broken-json", SIGNED, error.message.removeprefix(f"{SIGNED}: ")))
        return None
    if entries is not None:
        findings += signed.sizes(entries, files)
    return entries
