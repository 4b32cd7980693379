"""How well the satisfaction scorer reads: GoEmotions, Sentiment140, USS, and replies held out; and how fast.

Public data is read from `--data`, a folder with `goemotions`, `sentiment140` and `uss`; what is not there is left out.
Replies are those that ship with Palate, each as a scorer read it that never saw it or its twin.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from palate.bench.report import Line, Picture, Result, markdown
from palate.bench.uss import CORPORA, PUBLISHED, left_out
from palate.errors import InputError
from palate.rewards.fitting import Stage
from palate.satisfaction.figures import emotion_figures, reliability, reply_figures
from palate.satisfaction.lessons import Lesson, read_goemotions
from palate.satisfaction.network import STEPS, TARGETS
from palate.satisfaction.scorer import Readings, SatisfactionScorer

_FIGURES = {
    "spearman": "Spearman",
    "mae": "mean absolute error",
    "target_accuracy": "target accuracy",
    "sarcasm": "sarcasm, balanced accuracy",
    "ece": "ECE of 0.5 or more",
    "foreign_confidence": "confidence, other languages",
}


def run(*, quick: bool, seed: int, data: Path | None = None, progress: Stage | None = None) -> Result:
    """Measure the scorer that ships with Palate.

    Args:
        quick: only some hundred turns of each corpus of USS.
        seed: unused: nothing is drawn.
        data: folder with public data.
        progress: told of each stage.

    Raises:
        InputError: `data` is no folder, or a file in it is not what it should be.
    """
    told = progress or (lambda stage, done, total: None)
    scorer = SatisfactionScorer.load()
    lessons, read = held_out(scorer)
    figures = {f"replies.{name}": value for name, value in reply_figures(lessons, read).items()}
    given = np.array([i for i, lesson in enumerate(lessons) if lesson.name[:1] in "us"], np.int64)
    figures["replies"] = float(len(lessons))
    figures["given"] = float(len(given))
    figures |= {
        f"given.{name}": value for name, value in reply_figures([lessons[i] for i in given], read[given]).items()
    }
    figures |= _speed(scorer, [lesson.text for lesson in lessons], told)
    known = np.array([i for i, lesson in enumerate(lessons) if lesson.satisfaction is not None], np.int64)
    true = np.array([lessons[i].satisfaction for i in known], np.float64)
    for place, (_, said, seen) in enumerate(reliability(read.pleased[known], true >= 0.5), 1):
        figures |= {f"reliability.foretold.{place}": said, f"reliability.seen.{place}": seen}
    if data is not None:
        if not data.is_dir():
            raise InputError(f"{str(data)!r} is no folder; give the one with goemotions, sentiment140 and uss")
        figures |= _public(scorer, data, quick, told)
    return Result("satisfaction", figures, _table(figures, lessons, read), _picture())


def held_out(scorer: SatisfactionScorer) -> tuple[list[Lesson], Readings]:
    """The replies a scorer was trained on, and what was read in each by one that never saw it."""
    lessons = [
        Lesson(
            str(row["reply"]),
            None if row.get("foreign") else float(str(row["satisfaction"])),
            None if row.get("foreign") else str(row["target"]),
            foreign=bool(row.get("foreign")),
            name=str(row.get("name", "")),
            about=row.get("about") and str(row["about"]),  # type: ignore[arg-type]
            kind=row.get("kind") and str(row["kind"]),  # type: ignore[arg-type]
        )
        for row in scorer.held_out
    ]
    columns = (np.array([row[f"read_{name}"] for row in scorer.held_out]) for name in ("steps", "targets", "emotions"))
    return lessons, Readings(*columns)


def _public(scorer: SatisfactionScorer, data: Path, quick: bool, told: Stage) -> dict[str, float]:
    figures: dict[str, float] = {}
    if (data / "goemotions").is_dir():
        told("GoEmotions", 0, 1)
        comments = read_goemotions(data / "goemotions", "test")
        found = emotion_figures(comments, scorer.score([comment.text for comment in comments]))
        figures |= {f"goemotions.{name}": value for name, value in found.items()}
    if (data / "sentiment140").is_dir():
        told("Sentiment140", 0, 1)
        texts, positive = _tweets(data / "sentiment140" / "test.jsonl")
        emotions = scorer.score(texts).emotions
        figures["sentiment140.accuracy"] = float(np.mean((emotions[:, 3] > emotions[:, 1]) == positive))
    if (data / "uss").is_dir():
        found = left_out(data / "uss", scorer, quick=quick, told=told)
        figures |= {f"uss.{name}": value for name, value in found.items()}
    return figures


def _tweets(path: Path) -> tuple[list[str], np.ndarray]:
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [row["text"] for row in rows], np.array([row["label"] == "positive" for row in rows])
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} cannot be read: it needs rows of text and label; get it anew") from error


def _speed(scorer: SatisfactionScorer, texts: list[str], told: Stage) -> dict[str, float]:
    """Replies per second in batches, and milliseconds for one, the median of some."""
    told("Speed", 0, 1)
    scorer.score(texts[:64])
    started = time.perf_counter()
    scorer.score(texts)
    rate = len(texts) / (time.perf_counter() - started)
    one = []
    for text in texts[:60]:
        started = time.perf_counter()
        scorer.score([text])
        one.append(time.perf_counter() - started)
    return {"replies_per_second": rate, "milliseconds_for_one": 1e3 * float(np.median(one))}


def _table(figures: Mapping[str, float], lessons: list[Lesson], read: Readings) -> str:
    replies = [
        [
            text,
            *(
                f"{figures[f'{whose}.{name}']:.3f}" if f"{whose}.{name}" in figures else ""
                for whose in ("given", "replies")
            ),
        ]
        for name, text in _FIGURES.items()
    ]
    public = [
        ["GoEmotions, negative / neutral / positive", "goemotions.accuracy"],
        ["GoEmotions, negative / positive", "goemotions.accuracy_pos_neg"],
        ["Sentiment140, negative / positive", "sentiment140.accuracy"],
    ]
    shown = [[text, f"{figures[name]:.3f}"] for text, name in public if name in figures]
    uss = [
        [
            name,
            *(
                f"{figures[f'uss.{name}.{what}.{whose}']:.3f}"
                for what in ("spearman", "uar")
                for whose in ("ours", "plain")
            ),
            f"{PUBLISHED[name]:.3f}",
        ]
        for name in CORPORA
        if f"uss.{name}.uar.ours" in figures
    ]
    parts = [
        f"# Satisfaction\n\nReplies held out, five parts: the first {figures['given']:.0f}, and all "
        f"{figures['replies']:.0f}.\n",
        markdown(["", "first", "all"], replies),
        f"What the feeling is on, rows true, columns read:\n\n{_confusion(lessons, read)}",
        f"Satisfaction, rows true, columns as read in fifths:\n\n{_levels(lessons, read)}",
    ]
    if shown:
        parts.append("Accuracy on public test sets:\n\n" + markdown(["", "accuracy"], shown))
    if uss:
        header = ["left out", "Spearman", "plain encoder", "recall of 5", "plain encoder", "best published"]
        parts.append("USS, a corpus left out in turn:\n\n" + markdown(header, uss))
    parts.append(
        f"{figures['replies_per_second']:,.0f} replies a second in batches, {figures['milliseconds_for_one']:.1f} ms "
        "for one.\n"
    )
    return "\n".join(parts)


def _confusion(lessons: list[Lesson], read: Readings) -> str:
    count = {(true, said): 0 for true in TARGETS for said in TARGETS}
    for lesson, said in zip(lessons, read.target, strict=True):
        if lesson.target is not None:
            count[lesson.target, said] += 1
    return markdown(["", *TARGETS], [[true, *(str(count[true, said]) for said in TARGETS)] for true in TARGETS])


def _levels(lessons: list[Lesson], read: Readings) -> str:
    levels = sorted({lesson.satisfaction for lesson in lessons if lesson.satisfaction is not None})
    fifth = np.minimum((5 * read.satisfaction).astype(int), 4)
    rows = [
        [
            f"{level:g}",
            *(
                str(sum(x.satisfaction == level and f == k for x, f in zip(lessons, fifth, strict=True)))
                for k in range(5)
            ),
        ]
        for level in levels
    ]
    return markdown(["", *(f"{k / 5:g}–{(k + 1) / 5:g}" for k in range(5))], rows)


def _picture() -> Picture:
    return Picture(
        title="Satisfaction of 0.5 or more, foretold and seen",
        x_label="tenth of the replies held out, by what was foretold",
        y_label="probability",
        x=range(1, STEPS + 1),
        lines=[Line("reliability.seen", "seen", "#007a5a"), Line("reliability.foretold", "foretold", "#57534e")],
        scale="linear",
    )
