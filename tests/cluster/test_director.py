"""The Director on a real cluster: parallel shots, failures as values, cancel, reuse, fairness, true steps."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.cluster.conftest import Deploy, Running
from workflows.durable.rows import EventType
from workflows.media.decode import read_frames
from workflows.types import JobStatus, NodeStatus

pytestmark = pytest.mark.cluster

COLOURS = ((200, 40, 40), (40, 160, 60), (50, 80, 210), (230, 200, 50), (140, 60, 180), (230, 230, 230), (30, 30, 30),
           (240, 140, 40))
TWO_TRIES = ["engine.attempts=2"]


def storyboard(*prompts: str, defaults: str = "frames: 9, steps: 4", more: str = "", seed: int = 0) -> str:
    shots = "".join(f"  - prompt: {prompt}\n" for prompt in prompts)
    return f"title: Test\nsize: 96x64\nfps: 8\nseed: {seed}\ndefaults: {{{defaults}}}\nshots:\n{shots}{more}"


def started(running: Running, job_id: str) -> list[str]:
    return [event.node_id for event in running.events(job_id, EventType.NODE_STARTED)]


def test_shots_rendered_by_parallel_replicas_are_never_swapped(deploy: Deploy) -> None:
    """Eight colours over two replicas, each shot of another length of work; the film shows them in order."""
    running = deploy(TWO_TRIES)
    running.submit(storyboard(*(f"colour={r},{g},{b} sleep={0.3 - 0.03 * n:.2f}"
                                for n, (r, g, b) in enumerate(COLOURS))), "colours")
    view = running.wait("colours")
    assert view.status is JobStatus.SUCCEEDED
    assert view.result is not None
    frames_THWC = read_frames(running.store.fetch(view.result))
    assert len(frames_THWC) == len(COLOURS) * 9
    for number, colour in enumerate(COLOURS):
        middle = frames_THWC[number * 9 + 4].reshape(-1, 3).mean(axis=0)
        assert abs(middle - colour).max() < 8, f"shot s{number + 1} shows {middle}"
    assert len({pid for _, _, _, pid, _ in running.kernel_lines("colours")}) == 2


def test_a_shot_that_always_fails_leaves_a_partial_film_and_its_rerun_runs_exactly_its_cone(deploy: Deploy) -> None:
    running = deploy(TWO_TRIES)
    running.submit(storyboard("colour=200,0,0", "fail", "colour=0,0,200",
                              more="  - {prompt: 'colour=0,200,0', continues: s2}\n"), "failing")
    view = running.wait("failing")
    assert view.status is JobStatus.PARTIAL
    statuses = {shot.id: shot.status for shot in view.shots}
    assert statuses == {"s1": NodeStatus.SUCCEEDED, "s2": NodeStatus.FAILED, "s3": NodeStatus.SUCCEEDED,
                        "s4": NodeStatus.SKIPPED}
    assert started(running, "failing").count("s2.clip") == 2
    assert "the prompt says so" in view.errors["s2"]
    assert any("s2 is missing" in warning for warning in view.warnings)
    assert view.result is not None
    assert len(read_frames(running.store.fetch(view.result))) == 2 * 9
    before = len(started(running, "failing"))

    again = running.director.retry.remote("failing").result(timeout_s=20)
    running.wait("failing")
    assert set(again) == {"s2.clip", "s4.clip", "compose"}
    assert set(started(running, "failing")[before:]) <= {"s2.clip", "s4.clip", "compose"}


def test_a_rerun_with_nothing_failed_executes_nothing(deploy: Deploy) -> None:
    running = deploy(TWO_TRIES)
    running.submit(storyboard("colour=200,0,0", seed=2), "whole")
    running.wait("whole")
    before = started(running, "whole")
    assert running.director.retry.remote("whole").result(timeout_s=20) == ()
    assert started(running, "whole") == before


def test_the_same_film_again_calls_no_model_and_a_changed_prompt_runs_exactly_its_cone(deploy: Deploy) -> None:
    running = deploy(TWO_TRIES)
    prompts = ["colour=200,0,0", "colour=0,200,0", "colour=0,0,200"]
    chain = "  - {prompt: 'colour=9,9,9', continues: s1}\n"
    running.submit(storyboard(*prompts, more=chain, seed=3), "first")
    running.wait("first")
    assert running.starts("first") == 4

    began = time.monotonic()
    running.submit(storyboard(*prompts, more=chain, seed=3), "again")
    view = running.wait("again")
    assert time.monotonic() - began < 2
    assert view.status is JobStatus.SUCCEEDED
    assert not started(running, "again")
    assert running.starts("again") == 4  # the same keys, computed once for both films

    running.submit(storyboard("colour=90,90,0", *prompts[1:], more=chain, seed=3), "changed")
    running.wait("changed")
    assert set(started(running, "changed")) == {"s1.clip", "s4.clip", "compose"}


def test_a_forced_retry_makes_a_new_take(deploy: Deploy) -> None:
    running = deploy(TWO_TRIES)
    running.submit(storyboard("a", "b"), "takes")
    running.wait("takes")
    first = running.view("takes").shots[0].nodes[0].artifact
    running.director.retry.remote("takes", ("s1",), True).result(timeout_s=20)
    running.wait("takes")
    second = running.view("takes").shots[0].nodes[0].artifact
    assert first is not None
    assert second is not None
    assert first.key != second.key
    assert started(running, "takes").count("s1.clip") == 2
    assert started(running, "takes").count("s2.clip") == 1


def test_cancel_frees_the_gpu_within_one_step_and_leaves_nothing_open(deploy: Deploy) -> None:
    """Steps of 0.2 s: the thread must be free at most 0.3 s after the cancel."""
    running = deploy(TWO_TRIES)
    running.submit(storyboard("sleep=60", "sleep=60 b", defaults="frames: 9, steps: 300"), "cancelled")
    running.until(lambda: running.starts("cancelled") == 2)
    time.sleep(0.3)
    asked = time.time()
    running.director.cancel.remote("cancelled").result(timeout_s=20)
    view = running.wait("cancelled")
    assert view.status is JobStatus.CANCELLED

    def stopped() -> list[float]:
        return [float(line[4]) for line in running.kernel_lines("cancelled") if line[0] == "cancel"]

    running.until(lambda: len(stopped()) == 2)
    assert max(stopped()) - asked < 0.2 + 0.1
    assert {node.status for node in running.ledger.nodes("cancelled")} == {NodeStatus.CANCELLED}


def test_one_shot_beside_forty_waits_about_one_shots_time(deploy: Deploy) -> None:
    """Two replicas, shots of 0.5 s: 40 shots take 10 s; the single one waits for what runs and what is prefetched."""
    running = deploy(TWO_TRIES)
    running.submit(storyboard(*(f"sleep=0.5 n={n}" for n in range(40))), "long")
    running.until(lambda: running.starts("long") >= 4)
    began = time.time()
    running.submit(storyboard("sleep=0.5 single"), "short")
    running.until(lambda: running.starts("short") == 1)
    [begin] = [float(line[4]) for line in running.kernel_lines("short") if line[0] == "start"]
    assert begin - began < 0.5 * 2 + 0.5, f"the single shot waited {begin - began:.2f} s for a GPU"
    view = running.wait("short")
    assert view.status is JobStatus.SUCCEEDED
    assert not running.ledger.job("long").status.is_terminal
    running.director.cancel.remote("long").result(timeout_s=20)
    running.wait("long")


async def _observed(running: Running, job_id: str) -> dict[str, list[int]]:
    """Follow the board like any observer until the job is over; steps per node in the order seen."""
    seen: dict[str, list[int]] = {}
    epoch, after = "", 0
    while True:
        over = (await asyncio.to_thread(running.view, job_id)).status.is_terminal
        poll = await running.observer.poll(job_id, epoch, after)
        epoch, after = poll.epoch, poll.seq
        for event in poll.events:
            seen.setdefault(event.record.node_id, []).append(event.record.step)
        if over and not poll.events:
            return seen


def test_an_observer_sees_every_step_of_every_clip(deploy: Deploy) -> None:
    """20 steps in about a second, sent at most four times a second: none is lost, none comes twice or late."""
    running = deploy(TWO_TRIES)
    running.submit(storyboard("sleep=1", "sleep=1.2", "sleep=1.4", defaults="frames: 9, steps: 20"), "observed")
    seen = asyncio.run(_observed(running, "observed"))
    for shot in ("s1", "s2", "s3"):
        assert seen[f"{shot}.clip"] == list(range(1, 21))
    assert running.view("observed").progress == 1.0


def test_a_log_line_is_visible_half_a_second_after_it_was_written(deploy: Deploy) -> None:
    running = deploy(TWO_TRIES)
    running.submit(storyboard("sleep=1 logged"), "logged")
    running.until(lambda: any("s1.clip" in line for line in running.ledger.log_lines("logged", 0, 100).lines))
    at_s = running.events("logged", EventType.NODE_STARTED)[0].at_s
    assert time.time() - at_s < 0.5
    running.wait("logged")
