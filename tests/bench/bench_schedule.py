"""What is the order of calls worth? Simulated, without overhead, by the product's own queue.

    python -m tests.bench.bench_schedule

Lower bound over makespan, and how long films take in the mean, for the fair queue, for first come first served, and for
lists dealt out beforehand to each GPU. The queue knows only what a call is thought to take; it takes what chance says.
A second report: how much sooner films end where idle GPUs help with their last calls.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.bench.report import write_report
from tests.bench.simulate import (
    Call,
    ElasticSimulation,
    Fair,
    Fifo,
    Job,
    Order,
    Outcome,
    Rule,
    Simulation,
    Static,
    greedy,
    lower_bound_s,
)
from workflows.elastic import SPEEDUPS, gpus_for_next
from workflows.types import Priority

KEYFRAME_S, CLIP_S = 3.0, 45.0
LENGTHS, CHANCE = 0.3, 0.05
"""Of the logarithm of seconds: between shots, which the plan knows (frames, steps, size); and around what it thinks."""
PATIENCE_S = 300.0
"""engine.batch_wait_s"""
GOAL = 0.98


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What there is to do, and on how many GPUs."""

    name: str
    gpus: int
    jobs: tuple[Job, ...]


def film(name: str, shots: int, rng: random.Random, **details: object) -> Job:
    """A keyframe and a clip per shot; some shots are longer than others, and the plan knows that."""
    calls: list[Call] = []
    for number in range(shots):
        clip_s = CLIP_S * rng.lognormvariate(0, LENGTHS)
        for stage, cost, deps in (("keyframe", KEYFRAME_S, ()), ("clip", clip_s, (f"s{number}.keyframe",))):
            calls.append(Call(id=f"s{number}.{stage}", cost=cost, seconds=cost * rng.lognormvariate(0, CHANCE),
                              deps=deps))
    return Job(id=name, calls=tuple(calls), **details)  # type: ignore[arg-type]


def scenes() -> list[Scene]:
    rng = random.Random(7)
    day = [film("night", 400, rng, priority=Priority.BATCH)]
    # A morning in which films of twelve shots keep eight GPUs busier than they can be.
    day += [film(f"film {n}", 12, rng, tenant=f"team {n % 3}", arrives_s=n * 60.0) for n in range(40)]
    crowd = [film(f"a {n}", 12, rng, tenant="many films") for n in range(30)] + [
        film("single", 12, rng, tenant="one film", arrives_s=60.0)]
    return [
        Scene(name="one film of 12 shots", gpus=8, jobs=(film("one", 12, rng),)),
        Scene(name="one film of 1,000 shots", gpus=32, jobs=(film("one", 1000, rng),)),
        Scene(name="100 films of 100 shots", gpus=1000, jobs=tuple(film(f"f{n}", 100, rng) for n in range(100))),
        Scene(name="100 films of 12 shots, one batch", gpus=8, jobs=tuple(
            film(f"f{n}", 12, rng, batch="b", place=n, priority=Priority.BATCH) for n in range(100))),
        Scene(name="100 films of 12 shots, no batch", gpus=8, jobs=tuple(
            film(f"f{n}", 12, rng, priority=Priority.BATCH) for n in range(100))),
        Scene(name="30 films of one tenant, 1 of another", gpus=8, jobs=tuple(crowd)),
        Scene(name="films all morning, a batch behind", gpus=8, jobs=tuple(day)),
    ]


def orders(scene: Scene, simulation: Simulation) -> dict[str, Callable[[], Order]]:
    return {"reelray": lambda: Fair(scene.jobs, lambda: simulation.now_s, PATIENCE_S), "first come": Fifo,
            "dealt out": lambda: Static(scene.jobs, scene.gpus)}


def measure(scene: Scene) -> list[list[object]]:
    bound_s = lower_bound_s(scene.jobs, scene.gpus)
    rows: list[list[object]] = []
    for name in orders(scene, Simulation((), 1)):
        simulation = Simulation(scene.jobs, scene.gpus)
        began_s = time.perf_counter()
        outcome = simulation.run(orders(scene, simulation)[name]())
        took_s = time.perf_counter() - began_s
        rows.append([scene.name, scene.gpus, sum(len(job.calls) for job in scene.jobs), name,
                     bound_s / outcome.makespan_s, _mean(outcome, scene.jobs, Priority.INTERACTIVE),
                     _mean(outcome, scene.jobs, Priority.BATCH), _mean(outcome, scene.jobs[-1:], None), took_s])
    return rows


TAILS = ((1, 8), (3, 8), (9, 8), (10, 8), (12, 8), (14, 8), (16, 8), (20, 8), (40, 8), (5, 4), (3, 2))
"""Shots and GPUs."""
SEEDS = range(20)


def tail_rows() -> list[list[object]]:
    """Makespans with idle GPUs that help, over those without; means and worst of films drawn anew."""
    rows: list[list[object]] = []
    for lengths in (0.0, LENGTHS):
        for shots, gpus in TAILS:
            found = [_tail(shots, gpus, lengths, random.Random(seed)) for seed in SEEDS]
            nearest, ahead, two = zip(*found, strict=True)
            rows.append([shots, gpus, "equal" if not lengths else "uneven", statistics.mean(nearest),
                         statistics.mean(ahead), max(ahead), statistics.mean(two)])
    return rows


def _tail(shots: int, gpus: int, lengths: float, rng: random.Random) -> tuple[float, float, float]:
    calls: list[Call] = []
    for number in range(shots):
        cost = CLIP_S * rng.lognormvariate(0, lengths)
        calls.append(Call(id=f"s{number}.clip", cost=cost, seconds=cost * rng.lognormvariate(0, CHANCE)))
    jobs = (Job(id="film", calls=tuple(calls)),)
    rigid = Simulation(jobs, gpus)
    rigid_s = rigid.run(Fair(jobs, lambda: rigid.now_s, PATIENCE_S)).makespan_s

    def elastic(rule: Rule, sizes: tuple[int, ...]) -> float:
        simulation = ElasticSimulation(jobs, gpus, rule, sizes)
        return simulation.run(Fair(jobs, lambda: simulation.now_s, PATIENCE_S)).makespan_s / rigid_s

    return elastic(greedy, (1, 2, 4)), elastic(gpus_for_next, (1, 2, 4)), elastic(gpus_for_next, (1, 2))


def _mean(outcome: Outcome, jobs: Sequence[Job], priority: Priority | None) -> object:
    chosen = [job for job in jobs if priority in (None, job.priority)]
    return round(outcome.mean_wait_s(chosen)) if chosen else "-"


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    rows = [row for scene in scenes() for row in measure(scene)]
    large = [row for row in rows if row[1] == 1000]
    ours = [float(str(row[4])) for row in rows if row[3] == "reelray"][:3]
    write_report("schedule_cpu_202611", "What is the order of calls worth?",
                 ["work", "GPUs", "calls", "order", "LB/makespan", "mean film s", "batch s", "last film s",
                  "planned in s"],
                 rows,
                 f"reelray, where all is there from the start: {min(ours):.3f} to {max(ours):.3f} of the lower bound "
                 f"(goal {GOAL}); {large[0][2]} calls on 1000 GPUs are planned in {large[0][-1]:.1f} s. Simulated: no "
                 f"overhead, times spread by {CHANCE:g} around what the plan thinks. `last film` arrives last. Equal "
                 "films of one tenant that come together share evenly and so end together: first come, first served "
                 "has the better mean there, and lets a single shot wait for all of them.")


    tails = tail_rows()
    twelve = next(row for row in tails if row[:3] == [12, 8, "equal"])
    write_report("elastic_cpu_202611", "What is it worth that idle GPUs help at the end of a film?",
                 ["shots", "GPUs", "lengths", "at once", "looking ahead", "worst", "looking ahead, up to 2"], tails,
                 f"Makespan over that of one GPU per shot; {len(SEEDS)} films drawn for each row, times spread by "
                 f"{CHANCE:g} around what the plan thinks, lengths by {LENGTHS:g} where uneven. `at once`: only a call "
                 "that nothing waits behind gets what is idle at that moment. `looking ahead`: the product's rule "
                 "(`workflows/elastic.py`), up to 4 GPUs per call; `worst` of its films. Twelve equal shots on eight "
                 f"GPUs: {twelve[4]:.3f}. Nothing here is measured: a call is done sooner by published figures, "
                 f"{', '.join(f'{gain:g} on {gpus}' for gpus, gain in SPEEDUPS.items() if gpus in (2, 4))}, and "
                 "coming together costs nothing.")


if __name__ == "__main__":
    main()
