"""What every peer offers: tuned by its own grid, fitted on training people, then rewards for new ones from answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, Self

import numpy as np

from palate.rewards.factorization import Choices
from palate.rewards.posterior import Floats, Ints, Observations

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Answers:
    """What U people said to t questions each, as rows of a table of answers.

    Args:
        first: (U, t) row of one answer.
        second: (U, t) row of the other.
        label: (U, t) in [0, 1]: how surely the first is preferred.
        weight: (U, t) 1, or 0 where a person was asked less and the place is only filled.
    """

    first: Ints
    second: Ints
    label: Floats
    weight: Floats

    def differences(self, z: Floats) -> Floats:
        """(U, t, K) coordinates of the first less those of the second, from (n, K) of all answers."""
        return np.asarray(z[self.first] - z[self.second], np.float64)

    def observations(self, v: Floats) -> Observations:
        """Rows for a posterior, from (U, t, D) differences in any space."""
        people, t, dim = v.shape
        return Observations(
            v.reshape(-1, dim), self.label.ravel(), self.weight.ravel(), np.repeat(np.arange(people), t), people
        )


class Fitted(Protocol):
    """A peer that has learned from training people."""

    def rewards(self, z: Floats, answers: Answers) -> Floats:
        """What each answer is worth to each person.

        Args:
            z: (n, K) coordinates of the answers, those asked about among them.
            answers: what each person said; with t = 0 nothing.

        Returns:
            (U, n) rewards, comparable within a person.
        """


class Peer(Protocol):
    """One setting of a method; instances are frozen, and the fields are its hyperparameters."""

    name: ClassVar[str]

    @classmethod
    def grid(cls) -> Sequence[Self]:
        """The settings to choose from on held-out training people: eight for every peer."""

    def fit(self, z: Floats, choices: Choices, seed: int = 0) -> Fitted:
        """Learn from training people.

        Args:
            z: (n, K) coordinates of the answers.
            choices: who preferred what.
            seed: same seed, same result.
        """


def minus_log_likelihood(
    choices: Choices, rng: np.random.Generator, most: int = 16_384
) -> "Callable[[Callable[[Tensor, Tensor, Tensor], Tensor]], Tensor]":
    """The negative log-likelihood of what was chosen, of a function of (chosen, rejected, user) that gives logits.

    It is that of `most` rows drawn anew at each call, scaled up, where there are more.
    """
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits

    columns = [torch.from_numpy(x) for x in (choices.chosen, choices.rejected, choices.user, choices.strength)]
    total = len(choices.user)

    def missed(logit: "Callable[[Tensor, Tensor, Tensor], Tensor]") -> "Tensor":
        rows = torch.from_numpy(rng.choice(total, most, replace=False)) if total > most else slice(None)
        chosen, rejected, user, strength = (column[rows] for column in columns)
        value = logit(chosen, rejected, user)
        loss = binary_cross_entropy_with_logits(value, strength.to(value.dtype), reduction="sum")
        return loss * (total / max(len(value), 1))

    return missed


def descend(loss: "Callable[[], Tensor]", parameters: "Sequence[Tensor]", *, steps: int, rate: float) -> None:
    """Lower `loss` in place by Adam (Kingma and Ba 2015), its step shrinking linearly to nothing.

    Adam moves every coordinate by its own gradient alone, so that independent people can share one descent.
    """
    import torch

    for parameter in parameters:
        parameter.requires_grad_(True)
    optimiser = torch.optim.Adam(list(parameters), lr=rate)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = rate * (1 - step / steps)
        optimiser.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    for parameter in parameters:
        parameter.requires_grad_(False)
