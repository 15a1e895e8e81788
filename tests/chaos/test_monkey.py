"""A short run of the monkey, and the windows of a clip's life in which a death once could have cost a result."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos import report
from tests.chaos.gated import Moment
from tests.chaos.matrix import Cell, Floor, floor
from tests.chaos.monkey import Order, run
from tests.chaos.served import Component
from tests.postgres import find_binaries
from workflows.durable.rows import EventType

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.cluster]


def test_ten_kills_by_a_seed_lose_nothing_and_render_nothing_again(tmp_path: Path) -> None:
    outcome = run(Order(seed=7, kills=10, jobs=3, database="sqlite", compare=2, limit_s=90.0), print)
    report.write(outcome, tmp_path, "short")
    assert (outcome.violations, outcome.troubles) == ((), ())
    assert len(outcome.struck) >= 3, "a loaded machine makes fewer in the time, but some"
    assert len(outcome.evidence) >= 3
    assert sum(bool(one.calm) for one in outcome.evidence) == 2
    assert report.is_good(outcome)


@pytest.fixture(scope="module")
def stage() -> Iterator[Floor]:
    with floor("sqlite") as found:
        yield found


def types_of(cell: Cell, node_id: str) -> list[EventType]:
    return [event.type for event in cell.evidence.events if event.node_id == node_id]


def test_death_after_a_checkpoint_and_before_the_result_goes_on_at_the_checkpoint(stage: Floor) -> None:
    cell = stage.play(Component.MODEL, Moment.DENOISING)
    assert cell.violations == ()
    assert cell.evidence.calm
    assert cell.attempts >= 2
    assert cell.resumed_after >= cell.kept > 0


@pytest.mark.parametrize("component", [Component.DIRECTOR, Component.MODEL, Component.SERVER],
                         ids=lambda component: component.value)
def test_death_after_the_result_and_before_its_commit_makes_nothing_again(
        stage: Floor, component: Component) -> None:
    cell = stage.play(component, Moment.AFTER_PUT)
    assert cell.violations == ()
    # What the dead attempt had stored is found: by the Director before it asks, or by the replica before it begins.
    made_by = types_of(cell, cell.node_id)[-1]
    assert made_by is EventType.NODE_CACHED or (made_by, component) == (EventType.NODE_SUCCEEDED, Component.MODEL)
    later = [seen.last_step for seen in cell.evidence.steps if seen.node_id == cell.node_id and seen.attempt > 1]
    assert sum(later) == 0, "no later attempt made a step"


@pytest.mark.postgres
def test_a_director_that_dies_before_the_commit_costs_nothing_on_postgres_either() -> None:
    if find_binaries() is None:
        pytest.skip("no PostgreSQL server programs (initdb) on PATH or in /usr/lib/postgresql")
    with floor("postgres") as found:
        cell = found.play(Component.DIRECTOR, Moment.AFTER_PUT)
    assert cell.violations == ()
