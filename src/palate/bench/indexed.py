"""Comparisons as indices into a table of distinct answers, so that every answer is encoded once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from palate.encoders import Encoder
from palate.feedback import Comparison, as_text
from palate.rewards.evaluation import NewPeople
from palate.rewards.factorization import Choices
from palate.rewards.posterior import Floats, Ints, Observations

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Indexed:
    """N comparisons of U people between n distinct answers.

    Args:
        answers: (prompt, completion) of each of n answers, as plain text, in order of appearance.
        choices: the comparisons; people in order of appearance, grouped by `kind` where they have one.
        split: (N,) `split` of each comparison, "" where absent.
    """

    answers: list[tuple[str, str]]
    choices: Choices
    split: NDArray[np.str_]

    @classmethod
    def of(cls, rows: Sequence[Comparison]) -> "Indexed":
        """Number answers, people, prompts and kinds as they appear."""
        answers: dict[tuple[str, str], int] = {}
        prompts: dict[str, int] = {}
        users: dict[str, int] = {}
        kinds: dict[tuple[str | None, str], int] = {}
        group: dict[int, int] = {}
        table = np.empty((len(rows), 4), np.int64)
        for i, row in enumerate(rows):
            prompt = as_text(row.prompt)
            sides = ((prompt, as_text(text)) for text in (row.chosen, row.rejected))
            user = users.setdefault(row.user_id, len(users))
            # Without a kind everybody is a kind of their own.
            kind = (row.kind, row.user_id if row.kind is None else "")
            group[user] = kinds.setdefault(kind, len(kinds))
            numbers = (answers.setdefault(side, len(answers)) for side in sides)
            table[i] = *numbers, user, prompts.setdefault(prompt, len(prompts))
        choices = Choices(
            chosen=table[:, 0],
            rejected=table[:, 1],
            user=table[:, 2],
            strength=np.array([row.strength for row in rows]),
            prompt=table[:, 3],
            group=np.array(list(group.values()), np.int64),
        )
        return cls(list(answers), choices, np.array([row.split or "" for row in rows], dtype=np.str_))

    def encode(self, encoder: Encoder) -> NDArray[np.float32]:
        """(n, D) raw features of the answers."""
        prompts, completions = zip(*self.answers, strict=True)
        return encoder.encode(prompts, completions)


def new_people(z: Floats, choices: Choices, asked: Mask, test: Mask) -> NewPeople:
    """Rows that may be asked and rows to test on, in any coordinates of the answers.

    Args:
        z: (n, D) coordinates of the answers.
        choices: N comparisons between them.
        asked: (N,) which may be asked.
        test: (N,) which are to be predicted.
    """

    def sorted_by_user(mask: Mask) -> Ints:
        rows = np.flatnonzero(mask)
        return rows[np.argsort(choices.user[rows], kind="stable")]

    def difference(rows: Ints) -> Floats:
        return np.asarray(z[choices.chosen[rows]] - z[choices.rejected[rows]], np.float64)

    ask, try_on = sorted_by_user(asked), sorted_by_user(test)
    return NewPeople(
        asked=Observations(
            difference(ask), choices.strength[ask], np.ones(len(ask)), choices.user[ask], choices.n_users
        ),
        prompt=choices.prompt[ask],
        test=difference(try_on),
        test_user=choices.user[try_on],
    )
