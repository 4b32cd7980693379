"""Answers from a causal language model of Hugging Face on this machine."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any

from palate.alignment.adapters import with_adapter
from palate.alignment.candidates import Candidate, Sampling, as_messages, check_count
from palate.encoders.models import find_model, is_causal, load_tokenizer, quiet, read_config, weights_revision
from palate.errors import InputError, UpstreamError
from palate.feedback import Text, as_text

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast, StoppingCriteriaList

DATE = "26 Jul 2024"
"""Told to templates that write today's date: the same prompt would be another text tomorrow."""


@dataclass(eq=False)
class LocalModel:
    """A causal language model and its tokeniser; `LocalModel.load` reads them.

    Qwen 2 and 2.5, Gemma 2 and Llama 3.2 are tested by name. Prompts are written in the tokeniser's chat template;
    without one as the text of the prompt and an empty line.

    Args:
        name: what it was loaded by.
        model: on the device where it is to run.
        tokenizer: of the model.
        batch: answers written at once.
        revision: of its weights, as encoders have it; empty where it was not loaded from a folder.

    Example:
        >>> from palate.alignment.candidates import Sampling
        >>> source = LocalModel.load("Qwen/Qwen2.5-0.5B-Instruct")                                # doctest: +SKIP
        >>> asyncio.run(source.sample(["How do I boil an egg?"], 8, Sampling(max_tokens=64)))      # doctest: +SKIP
    """

    name: str
    model: "PreTrainedModel" = field(repr=False)
    tokenizer: "PreTrainedTokenizerFast" = field(repr=False)
    batch: int = 32
    revision: str = ""
    _turn: Lock = field(default_factory=Lock, repr=False)

    @classmethod
    def load(cls, name: str, *, adapter: str | Path | None = None, batch: int = 32) -> "LocalModel":
        """Read a model: a local folder, or one from the hub; on the GPU where there is one.

        Args:
            name: of the model.
            adapter: folder of an adapter that `palate train` has made for it, merged into its weights.
            batch: answers written at once.

        Raises:
            EncoderError: it cannot be found, or a file is missing.
            InputError: it is no causal language model, or its weights lack some.
            ModelError: the adapter cannot be read, or was trained on other weights.
        """
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM

        folder = find_model(name)
        if not is_causal(read_config(folder)):
            raise InputError(f"{name!r} is no causal language model; give one such as Qwen 2.5")
        tokenizer = load_tokenizer(folder)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            with quiet():
                read: Any = AutoModelForCausalLM.from_pretrained
                model, report = read(folder, use_safetensors=True, dtype="auto", output_loading_info=True)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"{name!r} cannot be used to write answers: {reason}; copy the whole model") from error
        if missing := sorted(report["missing_keys"]):
            # transformers would fill them with random numbers.
            raise InputError(f"{name!r} cannot be used to write answers: it lacks {missing[0]!r}; copy the whole model")
        if device == "cpu":
            model = model.to(torch.float32)  # half precision is slow there
        revision = weights_revision(folder)
        if adapter is not None:
            model, revision = with_adapter(model, adapter, revision)
            name = f"{name} with {adapter}"
        return cls(name, model.to(device).eval(), tokenizer, batch, revision)

    @property
    def window(self) -> int:
        """Most tokens of a prompt and its answer."""
        positions = getattr(self.model.config, "max_position_embeddings", None) or self.tokenizer.model_max_length
        return int(min(positions, self.tokenizer.model_max_length))

    async def sample(self, prompts: Sequence[Text], n: int, sampling: Sampling) -> list[list[Candidate]]:
        """As `palate.alignment.candidates.Source.sample`; in a thread, one request after the other.

        Who is cancelled while it waits stops the writing.
        """
        left = Event()
        try:
            drawn = await asyncio.to_thread(self.draw, prompts, n, sampling, left=left)
        finally:
            left.set()  # nobody waits for it any more
        return told_apart(self.name, drawn)

    def draw(
        self,
        prompts: Sequence[Text],
        n: int,
        sampling: Sampling,
        *,
        steered: Callable[[Sequence[int]], AbstractContextManager[object]] | None = None,
        left: Event | None = None,
    ) -> list[list[Candidate]]:
        """Answers to each prompt, `batch` at once; also such as say nothing.

        Args:
            prompts: m prompts.
            n: answers to each; one where the temperature is 0.
            sampling: how they are drawn.
            steered: called with the number of the prompt of each row of a batch, for a context in which the batch is
                written, as `palate.alignment.guided` does to lead each row to another person's taste.
            left: once it is set, nothing more is written.

        Raises:
            InputError: n is not from 1 to `MOST`, or a prompt leaves no room in the window for an answer.
        """
        import torch

        check_count(n)
        if sampling.temperature == 0:
            n = 1
        ids = [self._ids(prompt, sampling.max_tokens) for prompt in prompts]
        rows = [i for i in range(len(prompts)) for _ in range(n)]
        # Prompts of like length together: less of a batch is padding.
        rows.sort(key=lambda i: len(ids[i]))
        found: list[list[Candidate]] = [[] for _ in prompts]
        with self._turn, _seeded(sampling.seed):
            for first in range(0, len(rows), self.batch):
                if left is not None and left.is_set():
                    break
                part = rows[first : first + self.batch]
                with torch.inference_mode(), steered(part) if steered else nullcontext():
                    written = self._written([ids[i] for i in part], sampling, left)
                for i, candidate in zip(part, written, strict=True):
                    # The prompt is read once for all answers to it.
                    found[i].append(replace(candidate, prompt_tokens=0 if found[i] else len(ids[i])))
        return found

    def _written(self, ids: Sequence[list[int]], sampling: Sampling, left: Event | None = None) -> list[Candidate]:
        """An answer to each prompt of one batch."""
        import torch

        width = max(map(len, ids))
        padded = torch.full((len(ids), width), self._padding)
        mask = torch.zeros(len(ids), width, dtype=torch.long)
        for row, tokens in enumerate(ids):
            padded[row, width - len(tokens) :] = torch.tensor(tokens)
            mask[row, width - len(tokens) :] = 1
        generate: Callable[..., Tensor] = self.model.generate  # type: ignore[assignment]
        out = generate(
            padded.to(self.model.device),
            attention_mask=mask.to(self.model.device),
            stopping_criteria=None if left is None else _until(left),
            **self._arguments(sampling),
        )
        return [self._candidate(row, sampling) for row in out[:, width:].tolist()]

    def _candidate(self, tokens: list[int], sampling: Sampling) -> Candidate:
        end = next((i for i, token in enumerate(tokens) if token in self._ends), None)
        own = tokens if end is None else tokens[:end]
        text = str(self.tokenizer.decode(own, skip_special_tokens=True))
        cut = end is None and len(tokens) >= sampling.max_tokens
        for stop in sampling.stop:
            if stop in text:
                text, cut = text.partition(stop)[0], False
        return Candidate(text.strip(), len(own), cut, tuple(tokens if end is None else tokens[: end + 1]))

    def _arguments(self, sampling: Sampling) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "max_new_tokens": sampling.max_tokens,
            "do_sample": sampling.temperature > 0,
            "pad_token_id": self._padding,
        }
        if sampling.temperature > 0:
            arguments |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        else:
            arguments |= {"temperature": None, "top_p": None, "top_k": None}
        if sampling.stop:
            arguments |= {"stop_strings": list(sampling.stop), "tokenizer": self.tokenizer}
        return arguments

    async def stream(self, prompt: Text, sampling: Sampling) -> AsyncIterator[str]:
        """As `palate.alignment.candidates.Source.stream`; who stops listening stops the writing."""
        from transformers import TextIteratorStreamer

        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        ids = self._ids(prompt, sampling.max_tokens)
        failed: list[BaseException] = []
        left = Event()

        def write() -> None:
            import torch

            try:
                with self._turn, _seeded(sampling.seed), torch.inference_mode():
                    tokens = torch.tensor([ids], device=self.model.device)
                    generate: Callable[..., Tensor] = self.model.generate  # type: ignore[assignment]
                    generate(
                        tokens,
                        attention_mask=torch.ones_like(tokens),
                        streamer=streamer,
                        stopping_criteria=_until(left),
                        **self._arguments(sampling),
                    )
            except BaseException as error:
                failed.append(error)
                streamer.end()  # type: ignore[no-untyped-call]

        Thread(target=write, daemon=True).start()
        pieces = iter(streamer)
        following: Callable[[], str | None] = partial(next, pieces, None)
        said = False
        try:
            while (piece := await asyncio.to_thread(following)) is not None:
                if piece:
                    said = said or bool(piece.strip())
                    yield piece
        finally:
            left.set()
        if failed:
            raise UpstreamError(f"{self.name} failed while it wrote: {failed[0]}; look at --debug") from failed[0]
        if not said:
            raise UpstreamError(f"{self.name} gave an empty answer; give it more tokens, or another prompt")

    def tokens(self, prompt: Text, answer: str) -> tuple[list[int], list[int]]:
        """Token ids of a prompt, and of an answer to it with its end."""
        ids = self.tokenizer(answer, add_special_tokens=False)["input_ids"]
        end = [] if self.tokenizer.eos_token_id is None else [int(self.tokenizer.eos_token_id)]
        before = self._ids(prompt, 0)
        return before, [*ids, *end][: max(self.window - len(before), 0)]

    def turns(self, prompt: Text) -> list[dict[str, str]]:
        """A prompt as messages that the chat template takes."""
        return _for_template(prompt, self._knows_system)

    def _ids(self, prompt: Text, room: int) -> list[int]:
        """Token ids of a prompt, as the model is to go on from."""
        if self.tokenizer.chat_template:
            from jinja2 import TemplateError

            try:
                text = str(
                    self.tokenizer.apply_chat_template(
                        self.turns(prompt),
                        tokenize=False,
                        add_generation_prompt=True,
                        date_string=DATE,
                    )
                )
            except (TemplateError, ValueError, TypeError) as error:
                raise InputError(
                    f"The chat template of {self.name!r} does not take this conversation: {error}; begin it with a "
                    "user's turn, and let turns alternate"
                ) from error
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            ids = self.tokenizer(as_text(prompt) + "\n\n")["input_ids"]
        if len(ids) + room > self.window:
            raise InputError(
                f"The prompt has {len(ids):,} tokens, and {self.name!r} reads {self.window:,} with the answer's "
                f"{room:,}; shorten it, or lower max_tokens"
            )
        return list(ids)

    @cached_property
    def _knows_system(self) -> bool:
        """Whether the template takes a system turn; Gemma's refuses one."""
        from jinja2 import TemplateError

        turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
        try:
            self.tokenizer.apply_chat_template(turns, tokenize=False, date_string=DATE)
        except (TemplateError, ValueError, TypeError):
            return False
        return True

    @property
    def _ends(self) -> frozenset[int]:
        """Tokens that end an answer."""
        told = self.model.generation_config.eos_token_id if self.model.generation_config else None
        ends = told if isinstance(told, list) else [told]
        return frozenset(int(end) for end in [*ends, self.tokenizer.eos_token_id] if end is not None)

    @property
    def _padding(self) -> int:
        """Any token does: what is padded is not looked at."""
        padding = self.tokenizer.pad_token_id
        return int(min(self._ends, default=0) if padding is None else padding)


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Within it torch draws by the seed, after it as if nothing had been drawn; without a seed it draws on."""
    import torch

    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        yield


def _until(left: Event) -> "StoppingCriteriaList":
    """Ends all answers of a batch once nobody waits for them."""
    import torch
    from transformers import StoppingCriteriaList

    return StoppingCriteriaList([lambda rows, _: torch.full((len(rows),), left.is_set(), device=rows.device)])


def told_apart(name: str, drawn: list[list[Candidate]]) -> list[list[Candidate]]:
    """Candidates without those that say nothing.

    Raises:
        UpstreamError: no other is left of some prompt's.
    """
    found = [[one for one in answers if one.text] for answers in drawn]
    if not all(found):
        raise UpstreamError(f"{name} gave nothing but empty answers; give it more tokens, or another prompt")
    return found


def _for_template(prompt: Text, system: bool) -> list[dict[str, str]]:
    """Turns for a template: without a system turn where it takes none, but at the head of the first other one."""
    turns = as_messages(prompt)
    if system or turns[0]["role"] != "system" or len(turns) < 2:
        return turns
    first, second, *rest = turns
    return [{"role": second["role"], "content": f"{first['content']}\n\n{second['content']}"}, *rest]
