"""LoRe: a low-rank basis of rewards, a person a point on its simplex (Bose et al. 2025, arXiv 2504.14439).

r_u(y) = Σ_b w_ub V_b · z(y), w_u = softmax(θ_u). As in the authors' code every V_b is pulled towards a reference
reward, theirs a pretrained reward model, here Bradley–Terry on the same people. We depart in the pull on θ
(simplex.py) and start V_b at the reference with noise instead of at noise alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from palate.rewards.baselines.base import Answers
from palate.rewards.baselines.bradley_terry import BradleyTerry
from palate.rewards.baselines.simplex import fit_mixture, mixture_rewards
from palate.rewards.factorization import Choices
from palate.rewards.posterior import Floats


@dataclass(frozen=True)
class LoRe:
    """A basis of linear rewards, mixed per person.

    Args:
        size: B, how many rewards.
        penalty: L2 of V_b around the reference.
        pull: towards equal weights.
    """

    name: ClassVar[str] = "lore"
    size: int = 16
    penalty: float = 1.0
    pull: float = 0.1

    @classmethod
    def grid(cls) -> Sequence["LoRe"]:
        """Two sizes, two penalties, two pulls."""
        return [cls(size, penalty, pull) for size in (8, 16) for penalty in (0.3, 1.0) for pull in (0.1, 0.3)]

    def fit(self, z: Floats, choices: Choices, seed: int = 0) -> "Basis":
        """By Adam from the reference with noise."""
        import torch

        rng = np.random.default_rng(seed)
        reference = torch.from_numpy(BradleyTerry().fit(z, choices).weights)
        table = torch.from_numpy(z)
        v = reference + torch.from_numpy(rng.standard_normal((self.size, z.shape[1])))
        fit_mixture(
            lambda: table @ v.T,
            [v],
            lambda: 0.5 * self.penalty * torch.sum((v - reference) ** 2),
            choices,
            self.pull,
            rng,
        )
        return Basis(v.numpy(), self.pull)


@dataclass(frozen=True)
class Basis:
    """(B, K) frozen rewards, and the pull of new people's weights."""

    v: Floats
    pull: float

    def rewards(self, z: Floats, answers: Answers) -> Floats:
        """Mixed by the weights that fit each person's answers."""
        return mixture_rewards(z @ self.v.T, answers, self.pull)
