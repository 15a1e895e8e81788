"""The tables: jobs, batches, nodes, what happened to them, earlier takes, replies for repeats, keys, usage, webhooks.

Knows SQLAlchemy Core, not who reads or writes.
A change here needs a revision under `migrations/versions`; a test compares the two.
Times are unix seconds. JSON columns hold small values only: results are artifacts, never bytes.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

ID_CHARS = 200
"""Longest id of a job, a shot or a node."""

KEY_ID_CHARS = 40
FILE_CHARS = 400
"""Longest name of a file of a batch."""

metadata = MetaData()

job = Table(
    "job", metadata,
    Column("id", String(ID_CHARS), primary_key=True),
    Column("kind", String(40), nullable=False),
    Column("title", Text, nullable=False),
    Column("status", String(20), nullable=False),
    Column("priority", String(20), nullable=False),
    Column("weight", Double, nullable=False),
    Column("document", JSON, nullable=False),
    Column("document_digest", String(64), nullable=False),
    Column("cancel_requested", Boolean, nullable=False),
    # The token of the claim that owns the job; a fresh one per claim, so that it also fences.
    Column("owner", String(64)),
    Column("lease_until", Double),
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),
    Column("finished_at", Double),
    Column("error", JSON(none_as_null=True)),
    # [{"node_id", "text"}]: a rerun of the node takes its warnings back.
    Column("warnings", JSON, nullable=False),
    # The API key that asked for it; none: the command line, or a service that asks nobody who they are.
    Column("key_id", String(KEY_ID_CHARS)),
    # None: no limit of its own.
    Column("concurrency", Integer),
    Column("attempt_timeout_s", Double),
    # The batch it was submitted with; none: it stands alone. Deleting a batch deletes its jobs.
    Column("batch_id", String(ID_CHARS)),
    Index("job_by_key", "key_id", "created_at"),
    Index("job_by_batch", "batch_id", "created_at"),
    Index("job_by_status", "status", "priority", "created_at"),
    Index("job_by_age", "created_at", "id"),
)

batch = Table(
    "batch", metadata,
    Column("id", String(ID_CHARS), primary_key=True),
    Column("name", Text, nullable=False),
    Column("key_id", String(KEY_ID_CHARS)),
    # Why none of its nodes is started; empty: they are.
    Column("held", String(20), nullable=False),
    # None: no limit.
    Column("concurrency", Integer),
    Column("gpu_budget_s", Double),
    Column("created_at", Double, nullable=False),
    Index("batch_by_age", "created_at", "id"),
)

batch_file = Table(
    "batch_file", metadata,
    Column("batch_id", String(ID_CHARS), ForeignKey("batch.id", ondelete="CASCADE"), primary_key=True),
    # As its submitter calls it.
    Column("file", String(FILE_CHARS), primary_key=True),
    # Two files that say the same are one job.
    Column("job_id", String(ID_CHARS), ForeignKey("job.id", ondelete="CASCADE"), primary_key=True),
    Column("ord", Integer, nullable=False),
    # The file came back with other content, which is another job; none: this one is the file's.
    Column("replaced_at", Double),
    Index("batch_file_by_job", "job_id"),
)

node = Table(
    "node", metadata,
    Column("job_id", String(ID_CHARS), ForeignKey("job.id", ondelete="CASCADE"), primary_key=True),
    Column("id", String(ID_CHARS), primary_key=True),
    Column("ord", Integer, nullable=False),
    # The node whose result inserted this one; empty when it was planned at submission.
    Column("parent_id", String(ID_CHARS), nullable=False),
    Column("kind", String(40), nullable=False),
    Column("shot_id", String(ID_CHARS), nullable=False),
    Column("deps", JSON, nullable=False),
    Column("payload", JSON, nullable=False),
    Column("lane", String(ID_CHARS), nullable=False),
    Column("cost", Double, nullable=False),
    Column("accepts_missing", Boolean, nullable=False),
    Column("status", String(20), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("crashes", Integer, nullable=False),
    Column("interruptions", Integer, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("key", String(64), nullable=False),
    Column("artifact", JSON(none_as_null=True)),
    Column("error", JSON(none_as_null=True)),
    Column("cached", Boolean, nullable=False),
    Column("seconds", JSON, nullable=False),
    Column("started_at", Double),
    Column("finished_at", Double),
    # How long things took lately is asked of the whole table.
    Index("node_by_end", "status", "finished_at"),
)

take = Table(
    "take", metadata,
    Column("job_id", String(ID_CHARS), ForeignKey("job.id", ondelete="CASCADE"), primary_key=True),
    Column("shot_id", String(ID_CHARS), primary_key=True),
    Column("number", Integer, primary_key=True),
    # Content key of the clip; a take is kept once, however often it is chosen and left again.
    Column("key", String(64), nullable=False),
    # {node id: generation} of the shot's nodes that draw.
    Column("generations", JSON, nullable=False),
    # The shot as the storyboard had it; none: as the storyboard still has it.
    Column("shot", JSON(none_as_null=True)),
    Column("artifact", JSON, nullable=False),
    Column("kept_at", Double, nullable=False),
)

reply = Table(
    "reply", metadata,
    # The verb that was asked for; a key means something only together with it.
    Column("scope", String(100), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("digest", String(64), nullable=False),
    # Drawn by the first request; whoever takes its work over makes the same job.
    Column("token", String(32), nullable=False),
    # None: the first request is still being answered.
    Column("body", JSON(none_as_null=True)),
    Column("created_at", Double, nullable=False),
    Column("touched_at", Double, nullable=False),
    Index("reply_by_age", "created_at"),
)

event = Table(
    "event", metadata,
    # SQLite counts rows up by itself only in an INTEGER column.
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("job_id", String(ID_CHARS), nullable=False),
    Column("at", Double, nullable=False),
    Column("type", String(40), nullable=False),
    Column("node_id", String(ID_CHARS), nullable=False),
    Column("level", String(10), nullable=False),
    # What a person reads of it; empty when there is nothing to read.
    Column("line", Text, nullable=False),
    Column("data", JSON, nullable=False),
    ForeignKeyConstraint(["job_id"], ["job.id"], ondelete="CASCADE"),
    Index("event_by_job", "job_id", "seq"),
    # A number is never given twice, even after rows were deleted: readers resume after the last one they saw.
    sqlite_autoincrement=True,
)

api_key = Table(
    "api_key", metadata,
    Column("id", String(KEY_ID_CHARS), primary_key=True),
    Column("name", String(100), nullable=False),
    Column("role", String(20), nullable=False),
    # SHA-256 of the whole key. It is random and long: a slow hash would protect nothing more.
    Column("digest", String(64), nullable=False),
    # None: what the settings say.
    Column("requests_per_min", Integer),
    # None: no limit.
    Column("gpu_budget_s", Double),
    Column("created_at", Double, nullable=False),
    Column("revoked_at", Double),
)

usage = Table(
    "usage", metadata,
    # One row per attempt that ended, per result found in the store, per wait in the queue and per cancel. No foreign
    # key: a job that is forgotten was paid for all the same.
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("at", Double, nullable=False),
    Column("key_id", String(KEY_ID_CHARS)),
    Column("outcome", String(20), nullable=False),
    # Of the node; `job` for what concerns the whole job.
    Column("kind", String(40), nullable=False),
    Column("lane", String(ID_CHARS), nullable=False),
    Column("node_key", String(64), nullable=False),
    Column("wall_s", Double, nullable=False),
    Column("gpu_s", Double, nullable=False),
    Column("steps", Integer, nullable=False),
    Column("diffusion_s", Double, nullable=False),
    # None in rows that were written before these were known.
    Column("job_id", String(ID_CHARS)),
    Column("shot_id", String(ID_CHARS)),
    Column("batch_id", String(ID_CHARS)),
    Index("usage_by_key", "key_id", "gpu_s"),
    Index("usage_by_batch", "batch_id", "gpu_s"),
    Index("usage_by_node_key", "node_key", "outcome"),
)

hook = Table(
    "hook", metadata,
    Column("id", String(40), primary_key=True),
    Column("url", Text, nullable=False),
    # In the clear: every delivery is signed with it.
    Column("secret", String(100), nullable=False),
    # Types of events that are sent there; empty: all.
    Column("events", JSON, nullable=False),
    # Only events of this job; empty: of every one. No foreign key: what is undelivered outlives the job.
    Column("job_id", String(ID_CHARS), nullable=False),
    Column("note", Text, nullable=False),
    # Why nothing is sent there any more; empty while it is.
    Column("disabled", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Index("hook_by_job", "job_id"),
)

delivery = Table(
    "delivery", metadata,
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("hook_id", String(40), ForeignKey("hook.id", ondelete="CASCADE"), nullable=False),
    # The same for every endpoint and every attempt.
    Column("message_id", String(40), nullable=False),
    Column("type", String(40), nullable=False),
    Column("job_id", String(ID_CHARS), nullable=False),
    # The very bytes that are signed and sent.
    Column("body", Text, nullable=False),
    Column("status", String(20), nullable=False),
    # Attempts since it was last asked for.
    Column("attempt", Integer, nullable=False),
    Column("next_at", Double, nullable=False),
    # The token of the claim that sends it, as a job has one.
    Column("owner", String(64)),
    Column("lease_until", Double),
    Column("created_at", Double, nullable=False),
    Column("finished_at", Double),
    UniqueConstraint("hook_id", "message_id", name="delivery_once"),
    Index("delivery_by_time", "status", "next_at"),
    sqlite_autoincrement=True,
)

delivery_try = Table(
    "delivery_try", metadata,
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("delivery_seq", BigInteger().with_variant(Integer, "sqlite"),
           ForeignKey("delivery.seq", ondelete="CASCADE"), nullable=False),
    Column("at", Double, nullable=False),
    Column("latency_s", Double, nullable=False),
    # 0: there was no reply.
    Column("http_status", Integer, nullable=False),
    Column("error", Text, nullable=False),
    # The first bytes of the reply, as text.
    Column("reply", Text, nullable=False),
    Index("delivery_try_by_delivery", "delivery_seq", "seq"),
    sqlite_autoincrement=True,
)
