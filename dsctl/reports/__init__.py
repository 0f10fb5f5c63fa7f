"""Self-contained HTML pages: everything inside, nothing fetched, readable in light and dark, on paper and by ear.

Pages are made by Jinja2 with every value escaped; charts are pygal's SVG. Both come with the extra `report`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsctl.errors import UsageError

__all__ = ["need", "page", "save"]


def need() -> None:
    """Make sure that the libraries are there, before any work.

    Raises:
        UsageError: the extra `report` is not installed.
    """
    try:
        import jinja2  # noqa: F401
        import pygal  # noqa: F401
    except ImportError as error:
        raise UsageError(f"--html needs {error.name}", hint="pip install 'dsctl[report]'") from None


def page(template: str, title: str, sections: Sequence[Any] = (), **values: Any) -> str:
    """A whole page from one of the templates; `sections` are the tables that the terminal shows.

    A section has a title, a summary, columns (title, right), rows (cells, kind) and paragraphs.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from dsctl.version import __version__

    environment = Environment(
        loader=PackageLoader("dsctl.reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    made = environment.get_template(f"{template}.html")
    return made.render(title=title, sections=sections, version=__version__, **values)


def save(text: str, file: str) -> None:
    """Write a page.

    Raises:
        UsageError: it cannot be written there.
    """
    try:
        Path(file).write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UsageError(f"--html: {file}: {error.strerror or error}") from None
