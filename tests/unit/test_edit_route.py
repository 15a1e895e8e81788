"""Who does an edit's work is known at the door, and each node goes where its card is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from configs.load import load_cards, load_settings
from tests.fakes_edits import request_for
from workflows.edit import EditRequest
from workflows.edit_hands import hands_of
from workflows.edit_plan import CLASSICAL
from workflows.errors import InvalidDocument, RenderRefused
from workflows.stages.edit_route import ask_model, lane_of
from workflows.types import Artifact, MediaType, NodeCall, NodeKind, NodeResult

ON_CPU = frozenset({"classical"})
CARDS = load_cards(load_settings("laptop", environ={}))
BOX = [{"left": 1, "top": 1, "right": 9, "bottom": 9}]


def asked(**changes: Any) -> EditRequest:
    return request_for(Path("in.mp4"), **{"edit_size": 512, **changes})


class Worker:
    def __init__(self) -> None:
        self.asked: list[str] = []

    async def run(self, call: NodeCall) -> NodeResult:
        self.asked.append(call.node_id)
        return NodeResult(artifact=Artifact(key=call.key, uri="u", sha256="0" * 64, size_bytes=1,
                                            media_type=MediaType.MKV))


def call(card: str) -> NodeCall:
    payload = {"card": card} if card else {"mask_video": {}}
    return NodeCall(job_id="j", node_id=f"of {card}", shot_id="c1", kind=NodeKind.MASK, key="k", attempt=1,
                    generation=0, payload=payload, inputs={}, left_s=0.0)


async def test_each_node_goes_where_its_card_is() -> None:
    sam3, media = Worker(), Worker()
    for card in ("sam3", "classical", ""):
        await ask_model(call(card), models={"sam3": sam3}, media=media, on_cpu=ON_CPU)
    assert (sam3.asked, media.asked) == (["of sam3"], ["of classical", "of "])
    assert [lane_of(card, ON_CPU) for card in ("sam3", "classical")] == ["sam3", "cpu"]


async def test_a_card_without_replicas_is_refused_with_those_that_have_some() -> None:
    with pytest.raises(RenderRefused, match=r"model card sam2 has no replicas here; .* there are: sam3, classical"):
        await ask_model(call("sam2"), models={"sam3": Worker()}, media=Worker(), on_cpu=ON_CPU)


def test_the_hands_of_an_edit_are_its_cards() -> None:
    tracker, editor = hands_of(asked(tracker="sam3", editor="instruct-pix2pix", steps=20), CARDS)
    assert (tracker.card, tracker.lane, tracker.digest) == ("sam3", "sam3", CARDS["sam3"].digest())
    assert editor.seconds_per_frame == pytest.approx(0.03 * 20 / 8)
    assert hands_of(asked(), CARDS) == (CLASSICAL, CLASSICAL)
    # Given masks need no tracker, whatever the request names.
    assert hands_of(asked(mask_prompt=None, mask_video="m.mp4", tracker="nobody"), CARDS) == (CLASSICAL, CLASSICAL)


@pytest.mark.parametrize(("changes", "said"), [
    ({"tracker": "sam4"}, "tracker: there is no card 'sam4'; nearest valid: sam3"),
    ({"tracker": "sdxl"}, "tracker: card 'sdxl' does text_to_image; nearest valid: sam2.1-large or sam3 or classical"),
    ({"tracker": "sam2.1-large"}, "mask_prompt: card sam2.1-large follows what it is shown, and knows no words"),
    ({"tracker": "sam3", "boxes": BOX}, "boxes: card sam3 finds by words alone"),
    ({"editor": "sam3"}, "editor: card 'sam3' does track; nearest valid: "),
    ({"editor": "instruct-pix2pix", "edit_size": 128}, "edit_size: 128 is outside 256..1024 (instruct-pix2pix)"),
    ({"editor": "instruct-pix2pix", "image_guidance_scale": 0.5}, "image_guidance_scale: 0.5: below 1"),
    ({"editor": "flux2-klein-4b-edit", "negative_prompt": "blurry"}, "negative_prompt: Flux2KleinPipeline has nothing"),
    ({"editor": "wan2.1-vace-1.3b", "chunk_frames": 90}, "chunk_frames: 90 frames at once are more than the 81"),
])
def test_what_a_card_cannot_do_is_refused_at_the_door(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidDocument) as refusal:
        hands_of(asked(**changes), CARDS)
    assert str(refusal.value).startswith(said)


def test_everything_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(InvalidDocument) as refusal:
        hands_of(asked(tracker="sam3", boxes=BOX, editor="nobody"), CARDS)
    assert [problem.field for problem in refusal.value.problems] == ["boxes", "editor"]
