"""What every encoder offers: a prompt and its completion as one vector of raw features."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

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


@runtime_checkable
class Tunable(Encoder, Protocol):
    """An encoder whose model can be fine-tuned: its features are differentiable."""

    @property
    def folder(self) -> Path:
        """Where its files are."""

    @property
    def model(self) -> "PreTrainedModel":
        """The model, on the device where it is to run."""

    @property
    def deepest(self) -> int:
        """The uppermost layer that the features differentiate in."""

    def features(self, prompts: Sequence[str], completions: Sequence[str]) -> "Tensor":
        """The same (n, D) as `encode`, straight from the model and differentiable in its weights."""
