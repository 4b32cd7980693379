"""Texts dropped for vectors: what a person said still counts, and can be read no more."""

from typing import Any

from palate.feedback import Comparison, Reply, as_text
from palate.rewards import RewardModel
from palate.rewards.vectors import as_vector_text, is_vector_text
from palate.store import rows
from palate.store import tables as t
from palate.store.database import WRITE
from palate.store.records import StoredEvidence, Tenant
from palate.store.repository import Store

_REPLY = "(kept as its reading alone)"


def drop_texts(store: Store, model: RewardModel, tenant: Tenant) -> int:
    """Put the encoder's vectors in the place of what a tenant's users were answered and typed; how many were.

    A prompt and answers that the reward model knows anyway stay, since they are nobody's own. A reply keeps what was
    read in it, and is not read by a newer scorer any more. Provisional evidence waits.
    """
    dropped = 0
    for user in store.users(tenant.name):
        for one in store.evidence(user):
            payload = _payload(model, one)
            if payload is None:
                continue
            mine = (t.evidence.c.user_id == user.id) & (t.evidence.c.id == one.id)
            with store.database.transaction(WRITE) as db:
                rows.lock(db, user.id)
                db.execute(t.evidence.update().where(mine).values(payload=payload))
                rows.drop_examples(db, user.id, one.id)
            dropped += 1
    return dropped


def _payload(model: RewardModel, one: StoredEvidence) -> dict[str, Any] | None:
    """The record without texts; None where nothing is to be dropped, or it was not read yet."""
    record = one.record
    if isinstance(record, Reply) and record.satisfaction is None:
        return None
    answers = ("chosen", "rejected") if isinstance(record, Comparison) else ("completion",)
    texts = {name: as_text(getattr(record, name)) for name in answers}
    own = [
        name for name, text in texts.items() if not is_vector_text(text) and model.row_of(record.prompt, text) is None
    ]
    if not own and not (isinstance(record, Reply) and record.reply != _REPLY):
        return None
    payload = record.model_dump(mode="json", exclude_none=True, exclude={"user_id", "created_at"})
    if own:
        encoder = model.loaded_encoder()
        read = encoder.encode([as_text(record.prompt)] * len(own), [texts[name] for name in own])
        payload |= {name: as_vector_text(row, encoder.revision) for name, row in zip(own, read, strict=True)}
        # Both of one form, for a vector is no conversation.
        payload |= {name: text for name, text in texts.items() if name not in own}
    if not model.rows_of(record.prompt):
        payload["prompt"] = ""
    if isinstance(record, Reply):
        payload["reply"] = _REPLY
    return payload
