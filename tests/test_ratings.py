"""How strongly ratings speak: grades against coins, steep against flat, and too few ratings change nothing."""

from dataclasses import replace

import numpy as np
import pytest
from tests.support import PlantedEncoder, fitted, people

from palate.feedback import Feedback, Rating
from palate.rewards import RatingScale, fit
from palate.rewards.ratings import fit_rating_scale


def rated(scale: RatingScale, users: int = 30, each: int = 20, seed: int = 0) -> list[Rating]:
    """Graded answers of people drawn from the prior, without noise but their own levels."""
    model, rng = replace(fitted(), ratings=scale), np.random.default_rng(seed)
    known, ratings = model.known, []
    for user in range(users):
        taste, level = rng.multivariate_normal(model.prior.mean, model.prior.cov), rng.normal(0, scale.generosity)
        for row in rng.choice(len(known.prompts), each, replace=False):
            centre = known.phi[model.rows_of(known.prompts[row])].mean(axis=0)
            logit = scale.slope * (known.phi[row] - centre) @ taste + level
            ratings.append(
                Rating(
                    user_id=f"u{user}",
                    prompt=known.prompts[row],
                    completion=known.completions[row],
                    score=float(1 / (1 + np.exp(-logit))),
                )
            )
    return ratings


def test_graded_scores_weigh_more_than_coins_of_the_same_odds():
    graded = rated(RatingScale())
    rng = np.random.default_rng(1)
    coins = [rating.model_copy(update={"score": float(rng.random() < rating.score)}) for rating in graded]
    # A yes or no is worth about one choice.
    weight = fit_rating_scale(fitted(), coins).weight
    assert 0.3 < weight < 3.3
    assert fit_rating_scale(fitted(), graded).weight > 1.5 * weight


def test_steeper_ratings_give_a_steeper_slope():
    slopes = [fit_rating_scale(fitted(), rated(RatingScale(slope=slope))).slope for slope in (0.2, 1.0, 4.0)]
    assert slopes == sorted(slopes)
    assert slopes[2] > 1.5 * slopes[0]


def test_the_scale_is_the_same_twice_and_does_not_rest_on_the_model_s_own():
    ratings = rated(RatingScale(), users=6)
    found = fit_rating_scale(fitted(), ratings)
    assert fit_rating_scale(fitted(), ratings) == found
    other = replace(fitted(), ratings=RatingScale(slope=7.0, weight=0.2, generosity=3.0))
    assert fit_rating_scale(other, ratings) == found


@pytest.mark.parametrize(("users", "each"), [(0, 1), (1, 20), (20, 3)])
def test_too_few_ratings_leave_the_scale_alone(users, each):
    assert fit_rating_scale(fitted(), rated(RatingScale(), users, each)) is fitted().ratings


def test_fitting_reads_ratings_for_training_alone():
    rows = people(each=1, comparisons=10)
    ratings = rated(RatingScale(slope=2.0), users=6)
    aside = [rating.model_copy(update={"split": "test"}) for rating in ratings]
    models = [fit(Feedback(comparisons=rows, ratings=some), PlantedEncoder(), rank=2) for some in ([], aside, ratings)]
    assert models[0].ratings == models[1].ratings == RatingScale()
    assert models[2].ratings != RatingScale()
    np.testing.assert_array_equal(models[2].weights, models[0].weights)
