"""Reference pictures through the real loaders, on tiny checkpoints: seen, in order, counted, harmless when absent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from configs.model_card import Task
from configs.settings import MediaSettings, ModelsSettings
from serve_app.models import adapters, pipelines
from serve_app.models.ladder import Ladder
from serve_app.models.reference_input import GREY_HWC
from serve_app.models.replica import ModelReplica
from serve_app.models.studio import warm_up, warm_up_take
from serve_app.models.takes import Take
from serve_app.models.text_to_image import TextToImage
from serve_app.models.text_to_video import TextToVideo
from tests.fake_hub import fake_hub
from tests.fakes_models import RememberingSink, render_call
from tests.families import BY_NAME, STEPS
from tests.tiny_pictures import ADAPTER_FILE
from tests.unit.models.test_weights import reelray
from workflows.errors import InvalidDocument, Problem, RenderRefused
from workflows.store import Store
from workflows.types import MediaType

PipeOf = Callable[[str], DiffusionPipeline]
KINDS = pytest.mark.parametrize("name", ["sdxl_ip_adapter", "flux2_klein"])
NOISE, STRIPES = (np.random.default_rng(0).integers(0, 256, (96, 80, 3), dtype=np.uint8),
                  np.tile(np.array([[[255, 0, 0]], [[0, 0, 255]]], np.uint8), (40, 70, 1)))


def quiet(step: int, total: int, timestep: float) -> None:
    """No bar in the output of the tests."""


def drawn(name: str, pipe_of: PipeOf, checkpoints: Path, *pictures: np.ndarray) -> np.ndarray:
    family = BY_NAME[name]
    model = TextToImage(pipe_of(name), family.card(checkpoints))
    take = family.take(references_HWC=pictures, guidance=3.0 if name.startswith("sdxl") else 1.0)
    assert model.problems(take) == ()
    return model.generate(take, progress_callback=quiet)


@KINDS
def test_the_picture_decides_what_is_drawn_and_always_the_same(name: str, pipe_of: PipeOf, checkpoints: Path) -> None:
    noise, stripes = (drawn(name, pipe_of, checkpoints, picture) for picture in (NOISE, STRIPES))
    assert not np.array_equal(noise, stripes)
    both, other_way = (drawn(name, pipe_of, checkpoints, *two) for two in ((NOISE, STRIPES), (STRIPES, NOISE)))
    assert not np.array_equal(both, noise)
    assert not np.array_equal(both, other_way) or name == "sdxl_ip_adapter"  # an adapter sees a set, not a row
    plain = drawn(name, pipe_of, checkpoints)
    assert not np.array_equal(plain, noise)
    assert np.array_equal(drawn(name, pipe_of, checkpoints, NOISE), noise)


def test_without_a_picture_the_adapter_changes_nothing(pipe_of: PipeOf, checkpoints: Path) -> None:
    drawn("sdxl_ip_adapter", pipe_of, checkpoints, NOISE)  # what a call leaves behind must not show either
    plain = BY_NAME["sdxl"].card(checkpoints)
    bare = TextToImage(pipe_of("sdxl"), plain).generate(BY_NAME["sdxl"].take(), progress_callback=quiet)
    assert np.array_equal(drawn("sdxl_ip_adapter", pipe_of, checkpoints), bare)


def test_all_of_an_oblong_picture_is_seen(pipe_of: PipeOf, checkpoints: Path) -> None:
    edges = np.full((64, 200, 3), 128, np.uint8)
    edges[:, :40] = edges[:, -40:] = (255, 0, 0)  # outside the square in the middle
    grey = np.full((64, 200, 3), 128, np.uint8)
    assert not np.array_equal(drawn("sdxl_ip_adapter", pipe_of, checkpoints, edges),
                              drawn("sdxl_ip_adapter", pipe_of, checkpoints, grey))


@KINDS
@pytest.mark.parametrize(("pictures", "problem", "nearest"), [
    ((NOISE, NOISE, STRIPES), "3 reference pictures, and this model takes 2", "2"),
    ((NOISE, NOISE[:40]), "number 2 is a reference picture of 80x40 px", "sides of 64 px at least"),
    ((np.zeros((70, 700, 3), np.uint8),), "number 1 is a reference picture of 700x70 px", "at most 8 times"),
])
def test_what_cannot_be_looked_at_is_refused(name: str, pictures: tuple[np.ndarray, ...], problem: str, nearest: str,
                                             pipe_of: PipeOf, checkpoints: Path) -> None:
    family = BY_NAME[name]
    model = TextToImage(pipe_of(name), family.card(checkpoints))
    (found,) = model.problems(family.take(references_HWC=pictures, guidance=1.0))
    assert found.problem == problem
    assert nearest in found.nearest


@pytest.mark.parametrize(("name", "task"), [("sdxl", Task.TEXT_TO_IMAGE), ("wan_t2v", Task.TEXT_TO_VIDEO)])
def test_a_model_that_takes_none_refuses_one(name: str, task: Task, pipe_of: PipeOf, checkpoints: Path) -> None:
    family = BY_NAME[name]
    model = (TextToImage if task is Task.TEXT_TO_IMAGE else TextToVideo)(pipe_of(name), family.card(checkpoints))
    (found,) = model.problems(family.take(references_HWC=(NOISE,)))
    assert (found.field, found.nearest) == ("references", "0")


def test_an_editor_draws_nothing_without_a_picture_and_is_warmed_up_with_one(pipe_of: PipeOf, checkpoints: Path,
                                                                             ) -> None:
    family = BY_NAME["flux2_klein"]
    card = family.card(checkpoints, references={"kind": "native", "max_pictures": 1, "required": True})
    model = TextToImage(pipe_of("flux2_klein"), card)
    (found,) = model.problems(family.take(guidance=1.0))
    assert found.problem == "this model draws nothing without a reference picture"
    assert model.problems(warm_up_take(card, Task.TEXT_TO_IMAGE)) == ()
    warm_up({Task.TEXT_TO_IMAGE: model}, card, Ladder(card, "cpu", None))


class _Heard:
    """A painter that remembers how many reference pictures each call had."""

    def __init__(self, painter: TextToImage) -> None:
        self.painter = painter
        self.pictures: list[int] = []

    def problems(self, take: Take) -> tuple[Problem, ...]:
        return self.painter.problems(take)

    def warnings(self, take: Take) -> tuple[str, ...]:
        return self.painter.warnings(take)

    def generate(self, take: Take, **_: object) -> np.ndarray:
        self.pictures.append(len(take.references_HWC))
        return GREY_HWC


def test_what_can_draw_without_a_picture_is_warmed_up_both_ways(pipe_of: PipeOf, checkpoints: Path) -> None:
    card = BY_NAME["flux2_klein"].card(checkpoints, references={"kind": "native", "max_pictures": 1})
    heard = _Heard(TextToImage(pipe_of("flux2_klein"), card))
    warm_up({Task.TEXT_TO_IMAGE: heard}, card, Ladder(card, "cpu", None))
    assert heard.pictures == [1, 0]


@pytest.mark.parametrize(("family", "references", "field"), [
    ("wan_t2v", {"kind": "native", "max_pictures": 1}, "references.kind"),
    ("sdxl", {"kind": "native", "max_pictures": 1}, "references.kind"),
])
def test_a_kind_that_the_pipeline_has_no_argument_for_is_refused(
        family: str, references: dict[str, object], field: str, pipe_of: PipeOf, checkpoints: Path) -> None:
    card = BY_NAME[family].card(checkpoints, references=references,
                                pipelines={Task.TEXT_TO_IMAGE: BY_NAME[family].pipeline})
    with pytest.raises(InvalidDocument) as refusal:
        TextToImage(pipe_of(family), card)
    assert [problem.field for problem in refusal.value.problems] == [field]


# -- the adapter's files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "says"), [
    ({"weight_file": "sdxl_models/ip-adaptor.safetensors"}, "sdxl_models/ip-adaptor.safetensors: missing"),
    ({"image_encoder": "models/other"}, "models/other/config.json: missing; models/other/model.safetensors: missing"),
    ({"image_encoder": ""}, "the checkpoint has no picture encoder"),
    ({"repo": "acme/adapter"}, "run `reelray models pull sdxl-ip-adapter` first"),
], ids=["unknown weight file", "unknown encoder", "no encoder", "not pulled"])
def test_files_that_are_not_there_are_named(changes: dict[str, object], says: str, checkpoints: Path) -> None:
    card = BY_NAME["sdxl_ip_adapter"].card(checkpoints)
    assert card.references is not None
    wrong = card.model_copy(update={"references": card.references.model_copy(update=changes)})
    with pytest.raises(InvalidDocument) as refusal:
        pipelines.load(wrong, Task.TEXT_TO_IMAGE, "cpu")
    assert says in str(refusal.value)


def test_a_weight_file_that_is_cut_short_or_of_another_model_is_named(checkpoints: Path, tmp_path: Path) -> None:
    card = BY_NAME["sdxl_ip_adapter"].card(checkpoints)
    adapter = adapters.adapter_of(card)
    assert adapter is not None
    whole = Path(adapter.repo)
    moved = tmp_path / "adapter"
    (moved / "sdxl_models").mkdir(parents=True)
    (moved / "models").symlink_to(whole / "models")
    here = replace_repo(card, moved)
    (moved / ADAPTER_FILE).write_bytes((whole / ADAPTER_FILE).read_bytes()[:-10])
    with pytest.raises(InvalidDocument, match="cut short"):
        pipelines.load(here, Task.TEXT_TO_IMAGE, "cpu")
    tensors = load_file(whole / ADAPTER_FILE)
    save_file({name: tensor for name, tensor in tensors.items() if not name.startswith("ip_adapter.3.")},
              moved / ADAPTER_FILE)
    with pytest.raises(InvalidDocument, match=r"references\.weight_file: .* does not fit"):
        pipelines.load(here, Task.TEXT_TO_IMAGE, "cpu")


def replace_repo(card, repo: Path):
    return card.model_copy(update={"references": card.references.model_copy(update={"repo": str(repo)})})


def test_a_pipeline_of_another_kind_takes_no_adapter(checkpoints: Path) -> None:
    references = BY_NAME["sdxl_ip_adapter"].card(checkpoints).references
    card = BY_NAME["flux"].card(checkpoints, references=references)
    with pytest.raises(InvalidDocument, match="FluxPipeline takes no IP-Adapter"):
        pipelines.load(card, Task.TEXT_TO_IMAGE, "cpu")


# -- one replica, and files from a hub ------------------------------------------------------------------------------


async def test_a_replica_draws_from_stored_pictures_turned_as_they_say(checkpoints: Path, tmp_path: Path) -> None:
    card, store = BY_NAME["sdxl_ip_adapter"].card(checkpoints), Store(str(tmp_path / "store"))
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown turned by a quarter
    Image.fromarray(np.rot90(NOISE)).save(tmp_path / "turned.png", exif=turned)
    Image.fromarray(NOISE).save(tmp_path / "upright.png")
    Image.fromarray(STRIPES).save(tmp_path / "other.png")
    kept = {name: store.put(number * 32, tmp_path / f"{name}.png", media_type=MediaType.PNG, manifest={})
            for number, name in zip("abc", ("turned", "upright", "other"), strict=True)}
    replica = ModelReplica(card, ModelsSettings(torch_threads=1), MediaSettings(), store, RememberingSink(),
                           assigned_gpus=0)
    try:
        sums = {}
        for number, names in enumerate([("turned",), ("upright",), ("other",), ()]):
            call = render_call(card, key=str(number) * 32, frames=1, steps=STEPS,
                               references=tuple(kept[name] for name in names))
            sums[names] = (await replica.image(call)).artifact.sha256
        with pytest.raises(RenderRefused, match="3 reference pictures, and this model takes 2"):
            await replica.image(replace(call, key="d" * 32, references=tuple(kept.values())))
    finally:
        replica.close()
    assert sums["turned",] == sums["upright",]
    assert len({sums["upright",], sums["other",], sums[()]}) == 3
    asked = (store.manifest("0" * 32) or {})["made"]["call"]
    assert asked["references"] == [kept["turned"].to_json()]
    assert "references" not in (store.manifest("3" * 32) or {})["made"]["call"]


CARD = """
name: tiny
title: A tiny SDXL with an adapter
repo: {model}
pipelines: {{text_to_image: StableDiffusionXLPipeline}}
references: {{kind: ip_adapter, max_pictures: 2, repo: acme/adapter, weight_file: {file}, image_encoder: {encoder}}}
defaults: {{steps: 4, guidance: 3, width_px: 32, height_px: 32}}
"""


@pytest.mark.slow
def test_the_commands_bring_the_adapters_files_and_nothing_beside_them(checkpoints: Path, tmp_path: Path) -> None:
    local = BY_NAME["sdxl_ip_adapter"].card(checkpoints)
    adapter = adapters.adapter_of(local)
    assert adapter is not None
    source = Path(shutil.copytree(adapter.repo, tmp_path / "repo"))
    (source / "models" / "image_encoder" / "pytorch_model.bin").write_bytes(b"pickle" * 1000)
    (source / "models" / "other.safetensors").write_bytes(b"x" * 5000)
    (tmp_path / "cards").mkdir()
    write = (tmp_path / "cards" / "tiny.yaml").write_text
    write(CARD.format(model=local.repo, file=ADAPTER_FILE, encoder=adapter.image_encoder))
    with fake_hub() as hub:
        hub.repos["acme/adapter"] = source
        missing = reelray(hub, tmp_path, "check", "tiny")
        assert missing.returncode == 1
        assert "run `reelray models pull tiny` first" in " ".join(missing.stdout.split())
        pull = reelray(hub, tmp_path, "pull", "tiny", "--json")
        assert pull.returncode == 0, pull.stderr
        assert json.loads(pull.stdout)["files"] == 3
        assert set(hub.gets) == set(adapter.files)
        check = reelray(hub, tmp_path, "check", "tiny", "--load", "--checksums")
        assert (check.returncode, "are whole" in check.stdout) == (0, True), check.stdout
        write(CARD.format(model=local.repo, file=ADAPTER_FILE.replace("plus", "puls"), encoder=adapter.image_encoder))
        wrong = reelray(hub, tmp_path, "pull", "tiny")
        assert wrong.returncode == 2
        assert f"nearest valid: {ADAPTER_FILE}" in " ".join(wrong.stderr.split())
