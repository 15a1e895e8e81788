"""What a cluster's nodes said of themselves, compared and judged. Pure; knows no Ray."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from serve_app.findings import Finding

SLOW_STORE_MS = 1000.0
SLOW_DATABASE_MS = 100.0
SKEW_NOTE_S = 0.5
SKEW_FAIL_S = 5.0
"""Deadlines of attempts are unix times that a Director writes and a replica reads."""
LITTLE_FREE = 0.8
"""Of a GPU that nobody was given: less free than this share, and somebody outside of Ray uses it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFacts:
    """What a process sees that was given a part of one GPU."""

    assigned: tuple[str, ...]
    """By Ray."""
    seen: int
    """By torch."""
    name: str
    total_gb: float
    free_gb: float
    cap_holds: bool | None
    """Whether torch's allocator refused more than its share; None: there was too little room to try."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreTimes:
    """One file written, read and deleted, in milliseconds."""

    write_ms: float
    read_ms: float
    delete_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """What one node said; an error in place of what went wrong there."""

    versions: Mapping[str, str]
    """By package, and `python`; empty where it is not installed."""
    seen_without_gpu: int | None
    """GPUs that torch sees in a process that was given none; None: the node has none at all."""
    store: StoreTimes | None
    store_error: str = ""
    store_is_shared: bool
    """A file that another machine wrote is there."""
    database_ms: float | None
    """Median of a few small questions."""
    database_error: str = ""
    skew_s: float | None
    """This node's clock less the database's; None where the database has none of its own."""
    skew_error_s: float = 0.0
    """How wrong that may be."""
    ffmpeg: str
    """Its version."""
    ffmpeg_error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """One alive node."""

    name: str
    """Host name and address."""
    gpus: float
    """As Ray counts them."""
    facts: NodeFacts | None
    """None: it did not answer."""
    error: str = ""
    """Why not."""
    gpu: GpuFacts | None = None
    """None: no GPU, or all are in use."""


def judge(reports: Sequence[NodeReport]) -> list[Finding]:
    """All findings of a cluster, nodes in their order, then what they have in common."""
    findings = [_node(report) for report in reports]
    for report in reports:
        if report.facts is not None:
            for look in LOOKS:
                findings += look(report.name, report, report.facts)
    return [*findings, *_versions(reports)]


def _node(report: NodeReport) -> Finding:
    facts, what = report.facts, f"node {report.name}"
    if facts is None:
        return Finding(level="fail", what=what, text=f"ran nothing: {report.error}; see that the same reelray is "
                       "installed there, and what `ray status` and its raylet's log say")
    parts = [f"python {facts.versions.get('python', '?')}", f"{report.gpus:g} GPUs"]
    if report.gpu is not None:
        parts.append(f"{report.gpu.name} {report.gpu.free_gb:.1f} of {report.gpu.total_gb:.1f} GB free")
    if facts.store is not None:
        parts.append(f"store {facts.store.write_ms:.0f}/{facts.store.read_ms:.0f}/{facts.store.delete_ms:.0f} ms "
                     "write/read/delete")
    if facts.database_ms is not None:
        parts.append(f"database {facts.database_ms:.1f} ms")
    if facts.skew_s is not None:
        parts.append(f"clock {facts.skew_s * 1000:+.0f} ms")
    if facts.ffmpeg:
        parts.append(f"ffmpeg {facts.ffmpeg}")
    return Finding(level="ok", what=what, text=", ".join(parts))


def _store(name: str, _: NodeReport, facts: NodeFacts) -> Iterator[Finding]:
    if facts.store_error:
        yield Finding(level="fail", what="store", text=f"{name} cannot use it: {facts.store_error}; check store_url, "
                      "its credentials on that node, and its network")
    elif not facts.store_is_shared:
        yield Finding(level="fail", what="store", text=f"{name} does not see what this machine wrote: store_url names "
                      "a place of each machine's own; use s3://, or one directory that all of them mount")
    elif facts.store is not None and max(facts.store.write_ms, facts.store.read_ms) > SLOW_STORE_MS:
        yield Finding(level="note", what="store", text=f"{name}: a small file takes longer than {SLOW_STORE_MS:.0f} ms "
                      "there; every result is written and read so")


def _database(name: str, _: NodeReport, facts: NodeFacts) -> Iterator[Finding]:
    if facts.database_error:
        yield Finding(level="fail", what="database", text=f"{name} cannot reach it: {facts.database_error}; Directors "
                      "may run on any node: several machines need Postgres, open to all of them")
    elif facts.database_ms is not None and facts.database_ms > SLOW_DATABASE_MS:
        yield Finding(level="note", what="database", text=f"{name}: {facts.database_ms:.0f} ms per question; every "
                      "step of a job waits for some; move it nearer")


def _clock(name: str, _: NodeReport, facts: NodeFacts) -> Iterator[Finding]:
    if facts.skew_s is None:
        return
    off_s = abs(facts.skew_s) - facts.skew_error_s
    if off_s > SKEW_NOTE_S:
        yield Finding(level="fail" if off_s > SKEW_FAIL_S else "note", what="clock",
                      text=f"{name} is {abs(facts.skew_s):.1f} s {'ahead of' if facts.skew_s > 0 else 'behind'} the "
                           "database; times in lists and logs are off by that, and S3 and receivers of webhooks refuse "
                           "what is minutes off: run chrony or another time service there")


def _gpu(name: str, report: NodeReport, facts: NodeFacts) -> Iterator[Finding]:
    if facts.seen_without_gpu:
        yield Finding(level="fail", what="GPU", text=f"{name}: a process that was given no GPU sees "
                      f"{facts.seen_without_gpu}, and may take its memory; start Ray there with "
                      "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=1 in its environment")
    gpu = report.gpu
    if report.error:
        yield Finding(level="fail", what="GPU", text=f"{name}: nothing could be tried on it: {report.error}")
        return
    if gpu is None:
        if report.gpus:
            yield Finding(level="note", what="GPU", text=f"{name}: all are in use; nothing was tried on them")
        return
    if gpu.seen != len(gpu.assigned):
        yield Finding(level="fail", what="GPU", text=f"{name}: Ray gave {', '.join(gpu.assigned) or 'none'} and torch "
                      f"sees {gpu.seen}; install the driver and a CUDA build of torch there, and count no GPUs by hand "
                      "(`ray start --num-gpus`) that are none")
        return
    if gpu.cap_holds is False:
        yield Finding(level="fail", what="GPU", text=f"{name}: torch took more memory than its share; replicas that "
                      "share a GPU could push each other out: give each a whole one (num_gpus: 1)")
    if gpu.free_gb < gpu.total_gb * LITTLE_FREE:
        yield Finding(level="note", what="GPU", text=f"{name}: {gpu.total_gb - gpu.free_gb:.1f} of {gpu.total_gb:.1f} "
                      "GB are in use; by replicas that run, or by programs outside of Ray (`nvidia-smi` there)")


def _ffmpeg(name: str, _: NodeReport, facts: NodeFacts) -> Iterator[Finding]:
    if facts.ffmpeg_error:
        yield Finding(level="fail", what="ffmpeg", text=f"{name}: {facts.ffmpeg_error}; install imageio-ffmpeg there")


def _versions(reports: Sequence[NodeReport]) -> Iterator[Finding]:
    answered = [(report.name, report.facts) for report in reports if report.facts is not None]
    names = sorted({name for _, facts in answered for name in facts.versions})
    differs = False
    for package in names:
        by_version: defaultdict[str, list[str]] = defaultdict(list)
        for node, facts in answered:
            # `2.9.0+cpu` and `2.9.0+cu128` are one version: a head needs no GPU.
            by_version[facts.versions.get(package, "").partition("+")[0]].append(node)
        if len(by_version) > 1:
            differs = True
            told = "; ".join(f"{version or 'not installed'} on {', '.join(nodes)}"
                             for version, nodes in sorted(by_version.items()))
            yield Finding(level="fail", what="versions", text=f"{package}: {told}; use one image, or install from the "
                          "same constraints.txt everywhere: clips go on, and are equal, only where versions are")
    if answered and not differs:
        yield Finding(level="ok", what="versions", text=f"the same on all {len(answered)} nodes")


LOOKS: tuple[Callable[[str, NodeReport, NodeFacts], Iterator[Finding]], ...] = (
    _store, _database, _clock, _gpu, _ffmpeg)
