"""The scorer's network: a small BERT-like model with three heads on the averages of its upper layers.

| head | classes | learned from |
| --- | --- | --- |
| satisfaction | five levels of [0, 1] | replies; uniform for languages it does not know |
| target | taste, task, both, none | replies that say what the feeling is on |
| emotion | ambiguous, negative, neutral, positive, each by itself | GoEmotions (Demszky et al. 2020), remarks |

A reply is read alone or with what it answers: `[CLS] reply [SEP] prompt [SEP] completion [SEP]`, the latter two as
the second segment.
"""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, cast
from unicodedata import category, name

import numpy as np
import torch
from torch import Tensor, nn

from palate.encoders.reading import batches

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

    from palate.encoders.base import Progress

LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Satisfaction that the head tells apart; what lies between two is told as a share of both."""
TARGETS = ("taste", "task", "both", "none")
EMOTIONS = ("ambiguous", "negative", "neutral", "positive")

_LAYERS = 4  # upper layers read, one beside the other
_REPLY, _PROMPT, _COMPLETION = 126, 24, 64  # tokens; of a longer reply the first and last half, where feelings stand


class Logits(NamedTuple):
    """What the heads say of B replies."""

    satisfaction: Tensor  # (B, 5)
    target: Tensor  # (B, 4)
    emotion: Tensor  # (B, 4)


class Network(nn.Module):
    """The model and its heads.

    Args:
        body: a BERT-like model.
        dropout: before the heads.
    """

    def __init__(self, body: "PreTrainedModel", dropout: float = 0.2) -> None:
        super().__init__()
        self.body = body
        hidden = int(body.config.hidden_size)
        self.layers = min(_LAYERS, int(body.config.num_hidden_layers))
        self.mix = nn.Sequential(nn.Dropout(dropout), nn.Linear(self.layers * hidden, hidden), nn.GELU())
        self.feel = copy.deepcopy(self.mix)
        self.drop = nn.Dropout(dropout)
        self.satisfaction = nn.Linear(hidden, len(LEVELS))
        self.target = nn.Linear(hidden, len(TARGETS))
        self.emotion = nn.Linear(hidden, len(EMOTIONS))

    def forward(self, ids: Tensor, mask: Tensor, segments: Tensor) -> Logits:
        """Read (B, T) token ids, with ones where there is a token, and 1 for those of the second segment."""
        pooled = self.pool(ids, mask, segments)
        mixed = self.drop(self.mix(pooled))
        return Logits(self.satisfaction(mixed), self.target(mixed), self.emotions(pooled))

    def emotions(self, pooled: Tensor) -> Tensor:
        """(B, 4) logits of the emotions, from (B, layers · H) averages: they have a layer of their own."""
        felt: Tensor = self.emotion(self.drop(self.feel(pooled)))
        return felt

    def pool(self, ids: Tensor, mask: Tensor, segments: Tensor) -> Tensor:
        """(B, layers · H) averages of the upper layers over the reply's own tokens."""
        kind = {"token_type_ids": segments} if getattr(self.body.config, "type_vocab_size", 0) > 1 else {}
        states = self.body(input_ids=ids, attention_mask=mask, output_hidden_states=True, **kind).hidden_states
        # What it answers reaches them by attention.
        own = (mask * (1 - segments))[..., None].float()
        return torch.cat([(state.float() * own).sum(1) / own.sum(1) for state in states[-self.layers :]], dim=1)


class Sequences(NamedTuple):
    """Token ids of n replies, and how many of each are its own; the rest is what it answers."""

    ids: list[list[int]]
    own: list[int]

    def batch(self, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Padded ids, mask and segments of some of them, (B, T) each."""
        width = max(len(self.ids[i]) for i in rows)
        ids, mask, segments = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(3))
        for place, i in enumerate(rows):
            length = len(self.ids[i])
            ids[place, :length] = torch.tensor(self.ids[i])
            mask[place, :length] = 1
            segments[place, self.own[i] : length] = 1
        return ids, mask, segments


def read_all(network: Network, texts: Sequences, progress: "Progress | None" = None) -> Logits:
    """What a network says of n texts, without noise."""
    network.eval()
    out = [torch.zeros(len(texts.ids), n) for n in (len(LEVELS), len(TARGETS), len(EMOTIONS))]
    done = 0
    for batch in batches(np.array([len(ids) for ids in texts.ids], np.intp), "cpu"):
        rows = batch.tolist()
        with torch.inference_mode():
            for table, logits in zip(out, network(*texts.batch(rows)), strict=True):
                table[rows] = logits
        done += len(rows)
        if progress:
            progress(done, len(texts.ids))
    return Logits(*out)


def pooled(network: Network, texts: Sequences, progress: "Progress | None" = None) -> Tensor:
    """(n, layers · H) features of n texts that the heads read, without noise."""
    network.eval()
    out = torch.zeros(len(texts.ids), network.layers * int(network.body.config.hidden_size))
    done = 0
    for batch in batches(np.array([len(ids) for ids in texts.ids], np.intp), "cpu"):
        with torch.inference_mode():
            out[batch.tolist()] = network.pool(*texts.batch(batch.tolist()))
        done += len(batch)
        if progress:
            progress(done, len(texts.ids))
    return out


def sequences(tokenizer: "Tokenizer", replies: Sequence[str], contexts: Sequence[tuple[str, str] | None]) -> Sequences:
    """Replies as token ids.

    Args:
        tokenizer: of the network's body, a BERT's.
        replies: n texts.
        contexts: n pairs of prompt and completion that they answer; None where it is not known.
    """
    begin, end = (cast(int, tokenizer.token_to_id(mark)) for mark in ("[CLS]", "[SEP]"))
    known = [context for context in contexts if context is not None]
    texts = [*replies, *(prompt for prompt, _ in known), *(completion for _, completion in known)]
    encoded = [
        e.ids for e in tokenizer.encode_batch_fast([_readable(text) for text in texts], add_special_tokens=False)
    ]
    first, second = len(replies), len(replies) + len(known)
    before = iter(zip(encoded[first:second], encoded[second:], strict=True))
    ids: list[list[int]] = []
    own: list[int] = []
    for reply, context in zip(encoded[: len(replies)], contexts, strict=True):
        if len(reply) > _REPLY:
            reply = reply[: _REPLY // 2] + reply[-_REPLY // 2 :]
        said = [begin, *reply, end]
        own.append(len(said))
        if context is not None:
            prompt, completion = next(before)
            said += [*prompt[:_PROMPT], end, *completion[:_COMPLETION], end]
        ids.append(said)
    return Sequences(ids, own)


def _readable(text: str, most: int = 4_000) -> str:
    """The beginning and the end of a text, with the names of its emoji, which a BERT's vocabulary lacks."""
    text = text.encode("utf-8", "replace").decode()
    if len(text) > most:
        text = f"{text[: most // 2]} {text[-most // 2 :]}"
    return "".join(f" {name(c, c).lower()} " if category(c) == "So" else c for c in text)
