"""Every rank's config.json must equal the whole checkpoint's. No torch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.reading import read_json
from dsctl.core.errors import FormatError
from dsctl.layouts.manifests import MANIFEST

CONFIG = "config.json"


def check_repeated(checkpoint: Checkpoint) -> None:
    """Refuse ranks whose `config.json` differs from the whole checkpoint's.

    Raises:
        FormatError: for every such rank it has both files and the fields that differ.
    """
    files = [file.removesuffix(MANIFEST) + CONFIG for file in checkpoint.manifests if file != MANIFEST]
    if not files or checkpoint.config is None:
        return
    with ThreadPoolExecutor(16) as pool:
        configs = list(pool.map(lambda file: read_json(checkpoint.store, file, checkpoint.files), files))
    issues = [
        f"{CONFIG} and {file} differ in {', '.join(_differing(checkpoint.config, config))}"
        for file, config in zip(files, configs, strict=True)
        if config is not None and config != checkpoint.config
    ]
    if issues:
        what = issues[0] if len(issues) == 1 else f"{len(issues):,} ranks have a different {CONFIG}"
        hint = "all ranks belong to one model: put the same config.json beside them and into their folders"
        raise FormatError(f"{checkpoint.store.place}: {what}", hint=hint, issues=issues)


def _differing(one: dict[str, object], other: dict[str, object]) -> list[str]:
    names = dict.fromkeys((*one, *other))
    return [name for name in names if (name in one, one.get(name)) != (name in other, other.get(name))]
