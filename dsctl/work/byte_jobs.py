"""Perform the jobs of a plan that moves or patches whole tensors as bytes. Loads numpy, no torch."""

from __future__ import annotations

from time import perf_counter, thread_time
from typing import Any

import numpy as np

from dsctl.checkpoint.delta_form import checksum
from dsctl.core.errors import FormatError
from dsctl.core.progress import Advance
from dsctl.plan.plan import Job
from dsctl.plan.steps import Step
from dsctl.plan.stretches import written
from dsctl.stores import Store
from dsctl.work.output_files import OutputFiles
from dsctl.work.patching import PIECE_BYTES, patched
from dsctl.work.readahead import Reader, ahead
from dsctl.work.tasks import COMPUTE, PROCESSOR, READ, Context, Receipt


def perform(job: Job, context: Context, progress: Advance) -> Receipt:
    """Do one job; repeating it writes the same bytes to the same place.

    Raises:
        SourceError: the source cannot be read. FormatError: a frame is damaged, or the new bytes are not those that the
            delta was made for. WorkError: the target cannot be written.
    """
    began, worked = perf_counter(), thread_time()
    output, whole = OutputFiles(context.folder, written(job)), False
    try:
        with ahead(context.store, job.steps) as reader:
            source = _Timed(reader, output)
            for step in job.steps:
                _step(step, source, context.store, output, progress)
        whole = True
    finally:
        output.close(durable=whole)
    seconds = output.seconds | {PROCESSOR: thread_time() - worked}
    seconds[COMPUTE] = perf_counter() - began - sum(output.seconds.values())
    return Receipt(job.number, {}, digests=output.digests(), seconds=seconds)


class _Timed:
    """A reader that keeps account of its time."""

    def __init__(self, reader: Reader, output: OutputFiles) -> None:
        self._reader, self._output = reader, output

    def read_into(self, file: str, begin: int, buffer: memoryview) -> None:
        began = perf_counter()
        self._reader.read_into(file, begin, buffer)
        self._output.spent(READ, began)

    def read(self, file: str, begin: int, end: int) -> bytes:
        buffer = bytearray(end - begin)
        self.read_into(file, begin, memoryview(buffer))
        return bytes(buffer)


def _step(step: Step, source: _Timed, store: Store, output: OutputFiles, progress: Advance) -> None:
    (target,) = step.writes[0].parts
    old = step.reads[0].parts[0]

    def base(at: int, buffer: memoryview) -> None:
        source.read_into(old.file, old.offset + at, buffer)

    change, at = step.change, target.offset
    if change is None:
        buffer: Any = np.empty(min(PIECE_BYTES, old.spec.nbytes), np.uint8)
        for begin in range(0, old.spec.nbytes, PIECE_BYTES):
            piece = buffer[: min(PIECE_BYTES, old.spec.nbytes - begin)].data
            base(begin, piece)
            output.put(target.file, at + begin, piece)
            progress(len(piece))
        return
    sum_ = checksum(change.kind) if not change.by_digest else None
    for piece in patched(change, base, source.read):
        if sum_ is not None:
            sum_.update(piece)
        output.put(target.file, at, piece)
        at += len(piece)
        progress(len(piece))
    if sum_ is not None and sum_.hexdigest() != change.checksum:
        what = f"the result has another {change.kind} than the delta says: the base or the delta has changed"
        raise FormatError(f"{change.name}: {what}", hint="verify both, then run the same command again")
