"""Baselines, against scipy in all dimensions."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.optimize import minimize
from sklearn.metrics import roc_auc_score
from tests.support import planted

from palate.rewards.baselines import bradley_terry, per_user
from palate.rewards.evaluation import NewPeople
from palate.rewards.posterior import Floats, Observations


def ridge_logistic(v: Floats, precision: float, lapse: float) -> Floats:
    def objective(w: Floats) -> float:
        p = lapse + (1 - 2 * lapse) / (1 + np.exp(-v @ w))
        return float(-np.log(p).sum() + 0.5 * precision * w @ w)

    return np.asarray(minimize(objective, np.zeros(v.shape[1]), method="BFGS", options={"gtol": 1e-7}).x)


@pytest.mark.parametrize("lapse", [0.0, 0.05])
@pytest.mark.parametrize(("answers", "features"), [(6, 20), (12, 5), (1, 4)])
def test_a_model_per_person_is_ridge_in_all_dimensions(answers, features, lapse):
    rng = np.random.default_rng(0)
    asked = Observations.of(rng.standard_normal((3 * 15, features)), np.repeat(np.arange(3), 15), 3)
    people = NewPeople(asked, np.zeros(45, int), rng.standard_normal((3 * 30, features)), np.repeat(np.arange(3), 30))
    rows = np.array([15 * user + rng.choice(15, answers, replace=False) for user in range(3)])
    ours = per_user(people, rows, 2.0, lapse)
    for user in range(3):
        test = people.test[people.test_user == user]
        logit = test @ ridge_logistic(asked.v[rows[user]], 2.0, lapse)
        assert_allclose(ours[user], roc_auc_score(np.repeat([1, 0], 30), np.r_[logit, -logit]), atol=1e-9)


def test_one_reward_for_all_is_penalised_logistic_regression():
    truth = planted(users=8, each=50, rank=1, features=6)
    weights = bradley_terry(truth.z, truth.choices, 0.0)
    exact = ridge_logistic(truth.z[truth.choices.chosen] - truth.z[truth.choices.rejected], 10.0, 0.0)
    assert weights.shape == (6,)
    assert_allclose(weights, exact, atol=0.01 * float(np.linalg.norm(exact)))
