"""What a run has shown: a table for people, JSON for programs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from tests.bench.report import write_report
from tests.chaos.invariants import COMMITS, Evidence, Rule, repeated_steps
from tests.chaos.monkey import Outcome, Struck
from tests.chaos.schedule import Blow
from tests.chaos.served import Component
from workflows.durable.rows import EventType
from workflows.types import NodeKind

HEADER = ("struck", "signal", "strikes", "films open then", "lost", "re-rendered after commit", "steps repeated, max",
          "violations", "HTTP again p50 / max, s", "work goes on p50 / max, s")
TAKEN_BY = frozenset({Component.DIRECTOR, Component.SERVER})
"""After their death, work goes on when a job is claimed anew; after the others', when a node is committed."""


def write(outcome: Outcome, directory: Path, name: str) -> Path:
    """Write `name.md` and `name.json`; print the table."""
    rows = [_row(outcome, kind, [one for one in outcome.struck if (one.strike.component, one.strike.blow) == kind])
            for kind in sorted({(one.strike.component, one.strike.blow) for one in outcome.struck})]
    rows.append(_row(outcome, ("all", ""), outcome.struck))
    order = outcome.order
    question = f"Kills by seed {order.seed} on {order.database}: {len(outcome.struck)} strikes, {order.kills} planned"
    path = write_report(name, question, HEADER, rows, _conclusion(outcome), directory=directory)
    (directory / f"{name}.json").write_text(json.dumps(_plain(outcome), indent=1), encoding="utf-8")
    return path


def is_good(outcome: Outcome) -> bool:
    """Nothing is broken, and the run itself was as it should be."""
    return not outcome.violations and not outcome.troubles and bool(outcome.evidence)


def work_goes_on_s(struck: Struck, evidence: Iterable[Evidence]) -> float | None:
    """Seconds from the signal to the first row of the log that shows it; None: there was none, the films were over."""
    wanted = COMMITS
    if struck.strike.blow is Blow.KILL and struck.strike.component in TAKEN_BY:
        wanted = frozenset({EventType.JOB_STARTED})
    later = [event.at_s for one in evidence for event in one.events if event.type in wanted
             and event.at_s > struck.at_s]
    return min(later) - struck.at_s if later else None


def _row(outcome: Outcome, kind: tuple[str, str], struck: Sequence[Struck]) -> list[object]:
    touched = [one for one in outcome.evidence if any(_is_open(one, hit.at_s) for hit in struck)]
    ids = {one.job.id for one in touched}
    broken = [violation for violation in outcome.violations if violation.job_id in ids]
    again = [count for one in touched for count in _repeats_of_clips(one)]
    return [kind[0], kind[1], len(struck), len(touched),
            sum(violation.rule is Rule.LOST for violation in broken),
            sum(violation.rule is Rule.RESTARTED for violation in broken), max(again, default=0), len(broken),
            _spread([hit.http_s for hit in struck]),
            _spread([work_goes_on_s(hit, outcome.evidence) for hit in struck])]


def _repeats_of_clips(one: Evidence) -> list[int]:
    clips = {node.id for node in one.nodes if node.kind is NodeKind.CLIP}
    return [count for (node_id, _), count in repeated_steps(one.steps).items() if node_id in clips]


def _is_open(one: Evidence, at_s: float) -> bool:
    return one.job.created_at_s <= at_s and (one.job.finished_at_s is None or at_s <= one.job.finished_at_s)


def _spread(seconds: Iterable[float | None]) -> str:
    known = [one for one in seconds if one is not None]
    return f"{statistics.median(known):.1f} / {max(known):.1f}" if known else "-"


def _conclusion(outcome: Outcome) -> str:
    order, nodes = outcome.order, [node for one in outcome.evidence for node in one.nodes]
    again = [count for one in outcome.evidence for count in _repeats_of_clips(one)]
    compared = sum(bool(one.calm) for one in outcome.evidence)
    told = [
        f"{len(outcome.evidence)} films of {len(nodes)} nodes, {order.jobs} at a time, in {outcome.seconds:.0f} s. "
        f"{sum(node.interruptions for node in nodes)} attempts were interrupted by the death of their Director, "
        f"{sum(node.crashes for node in nodes)} by that of their replica; {outcome.resumed} results were gone on with "
        f"at a checkpoint, which made {sum(again)} steps again in {len(again)} resumes (limit {order.repeat_limit} "
        f"each). {compared} films were compared frame by frame with undisturbed ones.",
        "", "A film is open while many things are struck, and counts in each of those rows. Raylets were not struck.",
        "", f"Again: `python -m tests.chaos --seed {order.seed} --kills {order.kills} --jobs {order.jobs} --database "
            f"{order.database}`. The schedule is the same then; what it hits depends on the machine.",
        "", "Violations: none." if not outcome.violations else "Violations:",
        *(f"- {violation}" for violation in outcome.violations),
        *(f"- trouble with the run itself: {text}" for text in outcome.troubles)]
    return "\n".join(told)


def _plain(outcome: Outcome) -> dict[str, object]:
    return {
        "order": asdict(outcome.order), "seconds": outcome.seconds, "resumed": outcome.resumed,
        "jobs": [{"id": one.job.id, "status": one.job.status.value, "compared": bool(one.calm),
                  "repeated_steps": _repeats_of_clips(one)} for one in outcome.evidence],
        "strikes": [{**asdict(hit.strike), "at_s": hit.at_s, "http_s": hit.http_s,
                     "work_s": work_goes_on_s(hit, outcome.evidence)} for hit in outcome.struck],
        "histories": {one.job.id: _history(one) for one in outcome.evidence
                      if any(violation.job_id == one.job.id for violation in outcome.violations)},
        "violations": [asdict(violation) for violation in outcome.violations], "troubles": list(outcome.troubles)}


def _history(one: Evidence) -> dict[str, object]:
    """All that was known of a job in which something is broken: the run's files are gone by now."""
    return {"steps": [asdict(seen) for seen in one.steps],
            "rows": [{"at_s": event.at_s, "type": event.type.value, "node": event.node_id, "line": event.line,
                      "data": dict(event.data)} for event in one.events]}
