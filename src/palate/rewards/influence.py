"""What each piece of evidence has done to a taste: the posterior without it, held against the one with it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from palate.feedback import Record
from palate.rewards.beliefs import Belief, Floats, Ints
from palate.rewards.drift import elapsed_days, follow
from palate.rewards.evidence import Evidence, heard
from palate.rewards.explain import style_tastes
from palate.rewards.model import RewardModel
from palate.rewards.posterior import Observations, laplace_posterior

# Posteriors computed at once: each takes all of the other evidence along.
_AT_ONCE = 64


@dataclass(frozen=True)
class Influence:
    """What one record did.

    Args:
        record: what was said.
        nats: Kullback–Leibler divergence of the posterior from the one without the record.
        style: the word for the end of the named style that it moved most towards; None where there are no styles.
        shift: how far, in standard deviations between people.
    """

    record: Evidence
    nats: float
    style: str | None
    shift: float


def without_each(
    model: RewardModel, evidence: Sequence[Record], places: Sequence[int], *, half_life: float | None = None
) -> list[Belief]:
    """Posteriors over (λ, b_u) of a person as if they had not said one thing, for several such things.

    Args:
        model: the reward model.
        evidence: what one person said, in order of time; only what `heard` picks is counted in `places`.
        places: of `heard(evidence)`, which to leave out, one in each.
        half_life: in days, instead of the model's own.
    """
    said = heard(evidence)
    rows = model.observations(said)
    drift = model.drift if half_life is None else type(model.drift).forgetting(half_life)
    out: list[Belief] = []
    for first in range(0, len(places), _AT_ONCE):
        left = places[first : first + _AT_ONCE]
        others = np.array([[i for i in range(len(said)) if i != place] for place in left], np.int64)
        user = np.repeat(np.arange(len(left)), len(said) - 1)
        flat = others.ravel()
        each = Observations(rows.v[flat], rows.label[flat], rows.weight[flat], user, len(left))
        if drift.moves:
            elapsed = np.concatenate([_elapsed(said, row) for row in others]) if len(said) > 1 else np.zeros(0)
            beliefs = follow(each, elapsed, model.prior_with_generosity, model.lapse, drift).belief
        else:
            beliefs = laplace_posterior(each, model.prior_with_generosity, model.lapse)
        out += [beliefs[i] for i in range(len(left))]
    return out


def _elapsed(said: Sequence[Evidence], rows: Ints) -> Floats:
    return elapsed_days([said[i].created_at for i in rows])


def influences(
    model: RewardModel, evidence: Sequence[Record], *, half_life: float | None = None, at_most: int = 200
) -> list[Influence]:
    """What each of the latest records did to a person's posterior, the most telling first.

    Args:
        model: the reward model.
        evidence: what one person said, in order of time.
        half_life: in days, instead of the model's own.
        at_most: how many of the latest are looked at.
    """
    said = heard(evidence)
    places = list(range(max(0, len(said) - at_most), len(said)))
    if not places:
        return []
    full = model.posterior(evidence, half_life=half_life)
    now = {taste.high: taste for taste in style_tastes(model, full)}
    found = []
    for place, belief in zip(places, without_each(model, evidence, places, half_life=half_life), strict=True):
        less = belief.leading(model.n_rewards)
        style, shift = None, 0.0
        for taste in style_tastes(model, less):
            moved = (now[taste.high].liking - taste.liking) / max(taste.spread, 1e-12)
            if abs(moved) > abs(shift):
                style, shift = taste.high if moved > 0 else taste.low, moved
        found.append(Influence(said[place], divergence(full, less), style, abs(shift)))
    return sorted(found, key=lambda one: -one.nats)


def divergence(belief: Belief, other: Belief) -> float:
    """KL(belief ‖ other) in nats, by their means and covariances.

    Example:
        >>> from palate.rewards.beliefs import Gaussian
        >>> divergence(Gaussian(np.ones(1), np.eye(1)), Gaussian(np.zeros(1), np.eye(1)))
        0.5
    """
    gap = other.mean - belief.mean
    solved = np.linalg.solve(other.cov, np.column_stack([belief.cov, gap]))
    log_ratio = np.linalg.slogdet(other.cov)[1] - np.linalg.slogdet(belief.cov)[1]
    return float(0.5 * (np.trace(solved[:, :-1]) + gap @ solved[:, -1] - len(gap) + log_ratio))
