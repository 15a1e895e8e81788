"""Shared by every tier: the environment that ray and torch read while they are imported."""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path

from tests.postgres import database_url, migrated_file, postgres_server, shared_database  # noqa: F401 - fixtures
from tests.s3 import s3_server, s3_url  # noqa: F401 - fixtures

# Ray decides while it is imported whether it signs its calls; a cluster without that runs anybody's code.
os.environ.setdefault("RAY_AUTH_MODE", "token")
if "RAY_AUTH_TOKEN_PATH" not in os.environ:
    token = Path(tempfile.mkdtemp(prefix="reelray-token-")) / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Whether a model is on this machine must not depend on what a developer has downloaded.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="reelray-hub-")
os.environ.pop("HF_HUB_CACHE", None)
