"""The tables, in portable SQLAlchemy types: what stands where, and what keeps it consistent.

Migrations make these tables; this module is what queries are written against, and a test holds the two equal.
Evidence is appended and never rewritten, but for its `withdrawn` flag; a posterior is a cache that can always
be computed again from the evidence and the reward model. Every table with a person's data has a `user_id`, by
which `Store.forget` finds its rows.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
    true,
)

# The newest revision in migrations/versions: a database that is there already needs no Alembic to be opened.
HEAD = "0005"

MAX_EXTERNAL_ID = 256

# Constraints have names, so that a later revision can change them.
metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware time, kept in UTC: SQLite drops time zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert to UTC; a time without a zone is UTC already."""
        return None if value is None else as_utc(value)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give an aware time back, whichever zone the database's session is in."""
        return None if value is None else as_utc(value)


def as_utc(time: datetime) -> datetime:
    """The same instant in UTC; a time without a zone is UTC already."""
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def pack(array: NDArray[np.float64]) -> bytes:
    """An array's numbers as little-endian float64, row by row."""
    return np.asarray(array, "<f8").tobytes()


def unpack(data: bytes, shape: Sequence[int]) -> NDArray[np.float64]:
    """The read-only array that `pack` was given."""
    return np.frombuffer(data, "<f8").reshape(shape)


tenant = Table(
    "tenant",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(256), nullable=False, unique=True),
    Column("learn", Boolean, nullable=False, server_default=true()),  # whether anything is learned of its users
    Column("retention", String(16), nullable=False, server_default="texts"),  # texts, or vectors in their place
    Column("completion_days", Integer, nullable=False, server_default="30"),  # how long answers are remembered
)

user = Table(
    "user",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("tenant_id", ForeignKey("tenant.id"), nullable=False),
    Column("external_id", String(MAX_EXTERNAL_ID), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("paused", Boolean, nullable=False, server_default=false()),
    Column("half_life_days", Double),
    Column("readings", Integer, nullable=False, server_default="0"),  # how often what was read in a reply changed
    UniqueConstraint("tenant_id", "external_id"),
    # The id of someone forgotten is never given again: whoever still holds it must not reach another person.
    sqlite_autoincrement=True,
)

model = Table(
    "model",
    metadata,
    Column("fingerprint", String(128), primary_key=True),
    Column("path", Text, nullable=False),
    Column("encoder", Text, nullable=False),
    Column("encoder_revision", Text, nullable=False),
    Column("rank", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

query = Table(
    "query",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("tenant_id", ForeignKey("tenant.id"), nullable=False),
    Column("user_id", ForeignKey("user.id"), nullable=False),
    Column("fingerprint", ForeignKey("model.fingerprint"), nullable=False),
    Column("seq", Integer, nullable=False),  # 1, 2, … within the user
    Column("prompt", JSON, nullable=False),  # JSON, because a text may be a conversation
    Column("response_a", JSON, nullable=False),  # sides as they were shown
    Column("response_b", JSON, nullable=False),
    Column("pool_a", Integer),  # where the two responses stand in the pool they were drawn from
    Column("pool_b", Integer),
    Column("strategy", Text, nullable=False),
    Column("expected_information", Double, nullable=False),  # nats
    Column("asked_at", UtcDateTime, nullable=False),
    Column("answered_at", UtcDateTime),
    Column("choice", String(16)),  # a, b, tie or skip
    UniqueConstraint("user_id", "seq"),
)

# At most one open query for each user and model, whoever asks.
Index(
    "uq_query_open",
    query.c.user_id,
    query.c.fingerprint,
    unique=True,
    sqlite_where=query.c.answered_at.is_(None),
    postgresql_where=query.c.answered_at.is_(None),
)

evidence = Table(
    "evidence",
    metadata,
    # An id may come from the client, so it is unique for one person only: nobody can occupy another's.
    Column("user_id", ForeignKey("user.id"), primary_key=True),
    Column("id", String(256), primary_key=True),
    Column("tenant_id", ForeignKey("tenant.id"), nullable=False),
    Column("query_id", ForeignKey("query.id"), index=True),
    Column("kind", String(32), nullable=False),  # comparison, rating, reply
    Column("created_at", UtcDateTime, nullable=False),
    Column("payload", JSON, nullable=False),  # the record, without its user and time
    Column("withdrawn", Boolean, nullable=False, server_default=false()),
    Column("provisional", Boolean, nullable=False, server_default=false()),  # read in a chat, and not supported yet
    # What stands in for the texts where retention drops them: encoder vectors, and what they were made with.
    Column("vectors", LargeBinary),
    Column("vectors_shape", JSON),
    Column("vectors_fingerprint", String(128)),
)

posterior = Table(
    "posterior",
    metadata,
    Column("user_id", ForeignKey("user.id"), primary_key=True),
    Column("fingerprint", ForeignKey("model.fingerprint"), primary_key=True),
    Column("shape", JSON, nullable=False),  # of the mean, (..., J); the covariance's is (..., J, J)
    Column("mean", LargeBinary, nullable=False),
    Column("cov", LargeBinary, nullable=False),
    Column("weights", LargeBinary),  # of a mixture's parts, one for each mean
    Column("evidence_count", Integer, nullable=False),  # `Store.evidence_count` when it was computed
    Column("version", Integer, nullable=False),  # 1, 2, …: one more with each save
    Column("updated_at", UtcDateTime, nullable=False),
)

# A reply and what was made of it for training: number 0 is the reply as it was typed, the others are its children.
example = Table(
    "example",
    metadata,
    Column("user_id", ForeignKey("user.id"), primary_key=True),
    Column("evidence_id", String(256), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("how", String(16), nullable=False),  # typed, synonyms or truncation
    Column("text", Text, nullable=False),
    Column("weight", Double, nullable=False),  # shared between a reply and its children
)

# How an example was scored, by which scorer, follower and evidence: never overwritten, the last one counts.
score = Table(
    "score",
    metadata,
    Column("user_id", ForeignKey("user.id"), primary_key=True),
    Column("evidence_id", String(256), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("version", String(64), primary_key=True),
    Column("seq", Integer, nullable=False),  # 1, 2, … within the example
    Column("scorer", String(64), nullable=False),
    Column("satisfaction", Double, nullable=False),  # the scorer's reading alone, which is evidence
    Column("confidence", Double, nullable=False),
    Column("target", String(8), nullable=False),  # taste, task, both, none
    Column("followed", Double, nullable=False),
    Column("share", Double, nullable=False),
    Column("training_target", Double, nullable=False),
    Column("scored_at", UtcDateTime, nullable=False),
)

# The shared head of the reward follower under a model, and what it learned from lately.
shared_head = Table(
    "shared_head",
    metadata,
    Column("fingerprint", ForeignKey("model.fingerprint"), primary_key=True),
    Column("state", LargeBinary, nullable=False),
    Column("steps", Integer, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
)

# The replies that a model's shared head has learned from.
learned = Table(
    "learned",
    metadata,
    Column("fingerprint", ForeignKey("model.fingerprint"), primary_key=True),
    Column("user_id", ForeignKey("user.id"), primary_key=True),
    Column("evidence_id", String(256), primary_key=True),
)

reservoir = Table(
    "reservoir",
    metadata,
    Column("fingerprint", ForeignKey("model.fingerprint"), primary_key=True),
    Column("owner", String(32), primary_key=True),  # a user's number, or "*" for the common one
    Column("seen", Integer, nullable=False),
    Column("user_id", ForeignKey("user.id")),  # whose; none of the common one
)

replay = Table(
    "replay",
    metadata,
    Column("fingerprint", ForeignKey("model.fingerprint"), primary_key=True),
    Column("owner", String(32), primary_key=True),
    Column("slot", Integer, primary_key=True),
    Column("user_id", ForeignKey("user.id"), nullable=False, index=True),
    Column("key", String(300), nullable=False),
    Column("phi", LargeBinary, nullable=False),
    Column("own", Double, nullable=False),
    Column("target", Double, nullable=False),
    Column("weight", Double, nullable=False),
)

# Random numbers of this database's own, such as what API keys are hashed with.
secret = Table(
    "secret",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", LargeBinary, nullable=False),
)

api_key = Table(
    "api_key",
    metadata,
    Column("id", String(16), primary_key=True),  # the part of a key that may be shown
    Column("tenant_id", ForeignKey("tenant.id"), nullable=False),
    Column("digest", String(64), nullable=False, unique=True),  # HMAC-SHA-256
    Column("name", String(256), nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("revoked_at", UtcDateTime),
)

# What a server answered somebody, and what else it might have said.
completion = Table(
    "completion",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant_id", ForeignKey("tenant.id"), nullable=False),
    Column("user_id", ForeignKey("user.id"), nullable=False),
    Column("fingerprint", String(128), nullable=False),  # of the reward model
    Column("created_at", UtcDateTime, nullable=False),
    Column("prompt", JSON, nullable=False),
    Column("shown", JSON, nullable=False),  # places of the candidates that were given, in that order
    Column("digest", String(64), nullable=False),  # of it with what led to it, by which a later chat is known to go on
    Column("candidates", JSON, nullable=False),
    Column("strategy", String(64), nullable=False),
    Column("system", Text),  # words put before the prompt
    Column("generic", Boolean, nullable=False),  # whether chance made it the usual answer
    Column("propensity", Double, nullable=False),  # with which probability it came out so
    Column("guarded", Boolean, nullable=False),
    Column("model", Text, nullable=False),
    Column("prompt_tokens", Integer, nullable=False),
    Column("completion_tokens", Integer, nullable=False),
    Column("seconds", Double, nullable=False),
    Index(None, "user_id", "digest"),
    Index(None, "tenant_id", "created_at"),
)

# What was said of a completion, as it was last said.
feedback = Table(
    "feedback",
    metadata,
    Column("user_id", ForeignKey("user.id"), primary_key=True),
    Column("id", String(128), primary_key=True),
    Column("tenant_id", ForeignKey("tenant.id"), nullable=False),
    Column("completion_id", String(64), nullable=False, index=True),
    Column("name", String(16), nullable=False),
    Column("value", JSON),
    Column("comment", Text),
    Column("revision", Integer, nullable=False),  # 1, 2, …: one more with each change
    Column("evidence", JSON, nullable=False),  # ids of what it became
    Column("created_at", UtcDateTime, nullable=False),
)

# Work for whoever has time: taken under a lease, which ends when its worker dies.
job = Table(
    "job",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("kind", String(32), nullable=False),
    Column("key", String(64), nullable=False),  # the same work does not wait twice
    Column("user_id", ForeignKey("user.id")),
    Column("payload", JSON, nullable=False),
    Column("state", String(16), nullable=False),  # queued, running, done, failed
    Column("run_after", UtcDateTime, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("worker", String(64)),
    Column("lease_until", UtcDateTime),
    Column("error", Text),
    Index(None, "state", "run_after"),
)

Index(
    "uq_job_queued",
    job.c.kind,
    job.c.key,
    unique=True,
    sqlite_where=job.c.state == "queued",
    postgresql_where=job.c.state == "queued",
)
