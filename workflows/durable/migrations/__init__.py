"""The database's history as alembic revisions; `migrate` applies them."""
