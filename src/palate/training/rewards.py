"""What a fine-tuning is to raise, as TRL's `reward_funcs` take it.

Each is called with prompts and completions, strings or conversations, and gives one float for each; None where it
cannot say.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any

import numpy as np

from palate.alignment.best_of_n import length_coefficient
from palate.alignment.candidates import Sampling
from palate.alignment.endpoint import Endpoint
from palate.encoders import SentenceEncoder
from palate.encoders.causal import CausalEncoder
from palate.errors import InputError, UpstreamError
from palate.feedback import as_text
from palate.rewards import Belief, RewardModel
from palate.rewards.posterior import Floats
from palate.satisfaction.follower import RewardFollower


class TasteReward:
    """A person's, or a group's, reward λ · φ(x, y), in logits, mixed with what people in general find good.

    Being linear in φ, all of it is one set of weights: (1 − quality) λ + quality μ, μ the population's.

    Args:
        model: the reward model.
        users: beliefs of one person, or of each member of a group, whose means are averaged; none: the population's.
        quality: share in [0, 1] of the population's reward, so that taste is not paid with substance.
        length: whether what the reward gives for mere length is taken out, as `length_coefficient` finds it.

    Raises:
        InputError: `quality` is not in [0, 1].

    Example:
        >>> reward = TasteReward(model, [ann], quality=0.2)                              # doctest: +SKIP
        >>> reward(["How do I boil an egg?"], ["Nine minutes in boiling water."])        # doctest: +SKIP
    """

    __name__ = "taste"  # TRL writes its figures under it

    def __init__(
        self, model: RewardModel, users: Sequence[Belief] = (), *, quality: float = 0.0, length: bool = False
    ) -> None:
        if not 0 <= quality <= 1:
            raise InputError(f"quality {quality!r} is not in [0, 1]; give the share of everybody's reward")
        self.model = forgetful(model)
        own = np.mean([user.mean for user in users], axis=0) if users else model.prior.mean
        self.weights: Floats = (1 - quality) * own + quality * model.prior.mean
        self.length = 0.0
        if length:  # linear in the weights, as the reward is
            each = [length_coefficient(model, user) for user in users or (model.prior,)]
            self.length = (1 - quality) * float(np.mean(each)) + quality * length_coefficient(model)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
        """One reward for each completion."""
        texts = [as_text(text) for text in completions]
        rewards = self.model.phi([_asked(prompt) for prompt in prompts], texts) @ self.weights
        return list(map(float, rewards - self.length * np.log1p([len(text) for text in texts])))


class FollowerReward:
    """The satisfaction that the reward follower foretells of one person, in (0, 1).

    Args:
        follower: with what it has learned.
        user: whose; None for the population's.
    """

    __name__ = "satisfaction"

    def __init__(self, follower: RewardFollower, user: Belief | None = None) -> None:
        self.follower = RewardFollower(forgetful(follower.model), follower.head)
        self.user = user

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
        """One satisfaction for each completion."""
        model = self.follower.model
        phi = model.centred([_asked(prompt) for prompt in prompts], [as_text(text) for text in completions])
        return list(map(float, self.follower.foretold(phi, self.user)))


class JudgeReward:
    """A language model's judgement, from an OpenAI-compatible endpoint (RLAIF: Lee et al. 2023, arXiv 2309.00267).

    The completions of a prompt are compared in a ring, each with the next: one request for each completion, and each
    is in two comparisons. Its reward is the share of these that it wins. Which of two is shown first is drawn by
    chance, as judges like what stands first.

    Args:
        connect: gives the endpoint anew, for each call: it belongs to the event loop that the requests run in.
        taste: what the judge is told to look for, such as ``Prefer brief and informal answers.``
        patience: times that what failed is asked again before the training stops; it is never given a default.
        seed: of which answer stands first.
    """

    __name__ = "judge"

    def __init__(self, connect: Callable[[], Endpoint], taste: str, *, patience: int = 5, seed: int = 0) -> None:
        if patience < 0:
            raise InputError(f"patience {patience!r} is below 0; give 0 or more")
        self.connect, self.taste, self.patience = connect, taste, patience
        self.seed = seed

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float | None]:
        """The share of comparisons won; None for the only completion of a prompt.

        Raises:
            UpstreamError: the endpoint kept failing; nothing was trained on this batch.
        """
        asked, texts = [_asked(prompt) for prompt in prompts], [as_text(text) for text in completions]
        pairs = [pair for group in _groups(asked) for pair in _ring(group)]
        won = asyncio.run(self._compare([(asked[a], texts[a], texts[b]) for a, b in pairs]))
        shares: list[list[float]] = [[] for _ in texts]
        for (a, b), first in zip(pairs, won, strict=True):
            shares[a].append(first)
            shares[b].append(1 - first)
        return [float(np.mean(each)) if each else None for each in shares]

    async def _compare(self, pairs: Sequence[tuple[str, str, str]]) -> list[float]:
        # By what is asked, not by what was asked before: a training that goes on after a kill asks the same.
        turned = [sha256(repr((self.seed, pair)).encode()).digest()[0] % 2 == 1 for pair in pairs]
        found: list[float | None] = [None] * len(pairs)
        async with self.connect() as endpoint:
            for attempt in range(self.patience + 1):
                left = [i for i, one in enumerate(found) if one is None]
                said = await asyncio.gather(
                    *(self._ask(endpoint, pairs[i], turned[i]) for i in left), return_exceptions=True
                )
                failed: BaseException | None = None
                for i, one in zip(left, said, strict=True):
                    if isinstance(one, BaseException):
                        failed = one
                    else:
                        found[i] = one
                if failed is None:
                    break
                if not isinstance(failed, UpstreamError) or attempt == self.patience:
                    raise failed
                await asyncio.sleep(min(2.0**attempt, 30.0))
        return [one for one in found if one is not None]

    async def _ask(self, endpoint: Endpoint, pair: tuple[str, str, str], turned: bool) -> float:
        prompt, *answers = pair
        a, b = reversed(answers) if turned else answers
        question = (
            f"{self.taste}\n\nWhich answer is better, A or B? Say only the letter.\n\n"
            f"# Question\n{prompt}\n\n# Answer A\n{a}\n\n# Answer B\n{b}"
        )
        [[said]] = await endpoint.sample([question], 1, Sampling(temperature=0, max_tokens=4))
        letter = said.text.strip()[:1].upper()
        if letter not in ("A", "B"):
            raise UpstreamError(f"{endpoint.name} said {said.text!r} where it was asked for A or B; try another judge")
        return float((letter == "A") != turned)


def _asked(prompt: Any) -> str:
    # Of a model without a chat template, prompts end in an empty line.
    return as_text(prompt).rstrip("\n")


def forgetful(model: RewardModel) -> RewardModel:
    """The model without a cache of texts: what a policy writes is hardly ever written twice."""
    encoder = model.loaded_encoder()
    if isinstance(encoder, SentenceEncoder | CausalEncoder):
        return replace(model, encoder=replace(encoder, cache=None))
    return model


def _groups(prompts: Sequence[str]) -> list[list[int]]:
    """Rows of each prompt."""
    found: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        found.setdefault(prompt, []).append(row)
    return list(found.values())


def _ring(rows: Sequence[int]) -> list[tuple[int, int]]:
    if len(rows) < 2:
        return []
    pairs = list(zip(rows, [*rows[1:], rows[0]], strict=True))
    return pairs[: 1 if len(rows) == 2 else None]
