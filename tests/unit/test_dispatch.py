"""Who gets the next free slot: properties of the queue, and of the slots behind it."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import nullcontext
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workflows.dispatch import Depth, Dispatcher
from workflows.errors import InvalidSettings
from workflows.fair_queue import FairQueue, Ticket, path_ranks
from workflows.types import NodeKind, NodeSpec, Priority

INTERACTIVE, BATCH = Priority.INTERACTIVE, Priority.BATCH
# No clock decides: the machine that runs this may be busy.
relaxed = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
COSTS = st.floats(0.1, 50.0)

tickets = st.builds(Ticket, job_id=st.sampled_from("abcde"), tenant=st.sampled_from("xy"),
                    priority=st.sampled_from(Priority), weight=st.just(1.0), cost=COSTS, rank=st.floats(0, 100))
one_class = st.builds(Ticket, job_id=st.sampled_from("abcde"), cost=COSTS, rank=st.floats(0, 100))


def drain(queue: FairQueue) -> list[Ticket]:
    return [queue.pop() for _ in range(len(queue))]


def shots(job_id: str, count: int, **details: Any) -> list[Ticket]:
    return [Ticket(job_id=job_id, **details) for _ in range(count)]


class TestFairQueue:
    @relaxed
    @given(st.lists(tickets))
    def test_every_ticket_comes_out_once_and_interactive_ones_first(self, pushed: list[Ticket]) -> None:
        queue = FairQueue()
        for ticket in pushed:
            queue.push(ticket)
        popped = drain(queue)
        assert Counter(map(id, popped)) == Counter(map(id, pushed))
        classes = [ticket.priority for ticket in popped]
        assert classes == sorted(classes, key=[INTERACTIVE, BATCH].index)

    @relaxed
    @given(st.lists(one_class))
    def test_inside_a_job_the_longest_path_goes_first(self, pushed: list[Ticket]) -> None:
        queue = FairQueue()
        for ticket in pushed:
            queue.push(ticket)
        for job_id in "abcde":
            ranks = [ticket.rank for ticket in drain_job(queue, pushed, job_id)]
            assert ranks == sorted(ranks, reverse=True)

    @relaxed
    @given(st.lists(COSTS, min_size=40, max_size=40), st.lists(COSTS, min_size=40, max_size=40),
           st.floats(0.2, 5.0), st.floats(0.2, 5.0), st.integers(0, 30), st.integers(1, 30))
    def test_jobs_that_wait_all_the_time_share_by_weight(
            self, a_costs: list[float], b_costs: list[float], a_weight: float, b_weight: float, start: int,
            length: int) -> None:
        """Over any stretch: |W_a/w_a - W_b/w_b| <= max_a/w_a + max_b/w_b (Goyal et al., theorem 1)."""
        queue = FairQueue()
        for job_id, weight, costs in (("a", a_weight, a_costs), ("b", b_weight, b_costs)):
            for cost in costs:
                queue.push(Ticket(job_id=job_id, weight=weight, cost=cost))
        served = []
        for _ in range(start + length):
            left = Counter({"a": len(a_costs), "b": len(b_costs)}) - Counter(ticket.job_id for ticket in served)
            if len(left) < 2:
                break
            served.append(queue.pop())
        work = {"a": 0.0, "b": 0.0}
        for ticket in served[start:]:
            work[ticket.job_id] += ticket.cost / ticket.weight
        bound = max(a_costs) / a_weight + max(b_costs) / b_weight
        assert abs(work["a"] - work["b"]) <= bound * (1 + 1e-9)

    @relaxed
    @given(st.lists(st.tuples(st.sampled_from("abcde"), COSTS), min_size=40, max_size=40),
           st.lists(st.tuples(st.sampled_from("fg"), COSTS), min_size=40, max_size=40), st.integers(1, 60))
    def test_tenants_share_evenly_however_many_jobs_they_have(
            self, many: list[tuple[str, float]], few: list[tuple[str, float]], length: int) -> None:
        queue = FairQueue()
        for tenant, calls in (("many", many), ("few", few)):
            for job_id, cost in calls:
                queue.push(Ticket(job_id=job_id, tenant=tenant, cost=cost))
        work, left = Counter(), {"many": len(many), "few": len(few)}
        for _ in range(length):
            if not all(left.values()):
                break
            ticket = queue.pop()
            work[ticket.tenant] += ticket.cost
            left[ticket.tenant] -= 1
        most = sum(max(cost for _, cost in calls) for calls in (many, few))
        assert abs(work["many"] - work["few"]) <= most * (1 + 1e-9)

    def test_a_tenants_jobs_share_what_it_gets_by_weight(self) -> None:
        queue = FairQueue()
        for ticket in [*shots("heavy", 40, tenant="a", weight=3.0), *shots("light", 40, tenant="a"),
                       *shots("other", 40, tenant="b")]:
            queue.push(ticket)
        assert Counter(queue.pop().job_id for _ in range(40)) == {"heavy": 15, "light": 5, "other": 20}

    def test_batch_work_moves_beside_work_that_never_ends(self) -> None:
        """One slot for every `patience_s`, and no more."""
        now_s = 0.0
        queue = FairQueue(patience_s=60.0, clock=lambda: now_s)
        served = Counter()
        for ticket in shots("night", 10, priority=BATCH):
            queue.push(ticket)
        for _ in range(100):
            queue.push(Ticket(job_id="busy"))
            served[queue.pop().job_id] += 1
            now_s += 10.0
        assert served == {"busy": 90, "night": 10}, "ten came, at 60, 120 ... 600 s"

    def test_batch_work_that_has_just_come_waits_its_time(self) -> None:
        now_s = 0.0
        queue = FairQueue(patience_s=60.0, clock=lambda: now_s)
        for ticket in shots("busy", 3):
            queue.push(ticket)
        now_s = 1000.0
        queue.push(Ticket(job_id="night", priority=BATCH))
        assert queue.pop().job_id == "busy"
        now_s = 1060.0
        assert [queue.pop().job_id for _ in range(3)] == ["night", "busy", "busy"]

    @relaxed
    @given(st.lists(one_class, min_size=1), st.integers(0, 200), st.floats(0.1, 10.0))
    def test_a_job_that_arrives_waits_for_at_most_one_ticket_of_each_other_job(
            self, pushed: list[Ticket], served: int, weight: float) -> None:
        queue = FairQueue()
        for ticket in pushed:
            queue.push(ticket)
        for _ in range(min(served, len(queue) - 1)):
            queue.pop()
        others = {ticket.job_id for ticket in pushed}
        queue.push(Ticket(job_id="new", weight=weight))
        assert [ticket.job_id for ticket in drain(queue)].index("new") <= len(others)

    @relaxed
    @given(st.lists(tickets, min_size=1), st.randoms())
    def test_a_ticket_taken_out_leaves_no_trace(self, pushed: list[Ticket], chance: random.Random) -> None:
        gone = chance.sample(pushed, chance.randrange(len(pushed)))
        with_them, without = FairQueue(), FairQueue()
        for ticket in pushed:
            with_them.push(ticket)
            if not any(ticket is other for other in gone):
                without.push(ticket)
        for ticket in gone:
            assert with_them.discard(ticket)
            assert not with_them.discard(ticket)
        assert len(with_them) == len(without)
        # Who came first decides between equals; a job whose first ticket was taken out keeps its place.
        assert Counter(map(id, drain(with_them))) == Counter(map(id, drain(without)))

    def test_one_shot_behind_a_film_of_forty_goes_next(self) -> None:
        queue = FairQueue()
        for ticket in shots("film", 40):
            queue.push(ticket)
        assert [queue.pop().job_id for _ in range(2)] == ["film", "film"]
        queue.push(Ticket(job_id="single"))
        assert queue.pop().job_id == "single"

    def test_a_batch_has_the_share_of_one_job_and_its_films_come_one_after_the_other(self) -> None:
        queue = FairQueue()
        for shot in range(3):  # the films' shots come to the queue mixed, the youngest film first
            for number in (2, 0, 1):
                queue.push(Ticket(job_id=f"film {number}", batch_id="night", since_s=number, rank=-shot))
            queue.push(Ticket(job_id="single"))
        order = [ticket.job_id for ticket in drain(queue)]
        assert [name for name in order if name != "single"] == [f"film {number}" for number in (0, 1, 2)
                                                                for _ in range(3)]
        assert order[:6].count("single") == 3, "one share for the batch, one for the film beside it"

    def test_a_job_gains_nothing_by_leaving_the_queue_for_a_moment(self) -> None:
        queue = FairQueue()
        for ticket in [*shots("patient", 10), *shots("hopper", 1)]:
            queue.push(ticket)
        served = Counter()
        for _ in range(8):
            ticket = queue.pop()
            served[ticket.job_id] += 1
            if ticket.job_id == "hopper":
                queue.push(Ticket(job_id="hopper"))
        assert served == {"patient": 4, "hopper": 4}

    def test_three_times_the_weight_is_three_times_the_slots(self) -> None:
        queue = FairQueue()
        for ticket in [*shots("heavy", 40, weight=3.0), *shots("light", 40, weight=1.0)]:
            queue.push(ticket)
        assert Counter(queue.pop().job_id for _ in range(40)) == {"heavy": 30, "light": 10}

    @pytest.mark.parametrize("wrong", [{"weight": 0.0}, {"cost": 0.0}, {"cost": float("nan")}, {"weight": -1.0}])
    def test_a_ticket_that_would_break_the_shares_is_refused(self, wrong: dict[str, float]) -> None:
        with pytest.raises(ValueError, match="must be above 0"):
            FairQueue().push(Ticket(job_id="a", **wrong))

    def test_an_empty_queue_says_so(self) -> None:
        with pytest.raises(IndexError):
            FairQueue().pop()


def drain_job(queue: FairQueue, pushed: list[Ticket], job_id: str) -> list[Ticket]:
    """A fresh queue's tickets of one job, in the order in which they come out."""
    fresh = FairQueue()
    for ticket in pushed:
        fresh.push(ticket)
    return [ticket for ticket in drain(fresh) if ticket.job_id == job_id]


class TestDispatcher:
    @relaxed
    @given(st.integers(1, 4), st.randoms(),
           st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.booleans()), max_size=25))
    def test_slots_are_never_overdrawn_and_never_idle_while_somebody_waits(
            self, capacity: int, chance: random.Random, calls: list[tuple[str, int, bool]]) -> None:
        """Each call holds its slot for some turns of the loop; some are cancelled at a random turn."""
        asyncio.run(check_slots(capacity, calls, chance))

    async def test_a_waiter_that_is_cancelled_leaves_no_trace(self) -> None:
        dispatcher = Dispatcher({"gpu": 1})
        async with dispatcher.slot("gpu", Ticket(job_id="first")):
            waiter = asyncio.create_task(hold(dispatcher, "second"))
            await asyncio.sleep(0)
            assert dispatcher.waiting("gpu") == 1
            waiter.cancel()
            await asyncio.wait([waiter])
            assert dispatcher.waiting("gpu") == 0
        assert dispatcher.running("gpu") == 0

    async def test_a_slot_given_in_the_moment_of_the_cancel_goes_to_the_next(self) -> None:
        dispatcher = Dispatcher({"gpu": 1})
        async with dispatcher.slot("gpu", Ticket(job_id="first")):
            late = asyncio.create_task(hold(dispatcher, "late"))
            patient = asyncio.create_task(hold(dispatcher, "patient"))
            await asyncio.sleep(0)
        # The slot is granted to `late` by now, which has not run since.
        late.cancel()
        await asyncio.wait_for(patient, 1)
        assert late.cancelled()
        assert (dispatcher.running("gpu"), dispatcher.waiting("gpu")) == (0, 0)

    async def test_a_lane_that_grows_starts_more_and_one_that_shrinks_waits_for_its_calls(self) -> None:
        dispatcher = Dispatcher({"gpu": 0})
        holders = [asyncio.create_task(hold(dispatcher, "film", turns=50)) for _ in range(4)]
        await asyncio.sleep(0)
        assert (dispatcher.running("gpu"), dispatcher.waiting("gpu")) == (0, 4)
        dispatcher.resize("gpu", 3)
        assert dispatcher.running("gpu") == 3
        dispatcher.resize("gpu", 1)
        assert (dispatcher.running("gpu"), dispatcher.capacity("gpu")) == (3, 1)
        await asyncio.gather(*holders)
        assert dispatcher.running("gpu") == 0

    async def test_calls_kept_apart_never_run_beside_each_other_but_beside_others(self) -> None:
        slots, inside, together = Dispatcher({"gpu": 3}), [], []

        async def call(name: str, *, apart: bool) -> None:
            async with slots.apart("gpu") if apart else nullcontext(), slots.slot("gpu", Ticket(job_id="film")):
                inside.append(name)
                await asyncio.sleep(0.01)
                together.append(tuple(inside))
                inside.remove(name)

        async with asyncio.TaskGroup() as group:
            for name in ("suspect 1", "suspect 2", "suspect 3"):
                group.create_task(call(name, apart=True))
            group.create_task(call("plain", apart=False))
        assert all(sum(name.startswith("suspect") for name in names) <= 1 for names in together)
        assert {"plain", "suspect 1"} in [set(names) for names in together]

    async def test_a_call_waits_at_a_seat_only_while_more_wait_than_there_are_seats(self) -> None:
        slots = Dispatcher({"gpu": 4}, depths={"gpu": Depth(ahead=1)})
        counts = []
        async with asyncio.TaskGroup() as group:
            for _ in range(7):
                group.create_task(hold(slots, "film", turns=50))
                await asyncio.sleep(0)
                counts.append(slots.running("gpu"))
        assert counts == [1, 2, 2, 2, 3, 4, 4], "the third and fourth may yet start at the seat that is free first"

    @relaxed
    @given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 3), st.integers(1, 40), st.randoms())
    def test_no_seat_is_idle_while_somebody_waits(self, seats: int, at_once: int, ahead: int, calls: int,
                                                  chance: random.Random) -> None:
        """Each replica ends its calls in the order in which it got them, `at_once` of them at a time."""
        asyncio.run(check_seats(seats, Depth(at_once=at_once, ahead=ahead), calls, chance))

    async def test_calls_of_one_key_sit_together(self) -> None:
        slots, seats = Dispatcher({"gpu": 6}, depths={"gpu": Depth(ahead=1)}), []

        async def call(key: str) -> None:
            async with slots.slot("gpu", Ticket(job_id="film", key=key)) as [seat]:
                seats.append((key, seat))
                await asyncio.sleep(0.01)

        await asyncio.gather(*(call(key) for key in ("a", "b", "a")))
        assert len(set(seats)) == 2, "the third shares the first one's run; a seat stays free"

    async def test_a_seat_that_has_done_such_work_is_given_it_again(self) -> None:
        slots = Dispatcher({"gpu": 3})

        async def seat_of(kin: str) -> int:
            async with slots.slot("gpu", Ticket(job_id="film", kin=kin)) as [seat]:
                return seat

        wide, tall = await seat_of("wide"), await seat_of("tall")
        assert wide != tall
        assert [await seat_of("wide") for _ in range(3)] == [wide] * 3

    async def test_lanes_do_not_wait_for_each_other(self) -> None:
        dispatcher = Dispatcher({"gpu": 1, "cpu": 1})
        async with (asyncio.timeout(1), dispatcher.slot("gpu", Ticket(job_id="a")),
                    dispatcher.slot("cpu", Ticket(job_id="a"))):
            assert (dispatcher.running("gpu"), dispatcher.running("cpu")) == (1, 1)

    @pytest.mark.parametrize("ask", [
        lambda dispatcher: dispatcher.resize("tpu", 1), lambda dispatcher: dispatcher.waiting("tpu")])
    def test_an_unknown_lane_names_the_known_ones(self, ask: object) -> None:
        with pytest.raises(InvalidSettings, match="no lane 'tpu'; lanes: gpu, cpu"):
            ask(Dispatcher({"gpu": 1, "cpu": 1}))  # type: ignore[operator]

    async def test_a_call_for_an_unknown_lane_is_refused_not_parked(self) -> None:
        with pytest.raises(InvalidSettings, match="no lane 'gpu'; lanes: cpu"):
            await hold(Dispatcher({"cpu": 1}), "film")

    def test_a_negative_capacity_is_refused(self) -> None:
        with pytest.raises(InvalidSettings, match="cannot have -1 slots"):
            Dispatcher({"gpu": -1})


async def hold(dispatcher: Dispatcher, job_id: str, *, turns: int = 1) -> None:
    """Wait for a slot and hold it for some turns of the loop."""
    async with dispatcher.slot("gpu", Ticket(job_id=job_id)):
        for _ in range(turns):
            await asyncio.sleep(0)


async def check_slots(capacity: int, calls: list[tuple[str, int, bool]], chance: random.Random) -> None:
    dispatcher = Dispatcher({"gpu": capacity})
    tasks = []
    for job_id, turns, doomed in calls:
        task = asyncio.create_task(hold(dispatcher, job_id, turns=turns))
        tasks.append(task)
        if doomed:
            asyncio.get_running_loop().call_later(chance.random() * 0.001, task.cancel)
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        assert dispatcher.running("gpu") <= capacity
        assert not dispatcher.waiting("gpu") or dispatcher.running("gpu") == capacity
    assert (dispatcher.running("gpu"), dispatcher.waiting("gpu")) == (0, 0)


def test_a_rank_is_the_longest_path_to_the_end() -> None:
    nodes = [NodeSpec(id=name, kind=NodeKind.CLIP, deps=tuple(deps), cost=cost) for name, deps, cost in (
        ("key", "", 1.0), ("a", ("key",), 5.0), ("b", ("key", "a"), 4.0), ("free", "", 2.0),
        ("compose", ("a", "b", "free"), 3.0))]
    assert path_ranks(nodes) == {"key": 13.0, "a": 12.0, "b": 7.0, "free": 5.0, "compose": 3.0}


async def check_seats(seats: int, depth: Depth, calls: int, chance: random.Random) -> None:
    slots = Dispatcher({"gpu": seats * depth.calls}, depths={"gpu": depth})
    held: list[tuple[int, asyncio.Event]] = []

    async def call() -> None:
        async with slots.slot("gpu", Ticket(job_id=chance.choice("ab"), cost=chance.uniform(1, 5))) as [seat]:
            over = asyncio.Event()
            held.append((seat, over))
            await over.wait()

    async with asyncio.TaskGroup() as group:
        for _ in range(calls):
            group.create_task(call())
        for _ in range(calls):
            for _ in range(5):  # until everybody has heard
                await asyncio.sleep(0)
            loads = Counter(seat for seat, _ in held)
            assert max(loads.values()) <= depth.calls
            if slots.waiting("gpu"):
                assert all(loads[seat] >= depth.at_once for seat in range(seats)), loads
            begun = [one for place, one in enumerate(held)
                     if sum(seat == one[0] for seat, _ in held[:place]) < depth.at_once]
            ended = chance.choice(begun)
            held.remove(ended)
            ended[1].set()
