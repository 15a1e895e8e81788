"""The event stream: what is told, once per watcher and once to the board; and how a watcher goes on after a break."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import pytest

from serve_app.service import hub as hub_module
from serve_app.service.feed import Position
from serve_app.service.films import Order, Sent
from tests.desk import TWO_SHOTS, Shop, open_shop, step
from workflows.durable.journal import Journal
from workflows.durable.leases import Leases
from workflows.types import JobStatus, Priority


@dataclass(frozen=True)
class Event:
    id: str
    name: str
    data: Any


def parsed(text: str) -> list[Event]:
    """The events of a stream; only the last of those that one row makes has an id."""
    events = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and not line.startswith(":"))
        if "event" in fields:
            events.append(Event(fields.get("id", ""), fields["event"], json.loads(fields["data"])))
    return events


async def until(stream: AsyncIterator[bytes], name: str, count: int = 1) -> list[Event]:
    """Read on until an event of this name has come so often."""
    text = ""
    async with asyncio.timeout(10):
        async for piece in stream:
            text += piece.decode()
            if sum(event.name == name for event in parsed(text)) >= count:
                return parsed(text)
    raise AssertionError(f"the stream ended before {name}:\n{text}")


async def opened(shop: Shop, job_id: str, last_id: str = "") -> AsyncIterator[bytes]:
    stream = await shop.desk.streams.events(job_id, last_id)
    assert stream is not None
    return stream


async def to_end(shop: Shop, job_id: str, last_id: str = "") -> list[Event]:
    async with asyncio.timeout(10):
        return parsed("".join([piece.decode() async for piece in await opened(shop, job_id, last_id)]))


@pytest.fixture
async def film(closed_shop: Shop) -> str:
    """A queued film."""
    sent = Sent(text=json.dumps(TWO_SHOTS), file="film.json", is_script=False)
    draft = closed_shop.desk.films.draft(sent)
    return closed_shop.desk.films.submit(draft, Order(token="a" * 32, key_id="")).id


def begun(shop: Shop, job_id: str, node_id: str) -> None:
    """A Director takes the job and starts a node, without an engine."""
    database = shop.ledger.database
    [claim] = Leases(database, lease_s=60, interruption_limit=3).claim(1, Priority.INTERACTIVE)
    node = next(node for node in shop.ledger.nodes(job_id) if node.id == node_id)
    Journal(database).start(claim, node, key="k")


async def test_a_whole_film_is_told_in_the_words_of_the_table(closed_shop: Shop, film: str) -> None:
    shop = closed_shop
    stream = asyncio.create_task(to_end(shop, film))
    await shop.run_to_end(film)
    events = await stream
    names = [event.name for event in events]
    assert names[0] == "info"
    assert names[-1] == "done"
    assert all(event.data["type"] == event.name for event in events)
    stages = [(e.data["stage"]["stage_type"], e.data["stage"]["status"]) for e in events if e.name == "stage_update"]
    for stage in ("images", "videos", "composition"):
        assert [status for name, status in stages if name == stage] == ["processing", "completed"]
    [image] = [event.data for event in events if event.name == "image_generated"]
    keyframe = next(node for node in shop.ledger.nodes(film) if node.id == "s1.keyframe")
    assert image == {"type": "image_generated", "storyboard_id": "s1", "image": {
        "id": keyframe.key, "url": f"/api/jobs/{film}/shots/s1/keyframe", "width": 192, "height": 128}}
    clips = [e.data["message"] for e in events if e.name == "progress" and e.data["stage"] == "videos"]
    assert clips == ["clip 1/2", "clip 2/2"]
    done = events[-1].data
    assert done["data"] == {"total_storyboards": 2, "success_count": 2, "failed_count": 0,
                            "generated_image_ids": [keyframe.key]}
    assert (done["stage"]["status"], done["status"]) == ("completed", "succeeded")
    shares = [event.data["progress"] for event in events if event.name == "shot_update"]
    assert shares == sorted(shares)
    await shop.desk.close()


async def test_a_failed_shot_is_an_error_with_its_shot_and_the_film_is_partial(closed_shop: Shop, film: str) -> None:
    closed_shop.painter.failing = True
    await closed_shop.run_to_end(film)
    events = await to_end(closed_shop, film)
    [error] = [event.data for event in events if event.name == "error"]
    assert (error["storyboard_id"], error["error"]) == ("s2", "s2.clip: it burned")
    assert any(event.name == "warning" for event in events) is False
    done = events[-1].data
    assert (done["status"], done["data"]["success_count"], done["data"]["failed_count"]) == ("partial", 1, 1)
    await closed_shop.desk.close()


async def test_every_step_comes_once_and_in_order(closed_shop: Shop, film: str) -> None:
    shop = closed_shop
    await asyncio.to_thread(begun, shop, film, "s2.clip")
    stream = await opened(shop, film)
    reader = asyncio.create_task(until(stream, "shot_update", 21))
    for first in range(1, 21, 4):
        await shop.board.board.report([step(film, "s2.clip", n) for n in range(first, first + 4)])
        await asyncio.sleep(0)
    shots = [event.data["shot"] for event in await reader if event.name == "shot_update"]
    assert [shot["step"] for shot in shots] == [0, *range(1, 21)]
    assert shots[-1] == {"id": "s2", "status": "running", "progress": 1.0, "step": 20, "total_steps": 20, "attempt": 1,
                         "timestep": 980.0, "message": "diffusion step 20/20 (timestep 980.00)", "node": "s2.clip",
                         "kind": "clip", "phase": "diffusion", "node_progress": 1.0}

    async def first_steps(**asked: bool) -> list[int]:
        late = await shop.desk.streams.events(film, **asked)
        assert late is not None
        heard = await until(late, "shot_update", 21 if asked else 2)
        return [event.data["shot"]["step"] for event in heard if event.name == "shot_update"]

    assert await first_steps(all_steps=True) == [0, *range(1, 21)], "who comes late may have them all"
    assert await first_steps() == [0, 20]
    await shop.desk.close()


async def test_two_hundred_watchers_cost_the_board_what_one_does(closed_shop: Shop, film: str) -> None:
    shop = closed_shop
    await asyncio.to_thread(begun, shop, film, "s2.clip")
    streams = [await opened(shop, film) for _ in range(200)]
    readers = [asyncio.create_task(until(stream, "shot_update", 11)) for stream in streams]
    for n in range(1, 11):
        await shop.board.board.report([step(film, "s2.clip", n)])
        await asyncio.sleep(0.01)
    for events in await asyncio.gather(*readers):
        assert [e.data["shot"]["step"] for e in events if e.name == "shot_update"] == [*range(11)]
    assert shop.board.histories == 1
    assert shop.board.polls <= 12, "one after every batch, whoever listens"
    await shop.desk.close()


class TestResume:
    async def test_after_any_event_the_rest_comes_and_nothing_twice(self, closed_shop: Shop, film: str) -> None:
        shop = closed_shop
        await shop.run_to_end(film)
        whole = await to_end(shop, film)
        for place, event in enumerate(whole[:-1], start=1):
            if event.id:
                assert await to_end(shop, film, event.id) == whole[place:], event.id
        assert await shop.desk.streams.events(film, whole[-1].id) is None, "all was heard: do not come back"
        await shop.desk.close()

    async def test_another_process_goes_on_where_the_first_was_cut(self, closed_shop: Shop, film: str) -> None:
        """An id that one ingress gave is understood by another, steps included."""
        shop = closed_shop
        await asyncio.to_thread(begun, shop, film, "s2.clip")
        await shop.board.board.report([step(film, "s2.clip", n) for n in range(1, 6)])
        heard = await until(await opened(shop, film), "shot_update", 2)
        await shop.desk.close()
        other = open_shop(shop.settings.data_dir, shop.settings.data_dir / "state.db")
        other.board.board = shop.board.board
        await shop.board.board.report([step(film, "s2.clip", n) for n in range(6, 11)])
        stream = await opened(other, film, heard[-1].id)
        steps = [event.data["shot"]["step"] for event in await until(stream, "shot_update", 5)]
        assert heard[-1].data["shot"]["step"] == 5
        assert steps == [6, 7, 8, 9, 10]
        await other.desk.close()
        other.ledger.close()

    async def test_who_was_ahead_of_this_process_hears_nothing_twice(self, closed_shop: Shop, film: str) -> None:
        """Each process looks at the rows at times of its own; an id may be of one that has looked later."""
        shop = closed_shop
        await asyncio.to_thread(begun, shop, film, "s2.clip")
        other = open_shop(shop.settings.data_dir, shop.settings.data_dir / "state.db")
        other.board.board = shop.board.board
        behind = await other.desk.hub.feed(film)
        await shop.board.board.report([step(film, "s2.clip", n) for n in range(1, 6)])
        async with asyncio.timeout(5):
            while behind.at.steps < 5:
                await behind.news(1)
        await asyncio.to_thread(shop.ledger.log, film, "heard before")
        await (await shop.desk.hub.feed(film)).look()
        heard = await until(await opened(shop, film), "info", 3)
        assert heard[-1].data["message"] == "heard before"
        await shop.board.board.report([step(film, "s2.clip", n) for n in range(6, 9)])
        async with asyncio.timeout(5):
            while behind.at.steps < 8:
                await behind.news(1)
        before = Position.read(heard[-1].id)
        assert before is not None
        assert behind.at.rows < before.rows, "what this test is about"
        stream = await opened(other, film, heard[-1].id)
        await asyncio.to_thread(shop.ledger.log, film, "new")
        events = await until(stream, "info")
        assert [event.data["message"] for event in events if event.name == "info"] == ["new"]
        assert [event.data["shot"]["step"] for event in events if event.name == "shot_update"] == [6, 7, 8]
        places = [place for event in events if (place := Position.read(event.id))]
        assert min(place.rows for place in places) >= before.rows, "or the next break would tell them again"
        await other.desk.close()
        await shop.desk.close()
        other.ledger.close()

    async def test_steps_that_another_process_told_are_not_told_again(self, closed_shop: Shop, film: str) -> None:
        """Each asks the board at times of its own, too."""
        shop = closed_shop
        await asyncio.to_thread(begun, shop, film, "s2.clip")
        await shop.board.board.report([step(film, "s2.clip", n) for n in range(1, 4)])
        feed = await shop.desk.hub.feed(film)
        ahead = Position(epoch=feed.at.epoch, rows=feed.at.rows, steps=5)
        stream = await opened(shop, film, str(ahead))
        await shop.board.board.report([step(film, "s2.clip", n) for n in range(4, 8)])
        events = await until(stream, "shot_update", 2)
        assert [event.data["shot"]["step"] for event in events if event.name == "shot_update"] == [6, 7]
        await shop.desk.close()

    async def test_an_id_from_the_future_of_the_database_begins_with_a_snapshot(
            self, closed_shop: Shop, film: str) -> None:
        """As after a backup was put back."""
        shop = closed_shop
        feed = await shop.desk.hub.feed(film)
        ahead = str(Position(epoch=feed.at.epoch, rows=feed.at.rows + 100, steps=0))
        stream = await opened(shop, film, ahead)
        await until(stream, "snapshot")
        await asyncio.to_thread(shop.ledger.log, film, "new")
        assert (await until(stream, "info"))[0].data["message"] == "new"
        await shop.desk.close()

    async def test_after_a_new_board_a_snapshot_stands_for_the_steps_that_are_gone(
            self, closed_shop: Shop, film: str) -> None:
        shop = closed_shop
        await asyncio.to_thread(begun, shop, film, "s2.clip")
        await shop.board.board.report([step(film, "s2.clip", n) for n in range(1, 6)])
        heard = await until(await opened(shop, film), "shot_update", 2)
        await shop.desk.close()
        shop.board.restart()
        await shop.board.board.report([step(film, "s2.clip", 9)])
        await asyncio.to_thread(shop.ledger.log, film, "a row meanwhile")
        events = await until(await opened(shop, film, heard[-1].id), "info")
        assert [event.name for event in events] == ["snapshot", "info"]
        assert (events[0].data["type"], events[0].data["shots"][1]["step"]) == ("snapshot", 9)
        assert events[1].data["message"] == "a row meanwhile", "no row is lost"
        await shop.desk.close()

    async def test_past_the_window_a_snapshot_comes_and_then_what_is_new(self, closed_shop: Shop, film: str) -> None:
        shop = open_shop(closed_shop.settings.data_dir, closed_shop.settings.data_dir / "state.db", "http.window=3")
        await asyncio.to_thread(begun, shop, film, "s2.clip")
        first = (await until(await opened(shop, film), "info"))[0].id
        for number in range(8):
            await asyncio.to_thread(shop.ledger.log, film, f"line {number}")
        await (await shop.desk.hub.feed(film)).look()
        stream = await opened(shop, film, first)
        assert [event.name for event in await until(stream, "snapshot")] == ["snapshot"]
        await asyncio.to_thread(shop.ledger.log, film, "after")
        assert (await until(stream, "info"))[0].data["message"] == "after"
        await shop.desk.close()
        shop.ledger.close()

    async def test_a_stream_ends_after_so_much_and_the_next_goes_on(self, closed_shop: Shop, film: str) -> None:
        """What stands before us keeps all that we say to a slow reader: so we say no more before it comes back."""
        place = closed_shop.settings.data_dir
        shop = open_shop(place, place / "state.db", "http.stream_kb=1")
        shop.board.board = closed_shop.board.board
        await shop.run_to_end(film)
        whole = await to_end(closed_shop, film)
        heard: list[Event] = []
        while not heard or heard[-1].name != "done":
            pieces = [piece async for piece in await opened(shop, film, heard[-1].id if heard else "")]
            assert sum(map(len, pieces[:-1])) < 1000
            heard += parsed(b"".join(pieces).decode())
        assert heard == whole
        assert (await shop.desk.hub.feed(film)).watchers == 0
        await shop.desk.close()
        await closed_shop.desk.close()
        shop.ledger.close()

    async def test_a_slow_watcher_gets_a_snapshot_instead_of_what_it_missed(self, closed_shop: Shop, film: str) -> None:
        shop = open_shop(closed_shop.settings.data_dir, closed_shop.settings.data_dir / "state.db", "http.window=3")
        await asyncio.to_thread(begun, shop, film, "s2.clip")
        stream = await opened(shop, film)
        await until(stream, "info")
        await shop.board.board.report([step(film, "s2.clip", n) for n in range(1, 11)])
        feed = await shop.desk.hub.feed(film)
        async with asyncio.timeout(5):
            while feed.at.steps < 10:
                await feed.news(1)
        assert "snapshot" in [event.name for event in await until(stream, "snapshot")]
        await shop.desk.close()
        shop.ledger.close()

    @pytest.mark.parametrize("last_id", ["", "nonsense", "1:2", "x:1.2.3", "é:1.2", "a" * 99])
    async def test_an_id_that_is_none_means_from_the_start(self, closed_shop: Shop, film: str, last_id: str) -> None:
        closed_shop.ledger.cancel(film)
        events = await to_end(closed_shop, film, last_id)
        assert (events[0].data["message"], events[-1].name) == ("job: queued, 4 nodes", "done")
        await closed_shop.desk.close()

    async def test_a_job_that_was_opened_again_is_told_from_its_present_run(self, closed_shop: Shop, film: str) -> None:
        shop = closed_shop
        await shop.run_to_end(film)
        before = await to_end(shop, film)
        shop.ledger.rerun(film, ("s2",), force=True)
        going_on = asyncio.create_task(to_end(shop, film, before[-1].id))
        await asyncio.sleep(0)
        await shop.run_to_end(film)
        assert [e.data["status"] for e in await going_on if e.name == "done"] == ["succeeded"]
        fresh = await to_end(shop, film)
        assert fresh[0].name == "snapshot"
        assert [event.name for event in fresh].count("done") == 1
        assert {event.data["shot"]["id"] for event in fresh if event.name == "shot_update"} == {"s2"}
        await shop.desk.close()


class TestBreaks:
    async def test_a_silent_board_keeps_no_row_from_being_told(self, closed_shop: Shop, film: str) -> None:
        closed_shop.board.away = True
        stream = asyncio.create_task(to_end(closed_shop, film))
        await closed_shop.run_to_end(film)
        assert (await stream)[-1].name == "done"
        await closed_shop.desk.close()

    async def test_a_board_that_comes_back_is_heard_again(self, closed_shop: Shop, film: str) -> None:
        shop = closed_shop
        await asyncio.to_thread(begun, shop, film, "s2.clip")
        shop.board.away = True
        stream = await opened(shop, film)
        await until(stream, "shot_update")
        shop.board.away = False
        await shop.board.board.report([step(film, "s2.clip", 7)])
        assert (await until(stream, "shot_update"))[-1].data["shot"]["step"] == 7
        await shop.desk.close()

    async def test_a_quiet_stream_says_that_it_is_alive(self, closed_shop: Shop, film: str) -> None:
        state = closed_shop.settings.data_dir / "state.db"
        shop = open_shop(closed_shop.settings.data_dir, state, "http.heartbeat_s=0.01")
        stream = await opened(shop, film)
        async with asyncio.timeout(5), aclosing(stream):  # type: ignore[type-var]
            async for piece in stream:
                if piece == b": heartbeat\n\n":
                    break
        await shop.desk.close()
        shop.ledger.close()

    async def test_a_deleted_job_ends_the_stream(self, closed_shop: Shop, film: str) -> None:
        stream = await opened(closed_shop, film)
        await until(stream, "info")
        closed_shop.ledger.cancel(film)
        closed_shop.ledger.delete(film)
        closed_shop.desk.hub.nudge()
        async with asyncio.timeout(5):
            assert [piece async for piece in stream] == []
        await closed_shop.desk.close()

    async def test_the_hub_closes_while_it_lets_a_feed_go(self, closed_shop: Shop, film: str) -> None:
        """Closing a feed waits for its poller; being told to end meanwhile must not be taken for the poller's end."""
        hub = closed_shop.desk.hub
        feed = await hub.feed(film)
        async with asyncio.timeout(5):
            await closed_shop.board.asked.wait()
            feed.is_gone = True
            hub.nudge()
            await closed_shop.board.cut.wait()
            await hub.close()

    async def test_a_job_that_nobody_watches_is_not_followed_for_ever(
            self, closed_shop: Shop, film: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hub_module, "LINGER_S", 0.0)
        feed = await closed_shop.desk.hub.feed(film)
        async with asyncio.timeout(5):
            while not feed.is_gone:
                await feed.news(1)
        assert await closed_shop.desk.hub.feed(film) is not feed
        await closed_shop.desk.close()


async def test_the_status_shows_the_newest_step_and_many_askers_are_one_question(closed_shop: Shop, film: str) -> None:
    shop = closed_shop
    await asyncio.to_thread(begun, shop, film, "s2.clip")
    await shop.board.board.report([step(film, "s2.clip", 12)])
    seen = await asyncio.gather(*(shop.desk.views.job(film) for _ in range(50)))
    assert len({id(one) for one in seen}) == 1
    shot = json.loads(seen[0].body)["shots"][1]
    assert (shot["step"], shot["total_steps"], shot["timestep"], shot["attempt"]) == (12, 20, 988.0, 1)
    assert seen[0].status is JobStatus.RUNNING
    assert shop.board.histories == 1
    await shop.desk.close()


async def test_who_has_heard_the_end_is_not_told_that_the_job_goes_on(closed_shop: Shop, film: str) -> None:
    """A reply may be a moment old, but not older than what its reader has heard."""
    stream = await opened(closed_shop, film)
    await until(stream, "info")
    assert (await closed_shop.desk.views.job(film)).status is JobStatus.QUEUED
    closed_shop.ledger.cancel(film)  # as another process does
    closed_shop.desk.hub.nudge()
    await until(stream, "done")
    assert (await closed_shop.desk.views.job(film)).status is JobStatus.CANCELLED
    await to_end(closed_shop, film)
    assert (await closed_shop.desk.views.job(film)).status is JobStatus.CANCELLED


def test_over_http_the_stream_has_its_headers_and_ends_with_204(shop: Shop) -> None:
    job_id = shop.film()
    reply = shop.client.get(f"/api/jobs/{job_id}/events")
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert (reply.headers["cache-control"], reply.headers["x-accel-buffering"]) == ("no-cache", "no")
    last = parsed(reply.text)[-1].id
    assert Position.read(last) is not None
    assert shop.client.get(f"/api/jobs/{job_id}/events", headers={"Last-Event-ID": last}).status_code == 204
    assert shop.client.get(f"/api/jobs/{job_id}/events", params={"last_event_id": last}).status_code == 204
