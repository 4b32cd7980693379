"""What was answered, and what was said of it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

import sqlalchemy as sa

from palate.errors import InputError
from palate.feedback import Record, Text
from palate.store import rows
from palate.store import tables as t
from palate.store.database import NOTE, READ, WRITE
from palate.store.records import Tenant, User
from palate.store.repository import Store

_MAX_ID = 128


@dataclass(frozen=True)
class Completion:
    """An answer that somebody was given, with all that might have been given instead.

    Args:
        id: as the client was told.
        user_id: the store's number of the person.
        fingerprint: of the reward model that chose.
        prompt: what was asked.
        candidates: every one with its `text` and the figures of `palate.alignment.best_of_n.Scored`.
        shown: places of those that were given, in that order.
        strategy: that was used.
        system: words that were put before the prompt.
        generic: whether chance made it the usual answer, so that the personal one can be measured against it.
        propensity: probability with which it came out so.
        guarded: whether the person's own answers did not support personalising.
        model: what wrote it.
        prompt_tokens: read for all candidates.
        completion_tokens: written for all of them.
        seconds: it took.
        created_at: UTC.
    """

    id: str
    user_id: int
    fingerprint: str
    prompt: Text
    candidates: Sequence[Mapping[str, Any]]
    shown: Sequence[int]
    strategy: str
    system: str | None = None
    generic: bool = False
    propensity: float = 1.0
    guarded: bool = False
    model: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    created_at: datetime = field(default_factory=rows.now)

    @property
    def text(self) -> str:
        """The first answer that was given."""
        return self.texts[0]

    @property
    def texts(self) -> list[str]:
        """All answers that were given."""
        return [str(self.candidates[place]["text"]) for place in self.shown]


@dataclass(frozen=True)
class Said:
    """Feedback on a completion, as it was last given.

    Args:
        id: the client's, or one made for it.
        completion_id: what it is on.
        name: rating, comparison, reply, demonstration or comment.
        value: what was said; None where it was taken back.
        comment: that came with it.
        revision: 1 for the first time, one more with each change.
        evidence: ids of what it became.
    """

    id: str
    completion_id: str
    name: str
    value: Any
    comment: str | None
    revision: int
    evidence: Sequence[str]


_COLUMNS = tuple(Completion.__dataclass_fields__)


class Completions:
    """The answers of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def add(self, user: User, made: Completion) -> None:
        """Remember an answer."""
        values = {name: getattr(made, name) for name in _COLUMNS} | {"digest": _digest(made.prompt, made.text)}
        with self._store.database.transaction(NOTE) as db:
            tenant = sa.select(t.user.c.tenant_id).where(t.user.c.id == user.id).scalar_subquery()
            db.execute(t.completion.insert().values(**values, tenant_id=tenant))

    def get(self, completion_id: str, tenant: str) -> Completion | None:
        """The answer of that id; None where the tenant has none."""
        wanted = sa.select(t.completion).join(t.tenant, t.tenant.c.id == t.completion.c.tenant_id)
        return self._one(wanted.where(t.completion.c.id == completion_id, t.tenant.c.name == tenant))

    def answered(self, user: User, prompt: Text, text: str) -> Completion | None:
        """The last answer of that text that a person was given to that conversation, if they were.

        What is told to the model alone, as a system message, makes no difference: it may tell the time.
        """
        mine = (t.completion.c.user_id == user.id) & (t.completion.c.digest == _digest(prompt, text))
        wanted = sa.select(t.completion).where(mine)
        return self._one(wanted.order_by(t.completion.c.created_at.desc()).limit(1))

    def of(self, user: User, at_most: int = 1_000) -> list[Completion]:
        """The answers that a person was given, the latest first."""
        wanted = sa.select(t.completion).where(t.completion.c.user_id == user.id)
        with self._store.database.transaction(READ) as db:
            found = db.execute(wanted.order_by(t.completion.c.created_at.desc()).limit(at_most))
            return [_to_completion(row) for row in found]

    def drop_old(self, tenant: Tenant) -> int:
        """Erase answers that were given longer ago than the tenant keeps them; how many they were."""
        before = rows.now() - timedelta(days=tenant.completion_days)
        old = (t.completion.c.tenant_id == tenant.id) & (t.completion.c.created_at < before)
        with self._store.database.transaction(WRITE) as db:
            return db.execute(t.completion.delete().where(old)).rowcount

    def _one(self, wanted: sa.Select[Any]) -> Completion | None:
        with self._store.database.transaction(READ) as db:
            row = db.execute(wanted).one_or_none()
        return None if row is None else _to_completion(row)

    # What was said of them

    def say(
        self,
        user: User,
        feedback_id: str,
        completion_id: str,
        name: str,
        value: Any,
        comment: str | None,
        records: Sequence[Record],
    ) -> Said:
        """Keep feedback and what it becomes; what was said under its id before counts no more.

        The same once more changes nothing. Without records it is taken back.

        Raises:
            InputError: the id is empty or too long, or stands for feedback on another completion.
        """
        if not 1 <= len(feedback_id) <= _MAX_ID:
            raise InputError(f"Feedback id {feedback_id[:60]!r} is empty or longer than {_MAX_ID}; give another")
        mine = (t.feedback.c.user_id == user.id) & (t.feedback.c.id == feedback_id)
        with self._store.database.transaction(WRITE) as db:
            person = rows.lock(db, user.id)
            row = db.execute(sa.select(t.feedback).where(mine)).one_or_none()
            if row is not None and row.completion_id != completion_id:
                raise InputError(f"Feedback {feedback_id!r} is on another completion; give an id of its own")
            if row is not None and (row.name, row.value, row.comment) == (name, value, comment):
                return _to_said(row)
            revision = 1 if row is None else row.revision + 1
            for evidence_id in row.evidence if row is not None else ():
                rows.withdraw(db, user.id, evidence_id)
            ids = [
                rows.append(db, person, record, f"{feedback_id}/{revision}/{number}")
                for number, record in enumerate(records)
            ]
            said = Said(feedback_id, completion_id, name, value, comment, revision, ids)
            values = asdict(said) | {"user_id": user.id, "tenant_id": person.tenant_id, "created_at": rows.now()}
            if row is None:
                db.execute(t.feedback.insert().values(values))
            else:
                db.execute(t.feedback.update().where(mine).values(values))
            return said

    def said(self, user: User, completion_id: str | None = None) -> list[Said]:
        """What a person said of their answers, or of one, and did not take back; oldest first."""
        wanted = sa.select(t.feedback).where(t.feedback.c.user_id == user.id)
        if completion_id is not None:
            wanted = wanted.where(t.feedback.c.completion_id == completion_id)
        with self._store.database.transaction(READ) as db:
            found = [_to_said(row) for row in db.execute(wanted.order_by(t.feedback.c.created_at, t.feedback.c.id))]
        return [one for one in found if one.value is not None]

    def one_said(self, user: User, feedback_id: str) -> Said | None:
        """The feedback of that id, also where it was taken back."""
        mine = (t.feedback.c.user_id == user.id) & (t.feedback.c.id == feedback_id)
        with self._store.database.transaction(READ) as db:
            row = db.execute(sa.select(t.feedback).where(mine)).one_or_none()
        return None if row is None else _to_said(row)


def _digest(prompt: Text, text: str) -> str:
    turns = (
        [prompt] if isinstance(prompt, str) else [m["content"] for m in prompt if m["role"] in ("user", "assistant")]
    )
    # A client may trim what it shows.
    said = json.dumps([turn.strip() for turn in [*turns, text]])
    return sha256(said.encode()).hexdigest()


def _to_completion(row: sa.Row[Any]) -> Completion:
    return Completion(**{name: row._mapping[name] for name in _COLUMNS})


def _to_said(row: sa.Row[Any]) -> Said:
    return Said(row.id, row.completion_id, row.name, row.value, row.comment, row.revision, tuple(row.evidence))
