"""How well new people are known after t answers: AUC, accuracy, log loss and calibration.

Answers come from a person's `adapt` rows, chosen by a query strategy among them; figures from the `test` rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from palate.rewards.posterior import Floats, Gaussian, Ints, Observations, laplace_posterior, predict
from palate.rewards.queries import choose, strategy


@dataclass(frozen=True)
class NewPeople:
    """What U new people could be asked, and what they would truly prefer.

    Args:
        asked: rows that may be asked, sorted by person.
        prompt: (N,) number of the prompt of each of those rows.
        test: (M, D) differences, preferred minus other.
        test_user: (M,) person of each, ascending.
        dim: how many of the D columns carry base rewards; a last one may carry a person's generosity.
    """

    asked: Observations
    prompt: Ints
    test: Floats
    test_user: Ints


@dataclass(frozen=True)
class Figures:
    """What is measured after one number of answers.

    Args:
        auc: (U,) per person, over both orders of each test row, ties half.
        accuracy: share of test rows predicted right, ties half.
        log_loss: mean nats.
        ece: expected calibration error, in [0, 1].
    """

    auc: Floats
    accuracy: float
    log_loss: float
    ece: float


def learning_curve(
    people: NewPeople,
    prior: Gaussian,
    lapse: float,
    answers: Sequence[int],
    query_strategy: str,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[int, Figures]:
    """Ask everybody one question after the other, and measure after the stated numbers of answers.

    Args:
        people: the rows to ask and to test on.
        prior: belief before any answer, over the D columns of the rows.
        lapse: ε while learning; test rows are predicted without it.
        answers: numbers of answers, such as (0, 5, 10, 20); who has fewer rows is asked all of them.
        query_strategy: one of `queries.STRATEGIES`.
        seed: of random strategies.
        progress: called with (answers so far, answers in all).

    Returns:
        {number of answers: figures}.
    """
    score, rng = strategy(query_strategy), np.random.default_rng(seed)
    rows, available = _padded_rows(people.asked)
    v, prompt = people.asked.v[rows], people.prompt[rows]  # (U, T, D), (U, T)
    everyone = np.arange(len(rows))
    belief = laplace_posterior(_take(people.asked, np.empty(0, np.int64)), prior, lapse)
    last_prompt, taken = np.full(len(rows), -1), np.empty(0, np.int64)
    curve: dict[int, Figures] = {}
    for count in range(max(answers) + 1):
        if count in answers:
            curve[count] = measure(people, belief)
        if count == max(answers):
            break
        if progress:
            progress(count + 1, max(answers))
        best = choose(score(belief, v, lapse, rng), available, prompt, last_prompt)
        who = everyone[best >= 0]
        available[who, best[who]] = False
        last_prompt[who] = prompt[who, best[who]]
        taken = np.concatenate([taken, rows[who, best[who]]])
        belief = laplace_posterior(_take(people.asked, taken), prior, lapse)
    return curve


def _padded_rows(asked: Observations) -> tuple[Ints, np.ndarray]:
    """Row numbers of each person (U, T), and which of them are real."""
    first = np.searchsorted(asked.user, np.arange(asked.n_users))
    count = np.bincount(asked.user, minlength=asked.n_users)
    place = np.arange(max(count.max(initial=0), 1))
    real = place < count[:, None]
    return np.where(real, first[:, None] + place, 0), real


def _take(asked: Observations, rows: Ints) -> Observations:
    rows = np.sort(rows)
    return Observations(asked.v[rows], asked.label[rows], asked.weight[rows], asked.user[rows], asked.n_users)


def measure(people: NewPeople, belief: Gaussian) -> Figures:
    """Figures of everybody's belief on their test rows."""
    user, v = people.test_user, people.test
    own = belief[user]
    logit = np.sum(v * own.mean, axis=1)
    p = predict(own, v[:, None, :])[:, 0]
    return Figures(
        auc=auc_by_user(logit, user, people.asked.n_users),
        accuracy=float(np.mean((logit > 0) + 0.5 * (logit == 0))),
        log_loss=float(-np.mean(np.log(p))),
        ece=calibration_error(p),
    )


def auc_by_user(difference: Floats, user: Ints, n_users: int) -> Floats:
    """AUC of each person over both orders of each row, ties half; NaN for people without rows.

    Args:
        difference: (M,) reward of the preferred answer minus that of the other.
        user: (M,) person of each row.
        n_users: U.

    Example:
        >>> auc_by_user(np.array([1.0, 2.0, -0.5, 0.0]), np.array([0, 0, 0, 1]), 2).round(3)
        array([0.889, 0.5  ])
    """
    value = np.concatenate([difference, -difference])
    who = np.concatenate([user, user])
    positive = np.arange(len(value)) < len(difference)
    order = np.lexsort((value, who))
    value, who, positive = value[order], who[order], positive[order]
    # Mid-ranks: equal values of one person share the mean of their places.
    new = np.r_[True, (np.diff(who) != 0) | (np.diff(value) != 0)][: len(value)]
    run = np.cumsum(new) - 1
    size = np.bincount(run)
    rank = (np.cumsum(size) - (size - 1) / 2)[run]
    count = np.bincount(user, minlength=n_users).astype(float)
    before = 2 * (np.cumsum(count) - count)
    rank_sum = np.bincount(who[positive], rank[positive] - before[who[positive]], minlength=n_users)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((rank_sum - count * (count + 1) / 2) / count**2, np.float64)


def calibration_error(p: Floats, bins: int = 10) -> float:
    """Expected calibration error over both orders of each row, in equal-mass bins.

    Args:
        p: (M,) predicted probability of what was preferred.
        bins: how many.

    Returns:
        Mean |predicted − observed| over bins, weighted by their sizes; in [0, 1].

    Example:
        >>> round(calibration_error(np.full(100, 0.75)), 3)   # always right, three quarters sure
        0.25
    """
    both = np.concatenate([p, 1 - p])
    happened = np.arange(len(both)) < len(p)
    order = np.argsort(both, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return float(sum(abs(np.sum(both[part]) - np.sum(happened[part])) for part in parts) / max(len(both), 1))


def bootstrap_interval(
    values: Floats, *, seed: int = 0, draws: int = 2_000, level: float = 0.95
) -> tuple[float, float]:
    """Bootstrap confidence interval of a mean over people (percentiles, Efron 1979).

    Example:
        >>> bootstrap_interval(np.full(10, 0.8))
        (0.8, 0.8)
    """
    rng = np.random.default_rng(seed)
    means = values[rng.integers(len(values), size=(draws, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return round(float(low), 12), round(float(high), 12)
