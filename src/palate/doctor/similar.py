"""Near-duplicate texts, found in time linear in their length (MinHash: Broder 1997).

Two texts are near-duplicates where their sets of shingles (runs of 8 bytes of the text in small letters, white space
made one space) overlap by four fifths (Jaccard). Where the texts are many, the sets are sampled by a hash, the same
shingles in every text (as Manber 1994). Texts whose smallest shingles under two random orders agree are compared, over
many such pairs of orders; that is to say, texts next to one another in such a bucket, and near-duplicates of
near-duplicates count as such. A near-duplicate may be missed: at just four fifths, and among so many texts (4 MB) that
short ones have fewer than three shingles in the sample.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

Ints = NDArray[np.int64]
_Hashes = NDArray[np.uint64]

_SHINGLE = 8  # bytes, so that one is a 64-bit number
_ALIKE = 0.8
_FEWEST = 3  # shingles in common: one or two of a sample may be alike by chance
_SAMPLE = 4_000_000  # shingles kept, of all texts together
_CHUNK = 1 << 22  # bytes of text read at once
_BUCKETS = 12  # at an overlap of 0.8 one pair of orders agrees in 64 of 100 cases, one of twelve in all but 5 of 10^6
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
    one, two = _alike(*_shingles([text.encode("utf-8", "replace") for text in numbers]), len(numbers))
    links = coo_array((np.ones(len(one), bool), (one, two)), shape=(len(numbers), len(numbers)))
    _, label = connected_components(links, directed=False)
    return np.asarray(label[same], np.int64)


def _alike(text: Ints, shingle: _Hashes, texts: int) -> tuple[Ints, Ints]:
    """Pairs of texts that overlap enough, as two columns of numbers."""
    order = np.lexsort((shingle, text))
    text, shingle = text[order], shingle[order]
    new = np.r_[True, (np.diff(text) != 0) | (shingle[1:] != shingle[:-1])][: len(text)]  # a set has each once
    text, shingle = text[new], shingle[new]
    one, two = _candidates(text, shingle)
    distinct, column = np.unique(shingle, return_inverse=True)
    sets = csr_array((np.ones(len(text), np.int32), (text, column)), shape=(texts, len(distinct)))
    size = np.bincount(text, minlength=texts)
    shared = np.asarray(sets[one].multiply(sets[two]).sum(axis=1)).ravel()
    enough = shared >= np.maximum(_FEWEST, _ALIKE * (size[one] + size[two] - shared))
    return one[enough], two[enough]


def _candidates(text: Ints, shingle: _Hashes) -> tuple[Ints, Ints]:
    """Pairs of texts that may be alike; `text` ascending."""
    first = np.flatnonzero(np.r_[True, np.diff(text) != 0][: len(text)])
    who = text[first]
    rng = np.random.default_rng(0)
    found = [np.empty((2, 0), np.int64)]
    for _ in range(_BUCKETS if len(first) else 0):
        least = [np.minimum.reduceat(_stirred(shingle, rng), first) for _ in range(2)]
        order = np.lexsort(least)
        agree = np.logical_and(*(column[order][1:] == column[order][:-1] for column in least))
        found.append(np.sort(np.stack([who[order][:-1][agree], who[order][1:][agree]]), axis=0))
    one, two = np.unique(np.concatenate(found, axis=1), axis=1)
    return one, two


def _stirred(shingle: _Hashes, rng: np.random.Generator) -> _Hashes:
    """The same numbers in another random order."""
    odd = rng.integers(1 << 62, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    mixed = (shingle ^ (shingle >> np.uint64(31))) * odd
    return np.asarray(mixed ^ (mixed >> np.uint64(32)), np.uint64)


def _shingles(texts: list[bytes]) -> tuple[Ints, _Hashes]:
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


def _chunk(texts: list[bytes], first: int, limit: np.uint64) -> tuple[Ints, _Hashes]:
    end = np.cumsum([len(text) for text in texts])
    raw = b"".join(texts) + bytes(_SHINGLE)
    window: _Hashes = np.ndarray((end[-1],), "<u8", raw, strides=(1,)) * _MIX
    kept = np.flatnonzero(window <= limit)
    text = np.searchsorted(end, kept, side="right")
    whole = kept + _SHINGLE <= end[text]  # not those that run on into the next text
    return first + text[whole], window[kept[whole]]
