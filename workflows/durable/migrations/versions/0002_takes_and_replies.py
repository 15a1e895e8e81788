"""Earlier takes of a shot, replies kept under an idempotency key, and an index over what has ended."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("node_by_end", "node", ["status", "finished_at"])
    op.create_table(
        "take",
        sa.Column("job_id", sa.String(200), sa.ForeignKey("job.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("shot_id", sa.String(200), primary_key=True),
        sa.Column("number", sa.Integer(), primary_key=True),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("generations", sa.JSON(), nullable=False),
        sa.Column("shot", sa.JSON()),
        sa.Column("artifact", sa.JSON(), nullable=False),
        sa.Column("kept_at", sa.Double(), nullable=False),
    )
    op.create_table(
        "reply",
        sa.Column("scope", sa.String(100), primary_key=True),
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("token", sa.String(32), nullable=False),
        sa.Column("body", sa.JSON()),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("touched_at", sa.Double(), nullable=False),
    )
    op.create_index("reply_by_age", "reply", ["created_at"])


def downgrade() -> None:
    op.drop_table("reply")
    op.drop_table("take")
    op.drop_index("node_by_end", "node")
