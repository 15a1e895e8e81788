"""`reelray models` for language models: what a card says, and whether it is so. torch is loaded by `examine` alone."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

from configs.chat_card import ChatCard
from configs.memory import Share
from serve_app.findings import Finding
from serve_app.models import weights
from serve_app.models.repo import index_of
from workflows.errors import ReelrayError


def told(card: ChatCard, *, is_used: bool, share: Share) -> tuple[str, ...]:
    """Two lines for the list of cards."""
    use = "used here" if is_used else f"choose with --set story.writer=llm --set story.card={card.name}"
    lengths = f"{card.question_tokens} tokens of question, {card.answer_tokens} of answer"
    return f"  writes stories; {use}", f"  {lengths}; {share.gpus:g} GPU per replica"


def facts(card: ChatCard) -> list[tuple[str, str]]:
    """Label and text, in reading order, without memory and sources."""
    return [
        ("does", "stories (story.card)"),
        ("repo", card.repo + (f" at {card.revision}" if card.revision else "")),
        ("weights", str(weights.find(card) or f"not here; `reelray models pull {card.name}`")),
        ("licence", " ".join([card.licence, card.licence_url])),
        ("", card.licence_terms + (" Gated: the hub asks you to accept its terms." if card.gated else "")),
        ("dtype", card.dtype),
        ("question", f"up to {card.question_tokens} tokens, instructions and script"),
        ("answer", f"up to {card.answer_tokens} tokens"),
        ("template", ", ".join(f"{name} {value}" for name, value in card.template.items())),
    ]


def examine(card: ChatCard, *, load: bool = False, checksums: bool = False) -> Iterator[Finding]:
    """Class, weights, size; with `checksums` every byte of a hub snapshot, with `load` the model itself."""
    from serve_app.models_check import DTYPE_BYTES, LEAST_GB, TOLERANCE, compared, values

    try:
        directory = weights.require(card)
    except ReelrayError as error:
        yield Finding(level="fail", what="card", text=str(error))
        return
    yield _class(card, directory)
    if found := weights.gaps(directory, card):
        yield Finding(level="fail", what="weights", text=f"{directory}: {'; '.join(found)}")
        return
    stored = [path for path in directory.glob("*.safetensors") if weights.TOP_WEIGHTS.fullmatch(path.name)]
    size_gb = sum(path.stat().st_size for path in stored) / 1e9
    yield Finding(level="ok", what="weights", text=f"whole, {size_gb:.2f} GB at {directory}")
    if card.memory is not None:
        said_gb, found_gb = card.memory.total_gb, sum(map(values, stored)) * DTYPE_BYTES[card.dtype] / 1e9
        if abs(found_gb - said_gb) > max(said_gb * TOLERANCE, LEAST_GB):
            yield Finding(level="note", what="memory", text=f"the card says {said_gb:g} GB in {card.dtype}, its files "
                                                            f"come to {found_gb:.2f} GB")
    if checksums:
        yield compared(directory)
    if load:
        yield _loaded(card)


def _class(card: ChatCard, directory: Path) -> Finding:
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = json.loads((directory / index_of(card)).read_text(encoding="utf-8")).get("model_type")
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    if known:
        return Finding(level="ok", what="classes", text=str(known))
    return Finding(level="fail", what="classes",
                   text=f"transformers {transformers.__version__} has no language model {kind!r}")


def _loaded(card: ChatCard) -> Finding:
    import torch

    from serve_app.models import chat_model

    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    started = time.perf_counter()
    try:
        chat_model.load(card, device)
    except ReelrayError as error:
        return Finding(level="fail", what="load", text=str(error))
    peak = f", {torch.cuda.max_memory_allocated() / 1e9:.2f} GB of it" if device != "cpu" else ""
    return Finding(level="ok", what="load", text=f"chat in {time.perf_counter() - started:.1f} s on {device}{peak}")
