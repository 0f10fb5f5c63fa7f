"""Self-contained HTML pages: everything inside, nothing fetched, readable in light and dark, on paper and by ear.

Pages are made by Jinja2 with every value escaped; charts are pygal's SVG. Both come with the extra `report`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsctl.core.errors import UsageError
from dsctl.core.extras import install_command
from dsctl.core.files import refusal
from dsctl.core.visible import spelled_lines
from dsctl.version import __version__

__all__ = ["page", "ready", "save"]

# The generator in its first bytes identifies a page of dsctl.
GENERATOR = b'<meta name="generator" content="dsctl '
HEAD = 1024


def ready(file: str, sources: Sequence[str] = ()) -> None:
    """Make sure, before any work, that a page can be made and written to this file.

    Raises:
        UsageError: the extra `report` is not installed; `file` is not a file name, is inside a source's folder, exists
            and is not a page of dsctl's, or cannot be written.
    """
    try:
        import jinja2  # noqa: F401
        import pygal  # noqa: F401
    except ImportError as error:
        raise UsageError(f"--html needs {error.name}", hint=install_command("report")) from None
    if file.strip() in ("", "-"):
        raise UsageError(f"--html: {file!r} is not the name of a file", hint="name one, such as page.html")
    path = _place(file)
    for source in sources:
        if os.path.isdir(source) and path.is_relative_to(Path(source).resolve()):
            raise UsageError(f"--html: {file}: lies in {source}, which is a source", hint="name a file outside of it")
    _spare(file, path)
    if not os.access(path.parent, os.W_OK | os.X_OK):
        why = "Permission denied" if path.parent.is_dir() else "no such folder"
        raise UsageError(f"--html: {file}: {why}")


def _place(file: str) -> Path:
    try:
        return Path(file).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(f"--html: {file!r}: {error}") from None


def _spare(file: str, path: Path) -> None:
    """Refuse to overwrite a file that is not a page of dsctl, such as weights."""
    try:
        if not path.exists():
            return
        if path.is_file():
            with path.open("rb") as there:
                head = there.read(HEAD)
            if not head or GENERATOR in head:
                return
    except OSError as error:
        raise refusal(f"--html: {file}", error, UsageError) from None
    what = "is a folder" if path.is_dir() else "exists, and is not a page that dsctl wrote"
    raise UsageError(f"--html: {file}: {what}", hint="name a different file, or remove this one")


def page(template: str, title: str, sections: Sequence[Any] = (), origin: str = "", **values: Any) -> str:
    """Render a page from one of the templates. `sections` are the tables that the terminal shows.

    `origin` names the sources of the data. A section has a title, a summary, columns (title, right), rows (cells, kind)
    and paragraphs.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("dsctl.show.drawing"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    made = environment.get_template(f"{template}.html")
    return spelled_lines(made.render(title=title, sections=sections, origin=origin, version=__version__, **values))


def save(text: str, file: str) -> None:
    """Write a page completely, or leave the old file as it is.

    Raises:
        UsageError: it cannot be written there.
    """
    path = _place(file)
    _spare(file, path)
    try:
        number, name = tempfile.mkstemp(dir=path.parent, prefix=".dsctl-", suffix=".html")
        part = Path(name)
        try:
            with open(number, "w", encoding="utf-8", errors="backslashreplace") as out:
                out.write(text)
            part.chmod(0o666 & ~_mask())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise refusal(f"--html: {file}", error, UsageError) from None


def _mask() -> int:
    """The process's umask, which mkstemp ignores."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
