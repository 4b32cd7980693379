"""A person's posterior, against scipy's minimiser, torch's derivatives, brute-force grids, and laws."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize
from scipy.stats import multivariate_normal, norm

from palate.errors import InputError
from palate.rewards.posterior import (
    Floats,
    Gaussian,
    Mixture,
    Observations,
    choice_probability,
    laplace_posterior,
    negative_log_likelihood,
    predict,
)

LAPSES = pytest.mark.parametrize("lapse", [0.0, 0.05])


def problem(dim: int = 3, users: int = 5, rows: int = 40, seed: int = 0) -> tuple[Observations, Gaussian]:
    """People with soft labels and uneven weights, and a prior that is neither centred nor round; the last is silent."""
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((dim, dim))
    prior = Gaussian(rng.standard_normal(dim), root @ root.T + 0.3 * np.eye(dim))
    said = Observations.of(
        rng.standard_normal((rows, dim)),
        rng.integers(users, size=rows),
        users + 1,
        rng.choice([0.0, 0.3, 0.5, 1.0], rows),
        rng.choice([0.5, 1.0, 3.0], rows),
    )
    return said, prior


def alone(said: Observations, user: int) -> Observations:
    mine = said.user == user
    return Observations.of(said.v[mine], np.zeros(mine.sum(), int), 1, said.label[mine], said.weight[mine])


def torch_objective(said: Observations, prior: Gaussian, lapse: float, label: torch.Tensor | None = None):
    """Minus the log posterior of one person, written down anew; label p̂ instead of the rows' own where given."""
    v, weight, mean = torch.tensor(said.v), torch.tensor(said.weight), torch.tensor(prior.mean)
    precision = torch.linalg.inv(torch.tensor(prior.cov))
    y = torch.tensor(said.label) if label is None else label

    def objective(lam: torch.Tensor) -> torch.Tensor:
        p = lapse + (1 - 2 * lapse) / (1 + torch.exp(-(v @ lam)))
        loss = -(weight * (y * torch.log(p) + (1 - y) * torch.log(1 - p))).sum()
        distance: torch.Tensor = (lam - mean) @ precision @ (lam - mean)
        return loss + 0.5 * distance

    return objective


def hessian(objective: Callable[[torch.Tensor], torch.Tensor], point: torch.Tensor) -> Floats:
    return np.asarray(torch.autograd.functional.hessian(objective, point))  # type: ignore[no-untyped-call]


@LAPSES
@pytest.mark.parametrize("dim", [1, 3, 7])
def test_the_mode_is_what_scipy_finds(dim, lapse):
    said, prior = problem(dim)
    modes = laplace_posterior(said, prior, lapse).mean
    for user in range(said.n_users):
        objective = torch_objective(alone(said, user), prior, lapse)

        def value_and_gradient(x: Floats, objective=objective) -> tuple[float, Floats]:
            lam = torch.tensor(x, requires_grad=True)
            value = objective(lam)
            (gradient,) = torch.autograd.grad(value, lam)
            return value.item(), gradient.numpy()

        found = minimize(value_and_gradient, prior.mean, jac=True, method="BFGS", options={"gtol": 1e-9})
        assert_allclose(modes[user], found.x, atol=1e-6)
        assert_allclose(value_and_gradient(modes[user])[1], 0.0, atol=1e-6)


@LAPSES
def test_the_covariance_is_the_inverse_fisher_information_at_the_mode(lapse):
    said, prior = problem()
    belief = laplace_posterior(said, prior, lapse)
    for user in range(said.n_users):
        mine, mode = alone(said, user), torch.tensor(belief.mean[user])
        # The Hessian at the labels that the mode expects is the Fisher information: the loss is linear in the label.
        expected = lapse + (1 - 2 * lapse) * torch.sigmoid(torch.tensor(mine.v) @ mode)
        exact = hessian(torch_objective(mine, prior, lapse, expected), mode)
        assert_allclose(np.linalg.inv(belief.cov[user]), exact, rtol=1e-8, atol=1e-8)


def test_without_lapses_the_covariance_is_the_inverse_of_the_exact_hessian():
    said, prior = problem()
    belief = laplace_posterior(said, prior)
    for user in range(said.n_users):
        objective = torch_objective(alone(said, user), prior, 0.0)
        exact = hessian(objective, torch.tensor(belief.mean[user]))
        assert_allclose(np.linalg.inv(belief.cov[user]), exact, rtol=1e-8, atol=1e-8)


@LAPSES
@given(logit=st.floats(-30, 30), label=st.floats(0, 1))
def test_the_loss_and_its_slope_are_those_of_torch(lapse, logit, label):
    x = torch.tensor(logit, dtype=torch.float64, requires_grad=True)
    p = lapse + (1 - 2 * lapse) * torch.sigmoid(x)
    loss = -label * torch.log(p) - (1 - label) * torch.log(lapse + (1 - 2 * lapse) * torch.sigmoid(-x))
    (slope,) = torch.autograd.grad(loss, x)
    ours = negative_log_likelihood(np.array([logit]), np.array([label]), lapse)
    assert_allclose(ours[0], loss.item(), rtol=1e-9, atol=1e-12)
    assert_allclose(ours[1], slope.item(), rtol=1e-6, atol=1e-12)
    assert ours[2] >= 0


@LAPSES
def test_a_batch_is_a_loop_over_people(lapse):
    said, prior = problem(users=9, rows=100)
    together = laplace_posterior(said, prior, lapse)
    for user in range(said.n_users):
        single = laplace_posterior(alone(said, user), prior, lapse)[0]
        assert_allclose(together.mean[user], single.mean, atol=1e-9)
        assert_allclose(together.cov[user], single.cov, atol=1e-9)


@given(order=st.permutations(range(40)))
def test_the_order_of_rows_does_not_matter(order):
    said, prior = problem()
    rows = np.array(order)
    mixed = Observations.of(said.v[rows], said.user[rows], said.n_users, said.label[rows], said.weight[rows])
    assert_allclose(laplace_posterior(mixed, prior).mean, laplace_posterior(said, prior).mean, atol=1e-9)


def test_people_without_rows_keep_the_prior():
    said, prior = problem()
    belief = laplace_posterior(said, prior, 0.05)
    assert_array_equal(belief.mean[-1], prior.mean)
    assert_allclose(belief.cov[-1], prior.cov, rtol=1e-9)
    nobody = laplace_posterior(Observations.of(np.empty((0, 3)), np.empty(0, int), 2), prior)
    assert_array_equal(nobody.mean, [prior.mean, prior.mean])


@LAPSES
@pytest.mark.parametrize("labels", [(1.0, 0.0), (0.5, 0.5)], ids=["contradiction", "ties"])
def test_answers_that_cancel_leave_the_mean_and_still_narrow_it(labels, lapse):
    v = np.array([[1.0, -2.0], [1.0, -2.0]])
    prior = Gaussian(np.zeros(2), np.eye(2))
    belief = laplace_posterior(Observations.of(v, np.zeros(2, int), 1, np.array(labels)), prior, lapse)[0]
    assert_allclose(belief.mean, 0.0, atol=1e-12)
    assert v[0] @ belief.cov @ v[0] < v[0] @ v[0]


def test_a_tie_pulls_two_answers_together():
    prior = Gaussian(np.array([2.0]), np.eye(1))
    tied = Observations.of(np.ones((1, 1)), np.zeros(1, int), 1, np.array([0.5]))
    assert 0 < laplace_posterior(tied, prior).mean[0, 0] < 2


def test_a_weight_of_three_is_the_row_said_three_times():
    said, prior = problem()
    thrice = Observations.of(
        np.repeat(said.v, 3, axis=0), np.repeat(said.user, 3), said.n_users, np.repeat(said.label, 3)
    )
    weighted = Observations(said.v, said.label, np.full(len(said.user), 3.0), said.user, said.n_users)
    assert_allclose(laplace_posterior(weighted, prior).mean, laplace_posterior(thrice, prior).mean, atol=1e-9)
    assert_allclose(laplace_posterior(weighted, prior).cov, laplace_posterior(thrice, prior).cov, atol=1e-9)


@LAPSES
def test_in_one_dimension_the_posterior_is_that_of_a_grid(lapse):
    rng = np.random.default_rng(3)
    v, label = rng.standard_normal((30, 1)), rng.choice([0.0, 1.0], 30, p=[0.3, 0.7])
    prior = Gaussian(np.array([0.5]), np.array([[2.0]]))
    belief = laplace_posterior(Observations.of(v, np.zeros(30, int), 1, label), prior, lapse)[0]
    grid = np.linspace(-8, 8, 160_001)
    p = lapse + (1 - 2 * lapse) / (1 + np.exp(-v * grid))  # (30, G)
    log_density = np.log(np.where(label[:, None] > 0.5, p, 1 - p)).sum(axis=0) - (grid - 0.5) ** 2 / 4
    density = np.exp(log_density - log_density.max())
    density /= density.sum()
    mean = density @ grid
    deviation = np.sqrt(density @ (grid - mean) ** 2)
    assert_allclose(belief.mean[0], grid[np.argmax(density)], atol=2e-4)
    # Laplace is an approximation: within a tenth of a deviation in the mean, a fifth of its size in the deviation.
    assert abs(belief.mean[0] - mean) < 0.1 * deviation
    assert_allclose(np.sqrt(belief.cov[0, 0]), deviation, rtol=0.2)


@LAPSES
@pytest.mark.parametrize("deviation", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("mean", [-4.0, -0.5, 0.0, 2.0])
def test_predictions_integrate_over_the_posterior(mean, deviation, lapse):
    belief = Gaussian(np.array([mean, 7.0]), np.diag([deviation**2, 1.0]))
    logit = np.linspace(mean - 10 * deviation, mean + 10 * deviation, 20_001)
    density = np.exp(-0.5 * ((logit - mean) / deviation) ** 2)
    exact = density @ (lapse + (1 - 2 * lapse) / (1 + np.exp(-logit))) / density.sum()
    ours = predict(belief, np.array([[1.0, 0.0], [-1.0, 0.0]]), lapse)
    assert_allclose(ours[0], exact, atol=0.02)  # the probit correction's own error
    assert_allclose(ours.sum(), 1.0, atol=1e-12)


@LAPSES
@given(
    v=arrays(np.float64, (6, 3), elements=st.floats(-1e3, 1e3)),
    label=arrays(np.float64, 6, elements=st.floats(0, 1)),
    user=arrays(np.int64, 6, elements=st.integers(0, 2)),
)
def test_nothing_extreme_makes_it_infinite(lapse, v, label, user):
    prior = Gaussian(np.array([1.0, 0.0, -1.0]), np.eye(3))
    belief = laplace_posterior(Observations.of(v, user, 3, label), prior, lapse)
    p = predict(belief, np.broadcast_to(v, (3, 6, 3)), lapse)
    assert np.isfinite(belief.mean).all() and np.isfinite(belief.cov).all()
    assert (np.linalg.eigvalsh(belief.cov) > 0).all()
    assert ((p >= lapse) & (p <= 1 - lapse)).all()
    sizes = negative_log_likelihood(np.array([-1e3, 0.0, 1e3]), np.array([1.0, 0.5, 0.0]), lapse)
    assert np.isfinite(sizes).all()


@LAPSES
def test_the_start_does_not_change_the_optimum(lapse):
    said, prior = problem()
    expected = laplace_posterior(said, prior, lapse).mean
    rng = np.random.default_rng(0)
    for _ in range(10):
        start = prior.mean + rng.standard_normal(expected.shape)
        assert_allclose(laplace_posterior(said, prior, lapse, start=start).mean, expected, atol=1e-6)


def test_the_start_is_not_written_to():
    said, prior = problem()
    start = np.zeros((said.n_users, 3))
    laplace_posterior(said, prior, start=start)
    assert_array_equal(start, 0.0)


@given(logit=st.floats(-1e3, 1e3), lapse=st.floats(0, 0.49))
def test_a_choice_probability_stays_within_the_lapses(logit, lapse):
    p, other = choice_probability(np.array([logit, -logit]), lapse)
    assert lapse - 1e-12 <= p <= 1 - lapse + 1e-12
    assert_allclose(p + other, 1.0, atol=1e-12)


def test_sums_over_people_are_those_of_a_loop():
    said, _ = problem(users=9, rows=100)
    scale = np.random.default_rng(0).random(100)
    for user in range(said.n_users):
        mine = said.user == user
        assert_allclose(said.sum_by_user(said.v)[user], said.v[mine].sum(axis=0), atol=1e-12)
        outer = sum((s * np.outer(x, x) for s, x in zip(scale[mine], said.v[mine], strict=True)), np.zeros((3, 3)))
        assert_allclose(said.outer_by_user(scale)[user], outer, atol=1e-12)


def test_a_covariance_that_does_not_fit_is_refused():
    with pytest.raises(InputError) as caught:
        Gaussian(np.zeros(3), np.eye(2))
    assert str(caught.value) == (
        "Covariance of shape (2, 2) does not fit a mean of shape (3,); give one (D, D) matrix per mean"
    )


# Mixtures


def parts_of(prior: Gaussian, parts: int, seed: int = 5) -> Mixture:
    """A mixture of unequal parts around a prior."""
    rng = np.random.default_rng(seed)
    mean = prior.mean + rng.standard_normal((parts, len(prior.mean)))
    scale = rng.uniform(0.3, 1.5, parts)[:, None, None]
    return Mixture(rng.dirichlet(np.ones(parts)), Gaussian(mean, scale * prior.cov))


@LAPSES
def test_a_mixture_of_one_part_is_the_gaussian(lapse):
    said, prior = problem()
    plain = laplace_posterior(said, prior, lapse)
    one = laplace_posterior(said, Mixture(prior.weights, prior.parts), lapse)
    assert isinstance(plain, Gaussian) and isinstance(one, Mixture)
    assert_array_equal(one.weights, 1.0)
    assert_array_equal(one.parts.mean[:, 0], plain.mean)
    assert_array_equal(one.parts.cov[:, 0], plain.cov)
    v = np.random.default_rng(0).standard_normal((said.n_users, 4, 3))
    assert_allclose(predict(one, v, lapse), predict(plain, v, lapse), rtol=1e-12)


def log_likelihood(said: Observations, points: Floats, lapse: float) -> Floats:
    """(G,) of one person's rows at (G, D) weights."""
    p = lapse + (1 - 2 * lapse) / (1 + np.exp(-points @ said.v.T))
    return np.asarray((np.log(p) * said.label + np.log1p(-p) * (1 - said.label)) @ said.weight)


@LAPSES
@pytest.mark.parametrize("rows", [1, 5, 20])
@pytest.mark.parametrize("dim", [1, 2])
def test_parts_weigh_by_their_evidence_on_a_grid(dim, rows, lapse):
    people, rng = 12, np.random.default_rng(rows)
    mean = np.array([[-1.5, 0.5], [0.5, -1.0], [2.0, 1.0]])[:, :dim]
    cov = np.array([[[0.5, 0.2], [0.2, 0.6]], [[1.0, 0.0], [0.0, 0.3]], [[0.4, -0.1], [-0.1, 1.0]]])[:, :dim, :dim]
    prior = Mixture(np.array([0.5, 0.3, 0.2]), Gaussian(mean, cov))
    v, user = rng.standard_normal((people * rows, dim)), np.repeat(np.arange(people), rows)
    tastes = np.stack([prior.draw(rng) for _ in range(people)])[user]
    label = (rng.random(len(v)) < choice_probability(np.sum(v * tastes, axis=1), lapse)).astype(float)
    said = Observations.of(v, user, people, label)
    belief = laplace_posterior(said, prior, lapse)
    axis = np.linspace(-7, 7, 4_001 if dim == 1 else 281)
    points = np.stack([part.ravel() for part in np.meshgrid(*[axis] * dim)], axis=1)
    density = np.stack([multivariate_normal(m, s).pdf(points) for m, s in zip(mean, cov, strict=True)])
    likelihood = np.exp([log_likelihood(alone(said, person), points, lapse) for person in range(people)])
    evidence = prior.weights * (likelihood @ density.T)
    exact = evidence / evidence.sum(axis=1, keepdims=True)
    posterior = likelihood * (prior.weights @ density)
    mean_of_all = posterior @ points / posterior.sum(axis=1, keepdims=True)
    # Laplace is an approximation, of a shape that lapses bend further from a Gaussian's.
    error = np.abs(belief.weights - exact)
    assert error.max() < (0.05 if lapse else 0.03)
    assert error.mean() < 0.01
    assert np.abs(belief.mean - mean_of_all).max() < 0.3
    # What was said moved the weights by far more than that.
    assert np.abs(exact - prior.weights).mean() > 5 * error.mean()


@LAPSES
def test_each_part_is_updated_as_a_prior_of_its_own(lapse):
    said, prior = problem()
    mixed = parts_of(prior, 3)
    belief = laplace_posterior(said, mixed, lapse)
    assert_allclose(belief.weights.sum(axis=1), 1.0)
    for k in range(3):
        alone = laplace_posterior(said, mixed.parts[k], lapse)
        assert_array_equal(belief.parts.mean[:, k], alone.mean)
        assert_array_equal(belief.parts.cov[:, k], alone.cov)
    # Who is silent keeps the prior, weights included.
    assert_allclose(belief.weights[-1], mixed.weights)
    assert_allclose(belief.parts.mean[-1], mixed.parts.mean)


def test_equal_parts_keep_their_weights_and_the_order_of_parts_does_not_matter():
    said, prior = problem()
    twins = Mixture(np.array([0.3, 0.7]), Gaussian(np.tile(prior.mean, (2, 1)), np.tile(prior.cov, (2, 1, 1))))
    assert_allclose(laplace_posterior(said, twins, 0.05).weights, np.tile(twins.weights, (said.n_users, 1)))
    mixed, order = parts_of(prior, 3), np.array([2, 0, 1])
    turned = laplace_posterior(said, Mixture(mixed.weights[order], mixed.parts[order]), 0.05)
    assert_allclose(turned.weights, laplace_posterior(said, mixed, 0.05).weights[:, order])


@LAPSES
@pytest.mark.parametrize("parts", [1, 3])
def test_everybody_may_have_a_prior_of_their_own(parts, lapse):
    said, prior = problem()
    users = said.n_users
    mixes = [parts_of(prior, parts, seed) for seed in range(users)]
    own = Mixture(
        np.stack([mix.weights for mix in mixes]),
        Gaussian(np.stack([mix.parts.mean for mix in mixes]), np.stack([mix.parts.cov for mix in mixes])),
    )
    together = laplace_posterior(said, own if parts > 1 else Gaussian(own.mean, own.cov), lapse)
    for user, mix in enumerate(mixes):
        single = laplace_posterior(alone(said, user), mix if parts > 1 else Gaussian(mix.mean, mix.cov), lapse)[0]
        assert_allclose(together[user].weights, single.weights, atol=1e-9)
        assert_allclose(together[user].parts.mean, single.parts.mean, atol=1e-9)
        assert_allclose(together[user].parts.cov, single.parts.cov, atol=1e-9)


def test_a_part_of_no_weight_stays_out():
    said, prior = problem()
    mixed = Mixture(np.array([1.0, 0.0]), parts_of(prior, 2).parts)
    belief = laplace_posterior(said, mixed, 0.05)
    assert_array_equal(belief.weights, np.tile([1.0, 0.0], (said.n_users, 1)))
    assert_allclose(belief.mean, laplace_posterior(said, mixed.parts[0], 0.05).mean)


@LAPSES
def test_predictions_of_a_mixture_integrate_over_its_density(lapse):
    weights, mean, deviation = np.array([0.2, 0.5, 0.3]), np.array([-3.0, 0.5, 2.0]), np.array([0.5, 1.0, 2.0])
    belief = Mixture(weights, Gaussian(mean[:, None], (deviation**2)[:, None, None]))
    logit = np.linspace(-25, 25, 50_001)
    density = weights @ np.stack([norm(m, d).pdf(logit) for m, d in zip(mean, deviation, strict=True)])
    exact = density @ (lapse + (1 - 2 * lapse) / (1 + np.exp(-logit))) / density.sum()
    ours = predict(belief, np.array([[1.0], [-1.0]]), lapse)
    assert_allclose(ours[0], exact, atol=0.01)  # the probit correction's own error
    assert_allclose(ours.sum(), 1.0, atol=1e-12)


@LAPSES
@given(
    v=arrays(np.float64, (6, 3), elements=st.floats(-1e3, 1e3)),
    label=arrays(np.float64, 6, elements=st.floats(0, 1)),
    apart=st.floats(0, 1e3),
    size=st.floats(1e-6, 1e3),
)
def test_nothing_extreme_makes_a_mixture_infinite(lapse, v, label, apart, size):
    mean = apart * np.array([[1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])
    prior = Mixture(np.array([0.9, 0.1]), Gaussian(mean, size * np.tile(np.eye(3), (2, 1, 1))))
    belief = laplace_posterior(Observations.of(v, np.repeat([0, 1], 3), 2, label), prior, lapse)
    assert np.isfinite(belief.parts.mean).all() and np.isfinite(belief.cov).all()
    assert_allclose(belief.weights.sum(axis=1), 1.0)
    p = predict(belief, np.broadcast_to(v, (2, 6, 3)), lapse)
    assert ((p >= lapse - 1e-12) & (p <= 1 - lapse + 1e-12)).all()
