"""Batches by distinct text: each answer of a batch is read once, however many comparisons it stands in.

Encoding is what costs. Comparisons are between answers to one prompt, so batches are runs of whole prompts where
these fit, and a text is seldom in two batches of an epoch.
"""

from typing import TYPE_CHECKING

import numpy as np

from palate.errors import InputError
from palate.rewards.factorization import Choices

if TYPE_CHECKING:
    from torch import Tensor


class Batches:
    """One epoch's batches, a map-style data set of them for PyTorch; another order with each `shuffle`.

    Args:
        choices: N comparisons.
        texts: distinct answers in a batch, about.
        multiple: how many batches make one optimiser's step, over all processes; their number is divisible by it.
        seed: of the order.

    Raises:
        InputError: there are fewer comparisons than batches in a step.
    """

    def __init__(self, choices: Choices, texts: int, multiple: int, seed: int) -> None:
        self.choices, self.seed = choices, seed
        count = len(choices.user)
        degree = np.bincount(np.concatenate([choices.chosen, choices.rejected]))
        # A text's cost is shared by the comparisons that it stands in: all together cost the number of texts.
        self.cost = 1 / degree[choices.chosen] + 1 / degree[choices.rejected]
        steps = int(np.ceil(self.cost.sum() / (texts * multiple)))
        self.n_batches = multiple * max(1, min(steps, count // multiple))
        if count < multiple:
            raise InputError(
                f"There are {count!r} comparisons for {multiple!r} batches of one step; use fewer processes, or "
                "accumulate fewer gradients"
            )
        self.shuffle(0)

    def shuffle(self, epoch: int) -> None:
        """Prompts in another order, and each prompt's comparisons as well.

        Not called `set_epoch`: accelerate would call that with its own count, which begins anew after a kill.
        """
        rng = np.random.default_rng([self.seed, epoch])
        prompts, place = np.unique(self.choices.prompt, return_inverse=True)
        order = np.lexsort((rng.permutation(len(place)), rng.permutation(len(prompts))[place]))
        cost = self.cost[order]
        middle = np.cumsum(cost) - cost / 2
        cut = np.searchsorted(middle, middle[-1] * np.arange(1, self.n_batches) / self.n_batches)
        self.rows = np.split(order, cut)

    def __len__(self) -> int:
        return self.n_batches

    def __getitem__(self, index: int) -> "dict[str, Tensor]":
        """Rows of the batch's answers, and its comparisons by place among these."""
        import torch

        rows, c = self.rows[index], self.choices
        # A batch without comparisons (one that costs more than a batch came before) still reads a text.
        ends = np.concatenate([c.chosen[rows], c.rejected[rows]]) if len(rows) else c.chosen[:1]
        answers, place = np.unique(ends, return_inverse=True)
        return {
            "answers": torch.from_numpy(answers),
            "chosen": torch.from_numpy(place[: len(rows)]),
            "rejected": torch.from_numpy(place[len(rows) : 2 * len(rows)]),
            "user": torch.from_numpy(c.user[rows]),
            "strength": torch.from_numpy(c.strength[rows].astype(np.float32)),
        }
