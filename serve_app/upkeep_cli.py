"""`reelray gc`, `backup` and `restore`: looking after state and store. They need no server, and disturb none."""

from __future__ import annotations

import json
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
