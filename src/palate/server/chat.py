"""`POST /v1/chat/completions` and `GET /v1/models`: OpenAI's own, with a person's taste in between."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Any
from uuid import uuid4

import structlog
from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from palate.alignment.endpoint import Endpoint
from palate.errors import PalateError
from palate.feedback import Message, Text
from palate.server import metrics
from palate.server.access import Caller, MayChat
from palate.server.answering import Answered, Turn, answer, begin, plain, upstream_names
from palate.server.errors import ApiError, as_api_error, documented
from palate.server.schemas import (
    AnswerMessage,
    ChatCompletion,
    ChatRequest,
    Choice,
    ModelCard,
    ModelList,
    PalateOptions,
    Personal,
)
from palate.server.service import Service

log = structlog.get_logger("palate.server")

router = APIRouter(tags=["chat"])

_PATIENCE = 1.0
"""Seconds that a stream's status waits for the first words, so that a failure before them has its own."""
_PIECE = re.compile(r"\S+\s*|\s+")


@router.post("/v1/chat/completions", response_model=ChatCompletion, responses=documented(404, 502))
async def chat_completions(
    request: Request, body: ChatRequest, caller: MayChat, x_palate_user: Annotated[str | None, Header()] = None
) -> Response:
    """Answer as the person likes it, or with `stream` piece by piece."""
    service: Service = request.app.state.service
    who = who_is_it(body, x_palate_user)
    completion_id = f"chatcmpl-{uuid4().hex}"
    headers = {"x-palate-completion-id": completion_id}
    given = [message.model_dump(exclude_unset=True) for message in body.messages]
    messages = plain(given, body.model_extra or {})
    if messages is None:
        return await _forward(service, caller, body, who, completion_id, headers, given)
    turn = await begin(service, caller.tenant, who, messages, body.palate or PalateOptions())
    prompt = as_prompt(messages)
    if body.stream:
        return await _stream(service, turn, completion_id, prompt, body, headers)
    answered = await answer(service, turn, completion_id, prompt, body)
    return JSONResponse(_completion(answered, turn).model_dump(mode="json"), headers=headers)


def as_prompt(messages: list[dict[str, str]]) -> Text:
    """A conversation as the reward model and the sources read it: a single question is its text alone."""
    if len(messages) == 1 and messages[0]["role"] == "user":
        return messages[0]["content"]
    return [Message(role=message["role"], content=message["content"]) for message in messages]


def who_is_it(body: ChatRequest, header: str | None) -> str | None:
    """Who is answered: by our header, then by what OpenAI's clients send along."""
    told = (header, body.user, (body.metadata or {}).get("user_id"), body.safety_identifier)
    found = next((one for one in told if one), None)
    if found is None:
        return None
    if not isinstance(found, str) or len(found) > 256 or re.search("[\0\ud800-\udfff]", found):
        raise ApiError(400, f"User {str(found)[:60]!r} is no name of 1 to 256 characters; give one", param="user")
    return found


def _completion(answered: Answered, turn: Turn) -> ChatCompletion:
    return ChatCompletion(
        id=answered.completion.id,
        created=int(answered.completion.created_at.timestamp()),
        model=answered.completion.model,
        choices=[
            Choice(index=i, message=AnswerMessage(content=text), finish_reason="length" if cut else "stop")
            for i, (text, cut) in enumerate(zip(answered.texts, answered.cut, strict=True))
        ],
        usage=answered.usage,
        palate=answered.personal(turn),
    )


# Streams


async def _stream(
    service: Service, turn: Turn, completion_id: str, prompt: Text, body: ChatRequest, headers: dict[str, str]
) -> Response:
    pieces: asyncio.Queue[str | None] = asyncio.Queue()
    work = asyncio.create_task(answer(service, turn, completion_id, prompt, body, heard=pieces.put_nowait))
    work.add_done_callback(lambda _: pieces.put_nowait(None))
    try:
        # A failure that comes at once has its own status; whoever is slow gets a stream, kept open by comments.
        waited = await asyncio.wait_for(pieces.get(), _PATIENCE)
        first = [waited]
        if waited is None:
            await work
    except TimeoutError:
        first = []
    except asyncio.CancelledError:
        work.cancel()
        raise
    return EventSourceResponse(
        _events(work, pieces, first, turn, completion_id, body),
        headers=headers,
        sep="\n",
        ping=service.settings.keep_alive,
        ping_message_factory=lambda: ServerSentEvent(comment="keep-alive", sep="\n"),
    )


async def _events(
    work: "asyncio.Task[Answered]",
    pieces: "asyncio.Queue[str | None]",
    first: list[str | None],
    turn: Turn,
    completion_id: str,
    body: ChatRequest,
) -> AsyncIterator[ServerSentEvent]:
    """The chunks of a stream; who stops listening stops the work."""
    counted = bool(body.stream_options and body.stream_options.include_usage)
    head = {"id": completion_id, "object": "chat.completion.chunk", "created": int(time.time()), "model": body.model}
    metrics.STREAMS.inc()

    def chunk(index: int, delta: dict[str, Any], finish: str | None = None, **more: Any) -> ServerSentEvent:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _event(head | {"choices": [choice]} | ({"usage": None} if counted else {}) | more)

    try:
        yield chunk(0, {"role": "assistant", "content": ""})
        while (piece := first.pop() if first else await pieces.get()) is not None:
            for words in _PIECE.findall(piece):
                yield chunk(0, {"content": words})
        answered = await work
        head["model"] = answered.completion.model
        for index, text in enumerate(answered.texts[1:], 1):
            yield chunk(index, {"role": "assistant", "content": ""})
            for words in _PIECE.findall(text):
                yield chunk(index, {"content": words})
        for index, cut in enumerate(answered.cut):
            told = {"palate": answered.personal(turn).model_dump(mode="json")} if index == 0 else {}
            yield chunk(index, {}, "length" if cut else "stop", **told)
        if counted:
            yield _event(head | {"choices": [], "usage": answered.usage.model_dump()})
        yield ServerSentEvent(data="[DONE]", sep="\n")
    except PalateError as error:
        yield _event(as_api_error(error).body())
    except Exception as error:
        log.exception("stream failed", completion_id=completion_id, kind=type(error).__name__)
        yield _event(ApiError(500, "Something failed here that should not; the log has it").body())
    finally:
        work.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await work
        metrics.STREAMS.dec()


def _event(value: dict[str, Any]) -> ServerSentEvent:
    return ServerSentEvent(data=json.dumps(value, ensure_ascii=False, separators=(",", ":")), sep="\n")


# What only an upstream understands


async def _forward(
    service: Service,
    caller: Caller,
    body: ChatRequest,
    who: str | None,
    completion_id: str,
    headers: dict[str, str],
    messages: list[dict[str, Any]],
) -> Response:
    """Pass on a request with tools, pictures or sound; nothing is chosen or learned."""
    source = service.loaded.source
    if not isinstance(source, Endpoint):
        raise ApiError(
            400,
            f"{source.name!r} answers texts alone, without tools, pictures or log probabilities; leave them out, or "
            "start the server with --upstream",
            param="messages",
        )
    user = await run_in_threadpool(service.store.user, who, caller.tenant) if who else None
    asked = body.model_dump(exclude_unset=True, exclude={"palate", "user", "safety_identifier", "metadata", "stream"})
    asked |= {"messages": messages} | upstream_names(service, Turn(user), body)
    told = Personal(strategy="off", personal=False, guarded=False, generic=False, candidates=1, chosen_tokens=0)
    if not body.stream:
        said = await source.forward(asked)
        return JSONResponse(said | {"id": completion_id, "palate": told.model_dump(mode="json")}, headers=headers)
    chunks = source.forward_stream(asked)
    first = await anext(chunks, None)

    async def events() -> AsyncIterator[ServerSentEvent]:
        try:
            if first is not None:
                yield _event(first | {"id": completion_id})
            async for chunk in chunks:
                yield _event(chunk | {"id": completion_id})
            yield ServerSentEvent(data="[DONE]", sep="\n")
        except PalateError as error:
            yield _event(as_api_error(error).body())

    return EventSourceResponse(
        events(),
        headers=headers,
        sep="\n",
        ping=service.settings.keep_alive,
        ping_message_factory=lambda: ServerSentEvent(comment="keep-alive", sep="\n"),
    )


@router.get("/v1/models", response_model=ModelList, responses=documented(502))
async def models(request: Request, caller: MayChat) -> Any:
    """The models that can be asked for."""
    source = request.app.state.service.loaded.source
    if isinstance(source, Endpoint):
        return {"object": "list", "data": await source.models()}
    return ModelList(data=[ModelCard(id=source.name)])


@router.get("/v1/models/{model}", response_model=ModelCard, responses=documented(404, 502))
async def one_model(request: Request, caller: MayChat, model: str) -> Any:
    """One of them."""
    listed = await models(request, caller)
    every = listed["data"] if isinstance(listed, dict) else [one.model_dump() for one in listed.data]
    found = next((one for one in every if one["id"] == model), None)
    if found is None:
        raise ApiError(404, f"There is no model {model!r}; see /v1/models", param="model", code="model_not_found")
    return found
