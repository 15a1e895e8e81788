"""docs/webhooks.md: its commands work as they stand, its receiver accepts what is sent, its tables are the code's."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook
from typer.testing import CliRunner

from serve_app.cli import app
from tests.desk import Shop
from workflows.durable.mail import Attempt, Mail
from workflows.durable.outbox import HookEvent
from workflows.durable.schedule import WAITS_S

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "webhooks.md").read_text(encoding="utf-8")
PUBLIC = "93.184.216.34"


def test_the_commands_work_one_after_the_other(shop: Shop) -> None:
    block = "".join(block for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) if "curl" in block)
    ids = {"WEBHOOK": "", "EVENT": ""}
    statuses = []
    for line in block.replace("\\\n", " ").strip().splitlines():
        words = shlex.split(line)
        url = next(word for word in words if word.startswith("http://127.0.0.1:8000"))
        for name, value in ids.items():
            url = url.replace(name, value)
        url = url.replace("hooks.example.com", PUBLIC)
        body = words[words.index("-d") + 1].replace("hooks.example.com", PUBLIC) if "-d" in words else None
        kind = words[words.index("-H") + 1].partition(": ")[2] if "-H" in words else ""
        method = words[words.index("-X") + 1] if "-X" in words else "POST" if body else "GET"
        reply = shop.client.request(method, url, content=body, headers={"Content-Type": kind})
        statuses.append(reply.status_code)
        if url.endswith("/webhooks") and body:
            ids["WEBHOOK"] = reply.json()["id"]
        elif url.endswith("/test"):
            ids["EVENT"] = reply.json()["id"]
    assert statuses == [201, 200, 202, 200, 202, 204, 202]


def receiver() -> Callable[[str, dict[str, str], bytes], int]:
    [source] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    space: dict[str, Any] = {}
    exec(source, space)  # the page's own code is what is tested
    found: Callable[[str, dict[str, str], bytes], int] = space["receive"]
    return found


def test_the_receiver_on_the_page_takes_what_is_sent_and_nothing_else(
        shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    made = shop.client.post("/api/webhooks", json={"url": f"https://{PUBLIC}/"}).json()
    shop.client.post(f"/api/jobs/{shop.submit()}/cancel")
    [letter] = Mail(shop.ledger.database, lease_s=60).claim()
    now = datetime.now(UTC)
    headers = {"webhook-id": letter.message_id, "webhook-timestamp": str(int(now.timestamp())),
               "webhook-signature": Webhook(made["secret"]).sign(letter.message_id, now, letter.body)}
    receive, body = receiver(), letter.body.encode()
    assert receive(made["secret"], headers, body.replace(b"cancelled", b"succeeded")) == 401
    assert [receive(made["secret"], headers, body) for _ in range(2)] == [200, 200]
    assert capsys.readouterr().out.count("job.cancelled") == 1


def test_every_event_and_the_schedule_are_on_the_page() -> None:
    assert all(f"`{event.value}`" in PAGE for event in HookEvent)
    assert len(WAITS_S) == 10
    assert "5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 14 h, 20 h and 24 h" in PAGE


def test_the_command_line_shows_them(shop: Shop) -> None:
    made = shop.client.post("/api/webhooks", json={"url": f"https://{PUBLIC}/", "note": "pager"}).json()
    sent = shop.client.post(f"/api/webhooks/{made['id']}/test").json()
    mail = Mail(shop.ledger.database, lease_s=60)
    mail.failed(mail.claim()[0], Attempt(at_s=1.0, latency_s=0.5, http_status=500, error="it answered 500"), wait_s=9)
    runner, where = CliRunner(), ["--set", f"data_dir={shop.settings.data_dir}"]
    listed = runner.invoke(app, ["webhooks", "list", "--json", *where])
    assert listed.exit_code == 0, listed.output
    assert made["id"] in listed.stdout
    assert made["secret"] not in listed.stdout
    logged = runner.invoke(app, ["webhooks", "log", made["id"], "--json", *where])
    assert sent["id"] in logged.stdout
    assert "it answered 500" in logged.stdout
    for verb in (["list"], ["log", made["id"]]):
        assert runner.invoke(app, ["webhooks", *verb, *where]).exit_code == 0
