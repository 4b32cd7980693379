"""Feedback as numbers: every distinct text once, users and prompts by number, so that checks are array work."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from palate.doctor.similar import Ints, near_duplicates
from palate.feedback import Comparison, Feedback, Rating, Record, Reply, Text, as_text

Mask = NDArray[np.bool_]

SAMPLED = 20_000
"""Comparisons up to which all are read word by word; beyond, those of some users, whole users, always the same."""


_SIDES = {"a": 1, "b": -1, None: 0}
_SPLITS = {"train": 1, "adapt": -1, "test": -1, None: 0}


class _Numbers(dict[str, int]):
    """Numbers strings as they appear."""

    def __missing__(self, key: str) -> int:
        self[key] = len(self)
        return self[key]


@dataclass(frozen=True)
class Table:
    """Feedback and its N comparisons as arrays; build it with `Table.of`.

    Attributes:
        feedback: What it was made from.
        users: Names, by number.
        texts: The n distinct completions, of all records.
        prompts: The distinct prompts, of all records.
        user: (N,) who chose.
        prompt: (N,) for which prompt.
        chosen: (N,) completion that was preferred.
        rejected: (N,) the other one.
        decided: (N,) which comparisons are no ties.
        side: (N,) 1 where the chosen completion stood on side a, -1 on side b, 0 where that is not known.
        answers: (M, 2) prompt and completion of what all records are about: chosen and rejected of each comparison in
            turn, then those of ratings and replies.
        split: (M,) where each of these stands: 1 in train, -1 in adapt or test, 0 where that is not said.
    """

    feedback: Feedback
    users: list[str]
    texts: list[str]
    prompts: list[str]
    user: Ints
    prompt: Ints
    chosen: Ints
    rejected: Ints
    decided: Mask
    side: Ints
    answers: Ints
    split: Ints

    @classmethod
    def of(cls, feedback: Feedback) -> "Table":
        """Number users, prompts and completions."""
        users, texts, prompts = _Numbers(), _Numbers(), _Numbers()
        rows = feedback.comparisons
        table = np.empty((len(rows), 6), np.int64)
        for i, row in enumerate(rows):
            table[i] = (
                users[row.user_id],
                prompts[as_text(row.prompt)],
                texts[as_text(row.chosen)],
                texts[as_text(row.rejected)],
                row.strength > 0.5,
                _SIDES[row.chosen_position],
            )
        user, prompt, chosen, rejected, decided, side = table.T.copy()
        others: list[Rating | Reply] = [*feedback.ratings, *feedback.replies]
        single = [(prompts[as_text(row.prompt)], texts[as_text(row.completion)]) for row in others]
        return cls(
            feedback=feedback,
            users=list(users),
            texts=list(texts),
            prompts=list(prompts),
            user=user,
            prompt=prompt,
            chosen=chosen,
            rejected=rejected,
            decided=decided > 0,
            side=side,
            answers=np.concatenate([table[:, [1, 2, 1, 3]].reshape(-1, 2), np.array(single, np.int64).reshape(-1, 2)]),
            split=np.array(
                [_SPLITS[row.split] for row in rows for _ in range(2)] + [_SPLITS[row.split] for row in others],
                np.int64,
            ),
        )

    @property
    def rows(self) -> list[Comparison]:
        """The comparisons."""
        return self.feedback.comparisons

    @cached_property
    def records(self) -> list[Record]:
        """All records: comparisons, ratings, replies."""
        return [*self.feedback.comparisons, *self.feedback.ratings, *self.feedback.replies]

    @cached_property
    def length(self) -> Ints:
        """(n,) characters of each completion."""
        return np.array([len(text) for text in self.texts], np.int64)

    @cached_property
    def alike(self) -> Ints:
        """(n,) a number for each completion that near-duplicates share."""
        return near_duplicates(self.texts)

    @cached_property
    def sample(self) -> Ints:
        """Decided comparisons to read word by word: all, or those of some users."""
        decided = np.flatnonzero(self.decided)
        if len(decided) <= SAMPLED:
            return decided
        # By a hash of the name: the same users whatever the order of rows.
        order = np.argsort([crc32(name.encode()) for name in self.users], kind="stable")
        answers = np.bincount(self.user[decided], minlength=len(self.users))
        taken = order[: max(1, int(np.searchsorted(np.cumsum(answers[order]), SAMPLED, side="right")))]
        return decided[np.isin(self.user[decided], taken)]


def completion(record: Record) -> Text:
    """The completion that a record speaks well of, or speaks of."""
    return record.chosen if isinstance(record, Comparison) else record.completion


def two_sides(rows: Iterable[tuple[object, str | None]]) -> tuple[set[object], set[object]]:
    """What stands in train, and what stands in adapt or test, of (what, split)."""
    train: set[object] = set()
    held_out: set[object] = set()
    for value, split in rows:
        if split is not None:
            (train if split == "train" else held_out).add(value)
    return train, held_out
