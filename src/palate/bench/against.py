"""The two baselines, each with its one hyperparameter chosen on training people alone."""

from collections.abc import Mapping, Sequence

import numpy as np

from palate.bench.unseen import new_people
from palate.rewards.baselines import bradley_terry, per_user
from palate.rewards.evaluation import Figures, NewPeople, measure
from palate.rewards.factorization import Choices, Penalties
from palate.rewards.posterior import Floats, Gaussian, Ints, Observations

_GRID = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
RANDOM_DRAWS = 5
"""What is asked at random is averaged over so many draws: one moves the AUC of 280 people by about 0.004."""

_TUNED_AT = (5, 10, 20)  # answers that a model per person is tuned for


def one_reward_for_all(z: Floats, train: Choices, people: NewPeople, lapse: float, seed: int) -> tuple[Figures, float]:
    """Bradley–Terry fitted on training people; no answer changes it.

    Args:
        z: (n, K) coordinates of the training answers.
        train: training people's comparisons.
        people: new people, in the same coordinates.
        lapse: ε.
        seed: of the halves of people and prompts that the penalty is chosen on.

    Returns:
        Its figures on the test rows, and the penalty.
    """
    weights, penalty = tuned_bradley_terry(z, train, lapse, seed)
    return _measure_one(weights, people), penalty


def tuned_bradley_terry(z: Floats, train: Choices, lapse: float, seed: int) -> tuple[Floats, float]:
    """(K,) weights of one reward for all, and the penalty chosen on halves of people and of many prompts."""
    rng = np.random.default_rng(seed)
    first_people = _half(train.group, rng)[train.user]
    first_prompts = _half(train.prompt, rng)
    one_prompt = not first_prompts.any()
    known = train.where(first_people & (first_prompts | one_prompt))
    unknown = train.where(~first_people & ~first_prompts)
    decided = unknown.strength > 0.5
    held_out = new_people(z, unknown, ~decided, decided)

    def value(penalty: float) -> float:
        return -_measure_one(bradley_terry(z, known, lapse, Penalties(population=penalty)), held_out).log_loss

    penalty = max(_GRID, key=value)
    return bradley_terry(z, train, lapse, Penalties(population=penalty)), penalty


def _measure_one(weights: Floats, people: NewPeople) -> Figures:
    """Figures of one reward: everybody's weight on it is exactly 1."""
    n_users = people.asked.n_users
    nothing = Observations.of(np.empty((0, 1)), np.empty(0, np.int64), n_users)
    alone = NewPeople(nothing, np.empty(0, np.int64), (people.test @ weights)[:, None], people.test_user)
    return measure(alone, Gaussian(np.ones((n_users, 1)), np.zeros((n_users, 1, 1))))


def model_per_person(
    z: Floats, train: Choices, people: NewPeople, lapse: float, answers: Sequence[int], seed: int
) -> tuple[Mapping[int, Floats], float]:
    """Ridge logistic regression on each person's own answers to random questions.

    Args:
        z: (n, K) coordinates of the training answers.
        train: training people, on whose two halves of prompts the prior precision is chosen.
        people: new people, in the same coordinates.
        lapse: ε.
        answers: numbers of answers, measured where everybody has so many rows to ask.
        seed: of the questions and the halves.

    Returns:
        {answers: (U,) AUC on the test rows, averaged over draws of the questions}, and the precision.
    """
    rng = np.random.default_rng(seed)
    first = _half(train.prompt, rng)
    pretended = new_people(z, train, first, ~first)
    tuning = random_questions(pretended.asked, _TUNED_AT, rng)

    def value(precision: float) -> float:
        aucs = [np.nanmean(per_user(pretended, rows, precision, lapse)) for rows in tuning.values()]
        return float(np.mean(aucs)) if aucs else 0.0

    precision = max(_GRID, key=value)
    draws = [random_questions(people.asked, answers, rng) for _ in range(RANDOM_DRAWS)]
    aucs = {t: np.mean([per_user(people, rows[t], precision, lapse) for rows in draws], axis=0) for t in draws[0]}
    return aucs, precision


def random_questions(asked: Observations, answers: Sequence[int], rng: np.random.Generator) -> dict[int, Ints]:
    """Rows drawn for each person, for t = 1 and more: {t: (U, t)}, the fewer being the first of the more.

    Numbers of answers are left out where somebody has fewer rows.
    """
    count = np.bincount(asked.user, minlength=asked.n_users)
    most = int(count.min(initial=len(asked.user)))
    shuffled = np.lexsort((rng.random(len(asked.user)), asked.user))
    first = np.cumsum(count) - count
    rows = shuffled[first[:, None] + np.arange(most)]  # (U, most)
    return {t: rows[:, :t] for t in answers if 1 <= t <= most}


def _half(group: Ints, rng: np.random.Generator) -> np.ndarray:
    """Whether each row's group is in a random half of the groups."""
    groups = rng.permutation(np.unique(group))
    return np.isin(group, groups[: len(groups) // 2])
