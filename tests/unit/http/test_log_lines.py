"""Logs for machines: one JSON object per line, with ids, each thing told once."""

from __future__ import annotations

import io
import json
import logging
from typing import Any

from serve_app.log_lines import JobLog, JsonFormatter, LogScreen
from tests.desk import Shop
from workflows.durable.overview import Overview


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_all_that_happens_to_a_film_is_told_once_with_its_ids(shop: Shop) -> None:
    before = shop.submit()
    stream = io.StringIO()
    log = JobLog(Overview(shop.ledger.database), stream)
    log.tell()
    assert stream.getvalue() == "", "what was before is not told"
    job_id = shop.submit()
    log.tell()
    shop.render(job_id)
    log.tell()
    log.tell()
    told = [line for line in lines(stream) if line["job_id"] == job_id]
    assert [line["type"] for line in told] == [event.type.value for event in shop.ledger.events(job_id)]
    assert {line["shot_id"] for line in told if line["node_id"].endswith(".clip")} == {"s1", "s2"}
    assert {line["level"] for line in told} == {"info"}
    assert all(line["message"] and line["time"].endswith("+00:00") for line in told)
    assert before != job_id


def test_more_than_a_page_is_told_whole(shop: Shop) -> None:
    stream = io.StringIO()
    log = JobLog(Overview(shop.ledger.database), stream)
    job_id = shop.submit()
    for part in range(3):
        shop.ledger.log(job_id, "\n".join(f"line {part}.{number}" for number in range(900)))
    log.tell()
    messages = [line["message"] for line in lines(stream) if line["type"] == "log"]
    assert messages == [f"line {part}.{number}" for part in range(3) for number in range(900)]


def test_a_failure_is_an_error_and_breaks_no_line(shop: Shop) -> None:
    stream = io.StringIO()
    log = JobLog(Overview(shop.ledger.database), stream)
    shop.painter.failing = True
    shop.film()
    log.tell()
    (failed,) = [line for line in lines(stream) if line["type"] == "node.failed"]
    assert (failed["level"], failed["shot_id"], failed["node_id"]) == ("error", "s2", "s2.clip")
    assert "it burned" in failed["message"]


def test_the_process_own_log_has_the_same_form() -> None:
    record = logging.makeLogRecord({"msg": "a %s\nb", "args": ("x",), "levelname": "WARNING", "job_id": "film-1"})
    line = JsonFormatter().format(record)
    assert "\n" not in line
    found = json.loads(line)
    assert (found["message"], found["level"], found["job_id"]) == ("a x\nb", "warning", "film-1")
    stream = io.StringIO()
    LogScreen(stream).note("serving")
    assert lines(stream)[0]["message"] == "serving"
