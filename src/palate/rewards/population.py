"""What a new person's weights may be: the population prior, a Gaussian or a mixture of K, by EM.

The E step is everybody's Laplace posterior (its covariance included), the M step the moments of those, weighted by
how likely each person is of each part. Parts are few and people not many, so a part's covariance is drawn towards
the common one by `_PSEUDO_PEOPLE`, as by an inverse-Wishart prior (Murphy 2012, §4.6.3), and its mean towards the
common mean.
"""

import numpy as np
from scipy.cluster.vq import ClusterError, kmeans2

from palate.rewards.beliefs import Belief, Floats, Gaussian, Mixture
from palate.rewards.posterior import Observations, laplace_posterior

_PSEUDO_PEOPLE = 20.0
_PSEUDO_MEAN = 2.0
_STARTS = 3


def fit_prior(observations: Observations, lapse: float, parts: int = 1, max_rounds: int = 50) -> Belief:
    """Population prior N(μ, Σ), or a mixture of such, by EM over Laplace posteriors, their covariances included.

    One imagined person at "the population's taste once, unit variance" is added, so that one real person, or many
    alike, still leave a proper distribution.

    Args:
        observations: rows of U people in the space of base rewards, the population's first.
        lapse: ε in [0, 0.5).
        parts: K ≥ 1; fewer where there are fewer than 2 K people.
        max_rounds: EM rounds at most; it stops once no mean moves by more than 1e-3.

    Returns:
        A Gaussian for one part, else a mixture.
    """
    prior = _one(observations, lapse, max_rounds)
    parts = min(parts, observations.n_users // 2)
    return prior if parts < 2 else _several(observations, lapse, prior, parts, max_rounds)


def _one(observations: Observations, lapse: float, max_rounds: int) -> Gaussian:
    dim = observations.v.shape[1]
    first = np.eye(dim)[0]
    prior, lam = Gaussian(first, np.eye(dim)), None
    for _ in range(max_rounds):
        people = laplace_posterior(observations, prior, lapse, start=lam, tolerance=1e-5)
        lam = people.mean
        count = len(lam) + 1
        mean = (lam.sum(axis=0) + first) / count
        d = np.concatenate([lam, first[None]]) - mean
        cov = (d.T @ d + people.cov.sum(axis=0) + np.eye(dim)) / count
        moved = np.max(np.abs(mean - prior.mean))
        prior = Gaussian(mean, cov)
        if moved < 1e-3:
            break
    return prior


def _several(observations: Observations, lapse: float, common: Gaussian, parts: int, max_rounds: int) -> Mixture:
    people = laplace_posterior(observations, common, lapse, tolerance=1e-5)
    share = np.eye(parts)[_clusters(people.mean, common, parts)]  # (U, K)
    mean, cov = np.repeat(people.mean[:, None], parts, axis=1), np.repeat(people.cov[:, None], parts, axis=1)
    prior: Mixture | None = None
    start: Floats | None = None
    for _ in range(max_rounds):
        before: Mixture | None = prior
        prior = _moments(share, mean, cov, common.mean)
        if before is not None and np.max(np.abs(prior.parts.mean - before.parts.mean)) < 1e-3:
            break
        belief = laplace_posterior(observations, prior, lapse, start=start, tolerance=1e-4)
        share, mean, cov = belief.weights, belief.parts.mean, belief.parts.cov
        start = mean
    assert prior is not None
    return prior


def _clusters(lam: Floats, common: Gaussian, parts: int) -> np.ndarray:
    """(U,) cluster of each person's weights, in the common prior's own units: the best of a few k-means runs."""
    units = np.linalg.solve(np.linalg.cholesky(common.cov), (lam - common.mean).T).T
    best, least = np.arange(len(lam)) % parts, np.inf
    if len(np.unique(units.round(6), axis=0)) < parts:  # too few places for centres
        return best
    for seed in range(_STARTS):
        try:
            centre, label = kmeans2(units, parts, minit="++", missing="raise", rng=np.random.default_rng(seed))
        except ClusterError:  # one was left without anybody
            continue
        spread = float(np.sum((units - centre[label]) ** 2))
        if spread < least:
            best, least = label, spread
    return best


def _moments(share: Floats, mean: Floats, cov: Floats, common: Floats) -> Mixture:
    """M step: (U, K) shares, (U, K, D) means, (U, K, D, D) covariances → a mixture of K."""
    count = share.sum(axis=0)  # (K,)
    centre = (np.einsum("uk,ukd->kd", share, mean) + _PSEUDO_MEAN * common) / (count + _PSEUDO_MEAN)[:, None]
    d = mean - centre
    scatter = np.einsum("uk,ukij->kij", share, cov) + np.einsum("uk,uki,ukj->kij", share, d, d)
    # The imagined person of `fit_prior`.
    pooled = (scatter.sum(axis=0) + np.eye(len(common))) / (count.sum() + 1)
    spread = (scatter + _PSEUDO_PEOPLE * pooled) / (count + _PSEUDO_PEOPLE)[:, None, None]
    return Mixture((count + 1) / (count + 1).sum(), Gaussian(centre, spread))
