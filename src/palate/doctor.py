"""The data doctor: what in a body of feedback would mislead a reward model or flatter its figures."""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from math import sqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from palate.feedback import Comparison, Feedback, Rating, Record, Text, as_text

_LEAK = 0.6
"""Share of choices leaning one way from which we speak of a leak."""
_SURE = 2.0
"""Standard errors from an even share below which a lean may be chance."""
_ENOUGH = 10
"""Comparisons that a user must have made before we call them one-sided."""


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


def diagnose(feedback: Feedback) -> list[Finding]:
    """Look for leaks, overlapping splits, contradictions and thin data; the worst findings come first.

    Example:
        >>> from palate.feedback import from_rows
        >>> row = {"user_id": "ann", "prompt": "Hi", "completion": "Hello!", "score": 1}
        >>> [finding.code for finding in diagnose(from_rows([row, row], source="rows"))]
        ['one-user', 'duplicates']
    """
    order = ["problem", "warning", "note"]
    findings = (check(feedback) for check in _CHECKS)
    return sorted((found for found in findings if found), key=lambda found: order.index(found.severity))


# What is there at all.


def _bad_lines(feedback: Feedback) -> Finding | None:
    count = len(feedback.bad_lines)
    if not count:
        return None
    message = f"Lines that could not be read: {count}; correct them, the first is {feedback.bad_lines[0]}"
    return Finding("bad-lines", "warning", message, count)


def _no_records(feedback: Feedback) -> Finding | None:
    if len(feedback):
        return None
    cause = "every line is bad, correct them" if feedback.bad_lines else "collect some feedback"
    return Finding("no-records", "problem", f"There are no records; {cause}.", 0)


def _one_user(feedback: Feedback) -> Finding | None:
    users = {record.user_id for record in _records(feedback)}
    if len(users) != 1:
        return None
    message = (
        f"All records are of one user, {next(iter(users))!r}: a taste cannot be separated from the "
        "population's; add other people's feedback."
    )
    return Finding("one-user", "problem", message, len(feedback))


def _single_answers(feedback: Feedback) -> Finding | None:
    answers = Counter(record.user_id for record in _records(feedback))
    count = sum(number == 1 for number in answers.values())
    if not count or len(answers) == 1:
        return None
    message = (
        f"Users with a single answer: {count} of {len(answers)}; one teaches the population's taste but "
        "hardly theirs, so ask them a few more."
    )
    return Finding("single-answers", "note", message, count)


def _ties(feedback: Feedback) -> Finding | None:
    count = sum(row.strength == 0.5 for row in feedback.comparisons)
    if not count:
        return None
    share = count / len(feedback.comparisons)
    message = (
        f"Ties: {count} of {len(feedback.comparisons)} comparisons ({share:.0%}); if that is more than "
        "meant, check how strength is set."
    )
    return Finding("ties", "note", message, count)


def _duplicates(feedback: Feedback) -> Finding | None:
    copies = Counter((type(record), _answer(record), record.created_at) for record in _records(feedback))
    count = len(feedback) - len(copies)
    if not count:
        return None
    message = (
        f"Records that repeat another (same user, texts, answer and time): {count}; each counts twice, so "
        "drop the copies."
    )
    return Finding("duplicates", "warning", message, count)


def _contradictions(feedback: Feedback) -> Finding | None:
    answers = {_answer(row) for row in feedback.comparisons if row.strength > 0.5}
    count = sum(
        chosen < rejected and (user, prompt, rejected, chosen) in answers for user, prompt, chosen, rejected in answers
    )
    if not count:
        return None
    message = (
        f"Pairs of completions that one user chose both ways: {count}; where the taste did not turn in "
        "between, keep one of the two answers."
    )
    return Finding("contradictions", "warning", message, count)


# Leaks: ways to guess the choice without reading.


def _length_leak(feedback: Feedback) -> Finding | None:
    longer = _longer(_decided(feedback))
    kept = longer[longer != 0] > 0
    lean = _lean(int(kept.sum()), len(kept), "longer", "shorter")
    if lean is None:
        return None
    way, share, z = lean
    message = (
        f"The {way} completion was chosen in {share:.0%} of {len(kept)} comparisons of unequal length "
        f"(z = {z:.1f}): a model may take length for taste; balance the pairs, or compare with length alone."
    )
    return Finding("length-leak", "warning", message, len(kept))


def _sides_leak(feedback: Feedback) -> Finding | None:
    sides = [row.chosen_position == "a" for row in _decided(feedback) if row.chosen_position]
    lean = _lean(sum(sides), len(sides), "a", "b")
    if lean is None:
        return None
    side, share, z = lean
    message = (
        f"Side {side!r} was chosen in {share:.0%} of {len(sides)} comparisons with a known side "
        f"(z = {z:.1f}); show the two completions in random order."
    )
    return Finding("sides-leak", "warning", message, len(sides))


def _mixed_forms(feedback: Feedback) -> Finding | None:
    plain = sum(isinstance(_completion(record), str) for record in _records(feedback))
    conversational = len(feedback) - plain
    if not plain or not conversational:
        return None
    message = (
        f"Plain completions in {plain} and conversational ones in {conversational} of {len(feedback)} "
        "records: where the form goes with the user or the answer it gives them away; write all in one form."
    )
    return Finding("mixed-forms", "warning", message, min(plain, conversational))


def _one_sided(feedback: Feedback) -> Finding | None:
    rows = [row for row in _decided(feedback) if row.chosen_position]
    count = _always_alike(rows, np.array([1 if row.chosen_position == "a" else -1 for row in rows]))
    if not count:
        return None
    message = (
        f"Users who chose the same side in each of {_ENOUGH} or more comparisons: {count}; they may not have "
        "read them, so look at their answers and leave them out if so."
    )
    return Finding("one-sided-users", "warning", message, count)


def _length_only(feedback: Feedback) -> Finding | None:
    rows = _decided(feedback)
    count = _always_alike(rows, _longer(rows))
    if not count:
        return None
    message = (
        f"Users who chose always the longer or always the shorter completion in {_ENOUGH} or more "
        f"comparisons: {count}; ask them about pairs of equal length to see what else they like."
    )
    return Finding("length-only-users", "warning", message, count)


# Splits: what must not stand on both sides.


def _split_users(feedback: Feedback) -> Finding | None:
    train, held_out = _sides((record.user_id, record.split) for record in _records(feedback))
    count = len(train & held_out)
    if not count:
        return None
    message = (
        f"Users in train who also stand in adapt or test: {count}; figures for new users would be of known "
        "ones, so move each to one side."
    )
    return Finding("split-users", "problem", message, count)


def _split_kinds(feedback: Feedback) -> Finding | None:
    grouped: list[Comparison | Rating] = [*feedback.comparisons, *feedback.ratings]
    train, held_out = _sides((row.kind, row.split) for row in grouped if row.kind is not None)
    count = len(train & held_out)
    if not count:
        return None
    message = (
        f"Kinds of users in train that also stand in adapt or test: {count}; held-out tastes would have been "
        "seen, so keep all users of a kind on one side."
    )
    return Finding("split-kinds", "problem", message, count)


def _split_prompts(feedback: Feedback) -> Finding | None:
    prompts: dict[str | None, set[tuple[str, str]]] = defaultdict(set)
    for record in _records(feedback):
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


_CHECKS: tuple[Callable[[Feedback], Finding | None], ...] = (
    _no_records,
    _one_user,
    _split_users,
    _split_kinds,
    _split_prompts,
    _bad_lines,
    _length_leak,
    _sides_leak,
    _mixed_forms,
    _one_sided,
    _length_only,
    _contradictions,
    _duplicates,
    _single_answers,
    _ties,
)


def _records(feedback: Feedback) -> Iterable[Record]:
    yield from feedback.comparisons
    yield from feedback.ratings
    yield from feedback.replies


def _decided(feedback: Feedback) -> list[Comparison]:
    return [row for row in feedback.comparisons if row.strength > 0.5]


def _completion(record: Record) -> Text:
    return record.chosen if isinstance(record, Comparison) else record.completion


def _answer(record: Record) -> tuple[str, str, str, str]:
    """Who said what of what; a reply's and a rating's own words stand where `rejected` does."""
    user, prompt, text = record.user_id, as_text(record.prompt), as_text(_completion(record))
    if isinstance(record, Comparison):
        return user, prompt, text, as_text(record.rejected)
    return user, prompt, text, repr(record.score) if isinstance(record, Rating) else record.reply


def _longer(rows: list[Comparison]) -> NDArray[np.int64]:
    """Per row 1 where chosen is longer, -1 where rejected is, 0 where they are equal."""
    lengths = [len(as_text(row.chosen)) - len(as_text(row.rejected)) for row in rows]
    return np.sign(np.array(lengths, dtype=np.int64))


def _always_alike(rows: list[Comparison], signs: NDArray[np.int64]) -> int:
    """How many users with enough rows have the same sign, not 0, in all of them."""
    codes: dict[str, int] = {}
    users = np.array([codes.setdefault(row.user_id, len(codes)) for row in rows], dtype=np.intp)
    answers = np.bincount(users)
    sums = np.bincount(users, weights=signs)
    return int(((answers >= _ENOUGH) & (np.abs(sums) == answers)).sum())


def _lean(count: int, total: int, way: str, other_way: str) -> tuple[str, float, float] | None:
    """The way that `count` of `total` lean, their share, and its z against even; None if none."""
    if 2 * count < total:
        count, way = total - count, other_way
    z = (count - total / 2) / sqrt(total / 4) if total else 0.0
    return (way, count / total, z) if z >= _SURE and count >= _LEAK * total else None


def _sides(rows: Iterable[tuple[Hashable, str | None]]) -> tuple[set[Hashable], set[Hashable]]:
    """What stands in train, and what stands in adapt or test."""
    train: set[Hashable] = set()
    held_out: set[Hashable] = set()
    for value, split in rows:
        if split is not None:
            (train if split == "train" else held_out).add(value)
    return train, held_out
