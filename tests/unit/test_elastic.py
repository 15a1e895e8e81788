"""When a call gets idle GPUs: the rule itself, what a lane knows, what a card may say, and who is asked to help."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from configs.memory import share_of
from configs.model_card import CallDefaults, ModelCard, Resources, Task
from configs.model_options import Exactness
from configs.parallel import Elastic
from configs.settings import ModelsSettings, Settings
from serve_app.capacity import check_resources
from serve_app.director import tails_of
from tests.fakes import FakeStore
from tests.studio import QUICK, film
from workflows.dispatch import Depth, Dispatcher
from workflows.durable.engine import Engine
from workflows.durable.ledger import Ledger
from workflows.elastic import SETTLE_S, SPEEDUPS, Tail, gpus_for_next, speedup
from workflows.errors import ImpossibleResources, ReplicaLost
from workflows.fair_queue import Ticket
from workflows.ports import RenderCall
from workflows.stages.render import company
from workflows.types import Artifact, MediaType, NodeCall, NodeKind, NodeResult

SHOT_S = 45.0


def card(**changes: object) -> ModelCard:
    fields: dict[str, object] = {
        "name": "wan", "title": "Wan", "repo": "somewhere/wan", "pipelines": {Task.TEXT_TO_VIDEO: "WanPipeline"},
        "defaults": CallDefaults(width_px=32, height_px=32)}
    return ModelCard.model_validate({**fields, **changes})


# -- the rule -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("waiting", "free_in_s", "gpus"), [
    (1, [0] * 8, 4),  # one changed shot on an idle machine
    (2, [0] * 8, 4), (4, [0] * 8, 2), (8, [0] * 8, 1), (40, [0] * 8, 1),
    (1, [0], 1), (1, [0, 0, 0], 2), (1, [0] + [SHOT_S] * 7, 1),
    (4, [0] + [1] * 7, 0),  # seven neighbours are free in a moment: two for each shot, and it waits for one
    (4, [0] * 2 + [1] * 6, 2), (4, [0] + [SHOT_S] * 7, 1), (1, [5] * 8, 0), (0, [0] * 8, 0)])
def test_how_many_gpus_the_next_call_gets(waiting: int, free_in_s: list[float], gpus: int) -> None:
    assert gpus_for_next([SHOT_S] * waiting, free_in_s, (1, 2, 4)) == gpus


@settings(deadline=None, max_examples=200)
@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=20),
       st.lists(st.one_of(st.just(0.0), st.floats(0.1, 100)), min_size=1, max_size=8), st.sampled_from([2, 4, 6, 8]))
def test_it_gives_no_more_than_are_idle_and_waits_only_for_others(waiting_s: list[float], free_in_s: list[float],
                                                                 most: int) -> None:
    sizes, idle = Elastic(ulysses=most).sizes, free_in_s.count(0.0)
    gpus = gpus_for_next(waiting_s, free_in_s, sizes)
    assert gpus in (0, *sizes)
    assert gpus <= idle
    assert gpus or not idle or idle < len(free_in_s), "all are idle: there is nothing to wait for"


def test_more_gpus_are_never_slower_and_never_worth_their_number() -> None:
    assert [speedup(gpus) for gpus in SPEEDUPS] == [*SPEEDUPS.values()]
    gains = [speedup(gpus) for gpus in range(1, 12)]
    assert gains == sorted(gains)
    assert all(gain <= gpus for gpus, gain in enumerate(gains, start=1))
    assert speedup(3) == pytest.approx((1.85 + 3.4) / 2)


# -- a lane ---------------------------------------------------------------------------------------------------------


class Lane:
    """A lane of four replicas, two calls each, and a clock of its own."""

    def __init__(self) -> None:
        self.now_s = 0.0
        tail = Tail(sizes=(1, 2, 4), calls_per_replica=2, clock=lambda: self.now_s)
        self.slots = Dispatcher({"wan": 8}, depths={"wan": Depth(ahead=1)}, tails={"wan": tail})
        self.given: dict[str, int] = {}
        self.calls: dict[str, asyncio.Task[None]] = {}
        self._ends: dict[str, asyncio.Event] = {}

    def expect(self, name: str, **details: Any) -> None:
        self._ends[name] = asyncio.Event()
        self.calls[name] = asyncio.create_task(self._call(name, Ticket(
            job_id="film", cost=SHOT_S, **{"elastic": True, **details})))

    async def ask(self, *names: str, **details: Any) -> None:
        for name in names:
            self.expect(name, **details)
        await settle()
        self.now_s += SETTLE_S
        self.slots.resize("wan", 8)  # the lane thinks again
        await settle()

    async def end(self, *names: str, at_s: float) -> None:
        self.now_s = at_s
        for name in names:
            self._ends[name].set()
        await settle()

    async def _call(self, name: str, ticket: Ticket) -> None:
        async with self.slots.slot("wan", ticket) as seats:
            assert len(set(seats)) == len(seats)
            self.given[name] = len(seats)
            await self._ends[name].wait()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_one_shot_gets_every_idle_replica_and_gives_all_back() -> None:
    lane = Lane()
    await lane.ask("changed")
    assert (lane.given, lane.slots.running("wan")) == ({"changed": 4}, 4)
    await lane.end("changed", at_s=15)
    assert lane.slots.running("wan") == 0
    lane = Lane()
    await lane.ask("first", elastic=False)
    await lane.ask("doomed")
    assert lane.given == {"first": 1, "doomed": 2}
    lane.calls["doomed"].cancel()
    await settle()
    assert lane.slots.running("wan") == 1


async def test_several_gpus_are_given_when_no_more_calls_come_for_a_moment() -> None:
    lane = Lane()
    lane.expect("one")
    await settle()
    assert lane.given == {}
    lane.now_s = SETTLE_S
    async with asyncio.timeout(20):
        while not lane.given:  # noqa: ASYNC110 - it thinks again by itself
            await asyncio.sleep(0.05)
    assert lane.given == {"one": 4}


async def test_calls_that_are_still_to_come_are_counted_as_if_they_waited() -> None:
    lane = Lane()
    await lane.ask("first of four", coming=lambda: 3)
    assert lane.given == {"first of four": 1}


async def test_a_film_begins_with_one_gpu_each_and_ends_with_several() -> None:
    lane, names = Lane(), [f"s{number}" for number in range(6)]
    await lane.ask(*names)
    assert lane.given == dict.fromkeys(names[:4], 1), "the last two are not handed to replicas that are busy"
    await lane.end("s0", at_s=44)
    assert "s4" not in lane.given, "the neighbours are about to be free"
    await lane.end("s1", at_s=45)
    assert lane.given["s4"] == 2
    await lane.end("s2", "s3", at_s=46)
    assert lane.given["s5"] == 2


async def test_while_much_waits_calls_wait_at_replicas_as_ever() -> None:
    lane, names = Lane(), [f"s{number}" for number in range(20)]
    await lane.ask(*names)
    assert lane.given == dict.fromkeys(names[:8], 1)


async def test_a_gpu_that_waits_for_a_neighbour_that_never_comes_begins_alone() -> None:
    lane = Lane()
    await lane.ask("a", "b", "c", "d", "e")
    await lane.end("a", at_s=44)
    assert "e" not in lane.given
    lane.now_s = 500  # nobody ended: the others take far longer than expected
    async with asyncio.timeout(20):
        while "e" not in lane.given:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.05)
    assert lane.given["e"] == 1


async def test_where_several_gpus_turn_out_to_be_slower_calls_go_alone_again() -> None:
    lane = Lane()
    await lane.ask("alone", elastic=False)
    await lane.end("alone", at_s=SHOT_S)
    await lane.ask("tried")
    assert lane.given["tried"] == 4
    await lane.end("tried", at_s=lane.now_s + 2 * SHOT_S)
    await lane.ask("two")
    assert lane.given["two"] == 2, "four are worse than one; two may be better"
    await lane.end("two", at_s=lane.now_s + 1.1 * SHOT_S)
    await lane.ask("wiser")
    assert lane.given["wiser"] == 1


async def test_a_film_tells_its_lane_what_is_to_come_and_a_changed_shot_gets_all_that_is_idle(tmp_path: Path) -> None:
    given: list[tuple[str, int]] = []
    begun = asyncio.Event()

    async def draw(call: NodeCall) -> NodeResult:
        if call.shot_id != "s1":
            await begun.wait()  # its clip is ready before the other keyframes are
        return RESULT

    async def animate(call: NodeCall) -> NodeResult:
        given.append((call.shot_id, len(call.seats)))
        begun.set()
        return RESULT

    shots = film(shots=5, compose=False)
    ledger = Ledger(f"sqlite:///{tmp_path / 'state.db'}")
    ledger.submit(replace(shots, nodes=tuple(
        replace(node, lane="wan" if node.kind is NodeKind.CLIP else node.lane) for node in shots.nodes)))
    engine = Engine(ledger, {NodeKind.KEYFRAME: draw, NodeKind.CLIP: animate}, store=FakeStore(tmp_path),
                    dispatcher=Dispatcher({"cpu": 8, "wan": 8}, depths={"wan": Depth(ahead=1)},
                                          tails={"wan": Tail(sizes=(1, 2, 4), calls_per_replica=2)}),
                    settings=QUICK)
    running = asyncio.create_task(engine.run())
    async with asyncio.timeout(20):
        while not ledger.job("film").status.is_terminal:  # noqa: ASYNC110 - the database sends no signal
            await asyncio.sleep(0.02)
        assert given[0] == ("s1", 1), "four more are to come for four replicas"
        given.clear()
        ledger.rerun("film", ("s3",), force=True)
        while not ledger.job("film").status.is_terminal:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await engine.stop()
    await running
    ledger.close()
    assert given == [("s3", 4)]


# -- who is asked to help -------------------------------------------------------------------------------------------


CALL = RenderCall(job_id="film", node_id="s1.clip", shot_id="s1", attempt=1, key="a" * 32, left_s=100, card="wan",
                  card_digest="d", prompt="a dog", negative_prompt="", width_px=32, height_px=32, frames=5, fps=8,
                  steps=4, guidance=3, seed=1)
RESULT = NodeResult(artifact=Artifact(key="a" * 32, uri="file:///a", sha256="0" * 64, size_bytes=1,
                                      media_type=MediaType.MP4))


class Replicas:
    """Remembers who was asked for what; a helper stays until it is let go."""

    def __init__(self) -> None:
        self.helping: list[RenderCall] = []
        self.let_go = asyncio.Event()
        self.cancelled = 0

    async def image(self, call: RenderCall) -> NodeResult:
        return RESULT

    async def clip(self, call: RenderCall) -> NodeResult:
        return RESULT

    async def assist(self, call: RenderCall) -> None:
        self.helping.append(call)
        try:
            await self.let_go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        raise ReplicaLost(node_id=call.node_id, reason="its own affair")


async def test_a_call_on_several_gpus_asks_the_others_to_help_with_it() -> None:
    replicas = Replicas()
    async with company(CALL, (2, 0, 3, 1), replicas) as call:
        await settle()
        replicas.let_go.set()
    assert call.party is not None
    assert (call.party.rank, call.party.size) == (0, 4)
    assert replicas.helping == [replace(call, seat=seat, party=replace(call.party, rank=rank))
                                for rank, seat in ((1, 0), (2, 3), (3, 1))]
    async with company(CALL, (5,), replicas) as call:
        assert call is CALL


async def test_helpers_of_a_call_that_fails_or_is_cancelled_are_sent_home() -> None:
    async def fail() -> None:
        async with company(CALL, (0, 1, 2), replicas):
            await settle()
            raise ReplicaLost(node_id="s1.clip", reason="gone")

    replicas = Replicas()
    with pytest.raises(ReplicaLost):
        await fail()
    assert replicas.cancelled == 2


# -- the card -------------------------------------------------------------------------------------------------------


def test_what_an_elastic_card_is() -> None:
    plain, two, four = card(), card(elastic={"ulysses": 2}), card(elastic={"ulysses": 4})
    assert card(elastic=None).digest() == plain.digest()
    assert two.digest() == four.digest() != plain.digest(), "how many GPUs help is decided by the moment"
    assert (plain.exactness, two.exactness) == (Exactness.BIT, Exactness.TOLERANCE)
    assert [effect.option for effect in two.effects()] == ["elastic"]
    assert Elastic(ulysses=6).sizes == (1, 2, 3, 6)
    assert str(four.elastic) == "up to 4 idle GPUs per call"
    assert share_of(two, ModelsSettings()).gpus == 1.0
    (tail,) = tails_of([plain.model_copy(update={"name": "plain"}), four]).values()
    assert (tail.sizes, tail.calls_per_replica) == ((1, 2, 4), 2)


@pytest.mark.parametrize(("value", "says"), [
    ({"elastic": {"ulysses": 1}}, "greater than or equal to 2"),
    ({"parallel": {"ulysses": 2}}, "`elastic` lends idle replicas.*take one of the two out"),
    ({"loader": "placeholder"}, "take it out of this placeholder card"),
    ({"batch": 2, "pipelines": {Task.TEXT_TO_IMAGE: "FluxPipeline"}}, "`elastic` does not go with batch"),
    ({"options": {"compile": "regional"}}, "`elastic` does not go with options.compile"),
    ({"options": {"offload": "model"}}, "`elastic` does not go with options.offload")])
def test_what_does_not_go_with_it_is_refused(value: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        card(**{"elastic": {"ulysses": 2}, **value})


def test_a_replica_has_one_whole_gpu() -> None:
    check_resources(Settings(), [card(elastic={"ulysses": 2}, resources=Resources(num_gpus=1))], {"GPU": 8.0})
    half = card(elastic={"ulysses": 2}, resources=Resources(num_gpus=0.5))
    with pytest.raises(ImpossibleResources, match=r"asks for 0.5 GPUs.*lends whole GPUs; nearest valid: res.*gpus: 1"):
        check_resources(Settings(), [half], {"GPU": 8.0})
