"""User Satisfaction Simulation (Sun et al. 2021): does what we learned carry over to other people's dialogues?

Each user turn of MultiWOZ, CCPE and ReDial was rated for satisfaction, 1 to 5, by three or four annotators. One corpus
is left out in turn: a linear readout of frozen features of the turn, read with the turns before it, is fitted on the
other two, once on the scorer's network and once on the plain encoder it started from.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from palate.errors import InputError
from palate.rewards.fitting import Stage
from palate.rewards.posterior import Floats, Ints
from palate.satisfaction.network import pooled, sequences
from palate.satisfaction.scorer import SatisfactionScorer
from palate.satisfaction.training import Recipe, base_network

CORPORA = {"MultiWOZ": "MWOZ.txt", "ReDial": "ReDial.txt", "CCPE": "CCPE.txt"}
PUBLISHED = {"MultiWOZ": 0.256, "ReDial": 0.261, "CCPE": 0.237}
"""Best published unweighted average recall over the five classes, within each corpus."""
_TURNS, _QUICK = 2_500, 300
"""The first turns of each corpus that are read, all and quick: enough for the second decimal."""
_RIDGE = 300.0


@dataclass(frozen=True)
class Turns:
    """User turns of a corpus.

    Args:
        texts: n turns.
        contexts: n pairs of the user's turn before and what the system said to that.
        rating: (n,) mean over annotators, 1 to 5.
        label: (n,) the rating that most gave, 0 to 4; the lower one of two.
    """

    texts: list[str]
    contexts: list[tuple[str, str] | None]
    rating: Floats
    label: Ints


def read_turns(path: Path) -> Turns:
    """The rated user turns of one of the corpora's files.

    Raises:
        InputError: the file is missing, or holds no rated turn.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"USS cannot be read: {error}; give the folder with {', '.join(CORPORA.values())}") from error
    texts, contexts, ratings, labels = [], [], [], []
    before: list[tuple[str, str]] = []
    for line in lines:
        speaker, _, rest = line.partition("\t")
        if not rest:
            before = []
            continue
        text, *more = rest.split("\t")
        given = [int(r) for r in more[-1].split(",") if r.strip().isdigit()] if more else []
        if speaker == "USER" and text != "OVERALL" and given and text.strip():
            user = next((said for who, said in reversed(before) if who == "USER"), "")
            system = before[-1][1] if before and before[-1][0] == "SYSTEM" else ""
            texts.append(text)
            contexts.append((user, system) if system else None)
            ratings.append(float(np.mean(given)))
            labels.append(int(np.bincount(given, minlength=6)[1:6].argmax()))
        before.append((speaker, text))
    if not texts:
        raise InputError(f"{path.name} holds no rated user turn; give the files of User Satisfaction Simulation")
    return Turns(texts, contexts, np.array(ratings), np.array(labels, np.int64))


def left_out(folder: Path, scorer: SatisfactionScorer, *, quick: bool, told: Stage) -> dict[str, float]:
    """Spearman with the mean rating and unweighted average recall on each corpus, from the two others.

    Args:
        folder: with the files of `CORPORA`.
        scorer: ours.
        quick: only some hundred turns of each.
        told: told of each corpus read.

    Returns:
        Figures called ``{corpus}.{spearman|uar}.{ours|plain}``.
    """
    turns = {name: read_turns(folder / file) for name, file in CORPORA.items()}
    plain, tokenizer = base_network(Recipe())
    features: dict[tuple[str, str], Floats] = {}
    for number, (name, corpus) in enumerate(turns.items()):
        told("Reading dialogues", number, len(turns))
        rows = slice(0, _QUICK if quick else _TURNS)
        for whose, network in (("ours", scorer.network), ("plain", plain.eval())):
            read = sequences(tokenizer, corpus.texts[rows], corpus.contexts[rows])
            features[name, whose] = pooled(network, read).double().numpy()
    figures: dict[str, float] = {}
    for name in turns:
        for whose in ("ours", "plain"):
            figures |= _one_left_out(name, whose, turns, features)
    return figures


def _one_left_out(
    name: str, whose: str, turns: Mapping[str, Turns], features: Mapping[tuple[str, str], Floats]
) -> dict[str, float]:
    others = [other for other in turns if other != name]
    x = np.concatenate([features[other, whose] for other in others])
    mean, deviation = x.mean(axis=0), x.std(axis=0) + 1e-6
    count = {other: len(features[other, whose]) for other in turns}
    rating = np.concatenate([turns[other].rating[: count[other]] for other in others])
    label = np.concatenate([turns[other].label[: count[other]] for other in others])
    x = np.column_stack([(x - mean) / deviation, np.ones(len(x))])
    new = np.column_stack([(features[name, whose] - mean) / deviation, np.ones(count[name])])
    own = turns[name]
    foretold = new @ ridge(x, rating[:, None], np.ones(len(x)))[:, 0]
    # Every class weighs alike: most turns are rated 3, and that alone would recall one class of five.
    weight = 1 / np.maximum(np.bincount(label, minlength=5), 1)[label]
    scores = new @ ridge(x, np.eye(5)[label], weight * len(x) / 5)
    true, said = own.label[: count[name]], scores.argmax(axis=1)
    recalls = [np.mean(said[true == c] == c) for c in range(5) if np.any(true == c)]
    return {
        f"{name}.spearman.{whose}": float(spearmanr(own.rating[: count[name]], foretold).statistic),
        f"{name}.uar.{whose}": float(np.mean(recalls)),
    }


def ridge(x: Floats, y: Floats, weight: Floats) -> Floats:
    """Weighted least squares with an L2 penalty on all but the last coefficient: (D, C) for (N, D) and (N, C)."""
    penalty = np.full(x.shape[1], _RIDGE)
    penalty[-1] = 0.0
    weighted = x * weight[:, None]
    return np.asarray(np.linalg.solve(weighted.T @ x + np.diag(penalty), weighted.T @ y), np.float64)
