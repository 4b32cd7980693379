"""Augmentation: a reply said in other words, or broken off, beside the reply itself.

ARF-RLHF (arXiv 2507.03069) enriches its training data by synonym substitution and controlled truncation. A child may
say something else than its parent ("not bad" without "not"): one whose static score lies further from the parent's
than a stated distance is dropped. Children train the scorer and the shared head, and share their parent's weight with
it; they are never evidence of a taste.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from zlib import crc32

import numpy as np

from palate.errors import InputError
from palate.rewards.beliefs import Floats
from palate.satisfaction.wordnet import wordnet

_WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")
_SENTENCE_END = re.compile(r"[.!?…]+[\"')\]]*(?=\s)")
# Shorter words are mostly of grammar ("not", "the", "was"): another in their place changes what is said.
_SHORTEST = 4


@dataclass(frozen=True)
class Child:
    """A text made from another.

    Args:
        text: what it says.
        how: ``synonyms`` or ``truncation``.
    """

    text: str
    how: str


@dataclass(frozen=True)
class Augmentation:
    """How children are made, and which are kept.

    Args:
        synonyms: children with words replaced by synonyms, 0 or more.
        replaced: share of the words with a synonym that are replaced in each, in (0, 1]; one at least.
        truncations: shares of the words that are kept, in (0, 1), a child each.
        distance: how far a child's static score may lie from its parent's.
        seed: same text and seed, same children.

    Raises:
        InputError: a value is out of its range.

    Example:
        >>> Augmentation(synonyms=0, truncations=(0.5,)).children("Too long. Say it in one line, please.")
        [Child(text='Too long. Say it', how='truncation')]
    """

    synonyms: int = 2
    replaced: float = 0.3
    truncations: tuple[float, ...] = (0.7,)
    distance: float = 0.15
    seed: int = 0

    def __post_init__(self) -> None:
        if self.synonyms < 0:
            raise InputError(f"synonyms {self.synonyms!r} is below 0; give the number of children to make")
        for name, value, whole in (
            ("replaced", self.replaced, True),
            ("distance", self.distance, True),
            *(("truncations", share, False) for share in self.truncations),
        ):
            if not (0 < value < 1 or (whole and value == 1)):
                raise InputError(f"{name} {value!r} is not a share above 0 and {'at most' if whole else 'below'} 1")

    def children(self, text: str) -> list[Child]:
        """What can be made of a text: fewer where it has no words with synonyms, or is too short to break off.

        Raises:
            InputError: synonyms are wanted and there is no WordNet on this machine; says how to get it.
        """
        # A text's children rest on nothing but the text and the seed.
        rng = np.random.default_rng([self.seed, crc32(text.encode("utf-8", "replace"))])
        found = [Child(other, "synonyms") for other in self._reworded(text, rng)]
        found += [Child(truncate(text, share), "truncation") for share in self.truncations]
        return [child for child in dict.fromkeys(found) if child.text.strip() and child.text != text]

    def keeps(self, parent: float, children: Floats) -> np.ndarray:
        """Which children, by their static scores, say about what their parent says."""
        return np.abs(np.asarray(children) - parent) <= self.distance

    def _reworded(self, text: str, rng: np.random.Generator) -> list[str]:
        if not self.synonyms:
            return []
        words = [(match, _synonyms(match[0])) for match in _WORD.finditer(text)]
        words = [(match, others) for match, others in words if others]
        if not words:
            return []
        out = []
        for _ in range(self.synonyms):
            count = max(1, round(self.replaced * len(words)))
            changed = text
            for place in sorted(rng.choice(len(words), count, replace=False).tolist(), reverse=True):
                match, others = words[place]
                other = _like(match[0], others[int(rng.integers(len(others)))])
                changed = changed[: match.start()] + other + changed[match.end() :]
            out.append(changed)
        return out


def truncate(text: str, share: float) -> str:
    """The beginning of a text with about that share of its words: to the end of a sentence where one is near.

    Args:
        text: a text.
        share: of the words, in (0, 1); at least one is kept.

    Example:
        >>> truncate("It works. I like the tone of it a lot.", 0.3)
        'It works.'
    """
    words = list(re.finditer(r"\S+", text))
    if len(words) < 2:
        return text
    most = max(1, ceil(share * len(words)))
    kept = text[: words[most - 1].end()]
    ends = [match.end() for match in _SENTENCE_END.finditer(text) if match.end() <= len(kept)]
    # A sentence is not broken for the last few of its words.
    if ends and len(text[: ends[-1]].split()) >= 0.6 * most:
        return text[: ends[-1]]
    return kept


def _synonyms(word: str) -> Sequence[str]:
    """Single words that can stand for one in its most common sense."""
    if len(word) < _SHORTEST or "'" in word:
        return ()
    senses = wordnet().synsets(word.lower())
    # An inflected word would come back in its plain form: "worked" as "work".
    if not senses or word.lower() not in senses[0].lemma_names():
        return ()
    return tuple(n for n in senses[0].lemma_names() if n.isalpha() and n != word.lower())


def _like(word: str, other: str) -> str:
    """The other word, written as the first is."""
    return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other
