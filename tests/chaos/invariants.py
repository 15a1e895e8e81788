"""What must be true of a finished job, whatever died meanwhile. Pure: rows, events and steps in, violations out.

The event log is append-only and written in the transaction that moved the node, so it is the witness: a claim of a job
is a `job.started` row, and whatever is committed until the next one was committed under that claim's token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from workflows.durable.rows import EventRow, EventType, JobRow, NodeRow
from workflows.errors import ArtifactCorrupt, ArtifactMissing, MediaError
from workflows.media.decode import iter_frames
from workflows.types import Artifact, JobStatus, NodeKind, NodeStatus

COMMITS = frozenset({EventType.NODE_SUCCEEDED, EventType.NODE_CACHED})
ATTEMPT_ENDS = frozenset({EventType.NODE_RETRY, EventType.NODE_FAILED, EventType.NODE_SUCCEEDED,
                          EventType.NODE_INTERRUPTED, EventType.NODE_CANCELLED})
OF_NODES = ATTEMPT_ENDS | {EventType.NODE_STARTED, EventType.NODE_CACHED, EventType.NODE_SKIPPED}


class Rule(StrEnum):
    """What can be broken."""

    LOST = "lost"
    """The job did not end as a whole film."""
    COMMITS = "commits"
    """A node was not committed exactly once."""
    RESTARTED = "restarted"
    """An attempt began after the node's result was committed: a finished shot was rendered again."""
    FENCE = "fence"
    """Something was written for an attempt that the claim in force did not begin, or under no claim."""
    OPEN = "open"
    """Something is still open in a job that has ended."""
    DIGEST = "digest"
    """A node's file is not in the store, or is another one than was committed."""
    FRAMES = "frames"
    """A film shows other pictures than the same film made without trouble."""
    REPEATED = "repeated"
    """More denoising steps were made again than a checkpoint may cost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One broken rule."""

    rule: Rule
    job_id: str
    node_id: str = ""
    words: str

    def __str__(self) -> str:
        return f"{self.rule.value}: {self.job_id}{f'/{self.node_id}' if self.node_id else ''}: {self.words}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Which steps of one attempt somebody heard of, before a later attempt was heard of."""

    node_id: str
    attempt: int
    first_step: int
    """The lowest number of finished steps that was told; of an attempt that goes on, where it began."""
    last_step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that is known of one job."""

    job: JobRow
    nodes: Sequence[NodeRow]
    events: Sequence[EventRow]
    """All of them, in the order of their `seq`."""
    steps: Sequence[Seen] = ()
    repeat_limit: int | None = None
    """Steps that may be made again after a resume, K; None: no checkpoints are kept."""
    calm: Mapping[str, str] = field(default_factory=dict)
    """Node id -> `frames_digest` of its result in a run that nothing disturbed."""


class Fetches(Protocol):
    """A store, as far as it is needed here."""

    def fetch(self, artifact: Artifact) -> Path:
        """A local file with the artifact's bytes, checked against size and digest."""


def frames_digest(path: Path) -> str:
    """SHA-256 over all decoded frames of a video, in order, as RGB."""
    hasher = hashlib.sha256()
    for frame_HWC in iter_frames(path):
        hasher.update(frame_HWC.tobytes())
    return hasher.hexdigest()


def check(evidence: Evidence, store: Fetches, *, decode: Callable[[Path], str] = frames_digest) -> list[Violation]:
    """All that is wrong with a job; empty when nothing is. Only for jobs that nobody asked to run again."""
    return [*_ending(evidence), *_history(evidence), *_commits(evidence), *_files(evidence, store, decode),
            *_repeats(evidence)]


def _ending(evidence: Evidence) -> Iterator[Violation]:
    job = evidence.job
    if job.status is not JobStatus.SUCCEEDED:
        why = f": {job.error.message}" if job.error else ""
        yield Violation(rule=Rule.LOST, job_id=job.id, words=f"it is {job.status.value}{why}")
    if not job.status.is_terminal:
        return
    for node in evidence.nodes:
        if not node.status.is_terminal:
            yield Violation(rule=Rule.OPEN, job_id=job.id, node_id=node.id,
                            words=f"{node.status.value} in a job that has ended")
    ends = [event for event in evidence.events if event.type is EventType.JOB_FINISHED]
    if len(ends) != 1:
        yield Violation(rule=Rule.OPEN, job_id=job.id, words=f"its end was told {len(ends)} times")


@dataclass(slots=True)
class _History:
    """The log as far as it was read."""

    job_id: str
    claim: int = 0
    """How many claims there were."""
    is_over: bool = False
    open: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Node -> the attempt that runs, and the claim that began it."""
    done: set[str] = field(default_factory=set)

    def read(self, event: EventRow) -> Iterator[Violation]:
        if event.type is EventType.JOB_STARTED:
            self.claim += 1
        if event.type is EventType.JOB_FINISHED:
            self.is_over = True
        if event.type not in OF_NODES:
            return
        if self.is_over or not self.claim:
            yield self._says(Rule.FENCE, event, f"{event.type.value} while nobody held the job")
        if event.type is EventType.NODE_STARTED:
            yield from self._started(event)
        elif event.type in ATTEMPT_ENDS:
            yield from self._ended(event)
        if event.type in COMMITS:
            self.done.add(event.node_id)

    def _started(self, event: EventRow) -> Iterator[Violation]:
        attempt = _attempt(event)
        if event.node_id in self.done:
            yield self._says(Rule.RESTARTED, event, f"attempt {attempt} began after its result was committed")
        if event.node_id in self.open:
            yield self._says(Rule.OPEN, event, f"attempt {attempt} began while attempt "
                                               f"{self.open[event.node_id][0]} was open")
        self.open[event.node_id] = (attempt, self.claim)

    def _ended(self, event: EventRow) -> Iterator[Violation]:
        began = self.open.pop(event.node_id, None)
        attempt = _attempt(event)
        never_ran = began is None and (not attempt or event.type is EventType.NODE_FAILED)
        if event.type is EventType.NODE_INTERRUPTED or never_ran:
            return  # put back by the one who took the job, or closed without having run under it
        if began is None:
            yield self._says(Rule.FENCE, event, f"{event.type.value} of attempt {attempt}, which was not running")
        elif attempt and began[0] != attempt:
            yield self._says(Rule.FENCE, event, f"{event.type.value} of attempt {attempt} while attempt {began[0]} ran")
        elif attempt and began[1] != self.claim:
            yield self._says(Rule.FENCE, event, f"{event.type.value} of attempt {attempt}, begun under claim "
                                                f"{began[1]}, under claim {self.claim}")

    def _says(self, rule: Rule, event: EventRow, words: str) -> Violation:
        return Violation(rule=rule, job_id=self.job_id, node_id=event.node_id, words=f"row {event.seq}: {words}")


def _attempt(event: EventRow) -> int:
    """0 where the row names none."""
    attempt = event.data.get("attempt")
    return attempt if isinstance(attempt, int) else 0


def _history(evidence: Evidence) -> Iterator[Violation]:
    history = _History(evidence.job.id)
    for event in evidence.events:
        yield from history.read(event)
    if evidence.job.status.is_terminal:
        for node_id, (attempt, _) in history.open.items():
            yield Violation(rule=Rule.OPEN, job_id=evidence.job.id, node_id=node_id,
                            words=f"attempt {attempt} began and never ended")


def _commits(evidence: Evidence) -> Iterator[Violation]:
    job_id = evidence.job.id
    for node in evidence.nodes:
        rows = [event.seq for event in evidence.events if event.node_id == node.id and event.type in COMMITS]
        wanted = 1 if node.status is NodeStatus.SUCCEEDED else 0
        if len(rows) != wanted:
            yield Violation(rule=Rule.COMMITS, job_id=job_id, node_id=node.id,
                            words=f"{node.status.value}, with {len(rows)} commits (rows {rows})")


def _files(evidence: Evidence, store: Fetches, decode: Callable[[Path], str]) -> Iterator[Violation]:
    job_id = evidence.job.id
    for node in evidence.nodes:
        if node.artifact is None:
            continue
        try:
            path = store.fetch(node.artifact)
            found = decode(path) if node.id in evidence.calm else ""
        except (ArtifactMissing, ArtifactCorrupt, MediaError) as error:
            yield Violation(rule=Rule.DIGEST, job_id=job_id, node_id=node.id, words=str(error))
            continue
        if found and found != evidence.calm[node.id]:
            yield Violation(rule=Rule.FRAMES, job_id=job_id, node_id=node.id,
                            words=f"frames {found[:12]}, undisturbed {evidence.calm[node.id][:12]}")


def repeated_steps(steps: Iterable[Seen]) -> dict[tuple[str, int], int]:
    """(node, attempt that went on) -> steps that it made again. A lower bound: what was not heard is not counted."""
    by_node: dict[str, list[Seen]] = {}
    for seen in steps:
        by_node.setdefault(seen.node_id, []).append(seen)
    again: dict[tuple[str, int], int] = {}
    for node_id, attempts in by_node.items():
        reached = 0
        for seen in sorted(attempts, key=lambda one: one.attempt):
            if reached:
                again[node_id, seen.attempt] = max(reached - seen.first_step, 0)
            reached = max(reached, seen.last_step)
    return again


def _repeats(evidence: Evidence) -> Iterator[Violation]:
    limit = evidence.repeat_limit
    if limit is None:
        return
    models = {node.id for node in evidence.nodes if node.kind is NodeKind.CLIP}
    for (node_id, attempt), count in repeated_steps(evidence.steps).items():
        if node_id in models and count > limit:
            yield Violation(rule=Rule.REPEATED, job_id=evidence.job.id, node_id=node_id,
                            words=f"attempt {attempt} made {count} steps again, more than {limit}")
