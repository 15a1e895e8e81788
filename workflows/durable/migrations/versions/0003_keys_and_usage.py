"""API keys, whose job a job is, and what work has cost."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "api_key",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("role", sa.String(20), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("requests_per_min", sa.Integer()),
        sa.Column("gpu_budget_s", sa.Double()),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("revoked_at", sa.Double()),
    )
    op.create_table(
        "usage",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("key_id", sa.String(40)),
        sa.Column("outcome", sa.String(20), nullable=False),
        sa.Column("kind", sa.String(40), nullable=False),
        sa.Column("lane", sa.String(200), nullable=False),
        sa.Column("node_key", sa.String(64), nullable=False),
        sa.Column("wall_s", sa.Double(), nullable=False),
        sa.Column("gpu_s", sa.Double(), nullable=False),
        sa.Column("steps", sa.Integer(), nullable=False),
        sa.Column("diffusion_s", sa.Double(), nullable=False),
    )
    op.create_index("usage_by_key", "usage", ["key_id", "gpu_s"])
    op.create_index("usage_by_node_key", "usage", ["node_key", "outcome"])
    op.add_column("job", sa.Column("key_id", sa.String(40)))
    op.create_index("job_by_key", "job", ["key_id", "created_at"])


def downgrade() -> None:
    op.drop_index("job_by_key", "job")
    op.drop_column("job", "key_id")
    op.drop_table("usage")
    op.drop_table("api_key")
