"""PReF as published: a bilinear reward, and no prior but L2 (Shenfeld et al. 2025, arXiv 2503.06358).

r_u(y) = λ_u · W z(y), both fitted by gradient descent with L2. Where people share pairs it starts at the truncated
SVD of the users × pairs matrix, W by ridge regression of its pair factors on feature differences; where they do not,
which the authors leave open, at random. A new person starts at λ = 0, and their L2 optimum is found exactly, as
`posterior_mode` of N(0, I / l2). What our own method does otherwise is told in rewards/factorization.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.linalg import svds

from palate.rewards.baselines.base import Answers, descend, minus_log_likelihood
from palate.rewards.factorization import Choices
from palate.rewards.initialization import raters_per_pair
from palate.rewards.posterior import Floats, Gaussian, posterior_mode

_STEPS, _RATE = 300, 0.02


@dataclass(frozen=True)
class PReF:
    """Base rewards and a person's weights on them.

    Args:
        rank: J.
        penalty: L2 of W.
        shrink: L2 of λ.
    """

    name: ClassVar[str] = "pref"
    rank: int = 8
    penalty: float = 3.0
    shrink: float = 1.0

    @classmethod
    def grid(cls) -> Sequence["PReF"]:
        """Two ranks, four penalties; that of λ changes nothing but the scale."""
        return [cls(rank, penalty) for rank in (8, 12) for penalty in (1.0, 3.0, 10.0, 30.0)]

    def fit(self, z: Floats, choices: Choices, seed: int = 0) -> "Bilinear":
        """By Adam."""
        import torch

        rng = np.random.default_rng(seed)
        table = torch.from_numpy(z)
        w, tastes = (torch.from_numpy(x) for x in self._start(z, choices, rng))
        missed = minus_log_likelihood(choices, rng)

        def loss() -> torch.Tensor:
            phi = table @ w.T
            fit = missed(lambda chosen, rejected, user: ((phi[chosen] - phi[rejected]) * tastes[user]).sum(dim=1))
            return fit + 0.5 * self.penalty * torch.sum(w**2) + 0.5 * self.shrink * torch.sum(tastes**2)

        descend(loss, [w, tastes], steps=_STEPS, rate=_RATE)
        return Bilinear(w.numpy(), self.shrink)

    def _start(self, z: Floats, choices: Choices, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """(J, K) base rewards and (U, J) weights."""
        if raters_per_pair(choices.chosen, choices.rejected, choices.user) >= self.rank:
            return svd_of_choices(z, choices, self.rank)
        w = rng.standard_normal((self.rank, z.shape[1])) / np.sqrt(z.shape[1])
        return w, 0.1 * rng.standard_normal((choices.n_users, self.rank))


def svd_of_choices(z: Floats, choices: Choices, rank: int) -> tuple[Floats, Floats]:
    """Users × pairs matrix of ±1 (0 where nothing was said) ≈ tastes · factors; W by ridge of the factors.

    Returns:
        (J, K) base rewards and (U, J) weights, their scale shared out evenly.
    """
    low, high = np.minimum(choices.chosen, choices.rejected), np.maximum(choices.chosen, choices.rejected)
    pairs, column = np.unique(np.stack([low, high], axis=1), axis=0, return_inverse=True)
    sign = np.where(choices.chosen == low, 1.0, -1.0) * (2 * choices.strength - 1)
    said = csr_array((sign, (choices.user, column.ravel())), shape=(choices.n_users, len(pairs)))
    rank = min(rank, min(said.shape) - 1)
    # A fixed start vector: ARPACK's own is random.
    u, s, vt = svds(said, k=rank, v0=np.random.default_rng(0).standard_normal(min(said.shape)))
    d = z[pairs[:, 0]] - z[pairs[:, 1]]
    gram = d.T @ d
    ridge = np.trace(gram) / len(gram) * np.eye(len(gram))
    w = np.linalg.solve(gram + ridge, d.T @ (vt.T * np.sqrt(s))).T
    return np.ascontiguousarray(w), np.ascontiguousarray(u * np.sqrt(s))


@dataclass(frozen=True)
class Bilinear:
    """(J, K) base rewards, and the L2 of a new person's weights."""

    weights: Floats
    shrink: float

    @property
    def start(self) -> Gaussian:
        """The L2 of a new person's weights as a prior: for `learning_curve`, whose `variance` is the paper's rule."""
        dim = len(self.weights)
        return Gaussian(np.zeros(dim), np.eye(dim) / self.shrink)

    def rewards(self, z: Floats, answers: Answers) -> Floats:
        """Nought for who said nothing."""
        phi = z @ self.weights.T
        return np.asarray(
            posterior_mode(answers.observations(answers.differences(phi)), self.start) @ phi.T, np.float64
        )
