"""How a graded answer, a rating or the reading of a reply, speaks of the reward beside a choice.

A score s in [0, 1] of y for x is a soft label on a λ·(φ(x, y) − φ̄(x)) + g b_u, counted κ times, b_u ~ N(0, 1) the
person's own level: a, κ and g are learned on held-out people (calibration.py), for ratings and for replies apart. A
graded answer can say more than a choice, so κ is not capped at 1. In the rows of the posterior b_u is one more weight,
in the last column: who rates generously is expected to type generously, too.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from palate.rewards.beliefs import Floats, Ints

Mask = NDArray[np.bool_]

CHOICE, RATING, REPLY = 0, 1, 2
"""Forms of evidence."""


@dataclass(frozen=True)
class RatingScale:
    """How a graded answer speaks of the reward: P = ε + (1 − 2ε) σ(slope · λ·(φ − φ̄) + g b_u), counted `weight` times.

    Args:
        slope: a, logits per unit of reward, > 0.
        weight: κ, evidence of one in units of one choice, > 0.
        generosity: g, how far people's own levels spread, one standard deviation, in logits, > 0.
    """

    slope: float = 1.0
    weight: float = 1.0
    generosity: float = 1.0


READINGS = RatingScale(slope=0.73, weight=3.0, generosity=1.15)
"""How replies speak where a fit had none to learn it from: as those of the bundled people did with the first
scorer that shipped (docs/log.md).

Part of what a model's fingerprint stands for: another value would need another format of the folder."""


@dataclass(frozen=True)
class Scales:
    """How ratings and replies speak.

    Args:
        ratings: of scores that people gave.
        replies: of satisfactions that the scorer read in what they typed.

    Example:
        >>> scales = Scales(ratings=RatingScale(slope=0.5, weight=6.0))
        >>> v, weight = scales.rows(np.array([[2.0], [2.0]]), np.array([CHOICE, RATING]))
        >>> v.tolist(), weight.tolist()
        ([[2.0, 0.0], [1.0, 1.0]], [1.0, 6.0])
    """

    ratings: RatingScale = RatingScale()
    replies: RatingScale = READINGS

    def slopes(self, form: Ints) -> Floats:
        """(N,) logits per unit of reward in rows of these forms."""
        return np.array([1.0, self.ratings.slope, self.replies.slope])[form]

    def rows(self, difference: Floats, form: Ints) -> tuple[Floats, Floats]:
        """Differences of base rewards as rows for the posterior.

        Args:
            difference: (N, J) φ(x, y) less the other answer's in a choice, less φ̄(x) in a graded answer.
            form: (N,) `CHOICE`, `RATING` or `REPLY`.

        Returns:
            (N, J + 1) rows, b_u's column last, and their (N,) weights.
        """
        level = np.array([0.0, self.ratings.generosity, self.replies.generosity])[form]
        weight = np.array([1.0, self.ratings.weight, self.replies.weight])[form]
        return np.column_stack([difference * self.slopes(form)[:, None], level]), weight
