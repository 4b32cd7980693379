"""Which pair of answers to ask about next, so that the choice tells the most about the person.

Over a pool of candidate pairs with differences v and a posterior N(m, S):

- `variance`: σ′(m·v)² vᵀSv, the variance of the choice probability (PReF, arXiv 2503.06358, eq. 7);
- `d-optimal`: σ′(m·v) vᵀSv, the growth of the posterior's log determinant to first order;
- `bald`: H(E[p]) − E[H(p)], the information in nats that the choice gives about λ (Houlsby et al. 2011), by
  Gauss–Hermite quadrature;
- `thompson`: how far two people drawn from the posterior disagree about the pair;
- `v-optimal`: by how much the answer lowers the variance of *all* choice probabilities of the pool,
  σ′ vᵀSASv / (1 + σ′ vᵀSv) with A = mean σ′(m·v_t)² v_t v_tᵀ;
- `random`.

We depart from PReF in two points. The pool may hold any number of pairs, one pass is one matrix product, and it is
scored for many people at once. And the default, `v-optimal`, is PReF's criterion looked at from the other end: not
the pair whose own probability is least certain, but the one that makes the others certain (Fedorov 1972). On folds
of the bundled people its AUC after 5, 10 and 20 answers was 0.844, 0.885 and 0.919, that of `bald` 0.831, 0.879 and
0.915; on the benchmark's people the two are nearly level (docs/log.md).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr, expit

from palate.errors import InputError
from palate.rewards.posterior import Belief, Floats, Ints, choice_probability

Score = Callable[[Belief, Floats, float, np.random.Generator], Floats]

# 16 nodes: within 1e-4 nats of a fine grid up to a deviation of 2 logits, 0.01 up to 4 (tests/test_queries.py).
_NODES, _MASS = np.polynomial.hermite_e.hermegauss(16)
_MASS = _MASS / _MASS.sum()


def expected_information(belief: Belief, v: Floats, lapse: float = 0.0) -> Floats:
    """Information about λ, in nats, expected from the choice between two answers: `bald`.

    Args:
        belief: mean (..., J), cov (..., J, J).
        v: (..., M, J) differences of base rewards.
        lapse: ε in [0, 0.5).

    Returns:
        (..., M), between 0 and log 2.

    Example:
        >>> from palate.rewards import Gaussian
        >>> known, unknown = Gaussian(np.zeros(1), np.eye(1) * 1e-9), Gaussian(np.zeros(1), np.eye(1) * 4)
        >>> v = np.array([[1.0]])
        >>> expected_information(known, v).round(3), expected_information(unknown, v).round(3)
        (array([0.]), array([0.231]))
    """
    mean, variance = belief.parts.of(v[..., None, :, :])  # (..., K, M)
    spread = np.sqrt(np.maximum(variance, 0.0))
    marginal, conditional = np.zeros_like(mean), np.zeros_like(mean)
    for node, mass in zip(_NODES, _MASS, strict=True):
        p = choice_probability(mean + spread * node, lapse)
        marginal += mass * p
        conditional += mass * _entropy(p)
    marginal, conditional = (np.sum(belief.weights[..., None] * each, axis=-2) for each in (marginal, conditional))
    return np.asarray(np.maximum(_entropy(marginal) - conditional, 0.0), np.float64)


def _entropy(p: Floats) -> Floats:
    return np.asarray(entr(p) + entr(1 - p), np.float64)


def _bald(belief: Belief, v: Floats, lapse: float, rng: np.random.Generator) -> Floats:
    return expected_information(belief, v, lapse)


def _variance(belief: Belief, v: Floats, lapse: float, rng: np.random.Generator) -> Floats:
    mean, variance = belief.of(v)
    p = expit(mean)
    return np.asarray((p * (1 - p)) ** 2 * variance, np.float64)


def _d_optimal(belief: Belief, v: Floats, lapse: float, rng: np.random.Generator) -> Floats:
    mean, variance = belief.of(v)
    p = expit(mean)
    return np.asarray(p * (1 - p) * variance, np.float64)


def _v_optimal(belief: Belief, v: Floats, lapse: float, rng: np.random.Generator) -> Floats:
    mean, variance = belief.of(v)
    p = expit(mean)
    information = p * (1 - p)
    target = np.matmul((information**2)[..., None, :] * np.swapaxes(v, -1, -2), v) / v.shape[-2]  # (..., J, J)
    reach = np.matmul(np.matmul(belief.cov, target), belief.cov)
    gain = np.sum(np.matmul(v, reach) * v, axis=-1)
    return np.asarray(information * gain / (1 + information * variance), np.float64)


def _thompson(belief: Belief, v: Floats, lapse: float, rng: np.random.Generator) -> Floats:
    p, q = (expit(np.matmul(v, belief.draw(rng)[..., None])[..., 0]) for _ in range(2))
    return np.asarray(np.abs(p - q), np.float64)


def _random(belief: Belief, v: Floats, lapse: float, rng: np.random.Generator) -> Floats:
    return rng.random((*belief.mean.shape[:-1], v.shape[-2]))


STRATEGIES: Mapping[str, Score] = MappingProxyType(
    {
        "v-optimal": _v_optimal,
        "bald": _bald,
        "d-optimal": _d_optimal,
        "variance": _variance,
        "thompson": _thompson,
        "random": _random,
    }
)
"""Query strategies by name: (belief, v, lapse, rng) → scores, the highest is asked."""


DEFAULT_STRATEGY = "v-optimal"


def strategy(name: str) -> Score:
    """The strategy of that name.

    Raises:
        InputError: There is none.
    """
    if name not in STRATEGIES:
        raise InputError(f"Query strategy {name!r} is not known; choose one of {', '.join(STRATEGIES)}")
    return STRATEGIES[name]


def choose(scores: Floats, available: NDArray[np.bool_], prompt: Ints, last_prompt: Ints) -> Ints:
    """The best available pair, not on the prompt just asked while others remain.

    Args:
        scores: (..., M) of each pair.
        available: (..., M) whether it may be asked.
        prompt: (..., M) or (M,) number of the pair's prompt.
        last_prompt: (...) prompt asked last, −1 for none.

    Returns:
        (...) index into M; −1 where nothing is available.

    Example:
        >>> choose(np.array([0.3, 0.2, 0.1]), np.array([True] * 3), np.array([7, 7, 8]), np.array(7))
        array(2)
    """
    fresh = available & (prompt != np.asarray(last_prompt)[..., None])
    allowed = np.where(fresh.any(axis=-1, keepdims=True), fresh, available)
    best = np.argmax(np.where(allowed, scores, -np.inf), axis=-1)
    return np.asarray(np.where(allowed.any(axis=-1), best, -1))


def pairs_within_prompts(prompt: Ints, *, at_most: int = 20_000, seed: int = 0) -> Ints:
    """All pairs of answers to one prompt, or a fair draw of them.

    Args:
        prompt: (n,) number of each answer's prompt.
        at_most: beyond so many pairs, that many are drawn at random.
        seed: of the draw.

    Returns:
        (M, 2) rows of `prompt`.

    Example:
        >>> pairs_within_prompts(np.array([0, 0, 1, 0])).tolist()
        [[0, 1], [0, 3], [1, 3]]
    """
    order = np.argsort(prompt, kind="stable")
    _, size = np.unique(prompt, return_counts=True)
    count = size * (size - 1) // 2
    total = int(count.sum())
    # Pairs by number, prompt after prompt: with thousands of answers to one prompt they are too many to list.
    if total > at_most:
        number = np.sort(np.random.default_rng(seed).choice(total, at_most, replace=False))
    else:
        number = np.arange(total)
    group = np.searchsorted(np.cumsum(count), number, side="right")
    # Counted from the last pair of the prompt, row a of the triangle begins at a (a + 1) / 2.
    from_end = np.cumsum(count)[group] - 1 - number
    a = ((np.sqrt(8 * from_end + 1) - 1) // 2).astype(np.int64)
    last = np.cumsum(size)[group] - 1
    return order[np.stack([last - 1 - a, last - (from_end - a * (a + 1) // 2)], axis=1)]
