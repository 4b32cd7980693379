"""What is never learned from: texts that touch somebody's health, money, passwords, or trouble with the law.

A logistic regression on the features that the satisfaction scorer makes of a text anyway. It was learned from 509 texts
written for it, 240 on these topics and 269 that are not, many of them in the same words ("kill the child process", "the
law of large numbers"), and from 5,000 of our own replies that touch none. Cross-validated it misses 5 in 100 sensitive
texts and stops 2 in 100 such replies (`scripts/train_sensitive.py`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.special import softmax

import palate.data
from palate.errors import ModelError
from palate.rewards.beliefs import Floats
from palate.satisfaction.network import pooled, sequences
from palate.satisfaction.scorer import SatisfactionScorer

FILE = Path(palate.data.__file__).parent / "sensitive.safetensors"
_WORDS = 40  # read at once
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_PARTS = 100  # of a long text the first and the last so many


@dataclass(frozen=True)
class Sensitive:
    """Tells texts that touch a sensitive topic; `Sensitive.load(scorer)` gives the one that ships with Palate.

    Args:
        scorer: whose features are looked at.
        topics: what is told apart; "" is none of them.
        weights: (topics, D + 1) of the features and a constant.
        least: probability of being sensitive from which a text is.

    Example:
        >>> sensitive = Sensitive.load(SatisfactionScorer.load())
        >>> sensitive.topic("Shorter please, my doctor says I have diabetes"), sensitive.topic("Shorter, please.")
        ('health', None)
    """

    scorer: SatisfactionScorer = field(repr=False)
    topics: tuple[str, ...]
    weights: Floats = field(repr=False)
    least: float

    @classmethod
    def load(cls, scorer: SatisfactionScorer) -> "Sensitive":
        """As it ships with Palate.

        Raises:
            ModelError: it was trained on another scorer's features.
        """
        from safetensors import safe_open

        with safe_open(FILE, "numpy") as kept:
            told = kept.metadata()
            weights = kept.get_tensor("weights").astype(np.float64)
        if told["scorer"] != scorer.revision:
            raise ModelError(
                f"What tells sensitive topics was trained on scorer {told['scorer']}, and this one is "
                f"{scorer.revision}; run scripts/train_sensitive.py"
            )
        return cls(scorer, tuple(told["topics"].split(",")), weights, float(told["least"]))

    def topic(self, *texts: str) -> str | None:
        """The topic that any of some texts touches, the likeliest; None where they touch none."""
        parts = [part for text in texts for part in _parts(text)]
        if not parts:
            return None
        p = self.probabilities(parts)
        p[:, self.topics.index("")] = 0
        sensitive = p.sum(axis=1)
        if sensitive.max() < self.least:
            return None
        return self.topics[int(p[sensitive.argmax()].argmax())]

    def probabilities(self, texts: Sequence[str]) -> Floats:
        """(n, topics) probability of each topic."""
        x = features(self.scorer, texts)
        return np.asarray(softmax(x @ self.weights[:, :-1].T + self.weights[:, -1], axis=1), np.float64)


def features(scorer: SatisfactionScorer, texts: Sequence[str]) -> Floats:
    """(n, D) what the scorer's heads read of each text."""
    read = sequences(scorer.tokenizer, texts, [None] * len(texts))
    return np.asarray(pooled(scorer.network, read).double().numpy(), np.float64)


def _parts(text: str) -> list[str]:
    """A text sentence by sentence: among others a sentence would be read as one of them."""
    parts = []
    for sentence in _SENTENCE_END.split(text):
        words = sentence.split()
        parts += [" ".join(words[first : first + _WORDS]) for first in range(0, len(words), _WORDS)]
    parts = list(dict.fromkeys(parts))
    return parts if len(parts) <= 2 * _PARTS else parts[:_PARTS] + parts[-_PARTS:]
