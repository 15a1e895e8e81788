"""What waits for a model, by the rows: what is ready, what runs, what is still to come, and how long one takes."""

from __future__ import annotations

from tests.studio import Studio, film
from workflows.durable.backlog import Backlogs
from workflows.durable.batches import Batches, BatchLimits, NewBatch, NewFile
from workflows.durable.ledger import Ledger
from workflows.scaling import Backlog


def test_nodes_are_ready_when_all_they_wait_for_is_settled(ledger: Ledger) -> None:
    ledger.submit(film("one", shots=3))
    ledger.submit(film("over", shots=5))
    ledger.cancel("over")
    lanes = Backlogs(ledger.database).of(["cpu", "other"])
    # Of each shot the keyframe is ready and the clip waits for it; the film waits for all.
    assert (lanes["cpu"].ready, lanes["cpu"].running, lanes["cpu"].coming) == (3, 0, 4)
    assert lanes["cpu"].interactive == 3
    assert lanes["other"] == Backlog(ready=0, running=0, coming=0, seconds=0.0)


async def test_how_long_one_takes_is_measured_once_some_were_run(studio: Studio) -> None:
    backlogs = Backlogs(studio.ledger.database)
    studio.ledger.submit(film("one", shots=1))
    planned = backlogs.of(["cpu"])["cpu"].seconds
    await studio.render("one")
    assert backlogs.of(["cpu"])["cpu"] == Backlog(ready=0, running=0, coming=0, seconds=0.0)
    studio.ledger.submit(film("two", shots=2))
    assert 0 < backlogs.of(["cpu"])["cpu"].seconds < planned


def test_a_batch_counts_with_what_it_may_start(ledger: Ledger) -> None:
    batches, backlogs = Batches(ledger), Backlogs(ledger.database)
    batches.submit(NewBatch(id="b", name="night", files=(NewFile(file="one", job=film("one", shots=3)),),
                            limits=BatchLimits(concurrency=2)))
    ledger.submit(film("alone", shots=1))

    def counted() -> tuple[int, int]:
        found = backlogs.of(["cpu"])["cpu"]
        return found.ready, found.coming

    assert counted() == (2 + 1, 4 + 2)
    assert backlogs.of(["cpu"])["cpu"].interactive == 1
    batches.pause("b")
    assert counted() == (1, 2)
