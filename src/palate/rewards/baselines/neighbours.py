"""Nearest neighbours in feature space: the stand-in for showing a language model a person's choices as examples.

In-context learning reads as kernel regression: attention weighs the examples by their likeness. So a pair's
preference is a vote of the person's answered pairs, each weighed by its likeness to this pair and counted by what
was preferred. Pairs are alike as in Gaussian-process preference learning (Houlsby et al. 2012),

    k(a ≻ b, c ≻ d) = κ(a, c) − κ(a, d) − κ(b, c) + κ(b, d),    κ(x, y) = exp(−|x − y|² / 2h²),

normalised for the answered pair. A wide h compares the pairs' differences linearly, a narrow one heeds only the
nearest. The model that gets the examples was itself trained on everybody: Bradley–Terry's reward is added, so that
without an answer this is that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from palate.rewards.baselines.base import Answers
from palate.rewards.baselines.bradley_terry import BradleyTerry
from palate.rewards.factorization import Choices
from palate.rewards.posterior import Floats


@dataclass(frozen=True)
class Neighbours:
    """A kernel vote on top of one reward for all.

    Args:
        width: h, in units of the root mean square length of the training answers' coordinates.
        votes: how much one vote counts beside the reward for all.
    """

    name: ClassVar[str] = "neighbours"
    width: float = 1.0
    votes: float = 2.0

    @classmethod
    def grid(cls) -> Sequence["Neighbours"]:
        """Two widths by four weights."""
        return [cls(width, votes) for width in (1.0, 2.0) for votes in (0.5, 1.0, 2.0, 4.0)]

    def fit(self, z: Floats, choices: Choices, seed: int = 0) -> "Voting":
        """The reward for all; the neighbours are a person's own."""
        scale = float(np.sqrt(np.mean(np.sum(z**2, axis=1))))
        return Voting(BradleyTerry().fit(z, choices).weights, self.width * scale, self.votes)


@dataclass(frozen=True)
class Voting:
    """(K,) weights of the reward for all, h in the units of z, and the weight of a vote."""

    population: Floats
    width: float
    votes: float

    def rewards(self, z: Floats, answers: Answers) -> Floats:
        """The reward for all, and the sum of votes: a pair's vote is the difference of its two answers' sums."""
        # Only the answers that somebody was asked about are anybody's neighbours.
        shown, place = np.unique(np.stack([answers.first, answers.second]), return_inverse=True)
        first, second = place.reshape(2, *answers.first.shape)
        alike = self._kernel(z[shown], z)  # (m, n)
        norm = np.sqrt(np.maximum(2 - 2 * alike[first, answers.second], 1e-12))  # |a ≻ b| in kernel space
        vote = self.votes * answers.weight * (2 * answers.label - 1) / norm  # (U, t)
        ballot = np.zeros((len(vote), len(shown)))
        person = np.arange(len(vote))[:, None]
        np.add.at(ballot, (person, first), vote)
        np.add.at(ballot, (person, second), -vote)
        return np.asarray(z @ self.population + ballot @ alike, np.float64)

    def _kernel(self, x: Floats, y: Floats) -> Floats:
        square = np.sum(x**2, axis=1)[:, None] + np.sum(y**2, axis=1) - 2 * x @ y.T
        return np.asarray(np.exp(-np.maximum(square, 0.0) / (2 * self.width**2)), np.float64)
