"""Webhook endpoints, what is to be sent to them, and how each attempt went."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "hook",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("secret", sa.String(100), nullable=False),
        sa.Column("events", sa.JSON(), nullable=False),
        sa.Column("job_id", sa.String(200), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("disabled", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
    )
    op.create_index("hook_by_job", "hook", ["job_id"])
    op.create_table(
        "delivery",
        sa.Column("seq", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("hook_id", sa.String(40), sa.ForeignKey("hook.id", ondelete="CASCADE"), nullable=False),
        sa.Column("message_id", sa.String(40), nullable=False),
        sa.Column("type", sa.String(40), nullable=False),
        sa.Column("job_id", sa.String(200), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("status", sa.String(20), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("next_at", sa.Double(), nullable=False),
        sa.Column("owner", sa.String(64)),
        sa.Column("lease_until", sa.Double()),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("finished_at", sa.Double()),
        sa.UniqueConstraint("hook_id", "message_id", name="delivery_once"),
        sqlite_autoincrement=True,
    )
    op.create_index("delivery_by_time", "delivery", ["status", "next_at"])
    op.create_table(
        "delivery_try",
        sa.Column("seq", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("delivery_seq", NUMBER, sa.ForeignKey("delivery.seq", ondelete="CASCADE"), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("latency_s", sa.Double(), nullable=False),
        sa.Column("http_status", sa.Integer(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("reply", sa.Text(), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("delivery_try_by_delivery", "delivery_try", ["delivery_seq", "seq"])


def downgrade() -> None:
    op.drop_table("delivery_try")
    op.drop_table("delivery")
    op.drop_table("hook")
