"""What was acknowledged is there after `kill -9`, and every posterior is what its evidence says."""

import contextlib
import shutil
import sqlite3
import threading
import time

import httpx
import numpy as np
import pytest
from tests.cli_support import tiny_encoder, tiny_model
from tests.postgres_support import postgres_url
from tests.server_support import COOKING, QUESTIONS, free_port, live, spawn
from tests.support import people

from palate.encoders import load_encoder
from palate.feedback import Feedback
from palate.rewards import RewardModel, fit
from palate.store import Store
from palate.store.interview import posterior_of


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, tmp_path):
    return f"sqlite:///{tmp_path}/palate.db" if request.param == "sqlite" else postgres_url("durable")


# Answers that the model knows have the same base rewards in every process to the last bit; those that go through the
# encoder, as some of these do, to single precision: it reads them in other company each time. `palate bench serving`
# measures the former.
_CLOSE = 1e-5
KNOWN = RewardModel.load(tiny_model()).known.prompts[0]


def load(url: str, key: str, who: str, number: int, stop: threading.Event, acknowledged: set[tuple[str, str]]) -> None:
    """Ask and rate until told to stop; what was acknowledged is noted."""
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=20) as http:
        for turn in range(10_000):
            if stop.is_set():
                return
            with contextlib.suppress(httpx.HTTPError):
                body = {"messages": [{"role": "user", "content": KNOWN}], "user": who}
                said = http.post("/v1/chat/completions", json=body).json()
                name = f"{who}-{number}-{turn}"
                told = {"completion_id": said["id"], "id": name, "name": "rating", "value": turn % 2}
                if http.post("/v1/feedback", json=told).status_code == 200:
                    acknowledged.add((who, name))


def test_nothing_acknowledged_is_lost_when_the_server_is_killed(database):
    port, key = free_port(), None
    acknowledged: set[tuple[str, str]] = set()
    rng = np.random.default_rng(0)
    for number in range(3):
        server = spawn(database, port, key)
        key = server.key
        stop = threading.Event()

        threads = [
            threading.Thread(target=load, args=(server.url, key, f"u{i}", number, stop, acknowledged)) for i in range(3)
        ]
        for thread in threads:
            thread.start()
        time.sleep(1.0 + rng.random())
        server.kill()
        stop.set()
        for thread in threads:
            thread.join(30)
    assert len(acknowledged) > 30
    model = RewardModel.load(tiny_model())
    with Store.open(database) as store:
        for who in ("u0", "u1", "u2"):
            user = store.ensure_user(who)
            kept = {one.id.partition("/")[0] for one in store.evidence(user)}
            assert {name for whose, name in acknowledged if whose == who} <= kept
            stored = store.posterior(user, model.fingerprint)
            assert stored is not None
            anew = model.posterior([one.record for one in store.evidence(user)])
            assert np.abs(posterior_of(store, model, user).mean - anew.mean).max() < _CLOSE


def test_several_processes_serve_one_database(tmp_path):
    """Two workers: a person's feedback to one is known to the other, and a job is done once."""
    database = postgres_url("workers")
    server = spawn(database, free_port(), None, "--workers", "2")
    try:
        with httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {server.key}"}, timeout=30) as http:
            body = {"messages": [{"role": "user", "content": COOKING}], "user": "ann"}
            for number in range(12):
                said = http.post("/v1/chat/completions", json=body, headers={"connection": "close"}).json()
                told = {"completion_id": said["id"], "name": "rating", "value": number % 2}
                assert http.post("/v1/feedback", json=told, headers={"connection": "close"}).status_code == 200
                seen = http.get("/v1/users/ann", headers={"connection": "close"}).json()
                assert len(seen["evidence"]) == number + 1
            figures = http.get("/metrics").text
            assert 'palate_feedback_total{learned="true",name="rating"} 12.0' in figures
    finally:
        server.process.terminate()
        assert server.process.wait(40) is not None


def test_a_database_that_is_locked_or_gone_is_told_and_comes_back(tmp_path):
    with live(tmp_path, database=f"sqlite:///{tmp_path}/palate.db?timeout=0.2") as server:
        assert server.chat(COOKING).status_code == 200
        other = sqlite3.connect(tmp_path / "palate.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        refused = server.chat(COOKING, user="somebody new")
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["code"] == "database"
        other.execute("ROLLBACK")
        other.close()
        assert server.chat(COOKING, user="somebody new").status_code == 200


def test_a_refitted_model_is_put_to_use_without_a_stop(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model(), folder)
    other = fit(Feedback(comparisons=people()), load_encoder(str(tiny_encoder()), device="cpu"), rank=3)
    with live(tmp_path, work=True, model=str(folder)) as server, server.http() as http:
        query = http.post("/v1/users/ann/queries").json()
        http.post(f"/v1/users/ann/queries/{query['query_id']}", json={"choice": "a"})
        before = http.get("/health").json()["model"]
        other.save(folder)
        deadline = time.monotonic() + 60
        while http.get("/health").json()["model"] == before:
            assert time.monotonic() < deadline
            assert server.chat(QUESTIONS[0]).status_code == 200
            time.sleep(0.1)
        assert http.get("/health").json()["model"] == other.fingerprint
        user = server.user("ann")
        assert server.service.store.posterior(user, other.fingerprint) is not None
        assert server.chat(QUESTIONS[0]).status_code == 200
