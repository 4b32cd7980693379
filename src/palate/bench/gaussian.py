"""A Gaussian over items that many people rate, which knows no text: the classical yardstick for ratings.

Mean and full covariance by EM over missing values (Dempster, Laird and Rubin 1977; Little and Rubin 2002, §11.2);
what a person would rate is the conditional mean given what they rated. People with equally many ratings are one batch.
"""

from collections.abc import Iterator

import numpy as np

from palate.rewards.posterior import Floats, Ints


def fit_gaussian(ratings: Floats, rounds: int = 30) -> tuple[Floats, Floats]:
    """Maximum likelihood by EM.

    Args:
        ratings: (U, M), NaN where somebody did not rate; every item was rated.
        rounds: of EM.

    Returns:
        (M,) mean and (M, M) covariance.
    """
    ratings = ratings[~np.isnan(ratings).all(axis=1)]  # who rated nothing says nothing
    mean, cov = np.nanmean(ratings, axis=0), np.diag(np.nanvar(ratings, axis=0))
    for _ in range(rounds):
        filled, left = np.empty_like(ratings), np.zeros_like(cov)
        for who, items in _batches(ratings):
            gain = _gain(cov, items)
            filled[who] = _filled(ratings, mean, who, items, gain)
            # Σ over people of what stays uncertain: S − S_:o S_oo⁻¹ S_o:
            left += len(who) * cov - np.tensordot(cov[:, items].transpose(1, 0, 2), gain, axes=([0, 2], [0, 1]))
        mean = filled.mean(axis=0)
        d = filled - mean
        cov = (d.T @ d + left) / len(ratings)
    return mean, cov


def expected_ratings(ratings: Floats, mean: Floats, cov: Floats) -> Floats:
    """(U, M) conditional means given each person's ratings (NaN where they did not rate)."""
    filled = np.tile(mean, (len(ratings), 1))
    for who, items in _batches(ratings):
        filled[who] = _filled(ratings, mean, who, items, _gain(cov, items))
    return filled


def _batches(ratings: Floats) -> Iterator[tuple[Ints, Ints]]:
    """(B,) people who rated o > 0 items each, and (B, o) which; at most 128 at a time."""
    rated = ~np.isnan(ratings)
    count = rated.sum(axis=1)
    for o in np.unique(count[count > 0]):
        alike = np.flatnonzero(count == o)
        for who in np.array_split(alike, -(-len(alike) // 128)):
            yield who, np.nonzero(rated[who])[1].reshape(len(who), o)


def _gain(cov: Floats, items: Ints) -> Floats:
    """S_oo⁻¹ S_o: of each person, (B, o, M)."""
    return np.asarray(np.linalg.solve(cov[items[:, :, None], items[:, None, :]], cov[items]), np.float64)


def _filled(ratings: Floats, mean: Floats, who: Ints, items: Ints, gain: Floats) -> Floats:
    off = ratings[who[:, None], items] - mean[items]  # (B, o)
    return np.asarray(mean + np.matmul(off[:, None, :], gain)[:, 0], np.float64)
