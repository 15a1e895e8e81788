"""Every shipped card of a hub model, on a tiny checkpoint of its classes: loaded, rendered, stopped, resumed, encoded.

The card itself is used, with its dtypes, arguments and scheduler settings; repo, variant and shape are the tiny one's.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from configs.load import load_cards, load_settings
from configs.model_card import (
    FILM_TASKS,
    GPU_SIZES_GB,
    CallDefaults,
    FrameRule,
    Memory,
    ModelCard,
    Peak,
    SizeRule,
    Task,
)
from configs.references import SHIPPED, IpAdapter, References
from serve_app.models import pipelines
from serve_app.models.lifecycle import CancelToken
from serve_app.models.reference_input import GREY_HWC
from serve_app.models.resume import StepCheckpoint
from serve_app.models.studio import open_studio
from serve_app.models.tap import Watch
from tests.families import FAMILIES, STEPS, Family
from workflows.errors import InvalidDocument, RenderCancelled
from workflows.media.decode import read_frames
from workflows.media.encode import EncodeOptions, encode

CARDS = {name: card for name, card in load_cards(load_settings("laptop", environ={})).items()
         if card.loader == "diffusers" and not card.repo.startswith("package:") and set(card.tasks) <= set(FILM_TASKS)}
CASES = [(name, task) for name, card in CARDS.items() for task in card.tasks]
every_case = pytest.mark.parametrize(("name", "task"), CASES, ids=[f"{name}-{task.value}" for name, task in CASES])

NAMES = {"sdxl", "sdxl-turbo", "flux-schnell", "z-image-turbo", "qwen-image", "wan2.1-t2v-1.3b", "wan2.1-t2v-14b",
         "wan2.1-i2v-14b-480p", "wan2.2-ti2v-5b", "wan2.2-t2v-a14b", "wan2.2-i2v-a14b", "ltx-video",
         "hunyuanvideo-1.5", "svd-xt", "flux2-klein-4b", "sdxl-ip-adapter"}


def quiet(step: int, total: int, timestep: float) -> None:
    """No bar in the output of the tests."""


def parts_of(pipe: DiffusionPipeline) -> set[str]:
    return {name for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def weighed_parts(family: Family, checkpoints: Path) -> set[str]:
    """The same of a checkpoint and of its card's adapter, which brings an image encoder, without loading them."""
    card = family.card(checkpoints)
    parts = {path.parent.name for path in Path(card.repo).rglob("*.safetensors")}
    return parts | {"image_encoder"} if isinstance(card.references, IpAdapter) else parts


def family_of(card: ModelCard, task: Task, checkpoints: Path) -> Family:
    """The tiny checkpoint with the card's pipeline class and the components that the card weighs."""
    assert card.memory is not None
    # A video model's pictures are its clips of one frame, so the task may differ where the class is the same.
    able = [family for family in FAMILIES if family.pipeline == card.pipelines[task]
            and weighed_parts(family, checkpoints) == set(card.memory.weights_gb)]
    assert able, f"card {card.name} has no tiny checkpoint of its classes: add one to tests/tiny.py"
    return able[0]


def tiny_card(card: ModelCard, family: Family, checkpoints: Path) -> ModelCard:
    """The card at a tiny shape, reading the family's checkpoint."""
    shape = family.card(checkpoints)
    defaults = CallDefaults(**{**card.defaults.model_dump(), "width_px": family.side_px, "height_px": family.side_px,
                               "frames": shape.defaults.frames, "steps": STEPS})
    return card.model_copy(update={
        "references": tiny_references(card, shape),
        "repo": shape.repo, "revision": "", "variant": "", "defaults": defaults, "frames": FrameRule(),
        "size": SizeRule(multiple_px=2), "dtype": "float32" if card.dtype == "float16" else card.dtype})


def tiny_references(card: ModelCard, shape: ModelCard) -> References | None:
    """The card's own, reading the tiny adapter's files under the real one's names."""
    if isinstance(card.references, IpAdapter) and isinstance(shape.references, IpAdapter):
        return card.references.model_copy(update={"repo": shape.references.repo, "revision": ""})
    return card.references


def test_the_cards_that_are_shipped() -> None:
    assert set(CARDS) == NAMES
    assert tuple(sorted(name for name, card in CARDS.items() if card.references is not None)) == SHIPPED


@every_case
def test_the_pipeline_class_exists(name: str, task: Task) -> None:
    assert issubclass(pipelines.find_class(CARDS[name], task), diffusers.DiffusionPipeline)


@every_case
def test_a_card_renders_stops_goes_on_and_encodes(name: str, task: Task, checkpoints: Path, tmp_path: Path) -> None:
    family = family_of(CARDS[name], task, checkpoints)
    tiny = tiny_card(CARDS[name], family, checkpoints)
    card = tiny.model_copy(update={"pipelines": {task: CARDS[name].pipelines[task]}})
    painter = open_studio(card, "cpu", pipelines.load)[task]
    take = family.take(frames=1 if task is Task.TEXT_TO_IMAGE else family.frames, guidance=card.defaults.guidance,
                       negative_prompt=card.defaults.negative_prompt,
                       references_HWC=(GREY_HWC[:64, :64],) * (card.references.max_pictures if card.references else 0))
    assert painter.problems(take) == ()
    heard: list[tuple[int, int]] = []
    pixels = painter.generate(take, progress_callback=lambda step, total, _: heard.append((step, total)))
    assert heard == [(step, STEPS) for step in range(STEPS)]
    if card.draft and card.draft.cache:
        draft = painter.generate(replace(take, cache_threshold=card.draft.cache.threshold), progress_callback=quiet)
        assert (draft.shape, draft.dtype) == (pixels.shape, pixels.dtype)
    token, until_stopped = CancelToken(), []

    def stop(checkpoint: StepCheckpoint) -> None:
        (tmp_path / "step.pt").write_bytes(checkpoint.to_bytes())
        token.set()

    with pytest.raises(RenderCancelled):
        painter.generate(take, progress_callback=lambda step, *_: until_stopped.append(step),
                         watch=Watch(cancel=token, checkpoint_every=2, on_checkpoint=stop))
    assert until_stopped == [0, 1]
    after: list[int] = []
    resumed = painter.generate(take, progress_callback=lambda step, *_: after.append(step),
                               watch=Watch(resume=StepCheckpoint.from_bytes((tmp_path / "step.pt").read_bytes())))
    assert after == [2, 3]
    assert np.array_equal(resumed, pixels)
    assert pixels.std() > 0, "so that the equality can fail"
    frames_THWC = pixels if pixels.ndim == 4 else pixels[None]
    assert frames_THWC.dtype == np.uint8
    encode(frames_THWC, to=tmp_path / "clip.mp4", fps=round(card.defaults.fps), options=EncodeOptions())
    assert len(read_frames(tmp_path / "clip.mp4")) == take.frames


def test_components_are_loaded_in_their_own_dtype(checkpoints: Path) -> None:
    card = CARDS["wan2.1-i2v-14b-480p"]
    tiny = tiny_card(card, family_of(card, Task.IMAGE_TO_VIDEO, checkpoints), checkpoints)
    pipe = pipelines.load(tiny, Task.IMAGE_TO_VIDEO, "cpu")
    assert {name: pipe.components[name].dtype for name in sorted(parts_of(pipe))} == {
        "image_encoder": torch.float32, "text_encoder": torch.bfloat16, "transformer": torch.bfloat16,
        "vae": torch.float32}
    assert pipe.scheduler.config.flow_shift == 3.0


@pytest.mark.parametrize(("changes", "field", "nearest"), [
    ({"dtypes": {"vaee": "float32"}}, "dtypes.vaee", ""),
    ({"scheduler": {"flow_shif": 3.0}}, "scheduler.flow_shif", "flow_shift"),
])
def test_settings_of_parts_that_do_not_exist_are_refused(
        changes: dict[str, object], field: str, nearest: str, checkpoints: Path) -> None:
    family = next(family for family in FAMILIES if family.name == "wan_t2v")
    with pytest.raises(InvalidDocument) as refusal:
        pipelines.load(family.card(checkpoints, **changes), Task.TEXT_TO_VIDEO, "cpu")
    assert [(problem.field, problem.nearest) for problem in refusal.value.problems] == [(field, nearest)]


def test_tiling_is_switched_on_by_the_card(checkpoints: Path) -> None:
    family = next(family for family in FAMILIES if family.name == "hv15")
    assert pipelines.load(family.card(checkpoints), family.task, "cpu").vae.use_tiling is False
    assert pipelines.load(family.card(checkpoints, vae_tiling=True), family.task, "cpu").vae.use_tiling is True


# -- what a card says of itself ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_card_names_its_licence_its_sources_and_its_memory(name: str) -> None:
    card = CARDS[name]
    assert "" not in (card.licence, card.licence_terms, card.licence_url, card.grade)
    assert card.sources
    assert card.memory is not None
    assert len(card.revision) in (0, 40)
    assert min(peak.gb for peak in card.memory.peaks) > card.memory.total_gb


@pytest.mark.parametrize(("gpu_gb", "verdict"), [(12, "no"), (16, "tight"), (24, "fits")])
def test_memory_is_held_against_a_gpu(gpu_gb: int, verdict: str) -> None:
    memory = Memory(weights_gb={"a": 10, "b": 4}, source="x", peaks=(
        Peak(shape="1280x720, 81 frames", gb=40, how="estimated", source="x"),
        Peak(shape="832x480, 81 frames", gb=20, how="measured", source="x")))
    assert memory.fit(gpu_gb) == verdict
    assert Memory(weights_gb={"a": 1}, source="x").fit(max(GPU_SIZES_GB)) == "tight"


def test_fields_that_change_no_picture_change_no_key_and_new_ones_only_where_they_are_set() -> None:
    card = CARDS["svd-xt"]
    assert card.model_copy(update={"memory": None, "sources": (), "grade": "fast"}).digest() == card.digest()
    changed = ModelCard(**{**card.model_dump(exclude_unset=True), "dtypes": {"vae": "float32"}})
    assert changed.digest() != card.digest()




@pytest.mark.parametrize("name", sorted(NAMES))
def test_the_documents_table_says_what_the_card_says(name: str) -> None:
    card = CARDS[name]
    assert card.memory is not None
    page = (Path(__file__).resolve().parents[3] / "docs" / "models.md").read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
    peak = min(card.memory.peaks, key=lambda peak: peak.gb)
    smallest = next(size for size in GPU_SIZES_GB if card.memory.fit(size) == "fits")
    assert f"| {card.memory.total_gb:.1f} | {peak.gb:g} ({peak.how}) | {smallest} | [{card.licence}]" in row
    assert f"{card.defaults.width_px}x{card.defaults.height_px}" in row
    assert f"{card.defaults.steps} steps" in row
