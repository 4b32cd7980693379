"""Query strategies, against a brute-force grid and closed forms; laws that every one of them keeps."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import multivariate_normal

from palate.errors import InputError
from palate.rewards.posterior import Belief, Floats, Gaussian, Mixture, Observations, laplace_posterior
from palate.rewards.queries import STRATEGIES, choose, expected_information, pairs_within_prompts, strategy

KINDS = pytest.mark.parametrize("parts", [0, 3], ids=["gaussian", "mixture"])
EVERY = pytest.mark.parametrize("name", STRATEGIES)
WITHOUT_CHANCE = pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in ("thompson", "random")])


def gaussians(people: int = 4, dim: int = 3) -> Gaussian:
    rng = np.random.default_rng(1)
    root = rng.standard_normal((people, dim, dim))
    return Gaussian(rng.standard_normal((people, dim)), root @ root.swapaxes(1, 2) + 0.1 * np.eye(dim))


def beliefs(parts: int = 0) -> Belief:
    """Of four people: Gaussians for 0 parts, else mixtures."""
    if not parts:
        return gaussians()
    each = gaussians(4 * parts)
    weights = np.random.default_rng(3).dirichlet(np.ones(parts), 4)
    return Mixture(weights, Gaussian(each.mean.reshape(4, parts, 3), each.cov.reshape(4, parts, 3, 3)))


def pool(people: int = 4, pairs: int = 50, dim: int = 3) -> Floats:
    return np.random.default_rng(2).standard_normal((people, pairs, dim))


def score(name: str, belief: Belief, v: Floats, lapse: float = 0.0, seed: int = 0) -> Floats:
    return STRATEGIES[name](belief, v, lapse, np.random.default_rng(seed))


@EVERY
@KINDS
def test_scores_are_finite_and_one_for_each_pair(name, parts):
    assert score(name, beliefs(parts), pool(), 0.05).shape == (4, 50)
    assert score(name, beliefs(parts)[0], pool()[0]).shape == (50,)
    for size in (0.0, 1e-9, 1e3):
        assert np.isfinite(score(name, beliefs(parts), size * pool())).all()


@EVERY
@KINDS
def test_scores_are_not_negative(name, parts):
    assert (score(name, beliefs(parts), pool(), 0.05) >= 0).all()


@EVERY
@KINDS
def test_which_side_an_answer_stands_on_does_not_matter(name, parts):
    assert_allclose(score(name, beliefs(parts), -pool(), 0.05), score(name, beliefs(parts), pool(), 0.05), atol=1e-12)


@EVERY
@KINDS
def test_the_same_seed_gives_the_same_scores(name, parts):
    assert_array_equal(score(name, beliefs(parts), pool(), seed=7), score(name, beliefs(parts), pool(), seed=7))


@WITHOUT_CHANCE
@KINDS
def test_a_batch_is_a_loop_over_people(name, parts):
    together = score(name, beliefs(parts), pool(), 0.05)
    for person in range(4):
        assert_allclose(together[person], score(name, beliefs(parts)[person], pool()[person], 0.05), atol=1e-12)


@WITHOUT_CHANCE
@KINDS
def test_chance_plays_no_part(name, parts):
    assert_array_equal(score(name, beliefs(parts), pool(), seed=1), score(name, beliefs(parts), pool(), seed=2))


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "random"])
@KINDS
def test_nothing_is_left_to_ask_once_all_is_known(name, parts):
    known = gaussians()
    sharp: Belief = Gaussian(known.mean, 1e-12 * known.cov)
    if parts:  # several that say the same
        tiled = sharp[np.repeat(np.arange(4), parts)]
        same = Gaussian(tiled.mean.reshape(4, parts, 3), tiled.cov.reshape(4, parts, 3, 3))
        sharp = Mixture(beliefs(parts).weights, same)
    assert score(name, sharp, pool()).max() < 1e-4


@WITHOUT_CHANCE
@KINDS
def test_two_equal_answers_tell_nothing(name, parts):
    assert_allclose(score(name, beliefs(parts), np.zeros((4, 2, 3))), 0.0, atol=1e-15)


def entropy(p: Floats) -> Floats:
    return -p * np.log(p) - (1 - p) * np.log1p(-p)


def information_by_grid(mean: float, deviation: float, lapse: float) -> float:
    logit = np.linspace(mean - 9 * deviation, mean + 9 * deviation, 40_001)
    density = np.exp(-0.5 * ((logit - mean) / deviation) ** 2)
    density /= density.sum()
    p = np.clip(lapse + (1 - 2 * lapse) / (1 + np.exp(-logit)), 1e-300, 1 - 1e-16)
    return float(entropy(np.array([density @ p]))[0] - density @ entropy(p))


@pytest.mark.parametrize("lapse", [0.0, 0.05, 0.2])
@pytest.mark.parametrize(("deviation", "tolerance"), [(0.1, 1e-4), (1.0, 1e-4), (2.0, 1e-4), (4.0, 0.01)])
def test_information_is_that_of_a_grid(deviation, tolerance, lapse):
    for mean in np.linspace(-6, 6, 25):
        belief = Gaussian(np.array([mean]), np.array([[deviation**2]]))
        ours = expected_information(belief, np.ones((1, 1)), lapse)
        assert_allclose(ours, information_by_grid(mean, deviation, lapse), atol=tolerance)


def density(belief: Mixture, points: Floats) -> Floats:
    """(G,) at (G, D) points, summing to 1."""
    parts = zip(belief.weights, belief.parts.mean, belief.parts.cov, strict=True)
    total = sum(w * multivariate_normal(m, s).pdf(points) for w, m, s in parts)
    return np.asarray(total / np.sum(total))


@pytest.mark.parametrize("lapse", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("parts", [2, 3])
def test_information_of_a_mixture_is_that_of_a_grid_over_the_weights(parts, dim, lapse):
    mean = np.array([[-2.0, 1.0], [1.5, 0.5], [0.5, -2.5]])[:parts, :dim]
    cov = np.array([[[0.1, 0.05], [0.05, 0.3]], [[1.0, -0.4], [-0.4, 0.5]], [[0.5, 0.0], [0.0, 0.02]]])
    weights = np.array([0.5, 0.3, 0.2])[:parts]
    belief = Mixture(weights / weights.sum(), Gaussian(mean, cov[:parts, :dim, :dim]))
    axis = np.linspace(-7, 7, 20_001 if dim == 1 else 401)
    points = np.stack([part.ravel() for part in np.meshgrid(*[axis] * dim)], axis=1)
    mass = density(belief, points)
    v = np.random.default_rng(0).standard_normal((8, dim))
    p = lapse + (1 - 2 * lapse) / (1 + np.exp(-v @ points.T))
    exact = entropy(p @ mass) - entropy(np.clip(p, 1e-12, 1 - 1e-12)) @ mass
    ours = expected_information(belief, v, lapse)
    assert_allclose(ours, exact, atol=2e-4)
    # Neither the Gaussian of the same moments nor the mean of the parts' own information would do.
    each = expected_information(belief.parts, np.tile(v, (parts, 1, 1)), lapse)
    assert np.max(np.abs(belief.weights @ each - exact)) > 0.01


@KINDS
def test_information_is_at_most_one_bit_and_less_with_lapses(parts):
    previous = np.full((4, 50), np.log(2))
    for lapse in (0.0, 0.05, 0.2, 0.4):
        now = expected_information(beliefs(parts), 5 * pool(), lapse)
        assert (now < previous).all()
        previous = now


def test_which_part_is_true_is_worth_one_bit_at_most_and_equal_parts_are_one():
    apart = Mixture(np.array([0.5, 0.5]), Gaussian(np.array([[-30.0], [30.0]]), np.full((2, 1, 1), 1e-6)))
    assert_allclose(expected_information(apart, np.ones((1, 1))), np.log(2), atol=1e-9)
    one = gaussians()[0]
    twins = Mixture(np.array([0.3, 0.7]), Gaussian(np.tile(one.mean, (2, 1)), np.tile(one.cov, (2, 1, 1))))
    for name in ("bald", "variance", "d-optimal", "v-optimal"):
        assert_allclose(score(name, twins, pool()[0], 0.05), score(name, one, pool()[0], 0.05), atol=1e-12)


def test_information_falls_as_answers_come_in():
    prior, v = Gaussian(np.zeros(3), np.eye(3)), pool()[0]
    rng = np.random.default_rng(0)
    said = rng.standard_normal((400, 3))
    largest = []
    for count in (0, 10, 100, 400):
        rows = Observations.of(said[:count], np.zeros(count, int), 1, rng.integers(2, size=count).astype(float))
        largest.append(expected_information(laplace_posterior(rows, prior)[0], v).max())
    assert largest == sorted(largest, reverse=True)
    assert largest[-1] < 0.05 * largest[0]


def test_closed_forms():
    for belief, v in ((gaussians()[i], pool()[i]) for i in range(4)):
        spread = np.einsum("mj,jk,mk->m", v, belief.cov, v)
        slope = 1 / (4 * np.cosh(v @ belief.mean / 2) ** 2)  # σ′
        assert_allclose(score("variance", belief, v), slope**2 * spread, rtol=1e-10)
        assert_allclose(score("d-optimal", belief, v), slope * spread, rtol=1e-10)


def test_d_optimal_is_the_growth_of_the_log_determinant():
    belief, step = gaussians()[0], 1e-6
    for v, ours in zip(pool()[0], score("d-optimal", belief, pool()[0]), strict=True):
        p = 1 / (1 + np.exp(-v @ belief.mean))
        grown = np.linalg.inv(belief.cov) + step * p * (1 - p) * np.outer(v, v)
        growth = np.linalg.slogdet(grown)[1] + np.linalg.slogdet(belief.cov)[1]
        assert_allclose(ours, growth / step, rtol=1e-4, atol=1e-6)


def test_v_optimal_is_the_fall_of_the_pool_s_variance():
    belief, v = gaussians()[0], pool()[0]
    slope = 1 / (4 * np.cosh(v @ belief.mean / 2) ** 2)

    def variance(cov: Floats) -> float:
        return float(np.mean(slope**2 * np.einsum("mj,jk,mk->m", v, cov, v)))

    for one, s, ours in zip(v, slope, score("v-optimal", belief, v), strict=True):
        answered = np.linalg.inv(np.linalg.inv(belief.cov) + s * np.outer(one, one))
        assert_allclose(ours, variance(belief.cov) - variance(answered), rtol=1e-8)


def test_thompson_asks_where_two_draws_disagree():
    belief, v = gaussians()[0], pool()[0]
    draws = [score("thompson", belief, v, seed=seed) for seed in range(300)]
    one, two = np.random.default_rng(5).multivariate_normal(belief.mean, belief.cov, (2, 40_000))
    expected = np.abs(1 / (1 + np.exp(-v @ one.T)) - 1 / (1 + np.exp(-v @ two.T))).mean(axis=1)
    assert_allclose(np.mean(draws, axis=0), expected, atol=0.06)


def test_an_unknown_strategy_is_named():
    with pytest.raises(InputError) as caught:
        strategy("clairvoyance")
    assert str(caught.value) == (
        "Query strategy 'clairvoyance' is not known; "
        "choose one of v-optimal, bald, d-optimal, variance, thompson, random"
    )
    assert strategy("bald") is STRATEGIES["bald"]


@given(
    scores=st.lists(st.floats(0, 1), min_size=1, max_size=8),
    available=st.lists(st.booleans(), min_size=8, max_size=8),
    prompt=st.lists(st.integers(0, 2), min_size=8, max_size=8),
    last=st.integers(-1, 2),
)
def test_choose_takes_the_best_that_is_allowed(scores, available, prompt, last):
    count = len(scores)
    free = [i for i in range(count) if available[i]]
    allowed = [i for i in free if prompt[i] != last] or free
    expected = max(allowed, key=lambda i: scores[i]) if allowed else -1
    chosen = choose(np.array(scores), np.array(available[:count]), np.array(prompt[:count]), np.array(last))
    assert chosen == expected


def test_choose_for_many_people_at_once():
    scores = np.array([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.9, 0.5, 0.1]])
    available = np.array([[True, True, True], [True, True, False], [False, False, False]])
    chosen = choose(scores, available, np.array([7, 7, 8]), np.array([7, 7, -1]))
    assert chosen.tolist() == [2, 0, -1]


@given(prompt=st.lists(st.integers(0, 4), max_size=12))
def test_pairs_are_all_within_a_prompt(prompt):
    pairs = pairs_within_prompts(np.array(prompt, int))
    expected = [(i, j) for i, j in combinations(range(len(prompt)), 2) if prompt[i] == prompt[j]]
    assert sorted(map(tuple, pairs.tolist())) == expected


def test_a_draw_of_pairs_is_fair_repeatable_and_without_repeats():
    prompt = np.repeat([0, 1, 2], [3_000, 2, 40])
    pairs = pairs_within_prompts(prompt, at_most=500)
    assert pairs.shape == (500, 2)
    assert len(np.unique(pairs, axis=0)) == 500
    assert (prompt[pairs[:, 0]] == prompt[pairs[:, 1]]).all() and (pairs[:, 0] < pairs[:, 1]).all()
    assert_array_equal(pairs, pairs_within_prompts(prompt, at_most=500))
    assert not np.array_equal(pairs, pairs_within_prompts(prompt, at_most=500, seed=1))
    # Of two numbers drawn without repeats from 0 to n − 1, the smaller is (n − 2) / 3 on average.
    big = pairs[prompt[pairs[:, 0]] == 0]
    assert_allclose(big[:, 0].mean(), 1_000, rtol=0.1)
    assert_allclose(big[:, 1].mean(), 2_000, rtol=0.1)
