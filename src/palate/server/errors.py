"""Every failure in OpenAI's envelope: {"error": {"message", "type", "param", "code"}}."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from palate.errors import EncoderError, InputError, ModelError, PalateError, StoreError, UpstreamError

log = structlog.get_logger("palate.server")

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    502: "upstream_error",
    503: "service_unavailable_error",
}


class ErrorBody(BaseModel):
    """What went wrong.

    Attributes:
        message: the value, the rule and the way out.
        type: the class of the failure.
        param: which part of the request.
        code: a short name, where there is one.
    """

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class Envelope(BaseModel):
    """A failure."""

    error: ErrorBody


class ApiError(Exception):
    """A failure with its status.

    Args:
        status: of HTTP.
        message: the value, the rule and the way out.
        param: which part of the request.
        code: a short name.
        headers: to send along.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The envelope."""
        kind = _TYPES.get(self.status, "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def as_api_error(error: PalateError) -> ApiError:
    """A failure of ours as one of HTTP."""
    match error:
        case InputError():
            return ApiError(400, str(error))
        case UpstreamError(status=status):
            # What the client did wrong is told as such; the server's own key is none of the client's business.
            passed_on = status if status in (400, 404, 408, 409, 413, 422, 429) else 502
            retry = {"retry-after": "1"} if passed_on == 429 else {}
            return ApiError(passed_on, str(error), code="upstream", headers=retry)
        case StoreError():
            log.error("database failed", reason=str(error))
            message = "The database cannot be used just now; try again in a moment"
            return ApiError(503, message, code="database", headers={"retry-after": "1"})
        case ModelError() | EncoderError():
            log.error("model failed", reason=str(error))
            return ApiError(500, "The server's model cannot be used; its log says why", code="model")
        case _:
            return ApiError(500, str(error))


def respond(error: ApiError) -> JSONResponse:
    """The failure as a response."""
    return JSONResponse(error.body(), error.status, error.headers)


def install(app: FastAPI) -> None:
    """Let an application answer every failure in the envelope."""

    @app.exception_handler(ApiError)
    async def _ours(_: Request, error: ApiError) -> JSONResponse:
        return respond(error)

    @app.exception_handler(PalateError)
    async def _core(_: Request, error: PalateError) -> JSONResponse:
        return respond(as_api_error(error))

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = [str(part) for part in first["loc"] if part not in ("body", "query", "path", "header")]
        if first["type"] == "json_invalid":
            reason = f"The body is no JSON: {first.get('ctx', {}).get('error', 'it cannot be read')}; send an object"
            return respond(ApiError(400, reason, code="json_invalid"))
        name = ".".join(where) or "body"
        return respond(ApiError(400, f"{name}: {first['msg']}; see /openapi.json", param=name, code=first["type"]))

    @app.exception_handler(HTTPException)
    async def _plain(request: Request, error: HTTPException) -> JSONResponse:
        phrase = HTTPStatus(error.status_code).phrase
        message = f"{phrase}: {request.method} {request.url.path}"
        if error.detail and error.detail != phrase:
            message = f"{error.detail} ({message})"
        return respond(ApiError(error.status_code, message, headers=error.headers))


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Failures for a route's documentation."""
    every = (400, 401, 403, 413, 429, 500, 503, *statuses)
    return {status: {"model": Envelope, "description": HTTPStatus(status).phrase} for status in sorted(set(every))}
