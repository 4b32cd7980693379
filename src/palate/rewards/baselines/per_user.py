"""A model per person: ridge logistic regression on nothing but their own answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from palate.rewards.baselines.base import Answers
from palate.rewards.factorization import Choices
from palate.rewards.posterior import Floats, Gaussian, posterior_mode


@dataclass(frozen=True)
class PerUser:
    """Nobody learns from anybody else.

    Args:
        precision: L2 of every weight.
    """

    name: ClassVar[str] = "per_user"
    precision: float = 1.0

    @classmethod
    def grid(cls) -> Sequence["PerUser"]:
        """Eight precisions."""
        return [cls(precision) for precision in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)]

    def fit(self, z: Floats, choices: Choices, seed: int = 0) -> "PerUser":
        """Itself: training people teach it nothing."""
        return self

    def rewards(self, z: Floats, answers: Answers) -> Floats:
        """Nought for who said nothing.

        The optimum lies in the span of a person's own differences (representer theorem), so it is found there: a
        problem in as many dimensions as the person gave answers.
        """
        v = answers.differences(z)
        if v.shape[1] == 0:
            return np.zeros((len(v), len(z)))
        q, r = np.linalg.qr(v.swapaxes(1, 2))  # (U, K, t), (U, t, t): v = rᵀ qᵀ
        dim = r.shape[1]
        prior = Gaussian(np.zeros(dim), np.eye(dim) / self.precision)
        inside = posterior_mode(answers.observations(r.swapaxes(1, 2)), prior)
        weights = np.matmul(q, inside[..., None])[..., 0]  # (U, K)
        return np.asarray(weights @ z.T, np.float64)
