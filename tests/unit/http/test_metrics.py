"""The metrics page: what it counts, how it is written, and the dashboard and the page in the docs that name it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serve_app.service.exposition import Metric, MetricType, Sample, exposition
from serve_app.service.metrics import Metrics, batches_by_state, webhook_deliveries
from tests.desk import Shop
from workflows.durable.meters import Meters

ROOT = Path(__file__).resolve().parents[3]
DASHBOARD = ROOT / "deploy" / "grafana" / "reelray.json"
BASE_UNITS = ("_seconds", "_bytes", "_total", "_info")
PLAIN_COUNTS = {"reelray_jobs", "reelray_shots", "reelray_queue_depth", "reelray_lane_slots", "reelray_lane_running",
                "reelray_lane_waiting", "reelray_webhook_deliveries", "reelray_batches"}


def scrape(shop: Shop) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every number of the page, through Prometheus' own reader; not from memory."""
    metrics = Metrics(Meters(shop.ledger.database), shop.desk.overview, shop.desk.slots,
                      (lambda: webhook_deliveries(shop.desk.webhooks.tally()),
                       lambda: batches_by_state(shop.desk.batches.tally())))
    return {(sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(metrics.page()) for sample in family.samples}


def value(numbers: dict[tuple[str, frozenset[tuple[str, str]]], float], name: str, **labels: str) -> float:
    return numbers[name, frozenset(labels.items())]


def test_it_is_served_as_prometheus_reads_it(shop: Shop) -> None:
    reply = shop.client.get("/metrics")
    assert (reply.status_code, reply.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert len(list(text_string_to_metric_families(reply.text))) >= 13


def test_a_film_is_counted(shop: Shop) -> None:
    shop.film()
    numbers = scrape(shop)
    assert value(numbers, "reelray_jobs", status="succeeded") == 1
    assert value(numbers, "reelray_shots", stage="videos", status="succeeded") == 2
    assert value(numbers, "reelray_queue_wait_seconds_count") == 1
    assert value(numbers, "reelray_node_duration_seconds_count", kind="clip") == 2
    assert value(numbers, "reelray_gpu_seconds_total", outcome="useful") > 0
    assert value(numbers, "reelray_gpu_seconds_total", outcome="wasted") == 0


def test_the_same_film_again_is_saved_work(shop: Shop) -> None:
    shop.film()
    useful = value(scrape(shop), "reelray_gpu_seconds_total", outcome="useful")
    shop.film()
    numbers = scrape(shop)
    assert value(numbers, "reelray_cache_hits_total", kind="clip") == 2
    assert value(numbers, "reelray_gpu_seconds_total", outcome="saved") == pytest.approx(useful)
    assert value(numbers, "reelray_gpu_seconds_total", outcome="useful") == pytest.approx(useful)


def test_a_shot_that_fails_is_wasted_work(shop: Shop) -> None:
    shop.painter.failing = True
    shop.film()
    numbers = scrape(shop)
    assert value(numbers, "reelray_shots", stage="videos", status="failed") == 1
    assert value(numbers, "reelray_attempts_total", kind="clip", outcome="wasted") == 1


def test_a_cancelled_job_tells_how_long_that_took_and_a_queued_one_is_depth(shop: Shop) -> None:
    first, _ = shop.submit(), shop.submit()
    shop.client.post(f"/api/jobs/{first}/cancel")
    numbers = scrape(shop)
    assert value(numbers, "reelray_cancel_latency_seconds_count") == 1
    assert value(numbers, "reelray_queue_depth", priority="interactive") == 1


def test_what_was_counted_stays_when_the_job_is_forgotten(shop: Shop) -> None:
    job_id = shop.film()
    before = scrape(shop)
    shop.client.delete(f"/api/jobs/{job_id}")
    after = scrape(shop)
    assert value(after, "reelray_jobs", status="succeeded") == 0
    counters = [key for key in before if key[0].endswith(("_total", "_count", "_sum", "_bucket"))]
    assert counters
    assert [key for key in counters if after[key] < before[key]] == []


def test_buckets_of_a_histogram_rise_to_its_count(shop: Shop) -> None:
    shop.film()
    numbers = scrape(shop)
    rows = {dict(labels)["le"]: found for (name, labels), found in numbers.items()
            if name == "reelray_node_duration_seconds_bucket" and dict(labels)["kind"] == "clip"}
    bounds = sorted(rows, key=float)
    assert [rows[bound] for bound in bounds] == sorted(rows.values())
    assert rows["+Inf"] == value(numbers, "reelray_node_duration_seconds_count", kind="clip")


def test_names_have_one_prefix_and_base_units_and_labels_hold_no_ids(shop: Shop) -> None:
    job_id = shop.film()
    page = shop.client.get("/metrics").text
    for family in text_string_to_metric_families(page):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert name.startswith("reelray_")
        assert name.endswith(BASE_UNITS) or name in PLAIN_COUNTS
        assert family.documentation
    assert job_id not in page
    assert not re.search(r'(job|shot|node|key)_?(id)?="', page)


def test_further_sources_are_on_the_page(shop: Shop) -> None:
    more = Metric(name="reelray_more_total", type=MetricType.COUNTER, help="More.",
                  samples=(Sample(labels={}, value=7),))
    page = Metrics(Meters(shop.ledger.database), shop.desk.overview, {}, sources=[lambda: [more]]).page()
    assert "\nreelray_more_total 7\n" in page


@pytest.mark.parametrize("text", ['a"b', "a\\b", "a\nb", "é {}=,"])
def test_any_text_survives_as_a_label(text: str) -> None:
    page = exposition([Metric(name="x", type=MetricType.GAUGE, help="X.",
                              samples=(Sample(labels={"lane": text}, value=0.25),))])
    (family,) = text_string_to_metric_families(page)
    assert (family.samples[0].labels, family.samples[0].value) == ({"lane": text}, 0.25)


class TestDashboard:
    @pytest.fixture
    def board(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
        return found

    def test_every_query_names_metrics_and_labels_that_exist(self, board: dict[str, Any], shop: Shop) -> None:
        numbers = scrape(shop)
        labels: dict[str, set[str]] = {}
        for name, pairs in numbers:
            labels.setdefault(name, set()).update(label for label, _ in pairs)
        queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
        assert len(queries) >= 16
        for query in queries:
            used = re.findall(r"\breelray_\w+", query)
            assert used, query
            assert set(used) <= set(labels), query
            asked = set(re.findall(r"(\w+)=~?\"", query)) | {
                label.strip() for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(",")}
            assert asked <= set.union(*(labels[name] for name in used)), query

    def test_every_metric_is_shown(self, board: dict[str, Any], shop: Shop) -> None:
        queries = " ".join(target["expr"] for panel in board["panels"] for target in panel["targets"])
        names = {family.name for family in text_string_to_metric_families(shop.client.get("/metrics").text)}
        assert [name for name in names - {"reelray_info"} if name not in queries] == []

    def test_it_has_what_grafana_needs_to_load_it(self, board: dict[str, Any]) -> None:
        assert {"uid", "title", "schemaVersion", "panels", "time", "templating"} <= set(board)
        variables = [variable["name"] for variable in board["templating"]["list"]]
        ids = [panel["id"] for panel in board["panels"]]
        assert len(set(ids)) == len(ids)
        taken: set[tuple[int, int]] = set()
        for panel in board["panels"]:
            assert panel["type"] in {"stat", "timeseries"}
            assert panel["datasource"]["uid"].strip("${}") in variables
            assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
            at = panel["gridPos"]
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            assert at["x"] + at["w"] <= 24
            assert not cells & taken, panel["title"]
            taken |= cells


def test_every_metric_is_explained(shop: Shop) -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    for family in text_string_to_metric_families(shop.client.get("/metrics").text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert f"`{name}`" in page
