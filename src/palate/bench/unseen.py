"""Who is asked in a benchmark, and what: people of kinds, about prompts, that no bundled person knows."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from palate.bench.people import ALL_KINDS, Kind, parse_kind, simulate
from palate.data import Answer, load_answers, load_people
from palate.errors import InputError
from palate.feedback import Comparison, read_feedback
from palate.rewards.baselines import Answers
from palate.rewards.evaluation import NewPeople, auc_by_user
from palate.rewards.factorization import Choices
from palate.rewards.posterior import Floats, Ints, Observations

Mask = NDArray[np.bool_]

_QUICK_PEOPLE = 56
_PEOPLE_PER_KIND, _COMPARISONS = 10, 160
_NEW_PROMPTS = ("p4", "p5")  # the bundled people were asked about p0xx to p3xx


def unseen_kinds() -> list[Kind]:
    """The 28 kinds that none of the bundled people is of."""
    seen = {parse_kind(row.kind or "") for row in load_people()}
    return [kind for kind in ALL_KINDS if kind not in seen]


def unseen_answers() -> list[Answer]:
    """The bundled answers to prompts that none of the bundled people was asked about."""
    return [answer for answer in load_answers() if answer.prompt_id.startswith(_NEW_PROMPTS)]


def unseen_people(seed: int, quick: bool) -> list[Comparison]:
    """Choices of simulated people of unseen kinds between unseen answers, half `adapt` and half `test`."""
    kinds = unseen_kinds()
    return simulate(
        kinds,
        unseen_answers(),
        people_per_kind=_QUICK_PEOPLE // len(kinds) if quick else _PEOPLE_PER_KIND,
        comparisons=_COMPARISONS,
        seed=seed,
        split_by_prompt=True,
    )


def recorded_people(data: Path, quick: bool) -> list[Comparison]:
    """The `adapt` and decided `test` rows of people who have both.

    Raises:
        InputError: there are none.
    """
    path = data / "new_users.jsonl" if data.is_dir() else data
    rows = [
        row
        for row in read_feedback(path).comparisons
        if row.split == "adapt" or (row.split == "test" and row.strength != 0.5)
    ]
    adapt, test = ({row.user_id for row in rows if row.split == split} for split in ("adapt", "test"))
    both = [user for user in dict.fromkeys(row.user_id for row in rows) if user in adapt & test]
    if not both:
        raise InputError(
            f"Nobody in {str(path)!r} has comparisons with split 'adapt' and with split 'test'; give both to measure on"
        )
    kept = set(both[:_QUICK_PEOPLE] if quick else both)
    return [row for row in rows if row.user_id in kept]


def new_people(z: Floats, choices: Choices, asked: Mask, test: Mask) -> NewPeople:
    """Rows that may be asked and rows to test on, in any coordinates of the answers.

    Args:
        z: (n, D) coordinates of the answers.
        choices: N comparisons between them.
        asked: (N,) which may be asked.
        test: (N,) which are to be predicted.
    """
    return Unseen.of(choices, asked, test).people(z)


@dataclass(frozen=True)
class Questions:
    """What each person is asked, in order: (U, T) places among the rows that may be asked, and which are real."""

    places: Ints
    real: Mask


@dataclass(frozen=True)
class Unseen:
    """New people by index: what they may be asked, and what is to be predicted.

    Args:
        choices: N comparisons of U people.
        asked: rows of `choices` that may be asked, sorted by person.
        test: rows of `choices` to predict, sorted by person.
    """

    choices: Choices
    asked: Ints
    test: Ints

    @classmethod
    def of(cls, choices: Choices, asked: Mask, test: Mask) -> "Unseen":
        """From masks over the comparisons."""
        rows = [np.flatnonzero(mask) for mask in (asked, test)]
        return cls(choices, *(row[np.argsort(choices.user[row], kind="stable")] for row in rows))

    def people(self, z: Floats) -> NewPeople:
        """The same in coordinates of the answers, (n, D)."""
        choices = self.choices

        def difference(rows: Ints) -> Floats:
            return np.asarray(z[choices.chosen[rows]] - z[choices.rejected[rows]], np.float64)

        user, label = choices.user[self.asked], choices.strength[self.asked]
        return NewPeople(
            asked=Observations(difference(self.asked), label, np.ones(len(label)), user, choices.n_users),
            prompt=choices.prompt[self.asked],
            test=difference(self.test),
            test_user=choices.user[self.test],
        )

    def questions(self, most: int, rng: np.random.Generator) -> Questions:
        """At most `most` random questions for each person; who has fewer rows is asked all of them."""
        user = self.choices.user[self.asked]
        count = np.bincount(user, minlength=self.choices.n_users)
        shuffled = np.lexsort((rng.random(len(user)), user))
        place = np.arange(min(most, int(count.max(initial=0))))
        real = place < count[:, None]  # (U, T)
        at = np.where(real, (np.cumsum(count) - count)[:, None] + place, 0)
        return Questions(shuffled[at] if len(user) else at, real)

    def answers(self, questions: Questions, count: int) -> Answers:
        """What everybody says to their first `count` questions."""
        rows, real = self.asked[questions.places[:, :count]], questions.real[:, :count]
        choices = self.choices
        return Answers(choices.chosen[rows], choices.rejected[rows], choices.strength[rows], real.astype(np.float64))

    def measure(self, rewards: Floats) -> tuple[Floats, float]:
        """(U,) AUC and the accuracy on the test rows, ties half, from (U, n) rewards of the answers."""
        user = self.choices.user[self.test]
        chosen, rejected = self.choices.chosen[self.test], self.choices.rejected[self.test]
        ahead = rewards[user, chosen] - rewards[user, rejected]
        accuracy = float(np.mean((ahead > 0) + 0.5 * (ahead == 0)))
        return auc_by_user(ahead, user, self.choices.n_users), accuracy
