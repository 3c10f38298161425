"""Chromium for tests of the page: Debian's, driven by playwright. It resolves no name, so it reaches only loopback."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
MISSING = "" if Path(CHROMIUM).exists() else "Chromium is not installed: apt-get install chromium, or set CHROMIUM"
"""Why there is no browser; "" if there is one."""

NARROW = {"width": 375, "height": 812}
WIDE = {"width": 1280, "height": 900}

_OPTIONS = (
    "--no-sandbox",  # root needs it
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.*",
)

_REPORT_VIOLATIONS = """
    addEventListener("securitypolicyviolation", (event) =>
        console.error(`CSP: ${event.violatedDirective} ${event.blockedURI}`));
"""


@contextmanager
def running_browser(**environment: str) -> Iterator[Browser]:
    """Run a headless Chromium with a new profile."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*_OPTIONS], env=os.environ | environment, handle_sigint=False
        )
        try:
            yield browser
        finally:
            browser.close()


class Watched:
    """A new page in a context of its own, with everything that it requested and complained about."""

    def __init__(self, browser: Browser, **options: object) -> None:
        self.context = browser.new_context(viewport=WIDE, reduced_motion="reduce", **options)
        self.requested: list[str] = []
        self.complaints: list[str] = []
        self.context.on("request", lambda request: self.requested.append(request.url))
        self.context.on("console", lambda message: self._heard(message.type, message.text))
        self.context.on("weberror", lambda found: self.complaints.append(str(found.error)))
        self.context.add_init_script(_REPORT_VIOLATIONS)
        self.page: Page = self.context.new_page()

    def _heard(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)
