"""What tests of the reward model share: an encoder that shows styles plainly, people with planted tastes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from hashlib import sha256

import numpy as np
import pytest
from numpy.typing import NDArray

from palate.bench.people import parse_kind, simulate
from palate.data import POLES, Answer, load_answers
from palate.encoders import Progress
from palate.feedback import Comparison, Feedback, Record
from palate.rewards import RewardModel, fit
from palate.rewards.baselines import pref, simplex, vpl
from palate.rewards.factorization import Choices
from palate.rewards.posterior import Floats

ATTRIBUTES = list(dict.fromkeys(attribute for attribute, _ in POLES.values()))
KINDS = ["concise,humorous", "verbose,formal", "polite,serious", "blunt,engaging", "informal,demure", "concise,polite"]


@dataclass
class PlantedEncoder:
    """Seven columns with the styles of the bundled answers, one that tells the spoilt, four of noise.

    Any other text gets a hash of its own. No weights, no torch, nothing read from a disk.
    """

    name: str = "planted"
    revision: str = "r1"
    width: int = len(ATTRIBUTES) + 5
    encoded: int = 0

    @property
    def blocks(self) -> Mapping[str, slice]:
        return {"mean": slice(0, self.width)}

    def encode(
        self, prompts: Sequence[str], completions: Sequence[str], *, progress: Progress | None = None
    ) -> NDArray[np.float32]:
        self.encoded += len(prompts)
        return np.array([self._vector(p, c) for p, c in zip(prompts, completions, strict=True)], np.float32)

    def _vector(self, prompt: str, completion: str) -> Floats:
        digest = sha256(f"{prompt}\0{completion}".encode()).digest()
        noise = np.random.default_rng(int.from_bytes(digest[:8], "big")).standard_normal(self.width)
        styles = _STYLES.get((prompt, completion))
        if styles is not None:
            noise[: len(styles)] = styles + 0.1 * noise[: len(styles)]
        return noise


_STYLES = {
    (answer.prompt, answer.text): np.array(
        [*(answer.attributes.get(name, 0) for name in ATTRIBUTES), 2 * (answer.spoilt is not None)], np.float64
    )
    for answer in load_answers()
}


def answers_to(prompts: slice) -> list[Answer]:
    """The bundled answers to some of the 120 prompts."""
    wanted = list(dict.fromkeys(answer.prompt_id for answer in load_answers()))[prompts]
    return [answer for answer in load_answers() if answer.prompt_id in wanted]


def people(
    kinds: Sequence[str] = KINDS, *, prompts: slice = slice(0, 20), each: int = 4, comparisons: int = 40, seed: int = 0
) -> list[Comparison]:
    """Choices of simulated people among the bundled answers to some prompts."""
    return simulate(
        [parse_kind(kind) for kind in kinds],
        answers_to(prompts),
        people_per_kind=each,
        comparisons=comparisons,
        seed=seed,
        split_by_prompt=False,
    )


def evidence(count: int = 10, kind: str = KINDS[0]) -> list[Record]:
    """Choices of one new person about new prompts, each a minute after the one before."""
    start = datetime(2025, 1, 1, tzinfo=UTC)
    rows = people([kind], prompts=slice(20, 40), each=1, seed=9)[:count]
    return [row.model_copy(update={"created_at": start + timedelta(minutes=i)}) for i, row in enumerate(rows)]


def comparison(user: str = "ann", **columns) -> Comparison:
    """One choice; the columns that do not matter are filled in."""
    return Comparison(user_id=user, **{"prompt": "Hi", "chosen": "Hello!", "rejected": "What?", **columns})


@dataclass(frozen=True)
class Planted:
    """People whose rewards are truly of low rank.

    z (n, K) answers; base (J, K) true base rewards, the population's first; tastes (U, J) true weights.
    """

    z: Floats
    base: Floats
    tastes: Floats
    choices: Choices


def planted(
    *, users: int, each: int, rank: int, features: int = 12, prompts: int = 40, shared: bool = False, seed: int = 0
) -> Planted:
    """Draw tastes of that rank beside the population's, and each person's choices; `shared`: all on the same pairs."""
    rng = np.random.default_rng(seed)
    answers = 6
    z = rng.standard_normal((prompts * answers, features))
    base = np.linalg.qr(rng.standard_normal((features, rank + 1)))[0].T
    tastes = np.column_stack([np.ones(users), 2.0 * rng.standard_normal((users, rank))])
    count = each if shared else users * each
    prompt = rng.integers(prompts, size=count)
    side = np.array([rng.choice(answers, 2, replace=False) for _ in range(count)])
    pair = prompt[:, None] * answers + side
    if shared:
        pair, prompt = np.tile(pair, (users, 1)), np.tile(prompt, users)
    user = np.repeat(np.arange(users), each)
    logit = np.sum((z[pair[:, 0]] - z[pair[:, 1]]) * (tastes @ base)[user], axis=1)
    flip = rng.random(len(user)) > 1 / (1 + np.exp(-logit))
    pair[flip] = pair[flip, ::-1]
    choices = Choices(pair[:, 0], pair[:, 1], user, np.ones(len(user)), prompt, np.arange(users))
    return Planted(z, base, tastes, choices)


@cache
def fitted() -> RewardModel:
    """A reward model of 24 simulated people, fitted once a process; nothing that asks it may change it."""
    return fit(Feedback(comparisons=people()), PlantedEncoder(), rank=5)


@dataclass(frozen=True)
class Shown:
    """An encoder that reads the poles an answer was written to show, a little blurred."""

    name: str = "shown"
    revision: str = "1"

    @property
    def blocks(self) -> Mapping[str, slice]:
        return {"mean": slice(0, self.width)}

    @property
    def width(self) -> int:
        return len(ATTRIBUTES) + 1

    def encode(self, prompts: Sequence[str], completions: Sequence[str], *, progress=None):
        return np.array([self._one(_BY_TEXT.get(pair)) for pair in zip(prompts, completions, strict=True)], np.float32)

    def _one(self, answer: Answer | None) -> list[float]:
        if answer is None:  # a text that probes a style
            return [0.0] * self.width
        blur = 0.1 * np.sin(int(answer.response_id[1:4]) * np.arange(1, self.width + 1))
        shown = [answer.attributes.get(name, 0) for name in ATTRIBUTES]
        return [*(shown + blur[:-1]), float(answer.spoilt is not None)]


_BY_TEXT: dict[tuple[str, str], Answer] = {(answer.prompt, answer.text): answer for answer in load_answers()}


def shorten(patch: pytest.MonkeyPatch) -> None:
    """Short descents of the peers: for tests of what is done with them, not of how good they are."""
    for module in (pref, simplex, vpl):
        patch.setattr(module, "_STEPS", 20)
    patch.setattr(simplex, "_NEW_STEPS", 10)
