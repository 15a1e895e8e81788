"""`run_video_edit`: one edit in this process, from the video to the files, without Ray. For programs and for CI.

The same nodes, keys and stages as everywhere; what was found and edited before is found again in the artifact store,
and a run that was killed goes on where it was. In the output directory: `{job_id}_output.mp4`, `{job_id}_mask.mp4`,
`{job_id}_flicker.json` and `.png`, `{job_id}_log.txt` and `status.json`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import traceback
import uuid
from dataclasses import replace
from functools import partial
from pathlib import Path

from configs.load import load_settings
from configs.settings import Settings
from serve_app.edit_models_here import ModelsHere
from serve_app.edit_submit import EditSubmission, edit_job
from serve_app.media_worker import MediaWorker
from workflows.dispatch import Dispatcher
from workflows.durable.engine import Engine
from workflows.durable.ledger import Ledger
from workflows.edit import EditRequest
from workflows.edit_plan import CLASSICAL, EDIT_KINDS, PLOT, PREVIEW, REPORT, SAVE
from workflows.edit_status import EditState, VideoEditStatus, edit_status
from workflows.ports import Step
from workflows.stages.edit_route import ask_model
from workflows.store import Store
from workflows.types import CPU_LANE, NodeKind, ProgressRecord

STATUS_FILE = "status.json"
TELL_S = 0.25
"""The status is written at most so often."""
OUTPUTS = {SAVE: "output.mp4", PREVIEW: "mask.mp4", REPORT: "flicker.json", PLOT: "flicker.png"}
LOG_LINES = 500


def run_video_edit(request: EditRequest, *, settings: Settings | None = None) -> None:
    """Edit a video and return when it is over, however it ends: `status.json` and the log say how.

    Whatever goes wrong is written there, with its stack in the log; only a KeyboardInterrupt is raised on, after it was
    written that the job was cancelled, and an OSError where nothing can be written. The same request again goes on
    where it was.
    """
    settings = settings or load_settings()
    run = _Run(request, settings)
    try:
        run.begin()
        models = ModelsHere(request, settings)
        submission = edit_job(models.request, run.store, tracker=models.tracker, editor=models.editor)
        asyncio.run(run.walk(submission, models))
    except (KeyboardInterrupt, asyncio.CancelledError):
        run.end(EditState.CANCELLED, "stopped by its caller")
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, it ends in the status and the log
        run.log(traceback.format_exc())
        run.end(EditState.FAILED, str(error) or type(error).__name__)
    finally:
        run.close()


def get_video_edit_status(job_id: str, output_dir: str | Path | None = None, *,
                          settings: Settings | None = None) -> VideoEditStatus:
    """How far a job is; without `output_dir` the directory is found by the job's id, on the machine that runs it.

    A job that nobody knows is `failed`, with a message that says so.
    """
    directory = None if output_dir is None else Path(output_dir)
    if directory is None:
        directory = _remembered(job_id, settings or load_settings())
    if directory is None:
        return _unknown(job_id, "no edit with this id was run on this machine; name its output_dir")
    try:
        data = json.loads((directory / STATUS_FILE).read_text(encoding="utf-8"))
        if data.get("job_id") != job_id:
            return _unknown(job_id, f"{directory / STATUS_FILE} is of job {data.get('job_id')!r}")
        return VideoEditStatus.from_json(data)
    except FileNotFoundError:
        return _unknown(job_id, f"there is no {STATUS_FILE} in {directory}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return _unknown(job_id, f"{directory / STATUS_FILE} cannot be read: {error}")


def _unknown(job_id: str, why: str) -> VideoEditStatus:
    text = f"unknown job {job_id!r}: {why}"
    return VideoEditStatus(status=EditState.FAILED, progress=0.0, message=text, error=text)


class _Run:
    """One call of `run_video_edit`."""

    def __init__(self, request: EditRequest, settings: Settings) -> None:
        self._request, self._settings = request, settings
        self._directory = Path(request.output_dir).expanduser().absolute()
        self._log_path = self._directory / f"{request.job_id}_log.txt"
        self._live: dict[str, ProgressRecord] = {}
        self._last = VideoEditStatus(status=EditState.QUEUED, progress=0.0, message="looking at the video")
        self._ledger: Ledger | None = None
        self._told_lines = 0

    def begin(self) -> None:
        """Make the directory, say that the job is queued, and remember where it is."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self._log_path.write_text("", encoding="utf-8")
        _remember(self._request.job_id, self._directory, self._settings)
        self._tell(self._last)
        self.store = Store(self._settings.store, cache_dir=self._settings.data_dir.expanduser() / "cache")

    async def walk(self, submission: EditSubmission, models: ModelsHere) -> None:
        """Run the job's nodes until it is over, and put its files into place."""
        job_id, ledger = submission.new.id, self._open_ledger(submission)
        for warning in submission.warnings:
            self.log(f"warning: {warning}\n")
        ledger.submit(submission.new)
        if ledger.job(job_id).status.is_terminal:
            ledger.rerun(job_id)
        worker = MediaWorker(self._settings.media, self.store, _Sink(self._live), slots=self._settings.cpu_slots)
        with models.opened(self.store, _Sink(self._live), self._loading) as loaded:
            in_video = partial(ask_model, models=loaded, media=worker, on_cpu=frozenset({CLASSICAL.card}))
            steps: dict[NodeKind, Step] = dict.fromkeys(EDIT_KINDS, worker.run)
            steps |= {NodeKind.MASK: in_video, NodeKind.EDIT: in_video}
            lanes = {CPU_LANE: self._settings.cpu_slots, **models.lanes}
            engine = Engine(ledger, steps, store=self.store, dispatcher=Dispatcher(lanes),
                            settings=self._settings.engine)
            running = asyncio.create_task(engine.run())
            try:
                await self._follow(ledger, job_id, submission.part.frames, running)
            finally:
                await engine.stop()
                await running

    def _loading(self, what: str) -> None:
        self.log(f"{what}\n")
        self._tell(replace(self._last, message=what))

    async def _follow(self, ledger: Ledger, job_id: str, frames: int, running: asyncio.Task[None]) -> None:
        while True:
            job, nodes = await asyncio.to_thread(ledger.job, job_id), await asyncio.to_thread(ledger.nodes, job_id)
            self._take_log(ledger, job_id)
            status = edit_status(job, nodes, dict(self._live), frames=frames, floor=self._last.progress)
            if job.status.is_terminal:
                made = {node.id: node.artifact for node in nodes if node.artifact is not None}
                for node, name in OUTPUTS.items():
                    if node in made:
                        _put(self.store.fetch(made[node]), self._output(name))
                self._tell(status)
                return
            if status != self._last:
                self._tell(status)
            if running.done():
                running.result()
            await asyncio.sleep(TELL_S)

    def log(self, text: str) -> None:
        """Append to the job's log."""
        with contextlib.suppress(OSError), self._log_path.open("a", encoding="utf-8") as file:
            file.write(text)

    def end(self, state: EditState, why: str) -> None:
        """Say how it ended otherwise than by its nodes."""
        self.log(f"{state.value}: {why}\n")
        # Where not even this can be written, the caller must hear of it.
        self._tell(replace(self._last, status=state, progress=1.0, message=why,
                           error=why if state is EditState.FAILED else ""))

    def close(self) -> None:
        """Give the database back."""
        if self._ledger is not None:
            self._ledger.close()

    def _open_ledger(self, submission: EditSubmission) -> Ledger:
        """A database for this job as it is planned now: another request under its id begins anew."""
        place = _home(self._settings) / f"{submission.new.id}-{submission.new.identity[:12]}.db"
        self._ledger = Ledger(f"sqlite:///{place}")
        return self._ledger

    def _take_log(self, ledger: Ledger, job_id: str) -> None:
        while (page := ledger.log_lines(job_id, offset=self._told_lines, limit=LOG_LINES)).lines:
            self.log("".join(f"{line}\n" for line in page.lines))
            self._told_lines = page.next_offset

    def _output(self, name: str) -> Path:
        return self._directory / f"{self._request.job_id}_{name}"

    def _tell(self, status: VideoEditStatus) -> None:
        self._last = status
        there = {name: str(self._output(name)) for name in OUTPUTS.values() if self._output(name).is_file()}
        is_whole = status.status is EditState.FINISHED
        told = replace(status, output_video_path=there.get("output.mp4", "") if is_whole else "",
                       mask_preview_path=there.get("mask.mp4", "") if is_whole else "", logs_path=str(self._log_path))
        _write_whole(self._directory / STATUS_FILE, json.dumps(
            {"job_id": self._request.job_id, **told.to_json()}, ensure_ascii=False, indent=1))


class _Sink:
    """Keeps the newest record of each node that runs."""

    def __init__(self, live: dict[str, ProgressRecord]) -> None:
        self._live = live

    def update(self, record: ProgressRecord, *, urgent: bool = False) -> None:
        self._live[record.node_id] = record

    def end(self, job_id: str, node_id: str) -> None:
        self._live.pop(node_id, None)


def _home(settings: Settings) -> Path:
    home = settings.data_dir.expanduser().resolve() / "edits"
    home.mkdir(parents=True, exist_ok=True)
    return home


def _remember(job_id: str, directory: Path, settings: Settings) -> None:
    _write_whole(_home(settings) / f"{job_id}.where", str(directory))


def _remembered(job_id: str, settings: Settings) -> Path | None:
    if "/" in job_id or "\\" in job_id:
        return None
    path = _home(settings) / f"{job_id}.where"
    return Path(path.read_text(encoding="utf-8")) if path.is_file() else None


def _put(source: Path, to: Path) -> None:
    part = to.with_name(f".{to.name}.{uuid.uuid4().hex}.part")
    try:
        shutil.copyfile(source, part)
        part.replace(to)
    finally:
        part.unlink(missing_ok=True)


def _write_whole(path: Path, text: str) -> None:
    """Readers see the old text or the new one, never a part."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


