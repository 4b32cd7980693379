"""PostgreSQL on this machine: a cluster for each worker of the tests, started when it is first asked for."""

import atexit
from contextlib import ExitStack
from functools import cache

import pytest

from palate.bench.postgres import cluster, database, is_there


@cache
def _address() -> str:
    if not is_there():
        pytest.skip("PostgreSQL is not installed; on Debian or Ubuntu: apt install postgresql")
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(cluster())


def postgres_url(name: str) -> str:
    """A fresh, empty database of that name, as SQLAlchemy wants its address."""
    return database(_address(), name)
