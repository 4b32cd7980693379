"""Who is asked in a benchmark: people of kinds, about prompts, that no bundled person knows."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from palate.bench.people import ALL_KINDS, Kind, parse_kind, simulate
from palate.data import Answer, load_answers, load_people
from palate.errors import InputError
from palate.feedback import Comparison, read_feedback
from palate.rewards.evaluation import NewPeople
from palate.rewards.factorization import Choices
from palate.rewards.posterior import Floats, Ints, Observations

Mask = NDArray[np.bool_]

_QUICK_PEOPLE = 56
_PEOPLE_PER_KIND, _COMPARISONS = 10, 160
_NEW_PROMPTS = ("p4", "p5")  # the bundled people were asked about p0xx to p3xx


def unseen_kinds() -> list[Kind]:
    """The 28 kinds that none of the bundled people is of."""
    seen = {parse_kind(row.kind or "") for row in load_people()}
    return [kind for kind in ALL_KINDS if kind not in seen]


def unseen_answers() -> list[Answer]:
    """The bundled answers to prompts that none of the bundled people was asked about."""
    return [answer for answer in load_answers() if answer.prompt_id.startswith(_NEW_PROMPTS)]


def unseen_people(seed: int, quick: bool) -> list[Comparison]:
    """Choices of simulated people of unseen kinds between unseen answers, half `adapt` and half `test`."""
    kinds = unseen_kinds()
    return simulate(
        kinds,
        unseen_answers(),
        people_per_kind=_QUICK_PEOPLE // len(kinds) if quick else _PEOPLE_PER_KIND,
        comparisons=_COMPARISONS,
        seed=seed,
        split_by_prompt=True,
    )


def recorded_people(data: Path, quick: bool) -> list[Comparison]:
    """The `adapt` and decided `test` rows of people who have both.

    Raises:
        InputError: there are none.
    """
    path = data / "new_users.jsonl" if data.is_dir() else data
    rows = [
        row
        for row in read_feedback(path).comparisons
        if row.split == "adapt" or (row.split == "test" and row.strength != 0.5)
    ]
    adapt, test = ({row.user_id for row in rows if row.split == split} for split in ("adapt", "test"))
    both = [user for user in dict.fromkeys(row.user_id for row in rows) if user in adapt & test]
    if not both:
        raise InputError(
            f"Nobody in {str(path)!r} has comparisons with split 'adapt' and with split 'test'; give both to measure on"
        )
    kept = set(both[:_QUICK_PEOPLE] if quick else both)
    return [row for row in rows if row.user_id in kept]


def new_people(z: Floats, choices: Choices, asked: Mask, test: Mask) -> NewPeople:
    """Rows that may be asked and rows to test on, in any coordinates of the answers.

    Args:
        z: (n, D) coordinates of the answers.
        choices: N comparisons between them.
        asked: (N,) which may be asked.
        test: (N,) which are to be predicted.
    """

    def difference(rows: Ints) -> Floats:
        return np.asarray(z[choices.chosen[rows]] - z[choices.rejected[rows]], np.float64)

    ask, try_on = rows_by_user(choices, asked), rows_by_user(choices, test)
    return NewPeople(
        asked=Observations(
            difference(ask), choices.strength[ask], np.ones(len(ask)), choices.user[ask], choices.n_users
        ),
        prompt=choices.prompt[ask],
        test=difference(try_on),
        test_user=choices.user[try_on],
    )


def rows_by_user(choices: Choices, mask: Mask) -> Ints:
    """The rows of a mask over the comparisons, sorted by person."""
    rows = np.flatnonzero(mask)
    return np.asarray(rows[np.argsort(choices.user[rows], kind="stable")], np.int64)
