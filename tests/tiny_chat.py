"""Tiny random language models of the real classes, with tokenizer and chat template, built offline.

What they say is noise, never a storyboard; loading, template, limits, stopping and determinism are the real code.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from configs.chat_card import ChatCard
from serve_app.providers.chat import Message
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


def teach(repo: Path, lessons: Sequence[tuple[Sequence[Message], str]], *, most_steps: int = 600) -> int:
    """Train the checkpoint in `repo` until it gives these answers to these questions, word for word; steps it took."""
    torch.set_num_threads(1)  # two threads on a busy two-core machine are ten times slower than one
    tokenizer = PreTrainedTokenizerFast.from_pretrained(repo)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(Qwen2Config(**{**SHAPE, "hidden_size": 64, "intermediate_size": 128,
                                                "num_attention_heads": 4, "num_key_value_heads": 2}))
    rows = []
    for messages, answer in lessons:
        asked = tokenizer.apply_chat_template([message.to_json() for message in messages], add_generation_prompt=True,
                                              return_dict=True)["input_ids"]
        rows.append((len(asked), torch.tensor([[*asked, *tokenizer.encode(answer), BYTES + 2]])))
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    model.train()
    for step in range(1, most_steps + 1):
        knows = True
        for length, ids in rows:
            logits = model(ids, logits_to_keep=ids.shape[1] - length + 1).logits[0, :-1]
            wanted = ids[0, length:]
            knows = knows and bool((logits.argmax(-1) == wanted).all())
            torch.nn.functional.cross_entropy(logits, wanted).backward()
        if knows:
            model.eval().save_pretrained(repo)
            return step
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    raise AssertionError(f"not learned in {most_steps} steps")
