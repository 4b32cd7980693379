"""What a check says: findings, figures, remarks; and when a lean of choices is more than chance."""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from palate.doctor.table import Table

Signs = NDArray[np.int64]
"""(N,) for each comparison 1 where a cue is on the chosen side, -1 where on the other, 0 where it does not tell."""

ENOUGH = 10
"""Comparisons that a user must have made before we judge them."""

_LEAN = 0.6
"""Share of choices leaning one way from which we speak of a leak."""
SURE = 2.0
"""Standard errors from an even share below which a lean may be chance."""
_GIVEN_AWAY = 0.75
"""Share of all choices that a cue alone guesses from which figures tell of the cue, not of taste."""


@dataclass(frozen=True)
class Finding:
    """One thing that the doctor found.

    Attributes:
        code: A stable name, such as ``"length-leak"``.
        severity: ``problem`` (figures will be wrong), ``warning`` (look at it), ``note`` (good to know).
        message: What it is, with numbers, and what to do; one line.
        count: How many records, users, prompts or kinds it concerns.
    """

    code: str
    severity: Literal["problem", "warning", "note"]
    message: str
    count: int


Check = Callable[[Table], Finding | None]


@dataclass(frozen=True)
class Lean:
    """Choices go with a cue.

    Attributes:
        way: 1 where the side that has more of it is chosen, -1 where it is rejected.
        share: Of the comparisons in which the cue differs, how many go that way; in [0.6, 1].
        differing: How many those are.
        z: Standard errors from an even share.
        guessed: Of *all* comparisons, what share the cue alone guesses, where it does not differ by a coin.
        severity: ``problem`` where the cue alone guesses three in four of all, 95 % sure; else ``warning``.
    """

    way: int
    share: float
    differing: int
    z: float
    guessed: float
    severity: Literal["problem", "warning"]


def lean(signs: Signs, sure: float = SURE) -> Lean | None:
    """How choices lean with a cue; None where they hardly do, or where it may be chance.

    Args:
        signs: The cue in each comparison.
        sure: Standard errors that it must stand from an even share; more where many cues are tried.

    Example:
        >>> found = lean(np.array([1] * 30 + [-1] * 10))
        >>> found.way, found.share, round(found.z, 1), found.severity
        (1, 0.75, 3.2, 'warning')
    """
    total, differing = len(signs), int(np.count_nonzero(signs))
    if not differing:
        return None
    kept = int((signs > 0).sum())
    way, kept = (1, kept) if 2 * kept >= differing else (-1, differing - kept)
    z = (kept - differing / 2) / sqrt(differing / 4)
    if z < sure or kept < _LEAN * differing:
        return None
    hits = kept + (total - differing) / 2
    severity: Literal["problem", "warning"] = "problem" if _at_least(hits, total) >= _GIVEN_AWAY else "warning"
    return Lean(way, kept / differing, differing, z, hits / total, severity)


def _at_least(hits: float, total: int, z: float = 1.96) -> float:
    """Wilson's lower limit of a share."""
    share = hits / total
    middle = share + z**2 / (2 * total)
    return (middle - z * sqrt(share * (1 - share) / total + z**2 / (4 * total**2))) / (1 + z**2 / total)
