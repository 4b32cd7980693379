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
from typing import overload

import numpy as np
from scipy.special import expit, softmax

from palate.rewards.beliefs import Belief, Floats, Gaussian, Ints, Mixture

__all__ = [
    "Belief",
    "Floats",
    "Gaussian",
    "Ints",
    "Mixture",
    "Observations",
    "choice_probability",
    "laplace_posterior",
    "negative_log_likelihood",
    "posterior_mode",
    "predict",
]


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

    def take(self, rows: Ints) -> "Observations":
        """Those rows, each as a person of its own."""
        return Observations(self.v[rows], self.label[rows], self.weight[rows], np.arange(len(rows)), len(rows))

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


@overload
def laplace_posterior(
    observations: Observations,
    prior: Gaussian,
    lapse: float = 0.0,
    *,
    start: Floats | None = None,
    tolerance: float = 1e-8,
    max_steps: int = 100,
) -> Gaussian: ...


@overload
def laplace_posterior(
    observations: Observations,
    prior: Belief,
    lapse: float = 0.0,
    *,
    start: Floats | None = None,
    tolerance: float = 1e-8,
    max_steps: int = 100,
) -> Belief: ...


def laplace_posterior(
    observations: Observations,
    prior: Belief,
    lapse: float = 0.0,
    *,
    start: Floats | None = None,
    tolerance: float = 1e-8,
    max_steps: int = 100,
) -> Belief:
    """Posterior of every person's weights: the mode, and the inverse curvature there.

    Minimises −Σ κ_i log P_i + ½ (λ − μ)ᵀ Σ⁻¹ (λ − μ) by Newton steps, halved until the objective falls. The
    covariance is H⁻¹, H = Σ⁻¹ + Σ_i κ_i I_i v_i v_iᵀ, where I_i = p_i (1 − p_i) without lapses. A mixture's parts
    are each updated so, and weigh by their evidence π_k ∫ P(answers | λ) N(λ; μ_k, Σ_k) dλ in Laplace's
    approximation. The result is a function of the rows alone: by default it always starts at the prior mean.

    Args:
        observations: N rows of U people.
        prior: one prior for all, mean (D,) and cov (D, D), or one for each person, (U, D) and (U, D, D); or a
            mixture of K such.
        lapse: ε in [0, 0.5).
        start: (U, D) start, where many similar problems follow each other (fitting); the prior mean by default.
            (U, K, D) for a mixture.
        tolerance: largest step, in prior standard deviations, at which a person counts as converged.
        max_steps: Newton steps at most.

    Returns:
        Gaussian with mean (U, D) and cov (U, D, D); for a mixture one with weights (U, K).

    Example:
        >>> prior = Gaussian(np.zeros(2), np.eye(2))
        >>> said = Observations.of(np.array([[1.0, 0.0], [2.0, 0.0]]), np.array([0, 0]), n_users=1)
        >>> laplace_posterior(said, prior).mean.round(3)
        array([[0.715, 0.   ]])
    """
    if isinstance(prior, Gaussian):
        return _laplace(observations, prior, lapse, start, tolerance, max_steps)[0]
    found = [
        _laplace(
            observations,
            Gaussian(prior.parts.mean[..., k, :], prior.parts.cov[..., k, :, :]),
            lapse,
            None if start is None else start[:, k],
            tolerance,
            max_steps,
        )
        for k in range(prior.weights.shape[-1])
    ]
    means, covs = (np.stack([getattr(part, name) for part, _ in found], axis=1) for name in ("mean", "cov"))
    evidence = np.stack([log_evidence for _, log_evidence in found], axis=1)  # (U, K)
    with np.errstate(divide="ignore"):  # a part of weight 0 stays out
        weighed = np.log(prior.weights) + evidence
    return Mixture(np.asarray(softmax(weighed, axis=1)), Gaussian(means, covs))


def _laplace(
    observations: Observations, prior: Gaussian, lapse: float, start: Floats | None, tolerance: float, max_steps: int
) -> tuple[Gaussian, Floats]:
    """One part's posterior, and the log evidence of everybody's rows (U,)."""
    mode = posterior_mode(observations, prior, lapse, start=start, tolerance=tolerance, max_steps=max_steps)
    logit = np.sum(observations.v * mode[observations.user], axis=1)
    loss, _, fisher = negative_log_likelihood(logit, observations.label, lapse)
    before = np.asarray(np.linalg.inv(prior.cov), np.float64)
    precision = observations.outer_by_user(observations.weight * fisher) + before
    d = mode - prior.mean
    value = observations.sum_by_user(observations.weight * loss) + 0.5 * np.sum(_times(d, before) * d, axis=1)
    shrunk = np.linalg.slogdet(precision)[1] - np.linalg.slogdet(before)[1]
    belief = Gaussian(mode, np.asarray(np.linalg.inv(precision), np.float64))
    return belief, np.asarray(-value - 0.5 * shrunk, np.float64)


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
    scale = np.sqrt(np.diagonal(prior.cov, axis1=-2, axis2=-1))
    v, label, weight, user = observations.v, observations.label, observations.weight, observations.user

    def objective(lam: Floats) -> tuple[Floats, Floats]:
        """Each person's objective (U,), and the logit of each row (N,)."""
        logit = np.sum(v * lam[user], axis=1)
        d = lam - prior.mean
        penalty = 0.5 * np.sum(_times(d, precision) * d, axis=1)
        loss = negative_log_likelihood(logit, label, lapse)[0]
        return np.asarray(observations.sum_by_user(weight * loss) + penalty, np.float64), logit

    first = np.broadcast_to(prior.mean, (observations.n_users, prior.mean.shape[-1])) if start is None else start
    lam = np.array(first)
    value, logit = objective(lam)
    for _ in range(max_steps):
        slope = negative_log_likelihood(logit, label, lapse)[1]
        gradient = observations.sum_by_user((weight * slope)[:, None] * v) + _times(lam - prior.mean, precision)
        curvature = weight * _curvature(logit, label, lapse)
        step = _newton_step(observations, gradient, curvature, precision)
        if np.max(np.abs(step) / scale, initial=0.0) <= tolerance:
            break
        lam, value, logit = _descend(objective, lam, step, value)
    return lam


def _times(d: Floats, precision: Floats) -> Floats:
    """(U, D) times one (D, D) for all, or a (U, D, D) of each."""
    return d @ precision if precision.ndim == 2 else np.matmul(d[:, None, :], precision)[:, 0]


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


def predict(belief: Belief, v: Floats, lapse: float = 0.0) -> Floats:
    """P(the first is preferred), integrated over the posterior with the probit correction (MacKay 1992).

    Args:
        belief: mean (..., D) and cov (..., D, D); a mixture's parts are each integrated over.
        v: (..., M, D) differences φ(x, a) − φ(x, b).
        lapse: ε of the person who chooses; 0 for what they truly prefer.

    Returns:
        (..., M) probabilities in (0, 1).

    Example:
        >>> predict(Gaussian(np.array([1.0]), np.array([[4.0]])), np.array([[1.0], [-1.0]])).round(3)
        array([0.651, 0.349])
    """
    mean, variance = belief.parts.of(v[..., None, :, :])  # (..., K, M)
    each = choice_probability(mean / np.sqrt(1 + np.pi * variance / 8), lapse)
    return np.asarray(np.sum(belief.weights[..., None] * each, axis=-2), np.float64)
