"""What a batch has cost, shot by shot: rows of usage beside the plan, as CSV and as JSON. Pure but for `report_of`."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from workflows.durable.batch_reads import BatchReads, Bill, Owner, Part
from workflows.durable.usage import Outcome
from workflows.status import shot_status
from workflows.types import NO_MODEL_LANES, Json, NodeStatus

HOUR_S = 3600.0
ATTEMPTS = frozenset({Outcome.USEFUL, Outcome.WASTED, Outcome.INTERRUPTED})
LOST = frozenset({Outcome.WASTED, Outcome.INTERRUPTED})
JOINED = "; "
"""Between several files of one job, and several models of one shot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRow:
    """One shot of one film."""

    file: str
    """Empty: its job was forgotten."""
    job_id: str
    shot: str
    """Empty: what concerns the whole film, as its join."""
    status: str
    """Of a shot; `forgotten` where nothing but its cost is known."""
    replaced: bool
    """The file came back with other content."""
    models: tuple[str, ...]
    """Model cards that it takes."""
    attempts: int
    """At what a model makes, that ended."""
    seconds: float
    """That all attempts at its nodes took, also where no model runs."""
    gpu_s_useful: float
    gpu_s_wasted: float
    """Failed, cancelled, interrupted."""
    gpu_s_saved: float
    """What making results had cost that were found in the store; not charged."""
    gpu_s_carried: float
    """Of what was wasted, the share that a later attempt took over; not charged again."""
    cost: float
    """Useful and wasted GPU-seconds at the price asked for."""

    def to_json(self) -> dict[str, Json]:
        """As plain data, in the order of the columns."""
        return {
            "file": self.file, "job_id": self.job_id, "shot": self.shot, "status": self.status,
            "replaced": self.replaced, "models": list(self.models), "attempts": self.attempts,
            "seconds": round(self.seconds, 3), "gpu_seconds_useful": round(self.gpu_s_useful, 3),
            "gpu_seconds_wasted": round(self.gpu_s_wasted, 3), "gpu_seconds_saved": round(self.gpu_s_saved, 3),
            "gpu_seconds_carried": round(self.gpu_s_carried, 3), "cost": round(self.cost, 6)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All of a batch."""

    batch_id: str
    price_per_gpu_hour: float
    rows: tuple[ReportRow, ...]

    def to_json(self) -> dict[str, Json]:
        """`rows`, and their sums in `total`."""
        return {"batch_id": self.batch_id, "price_per_gpu_hour": self.price_per_gpu_hour,
                "rows": [row.to_json() for row in self.rows], "total": self.total()}

    def total(self) -> dict[str, Json]:
        """The sums of the columns that are numbers."""
        rows = self.rows
        return {
            "shots": sum(bool(row.shot) for row in rows), "attempts": sum(row.attempts for row in rows),
            "seconds": round(sum(row.seconds for row in rows), 3),
            "gpu_seconds_useful": round(sum(row.gpu_s_useful for row in rows), 3),
            "gpu_seconds_wasted": round(sum(row.gpu_s_wasted for row in rows), 3),
            "gpu_seconds_saved": round(sum(row.gpu_s_saved for row in rows), 3),
            "gpu_seconds_carried": round(sum(row.gpu_s_carried for row in rows), 3),
            "cost": round(sum(row.cost for row in rows), 6)}

    def to_csv(self) -> str:
        """A line of names and one per row (RFC 4180); no line of sums, which spreadsheets add themselves."""
        return csv_of(row.to_json() for row in self.rows)


COLUMNS = tuple(ReportRow(
    file="", job_id="", shot="", status="", replaced=False, models=(), attempts=0, seconds=0, gpu_s_useful=0,
    gpu_s_wasted=0, gpu_s_saved=0, gpu_s_carried=0, cost=0).to_json())


def csv_of(rows: Iterable[Mapping[str, Json]]) -> str:
    """The rows of a report, as its JSON has them."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow([_cell(row[name]) for name in COLUMNS])
    return text.getvalue()


def report_of(reads: BatchReads, batch_id: str, price_per_gpu_hour: float) -> Report:
    """Ask for all of it; the batch must exist."""
    return Report(batch_id=batch_id, price_per_gpu_hour=price_per_gpu_hour, rows=report_rows(
        reads.parts(batch_id), reads.bills(batch_id), reads.owners(batch_id), price_per_gpu_hour))


def report_rows(parts: Sequence[Part], bills: Sequence[Bill], owners: Mapping[str, Owner],
                price_per_gpu_hour: float) -> tuple[ReportRow, ...]:
    """A row per planned shot, one per film that cost something by itself, and what nobody plans any more last."""
    planned: dict[tuple[str, str], list[Part]] = defaultdict(list)
    for part in parts:
        planned[part.job_id, part.shot_id].append(part)
    billed: dict[tuple[str, str], list[Bill]] = defaultdict(list)
    for bill in bills:
        billed[bill.job_id, bill.shot_id].append(bill)
    wanted = [key for key in planned if key[1] or key in billed] + [key for key in billed if key not in planned]
    return tuple(_row(key, planned[key], billed[key], owners.get(key[0]), price_per_gpu_hour)
                 for key in dict.fromkeys(wanted))


def _row(key: tuple[str, str], parts: Sequence[Part], bills: Sequence[Bill], owner: Owner | None,
         price_per_gpu_hour: float) -> ReportRow:
    lanes = dict.fromkeys([*(part.lane for part in parts), *(bill.lane for bill in bills)])
    useful_s = sum(bill.gpu_s for bill in bills if bill.outcome is Outcome.USEFUL)
    wasted_s = sum(bill.gpu_s for bill in bills if bill.outcome in LOST)
    tried = [bill for bill in bills if bill.outcome in ATTEMPTS]
    statuses: set[NodeStatus] = {part.status for part in parts}
    return ReportRow(
        file=JOINED.join(owner.files) if owner else "", replaced=bool(owner and owner.replaced),
        job_id=key[0], shot=key[1], status=shot_status(statuses).value if statuses else "forgotten",
        models=tuple(lane for lane in lanes if lane and lane not in NO_MODEL_LANES),
        attempts=sum(bill.count for bill in tried if bill.lane not in NO_MODEL_LANES),
        seconds=sum(bill.wall_s for bill in tried), gpu_s_useful=useful_s, gpu_s_wasted=wasted_s,
        gpu_s_saved=sum(bill.gpu_s for bill in bills if bill.outcome is Outcome.SAVED),
        gpu_s_carried=sum(bill.gpu_s for bill in bills if bill.outcome is Outcome.CARRIED),
        cost=(useful_s + wasted_s) / HOUR_S * price_per_gpu_hour)


def _cell(value: Json) -> str:
    if isinstance(value, list):
        return JOINED.join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = str(value)
    # A spreadsheet takes such a text for a formula, and files are called as others like.
    return f"'{text}" if isinstance(value, str) and text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
