"""Pictures as other services know them: a job that ends with its keyframes. Blocking, no HTTP."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

from serve_app.service.files import Files, ShotFile
from serve_app.service.films import Films, Sent
from serve_app.service.videos import Order
from serve_app.service.wishes import ImageWish, OutputFormat, given
from serve_app.submit import plan_digest
from workflows.durable.ledger import Ledger
from workflows.durable.rows import JobRow, NewJob
from workflows.errors import UnknownJob, UnknownPart
from workflows.media.decode import read_picture, write_jpeg
from workflows.store import Store
from workflows.types import Artifact, Json, MediaType, NodeKind, NodeSpec, digest

IMAGE = "image"
"""Kind of the jobs that hold them."""
JPEG_QUALITY = 95
"""Where none is asked for."""


class Images:
    """Pictures of one ledger and one store."""

    def __init__(self, ledger: Ledger, store: Store, films: Films, files: Files) -> None:
        """`films` plans them, `files` finds them."""
        self._ledger = ledger
        self._store = store
        self._films = films
        self._files = files

    def submit(self, wish: ImageWish, order: Order) -> JobRow:
        """Queue them. Raises InvalidDocument with all that the model cannot do."""
        sent = Sent(text=json.dumps(wish.storyboard()), file="image.json", is_script=False)
        draft = self._films.draft(sent)
        nodes = tuple(_as_asked(node, wish) for node in draft.nodes if node.kind is NodeKind.KEYFRAME)
        drawn = nodes[0].payload
        facts: dict[str, Json] = {
            "prompt": wish.prompt, "model": drawn["card"], "n": wish.n,
            "size": f"{drawn['width_px']}x{drawn['height_px']}",
            "output_format": wish.output_format.value,
            "quality": JPEG_QUALITY if wish.output_compression is None else wish.output_compression}
        return self._ledger.submit(NewJob(
            id=f"image_{order.token}", kind=IMAGE, title=wish.prompt[:80], nodes=nodes,
            document={**draft.document, "image": facts}, document_digest=plan_digest(nodes),
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
        key = digest({"jpeg_of": drawn.sha256, "quality": quality})[:32]
        found = self._store.find(key)
        if found:
            return found
        with tempfile.TemporaryDirectory(prefix="reelray-") as scratch:
            path = Path(scratch) / "picture.jpg"
            write_jpeg(read_picture(self._store.fetch(drawn)), path, quality=quality)
            return self._store.put(key, path, media_type=MediaType.JPEG, manifest={"jpeg_of": drawn.key})


def _as_asked(node: NodeSpec, wish: ImageWish) -> NodeSpec:
    """In a film a keyframe has its card's steps, since the shot's are meant for the clip; here there is no clip."""
    asked = given({"steps": wish.num_inference_steps, "guidance": wish.guidance_scale})
    return replace(node, payload={**node.payload, **asked})
