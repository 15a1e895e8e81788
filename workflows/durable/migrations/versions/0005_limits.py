"""How much of a job may run at the same time, and how long one attempt may take."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("job", sa.Column("concurrency", sa.Integer()))
    op.add_column("job", sa.Column("attempt_timeout_s", sa.Double()))


def downgrade() -> None:
    op.drop_column("job", "attempt_timeout_s")
    op.drop_column("job", "concurrency")
