"""The sections of `python -m tests.bench gpu`: each answers one question with one table."""

from __future__ import annotations

import math
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from actors.reporter import Reporter
from configs.model_card import ModelCard
from serve_app.models import pipelines
from serve_app.models.lifecycle import CancelToken, seeded
from serve_app.models.records import RunRecords
from serve_app.models.render import tapped
from serve_app.models.takes import Dialect
from serve_app.models.tap import Watch
from serve_app.models.text_to_image import TextToImage
from tests.bench.bench_tap import GOAL, Nowhere
from tests.bench.gpu import render
from tests.bench.gpu.probe import Device, copy_tb_per_s, matmul_tflops
from tests.bench.gpu.weights import RandomWeights
from tests.bench.gpu.workload import PROMPT, WORKLOADS, Workload, render_call
from tests.bench.report import write_report
from workflows.deadline import Deadline


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Where and how everything is measured."""

    device: Device
    tiny: bool
    """A dry run: every size small, on the CPU."""
    out: Path
    """Directory for the tables."""

    def report(self, section: str, question: str, header: tuple[str, ...], rows: list[tuple[object, ...]],
               conclusion: str) -> None:
        """Print and write one table."""
        kind = "dry" if self.tiny else torch.cuda.get_device_name(0).lower().replace(" ", "-")
        asked = f"Dry run: {question}" if self.tiny else question
        write_report(f"gpu_{section}_{kind}_{time.strftime('%Y%m')}", asked, header, rows, conclusion,
                     directory=self.out, device=self.device.describe())


def ceiling(run: Run) -> list[str]:
    """What the machine itself can do."""
    rows: list[tuple[object, ...]] = []
    for name in ("bfloat16", "float16", "float32"):
        for side in (64, 128) if run.tiny else (4096, 8192, 16384):
            reached = matmul_tflops(run.device, pipelines.DTYPES[name], side=side, rounds=2 if run.tiny else 10)
            rows.append((f"matrix product, {name}, {side}", f"{reached:.4g} TFLOP/s"))
    copied = copy_tb_per_s(run.device, mib=4 if run.tiny else 4096)
    rows.append(("copy in memory, read and written", f"{copied:.4g} TB/s"))
    run.report("ceiling", "What does the machine reach?", ("operation", "rate"), rows,
               "float32 as torch has it by default, without TF32.")
    return []


def model(run: Run, section: str, workload: Workload) -> list[str]:
    """One model in every way of rendering it."""
    measured = render.measure(workload, run.device, tiny=run.tiny)
    plain = next((result for result in measured.results if result.name == "diffusers"), None)
    rows: list[tuple[object, ...]] = [
        (result.name, _seen(result.step_s), _seen(result.clip_s), _seen(result.share), _seen(result.peak_gb),
         f"{result.clip_s / plain.clip_s:.3f}" if plain else "-", result.note or "-",
         "; ".join(goal.verdict(result) for goal in workload.goals)) for result in measured.results]
    card = workload.card(tiny=run.tiny)
    asked = card.defaults
    failed = f" Failed: {', '.join(measured.failed)}." if measured.failed else ""
    run.report(section, f"How fast is {card.name}, {asked.width_px}x{asked.height_px}, {asked.frames} frames, "
                        f"{asked.steps} steps?",
               ("way", "s per step", "s in all", "of the ceiling", "peak GB", "of diffusers' time", "note", "goals"),
               rows, f"{measured.facts} The goals are for one H200.{failed}")
    return list(measured.failed)


def _seen(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4g}"


def progress(run: Run) -> list[str]:
    """Step progress on and off, on the model with the shortest steps, in random order; decoding is left out."""
    workload = WORKLOADS["sdxl"]
    card = workload.card(tiny=run.tiny)
    take = workload.take(card)
    pipe = RandomWeights(tiny=run.tiny)(card, workload.task, run.device.name)
    arguments = Dialect(pipe, card, workload.task).call(take).kwargs()
    call = render_call(card, take, key="0" * 32, first_frame=None)
    reporter = Reporter(Nowhere(), flush_s=0.25, on_cancelled=lambda _: None)

    def off() -> None:
        pipe.set_progress_bar_config(disable=True)
        pipe(**arguments, generator=seeded(take.seed), output_type="latent")

    def on() -> None:
        records = RunRecords(reporter, lambda: (call,), steps=call.steps)
        watch = Watch(cancel=CancelToken(), deadline=Deadline.after(call.left_s))
        with tapped(pipe, seed=take.seed, progress_callback=records.step, watch=watch) as generator:
            pipe(**arguments, generator=generator, output_type="latent")

    times_s = _in_turns({"off": off, "on": on}, run.device, rounds=2 if run.tiny else 20)
    reporter.close()
    medians = {name: statistics.median(values) for name, values in times_s.items()}
    ratio = medians["on"] / medians["off"]
    rows: list[tuple[object, ...]] = [
        (name, len(values), medians[name], medians[name] / take.steps * 1e3, min(values), max(values))
        for name, values in times_s.items()]
    run.report("progress", f"What does step progress cost on {card.name}?",
               ("progress", "renders", "median s", "ms per step", "fastest s", "slowest s"), rows,
               f"With progress a render takes {ratio:.5f} of one without, goal {GOAL}: "
               f"{'met' if ratio <= GOAL else 'NOT met'}.")
    return []


def batching(run: Run) -> list[str]:
    """Pictures in one call of the pipeline against one by one, and how far they are from those made alone."""
    workload = WORKLOADS["sdxl"]
    sizes = (1, 2) if run.tiny else (1, 2, 4, 8)
    card = workload.card(tiny=run.tiny).model_copy(update={"batch": max(sizes)})
    painter = TextToImage(RandomWeights(tiny=run.tiny)(card, workload.task, run.device.name), card)
    takes = [replace(workload.take(card), prompt=f"{PROMPT}, picture {seed}", seed=seed) for seed in range(max(sizes))]
    alone = [painter.generate(take, progress_callback=_unheard).astype(int) for take in takes]
    rows: list[tuple[object, ...]] = []
    failed: list[str] = []
    each_s: dict[int, float] = {}
    for size in sizes:
        try:
            made = painter.generate_many(takes[:size], progress_callback=_unheard)
            run.device.fresh()
            calls = {"many": partial(painter.generate_many, takes[:size], progress_callback=_unheard)}
            spent_s = min(_in_turns(calls, run.device, rounds=1 if run.tiny else 5)["many"])
        except torch.OutOfMemoryError:
            failed.append(f"{size} at once")
            break
        apart = [abs(one - other) for one, other in zip(made, alone, strict=False)]
        each_s[size] = spent_s / size
        rows.append((size, spent_s, each_s[size], run.device.peak_gb(), max(int(each.max()) for each in apart),
                     sum(float(each.mean()) for each in apart) / size))
    gains = [f"{each_s[1] / picture_s:.3f} with {size}" for size, picture_s in each_s.items()]
    run.report("batching", f"What do several pictures in one call gain with {card.name}?",
               ("pictures", "s per call", "s per picture", "peak GB", "furthest from alone, of 255", "on average"),
               rows, f"The time of one picture alone over that of one among several: {', '.join(gains)}. The best of "
                     f"the rounds counts.{f' Did not fit: {failed[0]}.' if failed else ''}")
    return failed if len(rows) < 2 else []


def _unheard(step: int, total_steps_count: int, current_timestep: float) -> None:
    """Keeps the pipeline's own bar away."""


def _in_turns(runs: Mapping[str, Callable[[], None]], device: Device, *, rounds: int) -> dict[str, list[float]]:
    """Seconds of each, `rounds` times in random order; one more round warms up and is not counted."""
    times_s: dict[str, list[float]] = {name: [] for name in runs}
    order = random.Random(0)
    for turn in range(rounds + 1):
        for name in order.sample(sorted(runs), len(runs)):
            spent_s = device.seconds(runs[name])
            if turn:
                times_s[name].append(spent_s)
    return times_s


def load(run: Run) -> list[str]:
    """Checkpoints on this machine's disk to the device: reelray's `load` against plain diffusers, in turns."""
    rows: list[tuple[object, ...]] = []
    for section in ("sdxl", "wan"):
        workload = WORKLOADS[section]
        card = workload.card(tiny=run.tiny)
        with tempfile.TemporaryDirectory(prefix="reelray-bench-") as directory:
            pipe = RandomWeights(tiny=run.tiny)(card, workload.task, run.device.name)
            pipe.save_pretrained(directory, variant=card.variant or None)
            del pipe
            run.device.fresh()
            size_gb = sum(path.stat().st_size for path in Path(directory).rglob("*.safetensors")) / 1e9
            mine = card.model_copy(update={"repo": directory, "revision": ""})
            times_s = _in_turns(_loaders(mine, workload, run.device), run.device, rounds=2)
        rows += [(card.name, name, size_gb, min(values), f"{size_gb / min(values):.3g}")
                 for name, values in times_s.items()]
    free_gb = shutil.disk_usage(tempfile.gettempdir()).free / 1e9
    run.report("load", "How long does loading take?", ("card", "by", "GB", "s", "GB/s"), rows,
               f"Files just written, so they come from the page cache; the best of two. {free_gb:.0f} GB of disk free.")
    return []


def _loaders(card: ModelCard, workload: Workload, device: Device) -> dict[str, Callable[[], None]]:
    dtypes = {"default": pipelines.DTYPES[card.dtype],
              **{name: pipelines.DTYPES[dtype] for name, dtype in card.dtypes.items()}}
    plain_class: type[DiffusionPipeline] = pipelines.find_class(card, workload.task)

    def plain() -> None:
        device.fresh()
        plain_class.from_pretrained(card.repo, dtype=dtypes, variant=card.variant or None).to(device.name)

    def reelray() -> None:
        device.fresh()
        pipelines.load(card, workload.task, device.name)

    return {"diffusers": plain, "reelray": reelray}


def _of(section: str) -> Callable[[Run], list[str]]:
    return lambda run: model(run, section, WORKLOADS[section])


SECTIONS: Mapping[str, Callable[[Run], list[str]]] = {
    "ceiling": ceiling, "sdxl": _of("sdxl"), "progress": progress, "batching": batching,
    "svd": _of("svd"), "wan": _of("wan"), "load": load,
}
"""Name -> measurement, which returns the names of its failed parts. The short ones come first."""
