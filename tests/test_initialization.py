"""Starts by SVD: planted subspaces are found, the sparse completion is the dense one, nothing degenerate fails."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.linalg import subspace_angles
from scipy.sparse import csr_array
from tests.support import Planted, planted

from palate.rewards import initialization
from palate.rewards.initialization import _soft_impute, raters_per_pair, svd_start
from palate.rewards.posterior import Floats


def start(truth: Planted, rank: int) -> Floats:
    c = truth.choices
    return svd_start(truth.z, c.chosen, c.rejected, c.user, c.n_users, rank)


def raters(truth: Planted) -> float:
    return raters_per_pair(truth.choices.chosen, truth.choices.rejected, truth.choices.user)


ALL_SHARED = {"shared": True}
SOME_SHARED = {"prompts": 40}
NONE_SHARED = {"prompts": 2_000}
SHARING = pytest.mark.parametrize("how", [ALL_SHARED, SOME_SHARED, NONE_SHARED], ids=["all", "some", "none"])


@SHARING
def test_a_planted_subspace_is_found(how):
    truth = planted(users=100, each=70, rank=3, **how)
    assert (raters(truth) >= 3) is (how is not NONE_SHARED)
    found = start(truth, 3)
    assert found.shape == (3, 12)
    # Two random three-dimensional subspaces of twelve dimensions are 80 degrees apart.
    assert np.degrees(subspace_angles(found.T, truth.base[1:].T)).max() < 25


@SHARING
def test_directions_are_repeatable_and_of_unit_variance(how):
    truth = planted(users=20, each=30, rank=2, **how)
    found = start(truth, 4)
    assert_array_equal(found, start(truth, 4))
    difference = truth.z[truth.choices.chosen] - truth.z[truth.choices.rejected]
    assert_allclose(np.std(difference @ found.T, axis=0), 1.0, rtol=1e-9)


def test_more_raters_than_pairs_and_fewer():
    for users, each in ((60, 12), (12, 60)):
        truth = planted(users=users, each=each, rank=2, shared=True)
        assert np.isfinite(start(truth, 2)).all()
        assert start(truth, 2).shape == (2, 12)


def test_no_more_directions_than_people_or_features():
    truth = planted(users=3, each=30, rank=2, features=8)
    assert start(truth, 12).shape[0] <= 3
    truth = planted(users=30, each=30, rank=2, features=4)
    assert start(truth, 12).shape[0] <= 4


@pytest.mark.parametrize("rank", [1, 2, 12])
@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [([0, 0], [1, 1]), ([0, 1], [1, 0]), ([0, 2, 0, 2], [1, 3, 1, 3]), ([0, 0, 1, 1], [1, 1, 0, 0])],
    ids=["one pair, agreed", "one pair, disputed", "all agree", "all of two minds"],
)
def test_people_who_do_not_differ_give_no_direction_that_explodes(chosen, rejected, rank):
    z = np.random.default_rng(0).standard_normal((4, 5))
    user = np.arange(len(chosen)) * 2 // len(chosen)
    found = svd_start(z, np.array(chosen), np.array(rejected), user, 2, rank)
    assert found.shape[1] == 5
    assert np.abs(found).max(initial=0.0) < 1e3


@given(rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=20))
def test_raters_per_pair_is_a_naive_count(rows):
    raters = defaultdict(set)
    for left, right, user in rows:
        raters[frozenset((left, right))].add(user)
    left, right, user = np.array(rows).T
    assert raters_per_pair(left, right, user) == np.median([len(people) for people in raters.values()])


def dense_soft_impute(values: Floats, known: np.ndarray, rank: int) -> Floats:
    """Mazumder, Hastie and Tibshirani's algorithm 1 with dense matrices; V S Vᵀ at the end."""
    filled, threshold = np.where(known, values, 0.0), None
    for _ in range(30):
        u, s, vt = np.linalg.svd(filled)
        threshold = 0.5 * s[rank - 1] if threshold is None else threshold
        s = np.maximum(s[:rank] - threshold, 0)
        filled = np.where(known, values, u[:, :rank] * s @ vt[:rank])
    return np.asarray(vt[:rank].T * s @ vt[:rank])


def test_the_sparse_completion_is_the_dense_one():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((7, 2)) @ rng.standard_normal((2, 9)) + 0.3 * rng.standard_normal((7, 9))
    known = rng.random((7, 9)) < 0.6
    factors = _soft_impute(csr_array(np.where(known, values, 0.0)), 2)
    assert_allclose(factors @ factors.T, dense_soft_impute(values, known, 2), atol=5e-3)


def test_ties_have_no_vote():
    """Which side of a tie is called chosen must not turn the start."""
    rng = np.random.default_rng(0)
    z, user = rng.standard_normal((60, 6)), np.repeat(np.arange(12), 40)
    left, right = rng.integers(30, size=480), rng.integers(30, 60, size=480)
    strength = np.where(rng.random(480) < 0.5, 0.5, 1.0)
    tie = strength == 0.5
    turned_left, turned_right = np.where(tie, right, left), np.where(tie, left, right)

    def apart(vote: Floats | None) -> float:
        one = svd_start(z, left, right, user, 12, 3, vote)
        two = svd_start(z, turned_left, turned_right, user, 12, 3, vote)
        return float(subspace_angles(one.T, two.T).max())

    assert apart(2 * strength - 1) < 1e-6
    assert apart(None) > 0.1


@SHARING
def test_some_rows_at_a_time_give_the_same_start(how, monkeypatch):
    truth = planted(users=20, each=30, rank=2, **how)
    at_once = start(truth, 3)
    monkeypatch.setattr(initialization, "_CHUNK", 64)
    assert_allclose(start(truth, 3), at_once, rtol=1e-6, atol=1e-9)


def test_people_who_dislike_say_the_opposite():
    """A vote of −1 is a vote of 1 for the other side."""
    truth = planted(users=40, each=40, rank=2, prompts=2_000)
    c, flip = truth.choices, np.random.default_rng(0).random(1_600) < 0.5
    left, right = np.where(flip, c.rejected, c.chosen), np.where(flip, c.chosen, c.rejected)
    one = svd_start(truth.z, c.chosen, c.rejected, c.user, 40, 2)
    two = svd_start(truth.z, left, right, c.user, 40, 2, np.where(flip, -1.0, 1.0))
    assert float(subspace_angles(one.T, two.T).max()) < 1e-6
