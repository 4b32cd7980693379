"""What a server keeps, on SQLite and on PostgreSQL alike: keys, answers, feedback, work, vectors for texts."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from tests.postgres_support import postgres_url
from tests.server_support import live
from tests.support import evidence, fitted

from palate.errors import EncoderError, InputError
from palate.feedback import Comparison, Rating, Reply, Text, as_text
from palate.rewards.vectors import as_vector_text
from palate.satisfaction.scorer import SatisfactionScorer
from palate.store import Store, User, tables
from palate.store.completions import Completion, Completions, Said
from palate.store.database import READ, WRITE
from palate.store.interview import posterior_of, register
from palate.store.jobs import ATTEMPTS, Jobs
from palate.store.keys import Keys, secret
from palate.store.replies import Rescorer
from palate.store.retention import drop_texts
from palate.store.traces import traces_of


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    return f"sqlite:///{tmp_path}/palate.db" if request.param == "sqlite" else postgres_url("store")


@pytest.fixture
def store(url, tmp_path):
    with Store.open(url) as store:
        register(store, fitted(), tmp_path)
        yield store


@pytest.fixture
def ann(store):
    return store.ensure_user("ann")


def completion(user: User, name: str = "c1", prompt: Text = "Hi", text: str = "Hello!", **more: Any) -> Completion:
    card = {"text": text, "reward": 0.0, "deviation": 1.0, "population": 0.0, "score": 0.0, "contributions": [0.0]}
    return Completion(name, user.id, "f", prompt, [card], [0], "best-of-n", **more)


# Keys


def test_keys_are_found_listed_and_revoked(store):
    keys = Keys(store)
    key, made = keys.create(["feedback", "chat"], tenant="shop", name="till")
    assert made.scopes == ("chat", "feedback") and keys.find(key) == made and keys.find(key + "x") is None
    assert [one.id for one in keys.all("shop")] == [made.id] and keys.all("other") == []
    assert keys.revoke(made.id) and not keys.revoke(made.id) and keys.find(key) is None
    assert keys.all()[0].revoked_at is not None
    with pytest.raises(InputError, match="no scope 'root'"):
        keys.create(["root"])
    with pytest.raises(InputError, match="There is no scope ''"):
        keys.create([])


def test_secrets_are_made_once_and_the_environment_s_come_first(store, monkeypatch):
    first = secret(store, "links")
    assert len(first) == 32 and secret(store, "links") == first != secret(store, "sessions")
    monkeypatch.setenv("PALATE_SECRET", "pepper")
    assert secret(store, "links") not in (first, secret(store, "sessions"))


# Answers and feedback


def test_an_answer_is_found_by_its_id_and_by_the_conversation_that_led_to_it(store, ann):
    book = Completions(store)
    ben = store.ensure_user("ben")
    asked: Text = [{"role": "system", "content": "It is noon."}, {"role": "user", "content": "Hi"}]
    book.add(ann, completion(ann))
    book.add(ann, completion(ann, "c2", asked, "Hello again!"))
    found = book.get("c1", "default")
    assert found and found.text == "Hello!" and book.get("c1", "other") is None
    later: Text = [{"role": "system", "content": "It is one."}, {"role": "user", "content": " Hi "}]
    again = book.answered(ann, later, "Hello again!\n")
    assert again and again.id == "c2"
    assert book.answered(ann, "Hello", "Hello!") is None and book.answered(ben, "Hi", "Hello!") is None
    assert {one.id for one in book.of(ann)} == {"c1", "c2"}


def test_answers_are_kept_as_long_as_the_tenant_says(store, ann):
    book = Completions(store)
    old = datetime.now(UTC) - timedelta(days=40)
    book.add(ann, completion(ann, "old", created_at=old))
    book.add(ann, completion(ann, "new"))
    assert book.drop_old(store.set_tenant("default", completion_days=60)) == 0
    assert book.drop_old(store.set_tenant("default", completion_days=30)) == 1
    assert [one.id for one in book.of(ann)] == ["new"]


def test_feedback_replaces_is_taken_back_and_is_kept_once(store, ann):
    book = Completions(store)

    def say(value: float | None, *scores: float) -> Said:
        records = [Rating(user_id="ann", prompt="Hi", completion="Hello!", score=score) for score in scores]
        return book.say(ann, "f1", "c1", "rating", value, None, records)

    assert say(1.0, 1.0).revision == 1 == say(1.0, 1.0).revision
    assert say(0.5, 0.5).revision == 2
    assert [one.record.score for one in store.evidence(ann)] == [0.5] and len(book.said(ann)) == 1
    assert say(None).revision == 3 and store.evidence(ann) == [] and book.said(ann) == []
    assert say(0.5, 0.5).revision == 4 and len(store.evidence(ann)) == 1
    with pytest.raises(InputError, match="another completion"):
        book.say(ann, "f1", "c2", "rating", 1.0, None, [])


def test_eight_writers_of_one_person_lose_nothing(store, url, ann):
    said = evidence(24)
    model = fitted()

    def write(part):
        with Store.open(url) as mine:
            user = mine.ensure_user("ann")
            for i in part:
                mine.append(user, said[i].model_copy(update={"user_id": "ann"}), evidence_id=f"e{i}")
                posterior_of(mine, model, user)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, [range(i, len(said), 8) for i in range(8)]))
    assert len(store.evidence(ann)) == len(said)
    serial = model.posterior([one.model_copy(update={"user_id": "ann"}) for one in said])
    assert np.abs(posterior_of(store, model, ann).mean - serial.mean).max() < 1e-9


# Provisional evidence


def test_provisional_evidence_counts_once_it_is_confirmed(store, ann):
    record = evidence(1)[0].model_copy(update={"user_id": "ann"})
    name = store.append(ann, record, provisional=True)
    before = store.evidence_count(ann)
    assert store.evidence(ann) == [] and len(store.evidence(ann, include_provisional=True)) == 1
    assert posterior_of(store, fitted(), ann).mean == pytest.approx(fitted().prior.mean)
    assert store.confirm(ann, name) and not store.confirm(ann, name)
    assert store.evidence_count(ann) > before and len(store.evidence(ann)) == 1
    assert posterior_of(store, fitted(), ann).mean != pytest.approx(fitted().prior.mean)


def test_a_reply_that_is_heard_counts_at_once_and_is_taken_in_later(store, ann):
    rescorer = Rescorer(store, fitted(), SatisfactionScorer.load())
    known = fitted().known
    reply = Reply(user_id="ann", prompt=known.prompts[0], completion=known.completions[0], reply="I hate this tone.")
    rescorer.hear(ann, reply, "r1")
    [heard] = store.evidence(ann)
    assert heard.record.satisfaction < 0.4
    count = store.evidence_count(ann)
    assert rescorer.take_in(ann) == 1 and rescorer.score(ann) == 1 and rescorer.take_in(ann) == 0
    assert store.evidence_count(ann) == count  # the same reading


# Work


def test_work_waits_once_and_is_taken_by_one(store):
    jobs = Jobs(store)
    jobs.add("rescore")
    jobs.add("rescore")
    jobs.add("rescore", "later", after=60)
    assert jobs.counts() == {"queued": 2, "running": 0, "failed": 0}
    with ThreadPoolExecutor(4) as pool:
        taken = [job for job in pool.map(lambda i: jobs.take(f"w{i}"), range(4)) if job]
    assert len(taken) == 1 and jobs.waits("rescore") and jobs.done(taken[0]) and not jobs.waits("rescore")


def test_a_dead_worker_s_job_is_taken_over(store):
    jobs = Jobs(store)
    jobs.add("rescore")
    dead = jobs.take("dead", lease=0.05)
    assert dead and jobs.take("alive") is None
    time.sleep(0.1)
    job = jobs.take("alive")
    assert job and job.id == dead.id and job.attempts == 2
    assert not jobs.keep(dead) and not jobs.done(dead) and jobs.keep(job) and jobs.done(job)


def test_work_that_fails_is_tried_again_and_then_stays_as_failed(store):
    jobs = Jobs(store)
    jobs.add("rescore")
    for attempt in range(ATTEMPTS):
        with store.database.transaction(WRITE) as db:
            db.execute(tables.job.update().values(run_after=datetime.now(UTC) - timedelta(seconds=1)))
        job = jobs.take("w")
        assert job and job.attempts == attempt + 1
        jobs.failed(job, "RuntimeError: no")
    assert jobs.counts() == {"queued": 0, "running": 0, "failed": 1} and jobs.take("w") is None


def test_work_on_somebody_is_forgotten_with_them(store, ann):
    Jobs(store).add("take_in", "1", user=ann)
    assert store.forget(ann)["job"] == 1


# Texts dropped for vectors


def test_texts_are_dropped_and_the_posterior_stays(store, ann):
    model = fitted()
    long_ago = datetime(2025, 1, 1, tzinfo=UTC)
    known = model.known
    records = [
        Comparison(user_id="ann", prompt="My own question?", chosen="My own answer.", rejected="Another one of mine."),
        Comparison(user_id="ann", prompt=known.prompts[0], chosen=known.completions[0], rejected="Mine again."),
        Rating(user_id="ann", prompt="Mine?", completion="A text of mine.", score=0.9),
        Reply(
            user_id="ann",
            prompt="Mine!",
            completion="Written for me.",
            reply="I love it",
            satisfaction=0.9,
            target="taste",
        ),
    ]
    for i, record in enumerate(records):
        store.append(ann, record.model_copy(update={"created_at": long_ago + timedelta(hours=i)}))
    before = posterior_of(store, model, ann, keep=False)
    assert drop_texts(store, model, store.tenant()) == 4 and drop_texts(store, model, store.tenant()) == 0
    after = model.posterior([one.record for one in store.evidence(ann)])
    assert after.mean == pytest.approx(before.mean, abs=2e-2)
    with store.database.transaction(READ) as db:
        kept = json.dumps(list(db.scalars(sa.select(tables.evidence.c.payload))), ensure_ascii=False)
    assert not [text for text in ("My own", "of mine", "Mine again", "I love it", "Written for me") if text in kept]
    assert as_text(known.completions[0])[:20] in kept  # nobody's own


def test_a_vector_of_another_encoder_is_refused():
    text = as_vector_text(np.zeros(3, np.float32), "other")
    with pytest.raises(EncoderError, match="'other'"):
        fitted().phi(["Hi"], [text])
    with pytest.raises(EncoderError, match="cut short"):
        fitted().phi(["Hi"], [as_vector_text(np.zeros(3, np.float32), fitted().encoder_revision)[:-1] + "\x01"])


# Traces


def test_traces_are_what_no_row_holds(tmp_path):
    with Store.open(f"sqlite:///{tmp_path}/palate.db") as store:
        ann, ben = store.ensure_user("ann"), store.ensure_user("ben")
        shared = Rating(user_id="ben", prompt="Hi", completion="Everybody was told this.", score=1)
        store.append(ben, shared)
        store.append(ann, shared.model_copy(update={"user_id": "ann", "completion": "Ann alone was told this."}))
        texts = [*store.texts_of(ann), "Everybody was told this."]
        assert traces_of(store.database, texts) == []  # both are live
        with store.database.transaction(WRITE) as db:
            db.execute(tables.evidence.delete().where(tables.evidence.c.user_id == ann.id))
        store.scrub()
        assert traces_of(store.database, texts) == []
        with (tmp_path / "palate.db-journal").open("wb") as file:
            file.write(b"left over: Ann alone was told this.")
        assert traces_of(store.database, texts) == ["Ann alone was told this."]


def test_a_worker_does_what_waits_and_hands_over_when_it_is_stopped(tmp_path):
    with live(tmp_path, work=True) as server:
        server.service.jobs.add("retain", "now")
        server.service.jobs.add("rescore", "now")
        deadline = time.monotonic() + 30
        while server.service.jobs.waits("retain", "now") or server.service.jobs.waits("rescore", "now"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert not [one for one in threading.enumerate() if one.name == "palate-worker" and one.is_alive()]
