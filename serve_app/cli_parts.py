"""What commands of the command line share: where their jobs are, what shows them, how they end."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer
from rich.console import Console

from configs.load import SERVER_VARIABLE, load_settings
from configs.settings import Settings
from serve_app.cluster import prepare_environment
from workflows.types import JobStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from serve_app.screen import Screen
    from serve_app.site import Site
    from serve_app.workplace import Workplace
    from workflows.status import JobView

out = Console()
err = Console(stderr=True)
EXIT_FAILED, EXIT_INPUT, EXIT_PARTIAL, EXIT_INTERRUPTED = 1, 2, 3, 130


def settings_of(profile: str, overrides: list[str] | None) -> Settings:
    """The settings in force. Raises SettingsError."""
    return load_settings(profile, overrides or ())


def workplace_of(profile: str, overrides: list[str] | None) -> Workplace:
    """State and store of this machine."""
    settings = settings_of(profile, overrides)
    prepare_environment(settings)
    from serve_app.workplace import open_workplace

    return open_workplace(settings)


def require_no_settings(server: str, profile: str, overrides: list[str] | None) -> None:
    """Refuse settings beside a server."""
    given = " and ".join(name for name, value in (("--profile", profile), ("--set", overrides)) if value)
    if given:
        refuse(f"{given} and --server {server} do not go together: the server has its own settings; --server \"\" "
               f"is this machine, whatever ${SERVER_VARIABLE} says")


def site_of(server: str, profile: str, overrides: list[str] | None) -> Site:
    """Where this command's jobs are."""
    if server:
        require_no_settings(server, profile, overrides)
        from serve_app.remote import open_remote

        return open_remote(server)
    from serve_app.site import LocalSite

    return LocalSite(workplace_of(profile, overrides))


def screen_of(as_json: bool, *, live: bool = True) -> Screen:
    """What shows the job while it runs."""
    from serve_app.screen import JsonScreen, LiveScreen, PlainScreen

    if as_json:
        return JsonScreen(sys.stdout)
    return LiveScreen(out) if live and out.is_terminal else PlainScreen(sys.stdout)


def listed(shots: str) -> list[str]:
    """`s2,s5` as a list."""
    return [shot.strip() for shot in shots.split(",") if shot.strip()]


def finish(run: Callable[[], JobView], site: Site, output: Callable[[JobView], Path], screen: Screen) -> None:
    """See a job through, say how it ended, print the path of what it made last."""
    from serve_app.screen import JsonScreen, summary
    from serve_app.site import Interrupted

    try:
        view = run()
        path = site.deliver(view, output(view))
    except (Interrupted, KeyboardInterrupt) as stopped:
        screen.close()
        raise interrupted(stopped) from None
    finally:
        screen.close()
    if isinstance(screen, JsonScreen):
        screen.result(view, path)
    else:
        print_problems(view, site)
        out.print(f"{view.status.value}: {summary(view)}", highlight=False)
        if path is not None:
            print(path)
    if view.status is not JobStatus.SUCCEEDED:
        raise typer.Exit(EXIT_PARTIAL if path else EXIT_FAILED)


def interrupted(stopped: BaseException) -> typer.Exit:
    """How a command ends after Ctrl-C, with what became of its work said."""
    err.print(str(stopped) or "stopped; the same command goes on", style="yellow", markup=False, highlight=False,
              soft_wrap=True)
    return typer.Exit(EXIT_INTERRUPTED)


def print_problems(view: JobView, site: Site) -> None:
    """What was done otherwise than asked, what failed, and what can be done about it."""
    for warning in view.warnings:
        err.print(f"note: {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    for name, problem in view.errors.items():
        err.print(f"{name}: {problem}", style="red", markup=False, highlight=False, soft_wrap=True)
    if view.errors and view.status.is_terminal:
        which = view.id + site.option
        err.print(f"`reelray retry {which}` renders what is missing; `reelray log {which}` tells more", style="dim",
                  highlight=False, soft_wrap=True)
    if view.drafts and view.status in {JobStatus.SUCCEEDED, JobStatus.PARTIAL}:
        err.print(f"{len(view.drafts)} of {len(view.shots)} shots are drafts; `reelray promote {view.id}{site.option}` "
                  "makes them final", style="dim", highlight=False, soft_wrap=True)


def refuse(problem: str) -> NoReturn:
    """End the command: its input is wrong."""
    err.print(problem, style="red", markup=False, highlight=False, soft_wrap=True)
    raise SystemExit(EXIT_INPUT)
