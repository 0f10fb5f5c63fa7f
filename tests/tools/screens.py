"""The pictures of pages in docs/images, taken in a browser: `python -m tests.tools.screens` after a meant change.

`python3 dev.py browser` installs what this needs.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.command import dsctl

FOLDER = Path(__file__).parents[2] / "docs" / "images"
LARGEST = 300_000


class Screen(NamedTuple):
    """A part of a page, as wide as the window. It begins `above` pixels over an element."""

    name: str
    line: str
    element: str
    above: int
    height: int
    width: int = 1200


SCREENS = (
    Screen("diff-page", "diff v3 v3.2", "body", 0, 914),
    Screen("diff-drawing", "diff v3 v3.2", "svg[aria-label^=Mixture]", 0, 1080, 1280),
    Screen("inspect-page", "inspect v3.2", "body", 0, 890),
)


def taken(browser: Any, screen: Screen, folder: Path) -> bytes:
    """The picture, as PNG."""
    file = folder / "page.html"
    dsctl(*screen.line.split(), "--html", file, "--quiet")
    page = browser.new_page(viewport={"width": screen.width, "height": 900}, color_scheme="light")
    page.goto(file.as_uri())
    top = page.locator(screen.element).first.bounding_box()["y"] - screen.above
    clip = {"x": 0, "y": top, "width": screen.width, "height": screen.height}
    picture: bytes = page.screenshot(full_page=True, clip=clip)
    page.close()
    return picture


def main() -> None:
    """Take them all."""
    from playwright.sync_api import sync_playwright

    program = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as driver, tempfile.TemporaryDirectory() as folder:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for screen in SCREENS:
            picture = taken(browser, screen, Path(folder))
            assert len(picture) < LARGEST, f"{screen.name}: {len(picture):,} bytes"
            (FOLDER / f"{screen.name}.png").write_bytes(picture)
        browser.close()


if __name__ == "__main__":
    main()
