"""The learning curve: how many users and answers the next hundredth of AUC would take.

Base rewards and prior are fitted on an eighth, a quarter, half and all of the users, and on as many of the answers of
each, and measured on users and prompts left out, after ten answers of theirs. A power law AUC = top − b n^−c goes
through the means (the shape of learning curves: Cortes et al. 1993; Hestness et al. 2017). It is a fit through four
points: take it as the size of what is needed, no more.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from threadpoolctl import threadpool_limits

from palate.encoders import Encoder
from palate.errors import InputError
from palate.feedback import Feedback
from palate.rewards.calibration import LAPSE
from palate.rewards.evaluation import NewPeople
from palate.rewards.evaluation import learning_curve as answers_curve
from palate.rewards.factorization import Choices, fit_weights
from palate.rewards.features import Coordinates
from palate.rewards.indexing import Indexed
from palate.rewards.population import fit_prior
from palate.rewards.posterior import Observations

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

_PARTS = (0.125, 0.25, 0.5, 1.0)
_DRAWS = 3  # of each part but the whole
_FOLDS = 4  # quarters of users and prompts
_ANSWERS = 10  # of a left-out user before they are measured
_STEP = 0.01
_PULL = 0.005  # residual, in AUC, of an exponent that is one off


@dataclass(frozen=True)
class Curve:
    """AUC by how much there is to learn from.

    Attributes:
        what: ``users``, or ``answers`` of each.
        sizes: How many, ascending.
        auc: For users and prompts left out, at each size.
        have: How many there are in all.
        needed: How many would bring another 0.01 of AUC; None where the law says that no number will.
    """

    what: str
    sizes: list[float]
    auc: list[float]
    have: float
    needed: float | None

    @property
    def remark(self) -> str:
        """One line for people."""
        points = ", ".join(f"{auc:.3f} at {size:,.0f}" for size, auc in zip(self.sizes, self.auc, strict=True))
        unit = "users" if self.what == "users" else "answers of each"
        if self.needed is None:
            return f"AUC by {unit}: {points}; by its power law, more {unit} alone would hardly bring another {_STEP:g}."
        more = self.needed - self.have
        return f"AUC by {unit}: {points}; another {_STEP:g} would take about {more:,.0f} more {unit}, by its power law."


def learning_curves(
    feedback: Feedback,
    encoder: Encoder,
    *,
    rank: int = 12,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Curve]:
    """Measure AUC by users and by answers of each, and how many more the next 0.01 would take.

    Args:
        feedback: Its comparisons with `split` absent or ``train`` are used.
        encoder: Texts to features.
        rank: J, as in a fit.
        seed: Of the parts.
        progress: Told of each stage.

    Raises:
        InputError: There are fewer than 8 users or 8 prompts to leave some out.
    """
    told = progress or (lambda stage, done, total: None)
    rows = [row for row in feedback.comparisons if row.split in (None, "train")]
    indexed = Indexed.of(rows)
    choices = indexed.choices
    users, prompts = choices.n_users, len(np.unique(choices.prompt))
    if min(users, len(np.unique(choices.group)), prompts) < 2 * _FOLDS:
        raise InputError(
            f"A learning curve needs 8 users of 8 kinds and 8 prompts, not {users} and {prompts}; collect more first"
        )
    raw = indexed.encode(encoder, progress=lambda done, total: told("Reading texts", done, total))
    z = Coordinates.fit(raw, encoder.blocks)(raw)
    kinds = {"users": _some_users, "answers": _some_answers}
    found: dict[str, list[list[tuple[float, float]]]] = {what: [] for what in kinds}
    rng = np.random.default_rng(seed)
    with threadpool_limits(1, user_api="blas"):
        for fold, (train, new) in enumerate(_folds(choices, rng)):
            told("Learning curve", fold, _FOLDS)
            whole = _auc(z, train, new, rank)  # the same point ends both curves
            for what, some in kinds.items():
                for _ in range(_DRAWS):
                    parts = [train.where(some(train, part, rng)) for part in _PARTS]
                    sizes = [seen.n_users if what == "users" else len(seen.user) / seen.n_users for seen in parts]
                    found[what].append(
                        list(zip(sizes, [*(_auc(z, seen, new, rank) for seen in parts[:-1]), whole], strict=True))
                    )
    per_user = len(rows) / users
    return [
        _curve(what, np.mean(points, axis=0), have)
        for (what, points), have in zip(found.items(), (float(users), per_user), strict=True)
    ]


def _folds(choices: Choices, rng: np.random.Generator) -> Iterator[tuple[Choices, Choices]]:
    """What is fitted on, and users and prompts left out, four times."""
    groups, prompts = (rng.permutation(np.unique(part)) for part in (choices.group, choices.prompt))
    for fold in range(_FOLDS):
        user_out = np.isin(choices.group, groups[fold::_FOLDS])[choices.user]
        prompt_out = np.isin(choices.prompt, prompts[fold::_FOLDS])
        if (~user_out & ~prompt_out).any() and (user_out & prompt_out).any():
            yield choices.where(~user_out & ~prompt_out), choices.where(user_out & prompt_out)


def _some_users(choices: Choices, part: float, rng: np.random.Generator) -> Mask:
    users = rng.permutation(choices.n_users)[: max(2, round(part * choices.n_users))]
    return np.isin(choices.user, users)


def _some_answers(choices: Choices, part: float, rng: np.random.Generator) -> Mask:
    order = np.lexsort((rng.permutation(len(choices.user)), choices.user))
    place = np.arange(len(order)) - np.searchsorted(choices.user[order], choices.user[order])
    kept = np.zeros(len(order), bool)
    kept[order] = place < np.maximum(1, np.rint(part * np.bincount(choices.user)))[choices.user[order]]
    return kept


def _auc(z: Floats, train: Choices, new: Choices, rank: int) -> float:
    """Fit on some, and measure on others, after some answers of theirs."""
    phi = z @ fit_weights(z, train, rank, LAPSE).T
    prior = fit_prior(train.observations(phi), LAPSE)
    order = np.argsort(new.user, kind="stable")
    user, v = new.user[order], (phi[new.chosen] - phi[new.rejected])[order]
    strength, prompt = new.strength[order], new.prompt[order]
    asked = (np.arange(len(user)) - np.searchsorted(user, user)) % 2 == 0
    test = ~asked & (strength > 0.5)
    people = NewPeople(
        asked=Observations.of(v[asked], user[asked], new.n_users, strength[asked]),
        prompt=prompt[asked],
        test=v[test],
        test_user=user[test],
    )
    return float(np.nanmean(answers_curve(people, prior, LAPSE, [_ANSWERS], "random")[_ANSWERS].auc))


def _curve(what: str, points: Floats, have: float) -> Curve:
    size, auc = points.T
    top, b, c = power_law(size, auc)
    # The law is of the users fitted on; what is left out would be fitted on too.
    now = top - b * have**-c
    gap = top - now - _STEP
    needed = float((b / gap) ** (1 / c)) if gap > 0 and b > 0 else None
    return Curve(what, size.tolist(), auc.tolist(), have, needed if needed is None or np.isfinite(needed) else None)


def power_law(size: Floats, auc: Floats) -> tuple[float, float, float]:
    """(top, b, c) of auc = top − b size^−c, least squares; top at most 1, b not negative, c in [0.1, 1].

    Points count as √size, for the law holds of the larger ones. A weak pull of c to ½, where learning curves commonly
    lie, decides what four points leave open.

    Example:
        >>> size = np.array([8.0, 16, 32, 64])
        >>> [round(float(x), 3) for x in power_law(size, 0.9 - 0.8 * size**-0.5)]
        [0.9, 0.8, 0.5]
    """
    weight = np.sqrt(size / size.max())
    start = (min(1.0, auc.max() + 0.01), max(1e-3, float(np.ptp(auc))), 0.5)
    found = least_squares(
        lambda x: np.r_[weight * (x[0] - x[1] * (size / size[0]) ** -x[2] - auc), _PULL * (x[2] - 0.5)],
        start,
        bounds=((0.0, 0.0, 0.1), (1.0 + 1e-9, 1.0, 1.0)),
        x_scale=(0.1, 0.1, 0.5),
        ftol=1e-12,
        xtol=1e-12,
        gtol=1e-12,
    )
    top, b, c = found.x
    return float(top), float(b * size[0] ** c), float(c)
