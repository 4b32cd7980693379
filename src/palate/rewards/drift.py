"""Tastes that change: a filter over a person's dated answers that forgets at a half-life, and notices a reversal.

Before evidence that comes Δ days later the belief relaxes to the population prior (Ornstein–Uhlenbeck):
m ← μ + ρ(m − μ), S ← ρ²S + (1 − ρ²)Σ, ρ = 2^(−Δ / half-life); in a mixture each part to its own, and the weights
w ← ρw + (1 − ρ)π. Then one Laplace update takes the new row in. With an infinite half-life nothing is forgotten, and
`laplace_posterior` over all rows at once, which is exact where this is sequential, is used instead.

A half-life forgets steadily; a reversal comes at once. So beside the belief runs, for each of the last few rows, the
belief of somebody who began there: the sum of log P(row | began there) − log P(row | goes on) is the log Bayes factor
of "the taste turned before that row" (as in Bayesian change-point detection, Adams and MacKay 2007; we keep the best
hypothesis, not their mixture). Once it passes a threshold, what was said before that row is forgotten.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from palate.errors import InputError
from palate.rewards.beliefs import Belief, Floats, Gaussian, Ints, Mixture
from palate.rewards.posterior import Observations, laplace_posterior, predict

DAY = 86_400.0
"""Seconds."""

WINDOW = 16
"""Rows back that a reversal can be dated to."""

REVERSAL = 2.0
"""Nats from which a reversal is believed, where tastes drift at all. Of 336 steady people who forget nothing 17 were
taken to have turned within 20 answers, at 3 nats 2; with a half-life there are fewer (docs/log.md)."""

HALF_LIVES = (*(2.0**k for k in range(11)), np.inf)
"""Days that `learn_half_life` chooses among."""


@dataclass(frozen=True)
class Drift:
    """How tastes change.

    Args:
        half_life: days after which half of what was learned is forgotten; above 0, may be infinite.
        threshold: log Bayes factor from which a reversal is believed, in nats; infinite: none ever is.

    Raises:
        InputError: one of them is not above 0.
    """

    half_life: float = np.inf
    threshold: float = np.inf

    @classmethod
    def forgetting(cls, half_life: float) -> "Drift":
        """That half-life, and with a finite one reversals are looked for."""
        return cls(half_life, REVERSAL if np.isfinite(half_life) else np.inf)

    def __post_init__(self) -> None:
        for name, value in (("half_life", self.half_life), ("threshold", self.threshold)):
            if not value > 0:
                raise InputError(f"{name} {value!r} is not above 0; give a positive number, or infinity for none")

    @property
    def moves(self) -> bool:
        """Whether anything is ever forgotten."""
        return bool(np.isfinite(self.half_life) or np.isfinite(self.threshold))


@dataclass(frozen=True)
class Followed:
    """What a filter arrives at.

    Args:
        belief: of everybody after their last row.
        since: (U,) place, among a person's rows, of the first one after their last reversal; 0 where there was none.
        log_loss: (N,) nats at which each row was foretold by the belief before it.
        prior_log_loss: (N,) the same by the population prior.
    """

    belief: Belief
    since: Ints
    log_loss: Floats
    prior_log_loss: Floats


def relax(belief: Mixture, prior: Belief, keep: Floats) -> Mixture:
    """Let beliefs drift towards the prior: Ornstein–Uhlenbeck, part by part.

    Args:
        belief: of U people, with as many parts as the prior.
        prior: one for all.
        keep: (U,) ρ in [0, 1]; 1 keeps everything.

    Example:
        >>> prior = Gaussian(np.zeros(1), np.eye(1))
        >>> known = Gaussian(np.array([[2.0]]), np.array([[[0.1]]]))
        >>> half = relax(Mixture(known.weights, known.parts), prior, np.array([0.5]))
        >>> half.mean.tolist(), half.cov.round(3).tolist()
        ([[1.0]], [[[0.775]]])
    """
    rho = keep[:, None, None]
    mean = prior.parts.mean + rho * (belief.parts.mean - prior.parts.mean)
    square = rho[..., None] ** 2
    cov = square * belief.parts.cov + (1 - square) * prior.parts.cov
    return Mixture(keep[:, None] * belief.weights + (1 - keep[:, None]) * prior.weights, Gaussian(mean, cov))


def follow(
    observations: Observations, elapsed: Floats, prior: Belief, lapse: float = 0.0, drift: Drift = Drift()
) -> Followed:
    """Filter everybody's rows in order, all people at once: one step for each place in a person's sequence.

    Args:
        observations: N rows of U people, each person's in order of time.
        elapsed: (N,) days since the same person's row before; below 0 or not a number counts as 0.
        prior: one prior for all.
        lapse: ε in [0, 0.5).
        drift: how tastes change.

    Returns:
        Beliefs of U people, and how well each row was foretold.

    Example:
        >>> said = Observations.of(np.array([[1.0], [1.0]]), np.array([0, 0]), n_users=1)
        >>> prior = Gaussian(np.zeros(1), np.eye(1))
        >>> soon = follow(said, np.array([0.0, 1.0]), prior, drift=Drift(half_life=30.0)).belief
        >>> late = follow(said, np.array([0.0, 365.0]), prior, drift=Drift(half_life=30.0)).belief
        >>> bool(soon.mean > late.mean > 0)
        True
    """
    users = observations.n_users
    first = np.searchsorted(observations.user, np.arange(users))
    count = np.bincount(observations.user, minlength=users)
    keep = 2.0 ** (-np.maximum(np.nan_to_num(elapsed, nan=0.0), 0.0) / drift.half_life)
    state = Filter(prior, users, lapse, drift)
    loss = np.zeros(len(keep))
    for place in range(count.max(initial=0)):
        who = np.flatnonzero(count > place)
        rows = first[who] + place
        loss[rows] = state.take(who, place, observations.take(rows), keep[rows])
    return Followed(state.current(), state.since, loss, row_loss(prior, observations, lapse))


def elapsed_days(times: Sequence[datetime | None]) -> Floats:
    """Days from one record of a person to the next, 0 for the first and where a time is missing.

    Example:
        >>> elapsed_days([datetime(2026, 1, 1), None, datetime(2026, 1, 2), datetime(2026, 1, 4, 12)]).tolist()
        [0.0, 0.0, 0.0, 2.5]
    """
    return np.array(
        [
            0.0 if before is None or after is None else (after - before).total_seconds() / DAY
            for before, after in zip([*times[:1], *times], times, strict=False)
        ]
    )


def learn_half_life(observations: Observations, elapsed: Floats, prior: Belief, lapse: float = 0.0) -> float:
    """The half-life under which people's dated rows were foretold best, each by the ones before it.

    Args:
        observations: N rows of U people, each person's in order of time.
        elapsed: (N,) days since the same person's row before.
        prior: one prior for all.
        lapse: ε in [0, 0.5).

    Returns:
        One of `HALF_LIVES`, in days; infinity unless another is better by more than the standard error of the
        differences between people.
    """

    def losses(half_life: float) -> Floats:
        return observations.sum_by_user(follow(observations, elapsed, prior, lapse, Drift(half_life)).log_loss)

    found = {half_life: losses(half_life) for half_life in HALF_LIVES}
    best = min(found, key=lambda half_life: float(found[half_life].sum()))
    gain = found[np.inf] - found[best]
    error = float(np.std(gain, ddof=1) * np.sqrt(len(gain))) if len(gain) > 1 else np.inf
    return best if float(gain.sum()) > error else np.inf


def row_loss(belief: Belief, observations: Observations, lapse: float) -> Floats:
    """(N,) weighted nats at which each row is foretold by a belief for all, or by (N,) beliefs, one a row."""
    p = predict(belief, observations.v if belief.mean.ndim == 1 else observations.v[:, None, :], lapse).ravel()
    label = observations.label
    return np.asarray(-observations.weight * (label * np.log(p) + (1 - label) * np.log1p(-p)), np.float64)


class Filter:
    """What `follow` keeps from row to row: H beliefs of each person, were their taste to have turned lately or not.

    `weights` (U, H, K), `mean` (U, H, K, D) and `cov` (U, H, K, D, D): slot 0 of each person goes on from the start,
    the others began at place `born` (U, H), −1 where unused, and are ahead of slot 0 by `score` (U, H) nats since.
    """

    def __init__(self, prior: Belief, users: int, lapse: float, drift: Drift) -> None:
        self.prior, self.lapse, self.threshold = prior, lapse, drift.threshold
        slots = 1 + (WINDOW if np.isfinite(drift.threshold) else 0)
        self.weights = np.tile(prior.weights, (users, slots, 1))
        self.mean = np.tile(prior.parts.mean, (users, slots, 1, 1))
        self.cov = np.tile(prior.parts.cov, (users, slots, 1, 1, 1))
        self.born = np.full((users, slots), -1)
        self.score = np.zeros((users, slots))
        self.since = np.zeros(users, np.int64)

    def current(self) -> Belief:
        """Everybody's belief, of the prior's kind; what is taken later does not change it."""
        if isinstance(self.prior, Gaussian):
            return Gaussian(self.mean[:, 0, 0].copy(), self.cov[:, 0, 0].copy())
        return Mixture(self.weights[:, 0].copy(), Gaussian(self.mean[:, 0].copy(), self.cov[:, 0].copy()))

    def take(self, who: Ints, place: int, said: Observations, keep: Floats) -> Floats:
        """Relax, foretell and learn one row of each of `who`; returns (W,) nats at which slot 0 foretold them."""
        slots = self.born.shape[1]
        if slots > 1:
            self._begin(who, 1 + place % WINDOW, place)
        cells = len(who) * slots
        belief = Mixture(
            self.weights[who].reshape(cells, -1),
            Gaussian(
                self.mean[who].reshape(cells, *self.mean.shape[2:]), self.cov[who].reshape(cells, *self.cov.shape[2:])
            ),
        )
        belief = relax(belief, self.prior, np.repeat(keep, slots))
        each = said.take(np.repeat(np.arange(len(who)), slots))
        loss = row_loss(belief, each, self.lapse).reshape(len(who), slots)
        learned = laplace_posterior(each, belief, self.lapse, tolerance=1e-6)
        self.weights[who] = learned.weights.reshape(len(who), slots, -1)
        self.mean[who] = learned.parts.mean.reshape(len(who), *self.mean.shape[1:])
        self.cov[who] = learned.parts.cov.reshape(len(who), *self.cov.shape[1:])
        self.score[who] += loss[:, :1] - loss
        self._turn(who)
        return np.asarray(loss[:, 0], np.float64)

    def _begin(self, who: Ints, slot: int, place: int) -> None:
        """A new hypothesis in place of the oldest: the taste turned just before this row."""
        self.weights[who, slot], self.mean[who, slot] = self.prior.weights, self.prior.parts.mean
        self.cov[who, slot] = self.prior.parts.cov
        self.born[who, slot], self.score[who, slot] = place, 0.0

    def _turn(self, who: Ints) -> None:
        """Believe the best hypothesis where it is ahead by the threshold, and drop those that began before it."""
        score = np.where(self.born[who] > self.since[who, None], self.score[who], -np.inf)
        best = np.argmax(score, axis=1)
        ahead = score[np.arange(len(who)), best]
        turned = ahead > self.threshold
        who, best = who[turned], best[turned]
        for state in (self.weights, self.mean, self.cov):
            state[who, 0] = state[who, best]
        self.since[who] = self.born[who, best]
        self.score[who] -= ahead[turned][:, None]
