"""A judge behind an OpenAI-shaped endpoint on this machine, which knows a taste from another encoder, and slips."""

import json
import re
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

from palate.rewards import RewardModel
from palate.rewards.posterior import Floats

_QUESTION = re.compile(r"# Question\n(.*)\n\n# Answer A\n(.*)\n\n# Answer B\n(.*)\Z", re.DOTALL)


class JudgeServer:
    """Says A or B to what `palate.training.rewards.JudgeReward` asks, while the context lasts.

    Args:
        model: the reward model that it judges by.
        weights: (J,) of the taste.
        flips: share of its judgements that are turned round.
        seed: of these.
    """

    def __init__(self, model: RewardModel, weights: Floats, flips: float, seed: int) -> None:
        self.model, self.weights, self.flips, self.seed = model, weights, flips, seed
        self.lock = Lock()
        judge = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
                body = json.dumps(_completion(judge.says(asked["messages"][-1]["content"]))).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def says(self, question: str) -> str:
        """``A`` or ``B``."""
        found = _QUESTION.search(question)
        if found is None:
            return "?"
        prompt, *answers = found.groups()
        with self.lock:
            a, b = self.model.phi([prompt, prompt], answers) @ self.weights
        drawn = sha256(f"{self.seed}\n{question}".encode()).digest()[:4]
        slips = int.from_bytes(drawn, "big") / 2**32 < self.flips
        return "A" if (a > b) != slips else "B"

    def __enter__(self) -> "JudgeServer":
        self.thread = Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def _completion(text: str) -> dict[str, Any]:
    message = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 0, "completion_tokens": 1, "total_tokens": 1}
    return {
        "id": "j",
        "object": "chat.completion",
        "created": 0,
        "model": "judge",
        "choices": [message],
        "usage": usage,
    }
