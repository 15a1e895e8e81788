"""What goes wrong on a GPU thread, as errors of ours. Knows no model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from serve_app.models.lifecycle import Heartbeat, free_memory
from workflows.errors import GpuOutOfMemory, ModelFailed, ReelrayError, StageFailed

log = logging.getLogger(__name__)

T = TypeVar("T")


def guarded(work: Callable[[], T], *, label: str, heartbeat: Heartbeat, too_large: str) -> T:
    """`work()`; memory that runs out becomes GpuOutOfMemory (`too_large` says of what), other errors ModelFailed.

    Errors of ours pass. The heartbeat hears of those that no later call survives.
    """
    failure: StageFailed
    try:
        return work()
    except ReelrayError:
        raise
    except torch.OutOfMemoryError as error:
        failure = GpuOutOfMemory(node_id=label, reason=f"{too_large}: {short(error)}")
    except Exception as error:
        log.exception("%s: the model failed", label)
        heartbeat.note(error)
        failure = ModelFailed(node_id=label, reason=short(error))
    # Raised out here because the handled exception's traceback holds the tensors that are to be freed.
    free_memory()
    raise failure


def short(error: BaseException) -> str:
    """The error's type and first line."""
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}"[:300]
