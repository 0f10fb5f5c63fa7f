"""Write docs/releases.md from the descriptions: run `python -m tests.tools.releases` after you change one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dsctl.core.amounts import size
from dsctl.look.description import Description, of_release
from dsctl.models import MODELS
from dsctl.releases import Release, releases

PAGE = Path(__file__).parents[2] / "docs" / "releases.md"
HEAD = """# Supported releases

Written by `python -m tests.tools.releases` from the descriptions in dsctl/releases, which hold these sources.

dsctl describes {number} releases of {models} architectures. It reads every checkpoint of these architectures under any
name: a fine-tune or a repack needs no entry here. For other architectures it reads the headers alone (see
[convert](convert.md) and [verify](verify.md)).

No weights of releases were downloaded for these descriptions. Names, shapes and dtypes come from the published model
code and from public listings of headers; bytes and tensors are computed from them and compared with published figures.
Each release below says what was confirmed, and by what. **Derived** facts were not read but follow from a different
release. **Not confirmed** facts have no source: dsctl leaves them out, and `dsctl models --json` has null.

| release | alias | tensors | bytes | parameters | config | figures |
|---|---|--:|--:|--:|---|---|
"""
# The printed facts, and the fields of a release that hold them.
FACTS = ("repository", "date", "licence", "context", "architecture", "config", "storage", "chat_template", "tokens")


def page() -> str:
    """The page as it should be."""
    known = [of_release(release) for release in releases()]
    head = HEAD.format(number=len(known), models=len(MODELS))
    rows = "".join(_row(one) for one in known)
    return head + rows + "".join("\n" + "\n".join(_section(one)) + "\n" for one in known)


def _release(one: Description) -> Release:
    assert one.release is not None
    return one.release


def _row(one: Description) -> str:
    release = _release(one)
    config = "derived" if "config" in release.derived else "not confirmed" if "config" in release.unknown else "read"
    figures = (one.tensors, one.nbytes) == (release.storage.stored_tensors, release.storage.total_size)
    known = any(value is not None for value in (release.storage.stored_tensors, release.storage.total_size))
    agreed = (
        "derived"
        if "storage" in release.derived
        else "agree"
        if figures
        else "agree in part"
        if known
        else "not published"
    )
    anchor = release.name.lower().replace(".", "")
    return (
        f"| [{release.name}](#{anchor}) | `{release.alias[0]}` | {one.tensors:,} | {one.nbytes:,} | {one.values:,} | "
        f"{config} | {agreed} |\n"
    )


def _section(one: Description) -> Iterator[str]:
    release = _release(one)
    yield f"## {release.name}\n"
    yield f"{release.notes}\n"
    formats = ", ".join(f"`{name}`" for name in release.storage.formats)
    files = f"{release.storage.files} files, " if release.storage.files else ""
    yield f"`{release.architecture}`, {files}{one.tensors:,} tensors, {size(one.nbytes)}, stored as {formats}.\n"
    for fact in FACTS:
        found = release.sources.get(fact)
        if found and fact not in release.derived and fact not in release.unknown:
            yield f"- **{fact.replace('_', ' ')}** {_value(release, fact)}confirmed by: {'; '.join(found)}"
    for fact in release.derived:
        sources = [one.removeprefix("derived: ") for one in release.sources.get(fact, ())]
        yield f"- **{fact.replace('_', ' ')}** derived: {'; '.join(sources) or 'see the sources of storage'}"
    if release.unknown:
        yield f"- Not confirmed: {', '.join(name.replace('_', ' ') for name in release.unknown)}"


def _value(release: Release, fact: str) -> str:
    value = getattr(release, fact)
    if fact == "storage":
        return ""
    if isinstance(value, int):
        return f"{value:,}, "
    return f"{value}, " if isinstance(value, str) else ""


if __name__ == "__main__":
    PAGE.write_text(page())
