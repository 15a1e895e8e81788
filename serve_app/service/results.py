"""What a server has made already, as the beginning of an edit; and an edit once more, as a request. Blocking; knows no
HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from serve_app.edit_submit import KIND, REQUEST
from serve_app.service.edits import OURS
from serve_app.service.files import Files
from serve_app.service.uploads import SCHEME, Uploads
from workflows.durable.ledger import Ledger
from workflows.durable.rows import JobRow
from workflows.edit_plan import EXTRACT
from workflows.errors import InvalidDocument, Problem, UnknownJob, UnknownPart
from workflows.types import Artifact, JobStatus, Json, NodeKind

RESULT = "job:"
"""What the video of a job has before the job's id in a request: `job:ID`."""
RECENT = 50
"""Jobs among which earlier results are looked for."""
MAKES_VIDEO = frozenset({NodeKind.COMPOSE, NodeKind.SAVE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A job whose video may be edited."""

    id: str
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The video that an edit was made of."""

    artifact: Artifact
    start_s: float
    """Where in it the edit begins."""


class Results:
    """The finished videos of one ledger."""

    def __init__(self, ledger: Ledger, files: Files, uploads: Uploads) -> None:
        """`uploads` names them for requests."""
        self._ledger = ledger
        self._files = files
        self._uploads = uploads

    def recent(self, key_id: str) -> tuple[Result, ...]:
        """The newest that are finished, of one API key where given. Two queries."""
        rows = self._ledger.jobs(JobStatus.SUCCEEDED, limit=RECENT, key_id=key_id).jobs
        nodes = self._ledger.nodes_of_jobs([row.id for row in rows])
        return tuple(Result(id=row.id, title=row.title or row.id) for row in rows
                     if any(node.kind in MAKES_VIDEO and node.artifact for node in nodes[row.id]))

    def adopt(self, job_id: str, field: str) -> str:
        """The video of a job as an upload; what a request calls it. Raises InvalidDocument where there is none."""
        try:
            video = self._files.video(job_id)
            title = self._ledger.job(job_id).title
        except (UnknownJob, UnknownPart) as error:
            raise no_result(field, error) from None
        return self._uploads.adopt(video, f"{title}.mp4")

    def source(self, job_id: str) -> Source:
        """What an edit was made of. Raises UnknownJob, and UnknownPart for jobs of another kind."""
        job, nodes = self._edit(job_id), self._ledger.nodes(job_id)
        payload = next(node.payload for node in nodes if node.id == EXTRACT)
        given, first = payload["source"], payload["first"]
        assert isinstance(given, dict)
        assert isinstance(first, int), f"{job.id}: a frame has a number"
        return Source(artifact=Artifact.from_json(given), start_s=float(first / Fraction(str(payload["fps"]))))

    def request(self, job_id: str) -> dict[str, Json]:
        """What would make the edit once more, to be changed and sent. Raises UnknownJob, UnknownPart."""
        asked = self._edit(job_id).document[REQUEST]
        assert isinstance(asked, dict)
        fields = {name: value for name, value in asked.items() if name not in OURS}
        place = str(fields["input_video_path"])
        if not place.startswith(SCHEME):
            # A command of this machine has named a file, which nobody else may.
            fields["input_video_path"] = self._uploads.adopt(self.source(job_id).artifact, place)
        return fields

    def _edit(self, job_id: str) -> JobRow:
        job = self._ledger.job(job_id)
        if job.kind != KIND:
            raise UnknownPart(job_id=job_id, problem=f"is a {job.kind}, and only edits are made of a video")
        return job


def no_result(field: str, error: UnknownJob | UnknownPart) -> InvalidDocument:
    """A request that names a job without a video."""
    return InvalidDocument(problems=(Problem(field=field, problem=f"there is no video to edit: {error}"),))
