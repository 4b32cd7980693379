"""Confidence intervals over people who come in kinds: the cluster bootstrap.

People of one kind are alike, so that ten of them say less than ten of ten kinds; whole kinds are drawn instead
(Davison and Hinkley 1997, §3.8). Differences between methods are taken per person first, which pairs them.
"""

import numpy as np

from palate.errors import InputError
from palate.rewards.posterior import Floats, Ints


def cluster_interval(
    values: Floats,
    cluster: Ints,
    *,
    weight: Floats | None = None,
    seed: int = 0,
    draws: int = 2_000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Bootstrap confidence interval of a mean over people, whole clusters drawn with replacement (percentiles).

    Args:
        values: (U,) one per person; people with NaN are left out.
        cluster: (U,) the cluster of each.
        weight: (U,) of each person in the mean, ≥ 0; all alike by default.
        seed: same seed, same clusters drawn.
        draws: how many.
        level: coverage, in (0, 1).

    Returns:
        Its two ends.

    Raises:
        InputError: nobody has a value.

    Example:
        >>> low, high = cluster_interval(np.array([0.0, 0.0, 1.0, 1.0]), np.array([0, 0, 1, 1]))
        >>> low, high
        (0.0, 1.0)
    """
    known = np.isfinite(values) if weight is None else np.isfinite(values) & (weight > 0)
    if not known.any():
        raise InputError(f"None of {len(values)!r} people has a value; give people with rows to measure on")
    _, number = np.unique(cluster[known], return_inverse=True)
    share = np.ones(len(number)) if weight is None else weight[known]
    total, size = np.bincount(number, share * values[known]), np.bincount(number, share)
    drawn = np.random.default_rng(seed).integers(len(size), size=(draws, len(size)))
    means = total[drawn].sum(axis=1) / size[drawn].sum(axis=1)  # (draws,)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
