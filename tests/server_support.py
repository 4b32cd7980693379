"""A server on this machine, as a product would start it, with a tiny reward model and the bundled answers."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from tests.cli_support import tiny_model

from palate.bench.sockets import free_port as free_port
from palate.data import load_answers
from palate.server.app import create_app
from palate.server.service import Service
from palate.server.settings import Settings
from palate.store import Store, User
from palate.store.keys import Keys

QUESTIONS = list(dict.fromkeys(answer.prompt for answer in load_answers()))
COOKING = next(text for text in QUESTIONS if "cook" in text)
EVERY = ("chat", "feedback", "admin")


@dataclass
class Live:
    """A server that runs.

    Args:
        url: its address.
        database: its database's URL.
        service: what its requests share.
        key: good for everything, of the tenant `default`.
    """

    url: str
    database: str
    service: Service
    key: str
    made: dict[str, str] = field(default_factory=dict)

    def key_of(self, tenant: str = "default", scopes: tuple[str, ...] = EVERY) -> str:
        """A key, made when it is first asked for."""
        name = f"{tenant}/{scopes}"
        if name not in self.made:
            self.made[name] = Keys(self.service.store).create(list(scopes), tenant=tenant)[0]
        return self.made[name]

    def http(self, key: str | None = None, **more: Any) -> httpx.Client:
        """A client with a key."""
        headers = {"authorization": f"Bearer {key or self.key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, **more)

    def user(self, name: str) -> User:
        """Somebody who must be known."""
        found = self.service.store.user(name)
        assert found is not None
        return found

    def chat(self, *texts: str, user: str | None = "ann", key: str | None = None, **body: Any) -> httpx.Response:
        """Ask: texts alternate between user and assistant."""
        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
        with self.http(key) as http:
            asked = {"messages": messages} | ({"user": user} if user else {}) | body
            return http.post("/v1/chat/completions", json=asked)


@contextmanager
def live(folder: Path | None = None, *, database: str | None = None, work: bool = False, **more: Any) -> Iterator[Live]:
    """A server in a thread of this process while the context lasts."""
    with tempfile.TemporaryDirectory() as fresh:
        url = database or f"sqlite:///{folder or fresh}/palate.db"
        told: dict[str, Any] = {"model": str(tiny_model()), "database": url, "generic": 0.0} | more
        settings = Settings(**told)
        app = create_app(settings, work=work)
        server = uvicorn.Server(
            uvicorn.Config(app, port=0, log_config=None, access_log=False, timeout_graceful_shutdown=3)
        )
        thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        service = app.state.service
        key, _ = Keys(service.store).create(list(EVERY))
        try:
            yield Live(f"http://127.0.0.1:{port}", url, service, key)
        finally:
            server.should_exit = True
            thread.join(30)


@dataclass
class Spawned:
    """A server in processes of its own, started by `palate serve`."""

    url: str
    database: str
    key: str
    process: "subprocess.Popen[str]"

    def kill(self) -> None:
        """As a machine that loses its power would: at once, with all of its processes."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)


def spawn(database: str, port: int, key: str | None = None, *more: str) -> Spawned:
    """Start `palate serve`, and wait until it answers."""
    if key is None:
        with Store.open(database) as store:
            key, _ = Keys(store).create(list(EVERY))
    words = ["serve", str(tiny_model()), "--port", str(port), "--database", database, "--generic", "0", *more]
    with tempfile.NamedTemporaryFile("w+", suffix=".log", delete=False) as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "palate", *words],
            stdout=subprocess.DEVNULL,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return Spawned(url, database, key, process)
        except httpx.HTTPError:
            pass
        assert process.poll() is None, Path(log.name).read_text("utf-8")
        time.sleep(0.1)
    raise AssertionError("the server did not come up")


def events(response: httpx.Response) -> list[Any]:
    """The data of a stream's events; the last is `[DONE]`."""
    lines = [line.removeprefix("data: ") for line in response.text.split("\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]
