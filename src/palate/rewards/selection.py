"""Settings of a fit, chosen on people who were left out of it: how graded answers speak, and where asked rank and L2.

Graded answers are first read at a guess (each counts like a choice), which says how they should be read; the folds are
then fitted anew with that. Rank and L2 climb from their defaults to a neighbour on a grid while it foretells the
left-out groups better by more than one standard error, paired by group: a draw leaves them where they are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np

from palate.rewards.calibration import Calibration, cross_fit
from palate.rewards.factorization import Choices, Penalties
from palate.rewards.posterior import Floats
from palate.rewards.ratings import RATING, RatingScale, Scales

# Rows for the first guess of how ratings speak, of whole groups drawn by chance.
_FEW = 20_000
_RANKS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_FACTORS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # of the penalties

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Settings:
    """How a fit is to be made.

    Args:
        rank: J.
        penalties: L2 of the base rewards.
        scales: of graded answers, while base rewards are learned.
        calibration: scales of prior and graded answers, and lapse, with the figures on left-out people.
    """

    rank: int
    penalties: Penalties
    scales: Scales
    calibration: Calibration


def choose_settings(
    z: Floats,
    choices: Choices,
    rank: int | Literal["auto"],
    penalties: Penalties = Penalties(),
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Settings:
    """Cross-fit, and choose what is left open.

    Args:
        z: (n, K) coordinates of the answers, and of the centres where there are graded answers.
        choices: all that was said.
        rank: J, or ``"auto"``: rank and a factor on the penalties are then chosen, starting at 12 and 1.
        penalties: L2 of the base rewards.
        seed: of the folds, and of the people drawn where there are many.
        progress: told of each fold.
    """

    def tried(settings: Settings, rows: Choices = choices) -> Settings:
        found = cross_fit(
            z,
            rows,
            settings.rank,
            settings.penalties,
            scales=settings.scales,
            seed=seed,
            progress=progress,
        )
        return replace(settings, calibration=found)

    best = Settings(12 if rank == "auto" else rank, penalties, Scales(), Calibration())
    if choices.graded.any():
        guess = tried(best, choices.some_groups(_FEW, np.random.default_rng(seed))).calibration.scales
        # Without choices the unit of base rewards is a logit of what is graded, so that L2 means the same to both.
        # Levels stay free: held tight, they would take a base reward to themselves.
        main = guess.ratings if np.any(choices.form == RATING) else guess.replies
        unit = main.slope if choices.graded.all() else 1.0
        ratings, replies = (RatingScale(s.slope / unit, s.weight) for s in (guess.ratings, guess.replies))
        best = replace(best, scales=Scales(ratings, replies))
    best = tried(best)
    if rank == "auto":
        best = _climb(best, _RANKS, best.rank, lambda settings, value: tried(replace(settings, rank=value)))
        best = _climb(
            best,
            _FACTORS,
            1.0,
            lambda settings, value: tried(
                replace(settings, penalties=Penalties(value * penalties.individual, value * penalties.population))
            ),
        )
    return best


def _climb(
    best: Settings, grid: Sequence[_Value], at: _Value, tried: Callable[[Settings, _Value], Settings]
) -> Settings:
    """Go along the grid, first up and, where that does not help, down, while it clearly helps."""
    start = grid.index(at)
    for step in (1, -1):
        place = start + step
        while 0 <= place < len(grid) and (other := tried(best, grid[place])).calibration.foretells_better_than(
            best.calibration
        ):
            best, place = other, place + step
        if place != start + step:
            break
    return best
