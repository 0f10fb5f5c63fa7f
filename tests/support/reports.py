"""Pages that `--html` writes, made and read by tests."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from tests.support.command import dsctl

LARGEST = 1_000_000


class Page(HTMLParser):
    """Elements opened and closed in order; their attributes; all text."""

    VOID = frozenset({"meta", "input", "br", "wbr", "link", "hr", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text += data


def made(*words: str) -> Page:
    """The page of a command line, written to page.html in the current folder."""
    dsctl(*words, "--html", "page.html", "--quiet")
    text = Path("page.html").read_text()
    assert len(text.encode()) < LARGEST
    page = Page(text)
    assert page.open == []
    return page
