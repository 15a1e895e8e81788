"""The checker of the chaos harness finds each violation in a log that was doctored for it, and none in a true one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.crowd import Heard
from tests.chaos.invariants import Evidence, Rule, Seen, Violation, check, repeated_steps
from tests.chaos.schedule import schedule
from tests.chaos.served import Component
from tests.fakes import FakeStore, ScriptedStep
from tests.studio import Studio, film
from workflows.durable.ledger import Ledger
from workflows.durable.rows import EventRow, EventType
from workflows.errors import ArtifactCorrupt, ArtifactMissing
from workflows.types import Artifact, JobStatus, NodeStatus

Doctor = Callable[[Evidence], Evidence]


class Shelf:
    """A store whose files are what the rows say, but for those under `wrong`."""

    def __init__(self, wrong: Sequence[str] = (), missing: Sequence[str] = ()) -> None:
        self._wrong, self._missing = wrong, missing

    def fetch(self, artifact: Artifact) -> Path:
        if artifact.key in self._missing:
            raise ArtifactMissing(uri=artifact.uri)
        if artifact.key in self._wrong:
            raise ArtifactCorrupt(uri=artifact.uri, expected=artifact.sha256, found="0" * 64)
        return Path(artifact.key)


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """Of a film that a real engine made."""
    place = tmp_path_factory.mktemp("true")
    ledger = Ledger(f"sqlite:///{place / 'state.db'}")
    store = FakeStore(place)
    studio = Studio(ledger=ledger, store=store, step=ScriptedStep(store))
    ledger.submit(film(shots=2))
    asyncio.run(studio.render())
    return read(ledger)


def read(ledger: Ledger) -> Evidence:
    return Evidence(job=ledger.job("film"), nodes=ledger.nodes("film"), events=ledger.events("film", limit=5000))


def found(evidence: Evidence, store: Shelf | None = None, **frames: str) -> list[Violation]:
    return check(evidence, store or Shelf(), decode=lambda path: frames.get("shown", "same"))


def at(evidence: Evidence, type: EventType, node_id: str = "s1.clip") -> EventRow:
    return next(event for event in evidence.events if event.type is type and event.node_id == node_id)


def with_rows(evidence: Evidence, *rows: EventRow, before: EventRow | None = None) -> Evidence:
    """The rows put into the log: before another one, or before the job's end."""
    before = before or next(event for event in evidence.events if event.type is EventType.JOB_FINISHED)
    events = list(evidence.events)
    events[events.index(before):events.index(before)] = rows
    return replace(evidence, events=[replace(event, seq=seq) for seq, event in enumerate(events, 1)])


def without(evidence: Evidence, row: EventRow) -> Evidence:
    return replace(evidence, events=[event for event in evidence.events if event is not row])


def claim(evidence: Evidence) -> EventRow:
    return next(event for event in evidence.events if event.type is EventType.JOB_STARTED)


def node_is(evidence: Evidence, status: NodeStatus) -> Evidence:
    return replace(evidence, nodes=[replace(node, status=status) if node.id == "s1.clip" else node
                                    for node in evidence.nodes])


def lost(evidence: Evidence) -> Evidence:
    return replace(evidence, job=replace(evidence.job, status=JobStatus.PARTIAL))


def committed_twice(evidence: Evidence) -> Evidence:
    return with_rows(evidence, replace(at(evidence, EventType.NODE_SUCCEEDED), type=EventType.NODE_CACHED, data={}))


def never_committed(evidence: Evidence) -> Evidence:
    return without(evidence, at(evidence, EventType.NODE_SUCCEEDED))


def begun_again(evidence: Evidence) -> Evidence:
    started = at(evidence, EventType.NODE_STARTED)
    return with_rows(evidence, replace(started, data={"attempt": 2}),
                     replace(started, type=EventType.NODE_INTERRUPTED, data={}))


def committed_under_another_claim(evidence: Evidence) -> Evidence:
    return with_rows(evidence, claim(evidence), before=at(evidence, EventType.NODE_SUCCEEDED))


def committed_by_an_attempt_that_was_put_back(evidence: Evidence) -> Evidence:
    started, done = at(evidence, EventType.NODE_STARTED), at(evidence, EventType.NODE_SUCCEEDED)
    return with_rows(evidence, claim(evidence), replace(started, type=EventType.NODE_INTERRUPTED, data={}), before=done)


def committed_by_an_old_attempt(evidence: Evidence) -> Evidence:
    started, done = at(evidence, EventType.NODE_STARTED), at(evidence, EventType.NODE_SUCCEEDED)
    return with_rows(evidence, claim(evidence), replace(started, type=EventType.NODE_INTERRUPTED, data={}),
                     replace(started, data={"attempt": 2}), before=done)


def written_after_the_end(evidence: Evidence) -> Evidence:
    skipped = replace(at(evidence, EventType.NODE_STARTED), type=EventType.NODE_SKIPPED, data={})
    return replace(evidence, events=[*evidence.events, skipped])


def node_left_running(evidence: Evidence) -> Evidence:
    return node_is(never_committed(evidence), NodeStatus.RUNNING)


def end_told_twice(evidence: Evidence) -> Evidence:
    return replace(evidence, events=[*evidence.events, evidence.events[-1]])


def two_attempts_at_once(evidence: Evidence) -> Evidence:
    done = at(evidence, EventType.NODE_SUCCEEDED)
    twin = replace(at(evidence, EventType.NODE_STARTED), data={"attempt": 2})
    doctored = with_rows(evidence, twin, before=done)
    return replace(doctored, events=[replace(event, data={"attempt": 2}) if event.type is done.type
                                     and event.node_id == done.node_id else event for event in doctored.events])


@pytest.mark.parametrize(("doctor", "rules"), [
    (lost, {Rule.LOST}),
    (committed_twice, {Rule.COMMITS}),
    (never_committed, {Rule.COMMITS, Rule.OPEN}),
    (begun_again, {Rule.RESTARTED}),
    (committed_under_another_claim, {Rule.FENCE}),
    (committed_by_an_attempt_that_was_put_back, {Rule.FENCE}),
    (committed_by_an_old_attempt, {Rule.FENCE}),
    (written_after_the_end, {Rule.FENCE}),
    (node_left_running, {Rule.OPEN}),
    (end_told_twice, {Rule.OPEN}),
    (two_attempts_at_once, {Rule.OPEN}),
], ids=lambda value: value.__name__ if callable(value) else "")
def test_each_violation_is_found_in_a_log_that_was_doctored_for_it(
        evidence: Evidence, doctor: Doctor, rules: set[Rule]) -> None:
    assert found(evidence) == [], "the log itself is true"
    assert {violation.rule for violation in found(doctor(evidence))} == rules


def test_a_file_that_is_gone_or_another_one_is_found(evidence: Evidence) -> None:
    artifact = next(node.artifact for node in evidence.nodes if node.id == "s1.clip")
    assert artifact is not None
    for store in (Shelf(wrong=[artifact.key]), Shelf(missing=[artifact.key])):
        assert [(one.rule, one.node_id) for one in found(evidence, store)] == [(Rule.DIGEST, "s1.clip")]


def test_a_film_with_other_frames_than_the_undisturbed_one_is_found(evidence: Evidence) -> None:
    compared = replace(evidence, calm={"compose": "same"})
    assert found(compared) == []
    assert [(one.rule, one.node_id) for one in found(compared, shown="other")] == [(Rule.FRAMES, "compose")]


def test_steps_made_again_are_counted_per_resume_and_held_to_the_limit(evidence: Evidence) -> None:
    steps = (Seen(node_id="s1.clip", attempt=1, first_step=0, last_step=20),
             Seen(node_id="s1.clip", attempt=2, first_step=17, last_step=30),
             Seen(node_id="s1.clip", attempt=4, first_step=30, last_step=40),
             Seen(node_id="s2.clip", attempt=1, first_step=0, last_step=40))
    assert repeated_steps(steps) == {("s1.clip", 2): 3, ("s1.clip", 4): 0}
    assert found(replace(evidence, steps=steps, repeat_limit=3)) == []
    assert [str(one) for one in found(replace(evidence, steps=steps, repeat_limit=2))] == [
        "repeated: film/s1.clip: attempt 2 made 3 steps again, more than 2"]
    assert found(replace(evidence, steps=steps)) == [], "no checkpoints, no limit"


def test_a_seed_gives_the_same_schedule_again_and_names_only_what_may_be_struck() -> None:
    only = [Component.DIRECTOR, Component.BOARD]
    assert schedule(5, 40, only) == schedule(5, 40, only) != schedule(6, 40, only)
    assert {strike.component for strike in schedule(5, 40, only)} == set(only)
    assert {strike.component for strike in schedule(5, 400, Component)} == set(Component)


def test_what_a_replaced_attempt_tells_late_is_not_counted_as_its_reach() -> None:
    heard = Heard()
    for attempt, step in ((1, 3), (1, 9), (2, 8), (1, 20), (2, 30)):
        heard.note("shot_update", {"shot": {"node": "s1.clip", "attempt": attempt, "step": step, "phase": "diffusion"}})
    heard.note("shot_update", {"shot": {"node": "s1.clip", "attempt": 2, "step": 0, "phase": ""}})
    assert repeated_steps(heard.seen()) == {("s1.clip", 2): 1}
