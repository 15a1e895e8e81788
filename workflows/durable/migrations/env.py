"""Run by alembic: hands it the connection that `migrate.upgrade` opened and the tables to compare with."""

from __future__ import annotations

from alembic import context

from workflows.durable.migrations.migrate import VERSION_TABLE
from workflows.durable.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    # SQLite cannot alter a column in place.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
