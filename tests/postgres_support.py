"""PostgreSQL on this machine: a cluster of its own for each worker of the tests, started when it is first asked for."""

import atexit
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import psycopg
import pytest
from tests.server_support import free_port


def _binary(name: str) -> str | None:
    """Where Debian keeps it, or the path."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name)


@cache
def _cluster() -> str:
    """The address of a running cluster, without a database."""
    initdb, postgres = _binary("initdb"), _binary("postgres")
    if initdb is None or postgres is None:
        pytest.skip("PostgreSQL is not installed; on Debian or Ubuntu: apt install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="palate-postgres-"))
    # PostgreSQL refuses to run as root.
    other = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    if other:
        shutil.chown(folder, "postgres", "postgres")
    port = free_port()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    data = folder / "data"
    subprocess.run([*other, initdb, "-D", data, "-U", "palate", "-A", "trust"], check=True, cwd="/", **quiet)  # type: ignore[call-overload]
    server = subprocess.Popen(
        [*other, postgres, "-D", data, "-p", str(port), "-k", str(folder), "-c", "listen_addresses=127.0.0.1"],
        cwd="/",
        **quiet,  # type: ignore[call-overload]
    )

    def stop() -> None:
        server.terminate()
        server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(stop)
    address = f"127.0.0.1:{port}"
    for _ in range(300):
        try:
            psycopg.connect(f"postgresql://palate@{address}/postgres").close()
            return address
        except psycopg.OperationalError:
            assert server.poll() is None, "PostgreSQL did not start"
            subprocess.run(["sleep", "0.1"], check=True)
    raise AssertionError("PostgreSQL did not come up")


def postgres_url(name: str) -> str:
    """A fresh, empty database of that name, as SQLAlchemy wants its address."""
    address = _cluster()
    with psycopg.connect(f"postgresql://palate@{address}/postgres", autocommit=True) as db:
        db.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'.encode())
        db.execute(f'CREATE DATABASE "{name}"'.encode())
    return f"postgresql+psycopg://palate@{address}/{name}"
