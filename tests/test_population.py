"""The prior of a population: planted clusters are found, one cloud is not cut to pieces, and nothing is too few."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import linear_sum_assignment

from palate.rewards.beliefs import Belief, Floats, Gaussian, Ints, Mixture
from palate.rewards.population import fit_prior
from palate.rewards.posterior import Observations, laplace_posterior, predict

CENTRES = np.array([[1.0, 3.0], [1.0, -3.0]])


def clusters(
    users: int = 120, each: int = 30, share: float = 0.7, seed: int = 0, centres: Floats = CENTRES
) -> tuple[Observations, Ints]:
    """People around one centre or the other, and which; each answers as the model says."""
    rng = np.random.default_rng(seed)
    which = (rng.random(users) > share).astype(np.int64)
    tastes = centres[which] + 0.4 * rng.standard_normal((users, 2))
    user = np.repeat(np.arange(users), each)
    v = rng.standard_normal((users * each, 2))
    logit = np.sum(v * tastes[user], axis=1)
    return Observations.of(v, user, users, (rng.random(len(v)) < 1 / (1 + np.exp(-logit))).astype(float)), which


def foretold(prior: Belief, said: Observations, answers: int) -> float:
    """Mean nats of what people say after their first answers."""
    place = np.arange(len(said.user)) - np.searchsorted(said.user, said.user)
    first, after = (
        Observations.of(said.v[rows], said.user[rows], said.n_users, said.label[rows])
        for rows in (place < answers, place >= answers)
    )
    belief = laplace_posterior(first, prior)[after.user]
    p = predict(belief, after.v[:, None, :])[:, 0]
    return float(-np.mean(after.label * np.log(p) + (1 - after.label) * np.log1p(-p)))


def test_two_planted_clusters_are_found():
    said, which = clusters(each=100)
    prior = fit_prior(said, 0.0, parts=2)
    assert isinstance(prior, Mixture)
    distance = np.linalg.norm(prior.parts.mean[:, None] - CENTRES, axis=-1)
    part, centre = linear_sum_assignment(distance)
    # Within a tenth of how far they are apart: imagined people and modes of few answers both draw them together.
    assert (distance[part, centre] < 0.6).all()
    assert_allclose(np.diagonal(prior.parts.cov, axis1=1, axis2=2), 0.16, atol=0.05)
    order = part[np.argsort(centre)]
    assert_allclose(prior.weights[order], [np.mean(which == 0), np.mean(which == 1)], atol=0.03)
    # People are told apart by what they said.
    found = laplace_posterior(said, prior).weights[:, order].argmax(axis=1)
    assert np.mean(found == which) > 0.98


@pytest.mark.parametrize("answers", [0, 3, 10])
def test_clusters_foretell_new_people_better_than_one_cloud(answers):
    said, _ = clusters()
    new, _ = clusters(seed=1)
    one, two = fit_prior(said, 0.0), fit_prior(said, 0.0, parts=2)
    # Before any answer both foretell the mean taste alike.
    assert foretold(two, new, answers) < foretold(one, new, answers) + 0.005 * (answers == 0)


def test_parts_of_one_cloud_foretell_no_worse_than_it():
    same = np.ones((2, 2))
    said, new = clusters(centres=same)[0], clusters(centres=same, seed=1)[0]
    assert foretold(fit_prior(said, 0.0, parts=2), new, 5) < foretold(fit_prior(said, 0.0), new, 5) + 0.01


def test_one_part_is_a_gaussian_and_parts_are_at_most_half_the_people():
    said, _ = clusters(users=7, each=4)
    assert isinstance(fit_prior(said, 0.05), Gaussian)
    assert fit_prior(said, 0.05, parts=5).weights.shape == (3,)
    alone, _ = clusters(users=3, each=4)
    one, capped = fit_prior(alone, 0.05), fit_prior(alone, 0.05, parts=2)
    assert isinstance(capped, Gaussian)
    assert_array_equal(capped.cov, one.cov)


def test_a_fit_can_be_repeated():
    said, _ = clusters(users=30, each=10)
    one, again = fit_prior(said, 0.05, parts=3), fit_prior(said, 0.05, parts=3)
    assert_array_equal(one.weights, again.weights)
    assert_array_equal(one.parts.mean, again.parts.mean)


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("rows", [0, 1], ids=["silent", "all alike"])
def test_people_all_alike_have_parts_all_alike(rows, parts):
    said = Observations.of(np.ones((8 * rows, 2)), np.arange(8 * rows), 8)
    prior = fit_prior(said, 0.05, parts)
    assert_allclose(prior.weights, 1 / parts)
    assert_allclose(prior.parts.mean, np.broadcast_to(prior.mean, (parts, 2)), atol=1e-9)


@settings(max_examples=25)
@given(
    v=arrays(np.float64, (12, 2), elements=st.floats(-1e3, 1e3)),
    label=arrays(np.float64, 12, elements=st.floats(0, 1)),
    user=arrays(np.int64, 12, elements=st.integers(0, 8)),
    parts=st.integers(1, 6),
)
def test_nothing_extreme_makes_it_improper(v, label, user, parts):
    prior = fit_prior(Observations.of(v, user, 9, label), 0.05, parts, max_rounds=8)
    assert_allclose(prior.weights.sum(), 1.0)
    assert (prior.weights > 0).all()
    assert np.isfinite(prior.parts.mean).all()
    assert (np.linalg.eigvalsh(prior.parts.cov) > 0).all()
