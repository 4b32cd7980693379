"""Experience replay: bounded, fair to the past, forgetting on request; in memory and in the store alike."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palate.errors import InputError
from palate.satisfaction.replay import Experience, InMemoryReplay, NoMemory, ReplayMemory, slot
from palate.store import Store
from palate.store import replies as stored
from palate.store.database import WRITE
from palate.store.replies import StoredReplay


def record(number: int, user: str = "ann") -> Experience:
    return Experience(user, f"{user}{number}", np.array([float(number), 1.0]), 0.5, 0.25, 1.0)


@pytest.fixture(params=["memory", "store"])
def memory(request, monkeypatch) -> Iterator[ReplayMemory]:
    if request.param == "memory":
        yield InMemoryReplay(per_user=3, overall=8)
        return
    monkeypatch.setattr(stored, "PER_USER", 3)
    monkeypatch.setattr(stored, "OVERALL", 8)
    with Store.open("sqlite://") as store:
        store.register_model("f1", path="m", encoder="e", encoder_revision="1", rank=2)
        users = {name: store.ensure_user(name).id for name in ("ann", "bob", "eve")}
        with store.database.transaction(WRITE) as db:
            yield StoredReplay(db, "f1", users)


def test_it_is_bounded_and_gives_back_what_it_was_given(memory):
    for number in range(40):
        memory.add([record(number), record(number, "bob")])
    assert len(memory) == 3 + 3 + 8
    drawn = memory.sample(100, np.random.default_rng(0))
    assert {one.user for one in drawn} == {"ann", "bob"}
    assert len({(one.user, one.key) for one in drawn}) == len(drawn)
    for one in drawn:
        assert one.phi.tolist() == record(int(one.key[3:]), one.user).phi.tolist()
        assert (one.own, one.target, one.weight) == (0.5, 0.25, 1.0)


def test_who_talks_a_lot_does_not_crowd_out_who_does_not(memory):
    memory.add([record(0, "bob")])
    memory.add([record(number) for number in range(500)])
    seen = Counter(one.user for seed in range(40) for one in memory.sample(4, np.random.default_rng(seed)))
    assert seen["bob"] >= 20


def test_forgetting_leaves_nothing_of_a_person(memory):
    memory.add([record(n, user) for n in range(6) for user in ("ann", "bob")])
    before = len(memory)
    gone = memory.forget("ann")
    assert gone >= 3 and len(memory) == before - gone
    assert {one.user for one in memory.sample(100, np.random.default_rng(0))} == {"bob"}
    assert memory.forget("ann") == 0
    memory.add([record(n, "eve") for n in range(20)])
    assert {one.user for one in memory.sample(100, np.random.default_rng(1))} <= {"bob", "eve"}


def test_what_is_drawn_rests_on_the_generator_alone(memory):
    memory.add([record(n, user) for n in range(20) for user in ("ann", "bob")])
    one, same = (memory.sample(6, np.random.default_rng(3)) for _ in range(2))
    assert [r.key for r in one] == [r.key for r in same]


def test_everything_seen_is_kept_with_the_same_probability():
    size, length, kept = 5, 20, Counter[int]()
    for seed in range(2_000):
        rng, places = np.random.default_rng(seed), {}
        for number in range(length):
            if (place := slot(number, size, rng)) is not None:
                places[place] = number
        kept.update(places.values())
    share = np.array([kept[number] for number in range(length)]) / 2_000
    # Four standard errors of a share of a quarter.
    assert np.abs(share - size / length).max() < 4 * np.sqrt(0.25 * 0.75 / 2_000)


@given(st.integers(0, 50), st.integers(1, 10))
def test_a_reservoir_fills_from_the_front(seen, size):
    place = slot(seen, size, np.random.default_rng(0))
    assert place == seen if seen < size else place is None or 0 <= place < size


def test_no_memory_keeps_nothing():
    memory = NoMemory()
    memory.add([record(0)])
    assert (len(memory), memory.sample(5, np.random.default_rng(0)), memory.forget("ann")) == (0, [], 0)


@pytest.mark.parametrize("name", ["per_user", "overall", "people"])
def test_sizes_below_one_are_refused(name):
    with pytest.raises(InputError, match=f"{name} 0 is below 1"):
        InMemoryReplay(**{name: 0})
