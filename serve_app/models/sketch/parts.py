"""The pipeline's learned and built parts at birth: tokenizer, text encoder, denoiser, and their way to disk."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from configs.prompt_world import PromptWorld
from serve_app.models.sketch.codec import SketchCodec

MAX_TOKENS = 16
"""Prompt length in tokens, in training and in every call; the card's `max_sequence_length` says the same."""
FLOW_SHIFT = 3.0
TEXT_WIDTH = 128
SPECIAL = ("<pad>", "</s>", "<unk>")


@dataclass(slots=True, kw_only=True)
class Parts:
    """What a pipeline directory holds, except the scheduler."""

    tokenizer: PreTrainedTokenizerFast
    text_encoder: UMT5EncoderModel
    transformer: WanTransformer3DModel
    codec: SketchCodec


def rewrites(world: PromptWorld) -> list[tuple[str, str]]:
    """What the tokenizer replaces, in order: a pattern over lower-case words, and the token it means.

    A background's colour gets a token of its own, a synonym that of its meaning. The first is decisive: a text encoder
    trained from nothing reads "red circle, blue background" as a bag of words and swaps the two colours.
    """
    nouns = sorted({match for phrase in world.background_phrases for match in re.findall(r"\{b\} (\w+)", phrase)})
    pairs = [(rf"\b{name} (?:{'|'.join(nouns)})\b", background_token(name)) for name in sorted(world.backgrounds)]
    meanings = [(phrase, meaning) for group in (world.objects, world.motions)
                for meaning, phrases in group.items() for phrase in phrases]
    # The longest first, so that "falls down" is one motion and not two.
    meanings.sort(key=lambda pair: -len(pair[0]))
    return pairs + [(rf"\b{phrase}\b", meaning) for phrase, meaning in meanings if phrase != meaning]


def background_token(name: str) -> str:
    """The token of a background's colour."""
    return f"{name}ground"


def build_tokenizer(world: PromptWorld) -> PreTrainedTokenizerFast:
    """A tokenizer of meanings: it brings synonyms to one token each and drops every word that the world lacks.

    So prompts may speak of lenses and moods without harm, and the denoiser need not learn that a ball is a circle.
    """
    known = [*world.objects, *world.colours, *world.motions, *map(background_token, sorted(world.backgrounds))]
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *known])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.Lowercase(),
        normalizers.Replace(Regex(r"[^a-z]+"), " "),
        *(normalizers.Replace(Regex(pattern), meaning) for pattern, meaning in rewrites(world)),
        normalizers.Replace(Regex(rf"\b(?!(?:{'|'.join(known)})\b)[a-z]+\b"), " "),
        normalizers.Replace(Regex(r" +"), " "),
        normalizers.Strip(),
    ])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>",
                                                             special_tokens=[("</s>", vocabulary["</s>"])])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
                                   model_max_length=MAX_TOKENS)


def build_parts(world: PromptWorld, codec: SketchCodec) -> Parts:
    """Untrained parts around a codec; the denoiser starts by answering zero.

    A token is 32 x 32 pixels of one latent frame, 72 in a clip of 17 frames.
    """
    tokenizer = build_tokenizer(world)
    text_encoder = UMT5EncoderModel(UMT5Config(
        vocab_size=len(tokenizer), d_model=TEXT_WIDTH, d_kv=32, d_ff=256, num_layers=1, num_heads=4, dropout_rate=0.0))
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=4, attention_head_dim=48, in_channels=codec.config.z_dim,
        out_channels=codec.config.z_dim, text_dim=TEXT_WIDTH, freq_dim=128, ffn_dim=576, num_layers=6,
        rope_max_seq_len=64)
    torch.nn.init.zeros_(transformer.proj_out.weight)
    torch.nn.init.zeros_(transformer.proj_out.bias)
    return Parts(tokenizer=tokenizer, text_encoder=text_encoder, transformer=transformer, codec=codec)


def save_parts(parts: Parts, out: Path) -> None:
    """Write the parts as a WanPipeline directory; weights are rounded to float16 and load as any type."""
    WanPipeline(
        tokenizer=parts.tokenizer,
        text_encoder=copy.deepcopy(parts.text_encoder).half().eval(),
        vae=copy.deepcopy(parts.codec).half().eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=FLOW_SHIFT),
        transformer=copy.deepcopy(parts.transformer).half().eval(),
        expand_timesteps=True,
    ).save_pretrained(out)
