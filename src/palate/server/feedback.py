"""`POST /v1/feedback`: what people say of the answers they were given."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from palate.errors import InputError
from palate.feedback import Comparison, Rating, Record, Reply
from palate.server import metrics
from palate.server.access import Caller, MayTell
from palate.server.errors import ApiError, documented
from palate.server.learning import after_evidence
from palate.server.schemas import FeedbackRequest, FeedbackResult
from palate.server.service import Service
from palate.store import User
from palate.store.completions import Completion

router = APIRouter(tags=["feedback"])


@router.post("/v1/feedback", responses=documented(404, 409))
async def give_feedback(request: Request, body: FeedbackRequest, caller: MayTell) -> FeedbackResult:
    """Take in what somebody says of an answer; when this has returned, nothing but a broken disk loses it."""
    return await run_in_threadpool(take_feedback, request.app.state.service, caller, body)


def take_feedback(service: Service, caller: Caller, body: FeedbackRequest) -> FeedbackResult:
    """The same for whoever is let in already, such as a page."""
    completion = service.completions.get(body.completion_id, caller.tenant)
    user = None if completion is None else service.store.user_of(completion.user_id, caller.tenant)
    if completion is None or user is None:
        raise ApiError(
            404,
            f"There is no completion {body.completion_id!r}; give the id of an answer that this server gave to a user",
            param="completion_id",
            code="completion_not_found",
        )
    if body.user is not None and body.user != user.external_id:
        message = f"Completion {body.completion_id!r} was not given to {body.user!r}"
        raise ApiError(403, message, param="user", code="not_yours")
    feedback_id = body.id or f"feedback-{uuid4().hex}"
    records: list[Record] = []
    reason = None
    if body.value is not None:
        records = records_of(user, completion, body)
        reason = _why_not(service, user, completion, body)
        if reason:
            records = []
    elif body.id is None:
        raise ApiError(400, "A value of null takes back what was said under an id; give that id", param="id")
    elif not body.dryrun and service.completions.one_said(user, body.id) is None:
        raise ApiError(404, f"Nothing was said under the id {body.id!r}", param="id", code="feedback_not_found")
    if not body.dryrun and not (reason and body.value is not None):
        said = service.completions.say(user, feedback_id, completion.id, body.name, body.value, body.comment, records)
        if said.evidence:
            # Replies among it are read now, so that they count at once.
            every = zip(said.evidence, records, strict=True)
            service.reader().read(user, {name: one for name, one in every if isinstance(one, Reply)})
            after_evidence(service, user, list(said.evidence))
        metrics.FEEDBACK.labels(body.name, str(bool(records)).lower()).inc()
    return FeedbackResult(
        id=feedback_id,
        completion_id=completion.id,
        user=user.external_id,
        name=body.name,
        value=body.value,
        learned=bool(records),
        evidence=len(records),
        reason=reason,
        dryrun=body.dryrun,
    )


def _why_not(service: Service, user: User, completion: Completion, body: FeedbackRequest) -> str | None:
    """Why nothing is learned, where that is so."""
    if not service.tenant(user.tenant).learn:
        return "Learning is switched off for all of this tenant's users"
    if user.paused:
        return "Learning is paused for this person"
    typed = body.value if body.name in ("reply", "comment", "demonstration") else body.comment
    if isinstance(typed, str) and (topic := service.sensitive.topic("", typed)):
        return f"It touches {topic}, which nothing is learned from"
    return None


def records_of(user: User, completion: Completion, body: FeedbackRequest) -> list[Record]:
    """What feedback says, as evidence.

    Raises:
        ApiError: the value is none of what the name takes.
    """
    now = datetime.now(UTC)
    about: dict[str, Any] = {"user_id": user.external_id, "prompt": completion.prompt, "created_at": now}
    value = body.value
    found: list[Record] = []
    try:
        match body.name:
            case "rating":
                if isinstance(value, str):
                    raise InputError(f"value {value[:60]!r} is no rating; give 0 to 1, or true or false")
                found = [Rating(**about, completion=completion.text, score=float(value or 0.0))]
            case "comparison":
                found = _preferred(completion.texts, value, about)
            case "reply" | "comment":
                found = [Reply(**about, completion=completion.text, reply=_text(value))]
            case "demonstration":
                found = [Comparison(**about, chosen=_text(value), rejected=completion.text)]
        if body.comment and body.name != "comment":
            found.append(Reply(**about, completion=completion.text, reply=body.comment))
    except InputError as error:
        raise ApiError(400, str(error), param="value") from error
    return found


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"value {str(value)[:60]!r} is no text; give what was typed")
    return value


def _preferred(shown: Sequence[str], value: object, about: dict[str, Any]) -> list[Record]:
    """The preferred one against each other one that was shown."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise InputError(f"value {str(value)[:60]!r} is no index; give that of the preferred answer, counted from 0")
    index = int(value)
    if not 0 <= index < len(shown):
        raise InputError(f"value {index!r} is none of the {len(shown)} answers shown; count from 0")
    others = [text for text in dict.fromkeys(shown) if text != shown[index]]
    if not others:
        raise InputError("One answer was shown, which no other can be preferred to; ask for more with n, or rate it")
    return [Comparison(**about, chosen=shown[index], rejected=other) for other in others]
