"""Around every request: an id, a limit to its size, a line in the log, and a count."""

import asyncio
import re
import time
from uuid import uuid4

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from palate.server import metrics
from palate.server.errors import ApiError, respond

log = structlog.get_logger("palate.access")

_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Envelope:
    """The outermost layer, in plain ASGI: streams pass through it as they are.

    Args:
        app: what it is around.
        max_bytes: of a request's body.
        body_seconds: that a body may take to arrive.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, body_seconds: float = 30.0) -> None:
        self._app, self._max_bytes, self._body_seconds = app, max_bytes, body_seconds
        self._too_large = f"The request's body is longer than {max_bytes:,} bytes; shorten the conversation"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name: value for name, value in scope["headers"]}
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = given if _ID.fullmatch(given) else f"req-{uuid4().hex}"
        structlog.contextvars.bind_contextvars(request_id=request_id)
        begun, status = time.perf_counter(), 0

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
                route = _route(scope)
                metrics.SECONDS.labels(route).observe(time.perf_counter() - begun)
            await send(message)

        read, whole = 0, False

        async def received() -> Message:
            nonlocal read, whole
            if whole:
                return await receive()  # the next is that the client has gone, which may take as long as it likes
            left = self._body_seconds - (time.perf_counter() - begun)
            try:
                message = await asyncio.wait_for(receive(), max(left, 0.001))
            except TimeoutError:
                raise HTTPException(408, f"The body did not arrive within {self._body_seconds:g} s") from None
            read += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if read > self._max_bytes:
                raise HTTPException(413, self._too_large)
            return message

        try:
            length = headers.get(b"content-length", b"0")
            if not length.isdigit() or int(length) > self._max_bytes:
                await respond(ApiError(413, self._too_large, code="body_too_large"))(scope, receive, sent)
            else:
                await self._app(scope, received, sent)
        except ClientDisconnect:
            status = status or 499
        except Exception as error:
            log.exception("request failed", kind=type(error).__name__)
            if not status:
                message = "Something failed here that should not; the log has it under the request's id"
                await respond(ApiError(500, message))(scope, receive, sent)
        finally:
            metrics.REQUESTS.labels(_route(scope), str(status)).inc()
            # Nothing that people say, and no key.
            log.info(
                "request",
                method=scope["method"],
                route=_route(scope),
                status=status,
                ms=round(1_000 * (time.perf_counter() - begun), 1),
            )
            structlog.contextvars.clear_contextvars()


def _route(scope: Scope) -> str:
    """The route's own path, without anybody's id in it."""
    return str(getattr(scope.get("route"), "path", None) or "unknown")
