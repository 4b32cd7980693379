"""An encoder that remembers what it read lately, in memory alone: nothing that people say may leave a trace on disk."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from palate.encoders.base import Encoder, Progress

_MOST = 2_048


class RecentEncoder:
    """An encoder before which stands a memory of the latest pairs of prompt and completion.

    Args:
        encoder: that reads what is not remembered.
        most: pairs that are.
    """

    def __init__(self, encoder: Encoder, most: int = _MOST) -> None:
        self._encoder, self._most = encoder, most
        self._kept: OrderedDict[tuple[str, str], NDArray[np.float32]] = OrderedDict()
        self._lock = Lock()

    @property
    def name(self) -> str:
        """As the encoder's."""
        return self._encoder.name

    @property
    def revision(self) -> str:
        """As the encoder's."""
        return self._encoder.revision

    @property
    def blocks(self) -> Mapping[str, slice]:
        """As the encoder's."""
        return self._encoder.blocks

    @property
    def width(self) -> int:
        """As the encoder's."""
        return self._encoder.width

    def encode(
        self, prompts: Sequence[str], completions: Sequence[str], *, progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """As the encoder's."""
        keys = list(zip(prompts, completions, strict=True))
        with self._lock:
            found = {key: self._kept[key] for key in keys if key in self._kept}
            for key in found:
                self._kept.move_to_end(key)
        if unknown := [key for key in dict.fromkeys(keys) if key not in found]:
            read = self._encoder.encode([key[0] for key in unknown], [key[1] for key in unknown], progress=progress)
            found |= dict(zip(unknown, read, strict=True))
            with self._lock:
                for key in unknown:
                    self._kept[key] = found[key]
                while len(self._kept) > self._most:
                    self._kept.popitem(last=False)
        return np.array([found[key] for key in keys], np.float32).reshape(len(keys), self.width)

    def forget(self) -> None:
        """Remember nothing any more."""
        with self._lock:
            self._kept.clear()
