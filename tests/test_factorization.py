"""Base rewards: the optimum of their objective, planted models found again, and a gauge that changes nothing."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize
from scipy.sparse import csr_array
from tests.support import Planted, planted

from palate.rewards.evaluation import auc_by_user
from palate.rewards.factorization import Choices, Penalties, fit_weights, fix_gauge, varimax
from palate.rewards.population import fit_prior
from palate.rewards.posterior import (
    Floats,
    Gaussian,
    Mixture,
    Observations,
    laplace_posterior,
    negative_log_likelihood,
    posterior_mode,
    predict,
)

PENALTIES = Penalties(individual=3.0, population=5.0)


def differences(truth: Planted) -> Floats:
    return truth.z[truth.choices.chosen] - truth.z[truth.choices.rejected]


@pytest.mark.parametrize("lapse", [0.0, 0.05])
def test_the_fit_is_a_minimum_of_the_joint_objective(lapse):
    truth = planted(users=6, each=30, rank=1, features=4)
    v, user = differences(truth), truth.choices.user
    weights = fit_weights(truth.z, truth.choices, 2, lapse, PENALTIES)

    def objective(flat: Floats) -> float:
        """Written down anew, over W and everybody's second weight; the population's counts once for all."""
        w, own = flat[:8].reshape(2, 4), flat[8:]
        logit = v @ w[0] + own[user] * (v @ w[1])
        p = lapse + (1 - 2 * lapse) / (1 + np.exp(-logit))
        return float(-np.log(p).sum() + 0.5 * (5 * w[0] @ w[0] + 3 * w[1] @ w[1] + own @ own))

    def best_tastes(w: Floats) -> Floats:
        found = minimize(lambda own: objective(np.r_[w.ravel(), own]), np.zeros(6), method="BFGS")
        return np.asarray(found.x)

    here = np.r_[weights.ravel(), best_tastes(weights)]
    better = minimize(objective, here, method="BFGS")
    assert objective(here) - better.fun < 1e-3
    rng = np.random.default_rng(0)
    for _ in range(5):
        aside = weights + 0.05 * rng.standard_normal(weights.shape)
        assert objective(np.r_[aside.ravel(), best_tastes(aside)]) > objective(here) - 1e-3


@pytest.mark.parametrize("lapse", [0.0, 0.05])
def test_rank_one_is_bradley_and_terry(lapse):
    truth = planted(users=5, each=60, rank=1)
    v = differences(truth)

    def objective(w: Floats) -> float:
        return float(-np.log(lapse + (1 - 2 * lapse) / (1 + np.exp(-v @ w))).sum() + 2.5 * w @ w)

    weights = fit_weights(truth.z, truth.choices, 1, lapse, PENALTIES)
    assert weights.shape == (1, 12)
    found = minimize(objective, np.zeros(12), method="BFGS", options={"gtol": 1e-6})
    assert_allclose(weights[0], found.x, atol=0.01 * float(np.linalg.norm(found.x)))


def held_out_auc(truth: Planted, rank: int) -> float:
    """AUC of everybody on a third of their choices, after the other two."""
    c = truth.choices
    test = np.arange(len(c.user)) % 3 == 0
    train = c.where(~test)
    phi = truth.z @ fit_weights(truth.z, train, rank, 0.0).T
    said = train.observations(phi)
    people = laplace_posterior(said, fit_prior(said, 0.0))
    v = phi[c.chosen[test]] - phi[c.rejected[test]]
    return float(auc_by_user(np.sum(v * people.mean[c.user[test]], axis=1), c.user[test], c.n_users).mean())


@pytest.mark.parametrize("how", [{"shared": True}, {"prompts": 1_000}], ids=["shared pairs", "none shared"])
def test_a_planted_model_beats_one_reward_for_all(how):
    truth = planted(users=60, each=60, rank=2, **how)
    own, one_for_all = held_out_auc(truth, 3), held_out_auc(truth, 1)
    assert own > 0.85
    assert own > one_for_all + 0.1


def test_the_fit_is_the_same_bit_for_bit():
    truth = planted(users=10, each=20, rank=2)
    again = planted(users=10, each=20, rank=2)
    one, two = (fit_weights(t.z, t.choices, 3, 0.05) for t in (truth, again))
    assert_array_equal(one, two)


def fit_of_comparisons_alone(truth: Planted, rank: int, lapse: float) -> Floats:
    """The fit as it stood before there were ratings in it, written out: the same numbers in the same order."""
    c, z = truth.choices, truth.z
    difference = z[c.chosen] - z[c.rejected]
    count = np.bincount(c.user).astype(float)
    covariance = difference.T @ difference / len(difference)
    level = np.trace(covariance) / len(covariance)
    values, vectors = np.linalg.eigh(0.9 * covariance + 0.1 * level * np.eye(len(covariance)))
    whiten = (vectors / np.sqrt(values)) @ vectors.T
    total = csr_array((np.ones(len(c.user)), (c.user, np.arange(len(c.user))))) @ difference
    shared = (np.ones(len(c.user)) @ difference) / len(c.user)
    views = (total - count[:, None] * shared) @ whiten / np.sqrt(count)[:, None]
    directions = np.linalg.eigh(views.T @ views)[1].T[::-1][: rank - 1]
    sign = np.where(directions[np.arange(rank - 1), np.abs(directions).argmax(axis=1)] < 0, -1.0, 1.0)
    start = (sign[:, None] * directions) @ whiten
    start /= np.std(difference @ start.T, axis=0)[:, None]
    population = Gaussian(np.eye(rank)[0], np.diag(np.r_[1e-6, np.ones(rank - 1)]))
    last: Floats | None = None

    def objective(flat: Floats) -> tuple[float, Floats]:
        nonlocal last
        w = flat.reshape(rank, -1)
        phi = z @ w.T
        said = Observations.of(phi[c.chosen] - phi[c.rejected], c.user, c.n_users)
        last = lam = posterior_mode(said, population, lapse, start=last, tolerance=1e-5)
        loss, slope, _ = negative_log_likelihood(np.sum(said.v * lam[c.user], axis=1), np.ones(len(c.user)), lapse)
        value = loss.sum() + 0.5 * np.sum(10.0 * w**2) + 0.5 * np.sum(lam[:, 1:] ** 2)
        pull = slope[:, None] * lam[c.user]
        by_answer = [np.bincount(c.chosen, p, len(z)) - np.bincount(c.rejected, p, len(z)) for p in pull.T]
        return float(value), (np.stack(by_answer) @ z + 10.0 * w).ravel()

    options = {"maxiter": 100, "ftol": 1e-6}
    found = minimize(
        objective, np.r_[np.zeros(z.shape[1]), start.ravel()], jac=True, method="L-BFGS-B", options=options
    )
    return np.asarray(found.x.reshape(rank, -1))


@pytest.mark.parametrize("lapse", [0.0, 0.05])
def test_ratings_in_the_fit_change_no_bit_of_a_fit_without_them(lapse):
    truth = planted(users=15, each=30, rank=2, prompts=500)
    assert_array_equal(fit_weights(truth.z, truth.choices, 3, lapse), fit_of_comparisons_alone(truth, 3, lapse))


def test_the_order_of_comparisons_hardly_matters():
    truth = planted(users=10, each=30, rank=2)
    c, mixed = truth.choices, np.random.default_rng(0).permutation(300)
    other = Choices(c.chosen[mixed], c.rejected[mixed], c.user[mixed], c.strength[mixed], c.prompt[mixed], c.group)
    one, two = (truth.z @ fit_weights(truth.z, choices, 3, 0.0).T for choices in (c, other))
    prior = Gaussian(np.eye(3)[0], np.eye(3))
    rewards = [phi @ laplace_posterior(c.observations(phi), prior).mean.T for phi in (one, two)]
    assert_allclose(rewards[0], rewards[1], atol=0.05)


@pytest.mark.parametrize("rank", [2, 12])
def test_people_who_all_agree_share_one_reward(rank):
    z = np.random.default_rng(0).standard_normal((4, 5))
    same = np.array([0, 2, 0, 2])
    choices = Choices(same, same + 1, np.array([0, 0, 1, 1]), np.ones(4), np.array([0, 1, 0, 1]), np.arange(2))
    weights = fit_weights(z, choices, rank, 0.05)
    assert np.isfinite(weights).all()
    assert ((z[same] - z[same + 1]) @ weights[0] > 0).all()


def test_where_numbers_people_anew_and_keeps_their_groups():
    choices = Choices(
        np.arange(4), np.arange(4) + 1, np.array([2, 0, 2, 1]), np.full(4, 0.9), np.arange(4), np.array([7, 8, 9])
    )
    some = choices.where(np.array([True, False, True, True]))
    assert some.user.tolist() == [1, 1, 0]
    assert some.group.tolist() == [8, 9]
    assert (some.chosen.tolist(), some.rejected.tolist(), some.n_users) == ([0, 2, 3], [1, 3, 4], 2)


@pytest.mark.parametrize("lapse", [0.0, 0.05])
def test_the_gauge_changes_no_reward_and_no_belief(lapse):
    truth = planted(users=20, each=20, rank=2)
    weights = np.random.default_rng(1).standard_normal((3, 12))
    phi = truth.z @ weights.T
    root = np.random.default_rng(2).standard_normal((3, 3))
    prior = Gaussian(np.array([1.0, -0.5, 0.2]), root @ root.T + 0.2 * np.eye(3))
    turned, unit = fix_gauge(weights, prior, truth.choices, truth.z, lapse)
    phi_turned = truth.z @ turned.T
    assert (unit.mean >= 0).all()
    assert_allclose(unit.cov, np.eye(3))
    assert_allclose(phi_turned @ unit.mean, phi @ prior.mean, atol=1e-9)
    assert_allclose(unit.of(phi_turned)[1], prior.of(phi)[1], atol=1e-9)
    before = laplace_posterior(truth.choices.observations(phi), prior, lapse)
    after = laplace_posterior(truth.choices.observations(phi_turned), unit, lapse)
    v = np.random.default_rng(3).standard_normal((20, 6, 12))
    assert_allclose(predict(after, v @ turned.T), predict(before, v @ weights.T), atol=1e-7)


def test_the_gauge_of_a_mixture_changes_no_prediction_and_its_whole_has_unit_spread():
    truth = planted(users=20, each=15, rank=2, features=12)
    weights = fit_weights(truth.z, truth.choices, 3, 0.05, PENALTIES)
    phi = truth.z @ weights.T
    root = np.random.default_rng(2).standard_normal((2, 3, 3))
    parts = Gaussian(np.array([[1.0, -0.5, 0.2], [0.5, 2.0, -1.0]]), root @ root.swapaxes(1, 2) + 0.2 * np.eye(3))
    prior = Mixture(np.array([0.3, 0.7]), parts)
    turned, unit = fix_gauge(weights, prior, truth.choices, truth.z, 0.05)
    phi_turned = truth.z @ turned.T
    assert_allclose(unit.cov, np.eye(3), atol=1e-9)
    assert (unit.mean >= 0).all()
    assert_array_equal(unit.weights, prior.weights)
    # Part by part: λ · φ is what it was.
    for k in range(2):
        for was, now in zip(prior.parts[k].of(phi), unit.parts[k].of(phi_turned), strict=True):
            assert_allclose(now, was, atol=1e-9)
    before = laplace_posterior(truth.choices.observations(phi), prior, 0.05)
    after = laplace_posterior(truth.choices.observations(phi_turned), unit, 0.05)
    assert_allclose(after.weights, before.weights, atol=1e-7)
    v = np.random.default_rng(3).standard_normal((20, 6, 12))
    assert_allclose(predict(after, v @ turned.T), predict(before, v @ weights.T), atol=1e-6)


def test_varimax_finds_a_planted_rotation():
    rng = np.random.default_rng(0)
    simple = rng.standard_normal((300, 4)) * (rng.integers(4, size=300)[:, None] == np.arange(4))
    rotation = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    turn = varimax(simple @ rotation)
    assert_allclose(turn @ turn.T, np.eye(4), atol=1e-9)
    # Up to order and sign of the axes.
    assert_allclose(np.sort(np.abs(rotation @ turn), axis=0)[-1], 1.0, atol=0.01)


def test_varimax_does_not_lower_its_criterion():
    loadings = np.random.default_rng(0).standard_normal((50, 3)) @ np.diag([3.0, 2.0, 1.0])
    turned = loadings @ varimax(loadings)
    assert np.var(turned**2, axis=0).sum() >= np.var(loadings**2, axis=0).sum()
    for angle in np.linspace(0, np.pi / 2, 50):
        for i, j in ((0, 1), (0, 2), (1, 2)):
            aside = np.eye(3)
            aside[np.ix_([i, j], [i, j])] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
            assert np.var((turned @ aside) ** 2, axis=0).sum() <= np.var(turned**2, axis=0).sum() * (1 + 1e-6)


def test_varimax_of_nothing_is_a_rotation():
    turn = varimax(np.zeros((5, 3)))
    assert_allclose(turn @ turn.T, np.eye(3), atol=1e-9)
