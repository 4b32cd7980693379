"""Drift: laws of forgetting, against separate filters and closed forms; reversals that are planted are found."""

from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from palate.errors import InputError
from palate.rewards.beliefs import Belief, Gaussian, Mixture
from palate.rewards.drift import (
    HALF_LIVES,
    REVERSAL,
    WINDOW,
    Drift,
    Filter,
    elapsed_days,
    follow,
    learn_half_life,
    relax,
    row_loss,
)
from palate.rewards.posterior import Observations, laplace_posterior, predict

DIM = 3
GAUSSIAN = Gaussian(np.array([0.5, 0.0, -0.5]), np.diag([1.0, 2.0, 0.5]))
MIXTURE = Mixture(
    np.array([0.7, 0.3]),
    Gaussian(np.array([[1.0, 0.0, 0.0], [-1.0, 1.0, 0.0]]), np.stack([np.eye(DIM), 0.5 * np.eye(DIM)])),
)
PRIORS = pytest.mark.parametrize("prior", [GAUSSIAN, MIXTURE], ids=["Gaussian", "mixture"])


def rows(users: int = 4, each: int = 6, seed: int = 0) -> tuple[Observations, np.ndarray]:
    rng = np.random.default_rng(seed)
    n = users * each
    said = Observations.of(rng.standard_normal((n, DIM)), np.repeat(np.arange(users), each), users, rng.random(n))
    return said, rng.exponential(3.0, n)


def as_mixture(belief: Belief) -> Mixture:
    return Mixture(belief.weights, belief.parts)


def close(one: Belief, other: Belief, atol: float = 1e-5) -> None:
    for a, b in ((one.weights, other.weights), (one.parts.mean, other.parts.mean), (one.parts.cov, other.parts.cov)):
        assert_allclose(a, b, atol=atol)


def one_by_one(said: Observations, elapsed: np.ndarray, prior: Belief, half_life: float, user: int) -> Belief:
    """One person's filter written out: relax by the formulas, then a Laplace update by one row."""
    weights, mean, cov = prior.weights[None], prior.parts.mean[None], prior.parts.cov[None]
    for i in np.flatnonzero(said.user == user):
        rho = 2.0 ** (-elapsed[i] / half_life)
        weights = rho * weights + (1 - rho) * prior.weights
        mean = prior.parts.mean + rho * (mean - prior.parts.mean)
        cov = rho**2 * cov + (1 - rho**2) * prior.parts.cov
        row = Observations(said.v[i : i + 1], said.label[i : i + 1], said.weight[i : i + 1], np.array([0]), 1)
        learned = laplace_posterior(row, Mixture(weights, Gaussian(mean, cov)), 0.03)
        weights, mean, cov = learned.weights, learned.parts.mean, learned.parts.cov
    return Mixture(weights, Gaussian(mean, cov))


@PRIORS
def test_everybody_at_once_is_one_after_the_other(prior):
    said, elapsed = rows()
    together = follow(said, elapsed, prior, 0.03, Drift(half_life=5.0)).belief
    for user in range(said.n_users):
        close(together[np.array([user])], one_by_one(said, elapsed, prior, 5.0, user))


@PRIORS
def test_with_an_infinite_half_life_time_says_nothing(prior):
    said, elapsed = rows()
    close(follow(said, elapsed, prior, 0.03).belief, follow(said, 0 * elapsed, prior, 0.03).belief, atol=1e-12)


def test_rows_taken_one_by_one_end_near_all_at_once():
    said, elapsed = rows(each=4)
    exact = laplace_posterior(said, GAUSSIAN, 0.03)
    assert_allclose(follow(said, elapsed, GAUSSIAN, 0.03).belief.mean, exact.mean, atol=0.15)


@PRIORS
def test_after_ages_only_the_last_row_counts(prior):
    said, _ = rows()
    last = np.arange(5, len(said.label), 6)
    alone = laplace_posterior(said.take(last), prior, 0.03)
    close(follow(said, np.full(len(said.label), 1e9), prior, 0.03, Drift(half_life=1.0)).belief, alone)


@PRIORS
@given(first=st.floats(0, 1), second=st.floats(0, 1))
def test_relaxing_twice_is_relaxing_by_the_product(prior, first, second):
    known = as_mixture(laplace_posterior(rows()[0], prior))
    both = relax(relax(known, prior, np.full(4, first)), prior, np.full(4, second))
    close(both, relax(known, prior, np.full(4, first * second)), atol=1e-9)


@PRIORS
def test_a_clock_that_runs_backwards_or_not_at_all_forgets_nothing(prior):
    said, elapsed = rows()
    still = follow(said, 0 * elapsed, prior, 0.03, Drift(half_life=2.0)).belief
    close(follow(said, -elapsed, prior, 0.03, Drift(half_life=2.0)).belief, still, atol=1e-12)
    close(follow(said, np.nan * elapsed, prior, 0.03, Drift(half_life=2.0)).belief, still, atol=1e-12)


def test_each_row_is_foretold_by_what_was_known_before_it():
    said, elapsed = rows(users=1)
    followed = follow(said, elapsed, GAUSSIAN, 0.03, Drift(half_life=5.0))
    for i in range(len(said.label)):
        before = Observations(said.v[:i], said.label[:i], said.weight[:i], said.user[:i], 1)
        belief = follow(before, elapsed[:i], GAUSSIAN, 0.03, Drift(half_life=5.0)).belief
        now = relax(as_mixture(belief), GAUSSIAN, np.array([2.0 ** (-elapsed[i] / 5.0)]))
        p = predict(now, said.v[None, i : i + 1], 0.03)[0, 0]
        assert_allclose(
            followed.log_loss[i], -said.label[i] * np.log(p) - (1 - said.label[i]) * np.log1p(-p), atol=1e-6
        )
    assert_allclose(followed.prior_log_loss, row_loss(GAUSSIAN, said, 0.03))


def turning(users: int, before: int, after: int, seed: int = 0) -> Observations:
    """People with a strong taste that turns into its opposite."""
    rng = np.random.default_rng(seed)
    n = before + after
    v = rng.standard_normal((users * n, 1)) * 3
    liked = np.tile(np.r_[np.ones(before), -np.ones(after)], users)
    return Observations.of(v, np.repeat(np.arange(users), n), users, (v[:, 0] * liked > 0).astype(float))


ONE = Gaussian(np.zeros(1), np.eye(1) * 4)


def test_a_planted_reversal_is_dated_within_a_few_rows():
    since = follow(turning(40, 12, 10), np.ones(40 * 22), ONE, 0.03, Drift(threshold=REVERSAL)).since
    assert np.mean(np.abs(since - 12) <= 3) > 0.9


def test_steady_people_seldom_seem_to_turn():
    since = follow(turning(200, 20, 0, seed=1), np.ones(200 * 20), ONE, 0.03, Drift(threshold=REVERSAL)).since
    assert np.mean(since > 0) < 0.05


def test_after_a_reversal_the_belief_is_that_of_who_began_there():
    said = turning(20, 12, 8)
    drift = Drift(threshold=REVERSAL)
    followed = follow(said, np.ones(len(said.label)), ONE, 0.03, drift)
    for user in np.flatnonzero(followed.since):
        mine = np.flatnonzero(said.user == user)[followed.since[user] :]
        rest = Observations(said.v[mine], said.label[mine], said.weight[mine], np.zeros(len(mine), int), 1)
        assert_allclose(
            followed.belief.mean[user], follow(rest, np.ones(len(mine)), ONE, 0.03).belief.mean[0], atol=1e-5
        )


def test_a_reversal_is_believed_from_its_bayes_factor_on():
    """The largest sum of log P(began there) − log P(goes on), from separate filters, against where it is noticed."""
    said = turning(1, 10, 10)
    best = []
    for stop in range(1, 21):
        whole = follow(cut(said, 0, stop), np.ones(stop), ONE, 0.03).log_loss
        begun = [
            whole[start:].sum() - follow(cut(said, start, stop), np.ones(stop - start), ONE, 0.03).log_loss.sum()
            for start in range(max(1, stop - WINDOW), stop)
        ]
        best.append(max(begun, default=-np.inf))
    noticed = int(np.argmax(np.array(best) > REVERSAL)) + 1
    for stop in (noticed - 1, noticed):
        followed = follow(cut(said, 0, stop), np.ones(stop), ONE, 0.03, Drift(threshold=REVERSAL))
        assert bool(followed.since[0]) is (stop == noticed)


def cut(said: Observations, start: int, stop: int) -> Observations:
    part = slice(start, stop)
    return Observations(said.v[part], said.label[part], said.weight[part], said.user[part], said.n_users)


def test_a_half_life_is_learned_where_tastes_turn_and_none_where_they_stay():
    turned, steady = turning(30, 10, 10), turning(30, 20, 0)
    days = np.ones(len(turned.label))
    assert 1 <= learn_half_life(turned, days, ONE, 0.03) <= 64
    assert learn_half_life(steady, days, ONE, 0.03) == np.inf
    assert np.inf in HALF_LIVES


def test_nobody_and_nothing():
    nobody = Observations.of(np.empty((0, 1)), np.empty(0, int), 2)
    assert_array_equal(follow(nobody, np.empty(0), ONE, drift=Drift(3.0, 2.0)).belief.mean, np.zeros((2, 1)))
    assert elapsed_days([]).tolist() == []


def test_days_between_records():
    times = [datetime(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC), None]
    assert elapsed_days(times).tolist() == [0.0, -1.0, 0.0]


@pytest.mark.parametrize(("values", "name"), [((0.0, 1.0), "half_life"), ((1.0, -1.0), "threshold")])
def test_what_must_be_above_nothing(values, name):
    bad = values[0] if name == "half_life" else values[1]
    with pytest.raises(InputError) as caught:
        Drift(*values)
    assert str(caught.value) == f"{name} {bad!r} is not above 0; give a positive number, or infinity for none"


@PRIORS
def test_what_is_taken_later_does_not_change_a_belief_that_was_given_out(prior):
    said, _ = rows(users=4, each=1)
    state = Filter(prior, 4, 0.03, Drift(half_life=5.0))
    before = state.current()
    first = before.parts.mean.copy()
    state.take(np.arange(4), 0, said, np.ones(4))
    assert_array_equal(before.parts.mean, first)
    assert not np.array_equal(state.current().parts.mean, first)
