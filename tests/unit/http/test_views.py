"""Status replies from memory: how old they may be, and who waits for a new one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import pytest

from serve_app.service.views import FRESH_S, Seen, Sources, Views
from tests.desk import Shop
from workflows.durable.leases import Leases
from workflows.errors import UnknownJob
from workflows.types import JobStatus, Priority, ProgressRecord

BUILD_S = 0.03


def slow_views(shop: Shop) -> Views:
    """Views whose every answer takes a while."""
    async def live(_: str) -> Mapping[str, ProgressRecord]:
        await asyncio.sleep(BUILD_S)
        return {}

    desk = shop.desk
    return Views(Sources(ledger=desk.ledger, overview=desk.overview, takes=desk.takes, forecast=desk.forecast,
                         live=live))


def running(shop: Shop) -> str:
    job_id = shop.submit()
    Leases(shop.ledger.database, lease_s=60, interruption_limit=3).claim(1, Priority.INTERACTIVE)
    return job_id


async def polled(views: Views, job_id: str, times: int) -> list[tuple[float, float, Seen]]:
    """(how long it took, how old it was, the reply) of a client that asks every 20 ms."""
    found = []
    for _ in range(times):
        began_s = time.monotonic()
        seen = await views.job(job_id)
        ended_s = time.monotonic()
        found.append((ended_s - began_s, began_s - seen.asked_s, seen))
        await asyncio.sleep(0.02)
    return found


async def test_who_asks_often_waits_only_once_and_never_hears_old_news(closed_shop: Shop) -> None:
    job_id = await asyncio.to_thread(running, closed_shop)
    views = slow_views(closed_shop)
    found = await polled(views, job_id, 50)
    assert found[0][2].status is JobStatus.RUNNING
    assert len({id(seen) for _, _, seen in found}) >= 3, "it was asked again in this second"
    assert max(age_s for _, age_s, _ in found) <= FRESH_S
    waited = [took_s for took_s, _, _ in found if took_s >= BUILD_S]
    assert len(waited) == 1, "only the first waits for the database"


async def test_what_was_changed_here_is_never_answered_from_before(closed_shop: Shop) -> None:
    job_id = await asyncio.to_thread(running, closed_shop)
    views = slow_views(closed_shop)
    await polled(views, job_id, 9)  # an answer ahead of time is under way
    await asyncio.to_thread(closed_shop.ledger.cancel, job_id)
    views.forget(job_id)
    changed_s = time.monotonic()
    found = await polled(views, job_id, 20)
    assert min(seen.asked_s for _, _, seen in found) >= changed_s


async def test_a_job_that_is_gone_is_unknown_as_soon_as_its_reply_is_old(closed_shop: Shop) -> None:
    job_id = await asyncio.to_thread(closed_shop.submit)
    views = slow_views(closed_shop)
    await views.job(job_id)
    await asyncio.to_thread(closed_shop.ledger.cancel, job_id)
    await asyncio.to_thread(closed_shop.ledger.delete, job_id)
    with pytest.raises(UnknownJob):
        await polled(views, job_id, 50)
