"""`reelray keys`: who may use the HTTP service. Writes the database that the service reads; no server need run."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from configs.load import load_settings
from serve_app.options import JsonOption, ProfileOption, SetOption
from workflows.durable.database import Database
from workflows.durable.keys import ApiKey, Keys, Role

keys_app = typer.Typer(no_args_is_help=True, help="API keys: who may use the HTTP service, and how much.")
out = Console()
err = Console(stderr=True)

KeyArgument = Annotated[str, typer.Argument(metavar="ID", help="Key, as `reelray keys list` shows it.")]
RateOption = Annotated[int | None, typer.Option(
    "--requests-per-min", min=1, help="Requests per minute; default: http.requests_per_min.", show_default=False)]
BudgetOption = Annotated[float | None, typer.Option(
    "--gpu-seconds", min=0, help="GPU-seconds that its jobs may use in all; `inf`: no limit.", show_default=False)]


@keys_app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is; shown in lists and messages.")],
    role: Annotated[Role, typer.Option(help="admin: everything; user: films, and its own jobs only; read: looks at "
                                            "every job, changes nothing.")] = Role.USER,
    requests_per_min: RateOption = None, gpu_seconds: BudgetOption = None,
    profile: ProfileOption = "", settings_: SetOption = None, as_json: JsonOption = False,
) -> None:
    """Make a key and print it. It is shown this once; only its digest is kept."""
    issued = _keys(profile, settings_).create(name, role, requests_per_min=requests_per_min, gpu_budget_s=gpu_seconds)
    if as_json:
        print(json.dumps({**_shown(issued.key, 0.0), "key": issued.token}))
        return
    err.print(f"key {issued.key.id} for {name}, role {role.value}; it is not shown again:", markup=False,
              highlight=False)
    print(issued.token)


@keys_app.command("list")
def list_(profile: ProfileOption = "", settings_: SetOption = None, as_json: JsonOption = False) -> None:
    """List keys, without their secrets, and what their jobs have used."""
    keys = _keys(profile, settings_)
    spent = keys.spent_s()
    found = [(key, spent.get(key.id, 0.0)) for key in keys.all()]
    if as_json:
        print(json.dumps([_shown(key, used_s) for key, used_s in found]))
        return
    table = Table("id", "name", "role", "requests/min", "GPU-seconds", "created", "", box=None)
    for key, used_s in found:
        budget = "no limit" if key.gpu_budget_s is None else f"{key.gpu_budget_s:g}"
        table.add_row(key.id, key.name, key.role.value, str(key.requests_per_min or "default"),
                      f"{used_s:.1f} of {budget}", time.strftime("%Y-%m-%d", time.localtime(key.created_at_s)),
                      "revoked" if key.revoked_at_s else "")
    out.print(table)


@keys_app.command("change")
def change(key_id: KeyArgument, requests_per_min: RateOption = None, gpu_seconds: BudgetOption = None,
           profile: ProfileOption = "", settings_: SetOption = None) -> None:
    """Give a key other limits. A job that stopped for its budget goes on with `reelray retry` once there is more."""
    key = _keys(profile, settings_).change(key_id, requests_per_min=requests_per_min, gpu_budget_s=gpu_seconds)
    budget = "no limit" if key.gpu_budget_s is None else f"{key.gpu_budget_s:g}"
    out.print(f"{key.id} {key.name}: {key.requests_per_min or 'default'} requests per minute, GPU-seconds: {budget}",
              markup=False, highlight=False)


@keys_app.command("revoke")
def revoke(key_id: KeyArgument, profile: ProfileOption = "", settings_: SetOption = None) -> None:
    """End a key. Servers refuse it a moment later; its jobs go on, `reelray cancel` stops them."""
    key = _keys(profile, settings_).revoke(key_id)
    out.print(f"{key.id} {key.name}: revoked", markup=False, highlight=False)


def _keys(profile: str, overrides: list[str] | None) -> Keys:
    settings = load_settings(profile, overrides or ())
    settings.data_dir.expanduser().mkdir(parents=True, exist_ok=True)
    return Keys(Database(settings.database))


def _shown(key: ApiKey, used_s: float) -> dict[str, Any]:
    return {"id": key.id, "name": key.name, "role": key.role.value, "requests_per_min": key.requests_per_min,
            "gpu_budget_s": key.gpu_budget_s, "gpu_used_s": round(used_s, 3), "created_at": key.created_at_s,
            "revoked_at": key.revoked_at_s}
