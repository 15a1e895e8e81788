"""How many replicas follow from how much work: the rule alone, what Serve asks, and who counts."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.serve.config import AutoscalingContext

from configs.load import cards_in_use, load_settings
from serve_app.app import build
from serve_app.scaling import Divider, Gpus, Scaled, Scaler, Seen, gpus_now, scaled_of, told
from serve_app.scaling_policy import BacklogPolicy, autoscaling_of
from workflows.division import Room
from workflows.durable.backlog import Backlogs
from workflows.scaling import Backlog, Rule, decide, enough

RULE = Rule(least=0, most=8, finish_within_s=300, idle_s=60)
NOTHING = Backlog(ready=0, running=0, coming=0, seconds=100)


def work(ready: int = 0, running: int = 0, coming: int = 0, seconds: float = 100.0) -> Backlog:
    return Backlog(ready=ready, running=running, coming=coming, seconds=seconds)


@pytest.mark.parametrize(("backlog", "replicas"), [
    (NOTHING, 0), (work(coming=40), 0), (work(ready=1, seconds=0.1), 1), (work(ready=9), 3), (work(ready=10), 4),
    (work(ready=4, running=5), 3), (work(ready=2, seconds=5000), 2), (work(ready=900), 8), (work(running=1), 1),
], ids=["nothing", "not yet", "one quick", "in time", "not quite in time", "what runs counts", "no more than nodes",
        "the most", "the last"])
def test_enough_is_what_finishes_in_time(backlog: Backlog, replicas: int) -> None:
    assert enough(backlog, RULE) == replicas


@given(ready=st.integers(0, 2000), running=st.integers(0, 64), coming=st.integers(0, 2000),
       seconds=st.floats(0, 1e5), now=st.integers(0, 16), since_s=st.none() | st.floats(0, 100))
def test_a_decision_keeps_its_bounds_and_never_leaves_work_alone(
    ready: int, running: int, coming: int, seconds: float, now: int, since_s: float | None,
) -> None:
    rule = Rule(least=1, most=12, finish_within_s=300, idle_s=60)
    backlog = work(ready, running, coming, seconds)
    decision = decide(backlog, rule, now=now, too_many_since_s=since_s, at_s=100)
    assert rule.least <= decision.replicas <= rule.most
    assert decision.replicas >= enough(backlog, rule)
    assert decision.replicas >= min(now, rule.most) or (since_s is not None and 100 - since_s >= rule.idle_s)


def walk(backlogs: list[tuple[float, Backlog]], now: int) -> list[int]:
    """Decisions one after the other."""
    found, since_s = [], None
    for at_s, backlog in backlogs:
        decision = decide(backlog, RULE, now=now, too_many_since_s=since_s, at_s=at_s)
        now, since_s = decision.replicas, decision.too_many_since_s
        found.append(now)
    return found


def test_more_at_once_and_fewer_only_after_a_while() -> None:
    busy = work(ready=24)
    assert walk([(0, busy), (5, work(running=1)), (64, work(running=1)), (65, work(running=1)), (66, NOTHING),
                 (124, NOTHING), (130, NOTHING)], now=0) == [8, 8, 8, 1, 1, 1, 0]


def test_work_that_comes_back_starts_the_wait_anew() -> None:
    assert walk([(0, NOTHING), (50, work(ready=24)), (60, NOTHING), (119, NOTHING), (120, NOTHING)],
                now=4) == [4, 8, 8, 8, 0]


def test_the_last_replica_waits_for_what_is_still_to_come() -> None:
    assert walk([(0, work(coming=3)), (60, work(coming=3)), (500, work(coming=3)), (501, NOTHING), (600, NOTHING)],
                now=4) == [4, 1, 1, 1, 0]


def test_the_numbers_survive_the_way_to_the_controller() -> None:
    backlog = work(3, 2, 1, 0.5)
    assert Backlog.from_json(backlog.to_json()) == backlog


# -- what Serve asks ------------------------------------------------------------------------------------------


@dataclass
class Asked:
    """As much of Serve's context as the policy reads."""

    target_num_replicas: int
    policy_state: dict[str, Any] = field(default_factory=dict)
    capacity_adjusted_min_replicas: int = 0
    capacity_adjusted_max_replicas: int = 5


def test_a_card_with_min_replicas_is_deployed_with_our_policy_and_no_patience_of_serves() -> None:
    settings = load_settings("laptop", ["models.by_card.sketch={min_replicas: 0, replicas: 6}",
                                        "models.scaling.idle_s=7"], {})
    config = autoscaling_of("sketch", settings)
    assert (config.min_replicas, config.max_replicas) == (0, 6)
    assert (config.upscale_delay_s, config.downscale_delay_s, config.downscale_to_zero_delay_s) == (0, 0, 0)
    # Serve starts a replica where there is none while calls wait by this measure, and asks no policy.
    assert config.aggregation_function == "min"
    assert config.policy.get_policy().__name__ == "BacklogPolicy"
    assert config.policy.policy_kwargs["scaling"]["idle_s"] == 7
    build(settings, cluster={"CPU": 8.0})  # starts with none, so no GPU is missing


class SaidBoard:
    """Answers one question after the other; None: it is away."""

    def __init__(self, *answers: tuple[float, dict[str, float]] | None) -> None:
        self.answers = list(answers)

    async def ask(self, card: str, namespace: str) -> tuple[float, dict[str, float]]:
        answer = self.answers.pop(0)
        if answer is None:
            raise ConnectionError(f"{card} in {namespace}")
        return answer


async def decisions(*answers: tuple[float, dict[str, float]] | None, now: int) -> list[int]:
    """What the policy says before it has heard anything, and after each answer."""
    at_s = 0.0
    policy = BacklogPolicy("sketch", "films", {"finish_within_s": 300, "idle_s": 0, "look_s": 1},
                           ask=SaidBoard(*answers, None).ask, clock=lambda: at_s)
    found = []
    for look in range(len(answers) + 1):
        at_s = float(look)
        replicas, _state = policy(cast(AutoscalingContext, Asked(now)))
        found.append(replicas)
        await asyncio.sleep(0)  # the question is asked and answered
    return found


async def test_the_policy_decides_by_what_was_last_said_within_serves_bounds() -> None:
    assert await decisions((0.0, work(7).to_json()), (0.0, work(900).to_json()), (0.0, NOTHING.to_json()),
                           now=1) == [1, 3, 5, 0]


async def test_the_policy_does_what_it_is_told_within_serves_bounds_and_else_follows_its_own_rule() -> None:
    found = {"sketch": work(900)}
    said = [(0.0, told(found, wanted)["sketch"]) for wanted in ({"sketch": 2}, {"sketch": 0}, {"sketch": 9}, {})]
    assert await decisions(*said, now=1) == [1, 2, 0, 5, 5]


async def test_the_policy_leaves_all_as_it_is_while_nobody_counts() -> None:
    """The board is away; it is new and was told nothing; what it was told is too old."""
    assert await decisions(None, (0.0, {}), (60.0, NOTHING.to_json()), now=3) == [3, 3, 3, 3]


# -- who counts -----------------------------------------------------------------------------------------------


ENDLESS = Gpus(room=Room(gpus=100), per_replica={"wan": 1.0, "qwen": 1.0})


class Counted(Backlogs):
    """Says what it is told to say."""

    def __init__(self, found: dict[str, Backlog]) -> None:
        self.found = found

    def of(self, lanes: Collection[str]) -> dict[str, Backlog]:
        return {lane: self.found.get(lane, NOTHING) for lane in lanes}


async def test_room_follows_the_replicas_that_run_and_work_is_told_by_card() -> None:
    rooms: list[tuple[str, int]] = []
    told: list[tuple[dict[str, Backlog], dict[str, int]]] = []
    scaler = Scaler(
        Counted({"story": work(5)}),
        [Scaled(card="wan", lane="wan", calls=2), Scaled(card="qwen", lane="story", calls=1)],
        divider=Divider(load_settings("laptop", [], {}), lambda: ENDLESS),
        replicas=lambda: {"wan": Seen(running=3)}, tell=lambda found, wanted: told.append((dict(found), dict(wanted))),
        give_room=lambda lane, calls: rooms.append((lane, calls)))
    await scaler.look()
    assert rooms == [("wan", 6), ("story", 0)] * 2
    assert told == [({"wan": NOTHING, "qwen": work(5)}, {})]


async def test_where_gpus_are_too_few_who_counts_says_how_many_replicas_each_is_to_have() -> None:
    """And the room for calls of a card that is to go is closed before Serve hears of it."""
    happened: list[tuple[object, ...]] = []
    settings = load_settings("laptop", ["models.default_replicas={min_replicas: 0, replicas: 2}"], {})
    one = Gpus(room=Room(gpus=1), per_replica={"wan": 1.0, "qwen": 1.0})
    scaler = Scaler(
        Counted({"story": work(5)}),
        [Scaled(card="wan", lane="wan", calls=2), Scaled(card="qwen", lane="story", calls=1)],
        divider=Divider(settings, lambda: one), replicas=lambda: {"wan": Seen(running=1)},
        tell=lambda found, wanted: happened.append(("told", wanted)),
        give_room=lambda lane, calls: happened.append((lane, calls)))
    await scaler.look()
    assert happened == [("wan", 2), ("story", 0), ("wan", 0), ("story", 0), ("told", {"wan": 0, "qwen": 1})]


async def test_who_counts_goes_on_after_a_failure() -> None:
    asked: list[int] = []

    def replicas() -> dict[str, Seen]:
        asked.append(1)
        if len(asked) < 3:
            raise ConnectionError("the controller is away")
        raise asyncio.CancelledError

    scaler = Scaler(Counted({}), [], divider=Divider(load_settings("laptop", [], {}), lambda: ENDLESS),
                    replicas=replicas, tell=lambda *_: None, give_room=lambda *_: None)
    with pytest.raises(asyncio.CancelledError):
        await scaler.run(0.001)
    assert len(asked) == 3


def test_only_cards_with_min_replicas_scale() -> None:
    settings = load_settings("laptop", ["models.by_card.placeholder={min_replicas: 1, replicas: 2}",
                                        "models.text_to_image=placeholder"], {})
    assert scaled_of(settings, cards_in_use(settings)) == (Scaled(card="placeholder", lane="placeholder", calls=2),)


def test_the_gpus_that_cards_share_are_those_that_no_lasting_replica_has() -> None:
    mine = ["models.by_card={sketch: {min_replicas: 0, replicas: 6, num_gpus: 1}, placeholder: {replicas: 2, "
            "num_gpus: 0.5}}", "models.text_to_image=placeholder", "models.device=cuda"]
    settings = load_settings("laptop", mine, {})
    assert gpus_now(settings, cards_in_use(settings), {"GPU": 4.0}) == Gpus(
        room=Room(gpus=4, taken=(0.5, 0.5)), per_replica={"sketch": 1.0})


def test_cards_for_different_machines_share_nothing() -> None:
    mine = ["models.by_card={sketch: {min_replicas: 0, num_gpus: 1, labels: {pool: a}}, placeholder: {min_replicas: 0, "
            "num_gpus: 1}}", "models.text_to_image=placeholder"]
    settings = load_settings("laptop", mine, {})
    assert not gpus_now(settings, cards_in_use(settings), {"GPU": 1.0}).per_replica
