"""Pictures as other services know them: a job that ends with its keyframes. Blocking, no HTTP."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from configs.model_card import ModelCard, Task
from serve_app.service.files import Files, ShotFile, made_of
from serve_app.service.films import Order
from serve_app.service.wishes import ImageWish, OutputFormat, given
from serve_app.submit import plan_digest
from workflows.durable.ledger import Ledger
from workflows.durable.rows import JobRow, NewJob
from workflows.errors import UnknownJob, UnknownPart
from workflows.media.decode import read_picture, write_jpeg
from workflows.plan import plan_film
from workflows.store import Store
from workflows.storyboard import parse_storyboard
from workflows.types import Artifact, Json, MediaType, NodeSpec, Stage

IMAGE = "image"
"""Kind of the jobs that hold them."""
JPEG_QUALITY = 95
"""Where none is asked for."""


class Images:
    """Pictures of one ledger and one store."""

    def __init__(self, ledger: Ledger, store: Store, cast: Mapping[Task, ModelCard], files: Files) -> None:
        """`cast`: which model draws; `files` finds what it drew."""
        self._ledger = ledger
        self._store = store
        self._cast = cast
        self._files = files

    def submit(self, wish: ImageWish, order: Order) -> JobRow:
        """Queue them. Raises InvalidDocument with all that the model cannot do."""
        card = self._cast[Task.TEXT_TO_IMAGE]
        size = f"{card.defaults.width_px}x{card.defaults.height_px}"
        storyboard = parse_storyboard(json.dumps(wish.storyboard(size)), file="image.json")
        plan = plan_film(storyboard, cards=self._cast, last_stage=Stage.IMAGES)
        nodes = tuple(_as_asked(node, wish, card) for node in plan.nodes)
        facts: dict[str, Json] = {
            "prompt": wish.prompt, "model": card.name, "n": wish.n,
            "size": f"{plan.film.width_px}x{plan.film.height_px}",
            "output_format": wish.output_format.value,
            "quality": JPEG_QUALITY if wish.output_compression is None else wish.output_compression}
        return self._ledger.submit(NewJob(
            id=f"image_{order.token}", kind=IMAGE, title=wish.prompt[:80], nodes=nodes,
            document={"image": facts, "warnings": list(plan.warnings)}, document_digest=plan_digest(nodes),
            key_id=order.key_id))

    def find(self, image_id: str) -> JobRow:
        """Its job. Raises UnknownJob, for jobs of another kind too."""
        row = self._ledger.job(image_id)
        if row.kind != IMAGE:
            raise UnknownJob(job_id=image_id)
        return row

    def picture(self, image_id: str, index: int) -> Artifact:
        """One of its pictures (from 0), in the format that was asked for. Raises UnknownJob; UnknownPart without it."""
        facts = self.find(image_id).document["image"]
        assert isinstance(facts, dict)
        count, quality = facts["n"], facts["quality"]
        assert isinstance(count, int)
        assert isinstance(quality, int)
        if index >= count:
            raise UnknownPart(job_id=image_id, problem=f"has {count} pictures, and none with index {index}",
                              nearest=str(count - 1))
        drawn = self._files.of_shot(image_id, f"s{index + 1}", ShotFile.KEYFRAME)
        return self._as_jpeg(drawn, quality) if facts["output_format"] == OutputFormat.JPEG.value else drawn

    def bytes_of(self, artifact: Artifact) -> bytes:
        """The file itself. Raises ArtifactMissing."""
        return self._store.fetch(artifact).read_bytes()

    def _as_jpeg(self, drawn: Artifact, quality: int) -> Artifact:
        return made_of(self._store, drawn, "jpeg", {"quality": quality}, MediaType.JPEG,
                       lambda path, to: write_jpeg(read_picture(path), to, quality=quality))


def _as_asked(node: NodeSpec, wish: ImageWish, card: ModelCard) -> NodeSpec:
    """In a film a keyframe has its card's steps, since the shot's are meant for the clip; here there is no clip."""
    steps = wish.num_inference_steps or card.defaults.steps
    asked = given({"steps": steps, "guidance": wish.guidance_scale})
    return replace(node, payload={**node.payload, **asked}, cost=node.cost * steps / card.defaults.steps)
