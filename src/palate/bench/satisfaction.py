"""How well the satisfaction scorer reads: GoEmotions, Sentiment140, USS, and replies held out; and how fast.

Public data is read from `--data`, a folder with `goemotions`, `sentiment140` and `uss`; what is not there is left out.
Replies are those that ship with Palate, each as a scorer read it that never saw it or its twin.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from palate.bench.report import Line, Matrix, Picture, Result, markdown
from palate.bench.uss import CORPORA, PUBLISHED, left_out, ridge
from palate.errors import InputError
from palate.rewards.fitting import Stage
from palate.satisfaction.augmentation import Augmentation
from palate.satisfaction.figures import emotion_figures, reliability, reply_figures
from palate.satisfaction.lessons import Lesson, read_goemotions
from palate.satisfaction.network import TARGETS, pooled, sequences
from palate.satisfaction.scorer import Readings, SatisfactionScorer
from palate.satisfaction.training import FOLDS, Recipe, base_network, folds

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
        seed: of the children.
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
    figures |= _augmented(scorer, [lessons[i] for i in known], seed, told)
    if data is not None:
        if not data.is_dir():
            raise InputError(f"{str(data)!r} is no folder; give the one with goemotions, sentiment140 and uss")
        figures |= _public(scorer, data, quick, told)
    return Result("satisfaction", figures, _table(figures), _picture(), _confusions(lessons, read))


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
    columns = (np.array([row[f"read_{name}"] for row in scorer.held_out]) for name in ("levels", "targets", "emotions"))
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


def _augmented(scorer: SatisfactionScorer, lessons: list[Lesson], seed: int, told: Stage) -> dict[str, float]:
    """What children are worth: ridge regression on the plain encoder's frozen features, with and without them.

    Frozen, because what is to be seen is what the texts add: training a network anew for each fold takes an hour.
    """
    told("Augmentation", 0, 1)
    augmentation = Augmentation(seed=seed)
    made = [augmentation.children(lesson.text) for lesson in lessons]
    parent = scorer.score([lesson.text for lesson in lessons]).satisfaction
    owner = np.repeat(np.arange(len(lessons)), [len(children) for children in made])
    texts = [child.text for children in made for child in children]
    keeps = np.abs(scorer.score(texts).satisfaction - parent[owner]) <= augmentation.distance
    network, tokenizer = base_network(Recipe())
    read = sequences(tokenizer, [*(lesson.text for lesson in lessons), *texts], [None] * (len(lessons) + len(texts)))
    x = pooled(network, read).double().numpy()
    x = np.column_stack([(x - x.mean(axis=0)) / (x.std(axis=0) + 1e-6), np.ones(len(x))])
    of = np.r_[np.arange(len(lessons)), owner]
    kept = np.r_[np.ones(len(lessons), np.bool_), keeps]
    level = np.array([lesson.satisfaction for lesson in lessons], np.float64)
    target = np.eye(len(TARGETS))[[TARGETS.index(lesson.target or "none") for lesson in lessons]]
    y, fold = np.column_stack([level, target])[of], folds(lessons, seed)
    figures = {"augmentation.made": float(len(texts)), "augmentation.kept": float(np.mean(keeps))}
    for name, rows in (("off", np.arange(len(of)) < len(lessons)), ("on", kept)):
        weight = rows / np.bincount(of, rows)[of]
        said = np.zeros((len(lessons), y.shape[1]))
        for part in range(FOLDS):
            seen = rows & (fold[of] != part)
            said[fold == part] = x[: len(lessons)][fold == part] @ ridge(x[seen], y[seen], weight[seen])
        figures |= {
            f"augmentation.spearman.{name}": float(spearmanr(level, said[:, 0]).statistic),
            f"augmentation.mae.{name}": float(np.mean(np.abs(level - said[:, 0].clip(0, 1)))),
            f"augmentation.target_accuracy.{name}": float(np.mean(said[:, 1:].argmax(1) == target.argmax(1))),
        }
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


def _table(figures: Mapping[str, float]) -> str:
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
    ]
    if shown:
        parts.append("Accuracy on public test sets:\n\n" + markdown(["", "accuracy"], shown))
    if uss:
        header = ["left out", "Spearman", "plain encoder", "recall of 5", "plain encoder", "best published"]
        parts.append("USS, a corpus left out in turn:\n\n" + markdown(header, uss))
    columns = ("spearman", "mae", "target_accuracy")
    augmented = [
        [text, *(f"{figures[f'augmentation.{name}.{key}']:.3f}" for name in columns)]
        for key, text in (("off", "the replies alone"), ("on", "with their children"))
    ]
    parts.append(
        "Augmentation, by ridge regression on the plain encoder's frozen features: "
        f"{figures['augmentation.made']:,.0f} children made, {figures['augmentation.kept']:.0%} kept.\n\n"
        + markdown(["", "Spearman", "mean absolute error", "target accuracy"], augmented)
    )
    parts.append(
        f"{figures['replies_per_second']:,.0f} replies a second in batches, {figures['milliseconds_for_one']:.1f} ms "
        "for one.\n"
    )
    return "\n".join(parts)


def _confusions(lessons: list[Lesson], read: Readings) -> dict[str, Matrix]:
    known = [i for i, lesson in enumerate(lessons) if lesson.satisfaction is not None and lesson.target is not None]
    true = np.array([TARGETS.index(str(lessons[i].target)) for i in known])
    said = read.targets[known].argmax(axis=1)
    levels = np.array([lessons[i].satisfaction for i in known], np.float64)
    fifth = np.minimum((5 * read.satisfaction[known]).astype(np.int64), 4)
    return {
        "targets": Matrix("What the feeling is on", TARGETS, TARGETS, _counts(true, said, 4)),
        "levels": Matrix(
            "Satisfaction, as read in fifths",
            ["0", "0.25", "0.5", "0.75", "1"],
            [f"{k / 5:g} to {(k + 1) / 5:g}" for k in range(5)],
            _counts(np.rint(4 * levels).astype(np.int64), fifth, 5),
        ),
    }


def _counts(true: np.ndarray, said: np.ndarray, size: int) -> list[list[int]]:
    found: list[list[int]] = np.bincount(size * true + said, minlength=size * size).reshape(size, size).tolist()
    return found


def _picture() -> Picture:
    return Picture(
        title="Satisfaction of 0.5 or more, foretold and seen",
        x_label="tenth of the replies held out, by what was foretold",
        y_label="probability",
        x=range(1, 11),
        lines=[Line("reliability.seen", "seen", "#007a5a"), Line("reliability.foretold", "foretold", "#57534e")],
        scale="linear",
    )
