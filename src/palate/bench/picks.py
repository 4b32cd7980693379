"""Whether people get what they like: the answer picked for each, judged by what they truly like.

A person's prompts are those of their test rows; what they were asked about is left out. The population's pick is the
answer that one reward for all (Bradley–Terry) puts first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from palate.bench.people import Person, parse_kind
from palate.data import Answer
from palate.feedback import Comparison, as_text
from palate.rewards.posterior import Floats, Ints


@dataclass(frozen=True)
class Shelf:
    """What can be picked for U people.

    Args:
        rows: (P, m) the answers to each prompt, as columns of `utility`.
        tested: (U, P) 1 where a prompt is one of the person's, else 0.
        utility: (U, n) how much each person truly likes each answer.
    """

    rows: Ints
    tested: Floats
    utility: Floats

    @classmethod
    def of(cls, answers: Sequence[Answer], people: Sequence[Comparison], *, spoilt: bool = True) -> "Shelf":
        """From the answers, as many to each prompt, and people's rows with `kind` and `split`.

        Args:
            answers: n; the columns of `utility` and of the rewards to come.
            people: numbered as they appear.
            spoilt: False leaves the spoilt ones of the answers on no shelf.
        """
        prompts: dict[str, list[int]] = {}
        for i, answer in enumerate(answers):
            if spoilt or answer.spoilt is None:
                prompts.setdefault(answer.prompt, []).append(i)
        number = {prompt: i for i, prompt in enumerate(prompts)}
        users = {row.user_id: row.kind or "" for row in people}
        place = {user: i for i, user in enumerate(users)}
        tests = [(place[row.user_id], number[as_text(row.prompt)]) for row in people if row.split == "test"]
        tested = np.zeros((len(users), len(prompts)))
        tested[tuple(np.array(tests).T)] = 1.0
        likes = {kind: Person(parse_kind(kind)).reward(answers) for kind in dict.fromkeys(users.values())}
        return cls(np.array(list(prompts.values())), tested, np.stack([likes[kind] for kind in users.values()]))

    def picked(self, rewards: Floats) -> Floats:
        """(U, P) true utility of the answer with the highest of (U, n) rewards, the first of equals."""
        best = np.argmax(rewards[:, self.rows], axis=2)  # (U, P)
        column = self.rows[np.arange(len(self.rows)), best]
        return np.asarray(np.take_along_axis(self.utility, column, axis=1), np.float64)

    @property
    def best(self) -> Floats:
        """(U, P) true utility of the answer that each person likes best."""
        return np.asarray(self.utility[:, self.rows].max(axis=2), np.float64)

    def mean(self, values: Floats) -> Floats:
        """(U,) mean of (U, P) values over each person's prompts."""
        return np.asarray(np.sum(self.tested * values, axis=1) / self.tested.sum(axis=1), np.float64)

    def wins(self, picked: Floats, popular: Floats) -> Floats:
        """(U,) share of prompts where the pick is liked better than the population's, ties half.

        Args:
            picked: (U, P) true utility of the picks.
            popular: (U, P) of the population's picks.
        """
        return self.mean((picked > popular) + 0.5 * (picked == popular))

    def gain_share(self, picked: Floats, popular: Floats) -> tuple[Floats, Floats]:
        """(U,) gain in utility over the population's picks as a share of the most that could be gained, and that most.

        Weighed by the most that could be gained, the mean over people is the share of all gain; NaN where nothing
        could. Arguments as in `wins`.
        """
        most = self.mean(self.best - popular)
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.mean(picked - popular) / most, most
