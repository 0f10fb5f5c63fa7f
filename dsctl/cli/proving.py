"""Compare the values of a checkpoint with those of its source, for `dsctl verify --against`."""

from __future__ import annotations

import os
import secrets

from dsctl import releases
from dsctl.checkpoint.opening import open_checkpoint, weights_at
from dsctl.cli.sources import located
from dsctl.core.errors import FormatError, SourceError, UsageError
from dsctl.look.proof import Proof, Sample
from dsctl.look.proving import prepare, prove
from dsctl.show.bars import reading
from dsctl.show.output import Output
from dsctl.stores import Store


def sampled(share: str | None, seed: int | None, against: str | None) -> Sample | None:
    """The sample that --sample and --seed ask for, or None.

    Raises:
        UsageError: the share is not one, or an option has no effect.
    """
    if share is None:
        if seed is not None:
            raise UsageError("--seed needs --sample: without it, everything is compared")
        return None
    if against is None:
        raise UsageError("--sample needs --against: it is about the values of a source", hint="--against SRC")
    text = share.strip()
    try:
        number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1:
        hint = "write --sample 1%, or --sample 0.01"
        raise UsageError(f"--sample: {share!r} is not a share above 0 and up to 100%", hint=hint)
    return Sample(number, secrets.randbelow(1 << 31) if seed is None else seed)


def source_of(against: str, remote: bool, local: bool, sample: Sample | None) -> Store | str:
    """The store of a source whose weights can be read, or why they are not read here.

    Raises:
        SourceError: it does not exist, or cannot be reached.
    """
    release = releases.meant(against)
    if release is not None and not remote and sample is None:
        return f"only the built-in description of {release.name} was used; --remote compares with the Hub's weights"
    store = weights_at(located(against, remote or release is not None, local and release is None))
    if not any(file.endswith(".safetensors") for file in store.files()):
        return f"{store.place} has no weights"
    return store


def proof_of(store: Store, source: Store, against: str, sample: Sample | None, output: Output) -> Proof | str:
    """The verdict on the values of a checkpoint, or why there is none: its own files contradict each other.

    Raises:
        SourceError: the source cannot be read. FormatError: the source contradicts itself.
    """
    there = open_checkpoint(source)
    try:
        here = open_checkpoint(store)
        # Names in two files, and sizes in its config that cannot be, raise an error here.
        _ = here.params, here.survey
    except (FormatError, SourceError) as error:
        return f"the files here contradict each other: {error.message}"
    task = prepare(here, there, "" if os.path.exists(against) else _named(against), sample)
    with reading(output, task.nbytes, "comparing") as advance:
        return prove(task, advance)


def _named(against: str) -> str:
    release = releases.known(against)
    return release.name if release else ""
