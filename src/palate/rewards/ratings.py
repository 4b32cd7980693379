"""How strongly a rating speaks: its slope, its weight, and how much people's levels differ.

Base rewards are not fitted on ratings, so these can be held against them: half of each person's ratings must predict
the other half (the raters may be among the people whose choices were fitted on). A graded answer can say more than a
choice, so the weight is not capped at 1.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.optimize import minimize

from palate.feedback import Rating
from palate.rewards.model import RatingScale, RewardModel
from palate.rewards.posterior import Floats, laplace_posterior, negative_log_likelihood

# Fewer people or ratings than this leave the three numbers at their prior: ones.
_MIN_PEOPLE, _MIN_RATINGS = 2, 4
_PRIOR_SD = 1.0  # of the logs of the three numbers


def fit_rating_scale(model: RewardModel, ratings: Sequence[Rating], *, seed: int = 0) -> RatingScale:
    """The scale under which one half of people's ratings predicts the other half best.

    Args:
        model: fitted; its own scale does not matter.
        ratings: of many people; who gave fewer than 4 is left out.
        seed: of the halves.

    Returns:
        The scale; the model's own where fewer than 2 people rated enough.
    """
    counts: dict[str, int] = {}
    for rating in ratings:
        counts[rating.user_id] = counts.get(rating.user_id, 0) + 1
    number = {user: i for i, user in enumerate(user for user, count in counts.items() if count >= _MIN_RATINGS)}
    rows = [rating for rating in ratings if rating.user_id in number]
    if len(number) < _MIN_PEOPLE:
        return model.ratings
    order = np.random.default_rng(seed).permutation(len(rows))
    rows = [rows[i] for i in order]
    user = np.array([number[rating.user_id] for rating in rows], np.int64)
    # Every other row of each person, in random order.
    place = np.argsort(np.argsort(user, kind="stable"), kind="stable") - np.searchsorted(np.sort(user), user)
    unit = replace(model, ratings=RatingScale())
    halves = (np.flatnonzero(place % 2 == side) for side in (0, 1))
    said, then = (unit.observations([rows[i] for i in half], user[half], len(number)) for half in halves)

    def loss(x: Floats) -> float:
        slope, weight, generosity = np.exp(x)
        stretch = np.append(np.full(model.n_rewards, slope), 1.0)
        belief = laplace_posterior(
            replace(said, v=said.v * stretch, weight=np.full(len(said.v), weight)),
            model.with_generosity(float(generosity)),
            model.lapse,
            tolerance=1e-4,
        )[then.user]
        v = then.v * stretch
        mean = np.sum(v * belief.mean, axis=1)
        variance = np.einsum("ni,nij,nj->n", v, belief.cov, v)
        missed = negative_log_likelihood(mean / np.sqrt(1 + np.pi * variance / 8), then.label, model.lapse)[0]
        return float(missed.sum()) + 0.5 * float(np.sum((x / _PRIOR_SD) ** 2))

    options = {"initial_simplex": 0.5 * np.eye(4, 3), "xatol": 0.02, "fatol": 0.05, "maxfev": 150}
    best = minimize(loss, np.zeros(3), method="Nelder-Mead", options=options)
    slope, weight, generosity = (float(value) for value in np.exp(best.x))
    return RatingScale(slope, weight, generosity)
