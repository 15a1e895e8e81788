"""Batches of jobs, and whose shot work was done for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "batch",
        sa.Column("id", sa.String(200), primary_key=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("key_id", sa.String(40)),
        sa.Column("held", sa.String(20), nullable=False),
        sa.Column("concurrency", sa.Integer()),
        sa.Column("gpu_budget_s", sa.Double()),
        sa.Column("created_at", sa.Double(), nullable=False),
    )
    op.create_index("batch_by_age", "batch", ["created_at", "id"])
    op.create_table(
        "batch_file",
        sa.Column("batch_id", sa.String(200), sa.ForeignKey("batch.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("file", sa.String(400), primary_key=True),
        sa.Column("job_id", sa.String(200), sa.ForeignKey("job.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("ord", sa.Integer(), nullable=False),
        sa.Column("replaced_at", sa.Double()),
    )
    op.create_index("batch_file_by_job", "batch_file", ["job_id"])
    op.add_column("job", sa.Column("batch_id", sa.String(200)))
    op.create_index("job_by_batch", "job", ["batch_id", "created_at"])
    for name in ("job_id", "shot_id", "batch_id"):
        op.add_column("usage", sa.Column(name, sa.String(200)))
    op.create_index("usage_by_batch", "usage", ["batch_id", "gpu_s"])


def downgrade() -> None:
    op.drop_index("usage_by_batch", "usage")
    for name in ("batch_id", "shot_id", "job_id"):
        op.drop_column("usage", name)
    op.drop_index("job_by_batch", "job")
    op.drop_column("job", "batch_id")
    op.drop_table("batch_file")
    op.drop_table("batch")
