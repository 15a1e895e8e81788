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

from configs.model_card import PromptWorld
from serve_app.models.sketch.codec import SketchCodec

MAX_TOKENS = 24
"""Prompt length in tokens, in training and in every call; the card's `max_sequence_length` says the same."""
FLOW_SHIFT = 2.0
TEXT_WIDTH = 128
SPECIAL = ("<pad>", "</s>", "<unk>")


@dataclass(slots=True, kw_only=True)
class Parts:
    """What a pipeline directory holds, except the scheduler."""

    tokenizer: PreTrainedTokenizerFast
    text_encoder: UMT5EncoderModel
    transformer: WanTransformer3DModel
    codec: SketchCodec


def build_tokenizer(world: PromptWorld) -> PreTrainedTokenizerFast:
    """A word tokenizer that keeps the world's words, drops all others, and gives a background colour its own token.

    The role token is decisive: a text encoder trained from nothing reads "red circle, blue background" as a bag of
    words and swaps the two colours. Dropping unknown words lets prompts speak of lenses and moods without harm.
    """
    nouns = sorted({match for phrase in world.background_phrases for match in re.findall(r"\{b\} (\w+)", phrase)})
    known = sorted(world.words() - set(world.fillers))
    roles = [f"{name}{noun}" for name in sorted(world.backgrounds) for noun in ("ground",)]
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *known, *roles])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.Lowercase(),
        normalizers.Replace(Regex(r"[^a-z]+"), " "),
        normalizers.Replace(Regex(rf"\b(?!(?:{'|'.join(known)})\b)[a-z]+\b"), " "),
        normalizers.Replace(Regex(r" +"), " "),
        *(normalizers.Replace(Regex(rf"\b{name} (?:{'|'.join(nouns)})\b"), f"{name}ground")
          for name in sorted(world.backgrounds)),
        normalizers.Strip(),
    ])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>",
                                                             special_tokens=[("</s>", vocabulary["</s>"])])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
                                   model_max_length=MAX_TOKENS)


def build_parts(world: PromptWorld, codec: SketchCodec) -> Parts:
    """Untrained parts around a codec; the denoiser starts by answering zero.

    A token is 16 x 16 pixels of one latent frame, 72 in a clip of nine frames. Tokens of 32 x 32 pixels were three
    times cheaper and never learned to agree with their neighbours.
    """
    tokenizer = build_tokenizer(world)
    text_encoder = UMT5EncoderModel(UMT5Config(
        vocab_size=len(tokenizer), d_model=TEXT_WIDTH, d_kv=32, d_ff=256, num_layers=2, num_heads=4, dropout_rate=0.0))
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=3, attention_head_dim=48, in_channels=codec.config.z_dim,
        out_channels=codec.config.z_dim, text_dim=TEXT_WIDTH, freq_dim=128, ffn_dim=448, num_layers=6,
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
