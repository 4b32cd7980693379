"""PAL: a person's ideal answer lies among a few prototypes (Chen et al. 2024, arXiv 2406.08469), model A.

r_u(y) = −|f(y) − Σ_k w_uk p_k|², w_u on the simplex. Since the weights sum to one this is, but for a constant of the
person, Σ_k w_uk · −|f(y) − p_k|²: a mixture of K rewards like LoRe's, of another form, and fitted like them. f is a
linear map, or with `hidden` units the two-layer network of the paper beside it. We depart in the logistic loss
(their learnable scale of it is in f) and the pull on the weights (simplex.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from palate.rewards.baselines.base import Answers
from palate.rewards.baselines.simplex import fit_mixture, mixture_rewards
from palate.rewards.factorization import Choices
from palate.rewards.posterior import Floats

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PAL:
    """Prototypes of ideal answers, mixed per person.

    Args:
        hidden: units of the network beside the linear map; 0 for none.
        penalty: L2 of everything that is learned.
        pull: towards equal weights.
        prototypes: K.
        dim: d of the space of ideal points.
    """

    name: ClassVar[str] = "pal"
    hidden: int = 0
    penalty: float = 10.0
    pull: float = 0.1
    prototypes: int = 8
    dim: int = 16

    @classmethod
    def grid(cls) -> Sequence["PAL"]:
        """Three penalties by two pulls without the network, and two penalties with it."""
        linear = [cls(0, penalty, pull) for penalty in (3.0, 10.0, 30.0) for pull in (0.03, 0.1)]
        return [*linear, cls(64, 3.0), cls(64, 10.0)]

    def fit(self, z: Floats, choices: Choices, seed: int = 0) -> "Prototypes":
        """By Adam from a random start."""
        import torch

        rng = np.random.default_rng(seed)
        table = torch.from_numpy(z)

        def start(*shape: int, scale: float) -> "Tensor":
            return torch.from_numpy(scale * rng.standard_normal(shape))

        maps = [start(self.dim, z.shape[1], scale=0.3)]
        if self.hidden:
            maps += [start(self.hidden, z.shape[1], scale=0.3), start(self.dim, self.hidden, scale=0.1)]
        points = start(self.prototypes, self.dim, scale=0.3)
        fit_mixture(
            lambda: closeness(points, ideal(maps, table)),
            [points, *maps],
            lambda: 0.5 * self.penalty * torch.stack([torch.sum(x**2) for x in (points, *maps)]).sum(),
            choices,
            self.pull,
            rng,
        )
        return Prototypes([x.numpy() for x in maps], points.numpy(), self.pull)


def ideal(maps: Any, z: Any) -> Any:
    """f(y), (n, d): the linear map, and the network's correction where there is one; of tensors or arrays."""
    return z @ maps[0].T + (0 if len(maps) == 1 else (z @ maps[1].T).clip(min=0) @ maps[2].T)


def closeness(points: Any, f: Any) -> Any:
    """−|f(y) − p_k|² of each answer and prototype, (n, K); of tensors or arrays."""
    return 2 * f @ points.T - (f**2).sum(-1)[:, None] - (points**2).sum(-1)


@dataclass(frozen=True)
class Prototypes:
    """The maps of f, (K, d) prototypes, and the pull of new people's weights."""

    maps: list[Floats]
    points: Floats
    pull: float

    def rewards(self, z: Floats, answers: Answers) -> Floats:
        """Mixed by the weights that fit each person's answers."""
        return mixture_rewards(closeness(self.points, ideal(self.maps, z)), answers, self.pull)
