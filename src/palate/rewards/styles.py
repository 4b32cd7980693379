"""Words for tastes: how much an answer shows of each named style, read from the encoder's features.

Base rewards have no names. The bundled answers do: each was written to show three of fourteen style poles. A
ridge regression of these on the features of any encoder gives seven named directions, against which base rewards,
and so people's tastes, can be told in words. They name; they never enter a reward.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from palate.data import POLES, load_answers
from palate.encoders import Encoder
from palate.rewards.features import Coordinates
from palate.rewards.posterior import Floats

# Two of the six sets of bundled prompts are plenty for seven directions, and quick to read.
_PROMPTS = ("p0", "p1")
_RIDGE = 1.0


@dataclass(frozen=True)
class StyleProbe:
    """Named directions in the encoder's raw features.

    Args:
        names: S pairs of words, (high end, low end), such as ("verbose", "concise").
        coordinates: standardisation on the bundled answers.
        weights: (S, K) ridge weights, one standard deviation of the fitted scores a unit.
    """

    names: list[tuple[str, str]]
    coordinates: Coordinates
    weights: Floats

    @classmethod
    def fit(cls, encoder: Encoder) -> "StyleProbe":
        """Read the bundled answers and regress their styles on the encoder's features."""
        ends: dict[str, dict[int, str]] = {}
        for pole, (attribute, sign) in POLES.items():
            ends.setdefault(attribute, {})[sign] = pole
        answers = [a for a in load_answers() if a.prompt_id.startswith(_PROMPTS) and a.spoilt is None]
        shown = np.array([[a.attributes.get(name, 0) for name in ends] for a in answers], np.float64)
        raw = encoder.encode([a.prompt for a in answers], [a.text for a in answers])
        coordinates = Coordinates.fit(raw, encoder.blocks)
        z = coordinates(raw)
        weights = np.linalg.solve(z.T @ z + _RIDGE * np.eye(z.shape[1]), z.T @ (shown - shown.mean(axis=0))).T
        spread = np.maximum((z @ weights.T).std(axis=0), 1e-12)
        return cls([(end[1], end[-1]) for end in ends.values()], coordinates, weights / spread[:, None])

    def __call__(self, raw: NDArray[np.float32]) -> Floats:
        """(n, D) raw features → (n, S) how much of each style, in standard deviations."""
        return self.coordinates(raw) @ self.weights.T
