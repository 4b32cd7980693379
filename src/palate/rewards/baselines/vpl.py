"""VPL: a person is a latent variable, read off their choices by an encoder (Poddar et al. 2024, arXiv 2408.10075).

q(l | choices): each pair (preferred, other) through a two-layer network, one layer of self-attention over the pairs,
mean, then mean and log variance of l. r(y, l): a two-layer network on the answer and the latent. Both are trained on
the evidence lower bound Σ log σ(r(chosen, l) − r(rejected, l)) − β KL(q ‖ N(0, I)), β growing from nought over the
first half (the authors anneal it in cycles). A new person's l is the mean of q.

We depart in four points. A training person's context is drawn anew each step, of a size up to `CONTEXT`, so that
one network serves people with few answers and with many; without answers l is the prior's mean. A soft label counts
both orders of its pair. Only the leading principal coordinates are read: networks overfit the others (on held-out
bundled people AUC 0.60 with all 512, 0.80 with 16). And the first layer, which is linear, reads an answer once and
not once a pair.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from palate.rewards.baselines.base import Answers, descend, minus_log_likelihood
from palate.rewards.factorization import Choices
from palate.rewards.posterior import Floats

if TYPE_CHECKING:
    from torch import Tensor

    Networks = Mapping[str, Tensor]

CONTEXT = 24
"""Most pairs of a training person that are read at once."""

_STEPS, _RATE, _BATCH = 250, 0.01, 2_048
_SLOPE = 0.2  # of the leaky units, as in the authors' code
_CELLS = 100_000  # people × answers whose hidden units are held at once


@dataclass(frozen=True)
class VPL:
    """A latent variable per person.

    Args:
        coordinates: how many of the leading coordinates are read.
        beta: weight of the divergence from the prior.
        decay: L2 of all weights.
        latent: dimensions of l.
        hidden: units of every hidden layer.
    """

    name: ClassVar[str] = "vpl"
    coordinates: int = 16
    beta: float = 0.1
    decay: float = 0.1
    latent: int = 8
    hidden: int = 64

    @classmethod
    def grid(cls) -> Sequence["VPL"]:
        """Two widths of what is read, two β, two decays."""
        return [cls(width, beta, decay) for width in (16, 32) for beta in (0.1, 1.0) for decay in (0.03, 0.1)]

    def fit(self, z: Floats, choices: Choices, seed: int = 0) -> "Variational":
        """By Adam on the evidence lower bound; a step draws comparisons to predict, and everybody's context and l."""
        import torch

        rng = np.random.default_rng(seed)
        z = z[:, : self.coordinates]
        networks, table = self._start(z.shape[1], rng), torch.from_numpy(z).float()
        missed = minus_log_likelihood(choices, rng, _BATCH)
        step = 0

        def loss() -> torch.Tensor:
            nonlocal step
            step += 1
            mean, log_variance = encode(networks, table, _draw(choices, rng))
            noise = torch.from_numpy(rng.standard_normal(mean.shape)).float()
            latent = (mean + torch.exp(0.5 * log_variance) * noise) @ networks["latent"].T  # (U, h)
            hidden = table @ networks["answer"].T  # (n, h)

            def logit(chosen: torch.Tensor, rejected: torch.Tensor, user: torch.Tensor) -> torch.Tensor:
                one, other = (_worth(networks, hidden[answer] + latent[user]) for answer in (chosen, rejected))
                return one - other

            beta = self.beta * min(1.0, 2 * step / _STEPS)
            decay = torch.stack([torch.sum(x**2) for x in networks.values()]).sum()
            return missed(logit) + beta * divergence(mean, log_variance).sum() + 0.5 * self.decay * decay

        descend(loss, list(networks.values()), steps=_STEPS, rate=_RATE)
        return Variational({name: x.numpy() for name, x in networks.items()})

    def _start(self, width: int, rng: np.random.Generator) -> "Networks":
        import torch

        h, d = self.hidden, self.latent
        shapes = {
            "preferred": (h, width), "other": (h, width), "pair": (h, h),
            "query": (h, h), "key": (h, h), "value": (h, h), "mean": (d, h), "log_variance": (d, h),
            "answer": (h, width), "latent": (h, d), "middle": (h, h), "worth": (1, h),
        }  # fmt: skip
        return {
            name: torch.from_numpy(rng.standard_normal((out, into)).astype(np.float32) / np.float32(np.sqrt(into)))
            for name, (out, into) in shapes.items()
        }


def _draw(choices: Choices, rng: np.random.Generator) -> Answers:
    """Some of everybody's comparisons, 1 to `CONTEXT` of them, in the order of chosen and rejected."""
    order = np.lexsort((rng.random(len(choices.user)), choices.user))
    count = np.bincount(choices.user, minlength=choices.n_users)
    size = np.minimum(count, rng.integers(1, CONTEXT + 1, size=choices.n_users))
    place = np.arange(max(int(size.max()), 1))
    real = place < size[:, None]  # (U, t)
    rows = order[np.where(real, (np.cumsum(count) - count)[:, None] + place, 0)]
    return Answers(choices.chosen[rows], choices.rejected[rows], choices.strength[rows], real.astype(np.float64))


def encode(networks: "Networks", table: "Tensor", answers: Answers) -> "tuple[Tensor, Tensor]":
    """Mean and log variance of q(l | answers), both (U, d); the prior's for who said nothing.

    Args:
        networks: by name.
        table: (n, K) coordinates of the answers.
        answers: of U people.
    """
    import torch
    from torch.nn.functional import leaky_relu

    label, real = (torch.from_numpy(x).to(table.dtype) for x in (answers.label[..., None], answers.weight))
    as_preferred, as_other = table @ networks["preferred"].T, table @ networks["other"].T  # (n, h)
    first, second = torch.from_numpy(answers.first), torch.from_numpy(answers.second)

    def read(better: "Tensor", worse: "Tensor") -> "Tensor":
        return leaky_relu(leaky_relu(as_preferred[better] + as_other[worse], _SLOPE) @ networks["pair"].T, _SLOPE)

    pairs = label * read(first, second) + (1 - label) * read(second, first)  # (U, t, h)
    query, key, value = (pairs @ networks[name].T for name in ("query", "key", "value"))
    score = query @ key.swapaxes(1, 2) / np.sqrt(query.shape[2])  # (U, t, t)
    attended = torch.softmax(score.masked_fill(real[:, None, :] == 0, -1e9), dim=2) @ value
    count = real.sum(dim=1, keepdim=True)
    pooled = torch.sum(real[..., None] * attended, dim=1) / count.clamp(min=1)  # (U, h)
    said = (count > 0).to(table.dtype)
    return said * (pooled @ networks["mean"].T), said * (pooled @ networks["log_variance"].T)


def divergence(mean: "Tensor", log_variance: "Tensor") -> "Tensor":
    """KL(N(mean, variance) ‖ N(0, I)) of each person: (U,)."""
    return 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(dim=1)


def _worth(networks: "Networks", hidden: "Tensor") -> "Tensor":
    """r(y, l) from the first layer's sums (..., h): (...)."""
    from torch.nn.functional import leaky_relu

    inner = leaky_relu(leaky_relu(hidden, _SLOPE) @ networks["middle"].T, _SLOPE)
    return (inner @ networks["worth"].T)[..., 0]


@dataclass(frozen=True)
class Variational:
    """The weights of encoder and decoder, by name."""

    networks: Mapping[str, Floats]

    def rewards(self, z: Floats, answers: Answers) -> Floats:
        """At the mean of each person's latent."""
        import torch

        networks = {name: torch.from_numpy(x).double() for name, x in self.networks.items()}
        table = torch.from_numpy(z[:, : networks["answer"].shape[1]])
        latent = encode(networks, table, answers)[0] @ networks["latent"].T  # (U, h)
        hidden = table @ networks["answer"].T  # (n, h)
        size = max(1, _CELLS // max(len(z), 1))
        parts = [latent[at : at + size, None, :] for at in range(0, len(latent), size)]
        return torch.cat([_worth(networks, hidden + part) for part in parts]).numpy()
