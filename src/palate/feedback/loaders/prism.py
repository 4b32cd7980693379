"""PRISM (Kirk et al. 2024, arXiv 2404.16019): 1,396 people's conversations with models, each answer scored 1 to 100.

A conversation opens with answers of up to four models; the one scored highest is `if_chosen`, and goes on with two
answers a turn. Read is the configuration `conversations`: `user_id`, and `conversation_history`, a list of {`turn`,
`role` (user or model), `content`, `score`, `if_chosen`}. The turns before become the prompt. The set's one split,
`train`, is no split: rows come without one.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Literal

from palate.feedback.files import Feedback, from_rows
from palate.feedback.hub import Row, by_split, column, messages, moment

PRISM = "HannahRoseKirk/prism-alignment"

Evidence = Literal["choices", "scores"]


def load_prism(source: str = PRISM, *, evidence: Evidence = "choices", skip_bad_lines: bool = False) -> Feedback:
    """Read PRISM.

    Args:
        source: Its name on the hub, or a folder that holds a copy.
        evidence: ``choices``: the answer chosen in a turn against each other one. ``scores``: every answer's score as a
            rating, 100 as 1. One says much of what the other says: a fit on both would count it twice.
        skip_bad_lines: As in `read_feedback`.

    Raises:
        FeedbackError: It cannot be read, or is laid out otherwise.
    """
    return from_rows(prism_rows(source, evidence), source=source, skip_bad_lines=skip_bad_lines)


def prism_rows(source: str, evidence: Evidence = "choices") -> Iterator[Row]:
    """Rows in TRL's columns; answers that are equal or empty are left out, for they tell nothing."""
    for rows in by_split(source, "conversations").values():
        for row in rows:
            shared = {
                "user_id": column(row, "user_id", source),
                "created_at": moment(row.get("generated_datetime")),
            }
            for said in _turns(messages(column(row, "conversation_history", source)), evidence):
                yield {**shared, **said}


def _turns(history: Iterator[Row], evidence: Evidence) -> Iterator[Row]:
    turns: dict[object, list[Row]] = defaultdict(list)
    for message in history:
        turns[message.get("turn")].append(message)
    before: list[Row] = []
    for turn in turns.values():
        before += [_spoken("user", m.get("content")) for m in turn if m.get("role") == "user"]
        answers = [m for m in turn if m.get("role") != "user" and str(m.get("content") or "").strip()]
        # Where two models said the same, it is one answer.
        chosen = dict.fromkeys(str(m.get("content")) for m in answers if m.get("if_chosen"))
        prompt = list(before)
        if evidence == "scores":
            for m in answers:
                if isinstance(score := m.get("score"), int | float):
                    yield {
                        "prompt": prompt,
                        "completion": [_spoken("assistant", m.get("content"))],
                        "score": score / 100,
                    }
        else:
            others = dict.fromkeys(str(m.get("content")) for m in answers if m.get("content") not in chosen)
            for better in chosen:
                for worse in others:
                    yield {
                        "prompt": prompt,
                        "chosen": [_spoken("assistant", better)],
                        "rejected": [_spoken("assistant", worse)],
                    }
        if not chosen:
            return  # nobody knows what the conversation went on with
        before.append(_spoken("assistant", next(iter(chosen))))


def _spoken(role: str, content: object) -> Row:
    return {"role": role, "content": content}
