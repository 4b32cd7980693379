"""An OpenAI-compatible endpoint on this machine that answers as a test tells it to."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any


@dataclass
class Served:
    """What an endpoint says, and what it was asked.

    Args:
        answer: called with the request and how many came before it, for the texts of its choices.
        knows_n: whether it honours `n`.
        refuses_n: whether it refuses to give more than one answer, as llama.cpp does.
        status: of every answer to a chat, 200 or an error's; called with how many requests came before.
        raw: said instead of a completion.
        delay: seconds before each answer.
        cut: a stream breaks off without an end.
    """

    answer: Callable[[dict[str, Any], int], str] = lambda request, number: f"answer {number}"
    knows_n: bool = True
    refuses_n: bool = False
    status: Callable[[int], int] = lambda number: 200
    raw: bytes | None = None
    delay: float = 0.0
    cut: bool = False
    requests: list[dict[str, Any]] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    url: str = ""
    lock: Lock = field(default_factory=Lock)


@contextmanager
def endpoint(**settings: Any) -> Iterator[Served]:
    """An endpoint while the context lasts; `Served.url` is its address."""
    served = Served(**settings)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._send(
                200, {"object": "list", "data": [{"id": "tiny", "object": "model", "created": 0, "owned_by": "t"}]}
            )

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with served.lock:
                number = len(served.requests)
                served.requests.append(request)
                served.at_once += 1
                served.most_at_once = max(served.most_at_once, served.at_once)
            time.sleep(served.delay)
            with served.lock:
                served.at_once -= 1
            status = 500 if served.refuses_n and request.get("n", 1) > 1 else served.status(number)
            if status != 200:
                error = {"message": "maximum context length is 8 tokens" if status == 400 else "no", "code": None}
                self._send(status, {"error": error})
            elif request.get("stream"):
                self._stream(request, number)
            elif served.raw is not None:
                self._bytes(200, served.raw)
            else:
                n = request.get("n", 1) if served.knows_n else 1
                texts = [served.answer(request, number * 100 + i) for i in range(n)]
                self._send(200, _completion(texts))

        def _stream(self, request: dict[str, Any], number: int) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("connection", "close")
            self.end_headers()
            for word in served.answer(request, number).split():
                self._event({"content": f"{word} "}, None)
            if not served.cut:
                self._event({}, "stop")
                self.wfile.write(b"data: [DONE]\n\n")
            self.close_connection = True

        def _event(self, delta: dict[str, str], reason: str | None) -> None:
            chunk = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "tiny"}
            chunk["choices"] = [{"index": 0, "delta": delta, "finish_reason": reason}]
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())

        def _send(self, status: int, body: Any) -> None:
            self._bytes(status, json.dumps(body).encode())

        def _bytes(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", "application/json" if body[:1] in b"{[" else "text/html")
            self.send_header("content-length", str(len(body)))
            if status == 429:
                self.send_header("retry-after-ms", "10")
            self.end_headers()
            self.wfile.write(body)

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            pass  # a client that has given up is no failure

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    served.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _completion(texts: list[str]) -> dict[str, Any]:
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 0,
        "model": "tiny",
        "choices": [
            {"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            for i, text in enumerate(texts)
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 5 * len(texts), "total_tokens": 3 + 5 * len(texts)},
    }
