"""Base rewards learned from what many people said: r_u(x, y) = λ_u · W z(x, y).

Where we depart from PReF (arXiv 2503.06358, §3):
1. The population's taste is the first base reward, with a penalty of its own, and λ_u starts at "that one once,
   nothing else". In the plain bilinear fit the population direction escapes the L2 penalty (its weight can grow
   while its row of W shrinks): the AUC for people not yet asked falls from 0.70 to 0.66 as that fit converges
   (docs/log.md).
2. People's weights are solved exactly inside every evaluation of W (variable projection): by the envelope
   theorem the gradient in W is the partial one at the optimal weights, and L-BFGS needs some 50 evaluations.
"""

from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import minimize

from palate.rewards.initialization import svd_start
from palate.rewards.posterior import (
    Belief,
    Floats,
    Gaussian,
    Ints,
    Observations,
    negative_log_likelihood,
    posterior_mode,
)
from palate.rewards.ratings import CHOICE, RATING, Mask, Scales

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
    """Comparisons and graded answers as indices into a table of answers: N rows of U people.

    A graded answer (a rating, or a reply that was read) stands against the *centre* of the prompt, a row of the table
    that holds the mean of the prompt's answers: their difference is φ(x, y) − φ̄(x).

    Args:
        chosen: (N,) row of the preferred answer, or of the graded one.
        rejected: (N,) row of the other one, or of the prompt's centre.
        user: (N,) person, 0 to U − 1.
        strength: (N,) probability in [0.5, 1] that the chosen one is better, or the score in [0, 1].
        prompt: (N,) group of the prompt; a split keeps a group together.
        group: (U,) group of each person (their `kind`, or their own number); a split keeps a group together.
        form: (N,) `CHOICE`, `RATING` or `REPLY`; all choices by default.
        confidence: (N,) in [0, 1], how sure the reading of a reply is; ones by default.
    """

    chosen: Ints
    rejected: Ints
    user: Ints
    strength: Floats
    prompt: Ints
    group: Ints
    form: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    confidence: Floats = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        if not len(self.form):
            object.__setattr__(self, "form", np.zeros(len(self.user), np.int64))
        if not len(self.confidence):
            object.__setattr__(self, "confidence", np.ones(len(self.user)))

    @property
    def graded(self) -> Mask:
        """(N,) which rows are ratings or replies."""
        return np.asarray(self.form != CHOICE, np.bool_)

    @property
    def n_users(self) -> int:
        """U."""
        return len(self.group)

    def where(self, rows: np.ndarray) -> "Choices":
        """Those rows alone (a mask or numbers), people renumbered without gaps."""
        people, user = np.unique(self.user[rows], return_inverse=True)
        return Choices(
            self.chosen[rows],
            self.rejected[rows],
            user,
            self.strength[rows],
            self.prompt[rows],
            self.group[people],
            self.form[rows],
            self.confidence[rows],
        )

    def some_groups(self, at_most: int, rng: np.random.Generator) -> "Choices":
        """All, or whole groups of people drawn by chance that have no more rows together; two groups at least."""
        if len(self.user) <= at_most:
            return self
        groups, number = np.unique(self.group[self.user], return_inverse=True)
        order = rng.permutation(len(groups))
        count = np.cumsum(np.bincount(number)[order])
        drawn = order[: max(2, int(np.searchsorted(count, at_most, side="right")))]
        return self.where(np.isin(number, drawn))

    def rows(self, phi: Floats, scales: Scales) -> tuple[Floats, Floats]:
        """Rows for the posterior and their weights: (N, J), with a column for b_u where there are graded answers."""
        difference = phi[self.chosen] - phi[self.rejected]
        if not self.graded.any():
            return difference, self.confidence
        v, weight = scales.rows(difference, self.form)
        return v, weight * self.confidence

    def observations(self, phi: Floats, scales: Scales = Scales()) -> Observations:
        """Rows for the posterior sorted by person, from (n, J) base rewards of the answers and centres."""
        v, weight = self.rows(phi, scales)
        return Observations.of(v, self.user, self.n_users, self.strength, weight)

    def prior(self, prior: Gaussian) -> Gaussian:
        """A prior over λ as one over the columns of `rows`."""
        return prior.with_column(1.0) if self.graded.any() else prior

    def implied(self) -> tuple[Ints, Ints, Ints]:
        """The choices that ratings in a row imply: of one person, of answers to one prompt, unequal.

        Returns:
            (M,) the first of the two rows, and the rows of the table with the better and the worse answer.
        """
        alike = (self.user[1:] == self.user[:-1]) & (self.prompt[1:] == self.prompt[:-1])
        rated = self.form == RATING
        first = np.flatnonzero(alike & rated[1:] & rated[:-1] & (self.strength[1:] != self.strength[:-1]))
        up = self.strength[first] > self.strength[first + 1]
        one, other = self.chosen[first], self.chosen[first + 1]
        return first, np.where(up, one, other), np.where(up, other, one)

    def votes(self) -> Floats:
        """(N,) how much each row speaks for its chosen answer, in [−1, 1]; a tie not at all.

        A graded answer counts by how far it stands above the person's mean, so that who is generous votes for none.
        """
        vote = 2 * self.strength - 1
        if self.graded.any():
            rater = self.user[self.graded]
            count = np.bincount(rater, minlength=self.n_users)
            level = np.bincount(rater, vote[self.graded], self.n_users) / np.maximum(count, 1)
            vote[self.graded] -= level[rater]
        return np.asarray(vote * self.confidence, np.float64)


def fit_weights(
    z: Floats,
    choices: Choices,
    rank: int,
    lapse: float,
    penalties: Penalties = Penalties(),
    max_steps: int = 100,
    scales: Scales = Scales(),
    random_start: int | None = None,
) -> Floats:
    """Penalised maximum likelihood of W, people's weights and levels solved exactly inside.

    Args:
        z: (n, K) coordinates of the answers, and of the centres where there are graded answers.
        choices: who preferred what, and who graded what how.
        rank: J ≥ 1 base rewards, the population's included.
        lapse: ε in [0, 0.5).
        penalties: of the two kinds of rows.
        max_steps: L-BFGS iterations at most.
        scales: how graded answers speak.
        random_start: a seed, to start at random directions instead of those of `svd_start`.

    Returns:
        (J, K) weights; row 0 is the population's taste. Fewer rows where fewer people or features cannot
        carry J.
    """
    choices = choices.where(np.argsort(choices.user, kind="stable"))
    chosen, rejected, user, strength = choices.chosen, choices.rejected, choices.user, choices.strength
    start = np.zeros((1, z.shape[1]))
    if rank > 1 and choices.n_users > 1:
        directions = svd_start(z, chosen, rejected, user, choices.n_users, rank - 1, choices.votes())
        if random_start is not None:
            drawn = np.random.default_rng(random_start).standard_normal(directions.shape)
            directions = drawn * np.linalg.norm(directions) / np.linalg.norm(drawn)
        start = np.concatenate([start, directions])
    rows = len(start)
    penalty = np.full((rows, 1), penalties.individual)
    penalty[0] = penalties.population
    taste = Gaussian(np.eye(rows)[0], np.diag(np.r_[_PINNED, np.ones(rows - 1)]))
    population = choices.prior(taste)
    spread = np.diag(population.cov)[1:]
    stretch = scales.slopes(choices.form)
    weights_of_people: Floats | None = None

    def objective(flat: Floats) -> tuple[float, Floats]:
        nonlocal weights_of_people
        w = flat.reshape(rows, -1)
        v, weight = choices.rows(z @ w.T, scales)
        said = Observations(v, strength, weight, user, choices.n_users)
        lam = posterior_mode(said, population, lapse, start=weights_of_people, tolerance=1e-5)
        weights_of_people = lam
        own = lam[user]
        loss, slope, _ = negative_log_likelihood(np.sum(v * own, axis=1), strength, lapse)
        value = np.sum(weight * loss) + 0.5 * np.sum(penalty * w**2) + 0.5 * np.sum(lam[:, 1:] ** 2 / spread)
        pull = (weight * slope * stretch)[:, None] * own[:, :rows]
        by_answer = np.stack(
            [np.bincount(chosen, column, len(z)) - np.bincount(rejected, column, len(z)) for column in pull.T]
        )
        return float(value), (by_answer @ z + penalty * w).ravel()

    found = minimize(
        objective, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": max_steps, "ftol": 1e-6}
    )
    return np.asarray(found.x.reshape(rows, -1), np.float64)


def fix_gauge(
    weights: Floats, prior: Belief, choices: Choices, z: Floats, lapse: float, scales: Scales = Scales()
) -> tuple[Floats, Belief]:
    """The same model with prior covariance I, and axes turned so that people's tastes lie along few of them.

    λ · φ is unchanged by φ → Aφ, λ → A⁻ᵀλ. Σ = I (of the whole, in a mixture) leaves a rotation free; varimax (Kaiser
    1958) of the people's weights picks the one in which each person is told by few axes, so that an axis can be read.

    Returns:
        (J, K) weights and the prior in the new gauge.
    """
    dim = len(prior.mean)
    root = np.linalg.cholesky(prior.cov)
    weights, prior = root.T @ weights, prior.affine(np.linalg.inv(root), np.zeros(dim))
    said = choices.observations(z @ weights.T, scales)
    people = posterior_mode(said, choices.prior(Gaussian(prior.mean, np.eye(dim))), lapse)[:, :dim] - prior.mean
    turn = varimax(people)
    # Signs: what the population likes points up.
    turn = turn * np.where(turn.T @ prior.mean < 0, -1.0, 1.0)
    prior = prior.affine(turn.T, np.zeros(dim))
    # A Gaussian's covariance is the identity but for rounding.
    return turn.T @ weights, Gaussian(prior.mean, np.eye(dim)) if isinstance(prior, Gaussian) else prior


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
