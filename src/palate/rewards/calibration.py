"""The population prior, and its scale on people and prompts that were not fitted on.

The spread of the fitted people's weights is too sure of itself for new people on new prompts: base rewards fit
the prompts they were learned from better than others. So the fit is repeated without each part of people *and*
prompts in turn, and the scale of the prior and the lapse rate are those that predict the left-out ones best.
People of one group never stand on both sides.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit

from palate.rewards.evaluation import auc_by_user
from palate.rewards.factorization import Choices, Penalties, fit_weights
from palate.rewards.posterior import Floats, Gaussian, Observations, laplace_posterior, predict

LAPSE = 0.05  # before any data, and the centre of its prior
# Numbers of answers at which left-out people are predicted, and parts of people × prompts.
_ANSWERS = (0, 5, 10)
_FOLDS = 4
_PRIOR_SD = 0.5  # of log scales and of the logit of the lapse, around (1, 1, LAPSE)


def fit_prior(observations: Observations, lapse: float, max_rounds: int = 50) -> Gaussian:
    """Population prior N(μ, Σ) by EM over Laplace posteriors, their covariances included.

    One imagined person at "the population's taste once, unit variance" is added, so that one real person, or many
    alike, still leave a proper distribution.

    Args:
        observations: rows of U people in the space of base rewards, the population's first.
        lapse: ε in [0, 0.5).
        max_rounds: EM rounds at most; it stops once the mean moves by less than 1e-3.
    """
    dim = observations.v.shape[1]
    first = np.eye(dim)[0]
    prior, lam = Gaussian(first, np.eye(dim)), None
    for _ in range(max_rounds):
        people = laplace_posterior(observations, prior, lapse, start=lam, tolerance=1e-5)
        lam = people.mean
        count = len(lam) + 1
        mean = (lam.sum(axis=0) + first) / count
        d = np.concatenate([lam, first[None]]) - mean
        cov = (d.T @ d + people.cov.sum(axis=0) + np.eye(dim)) / count
        moved = np.max(np.abs(mean - prior.mean))
        prior = Gaussian(mean, cov)
        if moved < 1e-3:
            break
    return prior


@dataclass(frozen=True)
class Calibration:
    """What held-out people and prompts say of the prior.

    Args:
        mean_scale: factor on the prior mean.
        spread_scale: factor on the prior standard deviations.
        lapse: ε.
        log_loss: {answers: mean nats} on held-out people and prompts with these values, questions at random.
        auc: {answers: mean over the same people}.
        people: how many people were held out in all; 0 where there were too few to hold any out.
    """

    mean_scale: float = 1.0
    spread_scale: float = 1.0
    lapse: float = LAPSE
    log_loss: dict[int, float] = field(default_factory=dict)
    auc: dict[int, float] = field(default_factory=dict)
    people: int = 0

    def apply(self, prior: Gaussian) -> Gaussian:
        """The scaled prior."""
        return Gaussian(self.mean_scale * prior.mean, self.spread_scale**2 * prior.cov)


@dataclass(frozen=True)
class _HeldOut:
    """One fold's unseen people on unseen prompts: what they said first, and what came after, by number of answers."""

    prior: Gaussian
    asked: dict[int, Observations]
    after: dict[int, Observations]


def cross_fit(
    z: Floats | Mapping[int, Floats],
    choices: Choices,
    rank: int,
    penalties: Penalties = Penalties(),
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Scale of the prior and lapse rate, by likelihood on people and prompts that were not fitted on.

    Args:
        z: (n, K) coordinates of the answers; or, where an encoder was tuned without each part in turn, by the number
            of that part in `splits`, and no other part is left out.
        choices: all comparisons; groups of people and of prompts stay on one side of each fold.
        rank: J.
        penalties: as in `fit_weights`.
        seed: of the folds.
        progress: told of each fold.

    Returns:
        The best scales; ones where fewer than two groups of people are there to split.
    """
    held_out: list[_HeldOut] = []
    for fold in _folds(z, choices, rank, penalties, seed):
        held_out.append(fold)
        if progress:
            progress(len(held_out), _FOLDS)
    if not held_out:
        return Calibration()
    rows = {t: sum(len(fold.after[t].label) for fold in held_out) for t in _ANSWERS}

    def losses(calibration: Calibration) -> dict[int, float]:
        return {
            t: sum(float(np.sum(_loss(fold, t, calibration))) for fold in held_out) / max(rows[t], 1) for t in _ANSWERS
        }

    def unpack(x: Floats) -> Calibration:
        return Calibration(float(np.exp(x[0])), float(np.exp(x[1])), float(0.5 * expit(x[2])))

    def minus_log_posterior(x: Floats) -> float:
        fit = rows[0] * float(np.mean(list(losses(unpack(x)).values())))
        return fit + 0.5 * float(np.sum(((x - origin) / _PRIOR_SD) ** 2))

    origin = np.array([0.0, 0.0, logit(2 * LAPSE)])
    best = minimize(
        minus_log_posterior,
        origin,
        method="Nelder-Mead",
        options={"xatol": 0.02, "fatol": 0.1, "initial_simplex": origin + 0.3 * np.eye(4, 3), "maxfev": 80},
    )
    found = unpack(best.x)
    aucs = {t: np.concatenate([_auc(fold, t, found) for fold in held_out]) for t in _ANSWERS}
    return replace(
        found,
        log_loss={t: loss for t, loss in losses(found).items() if rows[t]},
        auc={t: float(np.nanmean(auc)) for t, auc in aucs.items() if np.isfinite(auc).any()},
        people=sum(fold.after[0].n_users for fold in held_out),
    )


def _belief(fold: _HeldOut, answers: int, calibration: Calibration) -> Gaussian:
    return laplace_posterior(fold.asked[answers], calibration.apply(fold.prior), calibration.lapse, tolerance=1e-4)


def _loss(fold: _HeldOut, answers: int, calibration: Calibration) -> Floats:
    """Soft-label cross-entropy of each left-out row, in nats: (N,)."""
    after = fold.after[answers]
    belief = _belief(fold, answers, calibration)[after.user]
    p = predict(belief, after.v[:, None, :], calibration.lapse)[:, 0]
    return -after.label * np.log(p) - (1 - after.label) * np.log1p(-p)


def _auc(fold: _HeldOut, answers: int, calibration: Calibration) -> Floats:
    after = fold.after[answers]
    means = _belief(fold, answers, calibration).mean[after.user]
    return auc_by_user(np.sum(after.v * means, axis=1), after.user, after.n_users)


def splits(choices: Choices, rng: np.random.Generator) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Parts of people and prompts to leave out in turn: (N,) comparisons to fit on, and (N,) to predict.

    Four parts at most, fewer where there are fewer groups of people, none where there is one; the two masks leave out
    what only people or only prompts have in common, and are empty where a part has nothing to fit on or to predict.
    """
    groups = rng.permutation(np.unique(choices.group))
    prompts = rng.permutation(np.unique(choices.prompt))
    n_folds = min(_FOLDS, len(groups))
    by_prompt = len(prompts) >= 2 * n_folds
    for k in range(n_folds if n_folds >= 2 else 0):
        person_out = np.isin(choices.group, groups[k::n_folds])[choices.user]
        prompt_out = np.isin(choices.prompt, prompts[k::n_folds])
        yield (~person_out & ~prompt_out, person_out & prompt_out) if by_prompt else (~person_out, person_out)


def _folds(
    z: Floats | Mapping[int, Floats], choices: Choices, rank: int, penalties: Penalties, seed: int
) -> Iterator[_HeldOut]:
    """Fit without each part of people and prompts in turn, and yield what that part said."""
    rng = np.random.default_rng(seed)
    for k, (seen, unseen) in enumerate(splits(choices, rng)):
        here = z.get(k) if isinstance(z, Mapping) else z
        if here is None or not seen.any() or not unseen.any():
            continue
        train, new = choices.where(seen), choices.where(unseen)
        phi = here @ fit_weights(here, train, rank, LAPSE, penalties).T
        yield _held_out(phi, new, fit_prior(train.observations(phi), LAPSE), rng)


def _held_out(phi: Floats, new: Choices, prior: Gaussian, rng: np.random.Generator) -> _HeldOut:
    """Put each person's comparisons in random order: what comes after t of them is to be predicted."""
    order = np.lexsort((rng.permutation(len(new.user)), new.user))
    user = new.user[order]
    first = np.searchsorted(user, user)
    place = np.arange(len(user)) - first

    def rows(mask: np.ndarray) -> Observations:
        chosen, rejected = new.chosen[order][mask], new.rejected[order][mask]
        return Observations.of(phi[chosen] - phi[rejected], user[mask], new.n_users, new.strength[order][mask])

    return _HeldOut(prior, {t: rows(place < t) for t in _ANSWERS}, {t: rows(place >= t) for t in _ANSWERS})
