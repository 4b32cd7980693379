"""Replies in the store: taken in once, scored by version, resumable, erased with their children."""

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from tests.support import PlantedEncoder, fitted, people

from palate.feedback import Feedback, Rating, Reply
from palate.rewards import fit
from palate.satisfaction.augmentation import Augmentation
from palate.satisfaction.scorer import SatisfactionScorer, Temperatures
from palate.store import Store, User, tables
from palate.store.database import READ
from palate.store.interview import posterior_of, register
from palate.store.replies import Rescorer, scores

NOON = datetime(2025, 5, 1, 12, tzinfo=UTC)
SECRET = "The zeppelin story was wonderfully funny. I laughed all the way to Wuppertal."
TYPED = [
    (SECRET, 0),
    ("So long and dull, I hated the ramblings.", 5),
    ("thanks, perfect tone", 9),
    ("what about on a Mac?", 12),
]


@cache
def scorer() -> SatisfactionScorer:
    return SatisfactionScorer.load()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "palate.db"


@pytest.fixture
def store(path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{path}") as store:
        register(store, fitted(), path.with_name("model"))
        yield store


def reply(text: str, place: int, user: str = "ann", minutes: int = 0) -> Reply:
    model = fitted()
    return Reply(
        user_id=user,
        prompt=model.known.prompts[place],
        completion=model.known.completions[place],
        reply=text,
        created_at=NOON + timedelta(minutes=minutes),
    )


def types(store: Store, name: str = "ann") -> User:
    user = store.ensure_user(name)
    for number, (text, place) in enumerate(TYPED):
        store.append(user, reply(text, place, name, number), evidence_id=f"e{number}")
    return user


def job(store: Store, **columns) -> Rescorer:
    return Rescorer(store, fitted(), scorer(), Augmentation(), **columns)


def rows(store: Store, table: sa.Table) -> list[dict[str, Any]]:
    with store.database.transaction(READ) as db:
        found = [dict(row._mapping) for row in db.execute(sa.select(table))]
    return [{name: value for name, value in row.items() if name not in ("scored_at", "updated_at")} for row in found]


def everything(store: Store) -> list[list[dict[str, Any]]]:
    names = (tables.example, tables.score, tables.replay, tables.reservoir, tables.shared_head)
    return [sorted(rows(store, table), key=repr) for table in names]


def test_a_reply_becomes_evidence_once_it_was_read(store):
    ann = types(store)
    before = posterior_of(store, fitted(), ann)
    assert np.array_equal(before.mean, fitted().prior.mean)
    done = job(store).run()
    assert done["new"] == 4 and done["scored"] >= 4
    read = {one.id: one.record for one in store.evidence(ann)}
    assert read["e0"].satisfaction > 0.6 > 0.4 > read["e1"].satisfaction
    assert read["e0"].target in ("taste", "both")
    after = posterior_of(store, fitted(), ann)
    assert not np.array_equal(before.mean, after.mean)
    assert np.allclose(after.mean, fitted().posterior([one.record for one in store.evidence(ann)]).mean)


def test_doing_it_again_changes_nothing(store):
    types(store)
    types(store, "bob")
    job(store).run()
    before = everything(store)
    assert job(store).run() == {"new": 0, "scored": 0, "current": 2}
    assert everything(store) == before


def test_children_stand_beside_their_parent_and_share_its_weight(store):
    types(store)
    job(store).run()
    examples = rows(store, tables.example)
    families = {name: [row for row in examples if row["evidence_id"] == name] for name in ("e0", "e1", "e2", "e3")}
    assert max(map(len, families.values())) > 1
    for name, family in families.items():
        assert sorted(row["number"] for row in family) == list(range(len(family)))
        assert sum(row["weight"] for row in family) == pytest.approx(1)
        assert [row["how"] for row in family if row["number"] == 0] == ["typed"]
        texts = scores(store, store.ensure_user("ann"), name)
        parent = texts[0].satisfaction
        assert all(abs(one.satisfaction - parent) <= Augmentation().distance for one in texts)


def test_new_evidence_rescores_history_and_keeps_the_old_scores(store):
    ann = types(store)
    job(store).run()
    (before,) = (one for one in scores(store, ann, "e0") if one.number == 0)
    store.append(
        ann, Rating(user_id="ann", prompt=reply("x", 5).prompt, completion=reply("x", 5).completion, score=1.0)
    )
    assert job(store).run()["scored"] > 0
    old, new = (one for one in scores(store, ann, "e0") if one.number == 0)
    assert old == before
    assert (new.satisfaction, new.scorer) == (old.satisfaction, old.scorer)
    assert new.version != old.version and new.followed != old.followed


def test_a_job_killed_half_way_goes_on_to_the_same_end(store, path, monkeypatch):
    for name in ("ann", "bob", "eve"):
        types(store, name)
    with Store.open(f"sqlite:///{path.with_name('other.db')}") as other:
        register(other, fitted(), path)
        for name in ("ann", "bob", "eve"):
            types(other, name)
        job(other).run()
        expected = everything(other)

    class Killed(BaseException):
        pass

    for step in ("take_in", "score"):
        plain, calls = getattr(Rescorer, step), list[User]()

        def dying(self, user, plain=plain, calls=calls):
            calls.append(user)
            if len(calls) == 2:
                raise Killed
            return plain(self, user)

        monkeypatch.setattr(Rescorer, step, dying)
        with pytest.raises(Killed):
            job(store).run()
        monkeypatch.setattr(Rescorer, step, plain)
    job(store).run()
    assert [len(table) for table in everything(store)] == [len(table) for table in expected]
    assert everything(store) == expected


def test_two_at_once_do_no_harm(store):
    users = [types(store, name) for name in ("ann", "bob", "eve")]
    with ThreadPoolExecutor(2) as pool:
        done = [future.result() for future in [pool.submit(job(store).run) for _ in range(2)]]
    assert sum(one["new"] for one in done) == 12
    job(store).run()
    examples, learned = rows(store, tables.example), rows(store, tables.reservoir)
    keys = [(row["user_id"], row["evidence_id"], row["number"]) for row in examples]
    assert len(keys) == len(set(keys))
    # Nothing was learned from twice.
    assert sum(row["seen"] for row in learned if row["owner"] == "*") == len(examples)
    assert job(store).run() == {"new": 0, "scored": 0, "current": len(users)}


def test_withdrawing_a_reply_erases_what_was_made_of_it(store):
    ann = types(store)
    job(store).run()
    assert store.withdraw(ann, "e0")
    left = repr(everything(store))
    assert "zeppelin" not in left and "e0#" not in left
    assert "ramblings" in left


def test_forgetting_a_person_erases_replies_children_and_replayed_ones(store, path):
    ann = types(store)
    types(store, "bob")
    job(store).run()
    assert {row["user_id"] for row in rows(store, tables.replay)} == {ann.id, ann.id + 1}
    erased = store.forget(ann)
    assert erased["example"] >= 4 and erased["score"] >= 4 and erased["replay"] >= 4
    for table in (tables.example, tables.score, tables.replay):
        assert {row["user_id"] for row in rows(store, table)} == {ann.id + 1}
    store.forget(store.ensure_user("bob"))
    store.close()
    found = b"".join(file.read_bytes() for file in path.parent.iterdir() if file.name.startswith("palate.db"))
    assert b"zeppelin" not in found and b"Wuppertal" not in found
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT COUNT(*) FROM shared_head").fetchone() == (1,)


def test_a_clock_going_backwards_and_an_unknown_answer_are_taken_in(store):
    ann = store.ensure_user("ann")
    for number, minutes in enumerate((10, 5, 0)):
        said = Reply(
            user_id="ann",
            prompt="Never seen before",
            completion=f"An answer that no model knows, number {number}.",
            reply="So dull, I hated the tone.",
            created_at=NOON + timedelta(minutes=minutes),
        )
        store.append(ann, said)
    assert job(store).run()["new"] == 3
    assert np.isfinite(posterior_of(store, fitted(), ann).mean).all()


def turned_down(by: float) -> SatisfactionScorer:
    """The scorer with another temperature: another revision, other readings."""
    shipped = scorer()
    return SatisfactionScorer(shipped.network, shipped.tokenizer, Temperatures(shipped.temperatures.satisfaction * by))


def test_after_a_withdrawal_the_posterior_is_as_if_it_had_never_been_said(store):
    ann = store.ensure_user("ann")
    store.append(ann, reply("way too wordy, please be brief", 0), evidence_id="e0")
    job(store).run()
    assert not np.array_equal(posterior_of(store, fitted(), ann).mean, fitted().prior.mean)
    store.withdraw(ann, "e0")
    assert np.array_equal(posterior_of(store, fitted(), ann).mean, fitted().prior.mean)


def test_a_scorer_taken_back_reads_as_before(store):
    ann = types(store)
    job(store).run()
    first = [one.record for one in store.evidence(ann)]
    Rescorer(store, fitted(), turned_down(3.0)).run()
    assert [one.record for one in store.evidence(ann)] != first
    assert job(store).run()["scored"] > 0
    assert [one.record for one in store.evidence(ann)] == first
    assert job(store).run()["scored"] == 0


def test_a_reading_that_stays_the_same_leaves_the_posterior_kept(store):
    ann = types(store)
    job(store).run()
    count = store.evidence_count(ann)
    types(store, "bob")  # the shared head learns, and everybody is scored anew
    assert job(store).run()["scored"] > 4
    assert store.evidence_count(ann) == count


def test_what_somebody_labelled_stays_and_is_as_sure_as_a_rating(store):
    ann = store.ensure_user("ann")
    said = reply(SECRET, 0).model_copy(update={"satisfaction": 0.0})
    store.append(ann, said, evidence_id="e0")
    job(store).run()
    (kept,) = (one.record for one in store.evidence(ann))
    assert isinstance(kept, Reply)
    assert (kept.satisfaction, kept.confidence) == (0.0, None) and kept.target is not None
    (typed,) = (one for one in scores(store, ann, "e0") if one.number == 0)
    assert typed.satisfaction > 0.6 and typed.training_target == pytest.approx(typed.share * typed.followed)


def test_another_half_life_scores_history_anew(store):
    ann = types(store)
    job(store).run()
    store.set_half_life(ann, 1.0)
    assert job(store).run()["scored"] > 0
    assert job(store).run()["scored"] == 0


def test_a_new_model_has_its_head_learn_from_what_was_typed_before(store, tmp_path):
    types(store)
    job(store).run()
    other = fit(Feedback(comparisons=people()), PlantedEncoder(), rank=4)
    register(store, other, tmp_path / "other")
    assert Rescorer(store, other, scorer()).run()["new"] == len(TYPED)
    assert {row["fingerprint"] for row in rows(store, tables.shared_head)} == {fitted().fingerprint, other.fingerprint}


def test_a_reply_withdrawn_while_it_is_read_leaves_nothing(store, monkeypatch):
    ann = types(store)
    plain = Rescorer._family

    def meanwhile(self, said):
        store.withdraw(ann, "e0")
        return plain(self, said)

    monkeypatch.setattr(Rescorer, "_family", meanwhile)
    assert job(store).run()["new"] == len(TYPED) - 1
    left = repr([rows(store, table) for table in (tables.example, tables.score, tables.replay, tables.learned)])
    assert "zeppelin" not in left and "'e0" not in left
