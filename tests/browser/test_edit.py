"""A video edited on the page: a real server, the models without weights, and a browser that only looks and clicks."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import CHROMIUM, Eyes, Served
from tests.browser.test_page import LONG_MS, NAMELESS, status, true_at_last
from tests.edit_clips import red_ball, write_source
from workflows.media.probe import probe

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason="there is no chromium")]

FRAMES = 96
WATCH = """() => {
  window.stages = []; window.maskEarly = false;
  new MutationObserver(() => {
    for (const line of document.querySelectorAll(".stages li[data-state=running]"))
      window.stages.push([line.dataset.stage, line.querySelector("progress").value]);
    const film = document.querySelector("#film");
    if (film && film.dataset.status !== "succeeded" && document.querySelector("#mask-video")) window.maskEarly = true;
  }).observe(document.body, {subtree: true, childList: true, attributes: true});
}"""
WATCH_UPLOAD = """() => {
  const bar = document.querySelector("#upload-bar");
  window.sent = [];
  new MutationObserver(() => window.sent.push(bar.value)).observe(bar, {attributes: true});
}"""
AT = "document.querySelector('#divider').getAttribute('aria-valuenow')"
SHOWN = """([x, y]) => {
  const video = document.elementsFromPoint(x, y).find((one) => one.tagName === "VIDEO");
  return video ? video.id : "";
}"""
# What the page does when its film has ended, or a form of it was sent.
RENEW = """() => htmx.ajax("GET", document.querySelector("#film").dataset.url,
  {source: document.body, target: "#film", select: "#film", swap: "outerHTML show:none"})"""
PIXEL = """async ([id, share]) => {
  const video = document.getElementById(id), canvas = document.createElement("canvas");
  canvas.width = video.videoWidth; canvas.height = video.videoHeight;
  const brush = canvas.getContext("2d");
  brush.drawImage(video, 0, 0);
  return [...brush.getImageData(canvas.width * share, canvas.height * 0.5, 1, 1).data].slice(0, 3);
}"""


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Larger than the pipe between browser and server, so that the bar has something to tell."""
    ball = red_ball(FRAMES, width_px=480, height_px=320)
    path = tmp_path_factory.mktemp("clips") / "red ball.mp4"
    return write_source(ball.frames_THWC, path, "-c:v", "libx264", "-crf", "1", "-pix_fmt", "yuv420p")


def filled(page: Page, clip: Path, **fields: str) -> None:
    """The form, with a video sent."""
    page.goto("/edit")
    page.locator("#video").set_input_files(clip)
    expect(page.locator("#uploaded")).to_contain_text("96 frames", timeout=LONG_MS)
    for name, text in {"mask_prompt": "red ball", "edit_prompt": "make it blue", **fields}.items():
        if name not in ("mask_prompt", "edit_prompt") and not page.locator(f"#{name}").is_visible():
            page.locator("#more summary").click()
        page.locator(f"#{name}").fill(text)


def edited(page: Page, clip: Path, **fields: str) -> str:
    """The id of an edit that was asked for."""
    filled(page, clip, **fields)
    page.locator("#make").click()
    page.wait_for_url("**/films/*")
    return page.url.rpartition("/")[2]


def test_a_video_is_sent_and_edited_stage_by_stage(eyes: Eyes, clip: Path) -> None:
    page = eyes.window()
    page.goto("/")
    page.get_by_role("link", name="Edit a video").first.click()
    page.wait_for_url("**/edit")
    page.evaluate(WATCH_UPLOAD)
    page.locator("#video").set_input_files(clip)
    expect(page.locator("#uploaded")).to_contain_text("96 frames, 4.00 s, with sound", timeout=LONG_MS)
    expect(page.locator("#uploaded")).to_contain_text("red ball.mp4: 480")
    assert page.evaluate("window.sent.at(-1)") == 100
    true_at_last(page, "document.querySelector('#preview').readyState >= 2")
    page.locator("#mask_prompt").fill("red ball")
    page.locator("#edit_prompt").fill("make it a hat")
    page.locator("#make").click()
    expect(page.locator("#why-edit_prompt")).to_contain_text("classical", timeout=LONG_MS)
    expect(page.locator("#edit_prompt")).to_be_focused()
    expect(page.locator("#uploaded")).to_have_text("red ball.mp4 is here already; choose a file only for another one.")
    page.locator("#edit_prompt").fill("make it blue")
    page.locator("#more summary").click()
    page.locator("#chunk_frames").fill("16")
    page.locator("#make").click()
    page.wait_for_url("**/films/*")
    page.evaluate(WATCH)
    status(page, "succeeded")
    seen = page.evaluate("window.stages")
    assert {"editing", "smoothing"} <= {stage for stage, _ in seen}, seen
    assert len({value for stage, value in seen if stage == "editing" and 0 < value < 100}) >= 2, seen
    assert page.evaluate("window.maskEarly"), "the mask is shown before the edit is over"
    expect(page.locator("h1")).to_have_text("make it blue in red ball.mp4")
    expect(page.locator(".measured")).to_contain_text("0 pixels")
    page.goto("/")
    expect(page.locator(".tile").first).to_contain_text("edit of a video")
    true_at_last(page, "document.querySelector('.tile img').naturalWidth > 0")


def test_before_and_after_stand_under_one_divider(eyes: Eyes, clip: Path) -> None:
    page = eyes.window()
    edited(page, clip, chunk_frames="16")
    status(page, "succeeded")
    divider, pair = page.locator("#divider"), page.locator("#pair")
    true_at_last(page, "['#player', '#source'].every((id) => document.querySelector(id).readyState >= 2)")
    box = pair.bounding_box()
    assert box is not None
    middle = box["y"] + box["height"] / 2
    for share in (0.2, 0.8):
        page.mouse.move(box["x"] + box["width"] * 0.5, middle)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * share, middle, steps=5)
        page.mouse.up()
        assert abs(int(page.evaluate(AT)) - 100 * share) <= 1
        for place in (0.1, 0.9):
            shown = page.evaluate(SHOWN, [box["x"] + box["width"] * place, middle + 30])
            assert shown == ("source" if place < share else "player"), (share, place)
    expect(divider).to_be_focused()
    for key, expected in (("ArrowLeft", 78), ("PageDown", 68), ("Home", 0), ("ArrowRight", 2), ("End", 100)):
        divider.press(key)
        assert int(page.evaluate(AT)) == expected, key

    page.locator("#play").click()
    true_at_last(page, "document.querySelector('#player').currentTime > 0.3")
    assert page.evaluate("Math.abs(document.querySelector('#player').currentTime - "
                         "document.querySelector('#source').currentTime)") < 0.15
    page.locator("#play").click()
    expect(page.locator("#play")).to_have_text("Play")
    page.locator("#seek").fill("0")
    true_at_last(page, "document.querySelector('#player').currentTime === 0")
    true_at_last(page, "['#player', '#source'].every((id) => !document.querySelector(id).seeking)")
    ball = 0.165
    red, blue = (page.evaluate(PIXEL, [video, ball]) for video in ("source", "player"))
    assert red[0] > 150 > red[2], red
    assert blue[2] > 100 > blue[0], blue

    divider.press("Home")
    page.evaluate(RENEW)
    page.wait_for_timeout(200)  # longer than htmx takes to settle what it swapped
    expect(page.locator("#compare.live")).to_have_count(1)
    assert page.locator("#pair").evaluate("(pair) => pair.style.getPropertyValue('--at')") == "0%"


def test_all_that_an_edit_makes_is_downloaded(eyes: Eyes, clip: Path, tmp_path: Path) -> None:
    page = eyes.window()
    edited(page, clip, chunk_frames="16")
    status(page, "succeeded")
    with page.expect_download() as taken:
        page.locator("#save").click()
    taken.value.save_as(tmp_path / "out.mp4")
    assert probe(tmp_path / "out.mp4").frames == FRAMES
    for name in ("#save-mask", "#save-report", "#save-log"):
        with page.expect_download() as taken:
            page.locator(name).click()
        assert taken.value.path().stat().st_size > 100, name


def test_an_edit_is_cancelled_retried_and_asked_for_another_way(eyes: Eyes, served: Served, clip: Path) -> None:
    page = eyes.window()
    job_id = edited(page, clip, chunk_frames="8", edit_size="1024", edit_prompt="make it green")
    expect(page.locator(".stages [data-stage=extracting][data-state=done]")).to_be_visible(timeout=LONG_MS)
    page.get_by_role("button", name="Cancel").click()
    status(page, "cancelled")
    page.get_by_role("button", name="Retry what is missing").click()
    status(page, "succeeded")
    expect(page.locator("#divider")).to_be_visible(timeout=LONG_MS)
    assert served.job(job_id)["edit"]["status"] == "finished"
    page.locator("#log summary").click()
    expect(page.locator(".lines")).to_contain_text("queued", timeout=LONG_MS)
    page.get_by_role("link", name="Edit it another way").click()
    page.wait_for_url(lambda url: "/edit" in url)
    expect(page.locator("#chunk_frames")).to_have_value("8")
    expect(page.locator("#uploaded")).to_contain_text("red ball.mp4 is here already")
    page.locator("#result").select_option(f"job:{job_id}")
    true_at_last(page, "document.querySelector('#preview').src.endsWith('/video')")
    page.locator("#mask_prompt").fill("green ball")
    page.locator("#edit_prompt").fill("make it yellow")
    page.locator("#make").click()
    page.wait_for_url(lambda url: "make-it-yellow" in url)
    status(page, "succeeded")
    start = served.job(page.url.rpartition("/")[2])["edit"]["request"]["input_video_path"]
    assert start == f"upload:{served.job(job_id)['video']['sha256']}"


def test_a_click_on_the_picture_says_where_the_thing_is(eyes: Eyes, served: Served, clip: Path) -> None:
    page = eyes.window()
    filled(page, clip, mask_prompt="", max_frames="24")
    true_at_last(page, "document.querySelector('#preview').readyState >= 2")
    box = page.locator("#preview").bounding_box()
    assert box is not None
    for button, x, y in (("point", 80, 160), ("point-not", 240, 40)):
        page.locator(f"#{button}").click()
        page.mouse.click(box["x"] + box["width"] * x / 480, box["y"] + box["height"] * y / 320)
    at, beside = str(page.locator("#points").input_value()).split("; ")
    assert max(abs(int(number) - meant) for number, meant in zip(at.split(","), (80, 160), strict=True)) <= 1
    assert beside.startswith("not ")
    expect(page.locator("#dots i")).to_have_count(2)
    page.locator("#make").click()
    page.wait_for_url("**/films/*")
    status(page, "succeeded")
    assert served.job(page.url.rpartition("/")[2])["edit"]["request"]["points"][1]["inside"] is False


def test_it_works_with_keys_alone_at_the_width_of_a_phone(eyes: Eyes, clip: Path) -> None:
    page = eyes.window(360, 780, scheme="dark", motion="reduce")
    edited(page, clip, max_frames="24")
    status(page, "succeeded")
    for path in (page.url, "/edit", "/"):
        page.goto(path)
        assert page.evaluate(NAMELESS) == [], path
        assert page.locator("h1").count() == 1, path
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
    page.goto("/edit")
    page.locator("#more summary").press("Enter")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.goto("/")
    page.locator(".tile a").first.press("Enter")
    page.wait_for_url("**/films/*")  # loaded: a key that comes before the scripts moves nothing
    page.locator("#divider").press("ArrowRight")
    expect(page.locator("#divider")).to_have_attribute("aria-valuetext", "52 % before")
    page.locator("#divider").press(" ")
    true_at_last(page, "document.querySelector('#player').currentTime > 0")


def test_without_scripts_the_form_sends_the_video_itself(eyes: Eyes, clip: Path) -> None:
    page = eyes.window(scripts=False)
    page.goto("/edit")
    page.locator("#video").set_input_files(clip)
    page.locator("#mask_prompt").fill("red ball")
    page.locator("#edit_prompt").fill("sing")
    page.locator("#make").click()
    expect(page.locator("#why-edit_prompt .bad")).to_be_visible()
    page.locator("#edit_prompt").fill("make it blue")
    page.locator("#make").click()
    page.wait_for_url("**/films/*")
    expect(page.locator(".stages li")).to_have_count(6)
