"""The simulation itself: it runs every call once, in order, and never beats what cannot be beaten."""

from __future__ import annotations

import random

import pytest

from tests.bench.simulate import Call, ElasticSimulation, Fair, Fifo, Job, Order, Simulation, Static, lower_bound_s
from workflows.elastic import gpus_for_next


def films(rng: random.Random) -> tuple[Job, ...]:
    def calls(shots: int) -> tuple[Call, ...]:
        made = []
        for number in range(shots):
            for stage, deps in (("keyframe", ()), ("clip", (f"s{number}.keyframe",))):
                seconds = rng.uniform(1, 9)
                made.append(Call(id=f"s{number}.{stage}", seconds=seconds, cost=seconds, deps=deps))
        return tuple(made)
    return tuple(Job(id=f"f{n}", tenant=f"t{n % 2}", calls=calls(rng.randrange(1, 8)), arrives_s=rng.choice((0.0, 5.0)))
                 for n in range(rng.randrange(1, 6)))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", ["fair", "fifo", "static"])
def test_no_order_ends_before_the_lower_bound_and_none_loses_a_call(seed: int, name: str) -> None:
    rng = random.Random(seed)
    jobs, gpus = films(rng), rng.randrange(1, 5)
    simulation = Simulation(jobs, gpus)
    orders: dict[str, Order] = {"fair": Fair(jobs, lambda: simulation.now_s, 60.0), "fifo": Fifo(),
                                "static": Static(jobs, gpus)}
    outcome = simulation.run(orders[name])
    work_s = sum(call.seconds for job in jobs for call in job.calls)
    assert set(outcome.ends_s) == {job.id for job in jobs}
    assert outcome.busy_s == pytest.approx(work_s)
    assert outcome.makespan_s >= lower_bound_s(jobs, gpus) - 1e-9
    if name != "static":  # never idle while something waits (Graham's bound; arrivals may leave a gap)
        longest_s = max(a.seconds + b.seconds for job in jobs for a, b in zip(job.calls, job.calls[1:], strict=False))
        assert outcome.makespan_s <= 5.0 + work_s / gpus + longest_s


@pytest.mark.parametrize("seed", range(10))
def test_with_gpus_that_help_every_call_is_made_once_and_no_more_gpus_are_used_than_there_are(seed: int) -> None:
    rng = random.Random(seed)
    jobs, gpus = films(rng), rng.randrange(1, 9)
    simulation = ElasticSimulation(jobs, gpus, gpus_for_next, (1, 2, 4))
    outcome = simulation.run(Fair(jobs, lambda: simulation.now_s, 60.0))
    work_s = sum(call.seconds for job in jobs for call in job.calls)
    assert set(outcome.ends_s) == {job.id for job in jobs}
    assert outcome.busy_s >= work_s - 1e-9, "a GPU that helps does less than its share"
    assert outcome.busy_s <= gpus * outcome.makespan_s + 1e-9
    alone = ElasticSimulation(jobs, gpus, gpus_for_next, (1,))
    plain = Simulation(jobs, gpus)
    assert alone.run(Fair(jobs, lambda: alone.now_s, 60.0)).busy_s == pytest.approx(work_s)
    assert plain.run(Fair(jobs, lambda: plain.now_s, 60.0)).busy_s == pytest.approx(work_s)


def test_nine_equal_calls_on_eight_gpus_do_not_take_two_turns() -> None:
    calls = tuple(Call(id=f"s{n}.clip", seconds=10.0, cost=10.0) for n in range(9))
    jobs = [Job(id="film", calls=calls)]
    simulation = ElasticSimulation(jobs, 8, gpus_for_next, (1, 2, 4))
    assert simulation.run(Fair(jobs, lambda: simulation.now_s, 60.0)).makespan_s == pytest.approx(10 + 10 / 3.4)


def test_the_pairing_bound_knows_that_nine_calls_on_eight_gpus_take_two_turns() -> None:
    calls = tuple(Call(id=f"s{n}.clip", seconds=10.0, cost=10.0) for n in range(9))
    assert lower_bound_s([Job(id="film", calls=calls)], 8) == 20.0
