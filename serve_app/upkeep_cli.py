"""`reelray gc`, `backup` and `restore`: looking after state and store. They need no server, and disturb none."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from serve_app.cli_parts import err, out, settings_of
from serve_app.options import JsonOption, ProfileOption, SetOption
from serve_app.spans import size_text, span_s
from workflows.types import Json

if TYPE_CHECKING:
    from workflows.upkeep.retention import Plan

OlderOption = Annotated[str, typer.Option(help="Only what nobody has written to for so long: 7d, 12h; at least 1h.")]
JobsOlderOption = Annotated[str, typer.Option(
    help="Forget jobs that ended so long ago first, with their logs and takes, e.g. 90d; default: none.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Really delete. Without it only what would go is shown.")]
SettleOption = Annotated[str, typer.Option(
    help="How long to wait between taking results out of sight and deleting them.")]
StoreOption = Annotated[bool, typer.Option("--store/--no-store", help="With the stored files, or the state alone.")]
NoJobsOption = Annotated[bool, typer.Option("--no-jobs", help="Collect even where the database knows no job.")]


def gc(
    older_than: OlderOption = "7d", jobs_older_than: JobsOlderOption = "", yes: YesOption = False,
    settle: SettleOption = "60s", no_jobs: NoJobsOption = False, profile: ProfileOption = "",
    settings_: SetOption = None, as_json: JsonOption = False,
) -> None:
    """Delete stored files that no job needs: of deleted jobs, unused uploads, old checkpoints, leftovers.

    Shows what would go; --yes deletes it. Servers and renders may go on meanwhile. Deleted results cost a render when
    somebody asks for them again. A store belongs to one database: files of another one's jobs would go.
    """
    from serve_app.upkeep import collection_of
    from workflows.upkeep.collect import Bounds

    bounds = Bounds(older_than_s=span_s(older_than, "--older-than"), settle_s=span_s(settle, "--settle"),
                    jobs_older_than_s=span_s(jobs_older_than, "--jobs-older-than") if jobs_older_than else None,
                    allow_no_jobs=no_jobs)
    with collection_of(settings_of(profile, settings_), bounds) as collection:
        if yes:
            done = collection.run()
            _show(done.removed, done.jobs, is_done=True, pardoned=done.pardoned, as_json=as_json)
        else:
            survey = collection.survey()
            _show(survey.plan, len(survey.jobs), is_done=False, pardoned=len(survey.plan.pardoned), as_json=as_json)


def backup(
    place: Annotated[Path, typer.Argument(help="Directory, the same one every time; or one file, NAME.tar.")],
    store: StoreOption = True, profile: ProfileOption = "", settings_: SetOption = None, as_json: JsonOption = False,
) -> None:
    """Copy state and store away, while everything runs.

    To a directory that has a backup already only new files are copied. It holds the database's secrets (webhooks'
    signing keys; of API keys only digests).
    """
    from serve_app.upkeep import back_up_to

    done = back_up_to(place, settings_of(profile, settings_), with_store=store)
    made, rows = done.manifest, sum(done.manifest.rows.values())
    if as_json:
        print(json.dumps({"place": str(place), "revision": made.revision, "rows": rows, "files": made.object_count,
                          "bytes": made.object_bytes, "copied": done.copied, "copied_bytes": done.copied_bytes,
                          "missing": made.missing}))
    else:
        out.print(f"{place}: {made.rows['job']} jobs ({rows} rows), {made.object_count} files "
                  f"({size_text(made.object_bytes)}), of which {done.copied} are new", highlight=False, soft_wrap=True)
    if made.missing:
        err.print(f"{len(made.missing)} results were missing in the store, or damaged, e.g. {made.missing[0]}; jobs "
                  "that need them make them again", style="yellow", highlight=False, soft_wrap=True)


def restore(
    place: Annotated[Path, typer.Argument(help="What `reelray backup` made.")],
    store: StoreOption = True, profile: ProfileOption = "", settings_: SetOption = None, as_json: JsonOption = False,
) -> None:
    """Bring a backup back, into a new database (SQLite or Postgres) and a new store; open jobs go on there.

    What the settings name must be empty. Digests are checked; a backup of an older reelray is migrated.
    """
    from serve_app.upkeep import restore_from

    done = restore_from(place, settings_of(profile, settings_), with_store=store)
    made = done.manifest
    if as_json:
        print(json.dumps({"rows": sum(made.rows.values()), "jobs": made.rows["job"], "revision": made.revision,
                          "files": made.object_count if store else 0, "written": done.written}))
        return
    made_at = time.strftime("%Y-%m-%d %H:%M", time.localtime(made.made_at_s))
    out.print(f"restored {made.rows['job']} jobs and {made.object_count if store else 0} files as of {made_at}",
              highlight=False)


def _show(plan: Plan, jobs: int, *, is_done: bool, pardoned: int, as_json: bool) -> None:
    goes = plan.goes()
    count, size_bytes = (sum(pair[at] for pair in goes.values()) for at in (0, 1))
    if as_json:
        kinds: dict[str, Json] = {kind.value: {"count": one, "bytes": size} for kind, (one, size) in goes.items()}
        print(json.dumps({"deleted": is_done, "jobs": jobs, "count": count, "bytes": size_bytes, "kinds": kinds,
                          "kept": plan.kept, "pardoned": pardoned, "strange": plan.strange}))
        return
    table = Table("", "count", "size", box=None)
    for kind, (one, size) in goes.items():
        table.add_row(kind.value, str(one), size_text(size))
    if goes:
        out.print(table)
    verb = "deleted" if is_done else "would go"
    out.print(f"{jobs} jobs and {count} artifacts and files, {size_text(size_bytes)}: {verb}; {plan.kept} artifacts "
              "stay", highlight=False, soft_wrap=True)
    if pardoned:
        out.print(f"{pardoned} artifacts came into use meanwhile, and stay", highlight=False)
    if plan.strange:
        err.print(f"{plan.strange} files in the store are none of reelray's; they are left alone", style="yellow",
                  highlight=False)
    if not is_done and (count or jobs):
        out.print("nothing was deleted; --yes does it", style="dim", highlight=False)
