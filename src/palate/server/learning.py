"""What is typed after an answer, read as a reply to it; and when a reading counts."""

from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256

import structlog

from palate.feedback import Message, Record, Reply, as_text
from palate.rewards import RewardModel
from palate.rewards.evidence import heard
from palate.server import metrics
from palate.server.schemas import Reading
from palate.server.service import Service
from palate.store import User
from palate.store.completions import Completion

log = structlog.get_logger("palate.server")

SURE = 0.5
"""A reading of less confidence is provisional: it counts once something else that the person says supports it."""
_SUPPORT = 0.01  # nats by which what is said now must be foretold better


@dataclass(frozen=True)
class Typed:
    """What somebody typed after an answer.

    Args:
        completion: the answer.
        text: what they typed.
    """

    completion: Completion
    text: str


def read_reply(service: Service, user: User, typed: Typed) -> Reading:
    """Read a reply and, where it says something of taste, let it count.

    What touches health, money, passwords or the law is not kept; nor is what says nothing of taste. The same reply to
    the same answer counts once, however often a client sends the conversation.
    """
    completion, text = typed.completion, typed.text
    # As it was asked then, not as it went on.
    asked = as_text(completion.prompt)
    readings = service.scorer.score([text])
    reading = Reading(
        completion_id=completion.id,
        satisfaction=float(readings.satisfaction[0]),
        confidence=float(readings.confidence[0]),
        target=readings.target[0],
        learned=False,
        provisional=False,
    )
    topic = service.sensitive.topic(asked, text)
    if topic is not None:
        reading.reason = f"It touches {topic}, which nothing is learned from"
    elif reading.target not in ("taste", "both") or not reading.confidence:
        reading.reason = "It says nothing clear of taste"
    else:
        reply = Reply(
            user_id=user.external_id,
            prompt=completion.prompt,
            completion=completion.text,
            reply=text,
            created_at=datetime.now(UTC),
        )
        evidence_id = reply_id(completion.id, text)
        reading.provisional = reading.confidence < SURE
        reading.learned = True
        known = {one.id for one in service.store.evidence(user, include_withdrawn=True, include_provisional=True)}
        if evidence_id not in known:
            service.reader().hear(user, reply, evidence_id, provisional=reading.provisional)
            settle(service, user, evidence_id)
            service.jobs.add("take_in", str(user.id), user=user, after=5.0)
    metrics.READINGS.labels(reading.target, str(reading.learned).lower()).inc()
    return reading


def reply_id(completion_id: str, text: str) -> str:
    """Under which a reply is kept: the same for the same text to the same answer."""
    return f"{completion_id}/reply/{sha256(text.strip().encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


def settle(service: Service, user: User, said: str) -> None:
    """Let provisional evidence count that what was said now supports, and what was said now where older supports it."""
    every = service.store.evidence(user, include_provisional=True)
    new = next((one for one in every if one.id == said), None)
    waiting = [one for one in every if one.provisional and one.id != said]
    if new is None or not waiting:
        return
    counted = [one.record for one in every if not one.provisional and one.id != said]
    for one in waiting:
        if supports(service.model, counted, one.record, new.record, user.half_life_days):
            service.store.confirm(user, one.id)
            service.store.confirm(user, said)


def supports(
    model: RewardModel, before: list[Record], waiting: Record, new: Record, half_life: float | None = None
) -> bool:
    """Whether something new is foretold better with what waits than without it.

    Args:
        model: the reward model.
        before: what counts so far, in order of time.
        waiting: provisional evidence.
        new: what was said now.
        half_life: in days, instead of the model's own.
    """
    if not heard([waiting]) or not heard([new]):
        return False
    # At one moment: what is asked is whether the two agree, not how old the first is.
    waiting, new = (one.model_copy(update={"created_at": None}) for one in (waiting, new))
    past = [one.model_copy(update={"created_at": None}) for one in before]
    without = model.follow([*past, new], half_life=half_life).log_loss[-1]
    with_it = model.follow([*past, waiting, new], half_life=half_life).log_loss[-1]
    return bool(without - with_it > _SUPPORT)


def going_on(service: Service, user: User, messages: list[dict[str, str]]) -> Typed | None:
    """What the last message is a reply to, where it follows an answer that this server gave to the person."""
    if len(messages) < 2 or messages[-1]["role"] != "user" or messages[-2]["role"] != "assistant":
        return None
    text = messages[-1]["content"]
    if not text.strip():
        return None
    before = [Message(role=message["role"], content=message["content"]) for message in messages[:-2]]
    completion = service.completions.answered(user, before, messages[-2]["content"])
    return None if completion is None else Typed(completion, text)


def after_evidence(service: Service, user: User, ids: list[str]) -> None:
    """What follows when explicit evidence came in: it may support what waits, and replies among it are taken in."""
    for said in ids:
        settle(service, user, said)
    service.jobs.add("take_in", str(user.id), user=user, after=5.0)
