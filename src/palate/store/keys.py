"""API keys: random, shown once, and kept only as what HMAC-SHA-256 makes of them."""

import hmac
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from palate.errors import InputError
from palate.store import rows
from palate.store import tables as t
from palate.store.database import READ, WRITE
from palate.store.repository import DEFAULT_TENANT, Store

SCOPES = ("chat", "feedback", "admin")
"""What a key may be for: answers; what people say of them and are asked; and people's data, keys' tenants, jobs."""


@dataclass(frozen=True)
class ApiKey:
    """What is known of a key, which is not the key.

    Args:
        id: the part of it that may be shown.
        tenant: whose users it reaches.
        name: what it was made for.
        scopes: some of `SCOPES`.
        created_at: UTC.
        revoked_at: UTC; None while it is good.
    """

    id: str
    tenant: str
    name: str
    scopes: tuple[str, ...]
    created_at: datetime
    revoked_at: datetime | None = None


def secret(store: Store, name: str) -> bytes:
    """A random number of this database's own, made when it is first asked for; or the environment's PALATE_SECRET.

    With the environment's, a copy of the database alone is no help in guessing what was hashed or signed with it.
    """
    if given := os.environ.get("PALATE_SECRET"):
        return hmac.digest(given.encode(), name.encode(), "sha256")
    kept = sa.select(t.secret.c.value).where(t.secret.c.name == name)
    with store.database.transaction(READ) as db:
        found = db.scalar(kept)
    if found is None:
        with store.database.transaction(WRITE) as db:
            rows.insert_if_absent(db, t.secret, name=name, value=secrets.token_bytes(32))
            found = db.scalar(kept)
    return bytes(found or b"")


class Keys:
    """The keys of a store.

    Example:
        >>> with Store.open("sqlite://") as store:  # in memory
        ...     key, known = Keys(store).create(["chat"])
        ...     Keys(store).find(key) == known, Keys(store).find("pk-guessed")
        (True, None)
    """

    def __init__(self, store: Store) -> None:
        self._store, self._pepper = store, secret(store, "keys")

    def create(self, scopes: Sequence[str], *, tenant: str = DEFAULT_TENANT, name: str = "") -> tuple[str, ApiKey]:
        """A new key, which is never shown again, and what is kept of it.

        Args:
            scopes: some of `SCOPES`.
            tenant: whose users it reaches; made if there is none.
            name: what it is for.

        Raises:
            InputError: there is no such scope, or the tenant's name is empty or too long.
        """
        if not scopes or (unknown := [scope for scope in scopes if scope not in SCOPES]):
            given = unknown[0] if scopes else ""
            raise InputError(f"There is no scope {given!r}; give some of {', '.join(SCOPES)}")
        if not 1 <= len(tenant) <= 256 or len(name) > 256:
            raise InputError(f"Tenant {tenant!r} or name {name!r} is empty or too long; give up to 256 characters")
        self._store.ensure_tenant(tenant)
        made = ApiKey(secrets.token_hex(4), tenant, name, tuple(s for s in SCOPES if s in scopes), rows.now())
        key = f"pk-{made.id}-{secrets.token_urlsafe(32)}"
        tenant_id = self._store.tenant(tenant).id
        with self._store.database.transaction(WRITE) as db:
            db.execute(
                t.api_key.insert().values(
                    id=made.id,
                    tenant_id=tenant_id,
                    digest=self._digest(key),
                    name=name,
                    scopes=list(made.scopes),
                    created_at=made.created_at,
                )
            )
        return key, made

    def find(self, key: str) -> ApiKey | None:
        """What a key is good for; None where it is unknown or revoked."""
        wanted = _keys.where(t.api_key.c.digest == self._digest(key), t.api_key.c.revoked_at.is_(None))
        with self._store.database.transaction(READ) as db:
            row = db.execute(wanted).one_or_none()
        return None if row is None else _to_key(row)

    def all(self, tenant: str | None = None) -> list[ApiKey]:
        """The keys of a tenant, or of all; revoked ones too, in the order they were made."""
        wanted = _keys if tenant is None else _keys.where(t.tenant.c.name == tenant)
        with self._store.database.transaction(READ) as db:
            return [_to_key(row) for row in db.execute(wanted.order_by(t.api_key.c.created_at, t.api_key.c.id))]

    def revoke(self, key_id: str) -> bool:
        """Make a key good for nothing; False if there is none of that id that is."""
        good = (t.api_key.c.id == key_id) & t.api_key.c.revoked_at.is_(None)
        with self._store.database.transaction(WRITE) as db:
            return db.execute(t.api_key.update().where(good).values(revoked_at=rows.now())).rowcount > 0

    def _digest(self, key: str) -> str:
        # A header may hold anything.
        return hmac.digest(self._pepper, key.encode("utf-8", "surrogateescape"), "sha256").hex()


_keys = sa.select(t.api_key, t.tenant.c.name.label("tenant")).join(t.tenant, t.tenant.c.id == t.api_key.c.tenant_id)


def _to_key(row: sa.Row[Any]) -> ApiKey:
    return ApiKey(row.id, row.tenant, row.name, tuple(row.scopes), row.created_at, row.revoked_at)
