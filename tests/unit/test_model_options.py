"""What a card may say under `options`, how exact pictures stay, and what of it a digest holds."""

from __future__ import annotations

import inspect

import diffusers
import pytest
from diffusers.models.attention_dispatch import AttentionBackendName
from pydantic import ValidationError

from configs.load import load_cards, load_settings
from configs.model_card import NO_NEGATIVE_PROMPT, ModelCard
from configs.model_options import ATTENTION, FROM_THE_HUB, Exactness

CARDS = load_cards(load_settings("laptop", environ={}))
DIGESTS = {"wan2.1-t2v-1.3b": "0e339e031be709eb", "hunyuanvideo-1.5": "1b3d038ae99e68c3", "sketch": "deb121a10ec87ce0"}
"""As they were before cards had options."""


def wan(**options: object) -> ModelCard:
    return ModelCard.model_validate({**CARDS["wan2.1-t2v-1.3b"].model_dump(exclude_unset=True), "options": options})


def test_every_back_end_of_diffusers_is_known_or_known_to_download() -> None:
    assert {name.value for name in AttentionBackendName} == {*ATTENTION, *FROM_THE_HUB}
    assert set(FROM_THE_HUB.values()) <= set(ATTENTION)


@pytest.mark.parametrize(("options", "exactness"), [
    ({}, "bit"),
    ({"attention": ["native"], "offload": "model", "text_cache": {}, "vae": {"slicing": True}}, "bit"),
    ({"attention": ["_flash_3", "native"]}, "tolerance"),
    ({"attention_slicing": "max"}, "tolerance"),
    ({"compile": "regional", "evict_text_encoders": True}, "tolerance"),
    ({"vae": {"channels_last": True}}, "tolerance"),
    ({"vae": {"tiling": True}}, "approximate"),
    ({"attention": ["sage", "native"], "compile": "regional"}, "approximate"),
    ({"quantise": {"transformer": "float8_storage"}}, "approximate"),
])
def test_exactness_is_that_of_the_least_exact_option_and_a_digest_holds_what_is_not_bit(
        options: dict[str, object], exactness: str) -> None:
    card = wan(**options)
    assert card.exactness is Exactness(exactness)
    same = card.digest() == CARDS["wan2.1-t2v-1.3b"].digest()
    assert same is (exactness == "bit")
    assert {effect.option.partition(".")[0] for effect in card.effects()} == set(options)


def test_two_schemes_are_two_digests_and_the_older_tiling_keeps_its_own() -> None:
    assert wan(quantise={"transformer": "int8_dynamic"}).digest() != wan(
        quantise={"transformer": "float8_dynamic"}).digest()
    assert {name: CARDS[name].digest() for name in DIGESTS} == DIGESTS
    assert CARDS["sketch"].exactness is Exactness.BIT
    tiled = CARDS["hunyuanvideo-1.5"]
    assert tiled.vae_tiling
    assert [effect.render() for effect in tiled.effects()] == [
        "vae_tiling (approximate): seams between tiles are blended"]


@pytest.mark.parametrize(("options", "message"), [
    ({"attention": ["native_cudnn"]}, r"no attention back end 'native_cudnn'; nearest valid: _native_cudnn"),
    ({"attention": ["_flash_3_hub"]}, r"would download and run compiled code.*nearest valid: _flash_3"),
    ({"quantise": {"transformer": "int8"}}, r"no scheme 'int8'; nearest valid: int8_"),
    ({"quantise": {"transformer": "gguf:a.bin"}}, r"gguf:FILE with a file that ends in \.gguf"),
    ({"attention": ["native"], "attention_slicing": "auto"}, "take one of the two out"),
    ({"compile": "regional", "offload": "group"}, "nearest valid: offload: model, or compile: none"),
    ({"evict_text_encoders": True, "offload": "model"}, "take evict_text_encoders out"),
    ({"offload": "sequential", "quantise": {"transformer": "float8_storage"}}, "nearest valid: offload: group"),
    ({"compile": "regional", "quantise": {"transformer_2": "float8_storage"}},
     "nearest valid: transformer_2: float8_weight_only"),
    ({"atention": ["native"]}, "atention"),
])
def test_what_cannot_be_is_refused_with_the_nearest(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        wan(**options)


def test_cards_without_a_pipeline_have_no_options() -> None:
    with pytest.raises(ValidationError, match="take them out of a placeholder card"):
        ModelCard.model_validate({**CARDS["placeholder"].model_dump(exclude_unset=True),
                                  "options": {"offload": "model"}})
    with pytest.raises(ValidationError, match="say the same"):
        ModelCard.model_validate({**wan(vae={"tiling": True}).model_dump(exclude_unset=True), "vae_tiling": True})


def test_the_pipelines_that_are_known_to_have_no_negative_prompt_have_none() -> None:
    shipped = {name for card in CARDS.values() if card.loader == "diffusers" for name in card.pipelines.values()}
    without = {name for name in shipped | NO_NEGATIVE_PROMPT
               if "negative_prompt" not in inspect.signature(getattr(diffusers, name).__call__).parameters}
    assert without == NO_NEGATIVE_PROMPT
