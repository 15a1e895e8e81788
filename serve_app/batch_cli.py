"""`reelray batch`: many storyboards as one unit. Heavy rooms are imported by the commands that need them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from serve_app.cli_parts import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_PARTIAL,
    err,
    interrupted,
    out,
    refuse,
    require_no_settings,
    workplace_of,
)
from serve_app.options import JsonOption, ProfileOption, ServerOption, SetOption
from workflows.tiers import Tier
from workflows.types import FILM_STAGES, JobStatus, Stage

if TYPE_CHECKING:
    from typer._click.core import Context  # what TyperGroup's own methods are written for

    from serve_app.batch_screen import BatchScreen
    from serve_app.batch_site import BatchSite
    from serve_app.service.batch_view import BatchView, FilmView

FILMS = frozenset({JobStatus.SUCCEEDED, JobStatus.PARTIAL})


class FilesFirst(TyperGroup):
    """A group whose first word may be a file: then `run` is meant."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Put `run` before what is neither a command nor a call for help."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


batch_app = typer.Typer(
    cls=FilesFirst, no_args_is_help=True, rich_markup_mode="markdown",
    help="Many films as one unit: `reelray batch FILES...` or `reelray batch DIR`, and the verbs on what that made.")

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="Batch, as `reelray batch list` shows it.")]
OutputOption = Annotated[Path | None, typer.Option(
    "-o", "--output", help="Directory of the films; default: beside the files, or a directory called ID.")]
ConcurrencyOption = Annotated[int | None, typer.Option(
    "--concurrency", min=0, help="Nodes of the whole batch at the same time; 0: no limit.", show_default=False)]
BudgetOption = Annotated[float | None, typer.Option(
    "--gpu-seconds", min=0, help="GPU-seconds for all of it, then it is paused; `inf`: no limit.", show_default=False)]
PriceOption = Annotated[float, typer.Option("--price", min=0, help="What an hour of one GPU costs.")]


@batch_app.command("run")
def run(
    files: Annotated[list[Path], typer.Argument(help="Storyboards and scripts, or directories of storyboards.")],
    output: OutputOption = None,
    name: Annotated[str, typer.Option(help="What the batch is called; default: after the files.")] = "",
    concurrency: ConcurrencyOption = None, gpu_seconds: BudgetOption = None,
    stages: Annotated[str, typer.Option(help="`images`: only the picture of every shot.")] = ",".join(FILM_STAGES),
    tier: Annotated[Tier | None, typer.Option(help="`draft`: quick and less exact.")] = None,
    server: ServerOption = "", profile: ProfileOption = "", settings_: SetOption = None, as_json: JsonOption = False,
) -> None:
    """Render all of them, here or on a server, behind whatever is interactive. `run` may be left out.

    Every file is checked before anything runs; one that cannot be rendered refuses all, with every problem of every
    file. The same command again joins the batch: nothing is rendered twice, a file that changed is a new job, and what
    failed runs again. Ctrl-C stops it here (on a server it goes on); the same command goes on.

    Exit codes: 0 all complete, 3 some films or shots missing, 1 no film, 2 bad input, 130 stopped or paused.
    """
    from serve_app.batch_files import named_files
    from serve_app.batch_site import Wish
    from workflows.plan import last_stage_of

    last_stage = last_stage_of(stages)
    named = named_files(files, name=name, last_stage=last_stage, tier=tier)
    site = _site(server, profile, settings_)
    taken = site.submit(Wish(named=named, limits=_limits(concurrency, gpu_seconds), last_stage=last_stage, tier=tier))
    screen = _screen(as_json)
    for file, texts in taken.warnings.items():
        for text in texts:
            screen.note(f"note: {file}: {text}")
    again = site.retry(taken.view.id) if any(
        count and status.is_terminal and status is not JobStatus.SUCCEEDED for status, count in taken.view.jobs.items()
    ) else taken.view
    known = len(named.files) - len(taken.new)
    changed = f", {len(taken.changed)} of them changed" if taken.changed else ""
    screen.note(f"batch {again.id}: {len(taken.new)} new jobs{changed}, {known} files were there already")
    beside = {} if output else {one.file: one.path for one in named.files}
    _see_through(site, again.id, screen, _Places(site, output or Path(again.id), last_stage is Stage.IMAGES, beside))


@batch_app.command("list")
def list_(
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20, server: ServerOption = "", profile: ProfileOption = "",
    settings_: SetOption = None, as_json: JsonOption = False,
) -> None:
    """List batches, newest first."""
    views = _site(server, profile, settings_).listed(limit)
    if as_json:
        print(json.dumps([view.to_json() for view in views], ensure_ascii=False))
        return
    from serve_app.batch_screen import counted

    table = Table("batch", "name", "status", "films", "GPU-seconds", "created", box=None)
    for view in views:
        table.add_row(view.id, Text(view.name), view.status.value, counted(view), _used(view),
                      time.strftime("%Y-%m-%d %H:%M", time.localtime(view.created_at_s)))
    out.print(table if views else "no batches yet; `reelray batch FILES...` makes one")


@batch_app.command("status")
def status(batch_id: IdArgument, server: ServerOption = "", profile: ProfileOption = "", settings_: SetOption = None,
           as_json: JsonOption = False) -> None:
    """Show one batch: how far it is, how long it takes yet, and every film."""
    _tell(_site(server, profile, settings_).view(batch_id), as_json, films=True)


@batch_app.command("pause")
def pause(batch_id: IdArgument, server: ServerOption = "", profile: ProfileOption = "", settings_: SetOption = None,
          as_json: JsonOption = False) -> None:
    """Start no further node of it; what runs finishes. It stays paused until it is resumed, whatever restarts."""
    _tell(_site(server, profile, settings_).pause(batch_id), as_json)


@batch_app.command("resume")
def resume(batch_id: IdArgument, output: OutputOption = None, server: ServerOption = "", profile: ProfileOption = "",
           settings_: SetOption = None, as_json: JsonOption = False) -> None:
    """Let a paused batch go on, and see it through as `run` does."""
    site = _site(server, profile, settings_)
    site.resume(batch_id)
    _see_through(site, batch_id, _screen(as_json), _Places(site, output or Path(batch_id)))


@batch_app.command("retry")
def retry(batch_id: IdArgument, output: OutputOption = None, server: ServerOption = "", profile: ProfileOption = "",
          settings_: SetOption = None, as_json: JsonOption = False) -> None:
    """Run again all that failed or was cancelled, and see the batch through as `run` does."""
    site = _site(server, profile, settings_)
    site.retry(batch_id)
    _see_through(site, batch_id, _screen(as_json), _Places(site, output or Path(batch_id)))


@batch_app.command("change")
def change(batch_id: IdArgument, concurrency: ConcurrencyOption = None, gpu_seconds: BudgetOption = None,
           server: ServerOption = "", profile: ProfileOption = "", settings_: SetOption = None,
           as_json: JsonOption = False) -> None:
    """Give it other limits. A batch that stopped for its GPU-seconds goes on when it has more."""
    _tell(_site(server, profile, settings_).change(batch_id, _limits(concurrency, gpu_seconds)), as_json)


@batch_app.command("cancel")
def cancel(batch_id: IdArgument, server: ServerOption = "", profile: ProfileOption = "", settings_: SetOption = None,
           as_json: JsonOption = False) -> None:
    """End all that is not over; clips in the making stop at their next denoising step."""
    _tell(_site(server, profile, settings_).cancel(batch_id), as_json)


@batch_app.command("delete")
def delete(batch_id: IdArgument, server: ServerOption = "", profile: ProfileOption = "", settings_: SetOption = None,
           ) -> None:
    """Forget a batch that is over, with its jobs; files stay in the store."""
    _site(server, profile, settings_).delete(batch_id)
    out.print(f"{batch_id}: forgotten", highlight=False)


@batch_app.command("report")
def report(
    batch_id: IdArgument, price: PriceOption = 0.0, as_csv: Annotated[bool, typer.Option(
        "--csv", help="A line per shot, for spreadsheets.")] = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Into this file.")] = None,
    server: ServerOption = "", profile: ProfileOption = "", settings_: SetOption = None, as_json: JsonOption = False,
) -> None:
    """What it has cost, shot by shot: GPU-seconds useful, wasted, saved, carried; attempts, models, seconds, cost."""
    from serve_app.service.batch_report import csv_of

    if as_csv and as_json:
        refuse("--csv and --json do not go together")
    found = _site(server, profile, settings_).report(batch_id, price)
    rows, total = found["rows"], found["total"]
    assert isinstance(rows, list)
    assert isinstance(total, dict)
    if output is not None or as_csv or as_json:
        is_csv = as_csv or (output is not None and output.suffix == ".csv" and not as_json)
        text = csv_of([row for row in rows if isinstance(row, dict)]) if is_csv else (
            json.dumps(found, ensure_ascii=False, indent=1) + "\n")
        if output is None:
            print(text, end="")
        else:
            output.write_text(text, encoding="utf-8", newline="")
            print(output)
        return
    columns = {"file": "file", "shot": "shot", "status": "status", "attempts": "attempts", "gpu_seconds_useful":
               "useful s", "gpu_seconds_wasted": "wasted s", "gpu_seconds_saved": "saved s", "gpu_seconds_carried":
               "carried s", "cost": "cost"}
    table = Table(*columns.values(), box=None)
    for row in (*rows, {"file": "total", **total}):
        assert isinstance(row, dict)
        table.add_row(*(Text(str(row.get(name, ""))) for name in columns))
    out.print(table)


class _Places:
    """Where the films of a batch go; each is brought there once, as soon as it is over."""

    def __init__(self, site: BatchSite, output: Path, pictures: bool | None = None,
                 beside: Mapping[str, Path] | None = None) -> None:
        """`pictures`: None: whatever each job made; `beside`: files whose films go beside them."""
        self._site = site
        self._output = output
        self._pictures = pictures
        self._beside = beside or {}
        self.paths: dict[str, str] = {}

    def deliver(self, film: FilmView) -> None:
        """Bring one film there, if it is over and there is one."""
        from serve_app.batch_site import film_path

        if film.status not in FILMS or film.file in self.paths:
            return
        view = self._site.films.job(film.job_id)
        is_pictures = bool(view.pictures) if self._pictures is None else self._pictures
        path = self._site.films.deliver(view, film_path(film, self._output, is_pictures, self._beside.get(film.file)))
        if path is not None:
            self.paths[film.file] = str(path)


def _see_through(site: BatchSite, batch_id: str, screen: BatchScreen, places: _Places) -> None:
    """Show a batch until it is over or paused, bring its films home, and say how it ended."""
    from serve_app.batch_screen import JsonBatch
    from serve_app.site import Interrupted

    def show(view: BatchView) -> None:
        screen.show(view)
        for film in view.films:
            places.deliver(film)

    try:
        view = site.follow(batch_id, show, screen.note)
    except (Interrupted, KeyboardInterrupt) as stopped:
        screen.close()
        raise interrupted(stopped) from None
    finally:
        screen.close()
    if isinstance(screen, JsonBatch):
        screen.result(view, places.paths)
    else:
        _conclude(view, site.films.option)
        for path in places.paths.values():
            print(path)
    if not view.status.is_terminal:
        raise typer.Exit(EXIT_INTERRUPTED)
    if view.status.value != "succeeded":
        raise typer.Exit(EXIT_PARTIAL if places.paths else EXIT_FAILED)


def _conclude(view: BatchView, option: str) -> None:
    from serve_app.batch_screen import counted, left, line_of

    for film in view.films:
        if film.status.is_terminal and film.status is not JobStatus.SUCCEEDED:
            err.print(line_of(film), style="red", markup=False, highlight=False, soft_wrap=True)
    reason = f": {left(view)}" if not view.status.is_terminal else ""
    out.print(f"{view.status.value}{reason}: {counted(view)}, {_used(view)} GPU-seconds", highlight=False)
    if not view.status.is_terminal:
        more = f"`reelray batch change {view.id} --gpu-seconds MORE{option}`, then " if view.held == "budget" else ""
        err.print(f"{more}`reelray batch resume {view.id}{option}` goes on", style="dim", highlight=False,
                  soft_wrap=True)
    elif view.status.value != "succeeded":
        err.print(f"`reelray batch retry {view.id}{option}` renders what is missing", style="dim", highlight=False,
                  soft_wrap=True)


def _tell(view: BatchView, as_json: bool, *, films: bool = False) -> None:
    from serve_app.batch_screen import counted, left, line_of

    if as_json:
        print(json.dumps(view.to_json(), ensure_ascii=False, indent=1))
        return
    told = (counted(view), f"{_used(view)} GPU-seconds", left(view))
    out.print(f"{view.id}  {escape(view.name)}  [bold]{view.status.value}[/bold]  {view.progress:.0%}  "
              f"{' · '.join(part for part in told if part)}", highlight=False)
    for film in view.films if films else ():
        out.print(f"{film.progress:6.1%}  {line_of(film)}  ({film.job_id})", markup=False, highlight=False,
                  soft_wrap=True)


def _used(view: BatchView) -> str:
    budget = "" if view.gpu_budget_s is None else f" of {view.gpu_budget_s:g}"
    return f"{view.gpu_used_s:.1f}{budget}"


def _limits(concurrency: int | None, gpu_seconds: float | None) -> Any:
    from workflows.durable.batches import BatchLimits

    return BatchLimits(concurrency=concurrency, gpu_budget_s=gpu_seconds)


def _site(server: str, profile: str, overrides: list[str] | None) -> BatchSite:
    """Where this command's batches are."""
    if server:
        require_no_settings(server, profile, overrides)
        from serve_app.batch_site import RemoteBatches
        from serve_app.remote import open_remote

        return RemoteBatches(server, open_remote(server))
    from serve_app.batch_site import LocalBatches

    return LocalBatches(workplace_of(profile, overrides))


def _screen(as_json: bool) -> BatchScreen:
    from serve_app.batch_screen import JsonBatch, LiveBatch, PlainBatch

    if as_json:
        return JsonBatch(sys.stdout)
    return LiveBatch(out) if out.is_terminal else PlainBatch(sys.stdout)
