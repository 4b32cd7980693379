"""Base rewards learned from many people's comparisons: r_u(x, y) = λ_u · W z(x, y).

Where we depart from PReF (arXiv 2503.06358, §3):
1. The population's taste is the first base reward, with a penalty of its own, and λ_u starts at "that one once,
   nothing else". In the plain bilinear fit the population direction escapes the L2 penalty (its weight can grow
   while its row of W shrinks): the AUC for people not yet asked falls from 0.70 to 0.66 as that fit converges
   (docs/log.md).
2. People's weights are solved exactly inside every evaluation of W (variable projection): by the envelope
   theorem the gradient in W is the partial one at the optimal weights, and L-BFGS needs some 50 evaluations.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from palate.rewards.initialization import svd_start
from palate.rewards.posterior import (
    Floats,
    Gaussian,
    Ints,
    Observations,
    negative_log_likelihood,
    posterior_mode,
)

# Fixing the population's weight at one: its prior variance while W is fitted.
_PINNED = 1e-6


@dataclass(frozen=True)
class Penalties:
    """L2 penalties (prior precisions) of the rows of W, in units of the standardised coordinates.

    Args:
        individual: of the rows along which people differ; their weights have unit prior variance.
        population: of the population's row.
    """

    individual: float = 10.0
    population: float = 10.0


@dataclass(frozen=True)
class Choices:
    """Comparisons as indices into a table of answers: N comparisons of U people.

    Args:
        chosen: (N,) row of the preferred answer.
        rejected: (N,) row of the other one.
        user: (N,) person, 0 to U − 1.
        strength: (N,) probability in [0.5, 1] that the chosen one is better.
        prompt: (N,) group of the prompt; a split keeps a group together.
        group: (U,) group of each person (their `kind`, or their own number); a split keeps a group together.
    """

    chosen: Ints
    rejected: Ints
    user: Ints
    strength: Floats
    prompt: Ints
    group: Ints

    @property
    def n_users(self) -> int:
        """U."""
        return len(self.group)

    def where(self, rows: np.ndarray) -> "Choices":
        """Those comparisons alone, people renumbered without gaps."""
        people, user = np.unique(self.user[rows], return_inverse=True)
        return Choices(
            self.chosen[rows],
            self.rejected[rows],
            user,
            self.strength[rows],
            self.prompt[rows],
            self.group[people],
        )

    def observations(self, phi: Floats) -> Observations:
        """Rows for the posterior, from (n, J) base rewards of the answers."""
        return Observations.of(phi[self.chosen] - phi[self.rejected], self.user, self.n_users, self.strength)


def fit_weights(
    z: Floats,
    choices: Choices,
    rank: int,
    lapse: float,
    penalties: Penalties = Penalties(),
    max_steps: int = 100,
    random_start: int | None = None,
) -> Floats:
    """Penalised maximum likelihood of W, people's weights solved exactly inside.

    Args:
        z: (n, K) coordinates of the answers.
        choices: who preferred what.
        rank: J ≥ 1 base rewards, the population's included.
        lapse: ε in [0, 0.5).
        penalties: of the two kinds of rows.
        max_steps: L-BFGS iterations at most.
        random_start: a seed, to start at random directions instead of those of `svd_start`.

    Returns:
        (J, K) weights; row 0 is the population's taste. Fewer rows where fewer people or features cannot
        carry J.
    """
    order = np.argsort(choices.user, kind="stable")
    chosen, rejected = choices.chosen[order], choices.rejected[order]
    user, strength = choices.user[order], choices.strength[order]
    ones = np.ones(len(user))
    start = np.zeros((1, z.shape[1]))
    if rank > 1 and choices.n_users > 1:
        directions = svd_start(z, chosen, rejected, user, choices.n_users, rank - 1, strength)
        if random_start is not None:
            drawn = np.random.default_rng(random_start).standard_normal(directions.shape)
            directions = drawn * np.linalg.norm(directions) / np.linalg.norm(drawn)
        start = np.concatenate([start, directions])
    rows = len(start)
    penalty = np.full((rows, 1), penalties.individual)
    penalty[0] = penalties.population
    population = Gaussian(np.eye(rows)[0], np.diag(np.r_[_PINNED, np.ones(rows - 1)]))
    weights_of_people: Floats | None = None

    def objective(flat: Floats) -> tuple[float, Floats]:
        nonlocal weights_of_people
        w = flat.reshape(rows, -1)
        phi = z @ w.T
        said = Observations(phi[chosen] - phi[rejected], strength, ones, user, choices.n_users)
        lam = posterior_mode(said, population, lapse, start=weights_of_people, tolerance=1e-5)
        weights_of_people = lam
        loss, slope, _ = negative_log_likelihood(np.sum(said.v * lam[user], axis=1), strength, lapse)
        value = loss.sum() + 0.5 * np.sum(penalty * w**2) + 0.5 * np.sum(lam[:, 1:] ** 2)
        pull = slope[:, None] * lam[user]
        by_answer = np.stack(
            [np.bincount(chosen, column, len(z)) - np.bincount(rejected, column, len(z)) for column in pull.T]
        )
        return float(value), (by_answer @ z + penalty * w).ravel()

    found = minimize(
        objective, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": max_steps, "ftol": 1e-6}
    )
    return np.asarray(found.x.reshape(rows, -1), np.float64)


def fix_gauge(weights: Floats, prior: Gaussian, choices: Choices, z: Floats, lapse: float) -> tuple[Floats, Floats]:
    """The same model with prior covariance I, and axes turned so that people's tastes lie along few of them.

    λ · φ is unchanged by φ → Aφ, λ → A⁻ᵀλ. Σ = I leaves a rotation free; varimax (Kaiser 1958) of the people's
    weights picks the one in which each person is told by few axes, so that an axis can be read.

    Returns:
        (J, K) weights and the (J,) prior mean in the new gauge.
    """
    root = np.linalg.cholesky(prior.cov)
    weights, mean = root.T @ weights, np.linalg.solve(root, prior.mean)
    unit = Gaussian(mean, np.eye(len(mean)))
    people = posterior_mode(choices.observations(z @ weights.T), unit, lapse) - mean
    turn = varimax(people)
    weights, mean = turn.T @ weights, turn.T @ mean
    # Signs: what the population likes points up.
    sign = np.where(mean < 0, -1.0, 1.0)
    return sign[:, None] * weights, sign * mean


def varimax(loadings: Floats, max_rounds: int = 200) -> Floats:
    """Rotation R that makes the columns of loadings @ R sparse (Kaiser 1958).

    Args:
        loadings: (n, J).
        max_rounds: of the fixed-point iteration.

    Returns:
        (J, J) orthogonal matrix.
    """
    turn, last = np.eye(loadings.shape[1]), 0.0
    for _ in range(max_rounds):
        turned = loadings @ turn
        u, s, vt = np.linalg.svd(loadings.T @ (turned**3 - turned * np.mean(turned**2, axis=0)))
        turn = u @ vt
        if s.sum() <= last * (1 + 1e-8):
            break
        last = s.sum()
    return np.asarray(turn, np.float64)
