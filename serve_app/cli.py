"""`reelray`: the command line.

Heavy rooms are imported inside the commands that need them: `--help` must not load torch, and ray reads its environment
while it is imported.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from configs.explain import commented_yaml
from configs.load import SettingsError, profile_names
from serve_app.batch_cli import batch_app
from serve_app.cli_parts import (
    EXIT_FAILED,
    EXIT_INPUT,
    err,
    finish,
    listed,
    out,
    print_problems,
    refuse,
    screen_of,
    settings_of,
    site_of,
    workplace_of,
)
from serve_app.cluster import prepare_environment
from serve_app.edit_cli import edit
from serve_app.keys_cli import keys_app
from serve_app.models_cli import models_app
from serve_app.options import JsonOption, ProfileOption, ServerOption, SetOption
from serve_app.upkeep_cli import backup, gc, restore
from serve_app.webhook_commands import webhooks_app
from workflows.errors import Fault, InvalidDocument, ReelrayError
from workflows.tiers import Tier
from workflows.types import FILM_STAGES, JobStatus, Stage

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown",
    help="Turn a storyboard into a film, on GPUs that Ray manages. Start with: "
         "`reelray render examples/first_film.yaml -o film.mp4`")
profile_app = typer.Typer(no_args_is_help=True, help="Settings in force.")
app.add_typer(models_app, name="models")
app.add_typer(profile_app, name="profile")
app.add_typer(batch_app, name="batch")
app.add_typer(keys_app, name="keys")
app.add_typer(webhooks_app, name="webhooks")

LEVEL_STYLES = {"ok": "green", "note": "yellow", "fail": "bold red"}
EVERY_STAGE = ",".join(FILM_STAGES)

OutputOption = Annotated[Path | None, typer.Option("-o", "--output", help="Where the film goes; for pictures, which "
                                                                          "directory.")]
StagesOption = Annotated[str, typer.Option(
    help="How far to go: `images` makes the picture of every shot, as PNG files in a directory, and no film.")]

TierOption = Annotated[Tier | None, typer.Option(
    help="`draft`: quick and less exact, to be looked at; `reelray promote` makes it final. Of the shots that do not "
         "say their own tier; default: the storyboard's.")]
ShotsOption = Annotated[str, typer.Option(help="Only these shots, e.g. s2,s5; default: all that are drafts.")]


@app.command()
def render(
    storyboard: Annotated[Path, typer.Argument(help="Storyboard (YAML, JSON) or script (Fountain, paragraphs).")],
    output: OutputOption = None, stages: StagesOption = EVERY_STAGE, tier: TierOption = None, server: ServerOption = "",
    profile: ProfileOption = "", settings_: SetOption = None, as_json: JsonOption = False,
) -> None:
    """Render a film on this machine, or on a server, with a live bar per shot.

    Finished shots are kept: stop it with Ctrl-C, or lose power, and the same command goes on where it was. Change one
    shot, and only what depends on it is rendered again. The film's path is printed last.

    With --stages images only the shots' pictures are made; the film, rendered later, finds those that it draws.

    With --tier draft every shot is made with less work, as its model's card says; look at the film, then let `reelray
    promote` render the shots that are good as final.

    With --server the server renders it, and the film is downloaded; pictures that the storyboard names are uploaded.
    Ctrl-C leaves the job running there.

    Exit codes: 0 film complete, 3 film with shots missing, 1 no film, 2 bad input, 130 stopped.
    """
    from workflows.plan import last_stage_of

    last_stage = last_stage_of(stages)
    site = site_of(server, profile, settings_)
    screen = screen_of(as_json)
    film = last_stage is Stage.COMPOSITION
    output = output or (storyboard.with_suffix(".mp4") if film else storyboard.with_name(storyboard.stem))
    if not film and output.is_file():
        refuse(f"{output} is a file, and pictures go into a directory; name another with -o")
    finish(lambda: site.render(storyboard, screen, last_stage, tier), site, lambda _: output, screen)


app.command()(edit)


@app.command()
def retry(
    job_id: Annotated[str, typer.Argument(metavar="ID", help="Job, as `reelray jobs` shows it.")],
    shots: Annotated[str, typer.Option(help="Only these shots, e.g. s2,s5; default: all that did not succeed.")] = "",
    force: Annotated[bool, typer.Option(help="New takes, also of shots that succeeded (needs --shots).")] = False,
    output: OutputOption = None, server: ServerOption = "", profile: ProfileOption = "", settings_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run failed shots of a finished job again, and what depends on them."""
    if force and not shots:
        refuse("--force needs --shots: say which shots get a new take")
    site = site_of(server, profile, settings_)
    screen = screen_of(as_json)
    finish(lambda: site.retry(job_id, listed(shots), force, screen), site,
            lambda view: output or Path(view.id if view.pictures else f"{view.id}.mp4"), screen)


@app.command()
def promote(
    job_id: Annotated[str, typer.Argument(metavar="ID", help="Job, as `reelray jobs` shows it.")],
    shots: ShotsOption = "", output: OutputOption = None, server: ServerOption = "", profile: ProfileOption = "",
    settings_: SetOption = None, as_json: JsonOption = False,
) -> None:
    """Render drafts of a finished film again as final, from their own seeds.

    Only the chosen shots, what continues them, and the film are made again; other shots stay drafts. Once every shot is
    final the film is the one that would have been rendered without --tier draft, and rendering it so finds all of it.
    """
    site = site_of(server, profile, settings_)
    screen = screen_of(as_json)
    finish(lambda: site.promote(job_id, listed(shots), screen), site,
            lambda view: output or Path(view.id if view.pictures else f"{view.id}.mp4"), screen)


@app.command()
def jobs(
    status: Annotated[str, typer.Option(help="Only jobs with this status.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    server: ServerOption = "", profile: ProfileOption = "", settings_: SetOption = None, as_json: JsonOption = False,
) -> None:
    """List jobs, newest first."""
    if status and status not in set(JobStatus):
        refuse(f"--status {status!r}: one of {', '.join(JobStatus)}")
    site = site_of(server, profile, settings_)
    lines = site.jobs(JobStatus(status) if status else None, limit)
    if as_json:
        print(json.dumps([site.job(line.id).to_json() for line in lines], ensure_ascii=False))
        return
    table = Table("job", "title", "status", "progress", "shots", "created", box=None)
    for line in lines:
        created = time.strftime("%Y-%m-%d %H:%M", time.localtime(line.created_at_s))
        table.add_row(line.id, line.title, line.status.value, f"{line.progress:.0%}", str(line.shots), created)
    out.print(table if lines else "no jobs yet; `reelray render STORYBOARD` makes one")


@app.command()
def status(
    job_id: Annotated[str, typer.Argument(metavar="ID")], server: ServerOption = "",
    profile: ProfileOption = "", settings_: SetOption = None, as_json: JsonOption = False,
) -> None:
    """Show one job: its shots, warnings and errors."""
    from serve_app.screen import PlainScreen, summary

    site = site_of(server, profile, settings_)
    view = site.job(job_id)
    if as_json:
        print(json.dumps(view.to_json(), ensure_ascii=False, indent=1))
        return
    out.print(f"{view.id}  {view.title}  [bold]{view.status.value}[/bold]  {view.progress:.0%}", highlight=False)
    PlainScreen(sys.stdout).show(view)
    print_problems(view, site)
    if view.status.is_terminal:
        out.print(summary(view), highlight=False)


@app.command()
def log(
    job_id: Annotated[str, typer.Argument(metavar="ID")],
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Keep printing until the job is over.")] = False,
    server: ServerOption = "", profile: ProfileOption = "", settings_: SetOption = None,
) -> None:
    """Print a job's log."""
    for line in site_of(server, profile, settings_).log(job_id, follow):
        print(line, flush=True)


@app.command()
def cancel(
    job_id: Annotated[str, typer.Argument(metavar="ID")], server: ServerOption = "", profile: ProfileOption = "",
    settings_: SetOption = None,
) -> None:
    """Cancel a job; a clip in the making stops at its next denoising step."""
    status = site_of(server, profile, settings_).cancel(job_id)
    out.print(f"{job_id}: {status.value}" + ("" if status.is_terminal else ", stopping"), highlight=False)


@app.command()
def serve(
    address: Annotated[str, typer.Option(help="Join the Ray cluster at this address (host:port, or `auto` on one of "
                                              "its machines); the same as --set ray.address=ADDRESS.")] = "",
    profile: ProfileOption = "", settings_: SetOption = None, as_json: JsonOption = False,
) -> None:
    """Serve films over HTTP on this machine until Ctrl-C; every open job goes on.

    It listens on 127.0.0.1:8000 and asks nobody who they are; another port: --set http.port=PORT. On another address,
    --set http.host=ADDRESS, it asks for API keys: `reelray keys create NAME` first. docs/security.md tells more.

    With --address the models run on a cluster; one of several machines needs Postgres and a store that all of them
    reach. docs/cluster.md tells more.
    """
    place = workplace_of(profile, [*(settings_ or ()), *([f"ray.address={address}"] if address else ())])
    from serve_app.serving import serve_until_stopped

    serve_until_stopped(place, screen_of(as_json, live=False))


@app.command()
def doctor(
    address: Annotated[str, typer.Option(help="Check every node of the Ray cluster there, HOST:PORT, too; default: the "
                                              "one that the settings join, if any.")] = "",
    profile: ProfileOption = "", settings_: SetOption = None, as_json: JsonOption = False,
) -> None:
    """Check this machine: versions, GPU, video tools, fonts, state, store, model files; and a cluster, node by node.

    Of each node: its versions, GPUs, store, database and clock. What fails is said with what to do; exit code 1 then.
    """
    settings = settings_of(profile, [*(settings_ or ()), *([f"ray.address={address}"] if address else [])])
    prepare_environment(settings)
    from serve_app.doctor import examine

    findings = examine(settings)
    if settings.ray.address:
        from serve_app.cluster_doctor import examine_cluster

        findings += examine_cluster(settings)
    if as_json:
        print(json.dumps([finding.to_json() for finding in findings], ensure_ascii=False, indent=1))
    else:
        table = Table(box=None, show_header=False)
        for finding in findings:
            table.add_row(Text(finding.level, style=LEVEL_STYLES[finding.level]), finding.what, finding.text)
        out.print(table)
    if any(finding.level == "fail" for finding in findings):
        raise typer.Exit(EXIT_FAILED)


app.command()(gc)
app.command()(backup)
app.command()(restore)


@profile_app.command("show")
def profile_show(profile: ProfileOption = "", settings_: SetOption = None, as_json: JsonOption = False) -> None:
    """Print the settings in force (defaults, profile, environment, --set), each with its meaning.

    What it prints is a valid profile: save it, change it, give it with --profile FILE.
    """
    settings = settings_of(profile, settings_)
    if as_json:
        print(json.dumps(settings.model_dump(mode="json")))
        return
    print(commented_yaml(settings), end="")
    err.print(f"shipped profiles: {', '.join(profile_names())}", style="dim", highlight=False)


def main() -> None:
    """Entry point: errors that reelray raises on purpose become one clear message and an exit code."""
    try:
        app()
    except InvalidDocument as error:
        refuse(str(error))
    except SettingsError as error:
        refuse(str(error))
    except ReelrayError as error:
        err.print(str(error), style="red", markup=False, highlight=False)
        raise SystemExit(EXIT_INPUT if error.fault is Fault.CALLER else EXIT_FAILED) from None
    except OSError as error:
        # A file that is named on the command line, or a disk that is full: what was rendered is kept.
        refuse(f"{error.filename}: {error.strerror}" if error.filename else str(error))
