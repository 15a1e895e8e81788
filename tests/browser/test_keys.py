"""The page where keys are asked for: the browser's own window for a password opens all of it, the live parts too."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Error, expect

from tests.browser.conftest import CHROMIUM, Eyes, Served, a_place
from tests.browser.test_page import LONG_MS, RED, WATCH_BARS, status
from workflows.durable.database import Database
from workflows.durable.keys import Keys, Role

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason="there is no chromium")]


@pytest.fixture
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with a_place(tmp_path_factory.mktemp("keys"), "http.require_keys=true") as server:
        (server.place / "state").mkdir()
        yield server
        server.stop()


def test_a_user_with_a_key_makes_a_film_and_sees_its_steps_and_without_one_nothing(
        chromium: Browser, served: Served) -> None:
    database = Database(f"sqlite:///{served.place / 'state' / 'state.db'}")
    key = Keys(database).create("me", Role.USER).token
    database.close()
    served.start()
    eyes = Eyes(browser=chromium, base_url=served.url)
    with pytest.raises(Error, match="ERR_INVALID_AUTH_CREDENTIALS"):
        eyes.window().goto("/")

    page = eyes.window(key=key)
    page.goto("/new")
    page.locator("#text").fill(f"title: Mine\nshots:\n  - {{prompt: {RED}, steps: 60}}\n")
    expect(page.locator(".planned h2")).to_contain_text("1 shot,", timeout=LONG_MS)
    page.locator("#text").press("Control+Enter")
    page.wait_for_url("**/films/*")
    page.evaluate(WATCH_BARS)
    status(page, "succeeded")
    said = [text for _, _, text in page.evaluate("window.bars")]
    assert len({step for text in said if (step := re.search(r"diffusion step (\d+)/60", text))}) >= 10
    page.locator("#log summary").click()
    expect(page.locator("#lines")).to_contain_text("s1.clip", timeout=LONG_MS)
    for context in eyes.contexts:
        context.close()
    assert eyes.broken == []
