"""Collecting comparisons on paper, so to speak: files of candidates in, sheets of questions out, filled sheets back in.

A sheet is JSON Lines, one question a line: `user_id`, `prompt`, `response_a`, `response_b`, and `chosen_position`,
which is null until somebody writes ``"a"``, ``"b"`` or ``"tie"`` there. What else a record has (`created_at`, `kind`,
`split`) may be written beside it, and is kept.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from palate.errors import FeedbackError
from palate.feedback.design import Candidates, Design
from palate.feedback.files import read_rows, write_lines
from palate.feedback.hub import Row
from palate.feedback.records import Comparison, Text, as_text, show

_TEXT: TypeAdapter[Text] = TypeAdapter(Text)
_CHOICES = ("a", "b", "tie")


def read_candidates(paths: Sequence[str | Path]) -> list[Candidates]:
    """Read prompts with their completions from JSON Lines or Parquet.

    Args:
        paths: Files whose rows are {"prompt", "completions": [...]}, or {"prompt", "completion"}, one completion a row.

    Returns:
        One for each prompt, in order of appearance; equal completions once; prompts with one completion left out.

    Raises:
        FeedbackError: A row is neither, or no prompt has two completions.
    """
    prompts: dict[str, Text] = {}
    found: dict[str, dict[str, Text]] = {}
    for path in paths:
        for place, row in read_rows(path):
            prompt, completions = _candidate(place, row)
            prompts.setdefault(as_text(prompt), prompt)
            texts = found.setdefault(as_text(prompt), {})
            for text in completions:
                texts.setdefault(as_text(text), text)
    kept = [Candidates(prompts[key], list(texts.values())) for key, texts in found.items() if len(texts) > 1]
    if not kept:
        raise FeedbackError(
            f"No prompt in {', '.join(map(str, paths))} has two completions to compare; give two or more"
        )
    return kept


def _candidate(place: str, row: object) -> tuple[Text, list[Text]]:
    if isinstance(row, Mapping) and "prompt" in row:
        several = row.get("completions")
        completions = several if isinstance(several, list) else [row.get("completion")]
        try:
            texts = [_TEXT.validate_python(text) for text in completions]
            if all(as_text(text).strip() for text in texts):
                return _TEXT.validate_python(row["prompt"]), texts
        except ValidationError:
            pass
    raise FeedbackError(
        f'{place}: {show(row)} is no candidate; write {{"prompt", "completions": [...]}} or '
        '{"prompt", "completion"}, no text empty'
    )


def questions(
    design: Design, candidates: Sequence[Candidates], names: Sequence[str], *, seed: int = 0
) -> list[list[Row]]:
    """The sheet of each person, their questions in random order.

    Args:
        design: Who is asked about which pair.
        candidates: What `design` was made of.
        names: P user ids.
        seed: Of the order, and of the sides; each completion of a pair stands on side a for half of its people.
    """
    rng = np.random.default_rng(seed)
    sheets: list[list[Row]] = [[] for _ in names]
    for pair, people in zip(design.pairs, design.people, strict=True):
        asked = candidates[pair.prompt]
        turned = rng.permutation((np.arange(len(people)) + rng.integers(2)) % 2)
        for person, turn in zip(people, turned, strict=True):
            a, b = (pair.other, pair.one) if turn else (pair.one, pair.other)
            sheets[person].append(
                {
                    "user_id": names[person],
                    "prompt": asked.prompt,
                    "response_a": asked.completions[a],
                    "response_b": asked.completions[b],
                    "chosen_position": None,
                }
            )
    return [[sheet[i] for i in rng.permutation(len(sheet))] for sheet in sheets]


def write_sheets(sheets: Sequence[Sequence[Row]], output: str | Path) -> list[Path]:
    """Write sheets: into one file where `output` ends in `.jsonl`, else into a folder, a file a person.

    Returns:
        The files written.

    Raises:
        FeedbackError: They cannot be written, or would replace something.
    """
    output = Path(output)
    if output.exists() and (output.is_file() or any(output.iterdir())):
        raise FeedbackError(f"{output} is there already, perhaps filled in; choose another place")
    if output.suffix == ".jsonl":
        write_lines((json.dumps(row, ensure_ascii=False) for sheet in sheets for row in sheet), output)
        return [output]
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FeedbackError(f"{output} cannot be written ({error.strerror}); choose another place") from None
    written = []
    width = len(str(len(sheets)))
    for number, sheet in enumerate(sheets, 1):
        # The number tells apart names that differ only in what a file's name cannot hold.
        name = re.sub(r"[^\w-]+", "-", str(sheet[0]["user_id"]))[:60]
        path = output / f"{number:0{width}}-{name}.jsonl"
        write_lines((json.dumps(row, ensure_ascii=False) for row in sheet), path)
        written.append(path)
    return written


def read_sheets(paths: Sequence[str | Path]) -> tuple[list[Comparison], int]:
    """Read filled sheets back as comparisons.

    Args:
        paths: Files; rows whose `chosen_position` is null or empty are not answered yet.

    Returns:
        The comparisons, and how many questions are not answered. A tie has `strength` 0.5 and no `chosen_position`.

    Raises:
        FeedbackError: A row is no question, or its answer is none of a, b and tie.
    """
    comparisons, unanswered = [], 0
    for path in paths:
        for place, row in read_rows(path):
            try:
                answered = _answered(row)
                if answered is None:
                    unanswered += 1
                else:
                    comparisons.append(Comparison.model_validate(answered))
            except FeedbackError as error:
                raise FeedbackError(f"{place}: {error}") from None
    return comparisons, unanswered


def _answered(row: object) -> Row | None:
    if not isinstance(row, Mapping) or not {"response_a", "response_b"} <= set(row):
        raise FeedbackError(f"{show(row)} is no question; give a sheet that palate collect wrote")
    choice = row.get("chosen_position")
    choice = choice.strip().lower() if isinstance(choice, str) else choice
    if choice is None or choice == "":
        return None
    if choice not in _CHOICES:
        raise FeedbackError(f"chosen_position {show(row['chosen_position'])} is not a, b or tie; correct it")
    better, worse = ("response_b", "response_a") if choice == "b" else ("response_a", "response_b")
    ours = ("response_a", "response_b", "chosen_position")
    kept = {name: value for name, value in row.items() if name not in ours and value is not None}
    said: dict[str, object] = {**kept, "chosen": row[better], "rejected": row[worse]}
    return {**said, "strength": 0.5} if choice == "tie" else {**said, "chosen_position": choice}


def people_named(text: str) -> list[str]:
    """Who is to be asked: as many as a number says, or the names in a file, one a line.

    Raises:
        FeedbackError: It is neither, or a name stands twice.

    Example:
        >>> people_named("3")
        ['person-1', 'person-2', 'person-3']
    """
    if text.isdecimal() and int(text) > 0:
        return [f"person-{number:0{len(text)}}" for number in range(1, int(text) + 1)]
    try:
        names = [line.strip() for line in Path(text).read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError):
        raise FeedbackError(f"{text!r} is neither a number of people nor a file of names, one a line") from None
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise FeedbackError(f"The name {repeated[0]!r} stands twice in {text}; give everybody a name of their own")
    return names
