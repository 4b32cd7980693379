"""What people may ask for: to be asked, to see what was learned, to change it, to take it along, to have it erased."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi import Path as InPath
from itsdangerous import URLSafeTimedSerializer
from starlette.concurrency import run_in_threadpool

from palate.alignment.adapters import erase_adapters
from palate.errors import StoreError
from palate.rewards import RewardModel
from palate.rewards.beliefs import Belief
from palate.rewards.explain import explain, in_words, style_tastes
from palate.rewards.influence import influences
from palate.server.access import Caller, MayChat, MayManage, MayTell
from palate.server.errors import ApiError, documented
from palate.server.learning import after_evidence
from palate.server.schemas import (
    NAME,
    CandidateCard,
    ChoiceRequest,
    Erased,
    Evidence,
    Link,
    Profile,
    ProfileChange,
    QueryRequest,
    QueryResult,
    Style,
    UserCard,
    UserList,
    Why,
    WhyEvidence,
)
from palate.server.service import Service
from palate.store import Store, StoredEvidence, User
from palate.store.completions import Completion
from palate.store.interview import next_question
from palate.store.keys import secret
from palate.store.traces import traces_of

router = APIRouter(tags=["people"])

Who = Annotated[str, InPath(min_length=1, max_length=256, pattern=NAME, description="Your name for the person.")]

LINK_SECONDS = 7 * 24 * 3600


def known(service: Service, who: str, tenant: str) -> User:
    """Somebody who is known.

    Raises:
        ApiError: 404 where they are not.
    """
    user = service.store.user(who, tenant)
    if user is None:
        raise ApiError(404, f"Nothing is known of a user {who[:60]!r}", param="id", code="user_not_found")
    return user


def confidence(model: RewardModel, belief: Belief) -> float:
    """Share of what people differ by, in choices between known answers, that is known of somebody: 0 to 1."""
    v = model.pool.v
    if not len(v):
        return 0.0
    spread = v.T @ v
    return float(np.clip(1 - np.trace(spread @ belief.cov) / np.trace(spread @ model.prior.cov), 0, 1))


# Being asked


@router.post("/v1/users/{id}/queries", responses=documented(409))
async def next_query(request: Request, id: Who, caller: MayTell, body: QueryRequest | None = None) -> QueryResult:
    """The question whose answer is expected to tell most of the person; the open one, where one is open."""
    service: Service = request.app.state.service
    return await run_in_threadpool(question, service, id, caller.tenant, body or QueryRequest())


def question(service: Service, who: str, tenant: str, wanted: QueryRequest) -> QueryResult:
    """The same for whoever is let in already."""
    user = service.store.ensure_user(who, tenant)
    query, answered = next_question(
        service.store, service.model, user, answers=wanted.answers, stop_below=wanted.stop_below
    )
    sure = confidence(service.model, service.person(user).belief)
    if query is None:
        return QueryResult(query_id=None, asked=answered, confidence=sure)
    return QueryResult(
        query_id=query.id,
        prompt=query.prompt,
        response_a=query.response_a,
        response_b=query.response_b,
        asked=answered,
        expected_information=query.expected_information,
        confidence=sure,
    )


@router.post("/v1/users/{id}/queries/{query_id}", responses=documented(404, 409))
async def answer_query(
    request: Request,
    id: Who,
    query_id: Annotated[str, InPath(min_length=1, max_length=64)],
    body: ChoiceRequest,
    caller: MayTell,
) -> QueryResult:
    """Answer a question; what comes back is the next one."""
    service: Service = request.app.state.service
    return await run_in_threadpool(choose, service, id, caller.tenant, query_id, body)


def choose(service: Service, who: str, tenant: str, query_id: str, body: ChoiceRequest) -> QueryResult:
    """The same for whoever is let in already."""
    user = known(service, who, tenant)
    query = service.store.query_of(user, query_id)
    if query is None:
        raise ApiError(404, f"There is no query {query_id!r} of this user", param="query_id", code="query_not_found")
    if query.choice is not None and query.choice != body.choice:
        raise ApiError(
            409,
            f"Query {query_id!r} was answered {query.choice!r}; an answer stays, but its evidence can be withdrawn",
            param="choice",
            code="already_answered",
        )
    service.store.answer(query_id, body.choice)
    if body.choice != "skip":
        after_evidence(service, user, [query_id])
    return question(service, who, tenant, QueryRequest())


# Seeing, changing, taking along


@router.get("/v1/users", responses=documented())
async def list_users(request: Request, caller: MayManage) -> UserList:
    """Everybody who is known, in the order they came."""
    users = await run_in_threadpool(request.app.state.service.store.users, caller.tenant)
    cards = [UserCard(id=u.external_id, created_at=u.created_at.isoformat(), paused=u.paused) for u in users]
    return UserList(data=cards)


@router.get("/v1/users/{id}", responses=documented(404))
async def show_user(request: Request, id: Who, caller: MayManage) -> Profile:
    """What is known of a person, how surely, and from what."""
    service: Service = request.app.state.service
    return await run_in_threadpool(lambda: profile(service, known(service, id, caller.tenant)))


def profile(service: Service, user: User) -> Profile:
    """The same for whoever is let in already."""
    person = service.person(user)
    styles = style_tastes(service.model, person.belief)
    return Profile(
        id=user.external_id,
        words=in_words(styles),
        styles=[
            Style(
                high=s.high,
                word=s.word,
                other=s.other,
                liking=abs(s.liking),
                deviation=s.deviation,
                certainty=s.certainty,
                population=s.population,
                spread=s.spread,
            )
            for s in styles
        ],
        confidence=confidence(service.model, person.belief),
        personal=person.personal,
        paused=user.paused,
        half_life_days=user.half_life_days,
        evidence=[evidence_card(one) for one in service.store.evidence(user, include_provisional=True)],
    )


def evidence_card(one: StoredEvidence) -> Evidence:
    """One thing that somebody said, for programs."""
    kind = type(one.record).__name__.lower()
    said = one.record.model_dump(mode="json", exclude_none=True, exclude={"user_id", "created_at"})
    return Evidence(
        id=one.id,
        kind=kind,
        created_at=one.created_at.isoformat(),
        said=said,
        provisional=one.provisional,
    )


@router.patch("/v1/users/{id}", responses=documented(404))
async def change_user(request: Request, id: Who, body: ProfileChange, caller: MayManage) -> Profile:
    """Pause, reset, forget faster or slower, let one thing count no more or after all."""
    service: Service = request.app.state.service
    return await run_in_threadpool(lambda: change(service, known(service, id, caller.tenant), body))


def change(service: Service, user: User, body: ProfileChange) -> Profile:
    """The same for whoever is let in already."""
    store = service.store
    if body.withdraw is not None and not store.withdraw(user, body.withdraw):
        raise ApiError(404, f"No evidence {body.withdraw!r} counts", param="withdraw", code="evidence_not_found")
    if body.confirm is not None and not store.confirm(user, body.confirm):
        raise ApiError(404, f"No evidence {body.confirm!r} waits", param="confirm", code="evidence_not_found")
    if body.reset:
        store.reset(user)
    if body.paused is not None:
        user = store.pause(user, body.paused)
    if "half_life_days" in body.model_fields_set:
        user = store.set_half_life(user, body.half_life_days)
    return profile(service, user)


@router.get("/v1/users/{id}/export", responses=documented(404))
async def export_user(request: Request, id: Who, caller: MayManage) -> dict[str, Any]:
    """All that is kept of a person, in one object."""
    service: Service = request.app.state.service
    return await run_in_threadpool(lambda: export(service, known(service, id, caller.tenant)))


def export(service: Service, user: User) -> dict[str, Any]:
    """The same for whoever is let in already."""
    return {
        "exported_at": datetime.now(UTC).isoformat(),
        "profile": profile(service, user).model_dump(mode="json"),
        **service.store.export(user),
    }


@router.delete("/v1/users/{id}", responses=documented(404))
async def erase_user(request: Request, id: Who, caller: MayManage) -> Erased:
    """Erase a person: every row, copy and adapter, and what deleted rows leave in the database's files."""
    service: Service = request.app.state.service
    return await run_in_threadpool(lambda: erase(service, known(service, id, caller.tenant)))


def erase(service: Service, user: User) -> Erased:
    """The same for whoever is let in already."""
    texts = service.store.texts_of(user)
    rows = service.store.forget(user, scrub=False)
    service.drop(user)
    try:
        service.store.scrub()
    except StoreError:
        service.jobs.add("scrub", after=5.0)  # others are at work; what is left is counted below
    adapters: list[Path] = []
    if service.settings.adapters is not None:
        adapters = erase_adapters(service.settings.adapters, [user.external_id])
    found = traces_of(service.store.database, [user.external_id, *texts])
    return Erased(
        id=user.external_id,
        deleted=True,
        rows={table: count for table, count in rows.items() if count},
        adapters=[str(path) for path in adapters],
        traces=len(found),
        shared="The shared head was trained on this person's replies among everybody's, and the reward model may "
        "have been on their choices; the next refit leaves them out. No text can be read from either.",
    )


@router.post("/v1/users/{id}/link", responses=documented())
async def make_link(request: Request, id: Who, caller: MayManage) -> Link:
    """A link that opens the person's own pages: being asked, chat, and what was learned of them."""
    service: Service = request.app.state.service
    await run_in_threadpool(service.store.ensure_user, id, caller.tenant)
    base = service.settings.public_url or str(request.base_url)
    return Link(
        url=f"{base.rstrip('/')}/me?key={link_token(service.store, id, caller.tenant)}", expires_in=LINK_SECONDS
    )


def link_token(store: Store, who: str, tenant: str) -> str:
    """What such a link carries: who it is for, signed."""
    return str(signer(store).dumps({"user": who, "tenant": tenant}))


def signer(store: Store) -> URLSafeTimedSerializer:
    """Signs links to people's pages."""
    return URLSafeTimedSerializer(secret(store, "links"), salt="palate-link")


# Why


@router.get("/v1/completions/{id}/explanation", tags=["chat"], responses=documented(404))
async def explain_completion(
    request: Request, id: Annotated[str, InPath(min_length=1, max_length=64)], caller: MayChat
) -> Why:
    """Why an answer was given: all candidates, what each base reward added, and what the taste rests on."""
    service: Service = request.app.state.service
    return await run_in_threadpool(lambda: why(service, found_completion(service, id, caller), caller))


def found_completion(service: Service, completion_id: str, caller: Caller) -> Completion:
    """An answer of the caller's tenant.

    Raises:
        ApiError: 404 where there is none.
    """
    found = service.completions.get(completion_id, caller.tenant)
    if found is None:
        message = f"There is no completion {completion_id[:80]!r} that is remembered"
        raise ApiError(404, message, param="id", code="completion_not_found")
    return found


def why(service: Service, one: Completion, caller: Caller) -> Why:
    """The same for whoever is let in already."""
    user = service.store.user_of(one.user_id, caller.tenant)
    evidence: list[WhyEvidence] = []
    model = service.model
    words: list[str] = []
    if user is not None and one.fingerprint == model.fingerprint:
        said = service.store.evidence(user)
        ids = {id(each.record): each.id for each in said}
        for moved in influences(model, [each.record for each in said], half_life=user.half_life_days)[:5]:
            told = moved.record.model_dump(mode="json", exclude_none=True, exclude={"user_id", "created_at"})
            name = ids.get(id(moved.record), "")
            evidence.append(WhyEvidence(id=name, nats=moved.nats, style=moved.style, said=told))
        axes = explain(model, service.person(user).belief).axes
        words = [", ".join(axis.words) or "no named style" for axis in sorted(axes, key=lambda axis: axis.number)]
    return Why(
        id=one.id,
        strategy=one.strategy,
        personal=one.strategy != "off" and not one.guarded,
        guarded=one.guarded,
        generic=one.generic,
        propensity=one.propensity,
        system=one.system,
        words=_in_a_sentence(one),
        candidates=[CandidateCard(**card, shown=place in one.shown) for place, card in enumerate(one.candidates)],
        base_rewards=words,
        evidence=evidence,
    )


def _in_a_sentence(one: Completion) -> str:
    if one.generic:
        return "It is the usual answer, by chance: a small share is, so that what personalising brings is measured."
    if one.guarded:
        return "It is the usual answer: what you said so far is foretold better by people in general."
    if len(one.candidates) > 1:
        taken = one.candidates[one.shown[0]]
        general = max(one.candidates, key=lambda card: card["population"])
        more = "the one that most people would like best, too" if general["text"] == taken["text"] else (
            "not the one that most people would like best"
        )  # fmt: skip
        return f"Of {len(one.candidates)} answers your taste likes this one best; it is {more}."
    if one.system:
        return f"It was asked for with your taste in words: {one.system}"
    return "It was drawn without looking at your taste."
