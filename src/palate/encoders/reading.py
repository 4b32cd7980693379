"""What encoders share: reading in bounded batches, and no text twice, with or without gradients."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from palate.encoders.base import Progress
from palate.encoders.cache import VectorCache
from palate.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.float32]

# Texts are read, and written to the cache, a chunk at a time: an interruption loses one chunk at most.
_CHUNK_TEXTS, _CHUNK_CHARACTERS = 256, 1_000_000
# On a CPU, with answers of 20 to 250 tokens, batches of 1,000 to 4,000 tokens differ by less than the
# noise and 8,000 are slower by a tenth; an accelerator needs more to be busy.
_BATCH_ROWS, _BATCH_TOKENS_CPU, _BATCH_TOKENS_ACCELERATOR = 256, 2048, 32_768


def through_cache(
    texts: Sequence[str],
    width: int,
    read: Callable[[list[int]], "Tensor"],
    cache: VectorCache | None,
    progress: Progress | None,
) -> Floats:
    """Vectors of distinct texts, (n, width): those in the cache, and the others read and remembered.

    Args:
        texts: What names each vector in the cache.
        width: Columns of a vector.
        read: Vectors (m, width) of the texts at these places, straight from the model.
        cache: None to keep none.
        progress: Called with (texts done, texts in all).
    """
    import torch

    vectors = np.zeros((len(texts), width), dtype=np.float32)
    known = cache.load(texts, vectors) if cache else np.zeros(len(texts), dtype=np.bool_)
    done = int(known.sum())
    if progress:
        progress(done, len(texts))
    unknown = sorted(np.flatnonzero(~known).tolist(), key=lambda i: len(texts[i]))
    for run in runs([len(texts[i]) for i in unknown], _CHUNK_TEXTS, _CHUNK_CHARACTERS):
        rows = unknown[run]
        with torch.inference_mode():
            vectors[rows] = read(rows).cpu().numpy()
        if cache:
            cache.save([texts[i] for i in rows], vectors[rows])
        done += len(rows)
        if progress:
            progress(done, len(texts))
    return vectors


def batches(sizes: NDArray[np.intp], device: str) -> Iterator[NDArray[np.intp]]:
    """Places of the sequences with one token or more, shortest first, in batches that such a device holds."""
    order = np.argsort(sizes, kind="stable")
    order = order[sizes[order] > 0]
    budget = _BATCH_TOKENS_CPU if device == "cpu" else _BATCH_TOKENS_ACCELERATOR
    for run in runs(sizes[order].tolist(), _BATCH_ROWS, budget):
        yield order[run]


def runs(sizes: Sequence[int], most: int, budget: int) -> Iterator[slice]:
    """Cut ascending sizes into runs of at most `most` items that take `budget` at most when padded.

    An item beyond the budget makes a run of its own.

    >>> [list(range(9))[run] for run in runs([1, 1, 1, 1, 2, 2, 3, 4, 9], 3, 6)]
    [[0, 1, 2], [3, 4, 5], [6], [7], [8]]
    """
    start = 0
    for stop in range(1, len(sizes) + 1):
        full = stop - start == most
        if stop == len(sizes) or full or (stop - start + 1) * sizes[stop] > budget:
            yield slice(start, stop)
            start = stop


def readable(text: str) -> str:
    """The text, with '?' for each lone half of a surrogate pair, as a careless JSON writer leaves it."""
    return text.encode("utf-8", "replace").decode()


def check_pairs(prompts: Sequence[str], completions: Sequence[str]) -> None:
    """Each completion belongs to one prompt.

    Raises:
        InputError: The two lists differ in length.
    """
    if len(prompts) != len(completions):
        raise InputError(
            f"Got {len(prompts)!r} prompts and {len(completions)!r} completions: "
            "each completion belongs to one prompt; repeat a prompt for each of its completions"
        )
