"""Where answers come from: one protocol for an endpoint, a model on this machine, and answers that are known.

| source | module |
| --- | --- |
| any OpenAI-compatible endpoint: OpenAI, vLLM, llama.cpp, Ollama | `palate.alignment.endpoint` |
| a causal language model of Hugging Face on this machine | `palate.alignment.local` |
| known answers, such as those that ship with Palate | `Known`, here |
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from palate.errors import InputError
from palate.feedback import Text, as_text

MOST = 1024
"""Candidates that may be asked for at once: more is a slip."""


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    Args:
        temperature: ≥ 0; 0 takes the likeliest token every time.
        top_p: in (0, 1]; only the likeliest tokens that make up this share are drawn.
        max_tokens: of an answer, ≥ 1.
        stop: an answer ends before any of these.
        seed: same seed, same answers, where the source honours it.
        more: further arguments of a request to an endpoint; other sources have none.

    Raises:
        InputError: a value is out of its range.

    Example:
        >>> Sampling(temperature=-1.0)
        Traceback (most recent call last):
            ...
        palate.errors.InputError: temperature -1.0 is not 0 or more; give 0 for the likeliest answer, ...
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    seed: int | None = None
    more: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < np.inf:
            raise InputError(
                f"temperature {self.temperature!r} is not 0 or more; give 0 for the likeliest answer, 1 for the "
                "model's own"
            )
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p {self.top_p!r} is not in (0, 1]; give 1 to draw from all tokens")
        if self.seed is not None and self.seed < 0:
            raise InputError(f"seed {self.seed!r} is not 0 or more; give one, or none")
        if self.max_tokens < 1:
            raise InputError(f"max_tokens {self.max_tokens!r} is not 1 or more; give how long an answer may be")

    def moved(self, by: int) -> "Sampling":
        """The same with another seed, if it has one: for draws that must differ from these."""
        return self if self.seed is None else replace(self, seed=self.seed + by)


@dataclass(frozen=True)
class Candidate:
    """One answer that was drawn.

    Args:
        text: what it says.
        tokens: how many it took.
        prompt_tokens: how many were read for it; of several answers to one request the first bears them all.
        cut: whether it ran into `max_tokens`.
        ids: its tokens, the end's with them if it came to one, where the source is a model on this machine.
    """

    text: str
    tokens: int
    cut: bool = False
    ids: tuple[int, ...] = ()
    prompt_tokens: int = 0


class Source(Protocol):
    """What answers are drawn from."""

    @property
    def name(self) -> str:
        """What it is called, such as the model's name."""

    async def sample(self, prompts: Sequence[Text], n: int, sampling: Sampling) -> list[list[Candidate]]:
        """Answers to each prompt, n or fewer where it has no more; at least one, and none that says nothing.

        Raises:
            InputError: n is not from 1 to `MOST`, or a prompt is longer than the source reads.
            UpstreamError: the source is out of reach, or gave nothing that is an answer.
        """

    def stream(self, prompt: Text, sampling: Sampling) -> AsyncIterator[str]:
        """One answer, piece by piece; raises as `sample` does."""


@dataclass(frozen=True)
class Known:
    """Answers that are there already; a prompt not among theirs takes those of the most alike one.

    Args:
        answers: those to each prompt.
        name: what the source is called.
        alike: the least likeness of two prompts, in [0, 1], that counts; 1 for the same prompt only.

    Example:
        >>> import asyncio
        >>> known = Known({"How do I boil an egg?": ["Nine minutes.", "Patience, dear friend."]})
        >>> [drawn] = asyncio.run(known.sample(["how do i boil an egg"], 2, Sampling(seed=0)))
        >>> sorted(answer.text for answer in drawn)
        ['Nine minutes.', 'Patience, dear friend.']
    """

    answers: dict[str, list[str]]
    name: str = "known answers"
    alike: float = 0.6

    @classmethod
    def bundled(cls) -> "Known":
        """The 1,440 whole answers that ship with Palate, 12 to each of 120 prompts."""
        from palate.data import load_answers

        answers: dict[str, list[str]] = {}
        for answer in load_answers():
            if answer.spoilt is None:
                answers.setdefault(answer.prompt, []).append(answer.text)
        return cls(answers, "bundled answers")

    async def sample(self, prompts: Sequence[Text], n: int, sampling: Sampling) -> list[list[Candidate]]:
        """As `Source.sample`: by chance, none twice."""
        check_count(n)
        rng = np.random.default_rng(sampling.seed)
        drawn = []
        for prompt in prompts:
            texts = self.answers[self.nearest(prompt)]
            read = len(as_text(prompt).split())
            few = rng.permutation(len(texts))[:n]
            drawn.append([_as_drawn(texts[i], sampling, 0 if place else read) for place, i in enumerate(few)])
        return drawn

    async def stream(self, prompt: Text, sampling: Sampling) -> AsyncIterator[str]:
        """As `Source.stream`: word by word."""
        [[answer]] = await self.sample([prompt], 1, sampling)
        for word in answer.text.split(" "):
            yield word + " "

    def nearest(self, prompt: Text) -> str:
        """The known prompt most like one; in a conversation like what was asked last that any is like.

        "Shorter, please" is no question, so that the one before it is answered again.

        Raises:
            InputError: none is alike.
        """
        turns = _asked(prompt)
        found = next((one for one in map(self._most_like, turns) if one), None)
        if found is None:
            example = next(iter(self.answers), "")
            raise InputError(
                f"There is no answer to {turns[0][:80]!r} among the {self.name}; name a model to ask, "
                f"or ask what they answer, such as {example!r}"
            )
        return found

    def _most_like(self, asked: str) -> str | None:
        if exact := self._known.get(_plain(asked)):
            return exact
        # Not more than a long question's worth: likeness takes time that grows with the product of lengths.
        likeness = {
            known: SequenceMatcher(None, _plain(asked[:2_000]), plain).ratio() for plain, known in self._known.items()
        }
        best = max(likeness, key=likeness.__getitem__, default=None)
        return None if best is None or likeness[best] < self.alike else best

    @cached_property
    def _known(self) -> dict[str, str]:
        return {_plain(prompt): prompt for prompt in self.answers}


def _as_drawn(text: str, sampling: Sampling, read: int) -> Candidate:
    """A known answer as if it had been written so, a word a token."""
    for stop in sampling.stop:
        text = text.partition(stop)[0]
    words = text.split()
    cut = len(words) > sampling.max_tokens
    if cut:
        text = " ".join(words[: sampling.max_tokens])
    return Candidate(text.strip(), min(len(words), sampling.max_tokens), cut, prompt_tokens=read)


def _asked(prompt: Text) -> list[str]:
    """What was said by the user, the latest first."""
    if isinstance(prompt, str):
        return [prompt]
    return [m["content"] for m in reversed(prompt) if m["role"] == "user"] or [as_text(prompt)]


def _plain(text: str) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split())


def check_count(n: int) -> None:
    """Whether so many candidates can be asked for.

    Raises:
        InputError: they cannot.
    """
    if not 1 <= n <= MOST:
        raise InputError(f"{n!r} candidates is not from 1 to {MOST:,}; 8 are plenty for most")


def as_messages(prompt: Text) -> list[dict[str, str]]:
    """A prompt as a conversation.

    Example:
        >>> as_messages("Hi")
        [{'role': 'user', 'content': 'Hi'}]
    """
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [{"role": message["role"], "content": message["content"]} for message in prompt]
