"""The causal encoder: what any causal language model makes of a prompt and its completion, at the last token.

Qwen 2 and 2.5, Gemma 2 and Llama 3.2 are tested by name; whatever transformers loads as a causal model is read the
same way. The features of a pair, in this order (H is the model's hidden size):

| block | columns | what |
| --- | --- | --- |
| state | H | the last layer's hidden state of the last token, which has read all before it |
| length | 1 | log(1 + number of the completion's tokens) |

A pair is written in the tokeniser's chat template, as one turn of the user and one of the assistant, where it has
one, else as prompt, empty line, completion. A pair past the model's window loses tokens from the prompt's start on,
then from the completion's; what the template puts before the prompt stays. The log counts such pairs.
"""

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from palate.encoders.base import Progress
from palate.encoders.cache import VectorCache
from palate.encoders.reading import Floats, batches, check_pairs, readable, through_cache
from palate.errors import EncoderError

if TYPE_CHECKING:
    from tokenizers import Encoding
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

LAYOUT = 1
"""Version of a pair's vector: raised when its columns change, so that no cache of another layout is read."""

# Stand in for prompt and completion where a template is taken apart: characters that no template holds.
_PROMPT, _COMPLETION = "\ue000prompt\ue000", "\ue001completion\ue001"
# Llama 3.2's template writes today's date unless told one: the same pair would be another text tomorrow.
_DATE = "26 Jul 2024"


class Frame(NamedTuple):
    """What stands around prompt and completion, and whether they lose the blanks at their ends."""

    before: str
    between: str
    after: str
    strips: bool


@dataclass(frozen=True, eq=False)
class CausalEncoder:
    """A causal language model that reads pairs; `palate.encoders.load_encoder` makes one.

    Attributes:
        name: The name it was loaded by.
        revision: First 16 hex digits of the SHA-256 of its weights.
        folder: Where its files are.
        model: The model without its head, on the device where it is to run.
        tokenizer: Of the model; it pads on the side that its `padding_side` says, which changes no feature.
        cache: Where vectors of pairs are kept; None to keep none.
    """

    name: str
    revision: str
    folder: Path
    model: "PreTrainedModel" = field(repr=False)
    tokenizer: "PreTrainedTokenizerFast" = field(repr=False)
    cache: VectorCache | None = field(default=None, repr=False)

    @property
    def deepest(self) -> int:
        """The uppermost layer that the features differentiate in: the last."""
        return int(self.model.config.num_hidden_layers)

    @property
    def blocks(self) -> Mapping[str, slice]:
        """The columns of each block, by name."""
        return {"state": slice(0, self.width - 1), "length": slice(self.width - 1, self.width)}

    @property
    def width(self) -> int:
        """Number of columns, D."""
        return int(self.model.config.hidden_size) + 1

    @property
    def window(self) -> int:
        """Most tokens read of a pair."""
        positions = getattr(self.model.config, "max_position_embeddings", None) or self.tokenizer.model_max_length
        return int(min(positions, self.tokenizer.model_max_length))

    def encode(self, prompts: Sequence[str], completions: Sequence[str], *, progress: Progress | None = None) -> Floats:
        """Raw features of each completion as an answer to its prompt; a pair is read once however often it occurs.

        Args:
            prompts: n prompts.
            completions: n completions, one for each prompt.
            progress: Called with (distinct pairs done, distinct pairs in all).

        Returns:
            (n, D), float32, columns as in `blocks`.

        Raises:
            InputError: The two lists differ in length.
            EncoderError: The tokeniser's chat template cannot be used.
        """
        check_pairs(prompts, completions)
        pairs = list(zip(prompts, completions, strict=True))
        row = {pair: i for i, pair in enumerate(dict.fromkeys(pairs))}
        asked, answered = [prompt for prompt, _ in row], [completion for _, completion in row]
        frame = self.frame
        keys = [
            "\0".join((frame.before, p, frame.between, c, frame.after)) for p, c in zip(asked, answered, strict=True)
        ]
        vectors = through_cache(
            keys,
            self.width,
            lambda rows: self.features([asked[i] for i in rows], [answered[i] for i in rows]),
            self.cache,
            progress,
        )
        return np.asarray(vectors[[row[pair] for pair in pairs]], np.float32)

    def features(self, prompts: Sequence[str], completions: Sequence[str]) -> "Tensor":
        """The same (n, D) as `encode`, straight from the model and differentiable in its weights."""
        import torch

        ids, own_tokens = self._tokens(prompts, completions)
        device = self.model.device
        states, places = [torch.zeros(0, self.width - 1, device=device)], [np.zeros(0, np.intp)]
        for batch in batches(np.array([len(tokens) for tokens in ids]), device.type):
            states.append(self._forward([ids[i] for i in batch]))
            places.append(batch)
        state = torch.cat(states)[torch.from_numpy(np.argsort(np.concatenate(places))).to(device)]
        length = torch.log1p(torch.tensor(own_tokens, device=device, dtype=state.dtype))
        return torch.cat([state, length[:, None]], dim=1)

    def _forward(self, ids: Sequence[Sequence[int]]) -> "Tensor":
        """The last layer's state of each sequence's last token, (batch, H), in single precision."""
        import torch

        length = max(map(len, ids))
        left = self.tokenizer.padding_side == "left" and "position_ids" in self._arguments
        padded = np.full((len(ids), length), self._padding)
        mask = np.zeros_like(padded)
        for i, tokens in enumerate(ids):
            place = slice(length - len(tokens), length) if left else slice(0, len(tokens))
            padded[i, place] = tokens
            mask[i, place] = 1
        device = self.model.device
        given: dict[str, Any] = {
            "input_ids": torch.from_numpy(padded).to(device),
            "attention_mask": torch.from_numpy(mask).to(device),
        }
        if "position_ids" in self._arguments:
            # Without them a model counts the padding on the left.
            given["position_ids"] = torch.from_numpy(np.maximum(mask.cumsum(axis=1) - 1, 0)).to(device)
        if "use_cache" in self._arguments:
            given["use_cache"] = False
        states: Tensor = self.model(**given).last_hidden_state
        last = torch.tensor([length - 1 if left else len(tokens) - 1 for tokens in ids], device=device)
        return states[torch.arange(len(ids), device=device), last].float()

    def _tokens(self, prompts: Sequence[str], completions: Sequence[str]) -> tuple[list[list[int]], list[int]]:
        """Token ids of each pair, cut to the window, and how many tokens each completion has before that."""
        frame, texts, starts = self.frame, [], []
        for prompt, completion in zip(map(readable, prompts), map(readable, completions), strict=True):
            p, c = (prompt.strip(), completion.strip()) if frame.strips else (prompt, completion)
            head = frame.before + p + frame.between
            texts.append(head + c + frame.after)
            starts.append((len(frame.before), len(head), len(head) + len(c)))
        tokenizer = self.tokenizer.backend_tokenizer
        tokenizer.no_padding()
        tokenizer.no_truncation()
        plain = not self.tokenizer.chat_template  # a template writes the special tokens itself
        ids, own, cut = [], [], 0
        for encoding, (prompt_start, start, stop) in zip(
            tokenizer.encode_batch(texts, add_special_tokens=plain), starts, strict=True
        ):
            kept = self._cut(encoding, prompt_start)
            cut += len(kept) < len(encoding)
            ids.append(kept or [self._padding])  # a tokeniser may drop every character
            own.append(sum(a < stop and b > start for a, b in encoding.offsets))
        if cut:
            logger.warning(
                "%d of %d texts are longer than the %d tokens that %s reads: their prompts are cut from the start",
                *(cut, len(texts), self.window, self.name),
            )
        return ids, own

    def _cut(self, encoding: "Encoding", prompt_start: int) -> list[int]:
        """The ids that fit the window: the first ones of the prompt go, and if need be more."""
        ids: list[int] = encoding.ids
        if len(ids) <= self.window:
            return ids
        head = sum(1 for _, stop in encoding.offsets if stop <= prompt_start)
        head = min(head, self.window // 2)
        return ids[:head] + ids[len(ids) - (self.window - head) :]

    @cached_property
    def frame(self) -> Frame:
        """What the chat template puts around prompt and completion.

        Raises:
            EncoderError: The template fails, or leaves one of the two out.
        """
        if not self.tokenizer.chat_template:
            return Frame("", "\n\n", "", strips=False)
        from jinja2 import TemplateError

        turns = [{"role": "user", "content": f" {_PROMPT} "}, {"role": "assistant", "content": f" {_COMPLETION} "}]
        try:
            written = str(self.tokenizer.apply_chat_template(turns, tokenize=False, date_string=_DATE))
        except (TemplateError, ValueError, TypeError) as error:
            raise self._unusable(str(error)) from error
        before, found, rest = written.partition(_PROMPT)
        between, found_too, after = rest.partition(_COMPLETION)
        if not found or not found_too:
            raise self._unusable("it leaves out the prompt or the completion")
        if before.endswith(" ") and between[:1] == " " == between[-1:] and after.startswith(" "):
            return Frame(before[:-1], between[1:-1], after[1:], strips=False)
        return Frame(before, between, after, strips=True)

    def _unusable(self, reason: str) -> EncoderError:
        return EncoderError(
            f"The chat template of {self.name!r} cannot be used: {reason}; give a model whose template takes a user's "
            "turn and an assistant's, or take the template out of its tokenizer_config.json"
        )

    @cached_property
    def _arguments(self) -> frozenset[str]:
        """What the model's forward pass takes: not all know positions or a cache."""
        return frozenset(inspect.signature(self.model.forward).parameters)

    @property
    def _padding(self) -> int:
        """Any token does: what is padded is not looked at."""
        return int(self.tokenizer.pad_token_id or 0)
