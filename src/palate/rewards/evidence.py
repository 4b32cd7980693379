"""What counts as evidence of a taste, and in which form: choices, ratings, and replies that were read."""

from collections.abc import Iterable, Sequence

import numpy as np

from palate.feedback import Comparison, Rating, Record, Reply
from palate.rewards.beliefs import Floats, Ints
from palate.rewards.ratings import CHOICE, RATING, REPLY

Evidence = Comparison | Rating | Reply
"""One piece of it."""


def heard(records: Iterable[Record]) -> list[Evidence]:
    """What says something of a person's weights, in its order.

    A reply does once its satisfaction is known and its feeling is on taste: a complaint that the formula is wrong is
    none of style.

    Example:
        >>> said = Reply(user_id="ann", prompt="Hi", completion="Hello!", reply="Shorter, please.")
        >>> read = said.model_copy(update={"satisfaction": 0.2, "target": "taste"})
        >>> len(heard([said])), len(heard([read])), len(heard([read.model_copy(update={"target": "task"})]))
        (0, 1, 0)
    """
    return [
        record
        for record in records
        if not isinstance(record, Reply)
        or (record.satisfaction is not None and record.target in ("taste", "both") and record.confidence != 0)
    ]


def form_of(record: Evidence) -> int:
    """`CHOICE`, `RATING` or `REPLY`."""
    return CHOICE if isinstance(record, Comparison) else RATING if isinstance(record, Rating) else REPLY


def grade_of(record: Evidence) -> float | None:
    """The score of a rating, the satisfaction of a reply; None of a comparison."""
    return (
        None if isinstance(record, Comparison) else record.score if isinstance(record, Rating) else record.satisfaction
    )


def columns(evidence: Sequence[Evidence]) -> tuple[Ints, Floats, Floats]:
    """Forms, labels and confidences of N records, (N,) each.

    The label is a comparison's strength, else the grade; only a reply's reading is less than sure.
    """
    form = np.array([form_of(record) for record in evidence], np.int64)
    label = np.array(
        [record.strength if isinstance(record, Comparison) else grade_of(record) for record in evidence], np.float64
    )
    sure = [
        record.confidence if isinstance(record, Reply) and record.confidence is not None else 1.0 for record in evidence
    ]
    return form, label, np.array(sure, np.float64)
