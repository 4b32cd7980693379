"""The store: what goes in comes out, and what is forgotten is gone."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from palate.errors import FeedbackError, InputError, StoreError
from palate.feedback import Comparison, Rating, Reply
from palate.rewards.elicitation import Query
from palate.store import Store, User, tables
from palate.store.database import READ, WRITE

NOON = datetime(2025, 5, 1, 12, tzinfo=UTC)
MODEL = "f1"
ASKED = Query(
    prompt="How do I boil an egg?",
    response_a="Nine minutes.",
    response_b="Gently, with love.",
    rows=(3, 0),
    expected_information=0.5,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "palate.db"


@pytest.fixture
def url(path):
    return f"sqlite:///{path}"


@pytest.fixture
def store(url):
    with Store.open(url) as store:
        store.register_model(MODEL, path="reward", encoder="minilm", encoder_revision="1", rank=2)
        yield store


@pytest.fixture
def ann(store):
    return store.ensure_user("ann")


def said(chosen: str = "Yes.", user: str = "ann", **more: Any) -> Comparison:
    return Comparison(user_id=user, prompt="Well?", chosen=chosen, rejected="Perhaps not.", **more)


# People


def test_a_user_is_made_once(store):
    ann = store.ensure_user("ann")
    assert store.ensure_user("ann") == ann == store.user("ann")
    assert (ann.tenant, ann.paused, ann.half_life_days) == ("default", False, None)
    assert store.users() == [ann]


def test_reading_makes_no_user(store, path):
    before = path.read_bytes()
    assert store.user("nobody") is None
    assert store.users() == []
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["a" * 256, "Ä\U0001f951", "a'; DROP TABLE user; --", "NULL", " "])
def test_any_name_of_1_to_256_characters_is_a_user(store, name):
    assert store.ensure_user(name).external_id == name
    assert store.user(name) == store.ensure_user(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "Invalid user id: '' has 0 characters; give 1 to 256"),
        ("a" * 257, f"Invalid user id: '{'a' * 257}' has 257 characters; give 1 to 256"),
        ("a\ud800", r"Text is not Unicode: '\ud800'; replace these characters"),
    ],
)
def test_other_names_are_refused(store, name, message):
    with pytest.raises(InputError) as caught:
        store.ensure_user(name)
    assert str(caught.value) == message
    assert store.users() == []


def test_tenants_do_not_see_each_other(store, ann):
    store.ensure_tenant("acme")
    store.ensure_tenant("acme")
    other = store.ensure_user("ann", "acme")
    store.append(ann, said("Ours."), evidence_id="1")
    store.append(other, said("Theirs."), evidence_id="1")
    assert store.users() == [ann]
    assert store.users("acme") == [other] == [store.user("ann", "acme")]
    assert [e.record.chosen for e in store.evidence(ann)] == ["Ours."]
    assert [e.record.chosen for e in store.evidence(other)] == ["Theirs."]
    store.forget(other)
    assert [e.record.chosen for e in store.evidence(ann)] == ["Ours."]


def test_an_unknown_tenant_is_refused(store):
    with pytest.raises(InputError) as caught:
        store.ensure_user("ann", "acne")
    assert str(caught.value) == "Unknown tenant: 'acne'; make it with Store.ensure_tenant first"


# Evidence

words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).map("x{}".format)
texts = words | st.lists(st.fixed_dictionaries({"role": words, "content": words}), min_size=1)
shares = st.floats(0, 1)
common = {
    "user_id": st.just("ann"),
    "prompt": texts,
    "created_at": st.datetimes(timezones=st.timezones()),
    "split": st.sampled_from([None, "train", "adapt", "test"]),
}
comparisons = st.builds(
    lambda texts, **more: Comparison(chosen=texts[0], rejected=texts[1], **more),
    st.tuples(words, words).filter(lambda pair: pair[0] != pair[1]),
    strength=st.floats(0.5, 1),
    chosen_position=st.sampled_from([None, "a", "b"]),
    kind=st.none() | words,
    **common,
)
ratings = st.builds(Rating, completion=texts, score=shares, **common)
replies = st.builds(Reply, completion=texts, reply=words, satisfaction=st.none() | shares, **common)


@given(st.lists(comparisons | ratings | replies, max_size=5))
def test_evidence_comes_back_as_it_was_said_sorted_by_time_and_id(records):
    with Store.open("sqlite://") as store:
        ann = store.ensure_user("ann")
        ids = [store.append(ann, record) for record in records]
        expected = sorted((record.created_at, id_, record) for id_, record in zip(ids, records, strict=True))
        found = [(e.created_at, e.id, e.record) for e in store.evidence(ann)]
    assert found == expected
    assert all(time.tzinfo is UTC for time, *_ in found)


def test_what_has_no_time_is_said_now(store, ann):
    before = datetime.now(UTC)
    store.append(ann, said())
    (evidence,) = store.evidence(ann)
    assert before <= evidence.created_at <= datetime.now(UTC)
    assert evidence.record == said(created_at=evidence.created_at)


def test_times_are_kept_in_utc(store, ann, path):
    store.append(ann, said(created_at=NOON.astimezone(timezone(timedelta(hours=9)))))
    assert store.evidence(ann)[0].created_at == NOON
    with sqlite3.connect(path) as raw:
        assert raw.execute("SELECT created_at FROM evidence").fetchall() == [("2025-05-01 12:00:00.000000",)]
    raw.close()


def test_the_same_evidence_again_changes_nothing(store, ann):
    for _ in range(2):
        assert store.append(ann, said(), evidence_id="e") == "e"
    assert len(store.evidence(ann)) == 1
    store.withdraw(ann, "e")
    store.append(ann, said(), evidence_id="e")
    assert store.evidence(ann) == []


@pytest.mark.parametrize(
    "other", [said("No."), said(created_at=NOON), Rating(user_id="ann", prompt="", completion="x", score=0)]
)
def test_an_id_stands_for_one_thing(store, ann, other):
    store.append(ann, said(), evidence_id="e")
    with pytest.raises(StoreError) as caught:
        store.append(ann, other, evidence_id="e")
    assert str(caught.value) == (
        "Evidence 'e' of user 'ann' says something else already; withdraw it and append this under another id"
    )
    assert [e.record.chosen for e in store.evidence(ann)] == ["Yes."]


@pytest.mark.parametrize("evidence_id", ["", "e" * 257])
def test_an_evidence_id_that_a_database_would_cut_or_that_names_nothing_is_refused(store, ann, evidence_id):
    with pytest.raises(InputError) as caught:
        store.append(ann, said(), evidence_id=evidence_id)
    assert str(caught.value) == (
        f"Invalid evidence id: {evidence_id!r} has {len(evidence_id)} characters; give 1 to 256, or none"
    )
    assert store.evidence(ann) == []


def test_evidence_of_another_user_is_refused(store, ann):
    with pytest.raises(InputError) as caught:
        store.append(ann, said(user="bob"))
    assert str(caught.value) == "Evidence of user 'bob' cannot be given to user 'ann'; append it to its own user"


def test_evidence_can_be_withdrawn_once(store, ann):
    id_ = store.append(ann, said())
    bob = store.ensure_user("bob")
    assert not store.withdraw(bob, id_)
    assert store.withdraw(ann, id_)
    assert not store.withdraw(ann, id_)
    assert store.evidence(ann) == []
    assert [e.withdrawn for e in store.evidence(ann, include_withdrawn=True)] == [True]


def test_every_change_of_the_evidence_is_counted(store, ann):
    counts = [store.evidence_count(ann)]
    first = store.append(ann, said())
    counts.append(store.evidence_count(ann))
    store.withdraw(ann, first)
    counts.append(store.evidence_count(ann))
    store.append(ann, said())  # as many as before, but not the same
    counts.append(store.evidence_count(ann))
    assert counts == [0, 1, 2, 3]


# Queries


def test_there_is_one_open_query(store, ann):
    assert store.open_query(ann, MODEL) is None
    query = store.ask(ann, MODEL, ASKED, strategy="bald")
    assert (
        store.ask(ann, MODEL, replace(ASKED, prompt="Another?"), strategy="bald")
        == query
        == store.open_query(ann, MODEL)
    )
    shown = (query.prompt, query.response_a, query.response_b, query.expected_information, query.strategy)
    assert shown == (ASKED.prompt, ASKED.response_a, ASKED.response_b, 0.5, "bald")
    assert (query.seq, query.pool_index, query.answered_at, query.choice) == (1, (3, 0), None, None)
    store.answer(query.id, "a")
    assert store.open_query(ann, MODEL) is None
    second = store.ask(ann, MODEL, ASKED, strategy="bald")
    assert (second.seq, second.pool_index) == (2, (3, 0))
    assert [q.seq for q in store.queries(ann, MODEL)] == [1, 2]
    assert store.queries(ann, "f2") == []


def test_a_query_chosen_on_old_evidence_is_not_put(store, ann):
    assert store.ask(ann, MODEL, ASKED, strategy="bald", after=1) is None
    first = store.ask(ann, MODEL, ASKED, strategy="bald", after=0)
    # While one is open, it is the question, whoever asks.
    assert store.ask(ann, MODEL, ASKED, strategy="bald", after=0) == first
    store.answer(first.id, "skip")
    assert store.ask(ann, MODEL, ASKED, strategy="bald", after=0) is None
    assert store.queries(ann, MODEL)[-1].id == first.id


def test_the_database_itself_refuses_a_second_open_query(store, ann, url):
    query = store.ask(ann, MODEL, ASKED, strategy="bald")
    with pytest.raises(StoreError) as caught, store.database.transaction(WRITE) as db:
        row = db.execute(tables.query.select().where(tables.query.c.id == query.id)).one()._mapping
        db.execute(tables.query.insert().values(**{**row, "id": "other", "seq": 2}))
    assert str(caught.value) == (
        f"Database {url!r} failed: UNIQUE constraint failed: query.user_id, query.fingerprint; "
        "nothing of this step was saved"
    )


def test_all_who_ask_at_once_get_one_query(store, ann, url):
    def ask(number):
        with Store.open(url) as own:
            return own.ask(ann, MODEL, replace(ASKED, prompt=str(number)), strategy="bald")

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(ask, range(8)))) == 1


@pytest.mark.parametrize(
    ("choice", "chosen", "rejected", "strength", "position"),
    [
        ("a", ASKED.response_a, ASKED.response_b, 1.0, "a"),
        ("b", ASKED.response_b, ASKED.response_a, 1.0, "b"),
        ("tie", ASKED.response_a, ASKED.response_b, 0.5, "a"),
    ],
)
def test_an_answer_is_a_comparison(store, ann, choice, chosen, rejected, strength, position):
    query = store.ask(ann, MODEL, ASKED, strategy="bald")
    answered = store.answer(query.id, choice)
    assert (answered.choice, answered.asked_at) == (choice, query.asked_at)
    assert answered == store.answer(query.id, choice)
    (evidence,) = store.evidence(ann)
    assert (evidence.id, evidence.query_id, evidence.created_at) == (query.id, query.id, answered.answered_at)
    assert evidence.record == Comparison(
        user_id="ann",
        prompt=ASKED.prompt,
        chosen=chosen,
        rejected=rejected,
        strength=strength,
        chosen_position=position,
        created_at=answered.answered_at,
    )


def test_a_skipped_query_says_nothing(store, ann):
    query = store.ask(ann, MODEL, ASKED, strategy="bald")
    assert store.answer(query.id, "skip").choice == "skip"
    assert store.evidence(ann) == []
    assert store.open_query(ann, MODEL) is None


def test_wrong_answers_are_refused(store, ann):
    query = store.ask(ann, MODEL, ASKED, strategy="bald")
    with pytest.raises(InputError) as invalid:
        store.answer(query.id, "c")
    with pytest.raises(StoreError) as unknown:
        store.answer("q", "a")
    store.answer(query.id, "a")
    with pytest.raises(StoreError) as second:
        store.answer(query.id, "b")
    assert [str(caught.value) for caught in (invalid, unknown, second)] == [
        "Invalid choice: 'c'; choose one of 'a', 'b', 'tie', 'skip'",
        "Unknown query: 'q'; answer one that Store.ask returned",
        f"Query {query.id!r} was answered 'a', not 'b'; an answer stays, but its evidence can be withdrawn",
    ]
    assert [e.record.chosen_position for e in store.evidence(ann)] == ["a"]


def test_a_query_that_could_not_be_answered_is_not_asked(store, ann):
    with pytest.raises(FeedbackError) as caught:
        store.ask(ann, MODEL, replace(ASKED, response_b=ASKED.response_a), strategy="bald")
    assert str(caught.value) == "chosen and rejected are the same, which tells nothing; leave the row out"
    with pytest.raises(StoreError) as unknown:
        store.ask(ann, "f2", ASKED, strategy="bald")
    assert str(unknown.value) == "Unknown model: 'f2'; register it with Store.register_model first"
    assert store.queries(ann, MODEL) == []


# Posteriors


@given(hnp.arrays(st.sampled_from(["<f8", ">f8"]), hnp.array_shapes(min_dims=0, min_side=0)))
def test_arrays_come_back_as_they_were(array):
    back = tables.unpack(tables.pack(array), array.shape)
    np.testing.assert_array_equal(back, array)  # nan equals nan here
    assert back.dtype == np.float64


@pytest.mark.parametrize("shape", [(2,), (3, 2), (0,)])
def test_a_posterior_comes_back(store, ann, shape):
    mean, cov = np.arange(np.prod(shape)).reshape(shape), np.full((*shape, shape[-1]), np.pi)
    assert store.posterior(ann, MODEL) is None
    assert store.save_posterior(ann, MODEL, mean, cov, evidence_count=4, expected_version=0) == 1
    found = store.posterior(ann, MODEL)
    np.testing.assert_array_equal(found.mean, mean)
    np.testing.assert_array_equal(found.cov, cov)
    assert (found.evidence_count, found.version, found.mean.flags.writeable) == (4, 1, False)


@pytest.mark.parametrize("shape", [(3, 2), (4, 3, 2), (1, 2)])
def test_the_weights_of_parts_come_back(store, ann, shape):
    mean, cov = np.zeros(shape), np.zeros((*shape, shape[-1]))
    weights = np.random.default_rng(0).random(shape[:-1])
    store.save_posterior(ann, MODEL, mean, cov, weights=weights, evidence_count=0, expected_version=0)
    np.testing.assert_array_equal(store.posterior(ann, MODEL).weights, weights)
    # A Gaussian in its place leaves none behind.
    store.save_posterior(ann, MODEL, np.zeros(2), np.eye(2), evidence_count=0, expected_version=1)
    assert store.posterior(ann, MODEL).weights is None


def test_weights_must_fit_the_parts(store, ann):
    with pytest.raises(InputError) as caught:
        store.save_posterior(
            ann, MODEL, np.zeros((3, 2)), np.zeros((3, 2, 2)), weights=np.ones(2), evidence_count=0, expected_version=0
        )
    assert str(caught.value) == "Weights of shape (2,) do not fit a mean of shape (3, 2); give one weight per part"
    assert store.posterior(ann, MODEL) is None


def test_another_half_life_drops_what_was_kept(store, ann):
    bob = store.ensure_user("bob")

    def save(user: User) -> int | None:
        version: int | None = store.save_posterior(
            user, MODEL, np.zeros(2), np.eye(2), evidence_count=0, expected_version=0
        )
        return version

    assert (save(ann), save(bob)) == (1, 1)
    faster = store.set_half_life(ann, 30.0)
    assert faster.half_life_days == store.user("ann").half_life_days == 30.0
    assert store.posterior(ann, MODEL) is None
    assert store.posterior(bob, MODEL) is not None
    # What was computed with the half-life before comes too late.
    assert save(ann) is None
    assert store.posterior(ann, MODEL) is None
    assert save(faster) == 1
    back = store.set_half_life(ann, None)
    assert store.user("ann").half_life_days is None
    assert save(back) == 1


@pytest.mark.parametrize("days", [0.0, -1.0, float("nan")])
def test_a_half_life_that_is_none_is_refused(store, ann, days):
    with pytest.raises(InputError) as caught:
        store.set_half_life(ann, days)
    assert str(caught.value) == f"Half-life {days!r} is not above 0; give days, or None for the model's own"
    assert store.user("ann").half_life_days is None


def test_the_first_of_two_savers_wins(store, ann):
    def save(value: float, expected_version: int) -> int | None:
        mean = np.full(2, value)
        version: int | None = store.save_posterior(
            ann, MODEL, mean, np.eye(2), evidence_count=1, expected_version=expected_version
        )
        return version

    assert [save(0.0, 1), save(1.0, 0), save(2.0, 0), save(3.0, 1), save(4.0, 1)] == [None, 1, None, 2, None]
    assert store.posterior(ann, MODEL).mean.tolist() == [3.0, 3.0]


def test_a_posterior_must_fit(store, ann):
    with pytest.raises(InputError) as caught:
        store.save_posterior(ann, MODEL, np.zeros(2), np.eye(3), evidence_count=0, expected_version=0)
    assert str(caught.value) == (
        "Covariance of shape (3, 3) does not fit a mean of shape (2,); give means (..., J) and covariances (..., J, J)"
    )
    with pytest.raises(StoreError) as unknown:
        store.save_posterior(ann, "f2", np.zeros(2), np.eye(2), evidence_count=0, expected_version=0)
    assert str(unknown.value) == "Unknown model: 'f2'; register it with Store.register_model first"


# Forgetting


def traces(path: Path, text: str) -> list[str]:
    files = [path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")]
    return [file.name for file in files if file.exists() and text.encode() in file.read_bytes()]


def test_nothing_of_someone_forgotten_is_left_in_the_files(store, path):
    bob = store.ensure_user("bob")
    store.append(bob, said("Mine stays.", user="bob"))
    secret = store.ensure_user("sécret-ann")
    for number in range(50):  # more than one page of everything
        query = store.ask(secret, MODEL, replace(ASKED, prompt=f"sécret {number} " * 50), strategy="bald")
        store.answer(query.id, "a")
        reply = Reply(user_id="sécret-ann", prompt="", completion="x", reply=f"sécret {number} " * 50)
        store.append(secret, reply, evidence_id=f"sécret-{number}")
    store.save_posterior(secret, MODEL, np.zeros(2), np.eye(2), evidence_count=2, expected_version=0)
    assert traces(path, "sécret")
    tables_of_people = (
        "posterior",
        "evidence",
        "query",
        "user",
        "example",
        "score",
        "learned",
        "reservoir",
        "replay",
        "completion",
        "feedback",
        "job",
    )
    nothing = dict.fromkeys(tables_of_people, 0)
    assert store.forget(secret) == {**nothing, "posterior": 1, "evidence": 100, "query": 50, "user": 1}
    assert traces(path, "sécret") == []
    assert store.forget(secret) == nothing
    assert store.users() == [bob]
    assert [e.record.chosen for e in store.evidence(bob)] == ["Mine stays."]
    assert traces(path, "Mine stays.")


def test_who_is_forgotten_is_not_followed_into_the_next_user(store, ann):
    store.forget(ann)
    bob = store.ensure_user("bob")
    assert bob.id != ann.id
    with pytest.raises(StoreError) as caught:
        store.append(ann, said())
    assert str(caught.value) == (f"User number {ann.id} is not in the store any more; get it from Store.ensure_user")


def test_traces_that_a_reader_holds_are_scrubbed_later(store, ann, path, url):
    store.append(ann, said("sécret"))
    with Store.open(f"{url}?timeout=0.05") as hasty:
        with store.database.transaction(READ) as db:
            db.execute(tables.user.select())
            with pytest.raises(StoreError) as caught:
                hasty.forget(ann)
        assert str(caught.value) == (
            f"Every row of user 'ann' is erased, but not its traces: Database '{url}?timeout=0.05' "
            "is locked by another process; try again when that is done"
        )
        assert store.users() == []
        hasty.scrub()
    assert traces(path, "sécret") == []
