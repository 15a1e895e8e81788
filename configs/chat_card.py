"""ChatCard: everything reelray knows of a language model that runs here, before it is loaded; one YAML file each."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

from pydantic import Field, model_validator

from configs.base import Frozen
from configs.model_card import Dtype, Memory, ModelCard, Positive, Resources
from configs.provenance import Provenance


class Sampling(Frozen):
    """How words are chosen where `story.temperature` is set. Without it the likeliest word is taken, always."""

    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Only the likeliest words that together have this share of the probability."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Only this many of the likeliest words; 0: all."""


class ChatCard(Provenance):
    """One language model as story writer: where it is, what it needs, how long its questions and answers may be."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    title: str
    """One line for lists."""
    loader: Literal["transformers"]
    """Says that this card is a language model's."""
    repo: Annotated[str, Field(min_length=1)]
    """A local path or a hub id: a transformers checkpoint with safetensors, a `tokenizer.json` and a chat template."""
    dtype: Dtype = "float32"
    context_tokens: Positive
    """Longest question and answer together. The cache of keys and values grows with it, so it may be far below what
    the model was trained for."""
    answer_tokens: Positive
    """Longest answer; a question may have what is left of `context_tokens`. A shot takes about 80 tokens."""
    sampling: Sampling = Sampling()
    template: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Arguments of the checkpoint's chat template, e.g. `enable_thinking: false`."""
    resources: Resources = Resources()
    memory: Memory | None = None

    @property
    def question_tokens(self) -> int:
        """Longest question."""
        return self.context_tokens - self.answer_tokens

    def digest(self) -> str:
        """Hex SHA-256 (16 digits) of all that can change a story; titles, memory and licences do not count."""
        tree = self.model_dump(mode="json", include={"name", "loader", "repo", "revision", "dtype", "context_tokens",
                                                     "answer_tokens", "sampling", "template"})
        body = json.dumps(tree, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(body.encode()).hexdigest()[:16]

    @model_validator(mode="after")
    def _peaks_are_of_tokens(self) -> ChatCard:
        for peak in self.memory.peaks if self.memory else ():
            if "tokens" not in peak.shape:
                raise ValueError(f"memory.peaks: {peak.shape!r} is no length of a text; nearest valid: "
                                 f"{self.context_tokens} tokens")
        return self

    @model_validator(mode="after")
    def _question_has_room(self) -> ChatCard:
        if self.question_tokens < self.context_tokens // 4:
            raise ValueError(f"answer_tokens {self.answer_tokens} leaves less than a quarter of context_tokens "
                             f"{self.context_tokens} to the question; nearest valid: {self.context_tokens * 3 // 4}")
        return self


AnyCard = ModelCard | ChatCard
"""What a YAML file of `models.card_dirs` may be; `loader` tells which."""
