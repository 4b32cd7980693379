"""What a person and an operator see: every page works without a script but the chat, which needs htmx."""

import json
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from itsdangerous import BadSignature
from starlette.concurrency import run_in_threadpool
from starlette.templating import Jinja2Templates

from palate.alignment.candidates import Known
from palate.errors import PalateError
from palate.feedback import as_text
from palate.server import people
from palate.server.access import Caller
from palate.server.answering import answer, begin
from palate.server.chat import as_prompt
from palate.server.errors import ApiError, as_api_error
from palate.server.feedback import take_feedback
from palate.server.pages.dashboard import dashboard
from palate.server.pages.drawing import drawn, told
from palate.server.pages.sessions import COOKIE, Person, Session, let_in, operator_of, person_of
from palate.server.schemas import (
    ChatMessage,
    ChatRequest,
    ChoiceRequest,
    FeedbackRequest,
    PalateOptions,
    ProfileChange,
    QueryRequest,
)
from palate.server.service import Service
from palate.store import User

WANTED = 10
_MOST_TURNS = 100

router = APIRouter(include_in_schema=False)
_templates = Jinja2Templates(Path(__file__).parent / "templates")
_templates.env.filters |= {"as_text": as_text, "drawn": drawn, "told": told}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


def show(request: Request, name: str, session: Session | None = None, status: int = 200, **context: Any) -> Response:
    """A page, or a part of one."""
    shared = {"csrf": session.csrf if session else "", "who": session.user if session else ""}
    page = _templates.TemplateResponse(request, name, shared | context | {"here": request.url.path}, status)
    page.headers["content-security-policy"] = _POLICY
    page.headers["referrer-policy"] = "no-referrer"
    page.headers["x-content-type-options"] = "nosniff"
    page.headers["cache-control"] = "no-store"
    return page


def _service(request: Request) -> Service:
    return request.app.state.service  # type: ignore[no-any-return]


def _user(service: Service, session: Session) -> User:
    return people.known(service, session.user, session.tenant)


# Coming in


@router.get("/")
async def root() -> Response:
    """Where a browser begins that has no link."""
    return RedirectResponse("/operator", 303)


@router.get("/me")
async def taste(request: Request, key: Annotated[str | None, Query(max_length=2_000)] = None) -> Response:
    """One's own taste; with `key`, what a link opens."""
    if key is not None:
        return await run_in_threadpool(_open, request, key)
    session = await person_of(request)
    service = _service(request)
    profile = await run_in_threadpool(lambda: people.profile(service, _user(service, session)))
    return show(request, "taste.html", session, profile=profile)


def _open(request: Request, key: str) -> Response:
    service = _service(request)
    try:
        held = people.signer(service.store).loads(key, max_age=people.LINK_SECONDS)
    except BadSignature as error:
        raise ApiError(401, "The link has run out or is not whole; ask for another", code="bad_link") from error
    user = service.store.ensure_user(held["user"], held["tenant"])
    # The key leaves the address bar, and with it the history.
    response = RedirectResponse("/me" if service.store.evidence_count(user) else "/me/onboarding", 303)
    let_in(request, response, held["tenant"], held["user"])
    return response


# Being asked


@router.get("/me/onboarding")
async def onboarding(request: Request, session: Person) -> Response:
    """Two answers to choose from."""
    return show(request, "onboarding.html", session, **await run_in_threadpool(_question, _service(request), session))


@router.post("/me/onboarding")
async def onboard(
    request: Request, session: Person, query_id: Annotated[str, Form()], choice: Annotated[str, Form()]
) -> Response:
    """The next two."""
    service = _service(request)
    if choice not in ("a", "b", "tie", "skip"):
        raise ApiError(400, f"choice {choice[:20]!r} is not a, b, tie or skip", param="choice")
    chosen = ChoiceRequest(choice=choice)
    try:
        await run_in_threadpool(people.choose, service, session.user, session.tenant, query_id, chosen)
    except ApiError as error:
        # Pressed twice, or answered in another window: the next one is shown all the same.
        if error.status != 409:
            raise
    if "hx-request" not in request.headers:
        return RedirectResponse("/me/onboarding", 303)
    return show(request, "_question.html", session, **await run_in_threadpool(_question, service, session))


def _question(service: Service, session: Session) -> dict[str, Any]:
    query = people.question(service, session.user, session.tenant, QueryRequest(answers=WANTED))
    return {"query": query, "wanted": WANTED, "profile": people.profile(service, _user(service, session))}


# Talking


@router.get("/me/chat")
async def chat_page(request: Request, session: Person) -> Response:
    """A conversation."""
    source = _service(request).loaded.source
    examples = list(source.answers)[:200:25] if isinstance(source, Known) else []
    return show(request, "chat.html", session, examples=examples)


@router.post("/me/chat")
async def say(
    request: Request,
    session: Person,
    message: Annotated[str, Form(max_length=20_000)],
    said: Annotated[str, Form(max_length=500_000)] = "[]",
) -> Response:
    """One turn: what was said, and the answer."""
    service = _service(request)
    messages = [*_turns(said), {"role": "user", "content": message}]
    completion_id = f"chatcmpl-{uuid4().hex}"
    shown: dict[str, Any] = {"message": message, "completion_id": completion_id, "reading": None}
    if not message.strip():
        return show(request, "_turn.html", session, **shown, problem="Nothing was typed.")
    try:
        turn = await begin(service, session.tenant, session.user, messages, PalateOptions())
        body = ChatRequest(messages=[ChatMessage(role="user", content=message)])
        made = await answer(service, turn, completion_id, as_prompt(messages), body)
    except PalateError as error:
        return show(request, "_turn.html", session, **shown, problem=str(as_api_error(error)))
    messages.append({"role": "assistant", "content": made.texts[0]})
    shown |= {"reading": turn.reading, "answer": made.texts[0], "said": json.dumps(messages), "kept": turn.keep}
    return show(request, "_turn.html", session, **shown)


def _turns(said: str) -> list[dict[str, str]]:
    """What was said before, as the page sends it along."""
    try:
        given = json.loads(said)
        turns = [{"role": str(one["role"]), "content": str(one["content"])} for one in given]
    except (ValueError, TypeError, KeyError) as error:
        raise ApiError(400, "The conversation cannot be read; begin anew", param="said") from error
    if any(turn["role"] not in ("user", "assistant") for turn in turns):
        raise ApiError(400, "The conversation has turns of neither user nor assistant; begin anew", param="said")
    return turns[-_MOST_TURNS:]


@router.get("/me/why/{completion_id}")
async def why(request: Request, session: Person, completion_id: str) -> Response:
    """Why an answer was given."""
    service = _service(request)
    caller = Caller(session.tenant, "page", ())

    def found() -> Any:
        one = people.found_completion(service, completion_id, caller)
        if one.user_id != _user(service, session).id:
            raise ApiError(404, f"There is no completion {completion_id[:80]!r} that is remembered", param="id")
        return people.why(service, one, caller)

    return show(request, "_why.html", session, why=await run_in_threadpool(found))


@router.post("/me/feedback")
async def feedback(
    request: Request, session: Person, completion_id: Annotated[str, Form()], value: Annotated[str, Form()]
) -> Response:
    """More like this, or less."""
    body = FeedbackRequest(
        id=f"page-{completion_id}"[:128],
        completion_id=completion_id[:64],
        user=session.user,
        name="rating",
        value=value == "1",
    )
    caller = Caller(session.tenant, "page", ())
    made = await run_in_threadpool(take_feedback, _service(request), caller, body)
    return HTMLResponse("Noted." if made.learned else made.reason or "Noted.")


# One's own data


@router.post("/me/change")
async def change(
    request: Request,
    session: Person,
    paused: Annotated[str | None, Form()] = None,
    reset: Annotated[str | None, Form()] = None,
    withdraw: Annotated[str | None, Form()] = None,
    confirm: Annotated[str | None, Form()] = None,
) -> Response:
    """Pause, begin anew, take something back."""
    service = _service(request)
    body = ProfileChange(
        paused=None if paused is None else paused == "true", reset=reset == "true", withdraw=withdraw, confirm=confirm
    )
    profile = await run_in_threadpool(lambda: people.change(service, _user(service, session), body))
    return show(request, "_profile.html", session, profile=profile)


@router.get("/me/export")
async def export(request: Request, session: Person) -> Response:
    """All that is kept, as a file."""
    service = _service(request)
    whole = await run_in_threadpool(lambda: people.export(service, _user(service, session)))
    text = json.dumps(whole, ensure_ascii=False, indent=2, default=str)
    headers = {"content-disposition": 'attachment; filename="my-taste.json"', "cache-control": "no-store"}
    return Response(text, media_type="application/json", headers=headers)


@router.post("/me/erase")
async def erase(request: Request, session: Person, sure: Annotated[str, Form()] = "") -> Response:
    """Erase it."""
    if sure != "yes":
        raise ApiError(400, "Say that you are sure: tick the box before you erase", param="sure")
    service = _service(request)
    gone = await run_in_threadpool(lambda: people.erase(service, _user(service, session)))
    traces = "Nothing of it is left in the database's files." if not gone.traces else (
        f"{gone.traces} texts still stand in the database's files; tell the operator."
    )  # fmt: skip
    page = show(request, "page.html", title="Erased", texts=[traces, gone.shared], rows=gone.rows)
    page.delete_cookie(COOKIE)
    return page


# The operator


@router.get("/operator")
async def operator(request: Request) -> Response:
    """The dashboard, or the way in."""
    try:
        session = operator_of(request)
    except ApiError:
        return show(request, "login.html", status=401)
    seen = await run_in_threadpool(dashboard, _service(request), session.tenant)
    return show(request, "operator.html", session, tenant=session.tenant, **seen)


@router.post("/operator/login")
async def login(request: Request, key: Annotated[str, Form(max_length=500)]) -> Response:
    """Let an operator in."""
    try:
        caller = await request.app.state.gate.caller(key)
    except ApiError as error:
        return show(request, "login.html", problem=str(error), status=error.status)
    if "admin" not in caller.scopes:
        return show(request, "login.html", problem="This key has not the scope admin.", status=403)
    response = RedirectResponse("/operator", 303)
    let_in(request, response, caller.tenant, "")
    return response
