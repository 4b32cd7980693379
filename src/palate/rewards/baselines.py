"""What Palate is measured against, on the same features and rows: one reward for all, and a model per person."""

import numpy as np

from palate.rewards.evaluation import NewPeople, auc_by_user
from palate.rewards.factorization import Choices, Penalties, fit_weights
from palate.rewards.posterior import Floats, Gaussian, Ints, Observations, laplace_posterior


def bradley_terry(z: Floats, choices: Choices, lapse: float, penalties: Penalties = Penalties()) -> Floats:
    """One reward for all ("standard RLHF"): Bradley and Terry 1952 on features, by penalised likelihood.

    Args:
        z: (n, K) coordinates of the answers.
        choices: everybody's comparisons.
        lapse: ε.
        penalties: of the one row.

    Returns:
        (K,) weights.
    """
    return np.asarray(fit_weights(z, choices, 1, lapse, penalties)[0], np.float64)


def per_user(people: NewPeople, rows: Ints, precision: float, lapse: float) -> Floats:
    """A model per person: ridge logistic regression on nothing but their own answers; AUC of each.

    The optimum lies in the span of a person's own differences (representer theorem), so it is found there: a
    problem in as many dimensions as the person gave answers.

    Args:
        people: rows in the K coordinates of the features.
        rows: (U, t) which of the asked rows each person answered.
        precision: prior precision of every weight.
        lapse: ε.

    Returns:
        (U,) AUC on the test rows.
    """
    n_users, t = rows.shape
    v = people.asked.v[rows]  # (U, t, K)
    q, r = np.linalg.qr(v.swapaxes(1, 2))  # (U, K, t), (U, t, t): v = rᵀ qᵀ
    answered = Observations.of(
        r.swapaxes(1, 2).reshape(n_users * t, -1),
        np.repeat(np.arange(n_users), t),
        n_users,
        people.asked.label[rows].ravel(),
    )
    dim = r.shape[1]
    belief = laplace_posterior(answered, Gaussian(np.zeros(dim), np.eye(dim) / precision), lapse)
    weights = np.matmul(q, belief.mean[..., None])[..., 0]  # (U, K)
    logit = np.sum(people.test * weights[people.test_user], axis=1)
    return auc_by_user(logit, people.test_user, n_users)
