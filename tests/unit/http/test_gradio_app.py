"""The Gradio example: its updates against a server, and with Gradio installed the page itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from examples import gradio_app as example
from serve_app.client import Client
from tests.unit.http.test_remote import STEPS, Served, serving

BOARD = "shots:\n  - prompt: a red circle\n  - prompt: a star\n"


@pytest.fixture
def served(tmp_path: Path, migrated_file: Path) -> Iterator[Served]:
    with serving(tmp_path, migrated_file) as one:
        one.pause_s = 0.05
        yield one


def test_the_bar_moves_with_every_step_and_the_film_comes_last(
        served: Served, tmp_path: Path) -> None:
    found = list(example.updates(Client(served.url), BOARD, tmp_path))
    shares = [update.progress for update in found]
    assert shares == sorted(shares)
    assert len({share for share in shares if 0 < share < 1}) >= STEPS
    assert any("diffusion step 2/" in update.text for update in found)
    assert (shares[-1], found[-1].text, found[-1].problem) == (1.0, "succeeded", "")
    assert found[-1].film.read_bytes() == Client(served.url).download(found[-1].job_id, tmp_path / "b.mp4").read_bytes()


def test_a_failed_shot_is_said_and_the_rest_is_shown(served: Served, tmp_path: Path) -> None:
    served.shop.painter.failing = True
    last = list(example.updates(Client(served.url), BOARD, tmp_path))[-1]
    assert (last.text, last.problem) == ("partial", "shot s2: s2.clip: it burned")
    assert last.film is not None


def test_a_wrong_storyboard_and_a_server_that_is_away_are_updates_too(
        served: Served, tmp_path: Path) -> None:
    last = list(example.updates(Client(served.url), "shots:\n  - promt: x\n", tmp_path))[-1]
    assert (last.job_id, last.film, "line 2" in last.problem) == ("", None, True)
    away = Client("http://127.0.0.1:9", patience_s=0)
    assert "127.0.0.1:9" in list(example.updates(away, BOARD, tmp_path))[-1].problem


def test_a_cancelled_job_ends_the_updates(served: Served, tmp_path: Path) -> None:
    served.pause_s = 0.2
    client, found = Client(served.url), []
    for update in example.updates(client, BOARD, tmp_path):
        found.append(update)
        if "diffusion step" in update.text:
            client.cancel(update.job_id)
    assert (found[-1].text, found[-1].film) == ("cancelled", None)


def test_what_a_server_says_is_no_html() -> None:
    assert "<script>" not in example.bar(example.Update(text="<script>", problem="<script>"))


def test_the_page_shows_the_bar_and_the_film(served: Served, tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    gradio_client = pytest.importorskip("gradio_client")
    films = tmp_path / "films"
    films.mkdir()
    page = example.build(Client(served.url), films)
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, allowed_paths=[str(films)], server_port=None)
    try:
        user = gradio_client.Client(url, verbose=False)
        shown: list[Any] = list(user.submit(BOARD, api_name="/render"))
        bars = [one[0] if isinstance(one, tuple) else one for one in shown]
        values = [float(text.split('value="')[1].split('"')[0]) for text in bars]
        assert values == sorted(values)
        assert len(set(values)) > STEPS
        assert values[-1] == 1.0
        film = shown[-1][1]
        path = Path(film["video"] if isinstance(film, dict) else film)
        assert path.read_bytes() == next(films.glob("*.mp4")).read_bytes()

        served.pause_s = 0.3
        running = user.submit(BOARD.replace("star", "moon"), api_name="/render")
        heard = threading.Event()
        for one in running:
            if "diffusion step" in str(one) and not heard.is_set():
                heard.set()
                user.predict(api_name="/cancel")
        assert "cancelled" in str(running.outputs()[-1])
    finally:
        page.close()
