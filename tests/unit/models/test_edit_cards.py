"""Shipped cards of trackers and editors, on tiny checkpoints of their classes; and what such a card may say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from configs.edit_rules import EditRules
from configs.load import load_all_cards, load_cards, load_settings
from configs.model_card import EDIT_TASKS, CallDefaults, FrameRule, ModelCard, SizeRule, Task
from serve_app.models import weights
from serve_app.models.editors import editor_class
from serve_app.models.repo import index_of
from serve_app.models.tap import UNWATCHED
from serve_app.models.workbench import open_workbench, warm_up
from serve_app.models_check import examine_card
from tests import tiny
from tests.tiny_track import build_points
from tests.workbench import edit_take

SETTINGS = load_settings("laptop", environ={})
CARDS = {name: card for name, card in load_cards(SETTINGS).items() if {*EDIT_TASKS, Task.TRACK} & set(card.tasks)}
EDITORS = [name for name, card in CARDS.items() if card.loader == "diffusers"]
TINY = {"instruct-pix2pix": "instruct_pix2pix", "flux2-klein-4b-edit": "flux2_klein",
        "flux-kontext-dev": "flux_kontext", "wan2.1-vace-1.3b": "wan_vace"}
"""Qwen-Image-Edit needs torchvision, and looks at a megapixel however small the model is."""


def test_the_cards_that_are_shipped() -> None:
    assert set(CARDS) == {"sam3", "sam2.1-large", "qwen-image-edit", *TINY}
    assert {name: card.finds_by for name, card in CARDS.items() if card.finds_by} == {
        "sam3": "text", "sam2.1-large": "points"}


@pytest.mark.parametrize("name", CARDS)
def test_a_card_names_its_licence_its_sources_and_its_weights(name: str) -> None:
    card = CARDS[name]
    assert "" not in (card.licence, card.licence_terms, card.licence_url)
    assert card.sources
    assert card.memory is not None
    assert card.revision or "The commit is not pinned" in card.notes
    page = (Path(__file__).resolve().parents[3] / "docs" / "models.md").read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
    assert f"| {card.memory.total_gb:.1f} | [{card.licence}]" in row


@pytest.mark.parametrize("name", EDITORS)
def test_an_editors_class_is_known(name: str) -> None:
    (task,) = CARDS[name].tasks
    assert editor_class(CARDS[name], task).task is task


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_card_edits_on_a_tiny_checkpoint_of_its_classes(name: str, checkpoints: Path) -> None:
    """With its own dtypes, arguments, options and scheduler settings; half precision as bfloat16, which CPUs know."""
    card = CARDS[name]
    small = card.model_copy(update={
        "repo": str(tiny.build(TINY[name], checkpoints)), "revision": "", "size": SizeRule(multiple_px=16),
        "defaults": CallDefaults(**{**card.defaults.model_dump(), "width_px": 64, "height_px": 64}),
        "frames": FrameRule(step=4, offset=1, max_frames=81),
        "dtype": "bfloat16" if card.dtype == "float16" else card.dtype})
    bench = open_workbench(small, "cpu")
    warm_up(bench, small, UNWATCHED)
    editor = bench.the_editor()
    take = edit_take(5, steps=2)
    edited = editor.edit(take, progress_callback=lambda *_: None, watch=UNWATCHED)
    assert (edited[:4] != take.frames_THWC[:4]).any(axis=(1, 2, 3)).all()
    assert np.array_equal(edited[4], take.frames_THWC[4])


def test_a_tracker_is_examined_loaded_and_found_by_its_variable(tmp_path: Path) -> None:
    repo = build_points(tmp_path)
    cards = load_all_cards(SETTINGS, {"SAM2_MODEL_PATH": str(repo)})
    card = cards["sam2.1-large"]
    assert isinstance(card, ModelCard)
    assert (card.repo, card.revision) == (str(repo), "")
    assert card.digest() != CARDS["sam2.1-large"].digest()
    assert cards["sam3"] == CARDS["sam3"]
    findings = list(examine_card(card, load=True))
    assert [finding.what for finding in findings if finding.level == "ok"] == ["classes", "weights", "load"]
    (repo / "model.safetensors").unlink()
    assert list(weights.gaps(repo, card)) == ["no safetensors"]
    assert index_of(card) == "config.json"


# -- what a card may say -----------------------------------------------------------------------------------------------

BASE = {"name": "x", "title": "x", "repo": "a/b", "defaults": {"width_px": 64, "height_px": 64}}
EDITOR = {**BASE, "pipelines": {"edit_frames": "FluxKontextPipeline"}, "edit": {}}
TRACKER = {**BASE, "pipelines": {"track": "Sam2VideoModel"}, "loader": "tracker"}


@pytest.mark.parametrize(("card", "said"), [
    ({**EDITOR, "edit": None}, "a card that edits needs `edit`; nearest valid: edit: {frames_at_once: 1}"),
    ({**EDITOR, "pipelines": {"edit_frames": "A", "text_to_image": "B"}},
     "films, either kind of edit and tracking need a card each"),
    ({**EDITOR, "pipelines": {"edit_frames": "A", "edit_video": "B"}}, "one card does edit_frames, edit_video; films"),
    ({**EDITOR, "edit": {"image_guidance": 1.5}}, "edit.image_guidance is for StableDiffusionInstructPix2PixPipeline"),
    ({**EDITOR, "pipelines": {"edit_frames": "StableDiffusionInstructPix2PixPipeline"}},
     "edit.image_guidance is missing; nearest valid: 1.5"),
    ({**EDITOR, "pipelines": {"edit_video": "WanVACEPipeline"}, "edit": {"frames_at_once": 2}},
     "a video editor takes the whole clip; nearest valid: 1"),
    ({**BASE, "pipelines": {"text_to_image": "FluxPipeline"}, "edit": {}}, "`edit` is for editors of videos"),
    ({**TRACKER, "loader": "diffusers"}, "`loader: tracker` and the task `track` belong together"),
    ({**TRACKER, "pipelines": {"track": "Sam2Model"}}, "nearest valid: Sam3VideoModel or Sam2VideoModel"),
])
def test_what_does_not_go_together_is_refused(card: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        ModelCard.model_validate(card)
    assert said in str(refusal.value)


def test_films_keep_the_keys_that_they_had_before_there_were_edits() -> None:
    cards = load_all_cards(SETTINGS, {})
    assert {name: cards[name].digest() for name in ("sdxl", "sketch", "qwen3-4b-instruct", "dinov2-base")} == {
        "sdxl": "12cfdee08d1a1b4b", "sketch": "deb121a10ec87ce0", "qwen3-4b-instruct": "b206dc2e067f9475",
        "dinov2-base": "b6ff731a193fb84a"}


def test_an_editors_digest_follows_how_it_takes_frames_and_not_its_variable() -> None:
    card = ModelCard.model_validate(EDITOR)
    assert card.model_copy(update={"repo_env": "X"}).digest() == card.digest()
    assert card.model_copy(update={"edit": EditRules(frames_at_once=4)}).digest() != card.digest()
