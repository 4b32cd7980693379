"""What the store does inside a transaction: rows are found, locked, added, and turned into records."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from palate.errors import StoreError
from palate.feedback import Comparison, Rating, Record, Reply
from palate.store import tables as t
from palate.store.records import StoredEvidence, StoredPosterior, StoredQuery, StoredScore, Tenant, User

_RECORDS: Mapping[str, type[Record]] = {"comparison": Comparison, "rating": Rating, "reply": Reply}
_KINDS = {record: kind for kind, record in _RECORDS.items()}

people = sa.select(t.user, t.tenant.c.name.label("tenant")).join(t.tenant)


def now() -> datetime:
    """The time in UTC."""
    return datetime.now(UTC)


def insert_if_absent(db: Connection, table: sa.Table, **values: object) -> None:
    """Insert a row unless its unique name is taken."""
    # A savepoint, because PostgreSQL lets two transactions try at once and one of them fail.
    try:
        with db.begin_nested():
            db.execute(table.insert().values(values))
    except IntegrityError:
        pass


def owner(table: sa.Table) -> sa.ColumnElement[int | None]:
    """The column that says whose a row is."""
    return t.user.c.id if table is t.user else table.c.user_id


def tables_of_people() -> list[sa.Table]:
    """The tables with rows of people, what is referred to first."""
    return [table for table in t.metadata.sorted_tables if table is t.user or "user_id" in table.c]


def find_user(db: Connection, external_id: str, tenant: str) -> User | None:
    """The tenant's user of that name."""
    row = db.execute(people.where(t.user.c.external_id == external_id, t.tenant.c.name == tenant)).one_or_none()
    return None if row is None else to_user(row)


def lock(db: Connection, user_id: int) -> sa.Row[Any]:
    """The user's row, which no other writer of this user gets before this transaction ends."""
    row = db.execute(people.where(t.user.c.id == user_id).with_for_update(of=t.user)).one_or_none()
    if row is None:
        raise StoreError(f"User number {user_id} is not in the store any more; get it from Store.ensure_user")
    return row


def require_model(db: Connection, fingerprint: str) -> None:
    """Refuse a model that was never registered."""
    if db.scalar(sa.select(t.model.c.rank).where(t.model.c.fingerprint == fingerprint)) is None:
        raise StoreError(f"Unknown model: {fingerprint!r}; register it with Store.register_model first")


def about(table: sa.Table, user: User, fingerprint: str) -> sa.ColumnElement[bool]:
    """The table's rows of a user under a model."""
    return (table.c.user_id == user.id) & (table.c.fingerprint == fingerprint)


def open_query(db: Connection, user: User, fingerprint: str) -> StoredQuery | None:
    """The query that a user has yet to answer."""
    wanted = sa.select(t.query).where(about(t.query, user, fingerprint), t.query.c.answered_at.is_(None))
    row = db.execute(wanted).one_or_none()
    return None if row is None else to_query(row)


def query(db: Connection, query_id: str) -> StoredQuery:
    """The query of that id, which must be there."""
    return to_query(db.execute(sa.select(t.query).where(t.query.c.id == query_id)).one())


def append(
    db: Connection,
    person: sa.Row[Any],
    record: Record,
    evidence_id: str,
    query_id: str | None = None,
    *,
    provisional: bool = False,
) -> str:
    """Add evidence of the locked `person`, unless it is there already."""
    kind = _KINDS[type(record)]
    payload = record.model_dump(mode="json", exclude_none=True, exclude={"user_id", "created_at"})
    same_id = (t.evidence.c.user_id == person.id) & (t.evidence.c.id == evidence_id)
    if already := db.execute(sa.select(t.evidence).where(same_id)).one_or_none():
        same_time = record.created_at is None or already.created_at == record.created_at
        if (already.kind, already.payload) == (kind, payload) and same_time:
            return evidence_id
        raise StoreError(
            f"Evidence {evidence_id!r} of user {person.external_id!r} says something else already; "
            "withdraw it and append this under another id"
        )
    db.execute(
        t.evidence.insert().values(
            id=evidence_id,
            user_id=person.id,
            tenant_id=person.tenant_id,
            query_id=query_id,
            kind=kind,
            created_at=record.created_at or now(),
            payload=payload,
            provisional=provisional,
        )
    )
    return evidence_id


def to_tenant(row: sa.Row[Any]) -> Tenant:
    """A row of `tenant` as a record."""
    return Tenant(row.id, row.name, row.learn, row.retention, row.completion_days)


def to_user(row: sa.Row[Any]) -> User:
    """A row of `people` as a record."""
    return User(row.id, row.tenant, row.external_id, row.created_at, row.paused, row.half_life_days)


def changes(db: Connection, user_id: int) -> int:
    """How often a user said something or took it back."""
    return db.scalar(sa.select(counted_changes()).where(t.evidence.c.user_id == user_id)) or 0


def counted_changes() -> sa.ColumnElement[int]:
    """Rows of evidence, those that were taken back twice."""
    return sa.func.count(t.evidence.c.id) + sa.func.count(sa.case((t.evidence.c.withdrawn, 1)))


def readings(db: Connection, user_id: int) -> dict[str, sa.Row[Any]]:
    """What was last read in each of a user's replies, by the evidence's id: satisfaction, confidence, target."""
    wanted = sa.select(t.score).where(t.score.c.user_id == user_id, t.score.c.number == 0).order_by(t.score.c.seq)
    return {row.evidence_id: row for row in db.execute(wanted)}


def withdraw(db: Connection, user_id: int, evidence_id: str) -> bool:
    """Let a piece of evidence count no more, and erase what was made of it for training; False if none did."""
    mine = (t.evidence.c.user_id == user_id) & (t.evidence.c.id == evidence_id) & ~t.evidence.c.withdrawn
    changed = db.execute(t.evidence.update().where(mine).values(withdrawn=True)).rowcount > 0
    if changed:
        drop_examples(db, user_id, evidence_id)
    return changed


def drop_examples(db: Connection, user_id: int, evidence_id: str) -> None:
    """Erase what was made of a reply for training."""
    mine = (t.example.c.user_id == user_id) & (t.example.c.evidence_id == evidence_id)
    keys = [f"{evidence_id}#{number}" for number in db.scalars(sa.select(t.example.c.number).where(mine))]
    db.execute(t.replay.delete().where(t.replay.c.user_id == user_id, t.replay.c.key.in_(keys)))
    db.execute(t.example.delete().where(mine))
    for table in (t.score, t.learned):
        db.execute(table.delete().where(table.c.user_id == user_id, table.c.evidence_id == evidence_id))


def to_score(row: sa.Row[Any]) -> StoredScore:
    """A row of score, with its example's text, as a record."""
    return StoredScore(
        number=row.number,
        how=row.how,
        text=row.text,
        version=row.version,
        scorer=row.scorer,
        satisfaction=row.satisfaction,
        confidence=row.confidence,
        target=row.target,
        followed=row.followed,
        share=row.share,
        training_target=row.training_target,
        scored_at=row.scored_at,
    )


def to_evidence(row: sa.Row[Any], user: User, reading: sa.Row[Any] | None = None) -> StoredEvidence:
    """A row of evidence as a record, with what was read in it."""
    said = {**row.payload, "user_id": user.external_id, "created_at": row.created_at}
    given = record = _RECORDS[row.kind].model_validate(said)
    if reading is not None and isinstance(given, Reply):
        record = given.read_as(reading.satisfaction, reading.confidence, reading.target)
    return StoredEvidence(row.id, row.created_at, record, row.query_id, row.withdrawn, given, row.provisional)


def to_query(row: sa.Row[Any]) -> StoredQuery:
    """A row of query as a record."""
    return StoredQuery(
        id=row.id,
        fingerprint=row.fingerprint,
        seq=row.seq,
        prompt=row.prompt,
        response_a=row.response_a,
        response_b=row.response_b,
        pool_index=None if row.pool_a is None else (row.pool_a, row.pool_b),
        strategy=row.strategy,
        expected_information=row.expected_information,
        asked_at=row.asked_at,
        answered_at=row.answered_at,
        choice=row.choice,
    )


def to_posterior(row: sa.Row[Any]) -> StoredPosterior:
    """A row of posterior as a record, its arrays read-only."""
    return StoredPosterior(
        mean=t.unpack(row.mean, row.shape),
        cov=t.unpack(row.cov, (*row.shape, row.shape[-1])),
        weights=None if row.weights is None else t.unpack(row.weights, row.shape[:-1]),
        evidence_count=row.evidence_count,
        version=row.version,
        updated_at=row.updated_at,
    )
