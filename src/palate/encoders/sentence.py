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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from palate.encoders.base import Progress
from palate.encoders.cache import VectorCache
from palate.encoders.reading import Floats, batches, check_pairs, readable, through_cache

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from torch import Tensor
    from transformers import PreTrainedModel

LAYOUT = 1
"""Version of a text's vector: raised when its columns change, so that no cache of another layout is read."""


@dataclass(frozen=True, eq=False)
class SentenceEncoder:
    """A BERT-like model that reads texts; `palate.encoders.load_encoder` makes one.

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
    def deepest(self) -> int:
        """The uppermost layer that the features differentiate in."""
        return max(self.layers)

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
        check_pairs(prompts, completions)
        texts, asked, answered = _distinct(prompts, completions)
        width = self.width - 1 + self._hidden
        vectors = through_cache(texts, width, lambda rows: self._read([texts[i] for i in rows]), self.cache, progress)
        cosine = self.blocks["cosine"].start
        features = np.empty((len(prompts), self.width), dtype=np.float32)
        features[:, :cosine] = vectors[answered, :cosine]
        features[:, cosine] = _cosine(vectors[asked, cosine - 1 :], vectors[answered, cosine - 1 :])
        return features

    def features(self, prompts: Sequence[str], completions: Sequence[str]) -> "Tensor":
        """The same (n, D) as `encode`, straight from the model and differentiable in its weights.

        The cosine passes no gradient: it alone reads the layers above `deepest`, for one column of thousands.
        """
        import torch

        texts, asked, answered = _distinct(prompts, completions)
        vectors = self._read(texts)
        cosine = self.blocks["cosine"].start
        a, b = (vectors[rows, cosine - 1 :].detach() for rows in (asked, answered))
        has_both = (a[:, 0] > 0) & (b[:, 0] > 0)
        angle = torch.nn.functional.cosine_similarity(a[:, 1:], b[:, 1:]) * has_both
        return torch.cat([vectors[answered, :cosine], angle[:, None]], dim=1)

    def _read(self, texts: Sequence[str]) -> "Tensor":
        """What is kept of each text, (n, 2·L·H + 1 + H): mean, last, length, mean of the last layer."""
        import torch

        windows = [[e, *e.overflowing] for e in self.tokenizer.encode_batch_fast([readable(text) for text in texts])]
        owner = np.repeat(np.arange(len(texts)), [len(w) for w in windows])
        is_final = np.append(owner[1:] != owner[:-1], True)
        flat = [encoding for text_windows in windows for encoding in text_windows]
        last_position = np.array([_last_position(encoding) for encoding in flat])

        device, layers, hidden = self.model.device, len(self.layers), self._hidden
        sums = torch.zeros(len(texts), layers + 1, hidden, device=device)
        last = torch.zeros(len(texts), layers, hidden, device=device)
        for batch in batches(np.array([len(encoding) for encoding in flat]), device.type):
            of_text = torch.from_numpy(owner[batch]).to(device)
            final = torch.from_numpy(is_final[batch]).to(device)
            batch_sums, batch_last = self._forward([flat[i].ids for i in batch], last_position[batch])
            sums = sums.index_add(0, of_text, batch_sums)
            last = last.index_add(0, of_text[final], batch_last[final])

        tokens = np.bincount(owner, [len(encoding) for encoding in flat], minlength=len(texts))
        means = sums / torch.from_numpy(np.maximum(tokens, 1)).to(device, sums.dtype)[:, None, None]
        own_tokens = [sum(len(e) - sum(e.special_tokens_mask) for e in w) for w in windows]
        length = torch.log1p(torch.tensor(own_tokens, device=device, dtype=sums.dtype))
        return torch.cat(
            [means[:, :layers].flatten(1), last.flatten(1), length[:, None], means[:, layers].flatten(1)], dim=1
        )

    def _forward(self, ids: Sequence[Sequence[int]], last_position: NDArray[np.intp]) -> "tuple[Tensor, Tensor]":
        """Sums over tokens (batch, L + 1, H), the last layer's at the end, and last tokens (batch, L, H)."""
        import torch

        padded = np.full((len(ids), max(map(len, ids))), self.model.config.pad_token_id or 0)
        mask = np.zeros_like(padded)
        for i, window in enumerate(ids):
            padded[i, : len(window)] = window
            mask[i, : len(window)] = 1
        device = self.model.device
        attention = torch.from_numpy(mask).to(device)
        output = self.model(
            input_ids=torch.from_numpy(padded).to(device),
            attention_mask=attention,
            output_hidden_states=True,
        )
        # In single precision also where the model works in bfloat16: a sum over tokens would lose there.
        with torch.autocast(device.type, enabled=False):
            states = [output.hidden_states[layer].float() for layer in self.layers]
            weights = attention[:, None].float()  # (batch, 1, tokens)
            sums = torch.cat([weights @ state for state in [*states, output.last_hidden_state.float()]], dim=1)
        rows, columns = torch.arange(len(ids)), torch.from_numpy(last_position)
        return sums, torch.stack([state[rows, columns] for state in states], dim=1)


def _distinct(prompts: Sequence[str], completions: Sequence[str]) -> tuple[list[str], list[int], list[int]]:
    """Each text once, and where every prompt and every completion stands among them."""
    row = {text: i for i, text in enumerate(dict.fromkeys([*prompts, *completions]))}
    return list(row), [row[text] for text in prompts], [row[text] for text in completions]


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
