"""A PostgreSQL cluster of one's own on this machine, for benchmarks and tests."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from palate.bench.sockets import free_port


def _binary(name: str) -> str | None:
    """Where Debian keeps it, else on the path."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name)


def is_there() -> bool:
    """Whether PostgreSQL is installed."""
    return _binary("initdb") is not None and _binary("postgres") is not None


@contextmanager
def cluster() -> Iterator[str]:
    """The address of a running cluster, such as ``127.0.0.1:54321``, whose user `palate` needs no password."""
    import psycopg

    folder = Path(tempfile.mkdtemp(prefix="palate-postgres-"))
    # PostgreSQL refuses to run as root.
    other = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    if other:
        shutil.chown(folder, "postgres", "postgres")
    port, data = free_port(), str(folder / "data")
    initdb, postgres = str(_binary("initdb")), str(_binary("postgres"))
    quiet = subprocess.DEVNULL
    command = [*other, initdb, "-D", data, "-U", "palate", "-A", "trust"]
    subprocess.run(command, check=True, cwd="/", stdout=quiet, stderr=quiet)
    where = ["-p", str(port), "-k", str(folder), "-c", "listen_addresses=127.0.0.1", "-c", "max_connections=200"]
    server = subprocess.Popen([*other, postgres, "-D", data, *where], cwd="/", stdout=quiet, stderr=quiet)
    address = f"127.0.0.1:{port}"
    try:
        while True:
            try:
                psycopg.connect(f"postgresql://palate@{address}/postgres").close()
                break
            except psycopg.OperationalError:
                if server.poll() is not None:
                    raise
                time.sleep(0.1)
        yield address
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def database(address: str, name: str) -> str:
    """A fresh, empty database of that name, as SQLAlchemy wants its address."""
    import psycopg

    with psycopg.connect(f"postgresql://palate@{address}/postgres", autocommit=True) as db:
        db.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'.encode())
        db.execute(f'CREATE DATABASE "{name}"'.encode())
    return f"postgresql+psycopg://palate@{address}/{name}"
