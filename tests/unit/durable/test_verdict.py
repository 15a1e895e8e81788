"""What a failed attempt means, and how a job ends: two tables."""

from __future__ import annotations

from dataclasses import replace

import pytest

from configs.settings import EngineSettings
from workflows.durable.graph import cone
from workflows.durable.rows import NodeRow
from workflows.durable.verdict import backoff_s, judge
from workflows.durable.walk import ending_of
from workflows.errors import (
    ArtifactMissing,
    DeadlineExceeded,
    ErrorRecord,
    GpuOutOfMemory,
    HandedOver,
    InvalidDocument,
    ModelFailed,
    Overloaded,
    RenderCancelled,
    ReplicaLost,
)
from workflows.types import JobStatus, NodeKind, NodeSpec, NodeStatus

SETTINGS = EngineSettings(attempts=3, poison_limit=3, backoff_s=1.0, max_backoff_s=12.0)


def clip(**counts: int) -> NodeRow:
    row = NodeRow.planned("film", NodeSpec(id="s1.clip", kind=NodeKind.CLIP), ord=0)
    return NodeRow(**{name: getattr(row, name) for name in NodeRow.__slots__} | counts)


def raised(kind: type) -> Exception:
    return kind(node_id="s1.clip", reason="why")


@pytest.mark.parametrize(("error", "before", "final", "failures", "crashes"), [
    (raised(ModelFailed), {}, False, 1, 0),
    (raised(ModelFailed), {"failures": 1}, False, 2, 0),
    (raised(ModelFailed), {"failures": 2}, True, 3, 0),
    (raised(GpuOutOfMemory), {}, False, 1, 0),
    (raised(DeadlineExceeded), {}, False, 1, 0),
    (ArtifactMissing(uri="x"), {}, False, 1, 0),
    (RuntimeError("?"), {}, False, 1, 0),
    (raised(RenderCancelled), {}, True, 1, 0),
    (InvalidDocument(problems=()), {}, True, 1, 0),
    (raised(ReplicaLost), {"failures": 2}, False, 2, 1),
    (raised(ReplicaLost), {"crashes": 2}, True, 0, 3),
    (raised(Overloaded), {"failures": 2, "crashes": 2}, False, 2, 2),
    (raised(HandedOver), {"failures": 2, "crashes": 2}, False, 2, 2),
], ids=["first", "second", "third", "memory", "deadline", "missing", "unexpected", "cancelled", "caller", "replica",
        "poison", "overloaded", "handed over"])
def test_the_error_decides_what_is_counted(
        error: Exception, before: dict[str, int], final: bool, failures: int, crashes: int) -> None:
    setback = judge(error, clip(**before), refusals=1, settings=SETTINGS, draw=lambda: 0.5)
    assert (setback.final, setback.failures, setback.crashes) == (final, failures, crashes)
    assert (setback.wait_s > 0) is not final


@pytest.mark.parametrize(("times", "lowest", "highest"), [
    (1, 0.8, 1.2), (2, 1.6, 2.4), (3, 3.2, 4.8), (4, 6.4, 9.6), (5, 8.0, 12.0), (100_000, 8.0, 12.0)])
def test_waits_double_with_jitter_up_to_the_cap(times: int, lowest: float, highest: float) -> None:
    assert backoff_s(times, settings=SETTINGS, draw=lambda: 0.0) == pytest.approx(lowest)
    assert backoff_s(times, settings=SETTINGS, draw=lambda: 1.0) == pytest.approx(highest)


def test_a_refusal_is_not_asked_again_in_a_busy_loop() -> None:
    settings = EngineSettings(backoff_s=0.0)
    setback = judge(raised(Overloaded), clip(), refusals=1, settings=settings, draw=lambda: 0.5)
    assert setback.wait_s == settings.poll_s


def rows(*statuses: str, joined: bool = True) -> list[NodeRow]:
    """Nodes of a job; `joined`: the last one is made of the others, whatever became of them."""
    error = ErrorRecord(type="ModelFailed", message="grey frames")
    return [NodeRow(job_id="film", id=f"n{ord}", ord=ord, kind=NodeKind.CLIP, shot_id="", deps=(), payload={},
                    lane="cpu", cost=1.0, accepts_missing=joined and ord == len(statuses) - 1,
                    status=NodeStatus(status), error=error if status == "failed" else None)
            for ord, status in enumerate(statuses)]


@pytest.mark.parametrize(("statuses", "status", "why"), [
    (("succeeded", "succeeded"), JobStatus.SUCCEEDED, ""),
    (("failed", "succeeded"), JobStatus.PARTIAL, ""),
    (("skipped", "cancelled", "succeeded"), JobStatus.PARTIAL, ""),
    (("succeeded", "failed"), JobStatus.FAILED, "grey frames"),
    (("skipped", "failed", "skipped"), JobStatus.FAILED, "grey frames"),
    (("cancelled", "skipped"), JobStatus.FAILED, "n1: skipped; what it needs was not made"),
], ids=["all", "hole", "holes", "last", "first-error", "nothing-failed"])
def test_a_job_ends_by_its_last_node_and_by_its_holes(statuses: tuple[str, ...], status: JobStatus, why: str) -> None:
    ending = ending_of(rows(*statuses), since_s=0.0)
    assert (ending.status, ending.error.message if ending.error else "") == (status, why)


@pytest.mark.parametrize(("statuses", "status"), [
    (("succeeded", "succeeded"), JobStatus.SUCCEEDED), (("succeeded", "failed"), JobStatus.PARTIAL),
    (("failed", "succeeded"), JobStatus.PARTIAL), (("failed", "failed"), JobStatus.FAILED),
])
def test_a_job_of_pictures_ends_by_what_was_made(statuses: tuple[str, ...], status: JobStatus) -> None:
    assert ending_of(rows(*statuses, joined=False), since_s=0.0).status is status


def test_what_only_led_to_a_failed_result_is_no_result() -> None:
    first, last = rows("succeeded", "failed", joined=False)
    assert ending_of([first, replace(last, deps=(first.id,))], since_s=0.0).status is JobStatus.FAILED


def test_a_cone_follows_every_path_and_keeps_the_jobs_order() -> None:
    nodes = [NodeRow.planned("film", NodeSpec(id=name, kind=NodeKind.CLIP, deps=tuple(deps)), ord=ord)
             for ord, (name, deps) in enumerate({"a": "", "b": "a", "c": "", "d": "bc", "e": "c"}.items())]
    assert cone(nodes, {"a"}) == ("a", "b", "d")
    assert cone(reversed(nodes), {"c", "b"}) == ("b", "c", "d", "e")
    assert cone(nodes, ()) == ()
