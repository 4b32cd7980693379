"""Who a browser is: a signed cookie, and a token against requests that other sites have it send."""

import hmac
import secrets
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from itsdangerous import BadSignature, URLSafeTimedSerializer

from palate.server.errors import ApiError
from palate.server.service import Service
from palate.store.keys import secret

COOKIE = "palate_session"
SECONDS = 12 * 3600


@dataclass(frozen=True)
class Session:
    """A browser that was let in.

    Args:
        tenant: whose user or operator it is.
        user: the person; empty of an operator.
        csrf: what every request that changes something must repeat.
    """

    tenant: str
    user: str
    csrf: str


def _signer(service: Service) -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(secret(service.store, "sessions"), salt="palate-session")


def let_in(request: Request, response: Response, tenant: str, user: str) -> None:
    """Give a browser a session."""
    held = {"tenant": tenant, "user": user, "csrf": secrets.token_urlsafe(16)}
    response.set_cookie(
        COOKIE,
        str(_signer(request.app.state.service).dumps(held)),
        max_age=SECONDS,
        httponly=True,
        samesite="lax",
        # Behind a balancer that ends TLS a request looks like plain HTTP.
        secure="https" in (request.url.scheme, (request.app.state.service.settings.public_url or "")[:5]),
    )


def _session(request: Request) -> Session:
    try:
        held: Any = _signer(request.app.state.service).loads(request.cookies.get(COOKIE, ""), max_age=SECONDS)
        return Session(**held)
    except (BadSignature, TypeError) as error:
        raise ApiError(401, "The link that opens this page has run out; ask for another", code="no_session") from error


async def check_csrf(request: Request, session: Session) -> None:
    """Let no other site send forms in a person's name.

    Raises:
        ApiError: 403 where the token is not repeated.
    """
    given = request.headers.get("x-csrf-token") or str((await request.form()).get("csrf") or "")
    if not hmac.compare_digest(given.encode(), session.csrf.encode()):
        raise ApiError(403, "The form was not sent from this page; load the page again", code="csrf")


async def person_of(request: Request) -> Session:
    """The person whose browser it is.

    Raises:
        ApiError: 401 or 403 where it is nobody's, or a form was sent from elsewhere.
    """
    session = _session(request)
    if not session.user:
        raise ApiError(403, "This page is a person's own; open it by a link made for them", code="no_person")
    if request.method != "GET":
        await check_csrf(request, session)
    return session


def operator_of(request: Request) -> Session:
    """The operator whose browser it is.

    Raises:
        ApiError: 401 or 403 where it is none's.
    """
    session = _session(request)
    if session.user:
        raise ApiError(403, "This page is the operator's; open it with an admin key", code="no_operator")
    return session


Person = Annotated[Session, Depends(person_of)]
