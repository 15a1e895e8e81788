"""Takes the pictures in docs/page.md anew: `python -m tests.browser.pictures`. Looks at nothing; people do."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from tests.browser.conftest import CHROMIUM, Served
from tests.edit_clips import red_ball, write_source

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
FILM = (ROOT / "examples" / "first_film.yaml").read_text(encoding="utf-8")
RUNNING = """() => { const of = (status) => document.querySelectorAll(`.shot[data-status=${status}]`).length;
  return of("succeeded") >= 2 && document.querySelectorAll(".going:not([hidden])").length >= 2; }"""


def take(page: Page, name: str, *, tall: bool = False) -> None:
    """Write docs/NAME.jpg; well under 200 kB."""
    page.mouse.move(5, 5)
    page.wait_for_timeout(600)
    page.screenshot(path=DOCS / f"{name}.jpg", type="jpeg", quality=80, full_page=tall)


def edit(page: Page, clip: Path) -> None:
    """A video that was edited, with the divider over what was changed."""
    page.goto("/edit")
    page.locator("#video").set_input_files(clip)
    page.locator("#mask_prompt").fill("red ball")
    page.locator("#edit_prompt").fill("make it green")
    page.locator("#make").click()
    page.wait_for_url("**/films/*")
    page.wait_for_selector("#film[data-status=succeeded]", timeout=240_000)
    page.wait_for_load_state("networkidle")  # the page has renewed the film's part for the last time
    page.wait_for_function("['player', 'source'].every((id) => document.getElementById(id).readyState >= 2)")
    page.locator("#seek").fill("220")
    page.locator("#divider").press("Home")
    for _ in range(15):
        page.locator("#divider").press("ArrowRight")
    page.locator("h1").click()
    page.locator("#mask").scroll_into_view_if_needed()
    page.wait_for_timeout(1500)
    page.evaluate("document.querySelector('#mask-video').pause()")
    take(page, "page_edit", tall=True)


def pictures(server: Served) -> None:
    """The editor with a mistake, a film being made, the same finished: dark, and on a phone; an edit of a video."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

        def window(width_px: int, height_px: int, *, dark: bool = False) -> Page:
            return browser.new_context(base_url=server.url, viewport={"width": width_px, "height": height_px},
                                       color_scheme="dark" if dark else "light").new_page()

        page, night, phone = window(1120, 900), window(900, 900, dark=True), window(360, 780)
        page.goto("/new")
        page.locator("#text").fill(FILM.replace("    caption:", "    captoin:", 1))
        page.wait_for_selector(".issues")
        page.evaluate("document.querySelector('#text').scrollTop = 0")
        take(page, "page_new")
        page.locator("#text").fill(FILM.replace("shots:\n", "defaults: {steps: 60}\nshots:\n", 1))
        page.wait_for_selector(".planned")
        page.locator("#make").click()
        page.wait_for_url("**/films/*")
        while not page.evaluate(RUNNING):
            page.wait_for_timeout(100)
        take(page, "page_running", tall=True)
        for other in (page, night, phone):
            other.goto(page.url)
            other.wait_for_selector("#film[data-status=succeeded]", timeout=240_000)
        take(night, "page_done_dark", tall=True)
        take(phone, "page_phone")
        ball = red_ball(96, width_px=960, height_px=480)
        edit(page, write_source(ball.frames_THWC, server.place / "ball.mp4"))
        browser.close()


if __name__ == "__main__":
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = int(probe.getsockname()[1])
    with tempfile.TemporaryDirectory(prefix="rr", dir="/tmp", ignore_cleanup_errors=True) as place:
        served = Served(place=Path(place), ray_dir=Path(place) / "r", port=free)
        served.start()
        try:
            pictures(served)
        finally:
            served.stop()
