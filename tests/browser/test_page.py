"""The page as people have it: a real server, the embedded model, and a browser that only looks and clicks."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import CHROMIUM, Eyes, Served

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason="there is no chromium")]

LONG_MS = 120_000
RED = "a red circle moves left over a blue background"
GREEN = "a green circle moves left over a blue background"
SHORT: dict[str, Any] = {"title": "Short", "shots": [{"prompt": RED, "steps": 2}, {
    "prompt": "a yellow star falls down over a black background", "steps": 2}]}
LONG: dict[str, Any] = {"title": "Long", "shots": [
    {"prompt": RED, "steps": 100, "seed": seed} for seed in range(8)]}
WIDE: dict[str, Any] = {"title": "長" * 80 + "w" * 100, "shots": [{"id": "i" * 64, "prompt": RED, "caption": "w" * 90,
                                                                  "steps": 1}]}
WATCH_BARS = """() => {
  window.bars = [];
  new MutationObserver(() => {
    for (const shot of document.querySelectorAll(".shot[data-status=running]"))
      window.bars.push([shot.dataset.shot, shot.querySelector("progress").value,
                        shot.querySelector(".says").textContent]);
  }).observe(document.body, {subtree: true, childList: true, attributes: true, characterData: true});
}"""
NAMELESS = """() => [...document.querySelectorAll(
    "a, button, summary, input:not([type=hidden]), textarea, video, progress, img")]
  .filter((one) => !(one.getAttribute("aria-label") || one.textContent.trim() || one.getAttribute("alt") !== null
    || (one.labels && one.labels.length)))
  .map((one) => one.outerHTML.slice(0, 120))"""


def true_at_last(page: Page, condition: str) -> None:
    """Wait for it by asking: the page's policy forbids the evaluation that Playwright's own waiting needs."""
    end = time.monotonic() + LONG_MS / 1000
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(100)


def status(page: Page, wanted: str) -> None:
    expect(page.locator("#film")).to_have_attribute("data-status", wanted, timeout=LONG_MS)


def test_a_film_is_written_its_bars_move_by_true_steps_and_it_plays(eyes: Eyes) -> None:
    page = eyes.window()
    page.goto("/")
    page.get_by_role("link", name="New film").click()
    page.locator("#text").fill("shots:\n  - promt: x\n")
    expect(page.locator(".gutter b")).to_have_text("2", timeout=LONG_MS)
    page.get_by_role("button", name="Line 2").first.click()
    assert page.evaluate("getSelection().toString()") == "  - promt: x"
    page.locator("#text").fill(f"title: 画面 <b>\nshots:\n  - {{prompt: {RED}, steps: 60}}\n")
    expect(page.locator(".planned h2")).to_contain_text("1 shot,", timeout=LONG_MS)
    page.locator("#text").press("Control+Enter")
    page.wait_for_url("**/films/*")
    page.evaluate(WATCH_BARS)
    status(page, "succeeded")
    expect(page.locator("h1")).to_have_text("画面 <b>")

    bars = page.evaluate("window.bars")
    steps = {int(found[1]) for _, _, said in bars if (found := re.search(r"diffusion step (\d+)/60", said))}
    values = [value for _, value, _ in bars if 0 < value < 100]
    assert len(steps) >= 10, sorted(steps)
    assert len(set(values)) >= 10, sorted(set(values))

    page.evaluate("document.querySelector('#player').play()")
    true_at_last(page, "document.querySelector('#player').readyState >= 2")
    true_at_last(page, "document.querySelector('#player').currentTime > 0.2")
    page.locator("#shot-s1").scroll_into_view_if_needed()
    true_at_last(page, "[...document.querySelectorAll('video.loop')].some((clip) => clip.currentTime > 0)")


def test_a_shot_is_written_anew_and_its_old_take_is_chosen_again(eyes: Eyes, served: Served) -> None:
    job_id = served.finished(SHORT)
    page = eyes.window()
    page.goto(f"/films/{job_id}")
    first = page.locator("#shot-s1 video").get_attribute("src")
    page.locator("#edit-s1").click()
    page.locator("#shot-s1 textarea").fill(GREEN)
    page.locator("#change-s1").click()
    expect(page.locator("#take-s1-1")).to_be_enabled(timeout=LONG_MS)
    status(page, "succeeded")
    expect(page.locator("#shot-s1 .prompt")).to_have_text(GREEN, timeout=LONG_MS)
    assert page.locator("#shot-s1 video").get_attribute("src") != first

    page.locator("#take-s1-1").click()
    expect(page.locator("#take-s1-1")).to_have_attribute("aria-pressed", "true", timeout=LONG_MS)
    status(page, "succeeded")
    expect(page.locator("#shot-s1 .prompt")).to_have_text(RED)
    expect(page.locator("#shot-s1 video")).to_have_attribute("src", str(first))

    page.locator("#again-s2").click()
    expect(page.locator("#take-s2-1")).to_be_enabled(timeout=LONG_MS)
    assert len(served.job(job_id)["shots"][1]["takes"]) == 1

    page.locator("#edit-s1").click()
    page.locator("#shot-s1 textarea").fill(RED)
    page.locator("#shot-s1 input").fill("x" * 5000)
    page.locator("#change-s1").click()
    expect(page.locator("#notice")).to_contain_text("caption", timeout=LONG_MS)
    expect(page.locator("#notice")).to_be_in_viewport()
    status(page, "succeeded")


def test_a_film_is_cancelled_and_what_is_missing_is_made_afterwards(eyes: Eyes, served: Served) -> None:
    page = eyes.window()
    page.goto(f"/films/{served.submit({'title': 'Stopped', 'shots': LONG['shots'][:3]})}")
    expect(page.locator(".says", has_text="diffusion step").first).to_be_visible(timeout=LONG_MS)
    page.get_by_role("button", name="Cancel").click()
    status(page, "cancelled")
    page.get_by_role("button", name="Retry what is missing").click()
    status(page, "succeeded")
    expect(page.locator("#player")).to_be_visible(timeout=LONG_MS)


def test_the_page_recovers_when_the_server_is_started_again_under_it(eyes: Eyes, served: Served) -> None:
    page = eyes.window()
    page.goto(f"/films/{served.submit(LONG)}")
    expect(page.locator(".says", has_text="diffusion step").first).to_be_visible(timeout=LONG_MS)
    served.stop()
    expect(page.locator("#link")).to_contain_text("reconnecting", timeout=LONG_MS)
    served.start()
    expect(page.locator("#link")).not_to_contain_text("reconnecting", timeout=LONG_MS)
    status(page, "succeeded")
    expect(page.locator("#player")).to_be_visible(timeout=LONG_MS)
    expect(page.locator(".shot[data-status=succeeded]")).to_have_count(len(LONG["shots"]))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_has_a_name_fits_a_phone_and_is_reached_by_keyboard(
        eyes: Eyes, served: Served, scheme: str) -> None:
    job_id = served.finished(SHORT)
    page = eyes.window(360, 740, scheme=scheme, motion="reduce")
    wide = f"/films/{served.finished(WIDE)}"
    for path in ("/", "/new", "/new?form=script", f"/films/{job_id}", wide, "/films/none"):
        page.goto(path)
        assert page.evaluate(NAMELESS) == [], path
        assert page.locator("h1").count() == 1, path
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip", path
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", path
    page.goto(f"/films/{job_id}")
    page.locator("#edit-s1").press("Enter")
    expect(page.locator("#shot-s1 textarea")).to_be_visible()
    page.locator("#shot-s1 video").press("Space")
    true_at_last(page, "document.querySelector('#shot-s1 video').currentTime > 0")
    assert page.locator("#shot-s2 video").evaluate("clip => clip.paused"), "less motion was asked for"
    page.locator("#log summary").press("Enter")
    expect(page.locator(".lines")).to_contain_text("queued", timeout=LONG_MS)


def test_without_scripts_it_is_forms_and_links(eyes: Eyes) -> None:
    page = eyes.window(scripts=False)
    page.goto("/new")
    page.locator("#text").fill("shots:\n  - promt: x\n")
    page.locator("#make").click()
    expect(page.locator(".issues")).to_contain_text("Line 2")
    page.locator("#text").fill(f"shots:\n  - {{prompt: {RED}, steps: 1}}\n")
    page.locator("#make").click()
    page.wait_for_url("**/films/*")
    expect(page.locator(".shot")).to_have_count(1)
