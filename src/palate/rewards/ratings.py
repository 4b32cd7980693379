"""How a rating speaks of the reward, beside a choice.

A score s in [0, 1] of y for x is a soft label on a λ·(φ(x, y) − φ̄(x)) + b_u, counted κ times, b_u ~ N(0, g²) the
person's own level: a, κ and g are learned on held-out people (calibration.py). A graded answer can say more than a
choice, so κ is not capped at 1. In the rows of the posterior b_u is one more weight, in the last column.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from palate.rewards.beliefs import Floats

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class RatingScale:
    """How a rating speaks of the reward: P = ε + (1 − 2ε) σ(slope · λ·(φ − φ̄) + b_u), counted `weight` times.

    Args:
        slope: a, logits per unit of reward, > 0.
        weight: κ, evidence of one rating in units of one choice, > 0.
        generosity: g, standard deviation of b_u, the person's own level, in logits, > 0.
    """

    slope: float = 1.0
    weight: float = 1.0
    generosity: float = 1.0

    def rows(self, difference: Floats, rated: Mask) -> tuple[Floats, Floats]:
        """Differences of base rewards as rows for the posterior.

        Args:
            difference: (N, J) φ(x, y) less the other answer's in a choice, less φ̄(x) in a rating.
            rated: (N,) whether each is a rating.

        Returns:
            (N, J + 1) rows, b_u's column last, and their (N,) weights.

        Example:
            >>> v, weight = RatingScale(slope=0.5, weight=6.0).rows(np.array([[2.0], [2.0]]), np.array([False, True]))
            >>> v.tolist(), weight.tolist()
            ([[2.0, 0.0], [1.0, 1.0]], [1.0, 6.0])
        """
        stretched = difference * np.where(rated, self.slope, 1.0)[:, None]
        return np.column_stack([stretched, rated]), np.where(rated, self.weight, 1.0)
