"""What is measured: jobs, queues, durations, GPU-seconds, from the rows of the database. Knows no web framework.

Base units, no ids in labels. Where a number is a count of rows that stay (`usage`), it is a counter and never falls;
jobs and shots can be forgotten, so theirs are gauges.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version

from serve_app.service.exposition import Metric, MetricType, Sample, exposition, histogram_samples
from serve_app.service.forecast import Remembered
from workflows.durable.meters import BUCKETS_S, Meters, Readings, Spell
from workflows.durable.outbox import DeliveryStatus
from workflows.durable.overview import Load, Overview
from workflows.durable.usage import Outcome
from workflows.types import NO_MODEL_LANES, JobStatus, NodeKind, NodeStatus, Priority

SCRAPE_AGE_S = 5.0
"""Scrapes within this time are answered with the same page: each costs a pass over the tables."""
GPU_OUTCOMES: Mapping[str, tuple[Outcome, ...]] = {
    "useful": (Outcome.USEFUL,), "wasted": (Outcome.WASTED, Outcome.INTERRUPTED), "saved": (Outcome.SAVED,),
    "carried": (Outcome.CARRIED,)}
ATTEMPTS = (Outcome.USEFUL, Outcome.WASTED, Outcome.INTERRUPTED)
SHOT_STAGES = (NodeKind.KEYFRAME, NodeKind.CLIP)
"""The nodes of which each shot has at most one per stage."""

Source = Callable[[], Iterable[Metric]]


class Metrics:
    """The metrics page of one process; the same from every other."""

    def __init__(self, meters: Meters, overview: Overview, slots: Mapping[str, int],
                 sources: Sequence[Source] = ()) -> None:
        """`slots`: calls in flight that each lane has room for; `sources`: further metrics, asked at each scrape."""
        self._meters = meters
        self._overview = overview
        self._slots = slots
        self._sources = sources
        self._page = Remembered(self._scrape, SCRAPE_AGE_S)

    def page(self) -> str:
        """The page, at most `SCRAPE_AGE_S` old. Blocking."""
        return self._page.get()

    def _scrape(self) -> str:
        readings = self._meters.read()
        return exposition([*_now(readings), *_lanes(self._overview.load(), self._slots), *_durations(readings),
                           *_gpu(readings, [lane for lane in self._slots if lane not in NO_MODEL_LANES]),
                           *(metric for source in self._sources for metric in source())])


def webhook_deliveries(tally: Mapping[DeliveryStatus, int]) -> Iterable[Metric]:
    """What is known of webhooks; a gauge, since old deliveries are forgotten."""
    yield _gauge("reelray_webhook_deliveries", "Webhook deliveries that are kept, by status.",
                 [({"status": status.value}, count) for status, count in tally.items()])


def batches_by_state(tally: Mapping[str, int]) -> Iterable[Metric]:
    """A gauge, since batches can be forgotten."""
    yield _gauge("reelray_batches", "Batches by state: running, held (paused, or out of GPU-seconds), over.",
                 [({"state": state}, count) for state, count in tally.items()])


def _now(readings: Readings) -> Iterable[Metric]:
    yield _gauge("reelray_info", "Version that answers.", [({"version": version("reelray")}, 1)])
    yield _gauge("reelray_jobs", "Jobs in the database by status.",
                 [({"status": status.value}, readings.jobs.get(status, 0)) for status in JobStatus])
    yield _gauge("reelray_shots", "Keyframes (stage images) and clips (stage videos) in the database by status.",
                 [({"stage": kind.stage.value, "status": status.value}, readings.nodes.get((kind, status), 0))
                  for kind in SHOT_STAGES for status in NodeStatus])
    yield _gauge("reelray_queue_depth", "Jobs that no Director has taken yet.",
                 [({"priority": priority.value}, readings.queued.get(priority, 0)) for priority in Priority])


def _lanes(load: Load, slots: Mapping[str, int]) -> Iterable[Metric]:
    lanes = list(dict.fromkeys([*slots, *load.running, *load.waiting]))
    yield _gauge("reelray_lane_slots", "Calls in flight that a lane (a model card, cpu, or story) has room for.",
                 [({"lane": lane}, slots.get(lane, 0)) for lane in lanes])
    yield _gauge("reelray_lane_running", "Nodes that run now.",
                 [({"lane": lane}, load.running.get(lane, 0)) for lane in lanes])
    yield _gauge("reelray_lane_waiting", "Nodes of active jobs that are still to run.",
                 [({"lane": lane}, load.waiting.get(lane, 0)) for lane in lanes])


def _durations(readings: Readings) -> Iterable[Metric]:
    yield _histogram("reelray_queue_wait_seconds", "From a job's submission or retry until a Director took it.",
                     [({}, _of(readings, Outcome.WAITED))])
    yield _histogram("reelray_cancel_latency_seconds", "From a cancel request until the job was closed.",
                     [({}, _of(readings, Outcome.CANCELLED))])
    yield _histogram("reelray_node_duration_seconds", "Attempts that made a result, from start to commit.",
                     [({"kind": kind.value}, [spell for spell in _of(readings, Outcome.USEFUL) if spell.kind == kind])
                      for kind in NodeKind])


def _gpu(readings: Readings, models: Sequence[str]) -> Iterable[Metric]:
    made = [spell for spell in _of(readings, Outcome.USEFUL) if spell.lane not in NO_MODEL_LANES]
    names = list(dict.fromkeys([*models, *(spell.lane for spell in made)]))
    yield Metric(name="reelray_denoise_step_seconds", type=MetricType.SUMMARY,
                 help="Denoising of finished nodes: seconds, and steps as count.", samples=tuple(
                     sample for name in names for sample in (
                         Sample(suffix="_sum", labels={"model": name},
                                value=sum(spell.diffusion_s for spell in made if spell.lane == name)),
                         Sample(suffix="_count", labels={"model": name},
                                value=sum(spell.steps for spell in made if spell.lane == name)))))
    yield _counter("reelray_gpu_seconds_total", "Seconds that models worked: useful for a result, wasted (failed, "
                   "cancelled, interrupted), saved by the store, or carried over: wasted, but for a checkpoint that a "
                   "later attempt made its result from.",
                   [({"outcome": name}, sum(spell.gpu_s for spell in _of(readings, *outcomes)))
                    for name, outcomes in GPU_OUTCOMES.items()])
    yield _counter("reelray_attempts_total", "Attempts at nodes by how they ended.", [
        ({"kind": kind.value, "outcome": outcome.value}, _counts(readings, outcome)[kind.value])
        for kind in NodeKind for outcome in ATTEMPTS])
    yield _counter("reelray_resumes_total", "Nodes that another Director took over while they ran.",
                   [({}, sum(_counts(readings, Outcome.INTERRUPTED).values()))])
    yield _counter("reelray_mid_shot_resumes_total", "Results that were made from an earlier attempt's checkpoint.",
                   [({}, sum(_counts(readings, Outcome.CARRIED).values()))])
    yield _counter("reelray_cache_hits_total", "Nodes whose result was in the store.", [
        ({"kind": kind.value}, _counts(readings, Outcome.SAVED)[kind.value]) for kind in NodeKind])


def _of(readings: Readings, *outcomes: Outcome) -> list[Spell]:
    return [spell for spell in readings.spells if spell.outcome in outcomes]


def _counts(readings: Readings, outcome: Outcome) -> Counter[str]:
    counts: Counter[str] = Counter()
    for spell in _of(readings, outcome):
        counts[spell.kind] += spell.count
    return counts


def _gauge(name: str, help_: str, values: Iterable[tuple[Mapping[str, str], float]]) -> Metric:
    return Metric(name=name, type=MetricType.GAUGE, help=help_,
                  samples=tuple(Sample(labels=labels, value=value) for labels, value in values))


def _counter(name: str, help_: str, values: Iterable[tuple[Mapping[str, str], float]]) -> Metric:
    return Metric(name=name, type=MetricType.COUNTER, help=help_,
                  samples=tuple(Sample(labels=labels, value=value) for labels, value in values))


def _histogram(name: str, help_: str, values: Iterable[tuple[Mapping[str, str], Sequence[Spell]]]) -> Metric:
    samples: list[Sample] = []
    for labels, spells in values:
        within = [sum(spell.within[place] for spell in spells) for place in range(len(BUCKETS_S))]
        samples += histogram_samples(labels, BUCKETS_S, within, sum(spell.count for spell in spells),
                                     sum(spell.wall_s for spell in spells))
    return Metric(name=name, type=MetricType.HISTOGRAM, help=help_, samples=tuple(samples))
