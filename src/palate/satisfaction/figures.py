"""How well replies are read: figures over rows with known labels."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import spearmanr

from palate.satisfaction.lessons import Lesson
from palate.satisfaction.network import EMOTIONS
from palate.satisfaction.scorer import Readings


def reply_figures(lessons: Sequence[Lesson], read: Readings) -> dict[str, float]:
    """Of replies: rank correlation and mean absolute error of the satisfaction, and the rest.

    ``sarcasm`` is the balanced accuracy of the sign (0.5 or more) over the twins, one of which is sarcastic;
    ``foreign_confidence`` the mean confidence in other languages. What there are no rows for is left out.

    Args:
        lessons: n replies with their labels.
        read: of the same.
    """
    known = np.array([i for i, x in enumerate(lessons) if x.satisfaction is not None], np.int64)
    foreign = np.array([x.foreign for x in lessons], np.bool_)
    figures: dict[str, float] = {}
    if len(known):
        true = np.array([lessons[i].satisfaction for i in known], np.float64)
        said = read.satisfaction[known]
        right = [read.target[i] == lessons[i].target for i in known]
        figures |= {
            "mae": float(np.mean(np.abs(true - said))),
            "target_accuracy": float(np.mean(right)),
            "ece": ece(read.pleased[known], true >= 0.5),
            "confidence": float(np.mean(read.confidence[known])),
        }
        if np.ptp(true) and np.ptp(said):  # there is none of equal values
            figures = {"spearman": float(spearmanr(true, said).statistic)} | figures
    groups: dict[str, list[int]] = {}
    for i in known:
        groups.setdefault(lessons[i].group, []).append(int(i))
    twins = [i for group in groups.values() if any(lessons[i].kind == "sarcastic" for i in group[:2]) for i in group]
    twins = [i for i in twins if len(groups[lessons[i].group]) > 1]
    if twins:
        good = np.array([lessons[i].satisfaction for i in twins], np.float64) >= 0.5
        figures["sarcasm"] = balanced_accuracy(good, read.satisfaction[twins] >= 0.5)
    if foreign.any():
        figures["foreign_confidence"] = float(np.mean(read.confidence[foreign]))
    return figures


def emotion_figures(lessons: Sequence[Lesson], read: Readings) -> dict[str, float]:
    """Of comments with one label: accuracy among negative, neutral and positive, and among negative and positive."""
    names = [EMOTIONS.index(next(iter(x.emotions))) if x.emotions and len(x.emotions) == 1 else 0 for x in lessons]
    label = np.array(names, np.int64)  # 0 is ambiguous
    clear, sided = label > 0, (label == 1) | (label == 3)
    return {
        "accuracy": float(np.mean(read.emotions[clear, 1:].argmax(1) + 1 == label[clear])),
        "accuracy_pos_neg": float(np.mean((read.emotions[sided, 3] > read.emotions[sided, 1]) == (label[sided] == 3))),
    }


def balanced_accuracy(true: np.ndarray, said: np.ndarray) -> float:
    """Mean of the recalls of the two classes."""
    return float(np.mean([np.mean(said[true == value] == value) for value in (False, True) if np.any(true == value)]))


def ece(p: np.ndarray, happened: np.ndarray) -> float:
    """Expected calibration error of probabilities of an event, ten equal-mass bins."""
    return float(sum(size * abs(said - seen) for size, said, seen in reliability(p, happened)) / max(len(p), 1))


def reliability(p: np.ndarray, happened: np.ndarray, bins: int = 10) -> list[tuple[int, float, float]]:
    """Size, mean probability and share of events of each equal-mass bin."""
    order = np.argsort(p, kind="stable")
    return [
        (len(part), float(np.mean(p[part])), float(np.mean(happened[part])))
        for part in np.array_split(order, bins)
        if len(part)
    ]
