"""Laws of asking: which pairs, in which order, on which side, and when there is none left."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from tests.support import PlantedEncoder, people

from palate.errors import InputError
from palate.feedback import Comparison, Feedback, Rating, Record
from palate.rewards import RewardModel, fit
from palate.rewards.elicitation import Pair, Query, next_query, pairs_in
from palate.rewards.model import KnownAnswers
from palate.rewards.queries import STRATEGIES, expected_information

by_strategy = pytest.mark.parametrize("strategy", STRATEGIES)


def of_prompts(model: RewardModel, count: int, each: int) -> RewardModel:
    """The same model, knowing that many answers to each of that many prompts."""
    known = model.known
    prompts = list(dict.fromkeys(map(str, known.prompts)))[:count]
    rows = [row for prompt in prompts for row in [i for i, p in enumerate(known.prompts) if p == prompt][:each]]
    few = KnownAnswers(
        [known.prompts[i] for i in rows], [known.completions[i] for i in rows], known.phi[rows], known.styles[rows]
    )
    return replace(model, known=few)


@pytest.fixture(scope="module")
def fitted() -> RewardModel:
    return fit(Feedback(comparisons=people(prompts=slice(0, 6), comparisons=20)), PlantedEncoder(), rank=3)


@pytest.fixture(scope="module")
def small(fitted: RewardModel) -> RewardModel:
    """Two prompts with 4 answers each: 12 pairs."""
    return of_prompts(fitted, 2, 4)


def ask_everything(model: RewardModel, strategy: str, seed: int = 0) -> list[Query]:
    """Questions until none is left, each answered with its first response."""
    rng = np.random.default_rng(seed)
    queries: list[Query] = []
    said: list[Comparison] = []
    while query := next_query(
        model,
        model.posterior(said),
        asked=pairs_in(model, said),
        last_prompt=queries[-1].prompt if queries else None,
        query_strategy=strategy,
        rng=rng,
    ):
        queries.append(query)
        said.append(Comparison(user_id="ann", prompt=query.prompt, chosen=query.response_a, rejected=query.response_b))
        assert len(queries) <= len(model.pool.pairs), "a pair came twice"
    return queries


@by_strategy
def test_every_pair_is_asked_once_and_then_none(small, strategy):
    queries = ask_everything(small, strategy)
    assert len({frozenset(query.rows) for query in queries}) == len(queries) == 12


@by_strategy
def test_not_one_prompt_twice_in_a_row_while_others_remain(small, strategy):
    prompts = [query.prompt for query in ask_everything(small, strategy)]
    # Two prompts of 6 pairs each can alternate to the end.
    assert all(one != following for one, following in pairwise(prompts))


def test_one_prompt_alone_is_asked_about_again(fitted):
    assert len(ask_everything(of_prompts(fitted, 1, 3), "bald")) == 3


def test_a_prompt_that_is_not_known_was_asked_last(small):
    assert next_query(small, small.prior, last_prompt="Never seen", rng=np.random.default_rng(0)) is not None


@by_strategy
def test_a_query_is_what_its_rows_say(small, strategy):
    for query in ask_everything(small, strategy):
        a, b = query.rows
        assert (query.prompt, query.prompt) == (small.known.prompts[a], small.known.prompts[b])
        assert (query.response_a, query.response_b) == (small.known.completions[a], small.known.completions[b])
        assert 0 <= query.expected_information <= np.log(2)


def test_sides_are_drawn_at_random(small):
    def sides(seed: int) -> tuple[int, int]:
        query = next_query(small, small.prior, rng=np.random.default_rng(seed))
        assert query is not None
        return query.rows

    drawn = [sides(seed) for seed in range(40)]
    assert len(set(map(frozenset, drawn))) == 1  # the same pair
    # Under a fair coin fewer than 8 of 40 on one side come once in 40,000 such lists.
    assert 8 <= sum(rows == drawn[0] for rows in drawn) <= 32


@by_strategy
def test_the_same_seed_asks_the_same(small, strategy):
    assert ask_everything(small, strategy, seed=3) == ask_everything(small, strategy, seed=3)


def test_the_best_by_expected_information_comes_first(small):
    """Against a loop over all pairs, the integral by a fine sum."""
    query = next_query(small, small.prior, query_strategy="bald", rng=np.random.default_rng(0))
    assert query is not None
    x = np.linspace(-8, 8, 4001)
    mass = np.exp(-0.5 * x**2) / np.exp(-0.5 * x**2).sum()

    def entropy(p: np.ndarray) -> np.ndarray:
        return np.asarray(-p * np.log(p) - (1 - p) * np.log(1 - p))

    def information(v: np.ndarray) -> float:
        logit = v @ small.prior.mean + x * np.sqrt(v @ small.prior.cov @ v)
        p = small.lapse + (1 - 2 * small.lapse) / (1 + np.exp(-logit))
        return float(entropy(mass @ p) - mass @ entropy(p))

    best = max(range(len(small.pool.pairs)), key=lambda i: information(small.pool.v[i]))
    assert set(query.rows) == set(small.pool.pairs[best])
    assert query.expected_information == pytest.approx(information(small.pool.v[best]), abs=0.01)


def test_pairs_in_reads_comparisons_of_known_answers(small):
    known = small.known
    prompt = known.prompts[0]
    one, two = known.completions[0], known.completions[1]
    evidence: list[Record] = [
        Comparison(user_id="ann", prompt=prompt, chosen=two, rejected=one),
        Rating(user_id="ann", prompt=prompt, completion=one, score=1),
        Comparison(user_id="ann", prompt=prompt, chosen=one, rejected="Never seen"),
        Comparison(user_id="ann", prompt="Never seen", chosen=one, rejected=two),
        Comparison(user_id="ann", prompt=prompt, chosen=one, rejected=two, strength=0.5),
    ]
    assert pairs_in(small, evidence) == [frozenset({0, 1})] * 2


def test_pairs_that_are_no_pairs_change_nothing(small):
    asked: list[Pair] = [frozenset({10**6, 10**6 + 1})]
    rng = np.random.default_rng
    assert next_query(small, small.prior, asked=asked, rng=rng(0)) == next_query(small, small.prior, rng=rng(0))


def test_a_model_without_pairs_cannot_ask(fitted):
    with pytest.raises(InputError) as caught:
        next_query(of_prompts(fitted, 3, 1), fitted.prior, rng=np.random.default_rng(0))
    assert str(caught.value) == ("The model knows no 2 answers to one prompt; fit it on comparisons that share prompts")


def test_a_strategy_that_is_not_there(small):
    with pytest.raises(InputError) as caught:
        next_query(small, small.prior, query_strategy="oracle", rng=np.random.default_rng(0))
    assert str(caught.value) == (f"Query strategy 'oracle' is not known; choose one of {', '.join(STRATEGIES)}")


@by_strategy
def test_it_stops_once_no_pair_of_the_pool_would_tell_enough(small, strategy):
    """Whatever the strategy would have picked."""
    most = expected_information(small.prior, small.pool.v, small.lapse).max()

    def ask(stop_below: float) -> Query | None:
        rng = np.random.default_rng(0)
        return next_query(small, small.prior, query_strategy=strategy, stop_below=stop_below, rng=rng)

    assert ask(0.999 * most) is not None
    assert ask(1.001 * most) is None


def test_a_text_is_never_put_against_a_conversation(small):
    """As in `Comparison`, where the form would give the choice away."""
    known = small.known
    told = [
        [{"role": "assistant", "content": str(text)}] if row % 2 else text for row, text in enumerate(known.completions)
    ]
    mixed = replace(small, known=replace(known, completions=told))
    queries = ask_everything(mixed, "v-optimal")
    assert len(queries) == len(mixed.pool.pairs) == 4
    assert all(isinstance(q.response_a, str) is isinstance(q.response_b, str) for q in queries)
