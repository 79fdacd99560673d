"""Somebody who uses the page in headless Chromium: what they do and what they see."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tests.page.site import Missing, tool

if TYPE_CHECKING:  # Where it is not installed, these tests are skipped.
    from playwright.sync_api import Browser, Locator, Page

PATIENCE_MS = 60_000
"""Generous: other tests may want the same cores."""


def installed() -> str:
    """Find Chromium, and see that there is what drives it."""
    if importlib.util.find_spec("playwright") is None:
        raise Missing("playwright is not installed (pip install 'ditcast[mesh]')")
    return tool("chromium", "apt-get install chromium")


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Run headless Chromium."""
    program = installed()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        yield browser
        browser.close()


class Visitor:
    """One window of the browser with the page in it."""

    def __init__(self, browser: Browser, url: str, **window: Any) -> None:  # noqa: ANN401 (as Playwright takes it)
        """Open the page, and wait until it has asked the server."""
        self.page: Page = browser.new_page(**window)
        self.page.set_default_timeout(PATIENCE_MS)
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self._complain(message.type, message.text))
        self.page.on("pageerror", lambda error: self._complain("error", str(error)))
        self._url = url
        self.open()

    def open(self, fragment: str = "") -> None:
        """Go to the page, or to a generation on it."""
        self.page.goto(self._url + fragment)
        self.page.wait_for_selector("#parameters [name=width]")

    def close(self) -> None:
        """Close the window; the browser must have had nothing to complain of."""
        self.page.close()
        assert self.complaints == []

    def field(self, name: str) -> Locator:
        """Find a field of the request."""
        return self.page.locator(f"#request [name='{name}']")

    def fill(self, **fields: object) -> None:
        """Fill in fields of the request."""
        for name, value in fields.items():
            self.field(name).fill(str(value))

    def generate(self, **fields: object) -> None:
        """Fill in what is given, and press Generate."""
        self.fill(**fields)
        self.page.click("#generate")

    def wait(self, condition: str) -> None:
        """Wait for something that is said in JavaScript."""
        self.page.wait_for_function(condition)

    def wait_status(self, beginning: str) -> str:
        """Wait until the status line begins so, and give it."""
        self.wait(f"document.querySelector('#status').textContent.startsWith({beginning!r})")
        return self.text("#status")

    def wait_steps(self, count: int) -> None:
        """Wait until so many steps are done."""
        self.wait(f"document.querySelectorAll('#strip [class]').length >= {count}")

    def text(self, selector: str) -> str:
        """Read what stands there."""
        return str(self.page.locator(selector).inner_text())

    def steps(self) -> list[str]:
        """Read the strip: what each step was, empty where it is not done."""
        marks: list[str] = self.page.eval_on_selector_all(
            "#strip span", "all => all.map(each => each.className)"
        )
        return marks

    def style(self, selector: str, name: str) -> str:
        """Read what the browser makes of the style sheet."""
        script = "(element, name) => getComputedStyle(element)[name]"
        value: str = self.page.eval_on_selector(selector, script, name)
        return value

    def picture_digest(self) -> bytes:
        """Fetch what the picture shows, and give its SHA-256."""
        script = "async (image) => Array.from(await (await fetch(image.src)).bytes())"
        return hashlib.sha256(bytes(self.page.eval_on_selector("#outputs img", script))).digest()

    def _complain(self, kind: str, text: str) -> None:
        if kind in {"error", "warning"}:
            self.complaints.append(text)
