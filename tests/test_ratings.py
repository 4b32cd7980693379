"""Ratings as rows of the fit: their objective, their scale found again, and fits of ratings, choices and both."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize
from scipy.special import expit
from tests.support import KINDS, PlantedEncoder, answers_to, fitted, people

from palate.bench.people import Person, parse_kind
from palate.feedback import Comparison, Feedback, Rating, as_text
from palate.rewards import RatingScale, RewardModel, Scales, fit
from palate.rewards.calibration import cross_fit
from palate.rewards.evaluation import auc_by_user
from palate.rewards.factorization import Choices, Penalties, fit_weights
from palate.rewards.indexing import Indexed
from palate.rewards.posterior import Floats, Gaussian, laplace_posterior
from palate.rewards.ratings import RATING

PENALTIES = Penalties(individual=3.0, population=5.0)
SCALE = RatingScale(slope=0.6, weight=4.0, generosity=0.8)
SCALES = Scales(SCALE)


def said(
    users: int, each: int, scale: RatingScale = SCALE, share: float = 0.5, seed: int = 0
) -> tuple[Floats, Choices]:
    """(n, K) answers, centres and level, and what people said of 20 prompts; `share` of it are graded ratings."""
    rng = np.random.default_rng(seed)
    prompts, answers, features = 20, 5, 4
    z = rng.standard_normal((prompts, answers, features))
    table = np.zeros((prompts * answers + prompts, features + 1))
    table[:, :-1] = np.concatenate([z.reshape(-1, features), z.mean(axis=1)])
    table[prompts * answers :, -1] = -1.0
    base = np.array([[1.0, 0.0, 0.0, 0.0, 0.3], [0.0, 1.0, 0.0, 0.0, 0.5]])
    taste = np.column_stack([np.ones(users), 1.5 * rng.standard_normal(users)])
    level = rng.normal(0, scale.generosity, users)
    user, prompt = np.repeat(np.arange(users), each), rng.integers(prompts, size=users * each)
    sides = np.array([rng.choice(answers, 2, replace=False) for _ in user])
    rated = rng.random(len(user)) < share
    chosen = prompt * answers + sides[:, 0]
    rejected = np.where(rated, prompts * answers + prompt, prompt * answers + sides[:, 1])
    reward = np.sum((table[chosen] - table[rejected]) * (taste @ base)[user], axis=1)
    odds = expit(np.where(rated, scale.slope * reward + level[user], reward))
    flip = ~rated & (rng.random(len(user)) > odds)
    chosen[flip], rejected[flip] = rejected[flip], chosen[flip]
    return table, Choices(chosen, rejected, user, np.where(rated, odds, 1.0), prompt, np.arange(users), rated * RATING)


# The objective


@pytest.mark.parametrize("share", [0.5, 1.0], ids=["both", "ratings alone"])
def test_the_fit_is_a_minimum_of_the_joint_objective(share):
    z, c = said(users=6, each=30, share=share)
    weights = fit_weights(z, c, 2, 0.05, PENALTIES, scales=SCALES)
    v = z[c.chosen] - z[c.rejected]

    def objective(flat: Floats) -> float:
        """Written down anew, over W, everybody's second weight, and everybody's level."""
        w, own, level = flat[:10].reshape(2, 5), flat[10:16], flat[16:]
        logit = v @ w[0] + own[c.user] * (v @ w[1])
        logit = np.where(c.graded, 0.6 * logit + level[c.user], logit)
        p = 0.05 + 0.9 * expit(logit)
        nats = -np.where(c.graded, 4.0, 1.0) * (c.strength * np.log(p) + (1 - c.strength) * np.log(1 - p))
        prior = 5 * w[0] @ w[0] + 3 * w[1] @ w[1] + own @ own + level @ level / 0.64
        return float(nats.sum() + 0.5 * prior)

    def people_of(w: Floats) -> Floats:
        return np.asarray(minimize(lambda x: objective(np.r_[w.ravel(), x]), np.zeros(12), method="BFGS").x)

    here = np.r_[weights.ravel(), people_of(weights)]
    better = minimize(objective, here, method="BFGS")
    assert objective(here) - better.fun < 2e-3
    rng = np.random.default_rng(0)
    for _ in range(5):
        aside = weights + 0.05 * rng.standard_normal(weights.shape)
        assert objective(np.r_[aside.ravel(), people_of(aside)]) > objective(here) - 1e-3


def test_without_ratings_their_scale_changes_no_bit():
    z, c = said(users=8, each=20, share=0.0)
    one, other = (fit_weights(z, c, 2, 0.05, scales=scales) for scales in (Scales(), SCALES))
    assert_array_equal(one, other)
    assert c.observations(z, SCALES).v.shape == (160, 5)
    assert_array_equal(c.observations(z, SCALES).weight, 1.0)


def test_the_order_of_people_hardly_matters():
    z, c = said(users=12, each=30)
    turned = np.random.default_rng(0).permutation(12)
    other = replace(c, user=turned[c.user])
    one, two = (z @ fit_weights(z, choices, 2, 0.0, scales=SCALES).T for choices in (c, other))
    prior = Gaussian(np.eye(2)[0], np.eye(2)).with_column(1.0)
    rewards = [
        phi @ laplace_posterior(choices.observations(phi, SCALES), prior).mean[:, :2].T
        for phi, choices in ((one, c), (two, other))
    ]
    assert_allclose(rewards[1][:, turned], rewards[0], atol=0.05)


# Rows


def test_a_level_is_put_in_and_left_out():
    prior = Gaussian(np.array([1.0, 2.0]), np.array([[2.0, 0.5], [0.5, 1.0]]))
    wide = prior.with_column(3.0)
    assert (wide.mean.tolist(), wide.cov[2].tolist()) == ([1, 2, 0], [0, 0, 9])
    back = wide.leading(len(prior.mean))
    assert_array_equal(back.mean, prior.mean)
    assert_array_equal(back.cov, prior.cov)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.floats(0, 1), st.booleans()), min_size=1, max_size=20),
    st.floats(-0.3, 0.3),
)
def test_votes_do_not_rest_on_how_generous_people_are(rows, more):
    user, score, rated = (np.array(column) for column in zip(*rows, strict=True))
    nothing = np.zeros(len(user), np.int64)
    score = np.where(rated, score, 0.5 + score / 2)
    raised = np.where(rated, score + more * (user == 1), score)
    one, other = (
        Choices(nothing, nothing, user, s, nothing, np.arange(3), rated * RATING).votes() for s in (score, raised)
    )
    assert_allclose(other, one, atol=1e-12)
    assert_allclose(one[~rated], 2 * score[~rated] - 1)
    for u in range(3):
        assert abs(one[rated & (user == u)].sum()) < 1e-9


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2), st.integers(0, 1), st.integers(0, 4), st.sampled_from([0.0, 0.5, 1.0]), st.booleans()
        ),
        min_size=1,
        max_size=20,
    )
)
def test_ratings_in_a_row_imply_choices(rows):
    rows.sort(key=lambda row: row[0])
    user, prompt, answer, score, rated = (np.array(column) for column in zip(*rows, strict=True))
    choices = Choices(answer, answer, user, score, prompt, np.arange(3), rated * RATING)
    expected = []
    for i, (one, other) in enumerate(pairwise(rows)):
        if one[:2] == other[:2] and one[4] and other[4] and one[3] != other[3]:
            better, worse = (one, other) if one[3] > other[3] else (other, one)
            expected.append((i, better[2], worse[2]))
    assert list(zip(*(column.tolist() for column in choices.implied()), strict=True)) == expected


def test_some_groups_are_whole_and_few_enough():
    _, c = said(users=10, each=12)
    c = replace(c, group=np.arange(10) // 2)
    some = c.some_groups(80, np.random.default_rng(0))
    assert len(some.user) == 72
    assert np.bincount(some.group[some.user])[np.unique(some.group)].tolist() == [24, 24, 24]
    assert c.some_groups(120, np.random.default_rng(0)) is c
    assert len(c.some_groups(1, np.random.default_rng(0)).user) == 48


def rating(user: str, prompt: str, completion: str, score: float) -> Rating:
    return Rating(user_id=user, prompt=prompt, completion=completion, score=score)


def test_a_rating_is_held_against_the_centre_of_its_prompt():
    rows: list[Comparison | Rating] = [
        rating("ann", "Hi", "Hello!", 0.9),
        Comparison(user_id="bob", prompt="Hi", chosen="Hey.", rejected="What?"),
        rating("bob", "Bye", "So long.", 0.2),
    ]
    indexed = Indexed.of(rows)
    z = np.random.default_rng(0).standard_normal((4, 3))
    table, c = indexed.with_centres(z), indexed.choices
    assert_array_equal(table[:4], np.column_stack([z, np.zeros(4)]))
    difference = table[c.chosen] - table[c.rejected]
    assert_allclose(difference[0], [*(z[0] - z[:3].mean(axis=0)), 1])
    assert_allclose(difference[1], [*(z[1] - z[2]), 0])
    assert_allclose(difference[2], [*(z[3] - z.mean(axis=0)), 1])  # the one answer to its prompt
    assert (c.strength.tolist(), c.graded.tolist()) == ([0.9, 1.0, 0.2], [True, False, True])


# The scale


def test_the_scale_of_planted_ratings_is_found_beside_choices():
    flat, steep = (
        cross_fit(*said(users=40, each=40, scale=RatingScale(slope, 1.0, 0.5)), 2).scales.ratings.slope
        for slope in (0.3, 1.5)
    )
    assert 0.15 < flat < 0.6
    assert 0.75 < steep < 3.0
    z, c = said(users=40, each=40, scale=RatingScale(1.0, 1.0, 0.5))
    rng = np.random.default_rng(1)
    coins = replace(c, strength=np.where(c.graded, rng.random(len(c.user)) < c.strength, 1.0))
    graded, tossed = (cross_fit(z, rows, 2).scales.ratings for rows in (c, coins))
    # A yes or no is worth about one choice, a grade without noise much more.
    assert 0.3 < tossed.weight < 3.0
    assert graded.weight > 2 * tossed.weight


def test_people_who_differ_in_level_have_a_wider_one():
    generosity = []
    for level in (0.1, 3.0):
        z, c = said(users=40, each=30, scale=RatingScale(1.0, 1.0, level), share=1.0)
        generosity.append(cross_fit(z, c, 2).scales.ratings.generosity)
    assert generosity[1] > 2 * generosity[0]


# From texts


def rated(rows: list[Comparison], kind_of: dict[str, str], seed: int = 0) -> list[Rating]:
    """The first answer of each comparison, rated by its true worth with noise."""
    rng = np.random.default_rng(seed)
    worth = {
        (kind, a.prompt, a.text): float(value)
        for kind in set(kind_of.values())
        for a, value in zip(ANSWERS, Person(parse_kind(kind)).reward(ANSWERS), strict=True)
    }
    ratings = []
    for row in rows:
        text = str(rng.permutation([as_text(row.chosen), as_text(row.rejected)])[0])
        logit = 0.8 * worth[kind_of[row.user_id], str(row.prompt), text] + 0.3 * rng.standard_normal()
        ratings.append(rating(row.user_id, str(row.prompt), text, float(expit(logit))))
    return ratings


ANSWERS = answers_to(slice(0, 120))
KIND_OF = {row.user_id: row.kind or "" for row in people()}


def auc_of_new_people(model: RewardModel, *, by_ratings: bool) -> float:
    """Mean over kinds: AUC on new prompts after 20 answers about others."""
    answers = answers_to(slice(80, 100))
    phi = model.phi([a.prompt for a in answers], [a.text for a in answers])
    aucs = []
    for number, kind in enumerate(KINDS):
        rows = people([kind], prompts=slice(20, 40), each=1, seed=9)[:20]
        evidence = rated(rows, {row.user_id: kind for row in rows}, number) if by_ratings else rows
        truth = Person(parse_kind(kind)).reward(answers)
        better, worse = np.nonzero(truth[:, None] > truth)
        same = [answers[i].prompt == answers[j].prompt for i, j in zip(better, worse, strict=True)]
        gain = (phi[better[same]] - phi[worse[same]]) @ model.posterior(evidence).mean
        aucs.append(auc_by_user(gain, np.zeros(len(gain), np.int64), 1)[0])
    return float(np.mean(aucs))


def test_ratings_alone_and_both_teach_tastes():
    choices = people()
    ratings = rated(choices, KIND_OF)
    alone = fit(Feedback(ratings=ratings), PlantedEncoder(), rank=5)
    both = fit(Feedback(comparisons=choices[::2], ratings=ratings[1::2]), PlantedEncoder(), rank=5)
    for model in (alone, both):
        for by_ratings in (False, True):
            assert auc_of_new_people(model, by_ratings=by_ratings) > 0.8
    assert (alone.figures["comparisons"], alone.figures["ratings"]) == (0, 960)
    assert (both.figures["comparisons"], both.figures["ratings"]) == (480, 480)
    assert {"held_out_auc.0", "held_out_auc.10"} <= set(alone.figures)
    again = fit(Feedback(ratings=ratings), PlantedEncoder(), rank=5)
    assert (again.fingerprint, again.figures) == (alone.fingerprint, alone.figures)


def test_ratings_for_testing_are_not_fitted_on():
    rows = people(each=1, comparisons=10)
    ratings = [row.model_copy(update={"split": "test"}) for row in rated(rows, KIND_OF)]
    one, other = (fit(Feedback(comparisons=rows, ratings=some), PlantedEncoder(), rank=2) for some in ([], ratings))
    assert one.fingerprint == other.fingerprint
    assert one.scales.ratings == RatingScale()
    assert not one.level.any()


@pytest.mark.parametrize("scores", [(0.1, 0.9), (0.9, 0.9, 0.2)], ids=["two", "three"])
def test_the_fewest_ratings_give_a_model(scores):
    ratings = [rating(f"u{i}", "Hi", "Hello!" if i % 2 else "What?", score) for i, score in enumerate(scores)]
    model = fit(Feedback(ratings=ratings), PlantedEncoder())
    assert np.isfinite(model.weights).all() and np.isfinite(model.prior.mean).all()
    belief = model.posterior([rating("ann", "Hi", "Hello!", 1.0)])
    assert np.isfinite(belief.mean).all()


def test_a_level_moves_where_ratings_start():
    model = fitted()
    raised = replace(model, level=np.full(5, 0.5), scales=SCALES)
    row = rating("ann", model.known.prompts[0], model.known.completions[0], 0.7)  # type: ignore[arg-type]
    plain, moved = (m.observations([row]).v[0] for m in (replace(model, scales=SCALES), raised))
    assert_allclose(moved - plain, [*[0.3] * 5, 0])
    assert raised.fingerprint != replace(model, scales=SCALES).fingerprint
