"""Pages in a real browser: nothing is fetched, nothing is complained of, the search finds. `-m browser` runs them.

They need playwright, and chromium: the system's, or where the variable CHROMIUM says.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.command import dsctl

pytestmark = pytest.mark.browser
LINES = ("diff v3 v3.2", "diff v2 glm-5.2", "inspect v3.2", "plan v3.2 --to bf16")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    program = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200, 2000])
@pytest.mark.parametrize("line", LINES)
def test_a_page_is_quiet_and_fits(line: str, width: int, scheme: Any, browser: Any, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    dsctl(*line.split(), "--html", file, "--quiet")
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    assert said == [] and asked == [file.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def test_the_search_leaves_what_matches(browser: Any, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    dsctl("inspect", "v3.2", "--html", file, "--quiet")
    page = browser.new_page()
    page.goto(file.as_uri())
    page.get_by_label("Search").fill("indexer f8_e4m3")
    shown = [row.inner_text() for row in page.locator("#tensors tbody tr").all() if row.is_visible()]
    assert len(shown) == 2 and all("indexer" in text for text in shown)
    assert page.locator("#found").inner_text().startswith("2 of ")
    page.get_by_label("Search").fill("")
    assert page.locator("#tensors tbody tr:visible").count() > 40
    page.close()
