"""A card's options through the real loader, on tiny checkpoints: they work and are seen, or are refused by name."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, WanTransformer3DModel
from PIL import Image

from configs.model_card import ModelCard, Task
from configs.model_options import TextCache
from serve_app.models import options, pipelines
from serve_app.models.ladder import Ladder
from serve_app.models.studio import open_studio, warm_up, warm_up_take
from serve_app.models.text_cache import RememberedPrompts
from tests.families import BY_NAME
from workflows.errors import InvalidDocument

EXACT = 0.0
ROUNDED = 1e-5
COARSE = 0.2
NO_TORCHAO = importlib.util.find_spec("torchao") is None
NO_GGUF = importlib.util.find_spec("gguf") is None


@pytest.fixture(autouse=True)
def own_attention() -> Iterator[None]:
    """diffusers remembers the last back end for the whole process."""
    yield
    tiny = WanTransformer3DModel(num_attention_heads=1, attention_head_dim=12, text_dim=8, ffn_dim=8, num_layers=1)
    tiny.set_attention_backend("native")


def loaded(family: str, checkpoints: Path, **wanted: object) -> tuple[DiffusionPipeline, ModelCard]:
    card = BY_NAME[family].card(checkpoints, options=wanted)
    return pipelines.load(card, BY_NAME[family].task, "cpu"), card


@pytest.mark.parametrize(("family", "wanted", "used", "distance"), [
    ("wan_t2v", {"attention": ["_flash_3", "_native_cudnn", "_native_math"]},
     {"attention.transformer": "_native_math"}, ROUNDED),
    ("sdxl", {"attention": ["_native_cudnn", "native"]}, {}, EXACT),
    ("sdxl", {"attention_slicing": "max"}, {}, ROUNDED),
    ("wan_t2v", {"vae": {"slicing": True, "channels_last": True}}, {}, ROUNDED),
    ("sdxl", {"vae": {"tiling": True, "channels_last": True}}, {}, ROUNDED),  # smaller than a tile
    ("wan_t2v", {"quantise": {"transformer": "float8_storage"}}, {"quantise.transformer": "float8_storage"}, COARSE),
    ("svd", {"quantise": {"unet": "float8_storage"}}, {"quantise.unet": "float8_storage"}, COARSE),
    # On a CPU, weights that were moved lie at other addresses than those in a mapped file, and kernels may differ.
    ("wan_t2v", {"offload": "model"}, {"offload": "model"}, ROUNDED),
    ("wan_t2v", {"offload": "group"}, {"offload": "group"}, EXACT),
    ("sdxl", {"text_cache": {}, "evict_text_encoders": True},
     {"evict_text_encoders": "text_encoder, text_encoder_2"}, EXACT),
])
def test_an_option_works_and_is_seen(
        family: str, wanted: dict[str, object], used: dict[str, str], distance: float, checkpoints: Path,
        reference_of: Callable[[str], torch.Tensor]) -> None:
    expected = reference_of(family)  # before a back end is chosen for the whole process
    pipe, card = loaded(family, checkpoints, **wanted)
    found = BY_NAME[family].render(pipe, checkpoints, callback=lambda *_: None)
    assert float((found - expected).abs().max()) <= distance
    assert options.used(pipe, card) == used
    assert distance < COARSE or not torch.equal(found, expected)


def test_several_gpus_take_the_first_back_end_that_they_can_share(checkpoints: Path) -> None:
    for parallel, expected in (({"ulysses": 2}, "native"), (None, "_native_math")):
        wanted = {"attention": ["_native_math", "native"]}
        card = BY_NAME["wan_t2v"].card(checkpoints, parallel=parallel, options=wanted)
        pipe = pipelines.load(card, Task.TEXT_TO_VIDEO, "cpu")
        assert options.used(pipe, card) == {"attention.transformer": expected}
    with pytest.raises(InvalidDocument, match="the class has no context-parallel plan"):
        pipelines.load(BY_NAME["sdxl"].card(checkpoints, parallel={"ulysses": 2}), Task.TEXT_TO_IMAGE, "cpu")


@pytest.mark.parametrize(("family", "wanted", "field", "told", "nearest"), [
    ("wan_t2v", {"attention": ["_flash_3", "sage"]}, "attention",
     r"none works for transformer \(WanTransformer3DModel\) on cpu.*_flash_3: .*build FA3.*sage: .*sageattention>=",
     "native"),
    ("svd", {"attention": ["_native_cudnn"]}, "attention", "UNetSpatioTemporalConditionModel lets nobody choose",
     "native"),
    ("wan_t2v", {"attention_slicing": "auto"}, "attention_slicing", "has no sliced attention", "none"),
    ("svd", {"attention_slicing": "auto"}, "attention_slicing", "has no sliced attention", "none"),
    ("svd", {"vae": {"tiling": True}}, "vae.tiling", "cannot decode with tiling", "false"),
    ("svd", {"vae": {"slicing": True}}, "vae.slicing", "cannot decode with slicing", "false"),
    ("sdxl", {"quantise": {"transformer": "float8_storage"}}, "quantise.transformer", "no component 'transformer'",
     ""),
    ("sdxl", {"quantise": {"text_encoder": "float8_storage"}}, "quantise.text_encoder", "no layerwise casting",
     "int8_weight_only"),
    ("wan_t2v", {"quantise": {"transformer": "gguf:/nowhere/a.gguf"}}, "quantise.transformer",
     r"there is no file /nowhere/a\.gguf", ""),
    ("wan_t2v", {"quantise": {"text_encoder": "gguf:/nowhere/a.gguf"}}, "quantise.text_encoder",
     "for components of diffusers, not of transformers", "int8_weight_only"),
    ("sdxl", {"offload": "sequential"}, "offload", "by sequential: there is no GPU", "group"),
    ("svd", {"text_cache": {}}, "text_cache", "StableVideoDiffusionPipeline has no encode_prompt", "leave it out"),
    ("svd", {"evict_text_encoders": True}, "evict_text_encoders", "has no text encoder", "false"),
    ("svd", {"compile": "regional"}, "compile", "does not say which of its blocks repeat", "none"),
    pytest.param("sdxl", {"quantise": {"unet": "int8_dynamic"}}, "quantise.unet", "`pip install torchao`",
                 "float8_storage", marks=pytest.mark.skipif(not NO_TORCHAO, reason="torchao is installed")),
])
def test_what_a_pipeline_cannot_do_is_refused_by_name(
        family: str, wanted: dict[str, object], field: str, told: str, nearest: str, checkpoints: Path) -> None:
    with pytest.raises(InvalidDocument, match=told) as refusal:
        loaded(family, checkpoints, **wanted)
    assert [(problem.field, problem.nearest) for problem in refusal.value.problems] == [(f"options.{field}", nearest)]


def test_weights_that_come_one_by_one_are_in_main_memory_and_wait_for_their_device(checkpoints: Path) -> None:
    pipe = BY_NAME["sdxl"].load(checkpoints)
    pipe.reset_device_map()
    options.offload(pipe, "sequential", "meta")  # the only other device of this machine: it takes weights, not sums
    linear = next(module for module in pipe.text_encoder.modules() if isinstance(module, torch.nn.Linear))
    assert pipe._execution_device == torch.device("meta:0")
    assert linear._hf_hook.weights_map["weight"].device.type == "cpu"


@pytest.mark.parametrize("kind", ["group", "model"])
def test_two_tasks_of_one_card_are_treated_once(kind: str, checkpoints: Path) -> None:
    card = BY_NAME["wan_ti2v"].card(checkpoints, pipelines={
        Task.TEXT_TO_VIDEO: "WanPipeline", Task.IMAGE_TO_VIDEO: "WanImageToVideoPipeline"},
        options={"offload": kind, "text_cache": {}, "quantise": {"transformer": "float8_storage"}})
    first = pipelines.load(card, Task.TEXT_TO_VIDEO, "cpu")
    second = pipelines.load(card, Task.IMAGE_TO_VIDEO, "cpu", first.components)
    assert second.transformer is first.transformer
    assert options.used(first, card) == options.used(second, card) == {
        "quantise.transformer": "float8_storage", "offload": kind}
    frames = [pipe(prompt="a", width=32, height=32, num_frames=5, num_inference_steps=1, output_type="pt",
                   generator=torch.Generator("cpu").manual_seed(1), **start).frames
              for pipe, start in ((first, {}), (second, {"image": Image.new("RGB", (32, 32))}), (first, {}))]
    assert torch.equal(frames[0], frames[2])


# -- text --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["wan_t2v", "sdxl", *(pytest.param(name, marks=pytest.mark.slow) for name in (
    "wan21_i2v", "wan22_t2v", "ltx", "ltx2", "hv15", "flux", "z_image", "qwen_image"))])
def test_remembered_prompts_give_the_same_bytes_and_the_encoders_rest(
        family: str, checkpoints: Path, reference_of: Callable[[str], torch.Tensor]) -> None:
    pipe, _ = loaded(family, checkpoints, text_cache={"prompts": 2}, evict_text_encoders=True)
    calls: list[str] = []
    for name, part in pipe.components.items():
        if name.startswith("text_encoder"):
            part.register_forward_hook(lambda *_, name=name: calls.append(name))

    def render(**changes: object) -> tuple[torch.Tensor, int]:
        calls.clear()
        found = BY_NAME[family].render(pipe, checkpoints, callback=lambda *_: None, **changes)
        return found, len(calls)

    first, encoded = render()
    again, remembered = render()
    other, missed = render(prompt="a blue square")
    assert torch.equal(first, reference_of(family))
    assert torch.equal(again, first)
    assert not torch.equal(other, first)
    assert (encoded > 0, remembered, missed > 0) == (True, 0, True)


def test_the_oldest_unused_prompt_goes_first_and_too_large_ones_are_not_kept() -> None:
    asked: list[str] = []

    def encode(prompt: str, *, length: int = 100) -> tuple[torch.Tensor, None]:
        asked.append(prompt)
        return torch.zeros(length), None

    remember = RememberedPrompts(encode, TextCache(prompts=2, mb=1))
    for prompt in ("a", "b", "a", "c", "a", "b"):
        remember(prompt)
    assert asked == ["a", "b", "c", "b"]
    remember(prompt="b")  # by keyword or not, with a default or not
    remember("b", length=100)
    assert asked == ["a", "b", "c", "b"]
    for _ in range(2):
        remember("large", length=10**6)
    assert asked[-2:] == ["large", "large"]
    mine, _ = remember("b")
    mine += 1
    assert float(remember("b")[0].sum()) == 0.0


# -- compiling, and packages that may be missing -------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("family", ["wan22_t2v", "sdxl", "qwen_image"])
def test_compiled_blocks_are_warm_at_the_default_shape_and_equal_within_rounding(
        family: str, checkpoints: Path, reference_of: Callable[[str], torch.Tensor]) -> None:
    card = BY_NAME[family].card(checkpoints, options={"compile": "regional"})
    made: list[DiffusionPipeline] = []

    def load(card: ModelCard, task: Task, device: str, components: object = None) -> DiffusionPipeline:
        made.append(pipelines.load(card, task, device))
        return made[-1]

    studio = open_studio(card, "cpu", load)
    assert warm_up_take(card, BY_NAME[family].task).frames == card.defaults.frames
    warm_up(studio, card, Ladder(card, "cpu", None))
    counted = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert counted > 0
    found = BY_NAME[family].render(made[0], checkpoints, callback=lambda *_: None)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == counted  # nothing was left to compile
    assert float((found - reference_of(family)).abs().max()) <= 1e-3
    assert any(name.startswith("compile.") for name in studio.used)


@pytest.mark.slow
@pytest.mark.skipif(NO_TORCHAO, reason="torchao is not installed")
@pytest.mark.parametrize("scheme", ["int8_weight_only", "int8_dynamic", "float8_weight_only"])
def test_torchao_quantises_components_of_both_libraries(
        scheme: str, checkpoints: Path, reference_of: Callable[[str], torch.Tensor]) -> None:
    wanted = {"transformer": scheme, "text_encoder": scheme}
    pipe, card = loaded("wan_t2v", checkpoints, quantise=wanted)
    found = BY_NAME["wan_t2v"].render(pipe, checkpoints, callback=lambda *_: None)
    assert options.used(pipe, card) == {f"quantise.{name}": scheme for name in wanted}
    assert 0 < float((found - reference_of("wan_t2v")).abs().max()) <= COARSE


@pytest.mark.slow
@pytest.mark.skipif(NO_GGUF, reason="gguf is not installed")
def test_a_gguf_file_takes_the_place_of_a_components_weights(
        checkpoints: Path, tmp_path: Path, pipe_of: Callable[[str], DiffusionPipeline],
        reference_of: Callable[[str], torch.Tensor]) -> None:
    import gguf

    writer = gguf.GGUFWriter(str(tmp_path / "wan.gguf"), "wan")
    for name, tensor in pipe_of("wan_t2v").transformer.state_dict().items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    pipe, card = loaded("wan_t2v", checkpoints, quantise={"transformer": f"gguf:{tmp_path / 'wan.gguf'}"})
    found = BY_NAME["wan_t2v"].render(pipe, checkpoints, callback=lambda *_: None)
    assert float((found - reference_of("wan_t2v")).abs().max()) <= ROUNDED
    assert options.used(pipe, card) == {"quantise.transformer": f"gguf:{tmp_path / 'wan.gguf'}"}
