"""Settings: one tree, one owner per knob, units in names. A component is given its own branch, never the tree."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, IPvAnyNetwork, model_validator

from configs.base import Frozen
from configs.endpoint import Endpoint
from configs.replicas import ReplicaSettings, ScalingSettings

Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
SOURCE = re.compile(r"[a-z][a-z0-9+]*://\S*/")
ORIGIN = re.compile(r"https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")


class NodeTimeouts(Frozen):
    """Seconds for one attempt, by what a node does."""

    story: Seconds = 300.0
    keyframe: Seconds = 900.0
    clip: Seconds = 7200.0
    interpolate: Seconds = 1800.0
    caption: Seconds = 1800.0
    compose: Seconds = 3600.0
    score: Seconds = 1800.0
    pick: Seconds = 60.0
    extract: Seconds = 3600.0
    mask: Seconds = 7200.0
    propagate: Seconds = 3600.0
    edit: Seconds = 7200.0
    smooth: Seconds = 14400.0
    preview: Seconds = 14400.0
    save: Seconds = 14400.0
    report: Seconds = 3600.0
    plot: Seconds = 600.0

    def of(self, kind: str) -> float:
        """The limit of one kind. Raises KeyError for a name that is none."""
        limits: dict[str, float] = self.model_dump()
        return limits[kind]


class EngineSettings(Frozen):
    """How the Director runs jobs."""

    lease_s: Seconds = 30.0
    """A Director that is silent for this long loses its jobs to another one."""
    heartbeat_s: Seconds = 2.0
    """How often leases are renewed; at most a third of `lease_s`."""
    poll_s: Seconds = 0.25
    """How often new jobs and cancel requests are looked for."""
    max_jobs: Count = 64
    """Jobs walked at the same time by one Director."""
    attempts: Count = 3
    """Tries per node for failures that count."""
    backoff_s: Annotated[float, Field(ge=0)] = 1.0
    """Wait before the second try; doubles each time, with 20 % jitter."""
    max_backoff_s: Seconds = 60.0
    poison_limit: Count = 3
    """A node whose replica dies this often while it runs is failed as poison."""
    interruption_limit: Count = 20
    """A node during which the Director itself dies this often is failed as poison."""
    batch_wait_s: Seconds = 300.0
    """A model that interactive work keeps busy gives batch work its next slot when that got none for this long."""
    store_patience_s: Annotated[float, Field(ge=0)] = 600.0
    """How long finished work, and work that is not begun, waits for a store that is away or full before it fails."""
    timeout_s: NodeTimeouts = NodeTimeouts()
    """Longest run of one attempt, by node kind."""

    @model_validator(mode="after")
    def _heartbeat_fits_lease(self) -> EngineSettings:
        if self.heartbeat_s > self.lease_s / 3:
            raise ValueError(f"heartbeat_s {self.heartbeat_s:g} must be at most a third of lease_s {self.lease_s:g}; "
                             f"nearest {self.lease_s / 3:g}")
        return self


class CheckpointSettings(Frozen):
    """How often a clip in the making is written down, so that the next attempt goes on there."""

    share: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Most of a run's time that may go into its checkpoints; 0: none are written, and none are read."""
    interval_s: Annotated[float, Field(ge=0)] = 20.0
    """Least time between two, in a run as since its start: shorter runs have none. What a run has left when its replica
    is stopped is finished there when it takes no longer than this."""
    keep_days: Seconds = 3.0
    """Checkpoints whose shot was never finished are removed after this time."""


class ModelsSettings(Frozen):
    """Which card answers which task."""

    text_to_image: str = "sketch"
    text_to_video: str = "sketch"
    image_to_video: str = "sketch"
    scorer: str = ""
    """Card with `loader: embedding` that says how much each clip looks like its characters' reference pictures; empty:
    nobody does."""
    edit_cards: tuple[str, ...] = ()
    """Cards that find (`track`) and edit (`edit_frames`, `edit_video`) in videos, started beside those of films. Each
    edit names its own two; without any, edits by `classical` alone can be made here."""
    card_dirs: tuple[Path, ...] = ()
    """Directories with your own cards (`*.yaml`); a name found there wins over a shipped one."""
    auto_download: bool = False
    """Let replicas fetch missing weights from the hub when they start. Off: a missing model is refused with the command
    that fetches it, which shows size and progress and checks the disk; a start that waits for 60 GB shows nothing."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes the GPU that Ray assigned where torch sees one; `cuda` refuses to start without."""
    gpu_memory_gb: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Memory of each GPU, in 10^9 bytes; of different ones the smallest. Unset: found out where the session starts, as
    far as it can be. It decides which share of a GPU replicas get, and which shapes are refused at the door."""
    default_replicas: ReplicaSettings = ReplicaSettings()
    by_card: dict[str, ReplicaSettings] = Field(default_factory=dict)
    """Exceptions by card name."""
    scaling: ScalingSettings = ScalingSettings()
    torch_threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads per replica; 0 shares the machine's cores evenly."""
    stall_s: Seconds = 300.0
    """A replica whose running call makes no step for this long is unhealthy and replaced."""
    drain_s: Seconds = 900.0
    """How long a replica may finish its call when it is stopped or redeployed. Where checkpoints are kept it hands it
    over at the next step instead."""
    checkpoints: CheckpointSettings = CheckpointSettings()

    def replica_of(self, card: str) -> ReplicaSettings:
        """Settings of one card's replicas."""
        return self.by_card.get(card, self.default_replicas)


class MediaSettings(Frozen):
    """How frames become files."""

    crf: Annotated[int, Field(ge=0, le=51)] = 18
    """x264 constant rate factor; lower is better and larger."""
    preset: Literal["ultrafast", "veryfast", "faster", "fast", "medium", "slow"] = "veryfast"
    gop_s: Seconds = 0.5
    """A closed group of pictures starts this often, so that joins copy everything outside a crossfade."""


class ProgressSettings(Frozen):
    """How step progress travels."""

    flush_s: Seconds = 0.25
    """A replica's Reporter sends at most one batch per this interval."""
    ring: Count = 2000
    """Newest events kept per job for observers that fell behind."""


class RaySettings(Frozen):
    """The cluster."""

    address: str = ""
    """Address of a running cluster (`host:port`); empty starts one on this machine."""
    several_machines: bool = False
    """The cluster has several machines, or will get them, and all of them must reach database and store. That a cluster
    has more than one now is found out; say it of one that grows."""
    num_cpus: Annotated[int, Field(ge=1)] | None = None
    """Logical CPUs of a cluster started here; unset: what the machine has, at least 4."""
    num_gpus: Annotated[int, Field(ge=0)] | None = None
    """Logical GPUs of a cluster started here; unset: what the machine has."""
    max_gpus: Annotated[float, Field(ge=0)] | None = None
    """GPUs of a joined cluster that grows, when it is as large as it can be; unset: it has all that it will have."""
    service_labels: dict[str, str] = Field(default_factory=dict)
    """Labels of the machines that Director, HTTP and media work may run on, e.g. `{pool: head}`: not on machines with
    GPUs, which would never be idle then."""
    dashboard: bool = False
    dashboard_port: Annotated[int, Field(ge=1024, le=65535)] = 8265
    object_store_mb: Annotated[int, Field(ge=80)] = 256
    """Bytes travel through the artifact store, not through Ray; this can stay small. In 10^6 bytes."""
    temp_dir: Path | None = None
    namespace: str = "reelray"

    @model_validator(mode="after")
    def _what_starts_here_does_not_grow(self) -> RaySettings:
        if self.max_gpus is not None and not self.address:
            raise ValueError("max_gpus is of a cluster that is joined, and none is; nearest valid: address too, or "
                             f"num_gpus {self.max_gpus:g} for logical GPUs here")
        return self


class HttpSettings(Frozen):
    """The HTTP service that `reelray serve` starts."""

    host: str = "127.0.0.1"
    """Address to listen on. On other addresses than loopback every request needs an API key."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    allow_unauthenticated: bool = False
    """Listen on other addresses too, without keys. Whoever reaches the port renders, reads, deletes."""
    require_keys: bool | None = None
    """Whether every request needs an API key (`reelray keys create`); unset: everywhere but on loopback. Say true where
    a proxy passes requests from other machines on."""
    requests_per_min: Count = 1200
    """Requests that one API key may send per minute, unless the key says otherwise; each replica grants its share."""
    cors_origins: Annotated[tuple[str, ...], Field(max_length=100)] = ()
    """Origins of other sites whose pages may use this service, e.g. `https://studio.example`; none by default."""
    allowed_hosts: tuple[str, ...] = ()
    """Names besides loopback that requests may be addressed to, e.g. of a reverse proxy on this machine."""
    replicas: Count = 1
    """Processes that answer requests; any of them answers any request."""
    max_body_kb: Annotated[int, Field(ge=1, le=100_000)] = 1100
    """Longest request body, in 10^3 bytes; a storyboard has at most 1000. Pictures have a limit of their own."""
    max_batch_kb: Annotated[int, Field(ge=1, le=1_000_000)] = 20_000
    """Longest request body that makes a batch, in 10^3 bytes: all its storyboards and scripts."""
    max_picture_kb: Annotated[int, Field(ge=1, le=100_000)] = 20_000
    """Longest file of an uploaded picture, in 10^3 bytes."""
    max_picture_megapixels: Annotated[float, Field(gt=0, le=400)] = 34.0
    """Largest uploaded picture, in 10^6 pixels (8K has 33.2); decoding takes up to 11 bytes per pixel."""
    body_timeout_s: Seconds = 120.0
    """A request body must have arrived within this time; whoever sends more slowly gets 408."""
    max_video_mb: Annotated[int, Field(ge=1, le=1_000_000)] = 2000
    """Longest video that is uploaded, or read from an address, to be edited; in 10^6 bytes. It goes to disk as it
    comes."""
    upload_timeout_s: Seconds = 3600.0
    """In place of `body_timeout_s` for bodies that may hold a video; also for reading one from an address."""
    video_sources: Annotated[tuple[str, ...], Field(max_length=100)] = ()
    """Beginnings of addresses from which clients may have videos read, e.g. `s3://films/`; none by default, since the
    server reads them with its own rights and from its own network."""
    heartbeat_s: Seconds = 15.0
    """A silent event stream says this often that it is alive."""
    stream_kb: Annotated[int, Field(ge=1, le=1_000_000)] = 2000
    """An event stream ends after so much, in 10^3 bytes, and goes on when the client comes back with its last id, as
    all do by themselves: more than this is never kept for one that reads slowly."""
    wait_s: Seconds = 600.0
    """Longest that a request waits for the pictures it asked for; they are made all the same."""
    window: Count = 2000
    """Newest events kept per followed job; a client that missed more gets a snapshot instead."""

    @model_validator(mode="after")
    def _loopback_or_in_so_many_words(self) -> HttpSettings:
        if not self.is_loopback and self.require_keys is False and not self.allow_unauthenticated:
            raise ValueError(f"host {self.host!r} can be reached from other machines, and nobody is asked who they "
                             "are; nearest 127.0.0.1, or say http.allow_unauthenticated=true too")
        if self.require_keys and self.allow_unauthenticated:
            raise ValueError("require_keys and allow_unauthenticated contradict each other; leave one out")
        return self

    @model_validator(mode="after")
    def _origins_are_origins(self) -> HttpSettings:
        for origin in self.cors_origins:
            if not ORIGIN.fullmatch(origin):
                raise ValueError(f"cors_origins: {origin!r} is no origin; nearest valid: https://studio.example, "
                                 "without path, and never *")
        return self

    @model_validator(mode="after")
    def _sources_are_places(self) -> HttpSettings:
        for source in self.video_sources:
            if not SOURCE.fullmatch(source):
                raise ValueError(f"video_sources: {source!r} is no beginning of addresses; nearest valid: "
                                 "https://media.example/films/, with its scheme and a slash at its end")
        return self

    @property
    def needs_keys(self) -> bool:
        """Every request must carry an API key."""
        return not self.is_loopback and not self.allow_unauthenticated if self.require_keys is None else (
            self.require_keys)

    @property
    def is_loopback(self) -> bool:
        """Only this machine can reach it."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def url(self) -> str:
        """Where a browser on this machine finds it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{self.port}"


class WebhookSettings(Frozen):
    """Where webhooks may go, and how they are sent."""

    allow_http: bool = False
    """Send to `http://` addresses too; what is sent can then be read on the way."""
    allowed_networks: tuple[IPvAnyNetwork, ...] = ()
    """Private networks that webhooks may reach, e.g. 10.1.0.0/16; without it only public addresses are sent to."""
    timeout_s: Seconds = 15.0
    """For one attempt: name, connection, request and reply."""
    lease_s: Seconds = 60.0
    """A delivery whose sender is silent for this long is sent by another one; more than `timeout_s`."""
    poll_s: Seconds = 1.0
    """How often deliveries that are due are looked for."""
    parallel: Count = 16
    """Attempts at the same time, per Director."""
    parallel_per_webhook: Count = 4
    """Attempts at the same time to one webhook, per Director: a slow one does not hold up the others."""
    keep_days: Seconds = 30.0
    """Deliveries and their log are kept this long after their end."""

    @model_validator(mode="after")
    def _lease_outlasts_an_attempt(self) -> WebhookSettings:
        if self.lease_s < self.timeout_s * 2:
            raise ValueError(f"lease_s {self.lease_s:g} must be at least twice timeout_s {self.timeout_s:g}; "
                             f"nearest {self.timeout_s * 2:g}")
        return self


class StorySettings(Endpoint):
    """Who breaks scripts into shots. A language model is any server with OpenAI's `POST {api_url}/chat/completions`, or
    one that runs here (`card`)."""

    writer: Literal["rules", "llm"] = "rules"
    """`rules`: fixed rules; `llm`: the language model, and the rules where it fails."""
    card: str = ""
    """Card of a language model that runs here, as a deployment of its own, in place of `api_url` and `model_name`."""
    enhance_prompts: bool = False
    """Let the language model write a script's prompts anew for the video model; the old ones stay beside them."""
    timeout_s: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """For one answer of the server; all of them together stay below `engine.timeout_s.story`. That alone holds for a
    model that runs here."""
    retries: Annotated[int, Field(ge=0, le=10)] = 2
    """Further tries of one question after no answer, 429 or 5xx."""
    max_retry_wait_s: Annotated[float, Field(gt=0, le=600)] = 30.0
    """Longest wait before a further try, whatever the server asks for."""
    parallel: Count = 4
    """Scripts that are with the language model at the same time, per Director; with `card` one per replica."""
    max_shots: Annotated[int, Field(ge=1, le=1000)] = 60
    """Most shots that the language model may make of one script."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """How freely the model chooses its words; unset: the server's own, which some models insist on. With `card`, unset
    or 0 takes the likeliest word always, so that a script gives the same story again."""

    @property
    def asks_model(self) -> bool:
        """A language model is needed."""
        return self.writer == "llm" or self.enhance_prompts

    @property
    def called(self) -> str:
        """The language model's name, for people."""
        return self.card or self.model_name

    @model_validator(mode="after")
    def _model_is_named(self) -> StorySettings:
        if self.asks_model and not (self.card or (self.api_url and self.model_name)):
            raise ValueError("a language model needs story.api_url and story.model_name; nearest valid: "
                             "writer rules and enhance_prompts false; or story.card for a model that runs here")
        return self

    @model_validator(mode="after")
    def _is_here_or_elsewhere(self) -> StorySettings:
        if not self.card:
            return self
        far = {"api_url": self.api_url, "model_name": self.model_name, "api_key_env": self.api_key_env,
               "api_key_file": self.api_key_file}
        if named := [f"story.{name}" for name, value in far.items() if value]:
            raise ValueError(f"story.card is a model that runs here and {' and '.join(named)} a server; nearest valid: "
                             "story.card alone, or the others without it")
        return self


class Settings(Frozen):
    """The whole tree. `reelray profile show` prints it resolved."""

    profile: str = "laptop"
    data_dir: Path = Path("~/.local/share/reelray")
    """Where state and artifacts live unless the two URLs below say otherwise."""
    database_url: str = ""
    """SQLAlchemy URL; empty: SQLite under `data_dir`."""
    store_url: str = ""
    """fsspec URL of the artifact store; empty: a directory under `data_dir`."""
    store_is_shared: bool = False
    """The store is a directory that every machine of the cluster has mounted under the same path (NFS, EFS)."""
    cpu_slots: Count = 2
    """Captions, interpolations and compositions at the same time, per Director."""
    log_format: Literal["text", "json"] = "text"
    """How `reelray serve` tells what happens: in words, or as one JSON object per line, with ids of job, shot, node."""
    engine: EngineSettings = EngineSettings()
    models: ModelsSettings = ModelsSettings()
    media: MediaSettings = MediaSettings()
    progress: ProgressSettings = ProgressSettings()
    ray: RaySettings = RaySettings()
    http: HttpSettings = HttpSettings()
    webhooks: WebhookSettings = WebhookSettings()
    story: StorySettings = StorySettings()

    @property
    def database(self) -> str:
        """The database URL in force."""
        return self.database_url or f"sqlite:///{self.data_dir.expanduser().resolve() / 'state.db'}"

    @property
    def store(self) -> str:
        """The store URL in force."""
        return self.store_url or str(self.data_dir.expanduser().resolve() / "artifacts")
