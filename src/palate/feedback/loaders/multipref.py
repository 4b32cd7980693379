"""MultiPref (Miranda et al. 2024, arXiv 2410.19133): each pair of answers judged by two crowd workers and two experts.

Read is the configuration `default`: `text` (the prompt), `completion_a`, `completion_b`, and two lists of judgements,
`normal_worker_annotations` and `expert_worker_annotations`, each {`evaluator`, `overall_pref`, `helpful_pref`,
`truthful_pref`, `harmless_pref`, `timestamp`, ...}. A preference is `A-is-clearly-better`, `A-is-slightly-better`,
`Tie`, and so for B. The set's one split, `train`, is no split: rows come without one.
"""

from collections.abc import Iterator
from typing import Literal

from palate.errors import InputError
from palate.feedback.files import Feedback, from_rows
from palate.feedback.hub import Row, by_split, column, messages, moment

MULTIPREF = "allenai/multipref"

Aspect = Literal["overall", "helpful", "truthful", "harmless"]

_ANNOTATIONS = ("normal_worker_annotations", "expert_worker_annotations")
_SLIGHTLY = 0.75


def load_multipref(
    source: str = MULTIPREF, *, aspect: Aspect = "overall", slightly: float = _SLIGHTLY, skip_bad_lines: bool = False
) -> Feedback:
    """Read MultiPref; a user is an `evaluator`.

    Args:
        source: Its name on the hub, or a folder that holds a copy.
        aspect: Which of the four judgements to read.
        slightly: `strength` of a slight preference, in (0.5, 1]; a clear one has 1, a tie 0.5. The data do not say what
            it should be: three in four is our guess.
        skip_bad_lines: As in `read_feedback`.

    Raises:
        InputError: `slightly` is out of range.
        FeedbackError: It cannot be read, or is laid out otherwise.
    """
    if not 0.5 < slightly <= 1:
        raise InputError(f"slightly {slightly!r} is not in (0.5, 1]; give the strength of a slight preference")
    return from_rows(multipref_rows(source, aspect, slightly), source=source, skip_bad_lines=skip_bad_lines)


def multipref_rows(source: str, aspect: Aspect = "overall", slightly: float = _SLIGHTLY) -> Iterator[Row]:
    """Rows in TRL's columns; pairs of equal answers and judgements that were not made are left out."""
    strengths = {"clearly": 1.0, "slightly": slightly}
    for rows in by_split(source, "default").values():
        for row in rows:
            a, b = (column(row, f"completion_{side}", source) for side in "ab")
            if a == b:
                continue
            for judged in (one for name in _ANNOTATIONS for one in messages(column(row, name, source))):
                # "A-is-clearly-better", "Tie"
                side, _, rest = str(judged.get(f"{aspect}_pref") or "").partition("-is-")
                shared = {
                    "user_id": column(judged, "evaluator", source),
                    "prompt": column(row, "text", source),
                    "created_at": moment(judged.get("timestamp")),
                }
                if side == "Tie":
                    yield {**shared, "chosen": a, "rejected": b, "strength": 0.5}
                elif (strength := strengths.get(rest.removesuffix("-better"))) is not None:
                    chosen, rejected = (a, b) if side == "A" else (b, a)
                    yield {
                        **shared,
                        "chosen": chosen,
                        "rejected": rejected,
                        "chosen_position": side.lower(),
                        "strength": strength,
                    }
