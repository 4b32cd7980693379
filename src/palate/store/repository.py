"""The store: everything Palate remembers of people, behind one class.

What is promised: what a method has written when it returns is on the disk and survives `kill -9`; writers
of one user, in whatever process, take turns, so no evidence is lost and no two queries are open at once;
reading writes nothing. What is not: `forget` empties this database's own files, not backups, and not freed
blocks of the disk.
"""

import os
import uuid
from dataclasses import replace
from typing import Self

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from palate.errors import InputError, StoreError
from palate.feedback import Comparison, Record
from palate.rewards.elicitation import Query
from palate.store import rows
from palate.store import tables as t
from palate.store.database import READ, WRITE, Database
from palate.store.records import CHOICES, Choice, StoredEvidence, StoredPosterior, StoredQuery, Tenant, User
from palate.store.traces import texts_in

DEFAULT_URL = "sqlite:///palate.db"
DEFAULT_TENANT = "default"


class Store:
    """An open database of people and what they said.

    Get one from `Store.open`; use it in a `with` block, or close it. Threads may share it. Any method raises
    StoreError when the database fails, with what it may mean and the way out; nothing is then half done.

    Example:
        >>> with Store.open("sqlite://") as store:  # in memory
        ...     ann = store.ensure_user("ann")
        ...     said = Comparison(user_id="ann", prompt="Hi", chosen="Hello!", rejected="What?")
        ...     _ = store.append(ann, said)
        ...     [evidence.record.chosen for evidence in store.evidence(ann)]
        ['Hello!']
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    @classmethod
    def open(cls, url: str | None = None, *, create: bool = True) -> Self:
        """Open a database, and bring one from an older version up to date.

        Args:
            url: an SQLAlchemy URL; by default the environment's PALATE_DATABASE, else sqlite:///palate.db.
            create: make the database if there is none.

        Raises:
            StoreError: it cannot be opened, is no database, comes from a newer version of Palate, or is
                missing and not to be made.
        """
        database = Database(url or os.environ.get("PALATE_DATABASE") or DEFAULT_URL)
        try:
            # The file is looked for first: SQLite would make it.
            revision = None if database.is_missing() else database.revision()
            if revision is None and not create:
                raise StoreError(
                    f"No Palate database at {database.name!r}; name another, or ask somebody first (palate onboard)"
                )
            if revision != t.HEAD:
                database.upgrade()
        except BaseException:
            database.close()
            raise
        return cls(database)

    def close(self) -> None:
        """Close the connections."""
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def current_revision(self) -> str | None:
        """The revision of the database's schema."""
        return self.database.revision()

    def upgrade(self) -> None:
        """Bring the schema to this version's revision, as `open` does."""
        self.database.upgrade()

    # People

    def ensure_tenant(self, name: str) -> None:
        """Make a tenant unless there is one of that name; 'default' is there from the start."""
        with self.database.transaction(WRITE) as db:
            rows.insert_if_absent(db, t.tenant, name=name)

    def tenant(self, name: str = DEFAULT_TENANT) -> Tenant:
        """The tenant of that name.

        Raises:
            InputError: there is none.
        """
        with self.database.transaction(READ) as db:
            row = db.execute(sa.select(t.tenant).where(t.tenant.c.name == name)).one_or_none()
        if row is None:
            raise InputError(f"Unknown tenant: {name!r}; make it with Store.ensure_tenant first")
        return rows.to_tenant(row)

    def tenants(self) -> list[Tenant]:
        """All tenants, in the order they came."""
        with self.database.transaction(READ) as db:
            return [rows.to_tenant(row) for row in db.execute(sa.select(t.tenant).order_by(t.tenant.c.id))]

    def set_tenant(
        self,
        name: str,
        *,
        learn: bool | None = None,
        retention: str | None = None,
        completion_days: int | None = None,
    ) -> Tenant:
        """Change what holds for all of a tenant's users; None leaves a setting as it is.

        Raises:
            InputError: there is no such tenant, or a value is out of its range.
        """
        if retention not in (None, "texts", "vectors"):
            raise InputError(f"Retention {retention!r} is not texts or vectors; give one of these")
        if completion_days is not None and completion_days < 1:
            raise InputError(f"completion_days {completion_days!r} is not 1 or more; feedback comes after an answer")
        given = {"learn": learn, "retention": retention, "completion_days": completion_days}
        values = {key: value for key, value in given.items() if value is not None}
        if values:
            with self.database.transaction(WRITE) as db:
                db.execute(t.tenant.update().where(t.tenant.c.name == name).values(values))
        return self.tenant(name)

    def user(self, external_id: str, tenant: str = DEFAULT_TENANT) -> User | None:
        """The tenant's user of that name, None if there is none."""
        with self.database.transaction(READ) as db:
            return rows.find_user(db, external_id, tenant)

    def user_and_count(self, external_id: str, tenant: str = DEFAULT_TENANT) -> tuple[User, int] | None:
        """The tenant's user of that name and their `evidence_count`, in one look; None if there is none."""
        said = sa.select(rows.counted_changes()).where(t.evidence.c.user_id == t.user.c.id).scalar_subquery()
        wanted = rows.people.add_columns(said.label("said"))
        with self.database.transaction(READ) as db:
            row = db.execute(wanted.where(t.user.c.external_id == external_id, t.tenant.c.name == tenant)).one_or_none()
        return None if row is None else (rows.to_user(row), row.said + row.readings)

    def user_of(self, number: int, tenant: str | None = None) -> User | None:
        """The user of that number, None if there is none, or only another tenant's."""
        wanted = rows.people.where(t.user.c.id == number)
        with self.database.transaction(READ) as db:
            row = db.execute(wanted if tenant is None else wanted.where(t.tenant.c.name == tenant)).one_or_none()
        return None if row is None else rows.to_user(row)

    def ensure_user(self, external_id: str, tenant: str = DEFAULT_TENANT) -> User:
        """The tenant's user of that name, made if there is none.

        Raises:
            InputError: the name is empty or too long, or there is no such tenant.
        """
        if not 1 <= len(external_id) <= t.MAX_EXTERNAL_ID:
            raise InputError(
                f"Invalid user id: {external_id!r} has {len(external_id)} characters; give 1 to {t.MAX_EXTERNAL_ID}"
            )
        if known := self.user(external_id, tenant):
            return known
        with self.database.transaction(WRITE) as db:
            tenant_id = db.scalar(sa.select(t.tenant.c.id).where(t.tenant.c.name == tenant))
            if tenant_id is None:
                raise InputError(f"Unknown tenant: {tenant!r}; make it with Store.ensure_tenant first")
            rows.insert_if_absent(db, t.user, tenant_id=tenant_id, external_id=external_id, created_at=rows.now())
            made = rows.find_user(db, external_id, tenant)
        assert made is not None
        return made

    def set_half_life(self, user: User, days: float | None) -> User:
        """Set after how many days half of what was learned of a person is forgotten; None: the model's own.

        Posteriors kept for the person are dropped: they are functions of it.

        Returns:
            The person as they are now.

        Raises:
            InputError: `days` is not above 0.
        """
        if days is not None and not days > 0:
            raise InputError(f"Half-life {days!r} is not above 0; give days, or None for the model's own")
        with self.database.transaction(WRITE) as db:
            rows.lock(db, user.id)
            db.execute(t.user.update().where(t.user.c.id == user.id).values(half_life_days=days))
            db.execute(t.posterior.delete().where(t.posterior.c.user_id == user.id))
        return replace(user, half_life_days=days)

    def pause(self, user: User, paused: bool = True) -> User:
        """Learn nothing more of a person for now, or go on.

        Returns:
            The person as they are now.
        """
        with self.database.transaction(WRITE) as db:
            rows.lock(db, user.id)
            db.execute(t.user.update().where(t.user.c.id == user.id).values(paused=paused))
        return replace(user, paused=paused)

    def reset(self, user: User) -> int:
        """Let nothing that a person said count any more; how much did.

        Nothing is erased but what was made of it for training; `forget` erases.
        """
        with self.database.transaction(WRITE) as db:
            rows.lock(db, user.id)
            mine = (t.evidence.c.user_id == user.id) & ~t.evidence.c.withdrawn
            ids = db.scalars(sa.select(t.evidence.c.id).where(mine)).all()
            return sum(rows.withdraw(db, user.id, evidence_id) for evidence_id in ids)

    def users(self, tenant: str = DEFAULT_TENANT) -> list[User]:
        """The tenant's users, in the order they came."""
        with self.database.transaction(READ) as db:
            found = db.execute(rows.people.where(t.tenant.c.name == tenant).order_by(t.user.c.id))
            return [rows.to_user(row) for row in found]

    def everybody(self, after: int = 0, at_most: int = 1_000) -> list[User]:
        """Users of all tenants by number, those after a number: for jobs that walk over all of them."""
        with self.database.transaction(READ) as db:
            found = db.execute(rows.people.where(t.user.c.id > after).order_by(t.user.c.id).limit(at_most))
            return [rows.to_user(row) for row in found]

    def export(self, user: User) -> dict[str, list[dict[str, object]]]:
        """Every row of a person by table, for them to take along; numbers in bytes are left out."""
        with self.database.transaction(READ) as db:
            return {
                table.name: [
                    {name: value for name, value in row._mapping.items() if not isinstance(value, bytes)}
                    for row in db.execute(sa.select(table).where(rows.owner(table) == user.id))
                ]
                for table in rows.tables_of_people()
            }

    def texts_of(self, user: User) -> list[str]:
        """What a person typed, asked or was answered, each text once."""
        kept = self.export(user)
        columns = {"evidence": ("payload",), "example": ("text",), "completion": ("prompt", "system"),
                   "feedback": ("value", "comment")}  # fmt: skip
        values = [row[name] for table, names in columns.items() for row in kept[table] for name in names]
        values += [one["text"] for row in kept["completion"] for one in row["candidates"]]  # type: ignore[attr-defined]
        return list(dict.fromkeys(text for value in values for text in texts_in(value)))

    def forget(self, user: User, *, scrub: bool = True) -> dict[str, int]:
        """Erase every row of a person, and what deleted rows leave in an SQLite file.

        Forgetting twice is allowed.

        Args:
            user: who.
            scrub: whether to overwrite what deleted rows leave; else call `scrub` later.

        Returns:
            How many rows were erased from each table.

        Raises:
            StoreError: nothing was erased; or, where the message says so, the rows were but not their traces,
                which `scrub` will erase.
        """
        erased = {}
        with self.database.transaction(WRITE) as db:
            for table in reversed(rows.tables_of_people()):  # what refers to a row goes before it
                erased[table.name] = db.execute(table.delete().where(rows.owner(table) == user.id)).rowcount
        try:
            if scrub:
                self.scrub()
        except StoreError as error:
            raise StoreError(
                f"Every row of user {user.external_id!r} is erased, but not its traces: {error}"
            ) from error
        return erased

    def scrub(self) -> None:
        """Overwrite what deleted rows have left in an SQLite file and its log, as `forget` does."""
        self.database.scrub()

    # Evidence

    def append(
        self,
        user: User,
        record: Record,
        *,
        evidence_id: str | None = None,
        query_id: str | None = None,
        provisional: bool = False,
    ) -> str:
        """Add to a user's evidence.

        Args:
            user: who said it.
            record: what was said; without `created_at` it was said now.
            evidence_id: 1 to 256 characters, to make a repeated call harmless; a new one by default.
            query_id: the query that it answers.
            provisional: whether it is to count only once `confirm` is called.

        Returns:
            The evidence's id.

        Raises:
            InputError: the record is another user's, or the id is empty or too long.
            StoreError: the id already stands for something else.
        """
        if evidence_id is not None and not 1 <= len(evidence_id) <= t.MAX_EXTERNAL_ID:
            raise InputError(
                f"Invalid evidence id: {evidence_id!r} has {len(evidence_id)} characters; "
                f"give 1 to {t.MAX_EXTERNAL_ID}, or none"
            )
        if record.user_id != user.external_id:
            raise InputError(
                f"Evidence of user {record.user_id!r} cannot be given to user {user.external_id!r}; "
                "append it to its own user"
            )
        with self.database.transaction(WRITE) as db:
            person = rows.lock(db, user.id)
            name = evidence_id or str(uuid.uuid4())
            return rows.append(db, person, record, name, query_id, provisional=provisional)

    def evidence(
        self, user: User, *, include_withdrawn: bool = False, include_provisional: bool = False
    ) -> list[StoredEvidence]:
        """A user's evidence, sorted by time, then id; replies as they were last read."""
        wanted = sa.select(t.evidence).where(t.evidence.c.user_id == user.id)
        if not include_withdrawn:
            wanted = wanted.where(~t.evidence.c.withdrawn)
        if not include_provisional:
            wanted = wanted.where(~t.evidence.c.provisional)
        with self.database.transaction(READ) as db:
            readings = rows.readings(db, user.id)
            found = [rows.to_evidence(row, user, readings.get(row.id)) for row in db.execute(wanted)]
        # Not sorted by the database: one with a locale would order the ids its own way.
        return sorted(found, key=lambda evidence: (evidence.created_at, evidence.id))

    def evidence_count(self, user: User) -> int:
        """How often a user's evidence has changed: by an append, a withdrawal, a new reading, or a confirmation.

        While it stays the same, so does the evidence, and so does a posterior. Read it before the evidence.
        """
        read = sa.select(t.user.c.readings).where(t.user.c.id == user.id)
        with self.database.transaction(READ) as db:
            return rows.changes(db, user.id) + (db.scalar(read) or 0)

    def evidence_changes(self, user: User) -> int:
        """As `evidence_count`, without the readings: how often the person said something or took it back."""
        with self.database.transaction(READ) as db:
            return rows.changes(db, user.id)

    def confirm(self, user: User, evidence_id: str) -> bool:
        """Let provisional evidence count; False if there is none of that id."""
        mine = (t.evidence.c.user_id == user.id) & (t.evidence.c.id == evidence_id)
        with self.database.transaction(WRITE) as db:
            rows.lock(db, user.id)
            waiting = mine & t.evidence.c.provisional & ~t.evidence.c.withdrawn
            changed = db.execute(t.evidence.update().where(waiting).values(provisional=False)).rowcount > 0
            if changed:
                counted = t.user.c.readings + 1
                db.execute(t.user.update().where(t.user.c.id == user.id).values(readings=counted))
            return changed

    def withdraw(self, user: User, evidence_id: str) -> bool:
        """Let a piece of evidence count no more; False if there is none that does.

        What was made of a reply for training, and what is replayed of it, is erased.
        """
        with self.database.transaction(WRITE) as db:
            rows.lock(db, user.id)
            return rows.withdraw(db, user.id, evidence_id)

    # Queries

    def open_query(self, user: User, fingerprint: str) -> StoredQuery | None:
        """The query that a user has yet to answer, None if there is none."""
        with self.database.transaction(READ) as db:
            return rows.open_query(db, user, fingerprint)

    def ask(
        self, user: User, fingerprint: str, query: Query, *, strategy: str, after: int | None = None
    ) -> StoredQuery | None:
        """Open a query, unless one is open already: then that one is returned and nothing is written.

        Args:
            user: who is asked.
            fingerprint: the reward model that chose the query.
            query: what is asked, its sides as they are to be shown.
            strategy: what chose the query.
            after: how many queries the user had under the model when this one was chosen. If there are more by
                now, it was chosen on old evidence: nothing is written and None is returned.

        Raises:
            FeedbackError: the answer could be no comparison, as when the responses are equal or one is empty.
            StoreError: the model is not registered.
        """
        Comparison(user_id=user.external_id, prompt=query.prompt, chosen=query.response_a, rejected=query.response_b)
        with self.database.transaction(WRITE) as db:
            person = rows.lock(db, user.id)
            if already := rows.open_query(db, user, fingerprint):
                return already
            rows.require_model(db, fingerprint)
            seen = sa.select(sa.func.count()).where(rows.about(t.query, user, fingerprint))
            if after is not None and db.scalar(seen) != after:
                return None
            asked = sa.select(sa.func.count()).where(t.query.c.user_id == user.id)
            query_id = str(uuid.uuid4())
            values = {
                "id": query_id,
                "tenant_id": person.tenant_id,
                "user_id": user.id,
                "fingerprint": fingerprint,
                "seq": (db.scalar(asked) or 0) + 1,
                "prompt": query.prompt,
                "response_a": query.response_a,
                "response_b": query.response_b,
                "pool_a": query.rows[0],
                "pool_b": query.rows[1],
                "strategy": strategy,
                "expected_information": query.expected_information,
                "asked_at": rows.now(),
            }
            db.execute(t.query.insert().values(values))
            return rows.query(db, query_id)

    def answer(self, query_id: str, choice: Choice) -> StoredQuery:
        """Answer a query, and append what it says to the user's evidence under the query's id.

        A tie is a comparison of strength 0.5; a skipped query says nothing. The same answer again changes
        nothing.

        Raises:
            InputError: no such choice.
            StoreError: no such query, or it was answered otherwise.
        """
        if choice not in CHOICES:
            raise InputError(f"Invalid choice: {choice!r}; choose one of {', '.join(map(repr, CHOICES))}")
        with self.database.transaction(WRITE) as db:
            owner = db.scalar(sa.select(t.query.c.user_id).where(t.query.c.id == query_id))
            if owner is None:
                raise StoreError(f"Unknown query: {query_id!r}; answer one that Store.ask returned")
            person = rows.lock(db, owner)
            query = rows.query(db, query_id)
            if query.choice == choice:
                return query
            if query.choice is not None:
                raise StoreError(
                    f"Query {query_id!r} was answered {query.choice!r}, not {choice!r}; an answer stays, "
                    "but its evidence can be withdrawn"
                )
            answered = t.query.update().where(t.query.c.id == query_id)
            db.execute(answered.values(choice=choice, answered_at=rows.now()))
            query = rows.query(db, query_id)
            if comparison := query.comparison(person.external_id):
                rows.append(db, person, comparison, query_id, query_id)
            return query

    def query_of(self, user: User, query_id: str) -> StoredQuery | None:
        """A question that a person was asked, None where they were not."""
        mine = (t.query.c.id == query_id) & (t.query.c.user_id == user.id)
        with self.database.transaction(READ) as db:
            row = db.execute(sa.select(t.query).where(mine)).one_or_none()
        return None if row is None else rows.to_query(row)

    def queries(self, user: User, fingerprint: str) -> list[StoredQuery]:
        """What a user was asked, in that order; the last one may still be open."""
        wanted = sa.select(t.query).where(rows.about(t.query, user, fingerprint)).order_by(t.query.c.seq)
        with self.database.transaction(READ) as db:
            return [rows.to_query(row) for row in db.execute(wanted)]

    # Models and posteriors

    def register_model(self, fingerprint: str, *, path: str, encoder: str, encoder_revision: str, rank: int) -> None:
        """Make a reward model known, or note that it has moved to another path."""
        values = {
            "encoder": encoder,
            "encoder_revision": encoder_revision,
            "rank": rank,
            "created_at": rows.now(),
        }
        with self.database.transaction(WRITE) as db:
            rows.insert_if_absent(db, t.model, fingerprint=fingerprint, path=path, **values)
            db.execute(t.model.update().where(t.model.c.fingerprint == fingerprint).values(path=path))

    def posterior(self, user: User, fingerprint: str) -> StoredPosterior | None:
        """The posterior saved last for a user under a model, None if there is none.

        It is what the evidence says only while its `evidence_count` is the user's.
        """
        wanted = sa.select(t.posterior).where(rows.about(t.posterior, user, fingerprint))
        with self.database.transaction(READ) as db:
            row = db.execute(wanted).one_or_none()
        return None if row is None else rows.to_posterior(row)

    def save_posterior(
        self,
        user: User,
        fingerprint: str,
        mean: NDArray[np.float64],
        cov: NDArray[np.float64],
        *,
        weights: NDArray[np.float64] | None = None,
        evidence_count: int,
        expected_version: int,
    ) -> int | None:
        """Save a posterior, unless another one was saved meanwhile.

        Args:
            user: whose it is.
            fingerprint: the reward model it belongs to.
            mean: (..., J).
            cov: (..., J, J).
            weights: (...) of a mixture's parts; None for a Gaussian.
            evidence_count: the user's `evidence_count`, read before the evidence was.
            expected_version: version of the posterior that this one replaces, 0 for none.

        Returns:
            The new version; None if the saved one is not `expected_version`, or the user's half-life is no longer
            that of `user`: load them and decide anew.

        Raises:
            InputError: mean, covariance and weights do not fit each other.
            StoreError: the model is not registered.
        """
        if cov.shape != (*mean.shape, *mean.shape[-1:]) or not mean.ndim:
            raise InputError(
                f"Covariance of shape {cov.shape} does not fit a mean of shape {mean.shape}; "
                "give means (..., J) and covariances (..., J, J)"
            )
        if weights is not None and weights.shape != mean.shape[:-1]:
            raise InputError(
                f"Weights of shape {weights.shape} do not fit a mean of shape {mean.shape}; give one weight per part"
            )
        mine = rows.about(t.posterior, user, fingerprint)
        values = {
            "shape": list(mean.shape),
            "mean": t.pack(mean),
            "cov": t.pack(cov),
            "weights": None if weights is None else t.pack(weights),
            "evidence_count": evidence_count,
            "version": expected_version + 1,
            "updated_at": rows.now(),
        }
        with self.database.transaction(WRITE) as db:
            rows.lock(db, user.id)
            rows.require_model(db, fingerprint)
            if (db.scalar(sa.select(t.posterior.c.version).where(mine)) or 0) != expected_version:
                return None
            # A posterior is a function of the half-life, and `set_half_life` leaves no version to tell by.
            if db.scalar(sa.select(t.user.c.half_life_days).where(t.user.c.id == user.id)) != user.half_life_days:
                return None
            if expected_version:
                db.execute(t.posterior.update().where(mine).values(values))
            else:
                db.execute(t.posterior.insert().values(user_id=user.id, fingerprint=fingerprint, **values))
        return expected_version + 1
