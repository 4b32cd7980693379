"""Near-duplicate texts, found in time linear in their length.

Two texts are near-duplicates where their sets of shingles (runs of 8 bytes of the text in small letters, white space
made one space) overlap by four fifths (Jaccard; Broder 1997). Where the texts are many, the sets are sampled by a hash,
the same shingles in every text (as Manber 1994). Where we depart: texts are compared neither two by two nor by
locality-sensitive hashing. Each shingle links the texts that have it in a chain, and the links between two texts are
counted: near-duplicates are next to each other in nearly all their shingles' chains. Two that have a third between them
are joined by being alike to it.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Ints = NDArray[np.int64]

_SHINGLE = 8  # bytes, so that one is a 64-bit number
_ALIKE = 0.8
_SAMPLE = 4_000_000  # shingles kept, of all texts together
_CHUNK = 1 << 22  # bytes of text read at once
_MIX = np.uint64(0x9E3779B97F4A7C15)  # odd: multiplying is a bijection of 64-bit numbers that stirs the high bits


def near_duplicates(texts: Sequence[str]) -> Ints:
    """Number texts so that near-duplicates share a number.

    Args:
        texts: n texts. Those shorter than 8 bytes are duplicates only where they are equal but for case and space.

    Returns:
        (n,) numbers from 0.

    Example:
        >>> long = "The kettle is on, and the tea will be ready in about four minutes, if you can wait that long. "
        >>> near_duplicates([long, "Something else.", long.upper() + " ", long + "Can you?"])
        array([0, 1, 0, 0])
    """
    numbers: dict[str, int] = {}
    same = np.array([numbers.setdefault(" ".join(t.casefold().split()), len(numbers)) for t in texts], np.int64)
    if len(numbers) < 2:
        return same
    one, two = _links([text.encode("utf-8", "replace") for text in numbers])
    links = coo_array((np.ones(len(one), bool), (one, two)), shape=(len(numbers), len(numbers)))
    _, label = connected_components(links, directed=False)
    return np.asarray(label[same], np.int64)


def _links(texts: list[bytes]) -> tuple[Ints, Ints]:
    """Pairs of texts that are alike, as two columns of numbers."""
    text, shingle = _shingles(texts)
    order = np.lexsort((text, shingle))
    text, shingle = text[order], shingle[order]
    first = np.r_[True, (np.diff(text) != 0) | (shingle[1:] != shingle[:-1])][: len(text)]  # a set has each once
    text, shingle = text[first], shingle[first]
    size = np.bincount(text, minlength=len(texts))
    chained = shingle[1:] == shingle[:-1]
    pair, shared = np.unique(text[:-1][chained] * len(texts) + text[1:][chained], return_counts=True)
    one, two = pair // len(texts), pair % len(texts)
    alike = shared >= _ALIKE * (size[one] + size[two] - shared)
    return one[alike], two[alike]


def _shingles(texts: list[bytes]) -> tuple[Ints, NDArray[np.uint64]]:
    """The sampled shingles of each text: number of the text, and the shingle's hash."""
    kept_in = max(1, sum(map(len, texts)) // _SAMPLE)
    limit = np.uint64(0xFFFFFFFFFFFFFFFF // kept_in)
    found = []
    first = 0
    while first < len(texts):
        last, size = first, 0
        while last < len(texts) and size < _CHUNK:
            size += len(texts[last])
            last += 1
        found.append(_chunk(texts[first:last], first, limit))
        first = last
    return np.concatenate([text for text, _ in found]), np.concatenate([shingle for _, shingle in found])


def _chunk(texts: list[bytes], first: int, limit: np.uint64) -> tuple[Ints, NDArray[np.uint64]]:
    end = np.cumsum([len(text) for text in texts])
    raw = b"".join(texts) + bytes(_SHINGLE)
    window: NDArray[np.uint64] = np.ndarray((end[-1],), "<u8", raw, strides=(1,)) * _MIX
    kept = np.flatnonzero(window <= limit)
    text = np.searchsorted(end, kept, side="right")
    whole = kept + _SHINGLE <= end[text]  # not those that run on into the next text
    return first + text[whole], window[kept[whole]]
