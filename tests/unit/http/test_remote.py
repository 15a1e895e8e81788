"""Commands with --server: a server of this process on a port of its own, and the site that commands speak to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import uvicorn
from typer.testing import CliRunner

from configs.load import NOT_SETTINGS, SERVER_VARIABLE, casting, load_cards, load_settings
from serve_app.cli import app
from serve_app.client import Client, Event, Film
from serve_app.mirror import Mirror, heard, step_of, with_steps
from serve_app.remote import RemoteSite, followed, listed, open_remote
from serve_app.service.files import ShotFile
from serve_app.site import Interrupted
from tests.desk import SLOTS, Shop, open_shop, step
from tests.studio import QUICK
from tests.unit.http.test_client import Server, told
from workflows.dispatch import Dispatcher
from workflows.durable.engine import Engine
from workflows.durable.keys import Keys, Role
from workflows.errors import InvalidDocument, InvalidSettings, JobConflict, ServerRefused, ServerUnreachable
from workflows.media.decode import write_png
from workflows.stages.story import story
from workflows.status import JobView, job_view
from workflows.tiers import Tier
from workflows.types import JobStatus, NodeCall, NodeKind, NodeResult, ProgressRecord, Stage

FILM = "title: Two\nshots:\n  - {prompt: a red circle, image: a.png}\n  - prompt: a star\n"
STEPS = 6


class Recorder:
    """A screen that keeps everything."""

    def __init__(self, at_step: Callable[[ProgressRecord], None] = lambda _: None) -> None:
        self.notes: list[str] = []
        self.views: list[JobView] = []
        self.steps: list[ProgressRecord] = []
        self._at_step = at_step

    def note(self, text: str) -> None:
        self.notes.append(text)

    def show(self, view: JobView) -> None:
        self.views.append(view)

    def step(self, record: ProgressRecord) -> None:
        self.steps.append(record)
        self._at_step(record)

    def close(self) -> None:
        pass


class Served:
    """A shop on a port, with an engine whose clips take steps. `stop` and `start` are a restart of the HTTP side."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.pause_s = 0.0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._engine = self._call(self._begin())
        self.start()

    async def _begin(self) -> tuple[Engine, asyncio.Task[None]]:
        shop = self.shop
        steps = {**dict.fromkeys(NodeKind, self._work), NodeKind.STORY: partial(
            story, cards=casting(shop.settings, load_cards(shop.settings)), store=shop.store)}
        engine = Engine(shop.ledger, steps, store=shop.store, dispatcher=Dispatcher(SLOTS),
                        settings=QUICK.model_copy(update={"attempts": 1}))
        return engine, asyncio.create_task(engine.run())

    async def _work(self, call: NodeCall) -> NodeResult:
        for n in range(1, STEPS + 1 if call.kind is NodeKind.CLIP else 1):
            record = step(call.job_id, call.node_id, n, attempt=call.attempt, total=STEPS)
            await self.shop.board.board.report([record])
            await asyncio.sleep(self.pause_s)
        return await self.shop.painter(call)

    def _call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def start(self) -> None:
        config = uvicorn.Config(self.shop.client.app, host="127.0.0.1", port=self.port, log_level="critical",
                                lifespan="off", timeout_graceful_shutdown=0)
        self._server = uvicorn.Server(config)
        self._serving = asyncio.run_coroutine_threadsafe(self._server.serve(), self._loop)
        end = time.monotonic() + 20
        while not self._server.started:
            assert time.monotonic() < end
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._serving.result(30)

    def close(self) -> None:
        self.stop()
        engine, running = self._engine

        async def end() -> None:
            await engine.stop()
            await running
            await self.shop.desk.close()

        self._call(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@contextlib.contextmanager
def serving(directory: Path, migrated_file: Path, *overrides: str) -> Iterator[Served]:
    shutil.copy(migrated_file, directory / "state.db")
    shop = open_shop(directory, directory / "state.db", *overrides)
    served = Served(shop)
    try:
        yield served
    finally:
        served.close()
        shop.ledger.close()


@pytest.fixture
def served(tmp_path: Path, migrated_file: Path) -> Iterator[Served]:
    with serving(tmp_path, migrated_file) as one:
        yield one


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """A storyboard with a local picture."""
    write_png(np.full((64, 96, 3), 90, np.uint8), tmp_path / "a.png")
    (tmp_path / "film.yaml").write_text(FILM)
    return tmp_path / "film.yaml"


def test_a_film_is_rendered_there_shown_here_and_downloaded(served: Served, board: Path, tmp_path: Path) -> None:
    site, screen = open_remote(served.url), Recorder()
    view = site.render(board, screen)
    assert view.status is JobStatus.SUCCEEDED
    for shot in ("s1", "s2"):
        assert [record.step for record in screen.steps if record.shot_id == shot] == [*range(1, STEPS + 1)]
    assert all(record.total_steps == STEPS and record.phase.value == "diffusion" for record in screen.steps)
    shares = [shown.progress for shown in screen.views]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert any(shown.shots[0].current.step == STEPS and "diffusion step" in shown.shots[0].current.message
               for shown in screen.views)
    path = site.deliver(view, tmp_path / "out" / "film.mp4")
    assert path == tmp_path / "out" / "film.mp4"
    stored = served.shop.store.fetch(served.shop.desk.files.video(view.id))
    assert path.read_bytes() == stored.read_bytes()
    assert served.shop.ledger.nodes(view.id)[0].payload["image"]["sha256"]  # type: ignore[index]


def test_a_film_with_drawn_first_frames_is_downloaded_as_a_film(served: Served, tmp_path: Path) -> None:
    (tmp_path / "drawn.yaml").write_text("shots: [{prompt: a red circle, mode: keyframe}]\n")
    site = open_remote(served.url)
    view = site.render(tmp_path / "drawn.yaml", Recorder())
    path = site.deliver(view, tmp_path / "film.mp4")
    assert path is not None
    assert path.is_file()
    with pytest.raises(JobConflict, match="is not over yet"):
        site.retry(Client(served.url).retry(view.id, ["s1"], force=True)["id"], ["s1"], True, Recorder())


@pytest.mark.parametrize("address", ["http://h:abc", "films.example", "ftp://films.example", "http://"])
def test_what_is_no_address_is_refused_with_one(address: str) -> None:
    with pytest.raises(InvalidSettings, match="is no address; nearest valid: http://"):
        open_remote(address)


def test_pictures_alone_are_made_there_and_downloaded_into_a_directory(
        served: Served, board: Path, tmp_path: Path) -> None:
    site = open_remote(served.url)
    view = site.render(board, Recorder(), Stage.IMAGES)
    assert (view.stage, list(view.pictures)) == (Stage.IMAGES, ["s2"]), "s1 has a picture of its own"
    assert site.deliver(view, tmp_path / "stills") == tmp_path / "stills"
    stored = served.shop.store.fetch(served.shop.desk.files.of_shot(view.id, "s2", ShotFile.KEYFRAME))
    assert (tmp_path / "stills" / "s2.png").read_bytes() == stored.read_bytes()
    assert site.render(board, Recorder()).id != view.id, "the film of the same file is another job"


def test_the_same_file_again_is_the_same_job_until_it_was_changed_or_deleted(served: Served, board: Path) -> None:
    site = open_remote(served.url)
    first = site.render(board, Recorder())
    screen = Recorder()
    assert site.render(board, screen).id == first.id
    assert screen.steps == []
    assert len(served.shop.ledger.jobs().jobs) == 1
    Client(served.url).delete(first.id)
    second = site.render(board, Recorder())
    assert second.id != first.id
    Client(served.url).change_shot(second.id, "s2", {"prompt": "a green star"})
    third = site.render(board, Recorder())
    assert third.id not in (first.id, second.id), "what was changed over HTTP is another film"
    assert site.render(board, Recorder()).id == third.id
    board.write_text(FILM.replace("a star", "a moon"))
    assert site.render(board, Recorder()).id not in (first.id, second.id, third.id)


def test_a_film_with_failed_shots_is_partial_and_the_same_command_renders_what_is_missing(
        served: Served, board: Path, tmp_path: Path) -> None:
    served.shop.painter.failing = True
    site = open_remote(served.url)
    view = site.render(board, Recorder())
    assert (view.status, list(view.errors)) == (JobStatus.PARTIAL, ["s2"])
    served.shop.painter.failing = False
    screen = Recorder()
    again = site.render(board, screen)
    assert (again.id, again.status) == (view.id, JobStatus.SUCCEEDED)
    assert "running again: s2.clip, compose" in screen.notes
    forced = site.retry(view.id, ["s1"], True, Recorder())
    assert forced.status is JobStatus.SUCCEEDED
    assert served.shop.desk.takes.of(view.id, "s1")


def test_a_draft_is_made_there_and_promoted_there(served: Served, board: Path, tmp_path: Path) -> None:
    board.write_text(FILM.replace("- prompt: a star", "- {prompt: a star, tier: final}"))
    site, screen = open_remote(served.url), Recorder()
    draft = site.render(board, Recorder(), tier=Tier.DRAFT)
    assert draft.drafts == ("s1",)
    assert site.render(board, Recorder(), tier=Tier.DRAFT).id == draft.id
    final = site.promote(draft.id, (), screen)
    assert (final.id, final.status, final.drafts) == (draft.id, JobStatus.SUCCEEDED, ())
    assert "rendering as final: s1.clip, compose" in screen.notes
    assert [record.step for record in screen.steps if record.shot_id == "s1"] == [*range(1, STEPS + 1)]
    assert site.promote(draft.id, ["s1"], Recorder()).id == draft.id, "nothing is left to do"
    with pytest.raises(InvalidDocument, match="has no shot 's9'"):
        site.promote(draft.id, ["s9"], Recorder())


def test_ctrl_c_leaves_the_job_there_says_how_to_follow_it_and_the_same_command_joins_it(
        served: Served, board: Path) -> None:
    def interrupt(record: ProgressRecord) -> None:
        raise KeyboardInterrupt

    served.pause_s = 0.3
    site = open_remote(served.url)
    with pytest.raises(Interrupted) as caught:
        site.render(board, Recorder(interrupt))
    [job] = served.shop.ledger.jobs().jobs
    assert not job.status.is_terminal
    assert f"`reelray log {job.id} -f --server {served.url}` follows it" in str(caught.value)
    served.pause_s = 0.0
    assert site.render(board, Recorder()).id == job.id
    assert [one.id for one in served.shop.ledger.jobs().jobs] == [job.id]


def test_a_server_that_restarts_is_waited_for_and_no_step_is_missed(served: Served, board: Path) -> None:
    served.pause_s = 0.25
    restarted = threading.Event()

    def restart(record: ProgressRecord) -> None:
        if record.step == 2 and not restarted.is_set():
            restarted.set()
            threading.Thread(target=lambda: (served.stop(), time.sleep(0.6), served.start())).start()

    screen = Recorder(restart)
    view = open_remote(served.url).render(board, screen)
    assert restarted.is_set()
    assert view.status is JobStatus.SUCCEEDED
    assert [record.step for record in screen.steps if record.shot_id == "s1"] == [*range(1, STEPS + 1)]


def test_jobs_are_looked_at_and_stopped(served: Served, board: Path) -> None:
    site = open_remote(served.url)
    view = site.render(board, Recorder())
    [line] = site.jobs(None, 5)
    assert (line.id, line.title, line.status, line.progress, line.shots) == (view.id, "Two", JobStatus.SUCCEEDED, 1, 2)
    assert site.jobs(JobStatus.FAILED, 5) == []
    assert site.job(view.id).shots == view.shots
    assert any("s1.clip" in text for text in site.log(view.id, False))
    assert list(site.log(view.id, True)) == list(site.log(view.id, False))
    assert site.cancel(view.id) is JobStatus.SUCCEEDED
    with pytest.raises(ServerRefused, match=r"no job 'nothing'; `reelray jobs` lists them"):
        site.job("nothing")
    with pytest.raises(ServerRefused):
        list(site.log("nothing", True))


def test_a_list_has_as_many_jobs_as_were_asked_for(served: Served) -> None:
    film = Film(name="a.yaml", media_type="application/yaml", content=b"shots: [{prompt: a star}]")
    ids = [Client(served.url).submit(film)["id"] for _ in range(5)]
    site = open_remote(served.url)
    assert [line.id for line in site.jobs(None, 4)] == ids[:0:-1]


def test_a_long_list_is_asked_for_page_by_page() -> None:
    pages = [httpx2.Response(200, json={"jobs": [{"id": str(n)} for n in range(200)], "next_cursor": "more"}),
             httpx2.Response(200, json={"jobs": [{"id": "last"}], "next_cursor": ""})]
    server = Server(*pages)
    assert [job["id"] for job in listed(server.client(), "failed", 250)][-2:] == ["199", "last"]
    assert [dict(request.url.params) for request in server.asked] == [
        {"limit": "200", "status": "failed"}, {"limit": "50", "status": "failed", "cursor": "more"}]


def test_a_wrong_storyboard_is_refused_as_on_this_machine(served: Served, tmp_path: Path) -> None:
    (tmp_path / "film.yaml").write_text("shots:\n  - prompt: a star\n  - prompt: a circle\n    frames: 80\n")
    with pytest.raises(InvalidDocument) as caught:
        open_remote(served.url).render(tmp_path / "film.yaml", Recorder())
    assert str(caught.value).startswith("film.yaml:4: shot s2: frames: ")
    assert "nearest valid: " in str(caught.value)


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(ServerUnreachable, match=r"http://127\.0\.0\.1:9 does not answer") as caught:
        open_remote("http://127.0.0.1:9")
    assert "ConnectError" not in str(caught.value)


@pytest.mark.parametrize("address", ["127.0.0.1:8000", "ftp://films", "http://", "films"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(InvalidSettings, match="nearest valid: http://"):
        open_remote(address)


def test_a_key_is_asked_for_by_name_and_a_wrong_one_too(tmp_path: Path, migrated_file: Path, board: Path) -> None:
    with serving(tmp_path, migrated_file, "http.require_keys=true") as served:
        book = Keys(served.shop.ledger.database)
        reader, user = (book.create(role.value, role).token for role in (Role.READ, Role.USER))
        for key, said in {"": "an API key is needed.*REELRAY_API_KEY holds the key",
                          "rr_wrong_key": "this key opens nothing.*REELRAY_API_KEY holds the key",
                          reader: "role read, which may not change here"}.items():
            with pytest.raises(ServerRefused, match=said):
                open_remote(served.url, api_key=key).render(board, Recorder())
        assert open_remote(served.url, api_key=user).render(board, Recorder()).status is JobStatus.SUCCEEDED


@pytest.mark.parametrize(("status", "body", "said"), [
    (200, '{"status": "ok"}', "an earlier reelray, and this command needs 0.1.0"),
    (200, '{"status": "ok", "version": "0.0.9"}', "runs reelray 0.0.9"),
    (200, "<html>", "something else than JSON"), (404, "<html>", "answered 404"),
], ids=["no version", "older", "a page", "nothing there"])
def test_a_server_that_is_too_old_or_another_one_is_refused(status: int, body: str, said: str) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            """Silent."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        with pytest.raises(ServerRefused) as caught:
            open_remote(f"http://127.0.0.1:{server.server_port}")
        assert said in str(caught.value)
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("words", [
    ["render", "film.yaml", "--profile", "gpu"], ["jobs", "--set", "http.port=1"], ["status", "x", "--profile", "gpu"],
    ["log", "x", "--set", "http.port=1"], ["cancel", "x", "--profile", "gpu"], ["retry", "x", "--set", "http.port=1"],
])
def test_settings_of_this_machine_do_not_go_with_a_server(words: list[str]) -> None:
    done = CliRunner().invoke(app, [*words, "--server", "http://127.0.0.1:9"])
    assert done.exit_code == 2
    assert f"{words[-2]} and --server http://127.0.0.1:9 do not go together" in done.stderr


@pytest.mark.parametrize("command", ["serve", "doctor"])
def test_commands_of_this_machine_know_no_server(command: str) -> None:
    done = CliRunner().invoke(app, [command, "--server", "http://127.0.0.1:9"])
    assert done.exit_code == 2
    assert "--server" in done.stderr


def test_the_environment_names_a_server_and_is_no_setting(served: Served) -> None:
    done = CliRunner().invoke(app, ["jobs", "--json"], env={SERVER_VARIABLE: served.url})
    assert (done.exit_code, json.loads(done.stdout)) == (0, [])
    assert SERVER_VARIABLE in NOT_SETTINGS
    assert load_settings("laptop", (), {SERVER_VARIABLE: "http://x"}) == load_settings("laptop", (), {})


def test_the_command_prints_steps_and_the_path_last(served: Served, board: Path, tmp_path: Path) -> None:
    words = ["render", str(board), "-o", str(tmp_path / "film.mp4"), "--server", served.url]
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    steps = [line for line in lines if line["event"] == "step"]
    assert [line["step"] for line in steps if line["shot"] == "s2"] == [*range(1, STEPS + 1)]
    assert (lines[-1]["event"], lines[-1]["path"]) == ("result", str(tmp_path / "film.mp4"))
    plain = CliRunner().invoke(app, words)
    assert plain.stdout.splitlines()[-1] == str(tmp_path / "film.mp4")
    served.shop.painter.failing = True
    board.write_text(FILM.replace("a star", "another star"))
    partial_ = CliRunner().invoke(app, words)
    assert partial_.exit_code == 3
    assert f"--server {served.url}` renders what is missing" in partial_.stderr


def test_a_view_of_a_reply_is_the_view(served: Served, board: Path) -> None:
    view = open_remote(served.url).render(board, Recorder())
    local = job_view(served.shop.ledger.job(view.id), served.shop.ledger.nodes(view.id))
    assert JobView.from_json(local.to_json()).to_json() == local.to_json()
    assert view.shots[0].nodes[0].artifact is not None
    assert view.shots[0].nodes[0].artifact.uri == "", "where files lie there is nobody's business"


def test_a_reply_that_is_older_than_the_end_repeats_no_step(served: Served, board: Path) -> None:
    """The last event is told before the job's reply knows of it; what was shown is not shown again."""
    over = Client(served.url).job(open_remote(served.url).render(board, Recorder()).id)
    shot = {"id": "s1", "node": "s1.clip", "attempt": 1, "phase": "diffusion", "total_steps": 3, "timestep": 1.0}
    steps = [told(f"e:1.{n}", "shot_update", shot={**shot, "step": n, "node_progress": n / 3}) for n in (1, 2, 3)]
    streams: list[str | None] = []

    def events(request: httpx2.Request) -> httpx2.Response:
        streams.append(request.headers.get("last-event-id"))
        return httpx2.Response(204) if streams[-1] == "e:2.3" else httpx2.Response(
            200, content=b"".join([*steps, told("e:2.3", "done")]))

    def replies(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, json=over if len(streams) > 1 else {**over, "status": "running"})

    patient, brisk = (Client(http=httpx2.Client(base_url="http://films", transport=httpx2.MockTransport(answer)))
                      for answer in (events, replies))
    screen = Recorder()
    assert followed(patient, Mirror(brisk, over["id"], screen)).status is JobStatus.SUCCEEDED
    assert [record.step for record in screen.steps] == [1, 2, 3]
    assert streams == [None, "e:2.3"]


def test_what_breaks_while_events_are_heard_is_raised_here() -> None:
    def broken() -> Iterator[Event]:
        yield Event(id="1", name="info", data={})
        time.sleep(0.15)
        raise ValueError("cut")

    found: list[Event | None] = []
    with pytest.raises(ValueError, match="cut"):
        found.extend(heard(broken(), 0.05))
    assert found[0] is not None
    assert None in found[1:], "silence is told"


def test_a_step_that_is_older_than_the_reply_changes_nothing() -> None:
    node: dict[str, Any] = {"id": "s1.clip", "status": "running", "attempt": 2, "progress": 0.5, "step": 3}
    job = {"shots": [{"id": "s1", "status": "running", "progress": 0.5, "nodes": [node]}], "film": [], "progress": 0.25,
           "finished_at": None}
    for record in (step("film", "s1.clip", 1, attempt=2), step("film", "s1.clip", 9, attempt=1)):
        assert with_steps(job, {"s1.clip": record}, 0.0) == job
    newer = with_steps(job, {"s1.clip": step("film", "s1.clip", 15, attempt=2)}, 0.4)
    assert (newer["shots"][0]["nodes"][0]["step"], newer["progress"]) == (15, 0.4)
    over = {**job, "finished_at": 1.0, "progress": 1.0}
    assert with_steps(over, {}, 0.4)["progress"] == 1.0


def test_what_is_no_step_is_none() -> None:
    counted = {"current": 1, "total": 2, "message": "clip 1/2"}
    assert step_of("film", Event(id="", name="progress", data=counted)) is None
    assert step_of("film", Event(id="", name="info", data={"message": "x"})) is None


def test_a_site_gives_up_on_a_server_that_stays_away(served: Served, board: Path) -> None:
    served.pause_s = 1.0
    site = RemoteSite(served.url, patience_s=0.5)

    def stop(record: ProgressRecord) -> None:
        served.stop()

    with pytest.raises(ServerUnreachable, match="the job goes on without you"):
        site.render(board, Recorder(stop))
    served.pause_s = 0.0
    served.start()
