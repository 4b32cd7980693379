"""Leaks: ways to guess the choice without reading the answers for what they say.

A cue that guesses three in four of all choices is a problem: figures would tell of the cue, not of taste. A cue that
one person likes and another dislikes is a taste, and no leak; so only what all users share counts here.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np

from palate.doctor.findings import ENOUGH, SURE, Check, Finding, Lean, Signs, lean
from palate.doctor.similar import Ints
from palate.doctor.table import Mask, Table, completion
from palate.feedback import MIXED_FORMS, Text
from palate.rewards.evaluation import auc_by_user

_TRIED = 3.0
"""Standard errors asked of one of many cues."""
_MATTERS = 0.55
"""Share of all choices that such a cue must guess to be worth a word: a rare one gives little away."""


def _matches(pattern: str) -> Callable[[str], int]:
    compiled = re.compile(pattern, re.MULTILINE)
    return lambda text: len(compiled.findall(text))


FORMATS: dict[str, Callable[[str], int]] = {
    "list items": _matches(r"^[ \t]*(?:[-*+•]|\d{1,3}[.)])[ \t]"),
    "headings": _matches(r"^#{1,6} "),
    "code blocks": lambda text: text.count("```"),
    "bold words": lambda text: text.count("**"),
    "table rows": _matches(r"^\|"),
    "links": lambda text: text.count("https://") + text.count("http://"),
    "emoji": _matches("[\u2600-\u27bf\U0001f300-\U0001faff]"),
    "exclamation marks": lambda text: text.count("!"),
    "question marks": lambda text: text.count("?"),
    "line breaks": lambda text: text.count("\n"),
    "capitals": _matches(r"\b[A-Z]{3,}\b"),
}
"""What a text is made up with, and how often it has it."""


def _cue(signs: Signs, user: Ints) -> Lean | None:
    """A lean of one of many cues, that users share: of users drawn at random, too, most would lean that way."""
    found = lean(signs, sure=_TRIED)
    if found is None or found.guessed < _MATTERS:
        return None
    by_user = np.bincount(user, signs)
    shared = abs(by_user.sum()) >= SURE * np.sqrt(np.sum(by_user**2))
    return found if shared or found.severity == "problem" else None


def _decided(table: Table, signs: Ints) -> Signs:
    return np.sign(signs[table.decided])


def _length_leak(table: Table) -> Finding | None:
    found = lean(_decided(table, table.length[table.chosen] - table.length[table.rejected]))
    if found is None:
        return None
    message = (
        f"The {'longer' if found.way > 0 else 'shorter'} completion was chosen in {found.share:.0%} of "
        f"{found.differing} comparisons of unequal length (z = {found.z:.1f}): a model may take length for taste; "
        "balance the pairs, or compare with length alone."
    )
    return Finding("length-leak", found.severity, message, found.differing)


def _format_leak(table: Table) -> Finding | None:
    rows = table.sample
    texts, place = np.unique(np.concatenate([table.chosen[rows], table.rejected[rows]]), return_inverse=True)
    chosen, rejected = place[: len(rows)], place[len(rows) :]
    leans = {}
    for name, count in FORMATS.items():
        counts = np.array([count(table.texts[i]) for i in texts], np.int64)
        found = _cue(np.sign(counts[chosen] - counts[rejected]), table.user[rows])
        if found is not None:
            leans[name] = found
    if not leans:
        return None
    told = sorted(leans.items(), key=lambda item: (item[1].severity, -item[1].z))
    listed = ", ".join(
        f"{'more' if found.way > 0 else 'fewer'} {name} {found.share:.0%} of {found.differing}" for name, found in told
    )
    worst = told[0][1]
    message = (
        f"Choices go with how completions are laid out (how often the chosen one has it, where the two differ): "
        f"{listed}; a model may take layout for taste, so strip it or balance the pairs."
    )
    return Finding("format-leak", worst.severity, message, worst.differing)


def _type_leak(table: Table) -> Finding | None:
    refused = sum(line.endswith(MIXED_FORMS) for line in table.feedback.bad_lines)
    if refused:
        message = (
            f"Lines in which one of chosen and rejected is a string and the other a conversation: {refused}; the type "
            "gives the choice away, so write both in one form."
        )
        return Finding("type-leak", "problem", message, refused)
    # Conversations differ in how many turns they have, and in who speaks last.
    turns = np.array([_shape(row.chosen) + _shape(row.rejected) for row in table.rows], np.int64).reshape(-1, 4)
    for what, ours, theirs in (("more turns", 0, 2), ("the assistant's turn last", 1, 3)):
        found = _cue(_decided(table, turns[:, ours] - turns[:, theirs]), table.user[table.decided])
        if found is not None:
            message = (
                f"The conversation with {what} was {'chosen' if found.way > 0 else 'rejected'} in {found.share:.0%} of "
                f"{found.differing} comparisons that differ in it (z = {found.z:.1f}); give both completions the same "
                "turns."
            )
            return Finding("type-leak", found.severity, message, found.differing)
    return None


def _shape(text: Text) -> tuple[int, int]:
    """How many turns, and whether the assistant has the last word."""
    return (1, 1) if isinstance(text, str) else (len(text), int(bool(text) and text[-1]["role"] == "assistant"))


def _sides_leak(table: Table) -> Finding | None:
    sides = _decided(table, table.side)
    found = lean(sides[sides != 0])
    if found is None:
        return None
    message = (
        f"Side {'a' if found.way > 0 else 'b'!r} was chosen in {found.share:.0%} of {found.differing} comparisons with "
        f"a known side (z = {found.z:.1f}); show the two completions in random order."
    )
    return Finding("sides-leak", found.severity, message, found.differing)


def _mixed_forms(table: Table) -> Finding | None:
    plain = sum(isinstance(completion(record), str) for record in table.records)
    conversational = len(table.records) - plain
    if not plain or not conversational:
        return None
    message = (
        f"Plain completions in {plain} and conversational ones in {conversational} of {len(table.records)} "
        "records: where the form goes with the user or the answer it gives them away; write all in one form."
    )
    return Finding("mixed-forms", "warning", message, min(plain, conversational))


def _one_sided(table: Table) -> Finding | None:
    count = _always_alike(table, table.decided & (table.side != 0), table.side)
    if not count:
        return None
    message = (
        f"Users who chose the same side in each of {ENOUGH} or more comparisons: {count}; they may not have "
        "read them, so look at their answers and leave them out if so."
    )
    return Finding("one-sided-users", "warning", message, count)


def _length_only(table: Table) -> Finding | None:
    longer = np.sign(table.length[table.chosen] - table.length[table.rejected])
    count = _always_alike(table, table.decided, longer)
    if not count:
        return None
    message = (
        f"Users who chose always the longer or always the shorter completion in {ENOUGH} or more "
        f"comparisons: {count}; ask them about pairs of equal length to see what else they like."
    )
    return Finding("length-only-users", "warning", message, count)


def _always_alike(table: Table, rows: Mask, signs: Signs) -> int:
    """How many users with enough of these rows have the same sign, not 0, in all of them."""
    answers = np.bincount(table.user[rows])
    sums = np.bincount(table.user[rows], weights=signs[rows])
    return int(((answers >= ENOUGH) & (np.abs(sums) == answers)).sum())


CHECKS: Sequence[Check] = (
    _length_leak,
    _format_leak,
    _type_leak,
    _sides_leak,
    _mixed_forms,
    _one_sided,
    _length_only,
)


def length_alone(table: Table) -> dict[str, float]:
    """What length alone would get: the floor under any model's figures.

    Returns:
        `length_auc`, over both orders of all decided comparisons at once; `length_auc_per_user`, the mean of users'
        own; `length_own_accuracy`, share of choices guessed by whether the user's *other* choices went to the longer
        or the shorter one. Empty where nothing is decided.
    """
    rows = table.decided
    if not rows.any():
        return {}
    longer = (table.length[table.chosen] - table.length[table.rejected])[rows].astype(np.float64)
    user, users = table.user[rows], len(table.users)
    pooled = auc_by_user(longer, np.zeros(len(longer), np.int64), 1)[0]
    sign = np.sign(longer)
    others = np.bincount(user, sign, users)[user] - sign
    guess = np.sign(sign * others)
    return {
        "length_auc": round(float(pooled), 4),
        "length_auc_per_user": round(float(np.nanmean(auc_by_user(longer, user, users))), 4),
        "length_own_accuracy": round(float(np.mean((guess + 1) / 2)), 4),
    }
