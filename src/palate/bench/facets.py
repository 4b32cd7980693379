"""How well new people are known after t answers, on the bundled Facets, and how well the peers know them.

Base rewards are fitted on the bundled people. Who is asked is of kinds, and about prompts, that none of them knows.
All methods see the same features and rows, and all that are asked at random the same questions; intervals are 95 %
bootstrap intervals over kinds of people.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from palate.bench.ablations import ablations
from palate.bench.compared import Compared
from palate.bench.facets_page import page, picture
from palate.bench.latency import cold_fit, seconds_per_answer, timed_fit
from palate.bench.peers import RANDOM_DRAWS, Curve, Observer, compare, ours_at_random, random_questions
from palate.bench.picks import Shelf
from palate.bench.report import Result
from palate.bench.unseen import Questions, Unseen, recorded_people, unseen_answers, unseen_people
from palate.data import load_people
from palate.encoders import Encoder, SentenceEncoder, load_encoder
from palate.feedback import Comparison, as_text
from palate.rewards import DEFAULT_STRATEGY, STRATEGIES, RewardModel
from palate.rewards.evaluation import learning_curve
from palate.rewards.features import Coordinates
from palate.rewards.fitting import Stage
from palate.rewards.indexing import Indexed
from palate.rewards.model import base_rewards
from palate.rewards.posterior import Floats, Ints

_ANSWERS, _QUICK_ANSWERS = (0, 1, 2, 5, 10, 20, 40), (0, 5, 10)
_QUICK_STRATEGIES = tuple(dict.fromkeys((DEFAULT_STRATEGY, "bald", "random")))
_PICKS_AFTER = (0, 5, 10, 20)
_HITS_AFTER = (0, 10)
_DRAWN = "thompson"  # the other strategy of chance, averaged over as many draws of the questions as `random`


def run(*, quick: bool, seed: int, data: Path | None = None, progress: Stage | None = None) -> Result:
    """Fit on the bundled people, ask new ones, and measure.

    Args:
        quick: fewer people, strategies and numbers of answers, peers as they come, no ablations, and no fit with an
            empty cache.
        seed: of the simulated people, the fits, and everything drawn at random.
        data: a feedback file, or a folder with `new_users.jsonl`, whose `adapt` and `test` rows are used instead of
            simulated people.
        progress: told of each stage.

    Returns:
        Figures, table and picture.

    Raises:
        InputError: `data` has nobody with both `adapt` and `test` rows.
        FeedbackError: `data` cannot be read.
    """
    told = progress or (lambda stage, done, total: None)
    answers = _QUICK_ANSWERS if quick else _ANSWERS
    strategies = _QUICK_STRATEGIES if quick else tuple(STRATEGIES)
    rows = unseen_people(seed, quick) if data is None else recorded_people(data, quick)
    new, train = Indexed.of(rows), Indexed.of(load_people())
    told("Reading texts", 0, 1)
    encoder = load_encoder()
    table = _Table(new, train, encoder)
    told("Learning base rewards", 0, 1)
    model, seconds = timed_fit(load_encoder, seed=seed)
    people = Unseen.of(new.choices, new.split == "adapt", new.split == "test")
    questions = random_questions(people, answers, seed)
    compared = Compared(new.choices.group, seed)
    picks = _Picks(rows, table.shelf) if data is None else None
    observe = picks.note if picks else None
    figures = _size(new)
    for number, name in enumerate(strategies):
        told("Asking new people", number, len(strategies))
        figures |= _ours(name, (model, table.phi(model)), people, questions, answers, compared, observe)
    # The default's calibration by its short name as well.
    figures |= {f"ece.{t}": figures[f"ece.{DEFAULT_STRATEGY}.{t}"] for t in answers}
    curves = compare(
        (table.z, train.choices),
        (table.z_new, people),
        answers,
        questions,
        seed=seed,
        tuned=not quick,
        progress=told,
        observe=observe,
    )
    figures |= _peers(curves, compared) | _differences(compared, strategies, curves, answers)
    if picks:
        figures |= picks.figures(compared)
    told("Timing", 0, 1)
    figures |= {"fit_seconds.warm": seconds} | seconds_per_answer(model, seed=seed)
    if not quick:
        assert isinstance(encoder, SentenceEncoder)  # the default is one
        last_layer = load_encoder(layers=(encoder.depth,))
        figures |= ablations(train, new, encoder, last_layer, seed=seed, progress=told)
        told("Fitting with an empty cache", 0, 1)
        figures |= cold_fit(seed=seed)
    return Result("facets", figures, page(figures, strategies, answers, curves), picture(answers))


class _Table:
    """Features of the answers: what people compared, and after them what else can be picked.

    `z` (n, K) of the training answers, `raw_new` and `z_new` of the new ones; `shelf` (560,) rows of `z_new` where the
    answers to unseen prompts stand.
    """

    def __init__(self, new: Indexed, train: Indexed, encoder: Encoder) -> None:
        compared = zip(map(as_text, new.prompts), map(as_text, new.completions), strict=True)
        row = {text: i for i, text in enumerate(compared)}
        texts = [(answer.prompt, answer.text) for answer in unseen_answers()]
        self.shelf = np.array([row.setdefault(text, len(row)) for text in texts])
        raw = train.encode(encoder)
        self.raw_new = encoder.encode(*zip(*row, strict=True))
        coordinates = Coordinates.fit(raw, encoder.blocks)
        self.z, self.z_new = coordinates(raw), coordinates(self.raw_new)

    def phi(self, model: RewardModel) -> Floats:
        """Base rewards of the new answers, (n', J)."""
        return base_rewards(self.raw_new, model.offset, model.weights)


class _Picks:
    """True utility of what every method picks for everybody, by method and number of answers, once a draw."""

    def __init__(self, people: Sequence[Comparison], columns: Ints) -> None:
        answers = unseen_answers()
        self.shelf, self.unspoilt = Shelf.of(answers, people), Shelf.of(answers, people, spoilt=False)
        self.columns = columns
        self.liked: dict[tuple[str, int], list[Floats]] = {}
        self.hits: dict[int, Floats] = {}

    def note(self, method: str, answers: int, rewards: Floats) -> None:
        """Told of (U, n) rewards of the whole table."""
        if answers in _PICKS_AFTER:
            self.liked.setdefault((method, answers), []).append(self.shelf.picked(rewards[:, self.columns]))
        if answers in _HITS_AFTER and method == DEFAULT_STRATEGY:
            best = self.unspoilt.picked(rewards[:, self.columns]) == self.unspoilt.best
            self.hits[answers] = self.unspoilt.mean(best)

    def figures(self, compared: Compared) -> dict[str, float]:
        """Shares of the possible gain, and wins over the population's pick; the default strategy's by short name."""
        popular = self.liked["bradley_terry", 0][0]
        figures = {f"pick_rate.{t}": float(np.mean(hits)) for t, hits in self.hits.items()}
        for (method, t), draws in self.liked.items():
            end = f"{t}" if method == DEFAULT_STRATEGY else f"{method}.{t}"
            share, most = self.shelf.gain_share(np.mean(draws, axis=0), popular)
            wins = np.mean([self.shelf.wins(picked, popular) for picked in draws], axis=0)
            figures |= compared.figures(f"gain_share.{end}", share, most)
            figures |= compared.figures(f"win_rate.{end}", wins)
        return figures


def _size(new: Indexed) -> dict[str, float]:
    return {
        "people": float(new.choices.n_users),
        "kinds": float(len(np.unique(new.choices.group))),
        "test_comparisons": float(np.sum(new.split == "test")),
    }


def _ours(
    name: str,
    fitted: tuple[RewardModel, Floats],
    people: Unseen,
    questions: Sequence[Questions],
    answers: Sequence[int],
    compared: Compared,
    observe: Observer | None,
) -> dict[str, float]:
    """Ask everybody by one strategy: figures over test rows; `observe` is told what each answer is worth to whom."""
    model, phi = fitted
    if name == "random":
        measured = ours_at_random(phi, people, model.prior, model.lapse, answers, questions)
    else:
        asked = people.people(phi)
        curves = [
            learning_curve(asked, model.prior, model.lapse, answers, name, seed=compared.seed + 1_000 * draw)
            for draw in range(RANDOM_DRAWS if name == _DRAWN else 1)
        ]
        measured = {t: [curve[t] for curve in curves] for t in answers}
    figures: dict[str, float] = {}
    for t, draws in measured.items():
        figures |= compared.add(f"{name}.{t}", np.mean([draw.auc for draw in draws], axis=0))
        for key in ("accuracy", "log_loss", "ece"):
            figures[f"{key}.{name}.{t}"] = float(np.mean([getattr(draw, key) for draw in draws]))
        for draw in draws:
            if observe and draw.belief is not None:
                observe(name, t, draw.belief.mean @ phi.T)
    return figures


def _peers(curves: Mapping[str, Curve], compared: Compared) -> dict[str, float]:
    """Figures of every peer, its chosen hyperparameters among them."""
    figures: dict[str, float] = {}
    for name, curve in curves.items():
        for t, auc in curve.auc.items():
            figures |= compared.add(f"{name}.{t}", auc) | {f"accuracy.{name}.{t}": curve.accuracy[t]}
        if name == curve.setting.name:
            figures |= {f"setting.{name}.{key}": float(value) for key, value in vars(curve.setting).items()}
            if curve.held_out is not None:
                figures[f"held_out_auc.{name}"] = curve.held_out
    # No answer changes it.
    return figures | compared.add("bradley_terry", compared.auc["bradley_terry.0"])


def _differences(
    compared: Compared, strategies: Sequence[str], peers: Iterable[str], answers: Sequence[int]
) -> dict[str, float]:
    """Paired by person: strategies against random, and the default and random against every peer."""
    figures: dict[str, float] = {}
    others = [name for name in strategies if name != "random"]
    for t in answers:
        for peer in peers:
            for ours in (DEFAULT_STRATEGY, "random"):
                figures |= compared.difference(f"{ours}_minus_{peer}.{t}", f"{ours}.{t}", f"{peer}.{t}")
        if t > 0:  # before, nothing was asked
            for name in others:
                figures |= compared.difference(f"{name}_minus_random.{t}", f"{name}.{t}", f"random.{t}")
            best = max(others, key=lambda name: float(np.nanmean(compared.auc[f"{name}.{t}"])))
            figures |= compared.difference(f"best_minus_random.{t}", f"{best}.{t}", f"random.{t}")
    return figures
