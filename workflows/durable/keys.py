"""API keys: who may ask, and how much. A key is shown once, when it is made; only its digest is kept. Knows no HTTP.

    rr_3f9c1a7b2d_<43 random characters>
       id, public    the secret
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import sqlalchemy as sa

from workflows.durable.database import Database
from workflows.durable.tables import api_key
from workflows.durable.usage import spent
from workflows.errors import InvalidDocument, Problem, UnknownKey

PREFIX = "rr"
SECRET_BYTES = 32
MAX_NAME_CHARS = 100


class Role(StrEnum):
    """What a key is for; what each may do is in `serve_app.service.access`."""

    ADMIN = "admin"
    USER = "user"
    READ = "read"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key as it stands, without its secret."""

    id: str
    name: str
    role: Role
    digest: str
    """SHA-256 of the whole key, hex."""
    requests_per_min: int | None
    """None: what `http.requests_per_min` says."""
    gpu_budget_s: float | None
    """GPU-seconds that it may spend in all; None: no limit."""
    created_at_s: float
    revoked_at_s: float | None

    @classmethod
    def of(cls, row: sa.RowMapping) -> ApiKey:
        """From a row of the `api_key` table."""
        return cls(id=row["id"], name=row["name"], role=Role(row["role"]), digest=row["digest"],
                   requests_per_min=row["requests_per_min"], gpu_budget_s=row["gpu_budget_s"],
                   created_at_s=row["created_at"], revoked_at_s=row["revoked_at"])

    def opens_with(self, token: str) -> bool:
        """Whether this is the key, and it was not revoked. Takes the same time whatever is wrong with the token."""
        return hmac.compare_digest(digest_of(token), self.digest) and self.revoked_at_s is None


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedKey:
    """A new key; the only moment at which its secret is known."""

    key: ApiKey
    token: str


class Keys:
    """The keys of one database."""

    def __init__(self, database: Database) -> None:
        """Read and write this database."""
        self._database = database

    def create(self, name: str, role: Role, *, requests_per_min: int | None = None,
               gpu_budget_s: float | None = None) -> IssuedKey:
        """Draw a new key. Raises InvalidDocument for a name or a limit that cannot be."""
        name = name.strip()
        if not 0 < len(name) <= MAX_NAME_CHARS or not name.isprintable():
            raise _refused("name", f"{name[:40]!r}", f"1 to {MAX_NAME_CHARS} printable characters")
        _check_limits(requests_per_min, gpu_budget_s)
        key_id = secrets.token_hex(5)
        token = f"{PREFIX}_{key_id}_{secrets.token_urlsafe(SECRET_BYTES)}"
        with self._database.write() as connection:
            connection.execute(sa.insert(api_key).values(
                id=key_id, name=name, role=role.value, digest=digest_of(token), requests_per_min=requests_per_min,
                gpu_budget_s=_budget(gpu_budget_s), created_at=time.time()))
        return IssuedKey(key=self.get(key_id), token=token)

    def get(self, key_id: str) -> ApiKey:
        """One key; raises UnknownKey."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(api_key).where(api_key.c.id == key_id)).mappings().first()
        if row is None:
            raise UnknownKey(key_id=key_id)
        return ApiKey.of(row)

    def all(self) -> tuple[ApiKey, ...]:
        """Every key, the oldest first, revoked ones too."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(api_key).order_by(api_key.c.created_at, api_key.c.id)).mappings()
            return tuple(ApiKey.of(row) for row in rows)

    def change(self, key_id: str, *, requests_per_min: int | None = None,
               gpu_budget_s: float | None = None) -> ApiKey:
        """Give a key other limits; None leaves one as it is, infinity takes the budget away. Raises UnknownKey and
        InvalidDocument.
        """
        _check_limits(requests_per_min, gpu_budget_s)
        values: dict[str, object] = {}
        if requests_per_min is not None:
            values["requests_per_min"] = requests_per_min
        if gpu_budget_s is not None:
            values["gpu_budget_s"] = _budget(gpu_budget_s)
        self.get(key_id)
        if values:
            with self._database.write() as connection:
                connection.execute(sa.update(api_key).where(api_key.c.id == key_id).values(**values))
        return self.get(key_id)

    def revoke(self, key_id: str) -> ApiKey:
        """The key opens nothing any more; its row stays, and so do its jobs. Raises UnknownKey."""
        self.get(key_id)
        with self._database.write() as connection:
            connection.execute(sa.update(api_key).where(api_key.c.id == key_id, api_key.c.revoked_at.is_(None))
                               .values(revoked_at=time.time()))
        return self.get(key_id)

    def spent_s(self) -> Mapping[str, float]:
        """GPU-seconds that each key has used, by id; those that used none are missing."""
        with self._database.read() as connection:
            return spent(connection)


def digest_of(token: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def id_in(token: str) -> str:
    """The public part of a key; empty when it has none."""
    prefix, _, rest = token.partition("_")
    return rest.partition("_")[0] if prefix == PREFIX else ""


def _budget(gpu_budget_s: float | None) -> float | None:
    return None if gpu_budget_s is None or math.isinf(gpu_budget_s) else gpu_budget_s


def _check_limits(requests_per_min: int | None, gpu_budget_s: float | None) -> None:
    if requests_per_min is not None and requests_per_min < 1:
        raise _refused("requests_per_min", str(requests_per_min), "1")
    if gpu_budget_s is not None and not gpu_budget_s >= 0:
        raise _refused("gpu_budget_s", str(gpu_budget_s), "0")


def _refused(field: str, found: str, nearest: str) -> InvalidDocument:
    return InvalidDocument(problems=(Problem(field=field, problem=f"{found} is no value for it", nearest=nearest),))
