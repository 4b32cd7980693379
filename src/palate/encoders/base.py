"""What every encoder offers: a prompt and its completion as one vector of raw features."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Progress = Callable[[int, int], None]
"""Called with (distinct texts done, distinct texts in all)."""


class Encoder(Protocol):
    """Texts to vectors. The features are raw: the reward model standardises them."""

    @property
    def name(self) -> str:
        """The name it was loaded by."""

    @property
    def revision(self) -> str:
        """Identifies the weights: a reward model or a cache of another revision does not fit."""

    @property
    def blocks(self) -> Mapping[str, slice]:
        """Named runs of columns, in order and without gaps."""

    @property
    def width(self) -> int:
        """Number of columns, D."""

    def encode(
        self, prompts: Sequence[str], completions: Sequence[str], *, progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """Features of each completion as an answer to its prompt, (n, D)."""
