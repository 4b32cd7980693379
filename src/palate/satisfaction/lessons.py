"""What the scorer learns from: replies with labels, and comments whose emotion is known."""

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import numpy as np

from palate.data import POLES, load_answers
from palate.errors import InputError
from palate.satisfaction.network import EMOTIONS, TARGETS


@dataclass(frozen=True)
class Lesson:
    """One text and what is known of it.

    Args:
        text: what somebody typed.
        satisfaction: in [0, 1]; None where it is not known.
        target: what the feeling is on; None where it is not known.
        emotions: groups of GoEmotions that it shows; None where that is not known.
        foreign: it is in a language that the scorer does not read, whose satisfaction it is to leave open.
        context: the prompt and the completion that it answers.
        name: its id; of twins, which differ in their last letter, one must not be learned to read the other.
        about: the style pole of the answer that it speaks of, if any.
        kind: ``explicit``, ``implicit``, ``sarcastic`` or ``neutral``, where known.
        weight: counts so much.
    """

    text: str
    satisfaction: float | None = None
    target: str | None = None
    emotions: frozenset[str] | None = None
    foreign: bool = False
    context: tuple[str, str] | None = None
    name: str = ""
    about: str | None = None
    kind: str | None = None
    weight: float = 1.0

    @property
    def group(self) -> str:
        """What must stay on one side of a split: itself, or itself and its twin."""
        return self.name[:-1] if self.name[-1:] in ("a", "b") else self.name or self.text


def read_goemotions(folder: str | Path, split: str) -> list[Lesson]:
    """The comments of GoEmotions with grouped labels, as `train.tsv`, `dev.tsv` and `test.tsv` hold them.

    Raises:
        InputError: the file or `labels.txt` is missing, or a line is not text, labels and id.
    """
    path = Path(folder) / f"{split}.tsv"
    try:
        names = (Path(folder) / "labels.txt").read_text("utf-8").split()
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except OSError as error:
        raise InputError(
            f"GoEmotions cannot be read: {error}; give the folder with its .tsv files and labels.txt"
        ) from error
    if set(names) != set(EMOTIONS):
        raise InputError(f"{folder}/labels.txt names {names!r}, not {', '.join(EMOTIONS)}; give the grouped labels")
    lessons = []
    for number, row in enumerate(rows, 1):
        try:
            text, labels, _ = row
            emotions = frozenset(names[int(label)] for label in labels.split(","))
        except (ValueError, IndexError):
            raise InputError(
                f"{path}, line {number}: not a text, label numbers and an id between tabs; get the file anew"
            ) from None
        lessons.append(Lesson(text, emotions=emotions))
    return lessons


def read_remarks() -> list[Lesson]:
    """The 2,250 remarks on daily life that ship with Palate, written for it, each positive, negative or neutral.

    Example:
        >>> remark = read_remarks()[0]
        >>> remark.text, remark.emotions
        ('new earbuds finally arrived and omg the bass on these things', frozenset({'positive'}))
    """
    lines = files("palate.data").joinpath("remarks.jsonl").read_text(encoding="utf-8").splitlines()
    return [Lesson(row["remark"], emotions=frozenset([row["emotion"]])) for row in map(json.loads, lines)]


def read_replies(path: str | Path | None = None) -> list[Lesson]:
    """Replies with labels, one a line: reply, satisfaction, target [, id, about, kind], or reply and `foreign`: true.

    Args:
        path: JSON Lines; the replies that ship with Palate by default.

    Raises:
        InputError: the file is missing or empty, or a line is not such a row; names the line.

    Example:
        >>> lesson = read_replies()[0]
        >>> lesson.text, lesson.satisfaction, lesson.target
        ('omg yes yes yes', 1.0, 'task')
    """
    source = files("palate.data").joinpath("replies.jsonl") if path is None else Path(path)
    try:
        lines = source.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Replies {str(path)!r} cannot be read: {error}; give a JSON Lines file") from error
    lessons = [_lesson(line, f"{source.name}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not lessons:
        raise InputError(f"{source.name} holds no replies; give one a line")
    return lessons


def _lesson(line: str, place: str) -> Lesson:
    try:
        row = json.loads(line)
        text, foreign = row["reply"], bool(row.get("foreign"))
        satisfaction = None if foreign else float(row["satisfaction"])
        target = None if foreign else row["target"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{place}: not a reply; it needs reply, satisfaction and target, or foreign: true") from None
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{place}: reply is empty; leave the row out")
    if satisfaction is not None and not 0 <= satisfaction <= 1:
        raise InputError(f"{place}: satisfaction {satisfaction!r} is not in [0, 1]; rescale it")
    if target is not None and target not in TARGETS:
        raise InputError(f"{place}: target {target!r} is not one of {', '.join(TARGETS)}; correct it")
    about = row.get("about")
    if about is not None and (not isinstance(about, str) or about not in POLES):
        raise InputError(f"{place}: about {about!r} is no style pole; give one of {', '.join(POLES)}, or null")
    return Lesson(
        text, satisfaction, target, foreign=foreign, name=str(row.get("id", "")), about=about, kind=row.get("kind")
    )


def with_contexts(lessons: Iterable[Lesson], seed: int, share: float = 0.05) -> list[Lesson]:
    """Each lesson, that share of them beside one of the bundled answers that it may be a reply to.

    So the scorer learns to read a reply with and without what it answers: where the reply speaks of a pole, the answer
    shows it.
    """
    rng = np.random.default_rng(seed)
    answers = [answer for answer in load_answers() if answer.spoilt is None]
    by_pole = {
        pole: [answer for answer in answers if answer.attributes.get(attribute) == sign]
        for pole, (attribute, sign) in POLES.items()
    }
    out = []
    for lesson in lessons:
        pool = by_pole[lesson.about] if lesson.about else answers
        answer = pool[int(rng.integers(len(pool)))]
        out.append(replace(lesson, context=(answer.prompt, answer.text)) if rng.random() < share else lesson)
    return out
