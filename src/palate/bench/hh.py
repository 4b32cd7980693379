"""Two objectives, helpful and harmless: how soon a new person's is known, on real pairs of answers.

The pairs are those of Anthropic's HH-RLHF (Bai et al. 2022) as relabelled for VPL (Poddar et al. 2024), each judged by
one of two objectives. As in VPL's experiment nothing is simulated but who wants what: a person is an objective, and
what they say are pairs labelled by it. New people are asked and tested on prompts that nobody was fitted on. People of
one objective differ by the pairs they meet alone, so that intervals (95 %, over people) say how much that moves.
"""

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from palate.bench.compared import Compared, interval
from palate.bench.facets_page import PEER_NAMES
from palate.bench.peers import RANDOM_DRAWS, compare, random_questions
from palate.bench.report import Line, Picture, Result, markdown
from palate.bench.unseen import Unseen
from palate.encoders import load_encoder
from palate.errors import InputError
from palate.feedback import Comparison, Feedback
from palate.rewards import DEFAULT_STRATEGY, fit
from palate.rewards.features import Coordinates
from palate.rewards.fitting import Stage
from palate.rewards.indexing import Indexed
from palate.rewards.model import base_rewards

_OBJECTIVES = ("helpful", "harmless")
_ANSWERS = (0, 1, 2, 5, 10, 20)
_STRATEGIES = tuple(dict.fromkeys((DEFAULT_STRATEGY, "bald", "random")))


@dataclass(frozen=True)
class _Size:
    """How much is read, of each objective: pairs to fit on and new ones, people, and comparisons of each person."""

    pairs: int = 700
    new_pairs: int = 300
    people: int = 50
    comparisons: int = 40
    asked: int = 60
    tested: int = 60


_QUICK = _Size(pairs=150, new_pairs=100, people=15, comparisons=20, asked=30, tested=30)


@dataclass(frozen=True)
class Pair:
    """Two answers to a prompt, the first better by the objective."""

    prompt: str
    better: str
    worse: str


def read_pairs(folder: Path, objective: str) -> list[Pair]:
    """Read `OBJECTIVE.jsonl` or `OBJECTIVE.jsonl.gz`: prompt, responses (two), and label (the better one's place).

    Raises:
        InputError: the file is missing or is no such file.
    """
    path = next((p for p in (folder / f"{objective}.jsonl", folder / f"{objective}.jsonl.gz") if p.exists()), None)
    if path is None:
        raise InputError(f"There is no {objective}.jsonl or {objective}.jsonl.gz in {str(folder)!r}; name their folder")
    pairs = []
    try:
        lines = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()
        for line in lines.split("\n"):
            if line.strip():
                row = json.loads(line)
                better, worse = (row["responses"][place] for place in (row["label"], 1 - row["label"]))
                if better.strip() and worse.strip() and better != worse:
                    pairs.append(Pair(row["prompt"], better, worse))
    except (OSError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise InputError(
            f"{str(path)!r} is not a file of pairs with prompt, responses and label; give VPL's HH-RLHF"
        ) from error
    return pairs


def run(*, quick: bool, seed: int, data: Path | None = None, progress: Stage | None = None) -> Result:
    """Fit on people of both objectives, ask new ones on new prompts, and measure.

    Args:
        quick: fewer pairs and people.
        seed: of the pairs, the people, the fit, and everything drawn at random.
        data: the folder with `helpful.jsonl.gz` and `harmless.jsonl.gz`.
        progress: told of each stage.

    Returns:
        Figures, table and picture.

    Raises:
        InputError: `data` is missing, is not this data, or holds too little.
    """
    if data is None:
        raise InputError("HH-RLHF does not come with Palate; give --data the folder with its two files")
    told = progress or (lambda stage, done, total: None)
    rows = _people({name: read_pairs(data, name) for name in _OBJECTIVES}, _QUICK if quick else _Size(), seed)
    train_rows = [row for row in rows if row.split == "train"]
    train, new = Indexed.of(train_rows), Indexed.of([row for row in rows if row.split != "train"])
    encoder = load_encoder()
    raw, raw_new = (
        indexed.encode(encoder, progress=lambda done, total: told("Reading texts", done, total))
        for indexed in (train, new)
    )
    model = fit(Feedback(comparisons=train_rows), encoder, seed=seed, progress=progress)
    asked, tested = new.split == "adapt", new.split == "test"
    compared = Compared(np.arange(new.choices.n_users), seed)
    unseen = Unseen.of(new.choices, asked, tested)
    people = unseen.people(base_rewards(raw_new, model.offset, model.weights))
    figures: dict[str, float] = {
        "people": new.choices.n_users,
        "training_people": train.choices.n_users,
        "training_comparisons": len(train_rows),
        "answers": len(raw) + len(raw_new),
        "test_comparisons": int(tested.sum()),
    }
    figures |= compared.asked(people, model, _STRATEGIES, _ANSWERS, told)
    coordinates = Coordinates.fit(raw, encoder.blocks)
    curves = compare(
        (coordinates(raw), train.choices),
        (coordinates(raw_new), unseen),
        _ANSWERS,
        random_questions(unseen, _ANSWERS, seed),
        seed=seed,
        tuned=not quick,
        progress=told,
    )
    for peer, curve in curves.items():
        for t, auc in curve.auc.items():
            figures |= compared.add(f"{peer}.{t}", auc) | {f"accuracy.{peer}.{t}": curve.accuracy[t]}
            for name in _STRATEGIES:
                figures |= compared.difference(f"{name}_minus_{peer}.{t}", f"{name}.{t}", f"{peer}.{t}")
    return Result("hh", figures, _table(figures, list(curves)), _picture())


def _people(pairs: Mapping[str, Sequence[Pair]], size: _Size, seed: int) -> list[Comparison]:
    """Training and new people of each objective, on prompts of their own; a new person's on either side, too.

    Raises:
        InputError: there are fewer pairs of an objective than are read.
    """
    rng = np.random.default_rng(seed)
    rows: list[Comparison] = []
    for objective, own in pairs.items():
        alone = list({pair.prompt: pair for pair in own}.values())  # a prompt stands on one side
        if len(alone) < (needed := size.pairs + size.new_pairs):
            raise InputError(f"There are {len(alone)} {objective} pairs, {needed} are needed; give the whole file")
        order = rng.permutation(len(alone))[: size.pairs + size.new_pairs]
        fitted, new = order[: size.pairs], order[size.pairs :]
        for number in range(size.people):
            drawn = {"train": rng.choice(fitted, size.comparisons, replace=False)}
            rows += _said(f"{objective}-{number}", alone, drawn)
            mixed = rng.permutation(new)
            drawn = {"adapt": mixed[: size.asked], "test": mixed[size.asked : size.asked + size.tested]}
            rows += _said(f"{objective}-new-{number}", alone, drawn)
    return rows


def _said(user: str, pairs: Sequence[Pair], drawn: Mapping[str, np.ndarray]) -> list[Comparison]:
    return [
        Comparison.model_validate(
            {
                "user_id": user,
                "prompt": pairs[place].prompt,
                "chosen": pairs[place].better,
                "rejected": pairs[place].worse,
                "split": split,
            }
        )
        for split, places in drawn.items()
        for place in places.tolist()
    ]


def _table(figures: Mapping[str, float], peers: Sequence[str]) -> str:
    header = ["", *map(str, _ANSWERS)]

    def row(text: str, key: str) -> list[str]:
        return [text, *(interval(figures, f"{key}.{t}") for t in _ANSWERS)]

    auc = [row(f"asked by `{name}`", f"auc.{name}") for name in _STRATEGIES]
    auc += [row(PEER_NAMES[peer], f"auc.{peer}") for peer in peers]
    gain = [row(PEER_NAMES[peer], f"auc.{DEFAULT_STRATEGY}_minus_{peer}") for peer in peers]
    right = [row(f"`{name}`", f"accuracy.{name}") for name in _STRATEGIES]
    right += [row(PEER_NAMES[peer], f"accuracy.{peer}") for peer in peers]
    return (
        f"# HH-RLHF, helpful or harmless\n\n{figures['people']:.0f} new people, half of each objective, on prompts "
        f"that nobody was fitted on; fitted on {figures['training_comparisons']:,.0f} comparisons of "
        f"{figures['training_people']:.0f} people; {figures['answers']:,.0f} answers were read. In brackets 95 % "
        f"intervals over people; `random` is averaged over {RANDOM_DRAWS} draws.\n\n"
        f"AUC after so many answers:\n\n{markdown(header, auc)}\n"
        f"What `{DEFAULT_STRATEGY}` is ahead of each peer:\n\n{markdown(header, gain)}\n"
        f"Accuracy:\n\n{markdown(header, right)}"
    )


def _picture() -> Picture:
    # Colours of Okabe and Ito (2008), told apart by the colour-blind.
    return Picture(
        title="How soon it is known whether somebody wants helpful or harmless",
        x_label="answers given",
        y_label="AUC on unseen prompts, real pairs of answers; bands: 95 % over people",
        x=_ANSWERS,
        lines=[
            Line(f"auc.{DEFAULT_STRATEGY}", "asked what tells most", "#d55e00"),
            Line("auc.random", "asked at random", "#0072b2"),
            Line("auc.bradley_terry", "one reward for all", "#57534e"),
        ],
    )
