"""A stand-in for a model replica whose timing and failures are known: for failure tests and benchmarks on a cluster.

The prompt says what to do: `sleep=0.5` seconds in `steps` steps, `fail` raises, `die` kills the process,
`colour=200,30,30` paints the clip. Every start and end is one line in `<data_dir>/starts.txt`:
`start|end|cancel key attempt pid time`.
"""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from actors.progress import ActorTransport
from actors.reporter import Reporter
from configs.model_card import ModelCard
from configs.settings import Settings
from serve_app.cluster import scratch_dir
from workflows.errors import ModelFailed, RenderCancelled
from workflows.media.encode import EncodeOptions, encode
from workflows.ports import RenderCall
from workflows.progress import clip_fraction
from workflows.store import Store
from workflows.types import MediaType, NodeResult, Phase, ProgressRecord


class KernelModel:
    """Sleeps where a model would compute; everything around the computation is real."""

    def __init__(self, card: ModelCard, settings: Settings) -> None:
        self._store = Store(settings.store, cache_dir=scratch_dir(settings))
        self._starts = settings.data_dir.expanduser() / "starts.txt"
        self._gpu = ThreadPoolExecutor(1)
        self._tokens: dict[str, list[threading.Event]] = {}
        self._reporter = Reporter(ActorTransport(settings.progress, settings.ray.namespace),
                                  flush_s=settings.progress.flush_s, on_cancelled=self.cancel_job)

    async def check_health(self) -> None:
        return None

    async def image(self, call: RenderCall) -> NodeResult:
        return await self.clip(call)

    async def clip(self, call: RenderCall) -> NodeResult:
        token = threading.Event()
        tokens = self._tokens.setdefault(call.job_id, [])
        tokens.append(token)
        work = asyncio.get_running_loop().run_in_executor(self._gpu, self._run, call, token)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            token.set()
            await asyncio.wait([work])
            raise
        finally:
            tokens.remove(token)
            self._reporter.end(call.job_id, call.node_id)

    async def pid(self) -> int:
        await asyncio.sleep(0)
        return os.getpid()

    def cancel_job(self, job_id: str) -> None:
        for token in self._tokens.get(job_id, []):
            token.set()

    def _run(self, call: RenderCall, token: threading.Event) -> NodeResult:
        found = self._store.find(call.key)
        if found:
            return NodeResult(artifact=found)
        self._note("start", call)
        if "die" in call.prompt:
            os._exit(1)
        pause_s = _number(call.prompt, "sleep", 0.0) / call.steps
        for step in range(call.steps):
            time.sleep(pause_s)
            if token.is_set():
                self._note("cancel", call)
                raise RenderCancelled(node_id=call.node_id, reason="cancelled")
            self._reporter.update(ProgressRecord(
                job_id=call.job_id, node_id=call.node_id, shot_id=call.shot_id, attempt=call.attempt, n=step + 1,
                phase=Phase.DIFFUSION, step=step + 1, total_steps=call.steps, timestep=float(call.steps - step),
                fraction=clip_fraction(Phase.DIFFUSION, step=step + 1, total_steps=call.steps), at_s=time.time()))
        if "fail" in call.prompt:
            raise ModelFailed(node_id=call.node_id, reason="the prompt says so")
        result = self._paint(call)
        self._note("end", call)
        return result

    def _paint(self, call: RenderCall) -> NodeResult:
        match = re.search(r"colour=(\d+),(\d+),(\d+)", call.prompt)
        colour = [int(value) for value in match.groups()] if match else [call.seed % 200, 90, 90]
        frames_THWC = np.empty((call.frames, call.height_px, call.width_px, 3), np.uint8)
        frames_THWC[:] = colour
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "clip.mp4"
            encode(frames_THWC, fps=call.fps, to=path, options=EncodeOptions(crf=18, preset="veryfast", gop_s=0.5))
            artifact = self._store.put(call.key, path, media_type=MediaType.MP4, manifest={"seed": call.seed})
        return NodeResult(artifact=artifact)

    def _note(self, what: str, call: RenderCall) -> None:
        line = f"{what} {call.key} {call.attempt} {os.getpid()} {time.time()}\n"
        with self._starts.open("a") as file:  # one short write to a file opened for appending is atomic
            file.write(line)


def _number(prompt: str, name: str, default: float) -> float:
    match = re.search(rf"{name}=([0-9.]+)", prompt)
    return float(match.group(1)) if match else default
