"""Who may do what: keys, their scopes and tenants, and how many requests they may make."""

import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from threading import Lock
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from limits import parse
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.concurrency import run_in_threadpool

from palate.server.errors import ApiError
from palate.store import DEFAULT_TENANT
from palate.store.keys import SCOPES, Keys

_REMEMBERED = 5.0
"""Seconds for which a key is not looked up again: a revoked one is good for no longer than that."""
_MOST = 10_000


@dataclass(frozen=True)
class Caller:
    """Who makes a request.

    Args:
        tenant: whose users they reach.
        key: the part of their key that may be shown.
        scopes: what they may do.
    """

    tenant: str
    key: str
    scopes: tuple[str, ...]


class Gate:
    """Lets in whoever has a key.

    Args:
        keys: of the store.
        open_: whether no key is needed.
        rate: requests a minute that a key may make of one worker.
    """

    def __init__(self, keys: Keys, *, open_: bool, rate: int) -> None:
        self._keys, self._open = keys, open_
        self._known: dict[str, tuple[float, Caller | None]] = {}
        self._lock = Lock()
        self._rate = parse(f"{rate}/minute")
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    async def caller(self, key: str | None) -> Caller:
        """Whose key it is.

        Raises:
            ApiError: 401 without a good key, 429 where it was used too often.
        """
        if key is None and self._open:
            return Caller(DEFAULT_TENANT, "open", SCOPES)
        if not key:
            raise ApiError(
                401,
                "There is no API key; send one as 'Authorization: Bearer pk-...' (palate keys create makes one)",
                code="missing_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        kept = self._known.get(key)
        if kept is None or kept[0] < time.monotonic():
            kept = time.monotonic() + _REMEMBERED, await run_in_threadpool(self._find, key)
            with self._lock:
                if len(self._known) >= _MOST:
                    self._known.clear()
                self._known[key] = kept
        caller = kept[1]
        if caller is None:
            raise ApiError(
                401,
                "The API key is unknown or revoked; make one with palate keys create",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        if not self._limiter.hit(self._rate, caller.key):
            reset = self._limiter.get_window_stats(self._rate, caller.key).reset_time
            wait = max(1, round(reset - time.time()))
            raise ApiError(
                429,
                f"More than {self._rate.amount} requests in a minute; wait {wait} s",
                code="rate_limit_exceeded",
                headers={"retry-after": str(wait)},
            )
        return caller

    def _find(self, key: str) -> Caller | None:
        found = self._keys.find(key)
        return None if found is None else Caller(found.tenant, found.id, found.scopes)


_bearer = HTTPBearer(auto_error=False, description="A key of `palate keys create`.")


def allowed(scope: str | None) -> Callable[..., Coroutine[Any, Any, Caller]]:
    """A dependency that lets in keys of that scope; None: any good key."""

    async def check(
        request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)] = None
    ) -> Caller:
        caller = await request.app.state.gate.caller(given.credentials if given else None)
        if scope is not None and scope not in caller.scopes:
            raise ApiError(
                403, f"The key has no scope {scope!r}; make one with palate keys create --scopes {scope}", code="scope"
            )
        request.state.caller = caller
        return caller  # type: ignore[no-any-return]

    return check


MayChat = Annotated[Caller, Depends(allowed("chat"))]
MayTell = Annotated[Caller, Depends(allowed("feedback"))]
MayManage = Annotated[Caller, Depends(allowed("admin"))]
MayLook = Annotated[Caller, Depends(allowed(None))]
