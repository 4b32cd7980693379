"""PersonalLLM (Zollo et al. 2024, arXiv 2409.20296): prompts with eight answers, each scored by ten reward models.

A person is simulated: weights over the reward models drawn from a Dirichlet distribution; of two answers they choose
the one with the higher weighted score. Columns: `prompt`, `response_1` ... `response_8`, and a score of each by each
reward model, `response_1_gemma_2b` and so on. Where we depart: scores are standardised by their own mean and spread in
the `train` split, where the authors' scripts have constants written out; a choice is between two of the answers at
random; people of the `test` split are other people, as their prompts are other prompts.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from palate.errors import FeedbackError, InputError
from palate.feedback.files import Feedback, from_rows
from palate.feedback.hub import Row, Rows, by_split

PERSONALLLM = "namkoong-lab/PersonalLLM"

_ANSWER = re.compile(r"response_\d+")


@dataclass(frozen=True)
class Crowd:
    """Whom to simulate.

    Args:
        users: How many for the `train` split.
        new_users: How many others for the `test` split, half of whose answers are `adapt`.
        answers: How many choices each makes, each about another prompt while there are enough.
        alpha: Concentration of the Dirichlet distribution, above 0: the lower, the fewer reward models a person heeds
            (the authors' scripts default to 0.01).
        seed: Same seed, same people and choices.

    Raises:
        InputError: A number is out of range.
    """

    users: int = 200
    new_users: int = 100
    answers: int = 80
    alpha: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.users, self.new_users) < 0 or self.answers < 1 or not 0 < self.alpha < np.inf:
            raise InputError(f"{self!r} cannot be simulated; give users from 0, answers from 1 and alpha above 0")


def load_personalllm(source: str = PERSONALLLM, crowd: Crowd = Crowd(), *, skip_bad_lines: bool = False) -> Feedback:
    """Read PersonalLLM, and simulate people who choose among its answers.

    Args:
        source: Its name on the hub, or a folder that holds a copy.
        crowd: Whom to simulate.
        skip_bad_lines: As in `read_feedback`.

    Raises:
        FeedbackError: It cannot be read, or is laid out otherwise.
    """
    return from_rows(personalllm_rows(source, crowd), source=source, skip_bad_lines=skip_bad_lines)


def personalllm_rows(source: str, crowd: Crowd = Crowd()) -> Iterator[Row]:
    """Rows in TRL's columns; who would have to choose between equal answers does not choose."""
    splits = by_split(source)
    rng = np.random.default_rng(crowd.seed)
    answered = {name: _Answered.of(rows, source) for name, rows in splits.items() if name in ("train", "test")}
    if "train" not in answered:
        raise FeedbackError(f"{source} has no split 'train'; give the data set as it is on the hub")
    mean, spread = answered["train"].standard()
    for name, count in (("train", crowd.users), ("test", crowd.new_users)):
        if name in answered:
            weights = rng.dirichlet(np.full(len(mean), crowd.alpha), size=count)
            yield from answered[name].choices(weights, (mean, spread), crowd.answers, rng, new=name == "test")


@dataclass(frozen=True)
class _Answered:
    """n prompts, K answers of each, and (n, K, R) scores by R reward models."""

    prompts: Sequence[str]
    answers: Sequence[Sequence[str]]
    scores: NDArray[np.float64]

    @classmethod
    def of(cls, rows: Rows, source: str) -> "_Answered":
        table = list(rows)
        columns = list(table[0]) if table else []
        answers = sorted((name for name in columns if _ANSWER.fullmatch(name)), key=lambda name: int(name[9:]))
        first = f"{answers[0]}_" if answers else " "
        judges = sorted(
            name.removeprefix(first)
            for name in columns
            if name.startswith(first)
            and isinstance(table[0][name], int | float)
            and all(f"{answer}_{name.removeprefix(first)}" in columns for answer in answers)
        )
        if "prompt" not in columns or len(answers) < 2 or not judges:
            raise FeedbackError(
                f"{source} has no columns prompt, response_1, response_1_NAME (a score) and so on; give the data set "
                "as it is on the hub"
            )
        scores = [[[row[f"{answer}_{judge}"] for judge in judges] for answer in answers] for row in table]
        return cls(
            [str(row["prompt"]) for row in table],
            [[str(row[answer]) for answer in answers] for row in table],
            np.array(scores, np.float64),
        )

    def standard(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(R,) mean and spread of each reward model's scores."""
        spread = np.nanstd(self.scores, axis=(0, 1))
        return np.nanmean(self.scores, axis=(0, 1)), np.where(spread > 0, spread, 1.0)

    def choices(
        self,
        weights: NDArray[np.float64],
        standard: tuple[NDArray[np.float64], NDArray[np.float64]],
        count: int,
        rng: np.random.Generator,
        *,
        new: bool,
    ) -> Iterator[Row]:
        """What people with (U, R) weights choose; new people's first half is `adapt`."""
        z = (self.scores - standard[0]) / standard[1]
        for number, weight in enumerate(weights):
            rounds = -(-count // len(z))
            prompts = np.concatenate([rng.permutation(len(z)) for _ in range(rounds)])[:count]
            pair = rng.permuted(np.tile(np.arange(z.shape[1]), (count, 1)), axis=1)[:, :2]
            reward = np.take_along_axis(z[prompts] @ weight, pair, axis=1)
            for i, (prompt, (a, b), (one, other)) in enumerate(zip(prompts, pair, reward, strict=True)):
                better, worse = (a, b) if one > other else (b, a)
                texts = self.answers[prompt]
                if one == other or np.isnan(one + other) or texts[better] == texts[worse]:
                    continue
                yield {
                    "user_id": f"{'new' if new else 'train'}{number:05d}",
                    "prompt": self.prompts[prompt],
                    "chosen": texts[better],
                    "rejected": texts[worse],
                    "split": ("adapt" if i < count // 2 else "test") if new else "train",
                }
