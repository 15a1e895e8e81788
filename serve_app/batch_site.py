"""Where the batches of a command are: on this machine, or on a server. Commands know only this.

Ray is loaded by what runs something here, not by what looks.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from configs.load import cards_in_use, casting, load_cards
from serve_app.batch_files import Named
from serve_app.client import ApiError, Client
from serve_app.director import lane_capacity
from serve_app.gpus import with_gpu_memory
from serve_app.remote import PATIENCE_S, RemoteSite, in_our_words
from serve_app.service.batch_view import BatchView, FilmView
from serve_app.service.batches import BatchDesk, in_batch
from serve_app.service.forecast import Forecast
from serve_app.site import Interrupted, LocalSite, Site, ctrl_c
from serve_app.submit import FilmPlanner, slug_of
from serve_app.workplace import Workplace
from workflows.durable.batch_rules import BatchStatus
from workflows.durable.batches import BatchLimits, NewBatch, NewFile, batch_id_of
from workflows.durable.overview import Overview
from workflows.errors import InvalidDocument, Problem
from workflows.source import decode_text
from workflows.tiers import Tier
from workflows.types import Json, Stage

LOOK_S = 0.5
PAGE = 200
STOPPED = "stopped; finished shots are kept, the same command goes on"

Show = Callable[[BatchView], None]
Note = Callable[[str], None]
"""Takes a line on what is being started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a batch command asks for."""

    named: Named
    limits: BatchLimits = field(default_factory=BatchLimits)
    last_stage: Stage = Stage.COMPOSITION
    tier: Tier | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A batch that was made or joined."""

    view: BatchView
    new: tuple[str, ...]
    changed: tuple[str, ...]
    warnings: Mapping[str, tuple[str, ...]]
    """By file."""


class BatchSite(Protocol):
    """Makes batches, and knows them. Raises ReelrayError."""

    @property
    def films(self) -> Site:
        """Where their jobs are."""

    def submit(self, wish: Wish) -> Taken:
        """Take every file, or refuse all of them with everything that is wrong."""

    def follow(self, batch_id: str, show: Show, note: Note) -> BatchView:
        """See a batch through until it is over, or paused and quiet. Raises Interrupted on Ctrl-C."""

    def view(self, batch_id: str) -> BatchView:
        """One batch as it is."""

    def listed(self, limit: int) -> list[BatchView]:
        """Batches, newest first, without their films."""

    def pause(self, batch_id: str) -> BatchView:
        """Start no further node."""

    def resume(self, batch_id: str) -> BatchView:
        """Let it go on."""

    def change(self, batch_id: str, limits: BatchLimits) -> BatchView:
        """Give it other limits."""

    def cancel(self, batch_id: str) -> BatchView:
        """End what is not over."""

    def retry(self, batch_id: str) -> BatchView:
        """Open what did not succeed."""

    def delete(self, batch_id: str) -> None:
        """Forget it and its jobs."""

    def report(self, batch_id: str, price_per_gpu_hour: float) -> Mapping[str, Json]:
        """What it has cost, as the report's JSON."""


def is_quiet(view: BatchView) -> bool:
    """Nothing more will happen to it by itself."""
    return view.status.is_terminal or (view.status is BatchStatus.PAUSED and not view.running_nodes)


class LocalBatches:
    """This machine: the database and the store that the settings name."""

    def __init__(self, place: Workplace) -> None:
        """Raises SettingsError for the cards."""
        self._place = place
        self.films: Site = LocalSite(place)
        slots = lane_capacity(place.settings, casting(place.settings, load_cards(place.settings)))
        self._desk = BatchDesk(place.ledger, Forecast(Overview(place.ledger.database), slots))

    def submit(self, wish: Wish) -> Taken:
        """Planned with what this machine's GPUs hold."""
        planner = FilmPlanner(with_gpu_memory(self._place.settings), self._place.store)
        named = wish.named
        batch_id = batch_id_of(named.name, "", slug_of(named.name))
        files: list[NewFile] = []
        problems: list[Problem] = []
        warnings: dict[str, tuple[str, ...]] = {}
        for one in named.files:
            try:
                planned = planner.plan(one.path, last_stage=wish.last_stage, tier=wish.tier)
            except InvalidDocument as error:
                problems += [replace(problem, file=one.file) for problem in error.problems]
                continue
            files.append(in_batch(batch_id, one.file, planned.new))
            if planned.warnings:
                warnings[one.file] = planned.warnings
        if problems:
            raise InvalidDocument(problems=tuple(problems))
        done = self._desk.rows.submit(NewBatch(id=batch_id, name=named.name, limits=wish.limits, files=tuple(files)))
        return Taken(view=self.view(batch_id), new=done.new, changed=done.changed, warnings=warnings)

    def follow(self, batch_id: str, show: Show, note: Note) -> BatchView:
        """Embedded: Ray and the models are started for it, unless there is nothing to do."""
        from serve_app.session import Session

        view = self.view(batch_id)
        show(view)
        if view.status.is_terminal or view.status is BatchStatus.PAUSED:
            return view
        names = ", ".join(card.name for card in cards_in_use(self._place.settings))
        note(f"starting Ray and loading {names} ...")
        session = Session(self._place.settings, only=[film.job_id for film in view.films])
        try:
            if session.dashboard:
                note(f"Ray dashboard: http://{session.dashboard}")
            for line in session.shares:
                note(line)
            return asyncio.run(self._follow(batch_id, show))
        finally:
            session.close()

    async def _follow(self, batch_id: str, show: Show) -> BatchView:
        with ctrl_c() as stop:
            while not stop.is_set():
                view = await asyncio.to_thread(self.view, batch_id)
                show(view)
                if is_quiet(view):
                    return view
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), LOOK_S)
        raise Interrupted(STOPPED)

    def view(self, batch_id: str) -> BatchView:
        """From the database; steps are not in it."""
        return self._desk.view(batch_id)

    def listed(self, limit: int) -> list[BatchView]:
        """From the database."""
        return self._desk.listed(limit)

    def pause(self, batch_id: str) -> BatchView:
        """A command that renders it hears of it."""
        self._desk.rows.pause(batch_id)
        return self.view(batch_id)

    def resume(self, batch_id: str) -> BatchView:
        """In the database; who follows it renders."""
        self._desk.rows.resume(batch_id)
        return self.view(batch_id)

    def change(self, batch_id: str, limits: BatchLimits) -> BatchView:
        """In the database."""
        self._desk.rows.change(batch_id, limits)
        return self.view(batch_id)

    def cancel(self, batch_id: str) -> BatchView:
        """A command that renders it hears of it."""
        self._desk.rows.cancel(batch_id)
        return self.view(batch_id)

    def retry(self, batch_id: str) -> BatchView:
        """In the database; who follows it renders."""
        self._desk.rows.retry(batch_id)
        return self.view(batch_id)

    def delete(self, batch_id: str) -> None:
        """From the database."""
        self._desk.rows.delete(batch_id)

    def report(self, batch_id: str, price_per_gpu_hour: float) -> Mapping[str, Json]:
        """From the database."""
        return self._desk.report(batch_id, price_per_gpu_hour).to_json()


class RemoteBatches:
    """A server; the batch goes on there whatever becomes of this process."""

    def __init__(self, server: str, site: RemoteSite) -> None:
        """`site`: the same server, greeted."""
        self.films: Site = site
        self._server = server.rstrip("/")
        self._option = site.option
        self._client = Client(self._server)
        self._patient = Client(self._server, patience_s=PATIENCE_S)

    def submit(self, wish: Wish) -> Taken:
        """Pictures that storyboards name are uploaded first."""
        with in_our_words(self._server):
            made = self._client.ask("POST", "/api/batches", {
                "name": wish.named.name, "films": self._films(wish.named), **_limits(wish.limits),
                **({} if wish.last_stage is Stage.COMPOSITION else {"stages": f"{Stage.STORY},{wish.last_stage}"}),
                **({"tier": wish.tier.value} if wish.tier else {})}, again=True)
        return Taken(view=BatchView.from_json(made), new=tuple(made["new"]), changed=tuple(made["changed"]),
                     warnings={file: tuple(texts) for file, texts in made["warnings"].items()})

    def follow(self, batch_id: str, show: Show, note: Note) -> BatchView:
        """Asked every half second; a server that restarts meanwhile is waited for."""
        try:
            while True:
                with in_our_words(self._server):
                    view = BatchView.from_json(self._patient.ask("GET", _path(batch_id), again=True))
                show(view)
                if is_quiet(view):
                    return view
                time.sleep(LOOK_S)
        except KeyboardInterrupt:
            raise Interrupted(f"batch {batch_id} goes on at {self._server}; the same command joins it, `reelray batch "
                              f"cancel {batch_id}{self._option}` ends it") from None

    def view(self, batch_id: str) -> BatchView:
        """As the server has it."""
        return self._ask("GET", _path(batch_id))

    def listed(self, limit: int) -> list[BatchView]:
        """Those that the key may see."""
        found: list[dict[str, Any]] = []
        cursor = ""
        with in_our_words(self._server):
            while len(found) < limit:
                page = self._client.ask("GET", "/api/batches", again=True, params={
                    "limit": str(min(limit - len(found), PAGE)), **({"cursor": cursor} if cursor else {})})
                found += page["batches"]
                cursor = page["next_cursor"]
                if not cursor:
                    break
        return [BatchView.from_json({**one, "progress": 0.0, "eta": None, "running_nodes": 0, "films": []})
                for one in found]

    def pause(self, batch_id: str) -> BatchView:
        """On the server."""
        return self._ask("POST", f"{_path(batch_id)}/pause")

    def resume(self, batch_id: str) -> BatchView:
        """On the server."""
        return self._ask("POST", f"{_path(batch_id)}/resume")

    def change(self, batch_id: str, limits: BatchLimits) -> BatchView:
        """On the server."""
        return self._ask("PATCH", _path(batch_id), _limits(limits))

    def cancel(self, batch_id: str) -> BatchView:
        """On the server."""
        return self._ask("POST", f"{_path(batch_id)}/cancel")

    def retry(self, batch_id: str) -> BatchView:
        """On the server."""
        return self._ask("POST", f"{_path(batch_id)}/retry")

    def delete(self, batch_id: str) -> None:
        """On the server."""
        with in_our_words(self._server):
            self._client.ask("DELETE", _path(batch_id))

    def report(self, batch_id: str, price_per_gpu_hour: float) -> Mapping[str, Json]:
        """From the server."""
        with in_our_words(self._server):
            return self._client.ask("GET", f"{_path(batch_id)}/report", again=True,
                                    params={"price_per_gpu_hour": repr(price_per_gpu_hour)})

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> BatchView:
        # Each of these may be sent twice: the second time it changes nothing.
        with in_our_words(self._server):
            return BatchView.from_json(self._client.ask(method, path, body, again=True))

    def _films(self, named: Named) -> list[dict[str, str]]:
        films: list[dict[str, str]] = []
        problems: list[Problem] = []
        for one in named.files:
            try:
                films.append({"file": one.file, "text": decode_text(self._client.film(one.path).content)})
            except InvalidDocument as error:
                problems += [replace(problem, file=one.file) for problem in error.problems]
            except OSError as error:
                problems.append(Problem(file=one.file, problem=f"cannot be read: {error.strerror or error}"))
            except ApiError as error:
                if error.status not in (415, 422):
                    raise
                problems += [Problem(file=one.file, problem=found.detail, shot_id=found.shot, line=found.line,
                                     nearest=found.nearest) for found in error.problems] or [
                                         Problem(file=one.file, problem=error.detail)]
        if problems:
            raise InvalidDocument(problems=tuple(problems))
        return films


def film_path(film: FilmView, output: Path, pictures: bool, beside: Path | None = None) -> Path:
    """Where the film of a file goes: below `output`, or beside the file itself."""
    from serve_app.batch_files import film_name

    place = beside.with_suffix("") if beside is not None else output / film_name(film.file)
    return place if pictures else place.with_name(f"{place.name}.mp4")


def _path(batch_id: str) -> str:
    return f"/api/batches/{quote(batch_id, safe='')}"


def _limits(limits: BatchLimits) -> dict[str, Any]:
    """As requests have them: null takes a limit away."""
    given: dict[str, Any] = {}
    if limits.concurrency is not None:
        given["concurrency"] = limits.concurrency or None
    if limits.gpu_budget_s is not None:
        given["gpu_seconds"] = None if limits.gpu_budget_s == float("inf") else limits.gpu_budget_s
    return given
