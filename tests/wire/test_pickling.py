"""Whatever crosses a process boundary arrives as it left: every error type, every value type."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import fields, is_dataclass

import pytest
from ray import cloudpickle

from actors.progress import Poll, ProgressEvent, Receipt
from workflows.errors import ErrorRecord, InvalidDocument, Problem, ReelrayError, StageFailed
from workflows.ports import RenderCall
from workflows.types import Artifact, MediaType, NodeCall, NodeKind, NodeResult, NodeSpec, Phase, ProgressRecord


def all_errors(root: type[ReelrayError] = ReelrayError) -> Iterator[type[ReelrayError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__.startswith("workflows"):  # Ray makes classes of its own out of ours while it runs
            yield from all_errors(child)


def make(cls: type[ReelrayError]) -> ReelrayError:
    if not is_dataclass(cls):
        return cls()
    values = {field.name: f"a {field.name}" for field in fields(cls)}
    if cls is InvalidDocument:
        values = {"problems": (Problem(problem="wrong", line=3, shot_id="s1", nearest="77"),), "file": "film.yaml"}
    return cls(**values)


@pytest.mark.parametrize("cls", list(dict.fromkeys(all_errors())), ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("pickler", [pickle, cloudpickle], ids=["pickle", "cloudpickle"])
def test_every_error_keeps_type_fields_text_and_policy(cls: type[ReelrayError], pickler: object) -> None:
    error = make(cls)
    back = pickle.loads(pickler.dumps(error))  # type: ignore[attr-defined]
    assert type(back) is cls
    assert back.__dict__ == error.__dict__
    assert str(back) == str(error) != ""
    assert (back.fault, back.retry) == (cls.fault, cls.retry)
    assert hash(back)


@pytest.mark.parametrize("cls", list(dict.fromkeys(all_errors())), ids=lambda cls: cls.__name__)
def test_no_error_has_a_field_called_cause(cls: type[ReelrayError]) -> None:
    """Ray puts the original exception under that name."""
    assert "cause" not in make(cls).__dict__


ARTIFACT = Artifact(key="k", uri="/a/b.mp4", sha256="0" * 64, size_bytes=3, media_type=MediaType.MP4)
RECORD = ProgressRecord(job_id="j", node_id="s1.clip", shot_id="s1", attempt=1, n=2, phase=Phase.DIFFUSION, step=2,
                        total_steps=9, timestep=3.5, fraction=0.2, at_s=1.0)
CALL = NodeCall(job_id="j", node_id="s1.clip", shot_id="s1", kind=NodeKind.CLIP, key="k", attempt=1, generation=0,
                payload={"a": [1, "x"]}, inputs={"s0.clip": ARTIFACT, "s2.clip": None}, left_s=9.0)
VALUES = [
    ARTIFACT, RECORD, CALL,
    NodeSpec(id="n", kind=NodeKind.COMPOSE, deps=("a",), payload={"x": 1}),
    NodeResult(artifact=ARTIFACT, warnings=("w",), seconds={"total": 1.0}),
    RenderCall(job_id="j", node_id="n", shot_id="s", attempt=1, key="k", left_s=1.0, card="c", card_digest="d",
               prompt="p", negative_prompt="", width_px=8, height_px=8, frames=1, fps=8.0, steps=1, guidance=1.0,
               seed=1, first_frame=ARTIFACT),
    ErrorRecord.of(StageFailed(node_id="n", reason="r")),
    Poll(epoch="e", seq=1, events=(ProgressEvent(seq=1, record=RECORD),)),
    Receipt(epoch="e", cancelled=("j",)),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_every_value_round_trips_equal(value: object) -> None:
    assert pickle.loads(cloudpickle.dumps(value)) == value


def test_an_artifact_round_trips_through_json() -> None:
    assert Artifact.from_json(ARTIFACT.to_json()) == ARTIFACT


def test_an_unexpected_exception_becomes_a_record_with_its_text() -> None:
    record = ErrorRecord.of(ZeroDivisionError("by zero"))
    assert (record.type, record.message) == ("ZeroDivisionError", "ZeroDivisionError: by zero")
