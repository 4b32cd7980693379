"""Work that waits in the database for whoever has time: one worker takes it, and another where that one dies."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from palate.store import rows
from palate.store import tables as t
from palate.store.database import READ, WRITE
from palate.store.records import User
from palate.store.repository import Store

LEASE = 60.0
"""Seconds that a worker has a job for; it asks for more while it works."""
ATTEMPTS = 5
"""How often a job that fails is tried."""


@dataclass(frozen=True)
class Job:
    """One piece of work.

    Args:
        id: the store's own number.
        kind: what is to be done.
        key: two jobs of one kind and key do not wait side by side.
        user_id: the store's number of whom it is about, if it is about one person.
        payload: what it takes.
        attempts: how often it was begun, this time counted.
        worker: who has it.
    """

    id: int
    kind: str
    key: str
    user_id: int | None
    payload: Mapping[str, Any]
    attempts: int
    worker: str


class Jobs:
    """The work that waits in a store.

    Example:
        >>> with Store.open("sqlite://") as store:  # in memory
        ...     jobs = Jobs(store)
        ...     jobs.add("rescore")
        ...     job = jobs.take("worker-1")
        ...     job.kind, jobs.take("worker-2"), jobs.done(job)
        ('rescore', None, True)
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def add(
        self,
        kind: str,
        key: str = "",
        payload: Mapping[str, Any] | None = None,
        *,
        user: User | None = None,
        after: float = 0.0,
    ) -> None:
        """Let work wait, unless the same does already.

        Args:
            kind: what is to be done.
            key: told apart by this from others of the kind.
            payload: what it takes; JSON.
            user: whom it is about; forgotten with them.
            after: seconds from now, before which nobody takes it.
        """
        with self._store.database.transaction(WRITE) as db:
            rows.insert_if_absent(
                db,
                t.job,
                kind=kind,
                key=key,
                user_id=user.id if user else None,
                payload=dict(payload or {}),
                state="queued",
                run_after=rows.now() + timedelta(seconds=after),
                attempts=0,
            )

    def take(self, worker: str, lease: float = LEASE) -> Job | None:
        """The work that waited longest, or whose worker is dead; None where there is none.

        Args:
            worker: a name that no other worker has.
            lease: seconds, after which it counts as dead unless it calls `keep`.
        """
        now = rows.now()
        ready = sa.or_(
            (t.job.c.state == "queued") & (t.job.c.run_after <= now),
            (t.job.c.state == "running") & (t.job.c.lease_until < now),
        )
        wanted = sa.select(t.job).where(ready).order_by(t.job.c.run_after, t.job.c.id).limit(1)
        with self._store.database.transaction(READ) as db:
            if db.execute(wanted).one_or_none() is None:
                return None  # most of the time, and nobody else has to wait for it
        with self._store.database.transaction(WRITE) as db:
            row = db.execute(wanted.with_for_update(skip_locked=True)).one_or_none()
            if row is None:
                return None
            attempts = row.attempts + 1
            until = now + timedelta(seconds=lease)
            values = {"state": "running", "worker": worker, "lease_until": until, "attempts": attempts}
            db.execute(t.job.update().where(t.job.c.id == row.id).values(values))
        return Job(row.id, row.kind, row.key, row.user_id, row.payload, attempts, worker)

    def keep(self, job: Job, lease: float = LEASE) -> bool:
        """Have a job for longer; False where another worker has it by now."""
        until = rows.now() + timedelta(seconds=lease)
        with self._store.database.transaction(WRITE) as db:
            return db.execute(t.job.update().where(_mine(job)).values(lease_until=until)).rowcount > 0

    def done(self, job: Job) -> bool:
        """Take finished work away; False where another worker has it by now."""
        with self._store.database.transaction(WRITE) as db:
            return db.execute(t.job.delete().where(_mine(job))).rowcount > 0

    def failed(self, job: Job, error: str) -> None:
        """Let work that failed wait for another try, ever longer; after `ATTEMPTS` it stays as failed."""
        with self._store.database.transaction(WRITE) as db:
            same = (t.job.c.kind == job.kind) & (t.job.c.key == job.key) & (t.job.c.state == "queued")
            if db.scalar(sa.select(t.job.c.id).where(same)) is not None:
                db.execute(t.job.delete().where(_mine(job)))  # it waits anew already
                return
            again = job.attempts < ATTEMPTS
            later = rows.now() + timedelta(seconds=2.0**job.attempts)
            values = {"state": "queued" if again else "failed", "run_after": later, "error": error[:2_000]}
            db.execute(t.job.update().where(_mine(job)).values(values))

    def waits(self, kind: str, key: str = "") -> bool:
        """Whether such work is queued or being done."""
        same = (t.job.c.kind == kind) & (t.job.c.key == key) & (t.job.c.state != "failed")
        with self._store.database.transaction(READ) as db:
            return db.scalar(sa.select(t.job.c.id).where(same).limit(1)) is not None

    def counts(self) -> dict[str, int]:
        """How many jobs are queued, running, failed."""
        counted = sa.select(t.job.c.state, sa.func.count()).group_by(t.job.c.state)
        with self._store.database.transaction(READ) as db:
            found = {row[0]: int(row[1]) for row in db.execute(counted)}
        return {state: found.get(state, 0) for state in ("queued", "running", "failed")}


def _mine(job: Job) -> sa.ColumnElement[bool]:
    return (t.job.c.id == job.id) & (t.job.c.state == "running") & (t.job.c.worker == job.worker)
