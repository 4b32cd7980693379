"""One reward for all: Bradley and Terry 1952 on features, by penalised likelihood; "standard RLHF"."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from palate.rewards.baselines.base import Answers
from palate.rewards.factorization import Choices, Penalties, fit_weights
from palate.rewards.posterior import Floats


@dataclass(frozen=True)
class BradleyTerry:
    """Everybody likes the same.

    Args:
        penalty: L2 of the weights, in units of the coordinates.
    """

    name: ClassVar[str] = "bradley_terry"
    penalty: float = 10.0

    @classmethod
    def grid(cls) -> Sequence["BradleyTerry"]:
        """Eight penalties."""
        return [cls(penalty) for penalty in (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)]

    def fit(self, z: Floats, choices: Choices, seed: int = 0) -> "OneReward":
        """The optimum; nothing is drawn."""
        return OneReward(fit_weights(z, choices, 1, 0.0, Penalties(population=self.penalty))[0])


@dataclass(frozen=True)
class OneReward:
    """(K,) weights for all."""

    weights: Floats

    def rewards(self, z: Floats, answers: Answers) -> Floats:
        """The same row for everybody, whatever they said."""
        return np.tile(z @ self.weights, (len(answers.label), 1))
