"""Gaussians and mixtures of them, against linear algebra, draws, and moments written down anew."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import multivariate_normal, norm

from palate.errors import InputError
from palate.rewards.beliefs import Belief, Floats, Gaussian, Mixture


def gaussian(*shape: int, seed: int = 0) -> Gaussian:
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((*shape, shape[-1]))
    return Gaussian(rng.standard_normal(shape), root @ root.swapaxes(-1, -2) + 0.1 * np.eye(shape[-1]))


def mixture(*shape: int, seed: int = 0) -> Mixture:
    """Of (..., K, D)."""
    weights = np.random.default_rng(seed).dirichlet(np.ones(shape[-2]), shape[:-2])
    return Mixture(weights, gaussian(*shape, seed=seed))


BELIEFS = pytest.mark.parametrize(
    "belief",
    [gaussian(3), gaussian(4, 3), mixture(2, 3), mixture(4, 5, 3), mixture(4, 1, 3)],
    ids=["one", "people", "mixture", "mixtures", "of one part"],
)


def direct(belief: Belief) -> tuple[Floats, Floats]:
    """Mean and covariance of the whole as E[λ] and E[λλᵀ] − E[λ]E[λ]ᵀ."""
    w, m, s = belief.weights, belief.parts.mean, belief.parts.cov
    mean = np.einsum("...k,...kd->...d", w, m)
    square = np.einsum("...k,...kde->...de", w, s + np.einsum("...d,...e->...de", m, m))
    return mean, square - np.einsum("...d,...e->...de", mean, mean)


@BELIEFS
def test_moments_are_those_of_the_parts(belief):
    mean, cov = direct(belief)
    assert_allclose(belief.weights.sum(axis=-1), 1.0)
    assert_allclose(belief.mean, mean, atol=1e-12)
    assert_allclose(belief.cov, cov, atol=1e-12)


def test_moments_are_those_of_the_density():
    belief = Mixture(np.array([0.2, 0.8]), Gaussian(np.array([[-2.0], [1.0]]), np.array([[[0.25]], [[4.0]]])))
    grid = np.linspace(-20, 20, 200_001)
    density = 0.2 * norm(-2, 0.5).pdf(grid) + 0.8 * norm(1, 2).pdf(grid)
    density /= density.sum()
    assert_allclose(belief.mean, density @ grid, atol=1e-9)
    assert_allclose(belief.cov, [[density @ (grid - density @ grid) ** 2]], atol=1e-9)


@BELIEFS
def test_a_direction_s_moments_are_those_of_the_whole(belief):
    v = np.random.default_rng(1).standard_normal((*belief.mean.shape[:-1], 6, 3))
    mean, variance = belief.of(v)
    whole_mean, whole_cov = direct(belief)
    assert_allclose(mean, np.einsum("...md,...d->...m", v, whole_mean), atol=1e-12)
    assert_allclose(variance, np.einsum("...md,...de,...me->...m", v, whole_cov, v), atol=1e-12)


@BELIEFS
def test_an_affine_map_is_one_of_every_part(belief):
    rng = np.random.default_rng(2)
    a, shift = rng.standard_normal((2, 3)), rng.standard_normal(2)
    moved = belief.affine(a, shift)
    mean, cov = direct(belief)
    assert type(moved) is type(belief)
    assert_allclose(moved.mean, np.einsum("ij,...j->...i", a, mean) + shift, atol=1e-12)
    assert_allclose(moved.cov, np.einsum("ij,...jk,lk->...il", a, cov, a), atol=1e-12)
    assert_allclose(moved.parts.mean, np.einsum("ij,...j->...i", a, belief.parts.mean) + shift, atol=1e-12)
    assert_array_equal(moved.weights, belief.weights)


@BELIEFS
def test_affine_maps_compose_and_undo(belief):
    rng = np.random.default_rng(3)
    a, shift = rng.standard_normal((3, 3)), rng.standard_normal(3)
    back = belief.affine(a, shift).affine(np.linalg.inv(a), -np.linalg.solve(a, shift))
    assert_allclose(back.parts.mean, belief.parts.mean, atol=1e-9)
    assert_allclose(back.parts.cov, belief.parts.cov, atol=1e-9)


@BELIEFS
def test_the_leading_weights_are_a_projection(belief):
    first = np.eye(3)[:2]
    for part, projected in ((belief.leading(2), belief.affine(first, np.zeros(2))),):
        assert_allclose(part.mean, projected.mean, atol=1e-12)
        assert_allclose(part.cov, projected.cov, atol=1e-12)
        assert_array_equal(part.weights, belief.weights)


@BELIEFS
def test_a_column_more_is_independent_and_can_be_taken_off(belief):
    wider = belief.with_column(1.5)
    assert_allclose(wider.cov[..., 3, :], np.broadcast_to([0, 0, 0, 2.25], wider.mean.shape), atol=1e-12)
    assert_allclose(wider.parts.cov[..., :, 3], np.broadcast_to([0, 0, 0, 2.25], wider.parts.mean.shape))
    assert_array_equal(wider.parts.mean[..., 3], 0.0)
    assert_array_equal(wider.leading(3).parts.mean, belief.parts.mean)
    assert_array_equal(wider.leading(3).parts.cov, belief.parts.cov)
    assert_array_equal(wider.weights, belief.weights)


@pytest.mark.parametrize("belief", [gaussian(4, 3), mixture(4, 5, 3)], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("index", [2, slice(1, 3), np.array([3, 0, 3])], ids=["one", "slice", "numbers"])
def test_some_of_a_batch_are_those(belief, index):
    some = belief[index]
    assert type(some) is type(belief)
    assert_array_equal(some.weights, belief.weights[index])
    assert_array_equal(some.parts.mean, belief.parts.mean[index])
    assert_array_equal(some.parts.cov, belief.parts.cov[index])
    assert_allclose(some.mean, belief.mean[index])
    assert_allclose(some.cov, belief.cov[index])


def test_draws_have_the_density_of_the_mixture():
    one = Mixture(np.array([0.3, 0.0, 0.7]), gaussian(3, 2, seed=4))
    many = Mixture(np.tile(one.weights, (20_000, 1)), one.parts[np.tile(np.arange(3), (20_000, 1))])
    drawn = many.draw(np.random.default_rng(0))
    assert_allclose(drawn.mean(axis=0), one.mean, atol=0.05)
    assert_allclose(np.cov(drawn.T), one.cov, atol=0.1)
    # More than moments: the share of draws in a quadrant.
    share = sum(
        w * multivariate_normal(m, s).cdf(np.zeros(2))
        for w, m, s in zip(one.weights, one.parts.mean, one.parts.cov, strict=True)
    )
    assert_allclose(np.mean((drawn < 0).all(axis=1)), share, atol=0.015)
    assert one.draw(np.random.default_rng(0)).shape == (2,)


def test_a_mixture_of_one_part_draws_as_the_gaussian_does():
    plain = gaussian(50_000, 1, seed=5)
    both = [belief.draw(np.random.default_rng(0)) for belief in (plain, Mixture(plain.weights, plain.parts))]
    one, other = ((drawn - plain.mean)[:, 0] / np.sqrt(plain.cov[:, 0, 0]) for drawn in both)
    assert_allclose([one.mean(), one.std(), other.mean(), other.std()], [0, 1, 0, 1], atol=0.02)


@given(
    raw=arrays(np.float64, 3, elements=st.floats(0, 1)).filter(lambda w: w.sum() > 1e-9),
    mean=arrays(np.float64, (3, 2), elements=st.floats(-1e6, 1e6)),
    size=st.floats(1e-9, 1e9),
)
def test_extreme_mixtures_have_a_finite_spread_that_is_no_less_than_within_the_parts(raw, mean, size):
    belief = Mixture(raw / raw.sum(), Gaussian(mean, size * np.tile(np.eye(2), (3, 1, 1))))
    assert np.isfinite(belief.mean).all()
    assert (np.linalg.eigvalsh(belief.cov) >= size * (1 - 1e-6) - 1e-3).all()
    assert np.isfinite(belief.draw(np.random.default_rng(0))).all()


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError) as caught:
        Mixture(np.ones(2) / 2, gaussian(3, 4))
    assert str(caught.value) == "Weights of shape (2,) do not fit means of shape (3, 4); give one weight per part"
    with pytest.raises(InputError) as caught:
        Gaussian(np.zeros((2, 3)), np.eye(3))
    assert str(caught.value) == (
        "Covariance of shape (3, 3) does not fit a mean of shape (2, 3); give one (D, D) matrix per mean"
    )
