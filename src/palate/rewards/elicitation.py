"""Asking one person: the next question over a model's pool of known answers, and when to stop."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from palate.errors import InputError
from palate.feedback import Comparison, Record, Text
from palate.rewards.model import RewardModel
from palate.rewards.posterior import Belief, Ints
from palate.rewards.queries import DEFAULT_STRATEGY, choose, expected_information, strategy

Pair = frozenset[int]
"""Rows of two known answers, in no order."""


@dataclass(frozen=True)
class Query:
    """A question: which of two responses is better?

    Args:
        prompt: what both answer.
        response_a: shown as A; the sides were drawn at random.
        response_b: shown as B.
        rows: where A and B stand among the model's known answers.
        expected_information: what the choice is expected to tell, in nats, at most log 2.
    """

    prompt: Text
    response_a: Text
    response_b: Text
    rows: tuple[int, int]
    expected_information: float


def pairs_in(model: RewardModel, evidence: Iterable[Record]) -> list[Pair]:
    """Pairs of known answers that a person was already asked about, in the order of the evidence."""
    pairs = []
    for record in evidence:
        if isinstance(record, Comparison):
            rows = [model.row_of(record.prompt, text) for text in (record.chosen, record.rejected)]
            pairs.append(frozenset(row for row in rows if row is not None))
    return [pair for pair in pairs if len(pair) == 2]


def next_query(
    model: RewardModel,
    user: Belief,
    *,
    asked: Iterable[Pair] = (),
    last_prompt: Text | None = None,
    query_strategy: str = DEFAULT_STRATEGY,
    stop_below: float = 0.0,
    rng: np.random.Generator,
) -> Query | None:
    """The pair to ask about next; None where every pair was asked, or none would tell enough.

    Args:
        model: whose known answers are asked about.
        user: what is known so far.
        asked: pairs not to ask again.
        last_prompt: not asked about twice in a row while others remain.
        query_strategy: one of `queries.STRATEGIES`.
        stop_below: nothing is asked once no pair is expected to tell so much, in nats.
        rng: draws the sides, and serves the strategies that draw.

    Raises:
        InputError: the model has no two known answers to one prompt, or there is no such strategy.
    """
    score, pool = strategy(query_strategy), model.pool
    if not len(pool.pairs):
        raise InputError("The model knows no 2 answers to one prompt; fit it on comparisons that share prompts")
    available = ~np.isin(_key(pool.pairs), _key(np.array([sorted(pair) for pair in asked], np.int64).reshape(-1, 2)))
    last = -1
    if last_prompt is not None:
        rows = model.rows_of(last_prompt)
        last = int(model.prompt_number[rows[0]]) if rows else -1
    best = int(choose(score(user, pool.v, model.lapse, rng), available, pool.prompt, np.array(last)))
    information = expected_information(user, pool.v, model.lapse)
    if best < 0 or information[available].max() < stop_below:
        return None
    first, second = (int(row) for row in rng.permutation(pool.pairs[best]))
    return Query(
        prompt=model.known.prompts[first],
        response_a=model.known.completions[first],
        response_b=model.known.completions[second],
        rows=(first, second),
        expected_information=float(information[best]),
    )


def _key(pairs: Ints) -> Ints:
    """One number for each unordered pair of rows."""
    return np.asarray(pairs.min(axis=1) * 2**32 + pairs.max(axis=1), np.int64)
