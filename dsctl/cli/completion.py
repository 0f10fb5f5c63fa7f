"""Values that a shell completes, each from its table. The tables are loaded when a shell asks for them."""

from __future__ import annotations

import os


def sources(incomplete: str) -> list[str]:
    """Names of releases and entries of this folder. Empty for a different folder, so that the shell completes its
    files."""
    named = [name for name in releases(incomplete) if name.startswith(incomplete)]
    return named and named + _here(incomplete)


def _here(incomplete: str) -> list[str]:
    """Folders and weight files of this folder that begin with the text; a folder ends in a slash."""
    with os.scandir() as entries:
        found = [
            entry.name + "/" * entry.is_dir()
            for entry in entries
            if entry.name.startswith(incomplete) and (entry.is_dir() or entry.name.endswith(".safetensors"))
        ]
    return sorted(name for name in found if incomplete or not name.startswith("."))


def releases(incomplete: str) -> list[str]:
    """Aliases of releases; only the first of each while the text is empty."""
    from dsctl.releases import releases as known

    return [alias for release in known() for alias in release.alias[: None if incomplete else 1]]


def repositories(incomplete: str) -> list[str]:
    """Aliases of releases, and repositories."""
    from dsctl.releases import releases as known

    return [*releases(incomplete), *(release.repository for release in known())]


def formats() -> list[str]:
    """Formats of --to."""
    from dsctl.codecs import CODECS
    from dsctl.plan.request import PUBLISHED

    return [*CODECS, PUBLISHED]


def recipes(incomplete: str) -> list[str]:
    """Recipes by name; empty if no name begins with the text, so that the shell completes files."""
    from dsctl.plan.recipes import ready

    return [name for name in ready() if name.startswith(incomplete)]


def layouts() -> list[str]:
    """Layouts."""
    from dsctl.layouts import LAYOUTS

    return list(LAYOUTS)


def whole_layouts() -> list[str]:
    """Layouts of whole checkpoints."""
    from dsctl.layouts import LAYOUTS, SHARDED

    return [name for name in LAYOUTS if name not in SHARDED]


def drafters() -> list[str]:
    """Choices of --mtp."""
    from dsctl.plan.request import DRAFTERS

    return list(DRAFTERS)


def scale_formats() -> list[str]:
    """Formats of FP8 scales."""
    from dsctl.plan.request import SCALE_FORMATS

    return list(SCALE_FORMATS)


def forms() -> list[str]:
    """Forms of grafted parameters."""
    from dsctl.plan.graft_options import FORMS

    return list(FORMS)


def engines() -> list[str]:
    """Engines."""
    from dsctl.work.executors import ENGINES

    return list(ENGINES)


def devices() -> list[str]:
    """Kinds of devices."""
    from dsctl.work.executors import DEVICES

    return list(DEVICES)


def digests() -> list[str]:
    """Digests of files."""
    from dsctl.run.how import DIGESTS

    return list(DIGESTS)


def accelerators() -> list[str]:
    """Accelerators."""
    from dsctl.look.accelerators import ACCELERATORS

    return list(ACCELERATORS)


def demands() -> list[str]:
    """Accelerators with a usual number of them."""
    return [f"{name}x8" for name in accelerators()]


def cache_formats() -> list[str]:
    """Formats of the KV cache."""
    from dsctl.look.cache_formats import CACHE_FORMATS

    return list(CACHE_FORMATS)


def places() -> list[str]:
    """Places of n-gram tables."""
    from dsctl.look.places import PLACES

    return list(PLACES)


def parts() -> list[str]:
    """Parts of a diff."""
    from dsctl.look.diff import PARTS

    return list(PARTS)


def kinds(incomplete: str) -> list[str]:
    """Kinds of difference on which a diff can fail; they may follow others and a comma."""
    from dsctl.look.gates import KINDS

    before, comma, _ = incomplete.rpartition(",")
    return [before + comma + kind for kind in KINDS]


def encodings() -> list[str]:
    """Encodings of a delta."""
    from dsctl.checkpoint.delta_form import ENCODINGS

    return list(ENCODINGS)


def checksums() -> list[str]:
    """Checksums of a delta."""
    from dsctl.checkpoint.delta_form import CHECKSUMS

    return list(CHECKSUMS)


def findings() -> list[str]:
    """Codes of findings."""
    from dsctl.verify.findings import CODES

    return list(CODES)


def commands() -> list[str]:
    """Commands."""
    from dsctl.cli.app import ASKED, VERBS

    return [*VERBS, *ASKED]
