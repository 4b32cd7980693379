"""An answer for one person: the strategies, how they compose, and when the usual answer is given after all.

| strategy | what it does |
| --- | --- |
| `off` | the source's own answer |
| `instruct` | the taste in plain words goes before the prompt |
| `examples` | the person's most telling choices go before the prompt |
| `guided` | each token is moved while a local model writes |
| `best-of-n` | of n answers the one that the person is expected to like best |

Joined by a plus they compose, as in `instruct+best-of-n`: words before the prompt, guidance while writing, and a
choice at the end.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from palate.alignment.best_of_n import Taken, Taking, best_of_n, gain_of_more
from palate.alignment.candidates import Candidate, Sampling, Source, check_count
from palate.alignment.instruct import examples, instruction, with_system
from palate.errors import InputError, ModelError
from palate.feedback import Record, Text, as_text
from palate.rewards import RewardModel
from palate.rewards.beliefs import Belief

if TYPE_CHECKING:
    from palate.alignment.value_head import ValueHead

PARTS = ("instruct", "examples", "guided", "best-of-n")
"""What a strategy may be made of, besides `off`."""


@dataclass(frozen=True)
class Person:
    """What is known of whom an answer is for.

    Args:
        belief: their posterior.
        fingerprint: of the reward model that it was computed with.
        personal: whether their own answers support personalising (`RewardModel.weigh`).
        evidence: what they said, in order of time; needed by `examples` alone, and so is `half_life`, in days.
    """

    belief: Belief
    fingerprint: str
    personal: bool = True
    evidence: Sequence[Record] = ()
    half_life: float | None = None

    @classmethod
    def of(cls, model: RewardModel, evidence: Sequence[Record], *, half_life: float | None = None) -> "Person":
        """A person by what they said, in order of time; nobody in particular by nothing."""
        belief = model.posterior(evidence, half_life=half_life)
        personal = model.weigh(evidence, half_life=half_life).personal
        return cls(belief, model.fingerprint, personal, tuple(evidence), half_life)


@dataclass(frozen=True)
class Answer:
    """What a person is given, and how it came about.

    Args:
        text: the answer.
        strategy: that was used; `off` where the guard held personalising back.
        guarded: whether the guard did.
        system: what was put before the prompt, if anything.
        taken: all candidates with their scores; of one candidate, too.
        drawn: candidates that were drawn, duplicates included.
        prompt_tokens: read for all of these.
        tokens: written for all of them.
        seconds: that it took.
    """

    text: str
    strategy: str
    guarded: bool
    system: str | None
    taken: Taken
    drawn: int
    prompt_tokens: int
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Effort:
    """How much is done for one answer.

    Args:
        candidates: drawn at most, for `best-of-n`.
        at_once: of them drawn in one round.
        tolerance: no further round once it is expected to gain less than this, in logits; 0: all are drawn, unless a
            round brings nothing new.
        hotter: each further round has so much more of the sampling's temperature, for answers that differ more.
        strength: of `guided`, 1 / τ, > 0.

    Raises:
        InputError: a value is out of its range.
    """

    candidates: int = 8
    at_once: int = 8
    tolerance: float = 0.0
    hotter: float = 0.0
    strength: float = 1.0

    def __post_init__(self) -> None:
        check_count(self.candidates)
        check_count(self.at_once)
        for name, value in (("tolerance", self.tolerance), ("hotter", self.hotter)):
            if not 0 <= value < np.inf:
                raise InputError(f"{name} {value!r} is not 0 or more; give 0 to leave it out")
        if not 0 < self.strength < np.inf:
            raise InputError(f"strength {self.strength!r} is not above 0; leave `guided` out instead")


@dataclass(frozen=True)
class Personalizer:
    """Answers for people, from one source by one reward model.

    Args:
        model: the reward model.
        source: where answers come from.
        head: the source's value head, for `guided`.
        taking: how one of the candidates is taken.
        effort: how much is done.

    Raises:
        ModelError: the value head is of another reward model, or of another language model than the source.

    Example:
        >>> ana = Person.of(model, [Comparison(user_id="ana", prompt="Hi", chosen="Hey!", rejected="Hello.")])
        ... # doctest: +SKIP
        >>> anew = Personalizer(model, Known.bundled())  # doctest: +SKIP
        >>> await anew.answer("How do I boil an egg?", ana)  # doctest: +SKIP
    """

    model: RewardModel
    source: Source
    head: "ValueHead | None" = None
    taking: Taking = Taking()
    effort: Effort = Effort()

    def __post_init__(self) -> None:
        if self.head is not None:
            self.head.check(self.model, getattr(self.source, "revision", ""))

    async def answer(
        self,
        prompt: Text,
        person: Person | None = None,
        strategy: str = "best-of-n",
        sampling: Sampling = Sampling(),
        *,
        heard: Callable[[str], object] | None = None,
    ) -> Answer:
        """One answer.

        Args:
            prompt: a text or a conversation.
            person: for whom; None for the population's taste.
            strategy: `off`, or parts joined by a plus.
            sampling: how answers are drawn.
            heard: called with each piece of the answer as it comes, where only one is drawn and not guided; else with
                the whole.

        Raises:
            InputError: there is no such strategy, or the source cannot be guided.
            ModelError: the person's posterior was computed with another reward model.
            UpstreamError: the source is out of reach.
        """
        begun = time.perf_counter()
        parts = parts_of(strategy)
        if person is not None and person.fingerprint != self.model.fingerprint:
            raise ModelError(
                f"The taste was computed with reward model {person.fingerprint}, not {self.model.fingerprint}; "
                "compute it anew from the evidence"
            )
        guarded = bool(parts) and person is not None and not person.personal
        if guarded:
            parts, person = (), None
        system = self._words(parts, person)
        asked = with_system(prompt, system)
        if heard and not {"guided", "best-of-n"} & set(parts):
            pieces = []
            async for piece in self.source.stream(asked, sampling):
                pieces.append(piece)
                heard(piece)
            read = len(as_text(asked).split())  # a stream tells no tokens
            drawn = [Candidate("".join(pieces).strip(), len(pieces), prompt_tokens=read)]
            taken = await self._choose(person, prompt, drawn)
        else:
            taken, drawn = await self._taken(prompt, asked, person, parts, sampling)
            if heard:
                heard(taken.text)
        return Answer(
            taken.text,
            "+".join(parts) or "off",
            guarded,
            system,
            taken,
            len(drawn),
            sum(one.prompt_tokens for one in drawn),
            sum(one.tokens for one in drawn),
            time.perf_counter() - begun,
        )

    def _words(self, parts: Sequence[str], person: Person | None) -> str | None:
        if person is None:
            return None
        words = [
            instruction(self.model, person.belief) if "instruct" in parts else None,
            examples(self.model, person.evidence, half_life=person.half_life) if "examples" in parts else None,
        ]
        return "\n\n".join(filter(None, words)) or None

    async def _taken(
        self, prompt: Text, asked: Text, person: Person | None, parts: Sequence[str], sampling: Sampling
    ) -> tuple[Taken, list[Candidate]]:
        """The candidate taken, round after round, and all that were drawn."""
        belief = None if person is None else person.belief
        most = self.effort.candidates if "best-of-n" in parts else 1
        rng = np.random.default_rng(sampling.seed)
        found: dict[str, Candidate] = {}
        drawn: list[Candidate] = []
        while True:
            n = min(self.effort.at_once, most - len(drawn))
            now = replace(
                sampling.moved(len(drawn)),
                temperature=sampling.temperature * (1 + self.effort.hotter * (len(drawn) // self.effort.at_once)),
            )
            new = await self._sample(asked, belief, n, parts, now)
            before = len(found)
            for one in new:
                found.setdefault(one.text, one)
            drawn += new
            taken = await self._choose(person, prompt, list(found.values()), rng)
            left = most - len(drawn)
            if left <= 0 or len(found) == before or len(new) < n:
                return taken, drawn
            if gain_of_more([one.score for one in taken.candidates], left) < self.effort.tolerance:
                return taken, drawn

    async def _choose(
        self, person: Person | None, prompt: Text, found: list[Candidate], rng: np.random.Generator | None = None
    ) -> Taken:
        belief = None if person is None else person.belief
        if all(self.model.row_of(prompt, one.text) is not None for one in found):
            return best_of_n(self.model, belief, prompt, found, self.taking, rng)
        # In a thread: answers that were never read before go through the encoder, which would hold up everybody else.
        return await asyncio.to_thread(best_of_n, self.model, belief, prompt, found, self.taking, rng)

    async def _sample(
        self, asked: Text, belief: Belief | None, n: int, parts: Sequence[str], sampling: Sampling
    ) -> list[Candidate]:
        if "guided" not in parts:
            [answers] = await self.source.sample([asked], n, sampling)
            return answers
        from palate.alignment.guided import guided_answers
        from palate.alignment.local import LocalModel, told_apart

        if self.head is None or not isinstance(self.source, LocalModel):
            raise InputError(
                f"{self.source.name!r} cannot be guided: that takes a model on this machine and its value head; "
                "train one with palate train value-head, or choose best-of-n"
            )
        weights = (self.model.prior if belief is None else belief).mean[None]
        drawn = await asyncio.to_thread(
            guided_answers, self.source, self.head, [asked], weights, n, sampling, 1 / self.effort.strength
        )
        return told_apart(self.source.name, drawn)[0]


def parts_of(strategy: str) -> tuple[str, ...]:
    """The parts of a strategy, in order; none for `off`.

    Raises:
        InputError: there is no such strategy.

    Example:
        >>> parts_of("best-of-n+instruct")
        ('instruct', 'best-of-n')
    """
    if strategy == "off":
        return ()
    named = strategy.split("+")
    if unknown := [part for part in named if part not in PARTS]:
        raise InputError(f"There is no strategy {unknown[0]!r}; give off, or some of {', '.join(PARTS)} joined by +")
    return tuple(part for part in PARTS if part in named)
