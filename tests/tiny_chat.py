"""Tiny random language models of the real classes, with tokenizer and chat template, built offline.

What they say is noise, never a storyboard; loading, template, limits, stopping and determinism are the real code.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from configs.chat_card import ChatCard
from tests.tiny_text import CHAT_TEMPLATE, byte_tokenizer

PLACES = 8192
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
BYTES = 256
SHAPE = {"vocab_size": BYTES + len(SPECIAL), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": PLACES,
         "pad_token_id": BYTES, "eos_token_id": BYTES + 2, "bos_token_id": None}


def qwen2() -> PreTrainedModel:
    return Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=True))


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SHAPE))


FAMILIES = {"qwen2": qwen2, "llama": llama}


def build(directory: Path, family: str = "qwen2", *, chat: str = CHAT_TEMPLATE) -> Path:
    """Write a checkpoint (weights from seed 0) below `directory`; return its folder."""
    target = directory / family
    with torch.random.fork_rng():
        torch.manual_seed(0)
        FAMILIES[family]().save_pretrained(target)
    byte_tokenizer(SPECIAL, pad=SPECIAL[0], eos=SPECIAL[2], chat=chat).save_pretrained(target)
    return target


def card_of(repo: Path | str, **changes: object) -> ChatCard:
    """A card for such a checkpoint."""
    fields: dict[str, object] = {"name": "tiny-chat", "title": "Says noise", "loader": "transformers",
                                 "repo": str(repo), "context_tokens": PLACES, "answer_tokens": 64}
    return ChatCard.model_validate({**fields, **changes})
