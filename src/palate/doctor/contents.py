"""What is there at all: bad lines, too few users or answers, ties, copies and near-copies, contradictions."""

from collections import Counter
from collections.abc import Hashable, Iterator

import numpy as np

from palate.doctor.findings import Check, Finding
from palate.doctor.table import Table
from palate.feedback import Rating, Reply, as_text


def _bad_lines(table: Table) -> Finding | None:
    bad = table.feedback.bad_lines
    if not bad:
        return None
    message = f"Lines that could not be read: {len(bad)}; correct them, the first is {bad[0]}"
    return Finding("bad-lines", "warning", message, len(bad))


def _no_records(table: Table) -> Finding | None:
    if table.records:
        return None
    cause = "every line is bad, correct them" if table.feedback.bad_lines else "collect some feedback"
    return Finding("no-records", "problem", f"There are no records; {cause}.", 0)


def _one_user(table: Table) -> Finding | None:
    users = {record.user_id for record in table.records}
    if len(users) != 1:
        return None
    message = (
        f"All records are of one user, {next(iter(users))!r}: a taste cannot be separated from the "
        "population's; add other people's feedback."
    )
    return Finding("one-user", "problem", message, len(table.records))


def _single_answers(table: Table) -> Finding | None:
    answers = Counter(record.user_id for record in table.records)
    count = sum(number == 1 for number in answers.values())
    if not count or len(answers) == 1:
        return None
    message = (
        f"Users with a single answer: {count} of {len(answers)}; one teaches the population's taste but "
        "hardly theirs, so ask them a few more."
    )
    return Finding("single-answers", "note", message, count)


def _ties(table: Table) -> Finding | None:
    count = sum(row.strength == 0.5 for row in table.rows)
    if not count:
        return None
    message = (
        f"Ties: {count} of {len(table.rows)} comparisons ({count / len(table.rows):.0%}); if that is more than "
        "meant, check how strength is set."
    )
    return Finding("ties", "note", message, count)


def _duplicates(table: Table) -> Finding | None:
    count = sum(copies - 1 for copies in Counter(_answers(table)).values())
    if not count:
        return None
    message = (
        f"Records that repeat another (same user, texts, answer and time): {count}; each counts twice, so "
        "drop the copies."
    )
    return Finding("duplicates", "warning", message, count)


def _answers(table: Table) -> Iterator[Hashable]:
    """Who said what of what, and when; for every record."""
    columns = (table.user, table.prompt, table.chosen, table.rejected)
    ids = zip(*(column.tolist() for column in columns), strict=True)
    for row, key in zip(table.rows, ids, strict=True):
        yield (*key, row.created_at)
    others: list[Rating | Reply] = [*table.feedback.ratings, *table.feedback.replies]
    for record in others:
        said = record.score if isinstance(record, Rating) else record.reply
        yield record.user_id, as_text(record.prompt), as_text(record.completion), said, record.created_at


def _contradictions(table: Table) -> Finding | None:
    answers = np.stack([table.user, table.prompt, table.chosen, table.rejected], axis=1)[table.decided]
    answers = np.unique(answers, axis=0)
    answers[:, 2:].sort(axis=1)
    count = len(answers) - len(np.unique(answers, axis=0))
    if not count:
        return None
    message = (
        f"Pairs of completions that one user chose both ways: {count}; where the taste did not turn in "
        "between, keep one of the two answers."
    )
    return Finding("contradictions", "warning", message, count)


def _near_equal_pairs(table: Table) -> Finding | None:
    count = int((table.alike[table.chosen] == table.alike[table.rejected]).sum())
    if not count:
        return None
    message = (
        f"Comparisons of two completions that are nearly the same text: {count} of {len(table.rows)}; such a choice "
        "tells next to nothing, so compare answers that differ."
    )
    return Finding("near-equal-pairs", "warning", message, count)


THERE: tuple[Check, ...] = (_no_records, _one_user)
"""Whether there is enough to go on at all."""

CHECKS: tuple[Check, ...] = (_bad_lines, _near_equal_pairs, _contradictions, _duplicates, _single_answers, _ties)
