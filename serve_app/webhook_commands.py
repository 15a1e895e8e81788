"""`reelray webhooks`: look at webhooks and their deliveries on this machine."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from configs.load import load_settings
from serve_app.cluster import prepare_environment

if TYPE_CHECKING:
    from workflows.durable.hooks import DeliveryRow, Hooks

webhooks_app = typer.Typer(no_args_is_help=True, help="Webhooks: where events are sent, and how that went.")
out = Console()

ProfileOption = Annotated[str, typer.Option("--profile", help="Shipped profile or a YAML file.", show_default=False)]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting.")]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON on standard output, for machines.")]


@webhooks_app.command("list")
def webhooks_list(profile: ProfileOption = "", settings_: SetOption = None, as_json: JsonOption = False) -> None:
    """List webhooks, oldest first; secrets are not shown."""
    from serve_app.service.webhooks import hook_json

    rows = _hooks(profile, settings_).hooks()
    if as_json:
        typer.echo(json.dumps([hook_json(row) for row in rows], ensure_ascii=False))
        return
    table = Table("webhook", "address", "events", "state", "note", box=None)
    for row in rows:
        table.add_row(row.id, row.url, ", ".join(row.events) or "all", row.disabled or "active", row.note)
    out.print(table if rows else "no webhooks; POST /api/webhooks registers one")


@webhooks_app.command("log")
def webhooks_log(
    webhook_id: Annotated[str, typer.Argument(metavar="ID", help="Webhook, as `reelray webhooks list` shows it.")],
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    profile: ProfileOption = "", settings_: SetOption = None, as_json: JsonOption = False,
) -> None:
    """Show a webhook's deliveries, newest first, and when the next attempt is."""
    from serve_app.service.webhooks import delivery_json

    rows = _hooks(profile, settings_).deliveries(webhook_id, limit=limit)
    if as_json:
        typer.echo(json.dumps([delivery_json(row) for row in rows], ensure_ascii=False))
        return
    table = Table("event", "type", "job", "status", "attempts", "last", "next", box=None)
    for row in rows:
        table.add_row(row.message_id, row.type, row.job_id, row.status.value, str(len(row.attempts)), _last(row),
                      time.strftime("%H:%M:%S", time.localtime(row.next_at_s)) if row.next_at_s else "")
    out.print(table if rows else "nothing was sent to it yet")


def _last(row: DeliveryRow) -> str:
    if not row.attempts:
        return ""
    last = row.attempts[-1]
    return f"{last.error or last.http_status} ({last.latency_s:.2f} s)"


def _hooks(profile: str, overrides: list[str] | None) -> Hooks:
    settings = load_settings(profile, overrides or ())
    prepare_environment(settings)
    from serve_app.workplace import open_workplace
    from workflows.durable.hooks import Hooks

    return Hooks(open_workplace(settings).ledger.database)
