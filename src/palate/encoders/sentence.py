"""The sentence encoder: what several layers of a BERT-like model make of a prompt and its completion.

The features of a pair, in this order (H is the model's hidden size, L the number of layers read):

| block | columns | what |
| --- | --- | --- |
| mean | L·H | hidden states of the completion averaged over its tokens, special ones included |
| last | L·H | hidden states of its last token of its own: an answer cut short shows there |
| length | 1 | log(1 + number of its tokens, special ones left out) |
| cosine | 1 | cosine of the last layer's averages of prompt and completion; 0 where either has no tokens |

A text past the model's window is read in consecutive windows, and the average is over the tokens of all.
A text without tokens (empty, or nothing but characters that the tokeniser drops) is read as its special
tokens, the last of them standing for its last token; zeros where the tokeniser has none.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from palate.encoders.base import Progress
from palate.encoders.cache import VectorCache
from palate.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedModel

LAYOUT = 1
"""Version of a text's vector: raised when its columns change, so that no cache of another layout is read."""

# Texts are read, and written to the cache, a chunk at a time: an interruption loses one chunk at most.
_CHUNK_TEXTS, _CHUNK_CHARACTERS = 256, 1_000_000
# On a CPU, with answers of 20 to 250 tokens, batches of 1,000 to 4,000 tokens differ by less than the
# noise and 8,000 are slower by a tenth; an accelerator needs more to be busy.
_BATCH_WINDOWS, _BATCH_TOKENS_CPU, _BATCH_TOKENS_ACCELERATOR = 256, 2048, 32_768

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class SentenceEncoder:
    """A frozen BERT-like model that reads texts; `palate.encoders.load_encoder` makes one.

    Attributes:
        name: The name it was loaded by.
        revision: First 16 hex digits of the SHA-256 of its weights.
        folder: Where its files are.
        model: The model, on the device where it is to run.
        tokenizer: Cuts a text into windows that fit the model.
        cache: Where vectors of texts are kept; None to keep none.
        only_layers: The layers to read instead of the default ones; `revision` and `cache` are then of these alone.
    """

    name: str
    revision: str
    folder: Path
    model: "PreTrainedModel" = field(repr=False)
    tokenizer: "Tokenizer" = field(repr=False)
    cache: VectorCache | None = field(default=None, repr=False)
    only_layers: tuple[int, ...] | None = None

    @property
    def depth(self) -> int:
        """How many layers the model has."""
        return int(self.model.config.num_hidden_layers)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers read, counted from 1: by default at most four, evenly spread over the first two thirds."""
        if self.only_layers:
            return self.only_layers
        deepest = max(1, 2 * self.depth // 3)
        count = min(4, deepest)
        return tuple(deepest * k // count for k in range(1, count + 1))

    @property
    def blocks(self) -> Mapping[str, slice]:
        """The columns of each block, by name."""
        pooled = len(self.layers) * self._hidden
        length = 2 * pooled
        return {
            "mean": slice(0, pooled),
            "last": slice(pooled, length),
            "length": slice(length, length + 1),
            "cosine": slice(length + 1, length + 2),
        }

    @property
    def width(self) -> int:
        """Number of columns, D."""
        return 2 * len(self.layers) * self._hidden + 2

    @property
    def _hidden(self) -> int:
        return int(self.model.config.hidden_size)

    def encode(self, prompts: Sequence[str], completions: Sequence[str], *, progress: Progress | None = None) -> Floats:
        """Raw features of each completion as an answer to its prompt.

        A text is read once however often it occurs, as prompt or completion.

        Args:
            prompts: n prompts.
            completions: n completions, one for each prompt.
            progress: Called with (distinct texts done, distinct texts in all).

        Returns:
            (n, D), float32, columns as in `blocks`.

        Raises:
            InputError: The two lists differ in length.

        >>> from palate.encoders import load_encoder
        >>> encoder = load_encoder()  # doctest: +SKIP
        >>> encoder.encode(["Name a fruit."], ["An apple."]).shape  # doctest: +SKIP
        (1, 3074)
        """
        if len(prompts) != len(completions):
            raise InputError(
                f"Got {len(prompts)!r} prompts and {len(completions)!r} completions: "
                "each completion belongs to one prompt; repeat a prompt for each of its completions"
            )
        row = {text: i for i, text in enumerate(dict.fromkeys([*prompts, *completions]))}
        vectors = self._vectors(list(row), progress)
        asked = [row[text] for text in prompts]
        answered = [row[text] for text in completions]
        cosine = self.blocks["cosine"].start
        features = np.empty((len(prompts), self.width), dtype=np.float32)
        features[:, :cosine] = vectors[answered, :cosine]
        features[:, cosine] = _cosine(vectors[asked, cosine - 1 :], vectors[answered, cosine - 1 :])
        return features

    def _vectors(self, texts: Sequence[str], progress: Progress | None) -> Floats:
        """What is kept of each text, (n, 2·L·H + 1 + H): mean, last, length, mean of the last layer."""
        vectors = np.zeros((len(texts), self.width - 1 + self._hidden), dtype=np.float32)
        known = np.zeros(len(texts), dtype=np.bool_)
        if self.cache:
            known = self.cache.load(texts, vectors)
        done = int(known.sum())
        if progress:
            progress(done, len(texts))
        unknown = sorted(np.flatnonzero(~known).tolist(), key=lambda i: len(texts[i]))
        for run in _runs([len(texts[i]) for i in unknown], _CHUNK_TEXTS, _CHUNK_CHARACTERS):
            rows = unknown[run]
            chunk = [texts[i] for i in rows]
            vectors[rows] = self._read(chunk)
            if self.cache:
                self.cache.save(chunk, vectors[rows])
            done += len(rows)
            if progress:
                progress(done, len(texts))
        return vectors

    def _read(self, texts: Sequence[str]) -> Floats:
        """The vectors of `texts`, straight from the model."""
        # A lone half of a surrogate pair, as a careless JSON writer leaves it, is no text: '?' instead.
        readable = [text.encode("utf-8", "replace").decode() for text in texts]
        windows = [[e, *e.overflowing] for e in self.tokenizer.encode_batch_fast(readable)]
        owner = np.repeat(np.arange(len(texts)), [len(w) for w in windows])
        is_final = np.append(owner[1:] != owner[:-1], True)
        flat = [encoding for text_windows in windows for encoding in text_windows]
        sizes = np.array([len(encoding) for encoding in flat])
        last_position = np.array([_last_position(encoding) for encoding in flat])

        layers, hidden = len(self.layers), self._hidden
        sums = np.zeros((len(texts), layers + 1, hidden), dtype=np.float32)
        last = np.zeros((len(texts), layers, hidden), dtype=np.float32)
        order = np.argsort(sizes, kind="stable")
        order = order[sizes[order] > 0]
        budget = _BATCH_TOKENS_CPU if self.model.device.type == "cpu" else _BATCH_TOKENS_ACCELERATOR
        for run in _runs(sizes[order].tolist(), _BATCH_WINDOWS, budget):
            batch = order[run]
            batch_sums, batch_last = self._forward([flat[i].ids for i in batch], last_position[batch])
            np.add.at(sums, owner[batch], batch_sums)
            final = is_final[batch]
            last[owner[batch][final]] = batch_last[final]

        tokens = np.bincount(owner, sizes, minlength=len(texts))
        means = sums / np.maximum(tokens, 1)[:, None, None].astype(np.float32)
        own_tokens = [sum(len(e) - sum(e.special_tokens_mask) for e in w) for w in windows]
        blocks = (means[:, :layers], last, np.log1p(own_tokens), means[:, layers])
        return np.concatenate([block.reshape(len(texts), -1) for block in blocks], axis=1, dtype=np.float32)

    def _forward(self, ids: Sequence[Sequence[int]], last_position: NDArray[np.intp]) -> tuple[Floats, Floats]:
        """Sums over tokens (batch, L + 1, H), the last layer's at the end, and last tokens (batch, L, H)."""
        import torch

        padded = np.full((len(ids), max(map(len, ids))), self.model.config.pad_token_id or 0)
        mask = np.zeros_like(padded)
        for i, window in enumerate(ids):
            padded[i, : len(window)] = window
            mask[i, : len(window)] = 1
        device = self.model.device
        with torch.inference_mode():
            attention = torch.from_numpy(mask).to(device)
            output = self.model(
                input_ids=torch.from_numpy(padded).to(device),
                attention_mask=attention,
                output_hidden_states=True,
            )
            states = [output.hidden_states[layer] for layer in self.layers]
            weights = attention[:, None].to(states[0].dtype)  # (batch, 1, tokens)
            sums = torch.cat([weights @ state for state in [*states, output.last_hidden_state]], dim=1)
            rows, columns = torch.arange(len(ids)), torch.from_numpy(last_position)
            last = torch.stack([state[rows, columns] for state in states], dim=1)
            return sums.cpu().numpy(), last.cpu().numpy()


def _last_position(encoding: "Encoding") -> int:
    """Where the window's last token of its own stands; its last special token where it has no other."""
    own = [i for i, special in enumerate(encoding.special_tokens_mask) if not special]
    return own[-1] if own else max(len(encoding) - 1, 0)


def _cosine(prompts: Floats, completions: Floats) -> Floats:
    """Cosine of each two rows (n, 1 + H) without their first column, which is 0 for a text without tokens."""
    a, b = prompts[:, 1:], completions[:, 1:]
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    has_both = (prompts[:, 0] > 0) & (completions[:, 0] > 0)
    cosine: Floats = np.divide((a * b).sum(axis=1), norms, out=np.zeros_like(norms), where=has_both & (norms > 0))
    return cosine


def _runs(sizes: Sequence[int], most: int, budget: int) -> Iterator[slice]:
    """Cut ascending sizes into runs of at most `most` items that take `budget` at most when padded.

    An item beyond the budget makes a run of its own.

    >>> [list(range(9))[run] for run in _runs([1, 1, 1, 1, 2, 2, 3, 4, 9], 3, 6)]
    [[0, 1, 2], [3, 4, 5], [6], [7], [8]]
    """
    start = 0
    for stop in range(1, len(sizes) + 1):
        full = stop - start == most
        if stop == len(sizes) or full or (stop - start + 1) * sizes[stop] > budget:
            yield slice(start, stop)
            start = stop
