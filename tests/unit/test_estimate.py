"""How long is left: learned by card and shape, never guessed for models, shared with whoever uses the same slots."""

from __future__ import annotations

from dataclasses import replace

import pytest

from workflows.estimate import Eta, Pace, Work, estimate, quantile, shape_of
from workflows.types import Json, NodeKind, Priority

SHAPE = shape_of(NodeKind.CLIP, {"card": "wan", "card_digest": "d", "width_px": 96, "height_px": 64, "frames": 9,
                                 "steps": 20, "prompt": "never counts"})


def clip(name: str, *, job: str = "film", seconds: float = 0.0, deps: tuple[str, ...] = (),
         fraction: float = 0.0) -> Work:
    return Work(job_id=job, id=name, kind=NodeKind.CLIP, lane="wan", cost=7.0, shape=SHAPE, seconds=seconds, deps=deps,
                fraction=fraction)


def compose(*deps: str, cost: float = 2.0, seconds: float = 0.0) -> Work:
    return Work(job_id="film", id="compose", kind=NodeKind.COMPOSE, lane="cpu", cost=cost, deps=deps, seconds=seconds)


def left(*mine: Work, learned: tuple[Work, ...], others: tuple[tuple[Work, Priority], ...] = (), slots: int = 1,
         priority: Priority = Priority.INTERACTIVE) -> Eta | None:
    return estimate(mine, others, priority=priority, pace=Pace(learned), slots={"wan": slots, "cpu": 1})


TEN = (clip("x", seconds=10.0),)


def test_before_there_is_data_of_the_shape_there_is_no_estimate() -> None:
    assert left(clip("a"), learned=()) is None
    other_shape = replace(clip("x", seconds=1.0), shape=(*SHAPE[:-1], 30))
    assert left(clip("a"), learned=(other_shape,)) is None


@pytest.mark.parametrize(("mine", "slots", "p50_s"), [
    ((clip("a"),), 1, 10.0), ((clip("a", fraction=0.75),), 1, 2.5),
    ((clip("a"), clip("b")), 1, 20.0), ((clip("a"), clip("b")), 2, 10.0),
    ((clip("a"), clip("b", deps=("a",))), 2, 20.0),
    ((clip("a"), compose("a")), 1, 12.0), ((compose(),), 1, 2.0),
], ids=["one", "three-quarters-done", "one-after-the-other", "two-slots", "a-chain", "and-then-the-film", "only-cpu"])
def test_what_is_left_is_the_longer_of_the_chain_and_the_queue(
        mine: tuple[Work, ...], slots: int, p50_s: float) -> None:
    eta = left(*mine, learned=TEN, slots=slots)
    assert eta is not None
    assert eta.p50_s == pytest.approx(p50_s)


def test_the_slow_tenth_shows_in_p90_alone() -> None:
    eta = left(clip("a"), learned=tuple(clip("x", seconds=s) for s in (10.0, 10.0, 10.0, 10.0, 40.0)))
    assert eta == Eta(p50_s=10.0, p90_s=40.0)


def test_cpu_nodes_are_corrected_by_how_long_such_nodes_really_took() -> None:
    eta = left(compose(), learned=(compose(cost=1.0, seconds=3.0),))
    assert eta is not None
    assert eta.p50_s == 6.0


@pytest.mark.parametrize(("priority", "rank", "p50_s"), [
    (Priority.INTERACTIVE, Priority.INTERACTIVE, 20.0), (Priority.BATCH, Priority.INTERACTIVE, 40.0),
    (Priority.INTERACTIVE, Priority.BATCH, 10.0),
], ids=["take turns", "wait for all of a better class", "pass a lower class"])
def test_other_jobs_count_as_the_dispatcher_treats_them(priority: Priority, rank: Priority, p50_s: float) -> None:
    others = tuple((clip(name, job="other"), rank) for name in "abc")
    eta = left(clip("a"), learned=TEN, others=others, priority=priority)
    assert eta is not None
    assert eta.p50_s == p50_s


@pytest.mark.parametrize(("share", "expected"), [(0.5, 2), (0.9, 4), (1.0, 4), (0.0, 1), (0.25, 1)])
def test_a_quantile_is_a_sample(share: float, expected: float) -> None:
    assert quantile([4, 2, 1, 3], share) == expected


def test_pictures_that_are_looked_at_are_part_of_the_shape() -> None:
    plain: dict[str, Json] = {"card": "klein", "width_px": 96, "height_px": 64, "frames": 1, "steps": 4}
    one, two = ({**plain, "references": [{}] * number} for number in (1, 2))
    assert len({shape_of(NodeKind.KEYFRAME, payload) for payload in (plain, one, two)}) == 3
    assert shape_of(NodeKind.KEYFRAME, {**one, "seed": 2}) == shape_of(NodeKind.KEYFRAME, one)
