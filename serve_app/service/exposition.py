"""Metrics as Prometheus reads them (text format 0.0.4). Knows no metric."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class MetricType(StrEnum):
    """What a metric's numbers mean."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"
    SUMMARY = "summary"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One number."""

    value: float
    labels: Mapping[str, str]
    suffix: str = ""
    """`_bucket`, `_sum` or `_count` of a histogram or summary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """Samples under one name."""

    name: str
    type: MetricType
    help: str
    samples: tuple[Sample, ...]


def histogram_samples(labels: Mapping[str, str], bounds: Iterable[float], within: Iterable[int], count: int,
                      total: float) -> tuple[Sample, ...]:
    """One histogram: how many were at most each bound, how many there were, and their sum."""
    buckets = tuple(Sample(suffix="_bucket", labels={**labels, "le": f"{bound:g}"}, value=found)
                    for bound, found in zip(bounds, within, strict=True))
    return (*buckets, Sample(suffix="_bucket", labels={**labels, "le": "+Inf"}, value=count),
            Sample(suffix="_sum", labels=labels, value=total), Sample(suffix="_count", labels=labels, value=count))


def exposition(metrics: Iterable[Metric]) -> str:
    """The page that Prometheus scrapes."""
    lines: list[str] = []
    for metric in metrics:
        lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.type.value}"]
        lines += [f"{metric.name}{sample.suffix}{_labels(sample.labels)} {_number(sample.value)}"
                  for sample in metric.samples]
    return "\n".join(lines) + "\n"


def _labels(labels: Mapping[str, str]) -> str:
    pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return f"{{{pairs}}}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))
