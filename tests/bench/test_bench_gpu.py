"""The GPU measurements still run: every section at tiny size on the CPU, through the code that a GPU runs.

Their real configurations are compared with the model cards, which hold the published sizes.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from serve_app.models import pipelines
from tests.bench.gpu.architectures import ARCHITECTURES
from tests.bench.gpu.probe import Device, FlopCount
from tests.bench.gpu.sections import SECTIONS, Run
from tests.bench.gpu.weights import make
from tests.bench.gpu.workload import WORKLOADS, Result

ROOT = Path(__file__).resolve().parents[2]
WAYS = ("| diffusers |", "| reelray |", "| reelray, cuDNN attention |", "| reelray, stored |")
ROWS = {"ceiling": ("bfloat16", "copy in memory"), "load": ("sdxl | reelray", "wan2.1-t2v-1.3b | diffusers"),
        "progress": ("| on |", "goal 1.001"), "batching": ("| 2 |", "1.000 with 1"),
         "svd": (*WAYS, "peak < 16 GB"),
        "sdxl": (*WAYS, "cuDNN attention, compiled", "all of it <= 1.5 s"),
        "wan": (*WAYS, "cuDNN attention, compiled", "share of the matmul ceiling >= 0.7")}


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("section", list(SECTIONS))
def test_a_dry_run_measures_every_part(section: str, tmp_path: Path) -> None:
    assert SECTIONS[section](Run(device=Device(tiny=True), tiny=True, out=tmp_path)) == []
    [table] = tmp_path.glob("*.md")
    text = table.read_text(encoding="utf-8")
    for part in (*ROWS[section], "# Dry run", "the figures mean nothing"):
        assert part in text


@pytest.mark.slow
def test_the_command_runs_a_section_and_refuses_a_machine_without_a_gpu(tmp_path: Path) -> None:
    def run(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "tests.bench", "gpu", "--section", "ceiling", "--out",
                               str(tmp_path), *options], capture_output=True, text=True, timeout=100, check=False,
                              cwd=ROOT)

    assert run("--dry-run").returncode == 0
    assert list(tmp_path.glob("gpu_ceiling_dry_*.md"))
    if not torch.cuda.is_available():
        refused = run()
        assert refused.returncode != 0
        assert "--dry-run" in refused.stderr


@pytest.mark.parametrize("section", list(WORKLOADS))
def test_the_configurations_are_those_whose_sizes_the_card_states(section: str) -> None:
    card = WORKLOADS[section].card(tiny=False)
    assert card.memory is not None
    for name, part in ARCHITECTURES[card.name].parts.items():
        model = make(part, pipelines.DTYPES[card.dtypes.get(name, card.dtype)], "meta", tiny=False)
        assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} <= {"meta"}, name
        made_gb = sum(parameter.nbytes for parameter in model.parameters()) / 1e9
        assert made_gb == pytest.approx(card.memory.weights_gb[name], abs=0.006), name


def inputs_of(card_name: str) -> dict[str, object]:
    """What the denoiser is called with at the card's defaults; two at once where the pipeline guides in one pass."""
    match card_name:
        case "wan2.1-t2v-1.3b":
            return {"hidden_states": torch.empty(1, 16, 21, 60, 104), "timestep": torch.empty(1),
                    "encoder_hidden_states": torch.empty(1, 512, 4096)}
        case "svd-xt":
            return {"sample": torch.empty(2, 25, 8, 72, 128), "timestep": torch.empty(1),
                    "encoder_hidden_states": torch.empty(2, 1, 1024), "added_time_ids": torch.empty(2, 3)}
        case _:
            return {"sample": torch.empty(2, 4, 128, 128), "timestep": torch.empty(1),
                    "encoder_hidden_states": torch.empty(2, 77, 2048),
                    "added_cond_kwargs": {"text_embeds": torch.empty(2, 1280), "time_ids": torch.empty(2, 6)}}


@pytest.mark.parametrize(("card_name", "tflop"), [("wan2.1-t2v-1.3b", 283.0), ("svd-xt", 159.9), ("sdxl", 13.52)])
def test_a_forward_pass_counts_the_known_operations(card_name: str, tflop: float) -> None:
    """Wan's by hand: 4 N^2 d L for attention with N = 32760, d = 1536, L = 30, and 82 TFLOP in its matrices."""
    architecture = ARCHITECTURES[card_name]
    model = make(architecture.parts[architecture.denoiser], torch.float32, "meta", tiny=False)
    with torch.device("meta"), torch.no_grad(), FlopCount(model) as count:
        model(**inputs_of(card_name), return_dict=False)
    assert count.flop / 1e12 == pytest.approx(tflop, rel=0.001)


@pytest.mark.parametrize(("clip_s", "share", "said"), [
    (51.9, 0.71, ("met (51.9)", "met (0.71)")), (52.1, 0.69, ("NOT met (52.1)", "NOT met (0.69)")),
    (50.0, math.nan, ("met (50)", "not measured"))])
def test_a_goal_is_met_not_met_or_not_measured(clip_s: float, share: float, said: tuple[str, ...]) -> None:
    result = Result(name="reelray", clip_s=clip_s, step_s=1.0, peak_gb=20.0, share=share)
    for goal, words in zip(WORKLOADS["wan"].goals, said, strict=True):
        assert goal.verdict(result).endswith(f": {words}")
