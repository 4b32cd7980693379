"""What is known of a person's weights: MAP by Newton and a Laplace covariance, for many people at once.

Every kind of evidence becomes one row of an `Observations` table: P(label = 1) = ε + (1 − 2ε) σ(λ_u · v), with a
soft label in [0, 1] and a weight. A comparison is v = φ(x, chosen) − φ(x, rejected) with its `strength` as label;
a rating is v = a (φ(x, y) − φ̄(x)) and a one in the column of the person's generosity b_u (DESIGN: ratings as soft
labels). So one piece of code serves fitting, inference and every kind of evidence to come.

PReF (arXiv 2503.06358, §4) starts a new user at random and descends; here the start is the population prior, the
optimum is exact, and the curvature there says how sure we are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from palate.errors import InputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Gaussian:
    """A normal distribution over user weights, or a batch of them.

    Args:
        mean: (..., D) means.
        cov: (..., D, D) covariances, positive definite.
    """

    mean: Floats
    cov: Floats

    def __post_init__(self) -> None:
        dim = self.mean.shape[-1]
        if self.cov.shape != (*self.mean.shape[:-1], dim, dim):
            raise InputError(
                f"Covariance of shape {self.cov.shape} does not fit a mean of shape {self.mean.shape}; "
                "give one (D, D) matrix per mean"
            )

    def of(self, v: Floats) -> tuple[Floats, Floats]:
        """Mean and variance of λ · v.

        Args:
            v: (..., M, D) directions, batched like the means.

        Returns:
            Two (..., M) arrays.
        """
        mean = np.matmul(v, self.mean[..., None])[..., 0]
        variance = np.sum(np.matmul(v, self.cov) * v, axis=-1)
        return mean, variance

    def __getitem__(self, index: int | slice | Ints) -> "Gaussian":
        """One or some of a batch."""
        return Gaussian(self.mean[index], self.cov[index])


@dataclass(frozen=True)
class Observations:
    """What people said, as arrays sorted by person: N rows of U people.

    Args:
        v: (N, D) directions in the space of user weights.
        label: (N,) soft labels in [0, 1].
        weight: (N,) how much each row counts, ≥ 0.
        user: (N,) person of each row, 0 to U − 1, ascending.
        n_users: U; people without rows keep the prior.
    """

    v: Floats
    label: Floats
    weight: Floats
    user: Ints
    n_users: int

    @classmethod
    def of(
        cls, v: Floats, user: Ints, n_users: int, label: Floats | None = None, weight: Floats | None = None
    ) -> "Observations":
        """Sort rows by person; without labels every row says that v was preferred."""
        order = np.argsort(user, kind="stable")
        ones = np.ones(len(user))
        return cls(
            v=np.asarray(v, np.float64)[order],
            label=(ones if label is None else label)[order],
            weight=(ones if weight is None else weight)[order],
            user=np.asarray(user, np.int64)[order],
            n_users=n_users,
        )

    def sum_by_user(self, values: Floats) -> Floats:
        """Sums of (N, ...) values over each person's rows: (U, ...)."""
        out = np.zeros((self.n_users, *values.shape[1:]))
        if len(values):
            people, starts = np.unique(self.user, return_index=True)
            out[people] = np.add.reduceat(values, starts, axis=0)
        return out

    def outer_by_user(self, scale: Floats) -> Floats:
        """Σ scale_i v_i v_iᵀ over each person's rows: (U, D, D)."""
        dim = self.v.shape[1]
        out = np.zeros((self.n_users, dim, dim))
        padded = np.append(scale, 0.0)
        for people, rows, v in self._blocks:
            out[people] = (padded[rows][:, :, None] * v).swapaxes(1, 2) @ v
        return out

    @cached_property
    def _blocks(self) -> list[tuple[Ints, Ints, Floats]]:
        """People with alike numbers of rows together: (people, their row numbers padded with N, their v).

        Numbers are padded to the next power of two, so that at most half of a block is padding, and each block is
        one batched matrix product.
        """
        people, first, count = np.unique(self.user, return_index=True, return_counts=True)
        padded_v = np.concatenate([self.v, np.zeros((1, self.v.shape[1]))])
        width = 2 ** np.ceil(np.log2(count)).astype(int)
        blocks = []
        for size in np.unique(width):
            inside = width == size
            rows = first[inside, None] + np.arange(size)
            rows = np.where(np.arange(size) < count[inside, None], rows, len(self.v))
            blocks.append((people[inside], rows, padded_v[rows]))
        return blocks


def choice_probability(logit: Floats, lapse: float) -> Floats:
    """P = ε + (1 − 2ε) σ(logit): people slip with probability 2ε and then toss a coin."""
    return np.asarray(lapse + (1 - 2 * lapse) * expit(logit), np.float64)


def negative_log_likelihood(logit: Floats, label: Floats, lapse: float) -> tuple[Floats, Floats, Floats]:
    """Soft-label cross-entropy of each row, with its first derivative and the Fisher information in the logit.

    Args:
        logit: (N,) λ · v.
        label: (N,) soft labels in [0, 1].
        lapse: ε in [0, 0.5).

    Returns:
        Three (N,) arrays: loss in nats, d loss / d logit, expected curvature (never negative).
    """
    s = expit(logit)
    if lapse == 0:
        # log σ by softplus: stays finite where σ underflows.
        loss = np.logaddexp(0.0, logit) - label * logit
        return loss, s - label, s * (1 - s)
    p = lapse + (1 - 2 * lapse) * s
    slope = (1 - 2 * lapse) * s * (1 - s)
    loss = -label * np.log(p) - (1 - label) * np.log1p(-p)
    return loss, slope * (p - label) / (p * (1 - p)), slope**2 / (p * (1 - p))


def laplace_posterior(
    observations: Observations,
    prior: Gaussian,
    lapse: float = 0.0,
    *,
    start: Floats | None = None,
    tolerance: float = 1e-8,
    max_steps: int = 100,
) -> Gaussian:
    """Posterior of every person's weights: the mode, and the inverse curvature there.

    Minimises −Σ κ_i log P_i + ½ (λ − μ)ᵀ Σ⁻¹ (λ − μ) by Newton steps, halved until the objective falls. The
    covariance is H⁻¹, H = Σ⁻¹ + Σ_i κ_i I_i v_i v_iᵀ, where I_i = p_i (1 − p_i) without lapses. The result is a
    function of the rows alone: by default it always starts at the prior mean.

    Args:
        observations: N rows of U people.
        prior: one prior for all, mean (D,) and cov (D, D).
        lapse: ε in [0, 0.5).
        start: (U, D) start, where many similar problems follow each other (fitting); the prior mean by default.
        tolerance: largest step, in prior standard deviations, at which a person counts as converged.
        max_steps: Newton steps at most.

    Returns:
        Gaussian with mean (U, D) and cov (U, D, D).

    Example:
        >>> prior = Gaussian(np.zeros(2), np.eye(2))
        >>> said = Observations.of(np.array([[1.0, 0.0], [2.0, 0.0]]), np.array([0, 0]), n_users=1)
        >>> laplace_posterior(said, prior).mean.round(3)
        array([[0.715, 0.   ]])
    """
    mode = posterior_mode(observations, prior, lapse, start=start, tolerance=tolerance, max_steps=max_steps)
    logit = np.sum(observations.v * mode[observations.user], axis=1)
    fisher = negative_log_likelihood(logit, observations.label, lapse)[2]
    precision = observations.outer_by_user(observations.weight * fisher) + np.linalg.inv(prior.cov)
    return Gaussian(mode, np.asarray(np.linalg.inv(precision), np.float64))


def posterior_mode(
    observations: Observations,
    prior: Gaussian,
    lapse: float = 0.0,
    *,
    start: Floats | None = None,
    tolerance: float = 1e-8,
    max_steps: int = 100,
) -> Floats:
    """The (U, D) mode of `laplace_posterior` alone, where its spread is not needed; same arguments."""
    precision = np.asarray(np.linalg.inv(prior.cov), np.float64)
    scale = np.sqrt(np.diag(prior.cov))
    v, label, weight, user = observations.v, observations.label, observations.weight, observations.user

    def objective(lam: Floats) -> tuple[Floats, Floats]:
        """Each person's objective (U,), and the logit of each row (N,)."""
        logit = np.sum(v * lam[user], axis=1)
        d = lam - prior.mean
        penalty = 0.5 * np.sum((d @ precision) * d, axis=1)
        loss = negative_log_likelihood(logit, label, lapse)[0]
        return np.asarray(observations.sum_by_user(weight * loss) + penalty, np.float64), logit

    lam = np.tile(prior.mean, (observations.n_users, 1)) if start is None else start.copy()
    value, logit = objective(lam)
    for _ in range(max_steps):
        slope = negative_log_likelihood(logit, label, lapse)[1]
        gradient = observations.sum_by_user((weight * slope)[:, None] * v) + (lam - prior.mean) @ precision
        curvature = weight * _curvature(logit, label, lapse)
        step = _newton_step(observations, gradient, curvature, precision)
        if np.max(np.abs(step) / scale, initial=0.0) <= tolerance:
            break
        lam, value, logit = _descend(objective, lam, step, value)
    return lam


def _curvature(logit: Floats, label: Floats, lapse: float) -> Floats:
    """Second derivative of each row's loss in the logit; negative where an answer looks like a slip.

    With lapses it differs from the Fisher information, and Newton's method is quick only with its own curvature.
    """
    s = expit(logit)
    slope = (1 - 2 * lapse) * s * (1 - s)
    if lapse == 0:
        return np.asarray(slope, np.float64)
    p = lapse + (1 - 2 * lapse) * s
    first, second = label / p, (1 - label) / (1 - p)
    bend = (first / p + second / (1 - p)) * slope**2 - (first - second) * slope * (1 - 2 * s)
    return np.asarray(bend, np.float64)


def _newton_step(observations: Observations, gradient: Floats, curvature: Floats, precision: Floats) -> Floats:
    """H⁻¹ g of each person, (U, D); where that leads uphill, with the negative curvatures left out of H."""
    hessian = observations.outer_by_user(curvature) + precision
    step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
    uphill = np.sum(step * gradient, axis=1) < 0
    if uphill.any():
        safe = observations.outer_by_user(np.maximum(curvature, 0.0)) + precision
        step[uphill] = np.linalg.solve(safe[uphill], gradient[uphill, :, None])[..., 0]
    return np.asarray(step, np.float64)


def _descend(
    objective: Callable[[Floats], tuple[Floats, Floats]], lam: Floats, step: Floats, value: Floats
) -> tuple[Floats, Floats, Floats]:
    """Take each person's step, halved until their objective does not rise; keep who finds no such step."""
    length = np.ones(len(lam))
    for _ in range(30):
        trial = lam - length[:, None] * step
        trial_value, logit = objective(trial)
        worse = ~(trial_value <= value + 1e-12 * np.abs(value))
        if not worse.any():
            break
        length[worse] /= 2
    else:
        trial = np.where(worse[:, None], lam, trial)
        trial_value, logit = objective(trial)
    return trial, trial_value, logit


def predict(belief: Gaussian, v: Floats, lapse: float = 0.0) -> Floats:
    """P(the first is preferred), integrated over the posterior with the probit correction (MacKay 1992).

    Args:
        belief: mean (..., D) and cov (..., D, D).
        v: (..., M, D) differences φ(x, a) − φ(x, b).
        lapse: ε of the person who chooses; 0 for what they truly prefer.

    Returns:
        (..., M) probabilities in (0, 1).

    Example:
        >>> predict(Gaussian(np.array([1.0]), np.array([[4.0]])), np.array([[1.0], [-1.0]])).round(3)
        array([0.651, 0.349])
    """
    mean, variance = belief.of(v)
    return choice_probability(mean / np.sqrt(1 + np.pi * variance / 8), lapse)
