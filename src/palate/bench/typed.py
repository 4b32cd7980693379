"""Simulated people who answer by typing: what they say, drawn from a bank of replies by how pleased they are.

How a reply is read is not simulated: each carries what a scorer that never saw it made of it, so that base rewards,
scorer and posterior are measured together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from palate.bench.people import Person, opposite
from palate.data import POLES, Answer
from palate.errors import InputError
from palate.rewards.posterior import Floats, Ints

LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Satisfactions of the bank's replies; a person's reward of −2 or less to 2 is one of them."""


@dataclass(frozen=True)
class ReplyBank:
    """Replies with labels, and how each was read by a scorer that never saw it.

    Args:
        rows: as `SatisfactionScorer.held_out` has them.

    Raises:
        InputError: there is no reply of some level that speaks of no pole.
    """

    rows: Sequence[Mapping[str, object]]

    def __post_init__(self) -> None:
        if missing := [level for level in LEVELS if not len(self._places.get((level, None), ()))]:
            raise InputError(f"The bank has no reply of satisfaction {missing[0]!r} about no pole; give a fuller one")

    @cached_property
    def _places(self) -> dict[tuple[float, str | None], Ints]:
        found: dict[tuple[float, str | None], list[int]] = {}
        for place, row in enumerate(self.rows):
            if not row.get("foreign"):
                about = row.get("about")
                level = float(str(row["satisfaction"]))
                found.setdefault((level, None if about is None else str(about)), []).append(place)
        return {key: np.array(places, np.int64) for key, places in found.items()}

    @cached_property
    def satisfaction(self) -> Floats:
        """(n,) as read."""
        return np.array([float(str(row["read_satisfaction"])) for row in self.rows])

    @cached_property
    def confidence(self) -> Floats:
        """(n,) of the readings; 0 where the feeling was not read to be on taste."""
        return np.array(
            [float(str(row["read_confidence"])) * (row["read_target"] in ("taste", "both")) for row in self.rows]
        )

    def draw(self, level: int, poles: Sequence[str], rng: np.random.Generator) -> int:
        """The place of a reply of that level, about one of the poles where there is such a one."""
        fitting = [pole for pole in poles if (LEVELS[level], pole) in self._places]
        about = fitting[int(rng.integers(len(fitting)))] if fitting else None
        places = self._places[LEVELS[level], about]
        return int(places[rng.integers(len(places))])


def feelings(person: Person, answers: Sequence[Answer]) -> list[tuple[int, list[str]]]:
    """How pleased a person is with each answer, 0 to 4, and what poles of it they would speak of.

    Who is pleased speaks of what they like in it, who is not of what they dislike; who is neither, of both. Of a spoilt
    answer nobody speaks of style.
    """
    out = []
    for answer, reward in zip(answers, person.reward(answers).tolist(), strict=True):
        level = int(np.clip(reward, -2, 2)) + 2
        shown = [pole for pole, (name, sign) in POLES.items() if answer.attributes.get(name) == sign]
        liked = [pole for pole in person.kind if pole in shown]
        disliked = [opposite(pole) for pole in person.kind if opposite(pole) in shown]
        poles = liked if level > 2 else disliked if level < 2 else liked + disliked
        out.append((level, [] if answer.spoilt else poles))
    return out
