"""How well new people are known after t answers: AUC, accuracy, log loss and calibration.

Answers come from a person's `adapt` rows, chosen by a query strategy among them; figures from the `test` rows.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import TypedDict

import numpy as np

from palate.errors import InputError
from palate.feedback import Comparison, Feedback, Rating, Text, as_text
from palate.rewards.beliefs import where
from palate.rewards.drift import row_loss
from palate.rewards.evidence import Evidence, heard
from palate.rewards.model import RewardModel
from palate.rewards.posterior import Belief, Floats, Ints, Observations, laplace_posterior, predict
from palate.rewards.queries import DEFAULT_STRATEGY, choose, strategy

_CHUNK = 65_536  # test rows predicted at once


@dataclass(frozen=True)
class NewPeople:
    """What U new people could be asked, and what they would truly prefer.

    Args:
        asked: rows that may be asked, sorted by person.
        prompt: (N,) number of the prompt of each of those rows.
        test: (M, D) differences, preferred minus other.
        test_user: (M,) person of each, ascending.
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
        seconds: spent on choosing and learning until then, for everybody's answers together.
        belief: what is known of everybody by then.
    """

    auc: Floats
    accuracy: float
    log_loss: float
    ece: float
    seconds: float = 0.0
    belief: Belief | None = field(default=None, repr=False)


def learning_curve(
    people: NewPeople,
    prior: Belief,
    lapse: float,
    answers: Sequence[int],
    query_strategy: str,
    seed: int = 0,
    guard: float | None = None,
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
        guard: log odds that personalising helps somebody; whose answers say otherwise is predicted by the prior. None
            personalises for all.
        progress: called with (answers so far, answers in all).

    Returns:
        {number of answers: figures}.
    """
    score, rng = strategy(query_strategy), np.random.default_rng(seed)
    rows, available = _padded_rows(people.asked)
    v, prompt = people.asked.v[rows] * available[..., None], people.prompt[rows]  # (U, T, D), (U, T)
    everyone = np.arange(len(rows))
    belief = laplace_posterior(_take(people.asked, np.empty(0, np.int64)), prior, lapse)
    last_prompt, taken = np.full(len(rows), -1), np.empty(0, np.int64)
    curve: dict[int, Figures] = {}
    spent, nobody, gain = 0.0, belief, np.zeros(len(rows))
    for count in range(max(answers) + 1):
        if count in answers:
            used = belief if guard is None else where(guard + gain >= 0, belief, nobody)
            curve[count] = replace(measure(people, used), seconds=spent, belief=used)
        if count == max(answers):
            break
        if progress:
            progress(count + 1, max(answers))
        if not available.any():
            continue
        started = time.perf_counter()
        best = choose(score(belief, v, lapse, rng), available, prompt, last_prompt)
        who = everyone[best >= 0]
        available[who, best[who]] = False
        last_prompt[who] = prompt[who, best[who]]
        new = rows[who, best[who]]
        if guard is not None:
            asked = people.asked.take(new)
            gain[who] += row_loss(nobody[who], asked, lapse) - row_loss(belief[who], asked, lapse)
        taken = np.concatenate([taken, new])
        belief = laplace_posterior(_take(people.asked, taken), prior, lapse)
        spent += time.perf_counter() - started
    return curve


def _padded_rows(asked: Observations) -> tuple[Ints, np.ndarray]:
    """Row numbers of each person (U, T), and which of them are real."""
    first = np.searchsorted(asked.user, np.arange(asked.n_users))
    count = np.bincount(asked.user, minlength=asked.n_users)
    place = np.arange(count.max(initial=0))
    real = place < count[:, None]
    return np.where(real, first[:, None] + place, 0), real


def _take(asked: Observations, rows: Ints) -> Observations:
    rows = np.sort(rows)
    return Observations(asked.v[rows], asked.label[rows], asked.weight[rows], asked.user[rows], asked.n_users)


def measure(people: NewPeople, belief: Belief) -> Figures:
    """Figures of everybody's belief on their test rows."""
    user, v = people.test_user, people.test
    logit = np.sum(v * belief.mean[user], axis=1)
    # Some rows at a time: each brings its person's covariance along.
    parts = [slice(first, first + _CHUNK) for first in range(0, len(v), _CHUNK)]
    p = np.concatenate([np.zeros(0), *(predict(belief[user[part]], v[part, None, :])[:, 0] for part in parts)])
    return Figures(
        auc=auc_by_user(logit, user, people.asked.n_users),
        accuracy=float(np.mean((logit > 0) + 0.5 * (logit == 0))),
        log_loss=float(-np.mean(np.log(np.maximum(p, np.finfo(np.float64).tiny)))),
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
    # Equal predictions share what happened: in which order they stand must not matter.
    _, run, size = np.unique(both.round(12), return_inverse=True, return_counts=True)
    happened = (np.bincount(run[: len(p)], minlength=len(size)) / size)[run]
    order = np.argsort(both, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return float(sum(abs(np.sum(both[part]) - np.sum(happened[part])) for part in parts) / max(len(both), 1))


class Evaluation(TypedDict):
    """What `palate evaluate --json` prints; inner keys are numbers of answers as strings."""

    users: int
    comparisons: int
    auc: dict[str, float]
    accuracy: dict[str, float]
    log_loss: dict[str, float]
    ece: dict[str, float]
    seconds_per_answer: float
    query_strategy: str
    guard: bool


# Ratings of one prompt that differ by less say nothing of which is liked more.
_RATING_GAP = 0.05


def evaluate(
    model: RewardModel,
    feedback: Feedback,
    answers: Sequence[int],
    query_strategy: str = DEFAULT_STRATEGY,
    *,
    seed: int = 0,
    guard: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    """Measure a reward model on new people's `adapt` and `test` rows.

    A choice is one comparison; where people rated, an answer is one rating, and test pairs are those of a person's
    ratings of one prompt that differ by 0.05 or more. Ties among the test rows are left out.

    Args:
        model: fitted on other people.
        feedback: what people said, with `split`; replies that were read may be answers.
        answers: numbers of answers at which to measure.
        query_strategy: how answers are chosen among a person's `adapt` rows.
        seed: of random strategies.
        guard: whether people whose answers do not support personalising are predicted by the population's taste.
        progress: told of each answer.

    Returns:
        The figures; `seconds_per_answer` is that of learning and choosing, over everybody's answers at once.

    Raises:
        InputError: there are no `test` rows, or no `adapt` rows to answer from.
    """
    strategy(query_strategy)  # before texts are read
    people = new_people(model, feedback, needs_answers=max(answers) > 0)
    told = None if progress is None else lambda done, total: progress("Asking", done, total)
    curve = learning_curve(
        people,
        model.prior_with_generosity,
        model.lapse,
        answers,
        query_strategy,
        seed=seed,
        guard=model.guard if guard else None,
        progress=told,
    )
    given = int(np.minimum(np.bincount(people.asked.user, minlength=people.asked.n_users), max(answers)).sum())
    return {
        "users": people.asked.n_users,
        "comparisons": len(people.test),
        "auc": {str(t): float(np.mean(figures.auc)) for t, figures in curve.items()},
        "accuracy": {str(t): figures.accuracy for t, figures in curve.items()},
        "log_loss": {str(t): figures.log_loss for t, figures in curve.items()},
        "ece": {str(t): figures.ece for t, figures in curve.items()},
        "seconds_per_answer": curve[max(answers)].seconds / max(given, 1),
        "query_strategy": query_strategy,
        "guard": guard,
    }


def new_people(model: RewardModel, feedback: Feedback, *, needs_answers: bool = True) -> NewPeople:
    """The people of a file who have test rows, as arrays.

    Raises:
        InputError: nobody has test rows, or nobody has `adapt` rows though answers are needed.
    """
    records = heard([*feedback.comparisons, *feedback.ratings, *feedback.replies])
    pairs = _test_pairs(records)
    if not pairs:
        raise InputError(
            "There are 0 test pairs; give comparisons, or ratings of one prompt that differ, with split 'test'"
        )
    number = {user: i for i, user in enumerate(dict.fromkeys(user for user, *_ in pairs))}
    asked = [record for record in records if record.split == "adapt" and record.user_id in number]
    if needs_answers and not asked:
        raise InputError("There are 0 rows to answer from; give rows with split 'adapt', or measure at 0 answers only")
    asked.sort(key=lambda record: number[record.user_id])
    pairs.sort(key=lambda pair: number[pair[0]])
    prompts = [pair[1] for pair in pairs]
    liked, other = (model.phi(prompts, [pair[side] for pair in pairs]) for side in (2, 3))
    topics: dict[str, int] = {}
    return NewPeople(
        asked=model.observations(
            asked, np.array([number[record.user_id] for record in asked], np.int64), n_users=len(number)
        ),
        prompt=np.array([topics.setdefault(as_text(record.prompt), len(topics)) for record in asked], np.int64),
        test=np.column_stack([liked - other, np.zeros(len(pairs))]),
        test_user=np.array([number[pair[0]] for pair in pairs], np.int64),
    )


def _test_pairs(records: Sequence[Evidence]) -> list[tuple[str, Text, Text, Text]]:
    """(user, prompt, liked, other) of every decided test comparison, and of every decided pair of test ratings."""
    pairs: list[tuple[str, Text, Text, Text]] = []
    rated: dict[tuple[str, str], list[Rating]] = {}
    for record in records:
        if record.split != "test":
            continue
        if isinstance(record, Rating):
            rated.setdefault((record.user_id, as_text(record.prompt)), []).append(record)
        elif isinstance(record, Comparison) and record.strength > 0.5:
            pairs.append((record.user_id, record.prompt, record.chosen, record.rejected))
    for ratings in rated.values():
        for one, two in combinations(sorted(ratings, key=lambda rating: -rating.score), 2):
            # Scores such as 0.85 and 0.8 differ by a hair less than 0.05 in binary.
            if one.score - two.score >= _RATING_GAP - 1e-9:
                pairs.append((one.user_id, one.prompt, one.completion, two.completion))
    return pairs
