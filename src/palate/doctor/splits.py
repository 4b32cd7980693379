"""Splits: what must not stand on both sides."""

from collections import defaultdict

import numpy as np

from palate.doctor.findings import Check, Finding
from palate.doctor.similar import near_duplicates
from palate.doctor.table import Table, two_sides
from palate.feedback import Comparison, Rating, as_text

_MANY = 0.05
"""Share of held-out answers that were seen from which figures are wrong."""


def _split_users(table: Table) -> Finding | None:
    train, held_out = two_sides((record.user_id, record.split) for record in table.records)
    count = len(train & held_out)
    if not count:
        return None
    message = (
        f"Users in train who also stand in adapt or test: {count}; figures for new users would be of known "
        "ones, so move each to one side."
    )
    return Finding("split-users", "problem", message, count)


def _split_kinds(table: Table) -> Finding | None:
    grouped: list[Comparison | Rating] = [*table.feedback.comparisons, *table.feedback.ratings]
    train, held_out = two_sides((row.kind, row.split) for row in grouped if row.kind is not None)
    count = len(train & held_out)
    if not count:
        return None
    message = (
        f"Kinds of users in train that also stand in adapt or test: {count}; held-out tastes would have been "
        "seen, so keep all users of a kind on one side."
    )
    return Finding("split-kinds", "problem", message, count)


def _split_prompts(table: Table) -> Finding | None:
    prompts: dict[str | None, set[tuple[str, str]]] = defaultdict(set)
    for record in table.records:
        if record.split in ("adapt", "test"):
            prompts[record.split].add((record.user_id, as_text(record.prompt)))
    shared = prompts["adapt"] & prompts["test"]
    if not shared:
        return None
    users = len({user for user, _ in shared})
    message = (
        f"Test prompts that also stand in the same user's adapt rows: {len(shared)}, of {users} of the "
        "users; test answers were given away, so split each user's rows by prompt."
    )
    return Finding("split-prompts", "problem", message, len(shared))


def _split_answers(table: Table) -> Finding | None:
    """Answers (a prompt with its completion) that stand, word for word or nearly, in train and outside it."""
    if not (table.split > 0).any() or not (table.split < 0).any():
        return None
    # An answer is the same where prompt and completion both are: one completion may answer two prompts.
    prompt, text = table.answers.T
    alike = np.stack([near_duplicates(table.prompts)[prompt], table.alike[text]], axis=1)
    answer, place = np.unique(alike, axis=0, return_inverse=True)
    in_train, held_out = (np.zeros(len(answer), bool) for _ in range(2))
    in_train[place.reshape(-1)[table.split > 0]] = True
    held_out[place.reshape(-1)[table.split < 0]] = True
    count, total = int((in_train & held_out).sum()), int(held_out.sum())
    if not count:
        return None
    message = (
        f"Answers in adapt or test that stand in train too, word for word or nearly: {count} of {total} "
        f"({count / total:.0%}); figures for unseen answers would be of seen ones, so hold out whole prompts."
    )
    return Finding("split-answers", "problem" if count >= _MANY * total else "warning", message, count)


CHECKS: tuple[Check, ...] = (_split_users, _split_kinds, _split_prompts, _split_answers)
