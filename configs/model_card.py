"""ModelCard: everything reelray knows of a model before it is loaded; one YAML file each, shipped or the user's own."""

from __future__ import annotations

import hashlib
import json
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, model_validator

from configs.base import Frozen
from configs.draft import DraftCall
from configs.edit_rules import FINDS_BY, EditRules, FindsBy, kinds_problem
from configs.endpoint import RemoteModel
from configs.model_options import Effect, Exactness, Options, worst
from configs.parallel import Elastic, Parallel
from configs.prompt_world import PromptWorld
from configs.provenance import Provenance
from configs.references import IpAdapter, References

Positive = Annotated[int, Field(ge=1)]
Dtype = Literal["float32", "float16", "bfloat16"]

GPU_SIZES_GB = (12, 16, 24, 48, 80, 141)
"""Memory of common GPUs, in 10^9 bytes."""
CONTEXT_GB = 1.0
"""Of a GPU's memory, what the CUDA context and its libraries keep for themselves."""
LATER_FIELDS = ("dtypes", "variant", "scheduler", "vae_tiling", "references", "edit", "elastic")
"""Fields younger than the first artifacts: unset they are no part of a digest, so older results keep their keys."""

NO_NEGATIVE_PROMPT = frozenset({
    "StableVideoDiffusionPipeline", "Flux2Pipeline", "Flux2KleinPipeline", "GlmImagePipeline", "Ideogram4Pipeline",
    "LatentConsistencyModelPipeline", "OmniGenPipeline", "SanaSprintPipeline", "LTX2DFRPipeline"})
"""diffusers' pipelines whose call has no negative prompt, of those that cards name; others are refused when loaded."""


class Task(StrEnum):
    """What a model can be asked for."""

    TEXT_TO_IMAGE = "text_to_image"
    TEXT_TO_VIDEO = "text_to_video"
    IMAGE_TO_VIDEO = "image_to_video"
    EDIT_FRAMES = "edit_frames"
    """The frames of a clip, each by itself, changed as a text says."""
    EDIT_VIDEO = "edit_video"
    """The same, a clip as a whole: inside its masks it is made anew."""
    TRACK = "track"
    """Where something is in every frame of a clip, as masks."""


FILM_TASKS = (Task.TEXT_TO_IMAGE, Task.TEXT_TO_VIDEO, Task.IMAGE_TO_VIDEO)
"""What films are made of."""
EDIT_TASKS = (Task.EDIT_FRAMES, Task.EDIT_VIDEO)


class SizeRule(Frozen):
    """Which picture sizes a model takes."""

    multiple_px: Positive = 8
    """Width and height must be multiples of this."""
    min_px: Positive = 16
    max_px: Positive = 4096

    def problem(self, size_px: int) -> str:
        """Empty when the size is right, else what is wrong with it."""
        if size_px % self.multiple_px:
            return f"{size_px} is not a multiple of {self.multiple_px}"
        if not self.min_px <= size_px <= self.max_px:
            return f"{size_px} is outside {self.min_px}..{self.max_px}"
        return ""

    def nearest(self, size_px: int) -> tuple[int, ...]:
        """The one or two valid sizes around `size_px`, ascending."""
        unit = self.multiple_px
        low, high = -(-self.min_px // unit) * unit, self.max_px // unit * unit
        below = min(max(size_px // unit * unit, low), high)
        above = min(max(-(-size_px // unit) * unit, low), high)
        return tuple(sorted({below, above}))


class FrameRule(Frozen):
    """Which clip lengths a model takes: `step * n + offset` frames (Wan: 4n + 1)."""

    step: Positive = 1
    offset: Annotated[int, Field(ge=0)] = 0
    min_frames: Positive = 1
    max_frames: Positive = 1024

    def problem(self, frames: int) -> str:
        """Empty when the length is right, else what is wrong with it."""
        if not self.min_frames <= frames <= self.max_frames:
            return f"{frames} frames is outside {self.min_frames}..{self.max_frames}"
        if (frames - self.offset) % self.step:
            shape = f"{self.step}n+{self.offset}" if self.offset else f"{self.step}n"
            return f"{frames} frames does not fit {shape}"
        return ""

    def nearest(self, frames: int) -> tuple[int, ...]:
        """The one or two valid lengths around `frames`, ascending."""
        low = self.offset + -(-(self.min_frames - self.offset) // self.step) * self.step
        high = self.offset + (self.max_frames - self.offset) // self.step * self.step
        below = self.offset + (frames - self.offset) // self.step * self.step
        above = self.offset + -(-(frames - self.offset) // self.step) * self.step
        return tuple(sorted({min(max(below, low), high), min(max(above, low), high)}))

    @model_validator(mode="after")
    def _has_a_member(self) -> FrameRule:
        if any(self.problem(n) for n in self.nearest(self.min_frames)):
            raise ValueError(f"no length in {self.min_frames}..{self.max_frames} fits {self.step}n+{self.offset}")
        return self


class CallDefaults(Frozen):
    """What a shot gets when the storyboard says nothing."""

    steps: Positive = 30
    """Denoising steps per clip or picture; time is linear in it."""
    guidance: Annotated[float, Field(ge=0, le=50)] = 5.0
    """Classifier-free guidance scale."""
    negative_prompt: str = ""
    width_px: Positive
    height_px: Positive
    frames: Positive = 1
    fps: Annotated[float, Field(gt=0, le=240)] = 16.0


class Resources(Frozen):
    """What one replica needs."""

    num_gpus: Annotated[float, Field(ge=0, le=64)] | None = None
    """GPUs per replica; below 1 several replicas share one GPU; above 1 only whole numbers. Unset: by the card's known
    peak and the GPUs' memory (`configs.memory.share_of`)."""
    num_cpus: Annotated[float, Field(ge=0)] = 1.0
    room_gb: float | None = None
    """GPU memory that a replica's calls may take: not written in a card, but filled in where it is used and known."""

    @model_validator(mode="after")
    def _whole_above_one(self) -> Resources:
        if self.num_gpus is not None and self.num_gpus > 1 and self.num_gpus != int(self.num_gpus):
            below = int(self.num_gpus)
            raise ValueError(f"num_gpus {self.num_gpus} must be whole above 1; nearest {below} or {below + 1}")
        return self


class Peak(Frozen):
    """GPU memory at the highest moment of a call of one shape."""

    shape: Annotated[str, Field(pattern=r"^([1-9]\d*x[1-9]\d*(, [1-9]\d* frames)?|[1-9]\d* tokens)$")]
    """`832x480, 81 frames`; of a picture `1024x1024`; of a language model's question and answer `24576 tokens`."""
    gb: Annotated[float, Field(gt=0)]
    """All of the process, weights included, in 10^9 bytes."""
    how: Literal["measured", "estimated", "published"]
    source: str
    """Who measured or published it, or what was added up."""


class Memory(Frozen):
    """What a model takes of a GPU when everything stays there. How it grows with the shape: `configs.memory`."""

    weights_gb: Annotated[dict[str, float], Field(min_length=1)]
    """Component -> its weights in the card's dtypes, in 10^9 bytes; what is on disk may be larger (float32 files)."""
    source: str
    """Where the sizes come from."""
    peaks: tuple[Peak, ...] = ()

    @property
    def total_gb(self) -> float:
        """All weights."""
        return sum(self.weights_gb.values())

    def fit(self, gpu_gb: float) -> Literal["fits", "tight", "no"]:
        """Whether it runs on a GPU of this size at its lowest known peak; `tight`: its weights fit, the peak not."""
        room_gb = gpu_gb - CONTEXT_GB
        if self.total_gb > room_gb:
            return "no"
        return "fits" if self.peaks and min(peak.gb for peak in self.peaks) <= room_gb else "tight"


class ModelCard(Provenance):
    """One model: where it is, what it can do, what it needs, what its defaults and rules are."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    title: str
    """One line for lists."""
    loader: Literal["diffusers", "placeholder", "remote", "embedding", "tracker"] = "diffusers"
    """`placeholder` draws the prompt on a colour and needs no weights; `remote` asks somebody else's API; `embedding`
    looks at pictures and draws none: a picture model of transformers, whose features `models.scorer` compares;
    `tracker` is a video model of transformers that finds things in clips."""
    remote: RemoteModel | None = None
    """Of the `remote` loader: where, which model, and where the key is."""
    repo: str = ""
    """`package:serve_app/models/...` (shipped inside reelray), a local path, or a hub id."""
    repo_env: Annotated[str, Field(pattern=r"^([A-Z][A-Z0-9_]*)?$")] = ""
    """Environment variable that stands for `repo`, and for no revision, where it is set."""
    variant: Literal["", "fp16"] = ""
    """Which of a repo's sets of weight files is taken: `model.fp16.safetensors` instead of `model.safetensors`."""
    pipelines: dict[Task, str]
    """Task -> diffusers pipeline class (`placeholder` for the placeholder loader), or model class of transformers."""
    dtype: Dtype = "float32"
    dtypes: dict[str, Dtype] = Field(default_factory=dict)
    """Components that are loaded in another one, e.g. `vae: float32`."""
    scheduler: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Settings of the checkpoint's scheduler that are changed after loading, e.g. `flow_shift: 3.0`."""
    vae_tiling: bool = False
    """Decode in tiles: less memory, seams are blended."""
    batch: Annotated[int, Field(ge=1, le=64)] = 1
    """Most pictures of one size, steps and guidance that a replica makes in one call of its pipeline, out of those that
    wait when the GPU is free. Above 1 pictures are equal to those of a single call within rounding, not bit by bit."""
    references: References | None = None
    """How its pictures take reference pictures of characters; not given: not at all."""
    edit: EditRules | None = None
    """Of editors of videos, and of them only."""
    defaults: CallDefaults
    size: SizeRule = SizeRule()
    frames: FrameRule = FrameRule()
    resources: Resources = Resources()
    parallel: Parallel | None = None
    """Several GPUs for one call; a replica gets as many, and `resources.num_gpus` may say nothing else."""
    elastic: Elastic | None = None
    """Replicas that stand idle beside a call help with it; each has one whole GPU."""
    arguments: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Further arguments of the pipeline's call that never change, e.g. `max_sequence_length`."""
    options: Options = Options()
    """Speed and memory switches; none of them is on by itself."""
    seconds_per_step: Annotated[float, Field(gt=0)] = 1.0
    """Rough time of one denoising step at the default shape; orders the queue before there is a measurement."""
    prompt_words: Positive = 400
    """Longest prompt, in words, that the text encoder reads to the end; a word is about 4/3 tokens."""
    grade: Literal["", "fast", "standard", "quality"] = ""
    """How it trades speed for quality, where a family has several."""
    draft: DraftCall | None = None
    """What a draft of it changes; without it drafts are rendered as the final film is."""
    memory: Memory | None = None
    world: PromptWorld | None = None
    """Set only for models with a closed vocabulary."""

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What the card can be asked for."""
        return tuple(self.pipelines)

    @property
    def finds_by(self) -> FindsBy | None:
        """What a tracker is told; None for a card that is none."""
        return FINDS_BY.get(self.pipelines.get(Task.TRACK, ""))

    def effects(self) -> tuple[Effect, ...]:
        """Every switch that is on, with what it does to pictures."""
        tiles = Effect(option="vae_tiling", exactness=Exactness.APPROXIMATE, why="seams between tiles are blended")
        batch = Effect(option="batch", exactness=Exactness.TOLERANCE, why="other kernels add in another order")
        parallel = Effect(option="parallel", exactness=Exactness.TOLERANCE, why="each GPU adds up its own share")
        elastic = Effect(option="elastic", exactness=Exactness.TOLERANCE, why="GPUs that help add up their own shares")
        frames = Effect(option="edit.frames_at_once", exactness=Exactness.TOLERANCE, why=batch.why)
        own = ((tiles, self.vae_tiling), (batch, self.batch > 1), (parallel, self.parallel is not None),
               (elastic, self.elastic is not None),
               (frames, self.edit is not None and self.edit.frames_at_once > 1))
        return (*(effect for effect, on in own if on), *self.options.effects())

    @property
    def exactness(self) -> Exactness:
        """How pictures compare with those of the same weights without any switch, on the same machine."""
        return worst(tuple(effect.exactness for effect in self.effects()))

    def takes_negative_prompt(self, task: Task) -> bool:
        """Whether the pipeline for the task has one, as far as that is known before it is loaded."""
        return self.pipelines.get(task) not in NO_NEGATIVE_PROMPT

    def digest(self) -> str:
        """Hex SHA-256 (16 digits) of all that can change a picture; titles, memory and speed do not count."""
        free = {"title", "notes", "licence", "licence_terms", "licence_url", "gated", "resources", "seconds_per_step",
                "world", "prompt_words", "grade", "memory", "sources", "draft", "repo_env"}
        free |= {name for name in LATER_FIELDS if name not in self.model_fields_set}
        free |= {name for name, off in (("batch", self.batch == 1), ("parallel", self.parallel is None),
                                        ("elastic", self.elastic is None)) if off}
        tree = self.model_dump(mode="json", exclude=free)
        if self.elastic is not None:
            tree["elastic"] = True  # how many GPUs help is not the card's to say, but the moment's
        if self.remote is None:
            del tree["remote"]  # cards without one keep the digests that they had before there were such
        else:
            waits = {"api_key_env", "api_key_file", "timeout_s", "video_timeout_s", "poll_s", "parallel"}
            tree["remote"] = {name: value for name, value in tree["remote"].items() if name not in waits}
        del tree["options"]
        if options := self.options.for_digest():
            tree["options"] = options
        body = json.dumps(tree, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(body.encode()).hexdigest()[:16]

    @model_validator(mode="after")
    def _defaults_obey_rules(self) -> ModelCard:
        problems = [self.size.problem(self.defaults.width_px), self.size.problem(self.defaults.height_px),
                    self.frames.problem(self.defaults.frames)]
        if any(problems):
            raise ValueError("defaults break the card's own rules: " + "; ".join(p for p in problems if p))
        if not self.pipelines and self.loader != "embedding":
            raise ValueError("a card needs at least one task under `pipelines`")
        if self.pipelines and self.loader == "embedding":
            raise ValueError("a card with `loader: embedding` draws nothing; leave `pipelines` empty: {}")
        if self.loader in ("diffusers", "embedding", "tracker") and not self.repo:
            raise ValueError(f"a card with `loader: {self.loader}` needs `repo`")
        return self

    @model_validator(mode="after")
    def _edits_and_films_do_not_mix(self) -> ModelCard:
        pipelines = {task.value: name for task, name in self.pipelines.items()}
        if problem := kinds_problem(pipelines, self.loader, self.edit):
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _peaks_are_of_pictures(self) -> ModelCard:
        for peak in self.memory.peaks if self.memory else ():
            if "x" not in peak.shape:
                raise ValueError(f"memory.peaks: {peak.shape!r} is no picture and no clip; nearest valid: "
                                 "832x480, 81 frames")
        return self

    @model_validator(mode="after")
    def _batch_is_for_pictures(self) -> ModelCard:
        if self.batch > 1 and (self.loader != "diffusers" or self.tasks != (Task.TEXT_TO_IMAGE,)):
            # Clips would queue as deep as pictures: up to twice the batch behind the one that runs.
            raise ValueError(f"batch {self.batch} is for diffusers cards whose only task is text_to_image; nearest "
                             "valid: 1, or a card of its own for pictures")
        if self.batch > 1 and isinstance(self.references, IpAdapter):
            raise ValueError(f"batch {self.batch}: through an IP-Adapter pictures are drawn one by one; "
                             "nearest valid: 1")
        return self

    @model_validator(mode="after")
    def _slices_leave_the_adapter(self) -> ModelCard:
        if self.options.attention_slicing != "none" and isinstance(self.references, IpAdapter):
            raise ValueError("options.attention_slicing would take the IP-Adapter out of the attention; nearest valid: "
                             "none")
        return self

    @model_validator(mode="after")
    def _draft_is_cheaper(self) -> ModelCard:
        if self.draft and self.loader == "placeholder":
            raise ValueError("a placeholder draws in no steps; leave draft out")
        sends = self.remote.sends if self.remote else None
        if self.draft and (problem := self.draft.problem(self.defaults.steps, self.defaults.guidance, sends)):
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _only_pipelines_are_shared_out(self) -> ModelCard:
        if self.parallel is not None and self.elastic is not None:
            raise ValueError("`elastic` lends idle replicas of one GPU each, which `parallel` leaves none; take one of "
                             "the two out")
        name = "parallel" if self.parallel is not None else "elastic" if self.elastic is not None else ""
        if name and self.loader != "diffusers":
            raise ValueError(f"`{name}` is for cards with `loader: diffusers`; take it out of this "
                             f"{self.loader} card")
        if name == "elastic" and (edits := [task.value for task in self.tasks if task not in FILM_TASKS]):
            raise ValueError(f"`elastic` is for cards that make films; take it out of a card that does {edits[0]}")
        beside = {
            # Each GPU would judge by its own share of the tokens, and then wait for one that judged otherwise.
            "draft.cache": bool(self.draft and self.draft.cache), "batch": self.batch > 1,
            "options.compile": self.options.compile != "none", "options.offload": self.options.offload != "none"}
        if name and (clash := next((option for option, on in beside.items() if on), None)):
            raise ValueError(f"`{name}` does not go with {clash}; take one of the two out")
        return self

    @model_validator(mode="after")
    def _name_is_free(self) -> ModelCard:
        if self.name in ("cpu", "story"):
            raise ValueError(f"the name {self.name} is taken: it is a lane of the Director's own; nearest valid: "
                             f"my-{self.name}")
        return self

    @model_validator(mode="after")
    def _references_are_drawn(self) -> ModelCard:
        if self.references is None:
            return self
        if self.loader != "diffusers" or Task.TEXT_TO_IMAGE not in self.pipelines:
            raise ValueError("`references` is for cards with `loader: diffusers` that do text_to_image")
        if isinstance(self.references, IpAdapter) and len(self.pipelines) > 1:
            raise ValueError("a card with an IP-Adapter does text_to_image alone: the adapter changes the model itself")
        return self

    @model_validator(mode="after")
    def _remote_is_remote(self) -> ModelCard:
        if (self.loader == "remote") != (self.remote is not None):
            raise ValueError("`loader: remote` and a `remote` part belong together")
        if self.remote is None:
            return self
        if Task.IMAGE_TO_VIDEO in self.pipelines:
            raise ValueError("a remote card does text_to_image and text_to_video; take image_to_video out")
        if self.resources.num_gpus:
            raise ValueError("a remote card uses no GPU here; nearest valid: resources: {num_gpus: 0, num_cpus: 0.1}")
        return self

    @model_validator(mode="after")
    def _options_have_a_pipeline(self) -> ModelCard:
        if self.loader != "diffusers" and self.options != Options():
            raise ValueError(f"options are for cards with `loader: diffusers`; take them out of a {self.loader} card")
        if self.vae_tiling and self.options.vae.tiling:
            raise ValueError("vae_tiling and options.vae.tiling say the same; take one of the two out")
        return self
