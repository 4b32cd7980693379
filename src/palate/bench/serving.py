"""The server under load, killed again and again, and asked to erase: what it takes, what it loses, what it leaves.

The server runs in processes of its own on one core, the load comes from another. Answers are the bundled ones and the
reward model knows their base rewards, so that what is measured is Palate, not a language model.
"""

import asyncio
import contextlib
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

import numpy as np

from palate.bench import postgres
from palate.bench.report import Result, markdown
from palate.bench.sockets import free_port
from palate.data import load_people
from palate.encoders import load_encoder
from palate.encoders.cache import default_cache_dir
from palate.errors import ModelError, PalateError
from palate.feedback import Feedback
from palate.rewards import RewardModel, fit
from palate.rewards.fitting import Stage
from palate.store import Store
from palate.store.interview import posterior_of
from palate.store.keys import SCOPES, Keys
from palate.store.traces import traces_of

_PEOPLE = 50


def run(*, quick: bool, seed: int, data: Path | None = None, progress: Stage | None = None) -> Result:
    """Measure the server.

    Args:
        quick: shorter, three kills for fifty, a hundred streams for a thousand.
        seed: of the moments of killing.
        data: not used.
        progress: told of each stage.
    """
    told = progress or (lambda stage, done, total: None)
    folder = _model_folder(seed)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="palate-serving-") as place:
        told("Steady load", 0, 5)
        figures |= _load(folder, f"sqlite:///{place}/load.db", quick)
        told("Streams", 1, 5)
        figures |= asyncio.run(_streams(folder, f"sqlite:///{place}/streams.db", quick))
        told("Kills on SQLite", 2, 5)
        figures |= _kills(folder, f"sqlite:///{place}/kills.db", "sqlite", 3 if quick else 50, seed)
        if postgres.is_there():
            with postgres.cluster() as address:
                told("Kills on PostgreSQL", 3, 5)
                url = postgres.database(address, "kills")
                figures |= _kills(folder, url, "postgresql", 3 if quick else 50, seed)
        told("Erasure", 4, 5)
        figures |= _erasure(folder, f"sqlite:///{place}/erase.db")
    return Result("serving", figures, _table(figures))


def _model_folder(seed: int) -> Path:
    """The base rewards of the bundled people, fitted once; the same that `palate serve` begins with."""
    folder = default_cache_dir() / "models" / f"bundled-{seed}"
    try:
        RewardModel.load(folder)
    except ModelError:
        fit(Feedback(comparisons=load_people()), load_encoder(), seed=seed).save(folder)
    return folder


@dataclass
class _Server:
    """A server in processes of its own."""

    url: str
    key: str
    process: "subprocess.Popen[bytes]"
    log: Path
    headers: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.headers = {"authorization": f"Bearer {self.key}"}

    def memory(self) -> float:
        """Resident megabytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text("ascii")
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1_024


def _start(folder: Path, database: str, key: str | None, *more: str) -> _Server:
    import httpx

    if key is None:
        with Store.open(database) as store:
            key, _ = Keys(store).create(list(SCOPES))
    port = free_port()
    log = Path(tempfile.mkstemp(suffix=".log", prefix="palate-serving-")[1])
    words = ["serve", str(folder), "--port", str(port), "--database", database, "--rate", "1000000000", *more]
    core = min(os.sched_getaffinity(0))
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "palate", *words],
            stdout=file,
            stderr=file,
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
    url = f"http://127.0.0.1:{port}"
    for _ in range(1_200):
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return _Server(url, key, process, log)
        if process.poll() is not None:
            raise PalateError(f"The server did not start: {log.read_text('utf-8')[-300:]!r}")
        time.sleep(0.05)
    raise PalateError(f"The server did not come up within a minute; see {log}")


@contextmanager
def _running(folder: Path, database: str, *more: str) -> Iterator[_Server]:
    server = _start(folder, database, None, *more)
    cores = os.sched_getaffinity(0)
    if len(cores) > 1:
        os.sched_setaffinity(0, cores - {min(cores)})
    try:
        yield server
    finally:
        os.sched_setaffinity(0, cores)
        server.process.terminate()
        server.process.wait(60)
        server.log.unlink()


# Load


def _load(folder: Path, database: str, quick: bool) -> dict[str, float]:
    with _running(folder, database, "--generic", "0.05") as server:
        return asyncio.run(_requests(server, _prompts(folder), seconds=8 if quick else 30))


def _prompts(folder: Path) -> list[str]:
    return [prompt for prompt in dict.fromkeys(RewardModel.load(folder).known.prompts) if isinstance(prompt, str)]


async def _requests(server: _Server, prompts: list[str], seconds: float) -> dict[str, float]:
    """Latencies at 50 requests a second, and how many a second sixteen clients get that never wait."""
    free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    host, port = server.url.removeprefix("http://").split(":")
    failed = 0

    async def ask(number: int) -> float:
        """One request over a connection that is kept; by hand, since a client's own milliseconds would count too."""
        nonlocal failed
        said = {
            "messages": [{"role": "user", "content": prompts[number % len(prompts)]}],
            "user": f"u{number % _PEOPLE}",
        }
        body = json.dumps(said).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {server.key}\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        begun = time.perf_counter()
        reader, writer = free.pop() if free else await asyncio.open_connection(host, int(port))
        writer.write(head.encode() + body)
        told = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = next(int(line.split(":")[1]) for line in told.split("\r\n") if line.startswith("content-length"))
        await reader.readexactly(length)
        taken = time.perf_counter() - begun
        free.append((reader, writer))
        failed += not told.startswith("http/1.1 200")
        return taken

    await asyncio.gather(*(ask(i) for i in range(_PEOPLE)))  # everybody is known, connections are open
    rate, begun = 50, time.perf_counter()
    waiting = []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(begun + number / rate - time.perf_counter(), 0))
        waiting.append(asyncio.create_task(ask(number)))
    taken = np.array(await asyncio.gather(*waiting)) * 1_000
    done, until = 0, time.perf_counter() + seconds

    async def hurry(number: int) -> None:
        nonlocal done
        while time.perf_counter() < until:
            await ask(number)
            done += 1

    await asyncio.gather(*(hurry(i) for i in range(16)))
    for _, writer in free:
        writer.close()
    return {
        "chat_ms.median": float(np.median(taken)),
        "chat_ms.p99": float(np.quantile(taken, 0.99)),
        "requests_per_second": done / seconds,
        "load.failed": float(failed),
    }


# Streams


async def _streams(folder: Path, database: str, quick: bool) -> dict[str, float]:
    """Many streams held open at once, each with a word a second from an upstream."""
    import httpx

    count, seconds = (100, 5) if quick else (1_000, 60)

    async def upstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = next(int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-length"))
            await reader.readexactly(length)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
            for number in range(seconds):
                ended = "stop" if number == seconds - 1 else None
                choice = {"index": 0, "delta": {"content": f"word{number} "}, "finish_reason": ended}
                chunk = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice]}
                writer.write(f"data: {json.dumps(chunk)}\n\n".encode())
                await writer.drain()
                await asyncio.sleep(1)
            writer.write(b"data: [DONE]\n\n")
            await writer.drain()
        writer.close()

    slow = await asyncio.start_server(upstream, "127.0.0.1", 0, backlog=2_000)
    url = f"http://127.0.0.1:{slow.sockets[0].getsockname()[1]}/v1"
    with await asyncio.to_thread(_started, folder, database, url) as server:
        rest = server.memory()
        limits = httpx.Limits(max_connections=count, max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=server.url, headers=server.headers, timeout=120, limits=limits) as http:

            async def hold(number: int) -> bool:
                body = {
                    "model": "m",
                    "messages": [{"role": "user", "content": "Tell me a long story."}],
                    "user": f"u{number % _PEOPLE}",
                    "stream": True,
                    "palate": {"strategy": "off"},
                }
                with contextlib.suppress(httpx.HTTPError):
                    async with http.stream("POST", "/v1/chat/completions", json=body) as said:
                        text = "".join([part async for part in said.aiter_text()])
                        return said.status_code == 200 and text.count("word") == seconds and "[DONE]" in text
                return False

            holding = [asyncio.create_task(hold(i)) for i in range(count)]
            most = rest
            while not all(task.done() for task in holding):
                await asyncio.sleep(0.5)
                most = max(most, server.memory())
            good = sum([await task for task in holding])
    slow.close()
    return {
        "streams": float(count),
        "streams.seconds": float(seconds),
        "streams.failed": float(count - good),
        "streams.memory_mb": most - rest,
    }


@contextmanager
def _started(folder: Path, database: str, upstream: str) -> Iterator[_Server]:
    with _running(folder, database, "--upstream", upstream, "--generic", "0") as server:
        yield server


# Kills


def _kills(folder: Path, database: str, name: str, times: int, seed: int) -> dict[str, float]:
    """Feedback that was acknowledged and is lost, and the furthest that a posterior is from what its evidence says."""
    rng = np.random.default_rng(seed)
    acknowledged: set[tuple[str, str]] = set()
    key = None
    prompts = _prompts(folder)
    for number in range(times):
        server = _start(folder, database, key)
        key = server.key
        stop = threading.Event()
        clients = [
            threading.Thread(target=_rate, args=(server, f"u{i}", number, prompts, stop, acknowledged))
            for i in range(4)
        ]
        for client in clients:
            client.start()
        time.sleep(rng.uniform(0.2, 2.5))
        os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait(60)
        stop.set()
        for client in clients:
            client.join(60)
        server.log.unlink()
    model = RewardModel.load(folder)
    lost, off = 0, 0.0
    with Store.open(database) as store:
        for user in store.users():
            said = store.evidence(user)
            kept = {one.id.partition("/")[0] for one in said}
            lost += sum(feedback not in kept for who, feedback in acknowledged if who == user.external_id)
            anew = model.posterior([one.record for one in said])
            off = max(off, float(np.abs(posterior_of(store, model, user).mean - anew.mean).max()))
    return {
        f"kills.{name}": float(times),
        f"kills.{name}.acknowledged": float(len(acknowledged)),
        f"kills.{name}.lost": float(lost),
        f"kills.{name}.posterior_off": off,
    }


def _rate(
    server: _Server, who: str, number: int, prompts: list[str], stop: threading.Event, seen: set[tuple[str, str]]
) -> None:
    import httpx

    with httpx.Client(base_url=server.url, headers=server.headers, timeout=20) as http:
        for turn in range(100_000):
            if stop.is_set():
                return
            with contextlib.suppress(httpx.HTTPError, KeyError, ValueError):
                body = {"messages": [{"role": "user", "content": prompts[turn % len(prompts)]}], "user": who}
                said = http.post("/v1/chat/completions", json=body).json()
                name = f"{who}-{number}-{turn}"
                told = {"completion_id": said["id"], "id": name, "name": "rating", "value": turn % 2}
                if http.post("/v1/feedback", json=told).status_code == 200:
                    seen.add((who, name))


# Erasure


def _erasure(folder: Path, database: str) -> dict[str, float]:
    """Rows erased of a person among others, and texts of theirs that still stand in the database's files."""
    import httpx

    who = "somebody-to-forget@example.org"
    with _running(folder, database) as server, httpx.Client(
        base_url=server.url, headers=server.headers, timeout=60
    ) as http:  # fmt: skip
        prompts = _prompts(folder)
        for number in range(30):
            for user in (who, "others@example.org"):
                body: dict[str, Any] = {"messages": [{"role": "user", "content": prompts[number]}], "user": user}
                said = http.post("/v1/chat/completions", json=body).json()
                comment = f"Remark number {number} of {user}: far too stiff and formal for me."
                told = {"completion_id": said["id"], "name": "comment", "value": comment}
                http.post("/v1/feedback", json=told)
        time.sleep(8)  # what waits is taken in: children of the remarks, slots of the replay memory
        gone = http.delete(f"/v1/users/{who}").json()
    with Store.open(database) as store:
        left = traces_of(store.database, [who, *(f"Remark number {number} of {who}" for number in range(30))])
    return {
        "erased.rows": float(sum(gone["rows"].values())),
        "erased.tables": float(len(gone["rows"])),
        "erased.traces": float(gone["traces"] + len(left)),
    }


_NAMES = {
    "chat_ms.median": "median milliseconds of a chat request, at 50 a second",
    "chat_ms.p99": "99th percentile",
    "requests_per_second": "requests a second, sixteen clients that never wait",
    "load.failed": "requests that failed",
    "streams": "streams held at once",
    "streams.seconds": "for so many seconds",
    "streams.failed": "that broke off",
    "streams.memory_mb": "megabytes above rest",
    "kills.sqlite": "times the server was killed under load, on SQLite",
    "kills.sqlite.acknowledged": "pieces of feedback that it had acknowledged",
    "kills.sqlite.lost": "of them lost",
    "kills.sqlite.posterior_off": "furthest of a posterior from what its evidence says",
    "kills.postgresql": "times the server was killed under load, on PostgreSQL",
    "kills.postgresql.acknowledged": "pieces of feedback that it had acknowledged",
    "kills.postgresql.lost": "of them lost",
    "kills.postgresql.posterior_off": "furthest of a posterior from what its evidence says",
    "erased.rows": "rows erased of a person",
    "erased.tables": "from so many tables",
    "erased.traces": "of their texts left in the database's files",
}


def _table(figures: dict[str, float]) -> str:
    rows = [[label, f"{figures[name]:,.4g}"] for name, label in _NAMES.items() if name in figures]
    return markdown(["server", ""], rows)
