"""Raw encoder features → the standardised coordinates in which base rewards are linear.

Blocks are put on one footing (every column to unit variance, every block to a stated share of a squared length),
then rotated onto the principal directions of the fitting answers. The rotation is isometric, so an L2 penalty
means the same in both; it only makes the fit cheaper.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from palate.rewards.posterior import Floats

# Root mean square length of each block after standardising. Chosen by regressing the attributes of the bundled
# answers of prompts p3xx on those of p0xx to p2xx (docs/log.md): the mean carries style, the last token a cut,
# the two scalars length and topic.
BLOCK_SCALE: Mapping[str, float] = {"mean": 1.0, "last": 0.5, "length": 0.3, "cosine": 0.3}

# Principal directions are found from at most so many answers, and at most so many are kept.
_MAX_ROWS = 2_048
_MAX_DIRECTIONS = 512
_CHUNK = 4_096


@dataclass(frozen=True)
class Coordinates:
    """The affine map z = (e − offset) @ basis.

    Args:
        offset: (D,) mean of the raw features.
        basis: (D, K) scaling and rotation in one, K ≤ 512.
    """

    offset: Floats
    basis: Floats

    @classmethod
    def fit(cls, raw: NDArray[np.float32], blocks: Mapping[str, slice]) -> "Coordinates":
        """Standardise on (n, D) raw features of the fitting answers, each answer once.

        Blocks unknown to `BLOCK_SCALE` count 1. A column that never varies is left out.
        """
        offset = raw.mean(axis=0, dtype=np.float64)
        spread = raw.std(axis=0, dtype=np.float64)
        scale = np.where(spread > 1e-6, 1.0 / np.maximum(spread, 1e-6), 0.0)
        for name, columns in blocks.items():
            scale[columns] *= BLOCK_SCALE.get(name, 1.0) / np.sqrt(columns.stop - columns.start)
        rows = np.linspace(0, len(raw) - 1, min(len(raw), _MAX_ROWS)).astype(int)
        z = (raw[rows] - offset) * scale
        # The Gram matrix is the smaller one: as many rows as answers, not as features.
        values, left = np.linalg.eigh(z @ z.T)
        kept = np.argsort(values)[::-1][:_MAX_DIRECTIONS]
        kept = kept[values[kept] > 1e-9 * max(values[-1], 1e-300)]
        right = z.T @ (left[:, kept] / np.sqrt(values[kept]))
        # Signs of eigenvectors are arbitrary: fix them, so that every machine gives the same base rewards.
        right *= np.sign(right[np.abs(right).argmax(axis=0), np.arange(right.shape[1])])
        return cls(offset, scale[:, None] * right)

    def __call__(self, raw: NDArray[np.float32]) -> Floats:
        """(n, D) raw features → (n, K) coordinates."""
        return in_chunks(lambda rows: (rows - self.offset) @ self.basis, raw, self.basis.shape[1])


def in_chunks(work: Callable[[NDArray[np.float32]], Floats], raw: NDArray[np.float32], width: int) -> Floats:
    """(n, width) of a map of (n, D) raw features, some rows at a time: in double precision they are bulky."""
    out = np.empty((len(raw), width))
    for start in range(0, len(raw), _CHUNK):
        out[start : start + _CHUNK] = work(raw[start : start + _CHUNK])
    return out
