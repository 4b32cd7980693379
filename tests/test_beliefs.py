"""Beliefs and priors as mixtures: closed forms, brute-force integrals, and populations that are planted."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose
from scipy.special import expit
from scipy.stats import multivariate_normal, norm
from tests.support import planted

from palate.errors import InputError
from palate.rewards.beliefs import Belief, Gaussian, Mixture, where
from palate.rewards.calibration import Calibration, cross_fit
from palate.rewards.factorization import fix_gauge
from palate.rewards.population import fit_prior
from palate.rewards.posterior import Observations, laplace_posterior, predict
from palate.rewards.queries import STRATEGIES, expected_information


def random_gaussian(rng: np.random.Generator, *shape: int, dim: int = 3) -> Gaussian:
    root = rng.standard_normal((*shape, dim, dim))
    return Gaussian(rng.standard_normal((*shape, dim)), root @ np.swapaxes(root, -1, -2) + 0.3 * np.eye(dim))


def random_mixture(seed: int = 0, *shape: int, parts: int = 3, dim: int = 3) -> Mixture:
    rng = np.random.default_rng(seed)
    return Mixture(rng.dirichlet(np.ones(parts), shape or None), random_gaussian(rng, *shape, parts, dim=dim))


def grid(belief: Belief) -> tuple[np.ndarray, np.ndarray]:
    """Points of a fine grid in one dimension, and the belief's mass at each."""
    at = np.linspace(-12, 12, 24_001)
    spread = np.sqrt(belief.parts.cov[:, 0, 0])
    density = norm.pdf(at[:, None], belief.parts.mean[:, 0], spread) @ belief.weights
    return at, density / density.sum()


def test_moments_of_a_mixture_are_those_of_its_density():
    belief = random_mixture(dim=1)
    at, mass = grid(belief)
    assert_allclose(belief.mean[0], mass @ at, atol=1e-6)
    assert_allclose(belief.cov[0, 0], mass @ (at - mass @ at) ** 2, atol=1e-6)
    mean, variance = belief.of(np.array([[2.0], [-1.0]]))
    assert_allclose(mean, [2 * belief.mean[0], -belief.mean[0]])
    assert_allclose(variance, [4 * belief.cov[0, 0], belief.cov[0, 0]])


def test_a_mixture_drawn_has_its_moments():
    belief = random_mixture(2, dim=2)
    many = Mixture(
        np.tile(belief.weights, (40_000, 1)), Gaussian(*(np.repeat(a[None], 40_000, 0) for a in moments(belief)))
    )
    drawn = many.draw(np.random.default_rng(0))
    assert_allclose(drawn.mean(axis=0), belief.mean, atol=0.05)
    assert_allclose(np.cov(drawn.T), belief.cov, atol=0.15)


def moments(belief: Mixture) -> tuple[np.ndarray, np.ndarray]:
    return belief.parts.mean, belief.parts.cov


@pytest.mark.parametrize(
    "belief", [random_gaussian(np.random.default_rng(1)), random_mixture(1)], ids=["one", "several"]
)
def test_maps_of_a_belief_are_maps_of_its_moments(belief):
    a, shift = np.random.default_rng(2).standard_normal((2, 3)), np.array([1.0, -2.0])
    mapped = belief.affine(a, shift)
    assert_allclose(mapped.mean, a @ belief.mean + shift)
    assert_allclose(mapped.cov, a @ belief.cov @ a.T)
    assert_allclose(belief.leading(2).cov, belief.cov[:2, :2])
    wider = belief.with_column(3.0)
    assert_allclose(wider.leading(3).cov, belief.cov)
    assert_allclose(wider.cov[3], [0, 0, 0, 9.0])
    scaled = Calibration(mean_scale=2.0, spread_scale=0.5).apply(belief)
    assert_allclose(scaled.mean, 2 * belief.mean)
    assert_allclose(scaled.cov, 0.25 * belief.cov)


def test_one_of_two_beliefs_each():
    one, other, mask = random_mixture(0, 4), random_mixture(1, 4), np.array([True, False, True, False])
    picked = where(mask, one, other)
    for user in range(4):
        assert_allclose(picked[user].mean, (one if mask[user] else other)[user].mean)


def test_weights_that_do_not_fit_are_refused():
    with pytest.raises(InputError) as caught:
        Mixture(np.ones(2) / 2, Gaussian(np.zeros((3, 1)), np.ones((3, 1, 1))))
    assert str(caught.value) == "Weights of shape (2,) do not fit means of shape (3, 1); give one weight per part"


@pytest.mark.parametrize("lapse", [0.0, 0.05])
def test_information_is_that_of_a_brute_force_integral(lapse):
    belief = random_mixture(3, dim=1)
    at, mass = grid(belief)
    for v in (0.3, 1.0, -2.0):
        p = lapse + (1 - 2 * lapse) * expit(at * v)
        entropy = [-(q * np.log(q) + (1 - q) * np.log1p(-q)) for q in (mass @ p, np.clip(p, 1e-300, 1 - 1e-16))]
        assert_allclose(expected_information(belief, np.array([[v]]), lapse), entropy[0] - mass @ entropy[1], atol=2e-3)
        assert_allclose(predict(belief, np.array([[v]]), lapse), mass @ p, atol=0.02)  # the probit correction's error


@pytest.mark.parametrize("lapse", [0.0, 0.05])
def test_parts_weigh_by_their_evidence(lapse):
    prior = Mixture(np.array([0.4, 0.6]), Gaussian(np.array([[1.5], [-1.0]]), np.array([[[0.5]], [[1.0]]])))
    v, label = np.array([[1.0], [0.7], [-0.4]]), np.array([1.0, 1.0, 0.0])
    found = laplace_posterior(Observations.of(v, np.zeros(3, int), 1, label), prior, lapse)
    at = np.linspace(-12, 12, 24_001)
    p = lapse + (1 - 2 * lapse) * expit(at[:, None] * v[:, 0])
    likelihood = np.prod(np.where(label, p, 1 - p), axis=1)
    evidence = [
        np.sum(likelihood * norm.pdf(at, mean[0], np.sqrt(cov[0, 0])))
        for mean, cov in zip(prior.parts.mean, prior.parts.cov, strict=True)
    ]
    weights = prior.weights * evidence
    assert_allclose(found.weights[0], weights / weights.sum(), atol=0.02)  # Laplace's own error


def test_a_mixture_of_one_is_the_gaussian():
    alone = random_gaussian(np.random.default_rng(4))
    said = Observations.of(np.random.default_rng(5).standard_normal((20, 3)), np.repeat(np.arange(4), 5), 4)
    one, mixed = (
        laplace_posterior(said, prior, 0.03)
        for prior in (alone, Mixture(np.ones(1), Gaussian(*(a[None] for a in (alone.mean, alone.cov)))))
    )
    assert_allclose(mixed.mean, one.mean, atol=1e-9)
    assert_allclose(mixed.cov, one.cov, atol=1e-9)
    v = np.random.default_rng(6).standard_normal((4, 7, 3))
    assert_allclose(predict(mixed, v), predict(one, v), atol=1e-9)


def test_everybody_may_have_a_prior_of_their_own():
    priors = random_gaussian(np.random.default_rng(7), 4)
    said = Observations.of(np.random.default_rng(8).standard_normal((20, 3)), np.repeat(np.arange(4), 5), 4)
    together = laplace_posterior(said, priors, 0.03)
    for user in range(4):
        mine = said.user == user
        alone = Observations(said.v[mine], said.label[mine], said.weight[mine], np.zeros(5, int), 1)
        assert_allclose(together.mean[user], laplace_posterior(alone, priors[user], 0.03).mean[0], atol=1e-6)


@given(
    v=arrays(np.float64, (6, 2), elements=st.floats(-1e3, 1e3)),
    label=arrays(np.float64, 6, elements=st.floats(0, 1)),
)
def test_nothing_extreme_makes_a_mixture_infinite(v, label):
    belief = laplace_posterior(Observations.of(v, np.arange(6) // 2, 3, label), random_mixture(dim=2), 0.03)
    assert np.isfinite(belief.mean).all() and np.isfinite(belief.cov).all()
    assert_allclose(belief.weights.sum(axis=1), 1.0)


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategies_take_mixtures(name):
    belief, v = random_mixture(9, 5), np.random.default_rng(10).standard_normal((5, 8, 3))
    together = STRATEGIES[name](belief, v, 0.03, np.random.default_rng(0))
    assert together.shape == (5, 8) and np.isfinite(together).all()
    if name not in ("random", "thompson"):
        for user in range(5):
            assert_allclose(STRATEGIES[name](belief[user], v[user], 0.03, np.random.default_rng(0)), together[user])


def two_kinds(users: int = 80, each: int = 30, seed: int = 0) -> Observations:
    """People who like the first thing all alike, and are strongly for or strongly against the second."""
    rng = np.random.default_rng(seed)
    side = np.where(np.arange(users) % 2, 3.0, -3.0)
    tastes = np.column_stack([np.ones(users), side]) + 0.2 * rng.standard_normal((users, 2))
    v, user = rng.standard_normal((users * each, 2)), np.repeat(np.arange(users), each)
    return Observations.of(v, user, users, (rng.random(len(v)) < expit(np.sum(v * tastes[user], axis=1))).astype(float))


def held_out_loss(prior: Belief, said: Observations, few: int = 3, each: int = 30) -> float:
    first = np.arange(len(said.user)) % each < few
    asked = Observations(said.v[first], said.label[first], said.weight[first], said.user[first], said.n_users)
    belief = laplace_posterior(asked, prior)[said.user[~first]]
    p = predict(belief, said.v[~first][:, None, :])[:, 0]
    return float(-np.mean(np.where(said.label[~first] > 0.5, np.log(p), np.log1p(-p))))


def test_two_kinds_of_people_are_found_and_foretold_better():
    said = two_kinds()
    one, two = fit_prior(said, 0.0), fit_prior(said, 0.0, 2)
    assert isinstance(two, Mixture)
    assert_allclose(np.sort(two.parts.mean[:, 1]), [-3, 3], atol=0.7)
    assert_allclose(two.weights, [0.5, 0.5], atol=0.1)
    fresh = two_kinds(seed=1)
    assert held_out_loss(two, fresh) < held_out_loss(one, fresh) - 0.01


def test_there_are_no_more_parts_than_pairs_of_people():
    said = two_kinds(users=3)
    assert isinstance(fit_prior(said, 0.0, 4), Gaussian)
    five = fit_prior(two_kinds(users=5), 0.0, 4)
    assert isinstance(five, Mixture) and len(five.weights) == 2


def test_the_order_of_people_does_not_matter_to_a_mixture():
    said = two_kinds(users=20)
    turned = Observations.of(said.v, said.n_users - 1 - said.user, said.n_users, said.label)
    one, other = fit_prior(said, 0.0, 2), fit_prior(turned, 0.0, 2)
    assert_allclose(one.mean, other.mean, atol=0.05)
    assert_allclose(one.cov, other.cov, rtol=0.1, atol=0.05)


def test_one_cloud_stays_one_part():
    truth = planted(users=48, each=30, rank=1, prompts=24)
    assert cross_fit(truth.z, replace(truth.choices, group=np.arange(48) // 4), 2).parts == 1


def test_the_gauge_of_a_mixture_changes_no_belief():
    truth = planted(users=20, each=20, rank=2)
    weights, prior = np.random.default_rng(1).standard_normal((3, 12)), random_mixture(2)
    turned, unit = fix_gauge(weights, prior, truth.choices, truth.z, 0.03)
    assert isinstance(unit, Mixture)
    assert_allclose(unit.cov, np.eye(3), atol=1e-9)
    v = np.random.default_rng(3).standard_normal((6, 12))
    assert_allclose(predict(unit, v @ turned.T), predict(prior, v @ weights.T), atol=1e-9)
    point = unit.parts.mean[0]
    assert multivariate_normal.pdf(point, unit.mean, unit.cov) > 0
