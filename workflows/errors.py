"""The error tree of reelray, safe across processes. One tree, drawn once and read in one place, however long it gets.

ReelrayError                    fault     retry
├─ InvalidDocument              caller    never     a storyboard, script or card that cannot be rendered
├─ InvalidSettings              caller    never     a profile, an environment variable or a --set that is wrong
├─ UnknownJob                   caller    never
├─ UnknownPart                  caller    never     the job has no such shot, take or file
├─ UnknownPicture               caller    never     no picture has this id
├─ UnknownUpload                caller    never     no video has this id
├─ UnknownKey                   caller    never     no API key has this id
├─ BudgetSpent                  capacity  never     the job's API key has used up its GPU-seconds
├─ UnknownBatch                 caller    never
├─ BatchConflict                caller    never     the verb does not fit the batch as it is now
├─ BatchHeld                    capacity  free      the node's batch is paused, or has enough nodes at work
├─ UnknownWebhook               caller    never     no such webhook, or no such delivery to it
├─ WebhookConflict              caller    never     the webhook is disabled, or there are too many
├─ WebhookFailed                system    counted   a webhook could not be delivered: no connection, no reply, refused
├─ JobConflict                  caller    never     same id, other content; or a state that forbids the verb
├─ IllegalMove                  system    never     a status changed in a way the move table forbids (a bug)
├─ ImpossibleResources          capacity  never     a deployment asks for GPUs that the cluster does not have
├─ StartFailed                  system    never     Ray or a model did not start
├─ ArtifactMissing              system    counted   a stored file is gone
├─ ArtifactCorrupt              system    counted   a stored file's bytes are not the ones recorded
├─ StoreAway                    capacity  counted   the store is away or full; whoever has work in hand waits first
├─ MediaError                   system    never     a video or picture cannot be read, written or joined
├─ ServerRefused                caller    never     the server that a command speaks to refused it
├─ ServerUnreachable            system    never     it is away, or in trouble
├─ LeaseLost                    system    never     another Director owns the job now; commit nothing
└─ StageFailed                  system    counted   one stage of one shot went wrong
   ├─ ModelFailed               system    counted
   │  └─ GpuOutOfMemory         capacity  counted
   ├─ DeadlineExceeded          system    counted
   ├─ RenderRefused             caller    never     the model cannot do what the call asks for; nothing was run
   ├─ NothingFound              caller    never     nothing in a video is what was to be edited
   ├─ RenderCancelled           caller    never     stopped between two denoising steps because it was asked to
   ├─ ReplicaLost               capacity  free      the process or node died under the call; not the shot's fault
   ├─ Overloaded                capacity  free      the deployment refused the call for now
   ├─ HandedOver                capacity  free      its replica is being stopped; another goes on from its checkpoint
   └─ PoisonNode                system    never     it killed its replica again and again

`fault` says who can mend it (HTTP: 422, 500, 503). `retry` says what the engine does: `never` fails the node, `counted`
uses up one of its attempts, `free` tries again without counting. Fields are keyword-only and survive pickling,
Ray and JSON; no field is called `cause`, because Ray owns that name.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from enum import StrEnum
from typing import Any, ClassVar


class Fault(StrEnum):
    """Who can mend an error."""

    CALLER = "caller"
    SYSTEM = "system"
    CAPACITY = "capacity"


class Retry(StrEnum):
    """What the engine does with an error."""

    NEVER = "never"
    COUNTED = "counted"
    FREE = "free"


def _rebuild(cls: type[ReelrayError], state: dict[str, Any]) -> ReelrayError:
    error = cls.__new__(cls)
    error.__dict__.update(state)
    error.args = (error.message(),)
    return error


class ReelrayError(Exception):
    """Base of every error reelray raises on purpose; `str(error)` says what happened and what to do next."""

    fault: ClassVar[Fault] = Fault.SYSTEM
    retry: ClassVar[Retry] = Retry.NEVER

    def message(self) -> str:
        """One or more sentences for a person."""
        return type(self).__name__

    def __str__(self) -> str:
        return self.message()

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), dict(self.__dict__))


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing wrong with a document: where it is, what is wrong, what the nearest valid value would be."""

    problem: str
    field: str = ""
    """Dotted path inside the document, e.g. `shots[2].frames`."""
    shot_id: str = ""
    line: int | None = None
    """1-based line in the source file, where known."""
    nearest: str = ""
    """The nearest valid value or values, ready to paste; empty when there is none."""
    file: str = ""
    """Which of several documents; empty where there is only one."""

    def render(self, file: str = "") -> str:
        """`film.yaml:12: shot s3: frames: 80 frames; nearest valid: 77 or 81`."""
        where = ":".join(part for part in (self.file or file, str(self.line) if self.line else "") if part)
        parts = [where, f"shot {self.shot_id}" if self.shot_id else "", self.field, self.problem]
        text = ": ".join(part for part in parts if part)
        return f"{text}; nearest valid: {self.nearest}" if self.nearest else text


@dataclass(kw_only=True, eq=False)
class InvalidDocument(ReelrayError):
    """A document was refused at the door; `problems` lists everything wrong with it, not only the first."""

    fault: ClassVar[Fault] = Fault.CALLER
    problems: tuple[Problem, ...]
    file: str = ""

    def message(self) -> str:
        """One line per problem."""
        return "\n".join(problem.render(self.file) for problem in self.problems)


@dataclass(kw_only=True, eq=False)
class InvalidSettings(ReelrayError):
    """A setting is unknown, out of range or contradicts another."""

    fault: ClassVar[Fault] = Fault.CALLER
    problem: str

    def message(self) -> str:
        """The problem."""
        return self.problem


@dataclass(kw_only=True, eq=False)
class UnknownJob(ReelrayError):
    """No job has this id."""

    fault: ClassVar[Fault] = Fault.CALLER
    job_id: str

    def message(self) -> str:
        """Name the id and how to find the right one."""
        return f"no job {self.job_id!r}; `reelray jobs` lists them"


@dataclass(kw_only=True, eq=False)
class UnknownPart(ReelrayError):
    """The job exists; the shot, take or file of it that was asked for does not, or not yet."""

    fault: ClassVar[Fault] = Fault.CALLER
    job_id: str
    problem: str
    nearest: str = ""
    """What there is instead, ready to paste."""

    def message(self) -> str:
        """Name the job, the problem, and what there is."""
        text = f"job {self.job_id}: {self.problem}"
        return f"{text}; nearest valid: {self.nearest}" if self.nearest else text


@dataclass(kw_only=True, eq=False)
class UnknownPicture(ReelrayError):
    """No picture with this id was uploaded."""

    fault: ClassVar[Fault] = Fault.CALLER
    picture_id: str

    def message(self) -> str:
        """Name the id and how to get one."""
        return f"no picture {self.picture_id[:100]!r} was uploaded here; POST /api/pictures takes it"


@dataclass(kw_only=True, eq=False)
class UnknownUpload(ReelrayError):
    """No video with this id was uploaded."""

    fault: ClassVar[Fault] = Fault.CALLER
    upload_id: str

    def message(self) -> str:
        """Name the id and how to get one."""
        return f"no video {self.upload_id[:100]!r} was uploaded here; POST /api/uploads takes it"


@dataclass(kw_only=True, eq=False)
class JobConflict(ReelrayError):
    """The verb does not fit the job as it is now."""

    fault: ClassVar[Fault] = Fault.CALLER
    job_id: str
    problem: str

    def message(self) -> str:
        """Name the job and the reason."""
        return f"job {self.job_id}: {self.problem}"


@dataclass(kw_only=True, eq=False)
class UnknownKey(ReelrayError):
    """No API key has this id."""

    fault: ClassVar[Fault] = Fault.CALLER
    key_id: str

    def message(self) -> str:
        """Name the id and how to find the right one."""
        return f"no key {self.key_id!r}; `reelray keys list` shows them"


@dataclass(kw_only=True, eq=False)
class BudgetSpent(ReelrayError):
    """The API key that a job belongs to has used up its GPU-seconds; the node was not started."""

    fault: ClassVar[Fault] = Fault.CAPACITY
    key_id: str
    job_id: str
    problem: str

    def message(self) -> str:
        """Name the key and the numbers, and say how the job goes on."""
        return (f"{self.problem}; `reelray keys change {self.key_id} --gpu-seconds MORE`, then retry job "
                f"{self.job_id}: it goes on where it stopped")


@dataclass(kw_only=True, eq=False)
class UnknownBatch(ReelrayError):
    """No batch has this id."""

    fault: ClassVar[Fault] = Fault.CALLER
    batch_id: str

    def message(self) -> str:
        """Name the id and how to find the right one."""
        return f"no batch {self.batch_id!r}; `reelray batch list` shows them"


@dataclass(kw_only=True, eq=False)
class BatchConflict(ReelrayError):
    """The verb does not fit the batch as it is now."""

    fault: ClassVar[Fault] = Fault.CALLER
    batch_id: str
    problem: str

    def message(self) -> str:
        """Name the batch and the reason."""
        return f"batch {self.batch_id}: {self.problem}"


@dataclass(kw_only=True, eq=False)
class BatchHeld(ReelrayError):
    """A node's batch lets no further one start for now; nothing was written."""

    fault: ClassVar[Fault] = Fault.CAPACITY
    retry: ClassVar[Retry] = Retry.FREE
    batch_id: str
    reason: str

    def message(self) -> str:
        """Name the batch and the reason."""
        return f"batch {self.batch_id} starts nothing for now: {self.reason}"


@dataclass(kw_only=True, eq=False)
class UnknownWebhook(ReelrayError):
    """No webhook has this id, or nothing with this message id was ever sent to it."""

    fault: ClassVar[Fault] = Fault.CALLER
    webhook_id: str
    message_id: str = ""

    def message(self) -> str:
        """Name the ids."""
        return f"no delivery {self.message_id!r} to webhook {self.webhook_id!r}" if self.message_id else (
            f"no webhook {self.webhook_id!r}")


@dataclass(kw_only=True, eq=False)
class WebhookConflict(ReelrayError):
    """The verb does not fit the webhook as it is now."""

    fault: ClassVar[Fault] = Fault.CALLER
    webhook_id: str
    problem: str

    def message(self) -> str:
        """Name the webhook and the reason."""
        return f"webhook {self.webhook_id}: {self.problem}"


@dataclass(kw_only=True, eq=False)
class WebhookFailed(ReelrayError):
    """A webhook could not be delivered."""

    retry: ClassVar[Retry] = Retry.COUNTED
    reason: str

    def message(self) -> str:
        """The reason."""
        return self.reason


@dataclass(kw_only=True, eq=False)
class IllegalMove(ReelrayError):
    """A status moved against its table."""

    what: str
    old: str
    new: str

    def message(self) -> str:
        """Name the move."""
        return f"{self.what} cannot go from {self.old} to {self.new}"


@dataclass(kw_only=True, eq=False)
class ImpossibleResources(ReelrayError):
    """A deployment asks for more than any node of the cluster has."""

    fault: ClassVar[Fault] = Fault.CAPACITY
    problem: str

    def message(self) -> str:
        """The problem, with the numbers."""
        return self.problem


@dataclass(kw_only=True, eq=False)
class StartFailed(ReelrayError):
    """Ray or a deployment did not come up."""

    problem: str
    detail: str = ""
    """What the part itself said last."""

    def message(self) -> str:
        """The problem, then the part's own words."""
        return f"{self.problem}: {self.detail}" if self.detail else self.problem


@dataclass(kw_only=True, eq=False)
class ArtifactMissing(ReelrayError):
    """A recorded file is not in the store."""

    retry: ClassVar[Retry] = Retry.COUNTED
    uri: str

    def message(self) -> str:
        """Name the file and the way out."""
        return f"artifact {self.uri} is not in the store; `reelray retry JOB` renders what is missing"


@dataclass(kw_only=True, eq=False)
class ArtifactCorrupt(ReelrayError):
    """A stored file does not have the recorded size or digest."""

    retry: ClassVar[Retry] = Retry.COUNTED
    uri: str
    expected: str
    found: str

    def message(self) -> str:
        """Name the file and both values."""
        return f"artifact {self.uri} is damaged: expected {self.expected}, found {self.found}"


@dataclass(kw_only=True, eq=False)
class StoreAway(ReelrayError):
    """The artifact store does not answer, or takes nothing more."""

    fault: ClassVar[Fault] = Fault.CAPACITY
    retry: ClassVar[Retry] = Retry.COUNTED
    store: str
    """Its URL."""
    reason: str

    def message(self) -> str:
        """Name the store and the reason, and say who looks closer."""
        return f"the store {self.store} is away or full: {self.reason}; `reelray doctor` tries it"


@dataclass(kw_only=True, eq=False)
class MediaError(ReelrayError):
    """A picture or video cannot be read, written or joined."""

    problem: str
    path: str = ""

    def message(self) -> str:
        """Name the file and the problem."""
        return f"{self.path}: {self.problem}" if self.path else self.problem


@dataclass(kw_only=True, eq=False)
class ServerRefused(ReelrayError):
    """The server that a command speaks to refused it."""

    fault: ClassVar[Fault] = Fault.CALLER
    server: str
    problem: str

    def message(self) -> str:
        """Name the server and its reason."""
        return f"{self.server}: {self.problem}"


@dataclass(kw_only=True, eq=False)
class ServerUnreachable(ReelrayError):
    """The server that a command speaks to is away, or in trouble."""

    server: str
    problem: str

    def message(self) -> str:
        """Name the server and what was seen of it."""
        return f"{self.server} does not answer as it should: {self.problem}"


@dataclass(kw_only=True, eq=False)
class LeaseLost(ReelrayError):
    """This Director no longer owns the job."""

    job_id: str

    def message(self) -> str:
        """Name the job."""
        return f"lease on job {self.job_id} was lost; another Director continues it"


@dataclass(kw_only=True, eq=False)
class StageFailed(ReelrayError):
    """One stage of one shot went wrong."""

    retry: ClassVar[Retry] = Retry.COUNTED
    node_id: str
    reason: str

    def message(self) -> str:
        """Name the node and the reason."""
        return f"{self.node_id}: {self.reason}"


class ModelFailed(StageFailed):
    """The model raised, or returned something that is not a picture."""


@dataclass(kw_only=True, eq=False)
class GpuOutOfMemory(ModelFailed):
    """The shape did not fit the GPU's memory."""

    fault: ClassVar[Fault] = Fault.CAPACITY
    replica: str = ""
    """Whose memory it was; empty where that does not matter."""


class DeadlineExceeded(StageFailed):
    """The stage ran past its time limit and was stopped between two steps."""


class RenderRefused(StageFailed):
    """The call does not fit the model (another card, a size, a knob it does not have); nothing was run."""

    fault: ClassVar[Fault] = Fault.CALLER
    retry: ClassVar[Retry] = Retry.NEVER


class NothingFound(StageFailed):
    """Nothing in a video is what was to be edited."""

    fault: ClassVar[Fault] = Fault.CALLER
    retry: ClassVar[Retry] = Retry.NEVER


class RenderCancelled(StageFailed):
    """The stage was asked to stop and did, between two steps."""

    fault: ClassVar[Fault] = Fault.CALLER
    retry: ClassVar[Retry] = Retry.NEVER


class ReplicaLost(StageFailed):
    """The replica or its node died under the call."""

    fault: ClassVar[Fault] = Fault.CAPACITY
    retry: ClassVar[Retry] = Retry.FREE


class Overloaded(StageFailed):
    """The deployment had no room for the call."""

    fault: ClassVar[Fault] = Fault.CAPACITY
    retry: ClassVar[Retry] = Retry.FREE


class HandedOver(StageFailed):
    """The replica is being stopped and gave the call back; what it had made is in a checkpoint, if there is much."""

    fault: ClassVar[Fault] = Fault.CAPACITY
    retry: ClassVar[Retry] = Retry.FREE


class PoisonNode(StageFailed):
    """The node killed its replica more often than the limit allows."""

    retry: ClassVar[Retry] = Retry.NEVER


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorRecord:
    """An error as plain data, for a row, an event or a reply."""

    type: str
    message: str
    fault: Fault = Fault.SYSTEM
    retry: Retry = Retry.NEVER
    detail: dict[str, str] = field(default_factory=dict)
    """The error's own fields as text."""

    @classmethod
    def of(cls, error: BaseException) -> ErrorRecord:
        """Record any exception; an unexpected one keeps its type and text and counts as a system fault."""
        if not isinstance(error, ReelrayError):
            text = f"{type(error).__name__}: {error}"
            return cls(type=type(error).__name__, message=text[:2000], retry=Retry.COUNTED)
        names: list[str] = [f.name for f in fields(error)] if is_dataclass(error) else []
        detail = {name: str(getattr(error, name)) for name in names}
        return cls(type=type(error).__name__, message=str(error)[:2000], fault=error.fault, retry=error.retry,
                   detail=detail)
