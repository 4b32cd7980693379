"""The population prior, and its scale on people and prompts that were not fitted on.

The spread of the fitted people's weights is too sure of itself for new people on new prompts: base rewards fit
the prompts they were learned from better than others. So the fit is repeated without each part of people *and*
prompts in turn, and the scale of the prior and the lapse rate are those that predict the left-out ones best.
People of one group never stand on both sides.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit

from palate.rewards.beliefs import Belief, Floats, Ints
from palate.rewards.evaluation import auc_by_user
from palate.rewards.factorization import Choices, Penalties, fit_weights
from palate.rewards.population import fit_prior
from palate.rewards.posterior import Observations, laplace_posterior, predict
from palate.rewards.ratings import RATING, READINGS, REPLY, Mask, RatingScale, Scales

LAPSE = 0.05  # before any data, and the centre of its prior
# Numbers of answers at which left-out people are predicted, and parts of people × prompts.
_ANSWERS = (0, 5, 10)
_FOLDS = 4
# So many rows of left-out people say enough: further folds would only take time, further people of a fold as well.
_ENOUGH = 10_000
PARTS = (1, 2, 4)
"""Numbers of parts of the prior that are tried."""
_PRIOR_SD = 0.5  # of log scales and of the logit of the lapse, around (1, 1, LAPSE)
_RATING_PRIOR_SD = 1.0  # of the logs of slope, weight and generosity, around ones


@dataclass(frozen=True)
class Calibration:
    """What held-out people and prompts say of the prior, and of how graded answers speak.

    Args:
        mean_scale: factor on the prior mean.
        spread_scale: factor on the prior standard deviations.
        lapse: ε.
        log_loss: {answers: mean nats} of choices on held-out people and prompts with these values, questions at random.
        auc: {answers: mean over the same people}.
        people: how many people were held out in all; 0 where there were too few to hold any out.
        parts: K of the prior, a mixture where it is more than one.
        guard: log odds that a held-out person is foretold better by their own answers than by the population's taste.
        scales: how ratings and replies speak; defaults for what nobody gave.
        losses: (groups,) nats of all rows of each held-out group, mean over the numbers of answers.
    """

    mean_scale: float = 1.0
    spread_scale: float = 1.0
    lapse: float = LAPSE
    log_loss: dict[int, float] = field(default_factory=dict)
    auc: dict[int, float] = field(default_factory=dict)
    people: int = 0
    parts: int = 1
    guard: float = 0.0
    scales: Scales = Scales()
    losses: Floats = field(default_factory=lambda: np.zeros(0), compare=False, repr=False)

    def apply(self, prior: Belief) -> Belief:
        """The scaled prior; a mixture's parts keep their places within the whole."""
        shift = (self.mean_scale - self.spread_scale) * prior.mean
        return prior.affine(self.spread_scale * np.eye(len(shift)), shift)

    def foretells_better_than(self, other: "Calibration") -> bool:
        """Whether the left-out groups' losses fall by more than the standard error of their sum, paired by group."""
        gain = other.losses - self.losses
        return len(gain) > 1 and float(gain.sum()) > float(np.sqrt(len(gain)) * np.std(gain, ddof=1))


@dataclass(frozen=True)
class _HeldOut:
    """One fold's unseen people on unseen prompts: what they said first, and what came after, by number of answers.

    Where answers are graded a last column holds the form of each row; scales are not in them yet. `priors` are by
    number of parts.
    """

    priors: Mapping[int, Belief]
    group: Ints
    asked: dict[int, Observations]
    after: dict[int, Observations]

    @property
    def dim(self) -> int:
        """J."""
        return len(self.priors[1].mean)


def cross_fit(
    z: Floats | Mapping[int, Floats],
    choices: Choices,
    rank: int,
    penalties: Penalties = Penalties(),
    *,
    scales: Scales = Scales(),
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Scales of the prior and of graded answers, and lapse rate, by likelihood on people and prompts not fitted on.

    Where nobody compared, the order of a person's ratings of one prompt stands in for choices, so that a choice is
    foreseen in its own units as well.

    Args:
        z: (n, K) coordinates of the answers, and of the centres where answers are graded; or, where an encoder was
            tuned without each part in turn, by the number of that part in `splits`, and no other part is left out.
        choices: all that was said; groups of people and of prompts stay on one side of each fold.
        rank: J.
        penalties: as in `fit_weights`.
        scales: of graded answers, while base rewards are learned.
        seed: of the folds.
        progress: told of each fold.

    Returns:
        The best scales; ones where fewer than two groups of people are there to split.
    """
    held_out: list[_HeldOut] = []
    for fold in _folds(z, choices, rank, penalties, scales, seed):
        held_out.append(fold)
        if progress:
            progress(len(held_out), _FOLDS)
    if not held_out:
        return Calibration(scales=scales)
    best = one = _best(held_out, forms := [form for form in (RATING, REPLY) if np.any(choices.form == form)])
    rows = _rows(held_out)
    for parts in PARTS[1:]:
        # At the scales of one part: only what is better there is worth scales of its own.
        other = _measured(replace(one, parts=parts), held_out, rows)
        best = other if other.foretells_better_than(best) else best
    return best if best is one else _best(held_out, forms, best.parts)


def _rows(held_out: Sequence[_HeldOut]) -> dict[int, int]:
    """How many rows are to be predicted after each number of answers."""
    return {t: sum(len(fold.after[t].label) for fold in held_out) for t in _ANSWERS}


def _best(held_out: Sequence[_HeldOut], forms: Sequence[int], parts: int = 1) -> Calibration:
    """Three numbers by maximum a posteriori, and three more for each form of graded answers."""
    rows = _rows(held_out)
    origin = np.array([0.0, 0.0, logit(2 * LAPSE), *[0.0] * (3 * len(forms))])
    deviation = np.array([_PRIOR_SD] * 3 + [_RATING_PRIOR_SD] * (3 * len(forms)))

    def unpack(x: Floats) -> Calibration:
        found = {form: RatingScale(*map(float, np.exp(x[3 + 3 * i : 6 + 3 * i]))) for i, form in enumerate(forms)}
        return Calibration(
            float(np.exp(x[0])),
            float(np.exp(x[1])),
            float(0.5 * expit(x[2])),
            parts=parts,
            scales=Scales(found.get(RATING, RatingScale()), found.get(REPLY, READINGS)),
        )

    def minus_log_posterior(x: Floats) -> float:
        found = unpack(x)
        losses = [sum(float(np.sum(_loss(fold, t, found))) for fold in held_out) / max(rows[t], 1) for t in _ANSWERS]
        return rows[0] * float(np.mean(losses)) + 0.5 * float(np.sum(((x - origin) / deviation) ** 2))

    size = len(origin)
    best = minimize(
        minus_log_posterior,
        origin,
        method="Nelder-Mead",
        options={
            "xatol": 0.02,
            "fatol": 0.1,
            "initial_simplex": origin + 0.6 * deviation * np.eye(size + 1, size),
            "maxfev": 80 + 20 * len(forms),
        },
    )
    return _measured(unpack(best.x), held_out, rows)


def _measured(found: Calibration, held_out: Sequence[_HeldOut], rows: dict[int, int]) -> Calibration:
    """With its figures: of choices the mean nats and AUC, of all rows the nats by group."""
    nats = {t: [_loss(fold, t, found) for fold in held_out] for t in _ANSWERS}
    chosen = {t: [_choices(fold, t) for fold in held_out] for t in _ANSWERS}
    count = {t: sum(int(np.sum(mask)) for mask in chosen[t]) for t in _ANSWERS}
    log_loss = {
        t: sum(float(np.sum(loss[mask])) for loss, mask in zip(nats[t], chosen[t], strict=True)) / count[t]
        for t in _ANSWERS
        if count[t]
    }
    aucs = {t: np.concatenate([_auc(fold, t, found) for fold in held_out]) for t in _ANSWERS}
    group = np.concatenate([fold.group[fold.after[t].user] for t in _ANSWERS for fold in held_out])
    share = np.concatenate([loss * rows[0] / max(rows[t], 1) for t in _ANSWERS for loss in nats[t]]) / len(_ANSWERS)
    return replace(
        found,
        log_loss=log_loss,
        auc={t: float(np.nanmean(auc)) for t, auc in aucs.items() if np.isfinite(auc).any()},
        people=sum(fold.after[0].n_users for fold in held_out),
        guard=_guard(found, held_out),
        losses=np.asarray(np.bincount(np.unique(group, return_inverse=True)[1], share), np.float64),
    )


def _guard(found: Calibration, held_out: Sequence[_HeldOut]) -> float:
    """Log odds that what a left-out person said first foretells the rest better than the population's taste does."""
    t, gains = max(_ANSWERS), []
    for fold in held_out:
        after = fold.after[t]
        alone = replace(fold, asked={t: fold.asked[min(_ANSWERS)]})
        gains.append(after.sum_by_user(_loss(alone, t, found) - _loss(fold, t, found)))
    gain = np.concatenate(gains)
    helped, hurt = np.sum(gain > 0), np.sum(gain < 0)
    return float(np.log((helped + 1) / (hurt + 1)))


def _scaled(fold: _HeldOut, rows: Observations, scales: Scales) -> Observations:
    """Rows with graded answers on their scales; choices alone have no column for it and stay as they are."""
    dim = fold.dim
    if rows.v.shape[1] == dim:
        return rows
    v, weight = scales.rows(rows.v[:, :dim], rows.v[:, dim].astype(np.int64))
    return replace(rows, v=v, weight=weight * rows.weight)


def _choices(fold: _HeldOut, answers: int) -> Mask:
    """Which of the rows to be predicted are choices."""
    rows = fold.after[answers].v[:, fold.dim :]
    return np.asarray(~rows.any(axis=1), np.bool_)


def _belief(fold: _HeldOut, answers: int, calibration: Calibration) -> Belief:
    said = _scaled(fold, fold.asked[answers], calibration.scales)
    prior = calibration.apply(fold.priors[calibration.parts])
    if said.v.shape[1] > fold.dim:
        prior = prior.with_column(1.0)
    return laplace_posterior(said, prior, calibration.lapse, tolerance=1e-4)


def _loss(fold: _HeldOut, answers: int, calibration: Calibration) -> Floats:
    """Soft-label cross-entropy of each left-out row, in nats: (N,)."""
    after = _scaled(fold, fold.after[answers], calibration.scales)
    belief = _belief(fold, answers, calibration)[after.user]
    p = predict(belief, after.v[:, None, :], calibration.lapse)[:, 0]
    # A reading counts as far as it is sure; κ is of the evidence, not of what is to be foretold.
    weight = fold.after[answers].weight
    return np.asarray(-weight * (after.label * np.log(p) + (1 - after.label) * np.log1p(-p)), np.float64)


def _auc(fold: _HeldOut, answers: int, calibration: Calibration) -> Floats:
    after, choice = fold.after[answers], _choices(fold, answers)
    user = after.user[choice]
    means = _belief(fold, answers, calibration).mean[user]
    return auc_by_user(np.sum(after.v[choice] * means, axis=1), user, after.n_users)


def splits(choices: Choices, rng: np.random.Generator) -> Iterator[tuple[Mask, Mask]]:
    """Parts of people and prompts to leave out in turn: (N,) rows to fit on, and (N,) to predict.

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
    z: Floats | Mapping[int, Floats],
    choices: Choices,
    rank: int,
    penalties: Penalties,
    scales: Scales,
    seed: int,
) -> Iterator[_HeldOut]:
    """Fit without each part of people and prompts in turn, and yield what that part said."""
    rng = np.random.default_rng(seed)
    implied, foretold = bool(np.all(choices.form == RATING)), 0
    for k, (seen, unseen) in enumerate(splits(choices, rng)):
        if foretold >= 0.9 * _ENOUGH:
            return
        here = z.get(k) if isinstance(z, Mapping) else z
        if here is None or not seen.any() or not unseen.any():
            continue
        train, new = choices.where(seen), choices.where(unseen).some_groups(_ENOUGH, rng)
        foretold += len(new.user)
        phi = here @ fit_weights(here, train, rank, LAPSE, penalties, scales=scales).T
        said = train.some_groups(_ENOUGH, np.random.default_rng(seed)).observations(phi, scales)
        priors = {parts: fit_prior(said, LAPSE, parts).leading(phi.shape[1]) for parts in PARTS}
        yield _held_out(phi, new, priors, rng, implied)


def _held_out(
    phi: Floats, new: Choices, priors: Mapping[int, Belief], rng: np.random.Generator, implied: bool
) -> _HeldOut:
    """Put each person's rows in random order: what comes after t of them is to be predicted."""
    new = new.where(np.lexsort((rng.permutation(len(new.user)), new.user)))
    place = np.arange(len(new.user)) - np.searchsorted(new.user, new.user)
    v = phi[new.chosen] - phi[new.rejected]
    if new.graded.any():
        v = np.column_stack([v, new.form])
    user, label, weight = new.user, new.strength, new.confidence
    asked = {t: _some(place < t, v, user, new.n_users, label, weight) for t in _ANSWERS}
    if implied:
        first, better, worse = new.implied()
        v = np.concatenate([v, np.pad(phi[better] - phi[worse], ((0, 0), (0, 1)))])
        user = np.append(user, user[first])
        label, weight = (np.append(column, np.ones(len(first))) for column in (label, weight))
        place = np.append(place, place[first])
    after = {t: _some(place >= t, v, user, new.n_users, label, weight) for t in _ANSWERS}
    return _HeldOut(priors, new.group, asked, after)


def _some(rows: Mask, v: Floats, user: Ints, n_users: int, label: Floats, weight: Floats) -> Observations:
    return Observations.of(v[rows], user[rows], n_users, label[rows], weight[rows])
