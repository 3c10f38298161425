"""Makes the pictures of the page in docs/images: a real agent with a made-up history of 30 days, in a real Chromium.

python -m tests.support.page_pictures
"""

import tempfile
from datetime import UTC, datetime
from pathlib import Path

from playwright.sync_api import Page, Route, expect

from tests.support import zygote
from tests.support.browser import MISSING, NARROW, running_browser
from tests.support.machine import Machine
from tests.support.past_results import add_results, month_of

IMAGES = Path(__file__).parents[2] / "docs" / "images"
HEIGHT = 1640
SHOWN = {
    "bucket": "/mnt/nas/memories",
    "data": "/home/me/.claude/data",
    "state": "/home/me/.local/state/akosha-agent",
}
"""The paths in the pictures, in place of those of the scratch directory."""
FONTS = """<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "urn:fontconfig:fonts.dtd"><fontconfig>
<include>/etc/fonts/fonts.conf</include>
<match><test name="family"><string>DejaVu Sans</string></test>
<edit name="family" mode="prepend" binding="strong"><string>Inter</string></edit></match>
<match><test name="family"><string>sans-serif</string></test>
<edit name="family" mode="prepend" binding="strong"><string>Inter</string></edit></match>
</fontconfig>"""
"""A font like those of desktops, if fonts-inter is installed; otherwise that of this machine."""


def main() -> None:
    """Write page-light.png, page-dark.png and page-narrow.png."""
    if MISSING:
        raise SystemExit(MISSING)
    zygote.fork_children()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch).resolve()
        fonts = folder / "fonts.conf"
        fonts.write_text(FONTS)
        machine = Machine(folder / "machine")
        add_results(machine.state / "ledger.sqlite", month_of("laptop", datetime.now(UTC), machine.bucket.as_uri()))
        machine.write(commits=2500, entities=300)
        with machine.run(), running_browser(FONTCONFIG_FILE=str(fonts)) as browser:
            machine.status(lambda status: not status["pending"])
            assert machine.call("verify").code == 0

            def tidy(route: Route) -> None:
                """Replace the paths of the scratch directory."""
                answer = route.fetch()
                text = answer.text()
                for folder, shown in SHOWN.items():
                    text = text.replace(str(getattr(machine, folder)), shown)
                route.fulfill(response=answer, body=text)

            def photograph(page: Page, name: str, *, height: int) -> None:
                page.route("**/v1/status", tidy)
                page.route("**/v1/history*", tidy)
                page.goto(machine.call("open", "--print").out.strip())
                expect(page.locator("body")).to_have_attribute("data-state", "live")
                expect(page.locator("#plots svg.plot")).to_have_count(3)
                width = page.viewport_size["width"] if page.viewport_size else 0
                page.screenshot(
                    path=IMAGES / name, full_page=True, clip={"x": 0, "y": 0, "width": width, "height": height}
                )

            for name, size, scheme, height in (
                ("page-light.png", {"width": 1180, "height": 900}, "light", HEIGHT),
                ("page-dark.png", {"width": 1180, "height": 900}, "dark", HEIGHT),
                ("page-narrow.png", NARROW, "light", 1800),
            ):
                context = browser.new_context(viewport=size, color_scheme=scheme, device_scale_factor=1.5)
                photograph(context.new_page(), name, height=height)
                context.close()


if __name__ == "__main__":
    main()
