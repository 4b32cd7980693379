"""All peers on the same people and the same questions, each tuned on held-out training people with the same budget.

The budget: eight settings a peer, each fitted on `_FOLDS` parts of the training people and tried on the rest, people
*and* prompts both unknown to the fit and people of one kind on one side, by mean AUC after 5, 10 and 20 answers to
the same random questions. The best setting is then fitted on all training people.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from threadpoolctl import threadpool_limits

from palate.bench.unseen import Mask, rows_by_user
from palate.rewards.baselines import PEERS, Answers, Fitted, Peer
from palate.rewards.evaluation import auc_by_user
from palate.rewards.factorization import Choices
from palate.rewards.fitting import Stage
from palate.rewards.posterior import Floats, Ints

RANDOM_DRAWS = 5
"""What is asked at random is averaged over so many draws: one moves the AUC of 280 people by about 0.004."""

_TUNED_AT = (5, 10, 20)
_FOLDS = 3


@dataclass(frozen=True)
class Questions:
    """What each person is asked, in order: (U, T) rows of those that may be asked, and which places are real."""

    rows: Ints
    real: Mask


@dataclass(frozen=True)
class Unseen:
    """New people by index: what they may be asked, and what is to be predicted.

    Args:
        z: (n, K) coordinates of the answers; answers beyond those compared may follow.
        choices: N comparisons between them.
        asked: rows of `choices` that may be asked, sorted by person.
        test: rows of `choices` to predict, sorted by person.
    """

    z: Floats
    choices: Choices
    asked: Ints
    test: Ints

    @classmethod
    def of(cls, z: Floats, choices: Choices, asked: Mask, test: Mask) -> "Unseen":
        """From masks, in the order that `bench.unseen.new_people` has them."""
        return cls(z, choices, rows_by_user(choices, asked), rows_by_user(choices, test))

    def questions(self, most: int, rng: np.random.Generator) -> Questions:
        """At most `most` random questions for each person; fewer are the first of more.

        Returns:
            Places in `asked`; 0, and not real, where somebody has fewer.
        """
        user = self.choices.user[self.asked]
        count = np.bincount(user, minlength=self.choices.n_users)
        shuffled = np.append(np.lexsort((rng.random(len(user)), user)), 0)
        place = np.arange(min(most, int(count.max(initial=0))))
        real = place < count[:, None]  # (U, T)
        return Questions(shuffled[np.where(real, (np.cumsum(count) - count)[:, None] + place, len(user))], real)

    def answers(self, questions: Questions, count: int) -> Answers:
        """What everybody says to their first `count` questions."""
        if not len(self.asked):
            none = np.empty((self.choices.n_users, 0))
            return Answers(none.astype(np.int64), none.astype(np.int64), none, none)
        rows, real = self.asked[questions.rows[:, :count]], questions.real[:, :count]
        return Answers(
            self.choices.chosen[rows], self.choices.rejected[rows], self.choices.strength[rows], real.astype(np.float64)
        )

    def differences(self, rewards: Floats) -> Floats:
        """(M,) reward of the preferred answer of each test row less that of the other, from (U, n) rewards."""
        user = self.choices.user[self.test]
        return np.asarray(
            rewards[user, self.choices.chosen[self.test]] - rewards[user, self.choices.rejected[self.test]]
        )

    def auc(self, rewards: Floats) -> Floats:
        """(U,) AUC on the test rows; NaN for people without."""
        return auc_by_user(self.differences(rewards), self.choices.user[self.test], self.choices.n_users)


def tune(peer: type[Peer], folds: Sequence[tuple[Choices, Unseen, Questions]], seed: int) -> tuple[Peer, float]:
    """The setting with the best mean AUC on held-out people and prompts, and that AUC; the first where all fail."""

    def value(setting: Peer) -> float:
        aucs = []
        for known, unknown, questions in folds:
            fitted = setting.fit(unknown.z, known, seed)
            for t in _TUNED_AT:
                aucs.append(unknown.auc(fitted.rewards(unknown.z, unknown.answers(questions, t))))
        return float(np.nanmean(aucs)) if aucs else 0.0

    values = {setting: value(setting) for setting in peer.grid()}
    best = max(values, key=values.__getitem__)
    return best, values[best]


def held_out(z: Floats, train: Choices, seed: int) -> list[tuple[Choices, Unseen, Questions]]:
    """Folds of training people: what is fitted on, who is asked, and what.

    A third of the kinds of people and half of the prompts are unknown to each fit; half of those prompts are asked
    about, by person, and the others predicted. Fewer than eight prompts are not held out, and rows are halved instead.
    """
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.unique(train.group))
    folds = []
    for k in range(min(_FOLDS, len(groups))):
        person_out = np.isin(train.group, groups[k::_FOLDS])[train.user]
        prompts = rng.permutation(np.unique(train.prompt))
        if len(prompts) >= 8:
            prompt_out = np.isin(train.prompt, prompts[: len(prompts) // 2])
            known, unknown = train.where(~person_out & ~prompt_out), train.where(person_out & prompt_out)
            topic = unknown.user * (1 + int(unknown.prompt.max(initial=0))) + unknown.prompt
        else:
            known, unknown = train.where(~person_out), train.where(person_out)
            topic = np.arange(len(unknown.user))
        if not len(known.user) or not len(unknown.user):
            continue
        topics, topic = np.unique(topic, return_inverse=True)
        asked = (rng.random(len(topics)) < 0.5)[topic]
        people = Unseen.of(z, unknown, asked, ~asked & (unknown.strength > 0.5))
        folds.append((known, people, people.questions(max(_TUNED_AT), rng)))
    return folds
