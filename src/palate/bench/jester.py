"""Real people: how well somebody new is known after t answers, on Jester's ratings of 100 jokes.

Jester (Goldberg, Roeder, Gupta and Perkins 2001, *Eigentaste*) holds real people's ratings, −10 to 10. Base rewards
are fitted on three quarters of the people. The jokes that one of the others rated are split in half: answers come from
the one half, and the AUC is over pairs of the other that differ by a point or more. An answer is a choice between two
jokes that differ by a point or more, or a rating. All methods see the same people, halves and rows; intervals are 95 %
bootstrap intervals over people. Ratings are held against a Gaussian over the jokes, which knows no text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from palate.bench.compared import Compared, interval
from palate.bench.gaussian import expected_ratings, fit_gaussian
from palate.bench.peers import RANDOM_DRAWS, held_out, tune
from palate.bench.report import Line, Picture, Result, markdown
from palate.encoders import load_encoder
from palate.errors import InputError, MissingExtraError
from palate.feedback import Comparison, Feedback, Rating
from palate.rewards import DEFAULT_STRATEGY, RewardModel, fit
from palate.rewards.baselines import Answers, BradleyTerry
from palate.rewards.evaluation import NewPeople, auc_by_user
from palate.rewards.factorization import Choices
from palate.rewards.features import Coordinates
from palate.rewards.fitting import Stage
from palate.rewards.posterior import Floats, Ints, Observations, laplace_posterior

_ANSWERS, _QUICK_ANSWERS = (0, 1, 2, 5, 10, 20, 40), (0, 5, 10, 20)
_STRATEGIES = tuple(dict.fromkeys((DEFAULT_STRATEGY, "bald", "random")))
_QUICK_STRATEGIES = tuple(dict.fromkeys((DEFAULT_STRATEGY, "random")))
_QUICK_PEOPLE = 800
_PROMPT = "Tell me a joke."
_GAP = 1.0  # points; smaller differences say nothing of which joke is liked more
_CHOICES = 40  # of each person whose choices are fitted on
_POOL = 200  # pairs that a new person may be asked about
_MIN_JOKES = 4  # two to answer from, two to test on


@dataclass(frozen=True)
class Jokes:
    """What people think of jokes.

    Args:
        texts: M jokes.
        ratings: (U, M) −10 to 10, NaN where somebody did not rate a joke.
    """

    texts: list[str]
    ratings: Floats


def read_jokes(folder: Path) -> Jokes:
    """Read `jokes.parquet` (joke_id, text) and `ratings.parquet` (user_id, joke_id, rating).

    Raises:
        InputError: a file is missing or has other columns, a rating is not in −10 to 10 or of no joke, or fewer
            than 8 people rated 4 jokes or more.
        MissingExtraError: pyarrow is not installed.
    """
    jokes = _columns(folder / "jokes.parquet", ("joke_id", "text"))
    said = _columns(folder / "ratings.parquet", ("user_id", "joke_id", "rating"))
    number = {joke: i for i, joke in enumerate(jokes["joke_id"].tolist())}
    _, user = np.unique(said["user_id"], return_inverse=True)
    rating = said["rating"].astype(np.float64)
    if unknown := set(said["joke_id"].tolist()) - set(number):
        raise InputError(
            f"ratings.parquet rates joke {min(unknown)!r}, which jokes.parquet has not; give both of one set"
        )
    if wrong := rating[~(np.abs(rating) <= 10)].tolist():
        raise InputError(f"Rating {wrong[0]!r} is not in -10 to 10; leave such rows out")
    ratings = np.full((int(user.max(initial=-1)) + 1, len(number)), np.nan)
    ratings[user, [number[joke] for joke in said["joke_id"].tolist()]] = rating
    ratings = ratings[np.sum(~np.isnan(ratings), axis=1) >= _MIN_JOKES]
    if len(ratings) < 8:
        raise InputError(f"{len(ratings)} people rated {_MIN_JOKES} jokes or more, at least 8 are needed; give more")
    known = ~np.isnan(ratings).all(axis=0)
    return Jokes([text for text, kept in zip(jokes["text"].tolist(), known, strict=True) if kept], ratings[:, known])


def _columns(path: Path, names: Sequence[str]) -> dict[str, NDArray[np.generic]]:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import read_table
    except ModuleNotFoundError as error:
        raise MissingExtraError("pyarrow", "datasets") from error
    try:
        table = read_table(path)
    except (OSError, ArrowInvalid) as error:
        raise InputError(f"Cannot read {str(path)!r}; give --data the folder with Jester's Parquet files") from error
    if missing := [name for name in names if name not in table.column_names]:
        raise InputError(f"{str(path)!r} has no column {missing[0]!r}; it needs {', '.join(names)}")
    return {name: table[name].to_numpy() for name in names}


def run(*, quick: bool, seed: int, data: Path | None = None, progress: Stage | None = None) -> Result:
    """Fit on three quarters of the people, ask the others, and measure.

    Args:
        quick: 800 people, and fewer strategies and numbers of answers.
        seed: of the splits, the fits, and everything drawn at random.
        data: the folder with `jokes.parquet` and `ratings.parquet`.
        progress: told of each stage.

    Returns:
        Figures, table and picture.

    Raises:
        InputError: `data` is missing or is not Jester.
    """
    if data is None:
        raise InputError("Jester does not come with Palate; give --data the folder with its Parquet files")
    told = progress or (lambda stage, done, total: None)
    jokes, rng = read_jokes(data), np.random.default_rng(seed)
    drawn = rng.permutation(len(jokes.ratings))[: _QUICK_PEOPLE if quick else None]
    train, new = np.split(jokes.ratings[drawn], [3 * len(drawn) // 4])
    halves, chosen = _Halves.of(new, rng), _pairs(train, rng, _CHOICES)
    compared, answers = Compared(np.arange(len(new)), seed), _QUICK_ANSWERS if quick else _ANSWERS
    strategies = _QUICK_STRATEGIES if quick else _STRATEGIES
    encoder = load_encoder()
    comparisons = Feedback(comparisons=_comparisons(jokes.texts, chosen))
    ratings = Feedback(ratings=_ratings(jokes.texts, train)[1])
    models = {
        "choices": fit(comparisons, encoder, seed=seed, progress=told),
        "ratings": fit(ratings, encoder, seed=seed, progress=told),
    }
    figures: dict[str, float] = {"people": len(new), "training_people": len(train), "test_pairs": len(halves.test.user)}
    for source, model in models.items():
        people = halves.people(model.phi([_PROMPT] * len(jokes.texts), jokes.texts))
        figures |= compared.asked(people, model, strategies, answers, told, prefix=f"{source}.")
    told("Fitting one reward for all", 0, 1)
    raw = encoder.encode([_PROMPT] * len(jokes.texts), jokes.texts)
    z = Coordinates.fit(raw, encoder.blocks)(raw)
    one = _one_reward_for_all(z, chosen, halves, seed)
    for t in answers:
        figures |= compared.add(f"bradley_terry.{t}", one)
    told("Asking for ratings", 0, 1)
    figures |= _rated(models["ratings"], jokes.texts, train, halves, answers, compared)
    figures |= _differences(compared, strategies, answers)
    return Result("jester", figures, _table(figures, strategies, answers), _picture(answers))


@dataclass(frozen=True)
class _Pairs:
    """Pairs of jokes of which a person likes one better: (N,) person, ascending, and the two jokes."""

    user: Ints
    better: Ints
    worse: Ints


def _pairs(ratings: Floats, rng: np.random.Generator, at_most: int | None = None) -> _Pairs:
    """All pairs that differ by a point or more, or so many of each person's drawn at random."""
    one, other = np.triu_indices(ratings.shape[1], 1)
    gap = ratings[:, one] - ratings[:, other]
    user, pair = np.nonzero(np.abs(gap) >= _GAP)
    up = gap[user, pair] > 0
    pairs = _Pairs(user, np.where(up, one[pair], other[pair]), np.where(up, other[pair], one[pair]))
    if at_most is None:
        return pairs
    order = np.lexsort((rng.random(len(user)), user))
    kept = order[np.arange(len(user)) - np.searchsorted(user, user) < at_most]
    return _Pairs(user[kept], pairs.better[kept], pairs.worse[kept])


@dataclass(frozen=True)
class _Halves:
    """New people's ratings, half to answer from, half to test on.

    Args:
        ratings: (U, M).
        place: (U, M) place of each joke in the person's random order; from half of their number on it is tested on.
        asked: pairs of jokes of the first halves, at most so many of each person.
        test: all pairs of the second halves.
    """

    ratings: Floats
    place: Ints
    asked: _Pairs
    test: _Pairs

    @classmethod
    def of(cls, ratings: Floats, rng: np.random.Generator) -> "_Halves":
        rated = ~np.isnan(ratings)
        place = np.argsort(np.argsort(np.where(rated, rng.random(ratings.shape), 2.0), axis=1), axis=1)
        first = place < rated.sum(axis=1, keepdims=True) // 2
        asked, test = (np.where(rated & half, ratings, np.nan) for half in (first, ~first))
        return cls(asked, place, _pairs(asked, rng, _POOL), _pairs(test, rng))

    def answered(self, t: int) -> Floats:
        """(U, M) the first t ratings of each person, NaN elsewhere."""
        return np.where(self.place < t, self.ratings, np.nan)

    def auc(self, score: Floats) -> Floats:
        """(U,) AUC on the test pairs of (U, M) or (M,) scores of the jokes."""
        score, test = np.broadcast_to(score, self.ratings.shape), self.test
        gain = score[test.user, test.better] - score[test.user, test.worse]
        return auc_by_user(gain, test.user, len(self.ratings))

    def people(self, phi: Floats) -> NewPeople:
        """Who may be asked for choices, in (M, J) base rewards of the jokes."""
        asked, test, count = self.asked, self.test, len(self.ratings)
        return NewPeople(
            asked=Observations.of(phi[asked.better] - phi[asked.worse], asked.user, count),
            prompt=np.zeros(len(asked.user), np.int64),
            test=phi[test.better] - phi[test.worse],
            test_user=test.user,
        )


def _comparisons(texts: Sequence[str], pairs: _Pairs) -> list[Comparison]:
    return [
        Comparison(user_id=str(user), prompt=_PROMPT, chosen=texts[better], rejected=texts[worse])
        for user, better, worse in zip(pairs.user.tolist(), pairs.better.tolist(), pairs.worse.tolist(), strict=True)
    ]


def _ratings(texts: Sequence[str], ratings: Floats) -> tuple[Ints, list[Rating]]:
    """Whose each rating is, and the records."""
    user, joke = np.nonzero(~np.isnan(ratings))
    scores = (ratings[user, joke] + 10) / 20
    return user, [
        Rating(user_id=str(u), prompt=_PROMPT, completion=texts[m], score=score)
        for u, m, score in zip(user.tolist(), joke.tolist(), scores.tolist(), strict=True)
    ]


def _one_reward_for_all(z: Floats, chosen: _Pairs, halves: _Halves, seed: int) -> Floats:
    """(U,) AUC of Bradley–Terry on the same choices and features, its penalty tuned on training people."""
    count = int(chosen.user.max()) + 1
    nothing = np.zeros(len(chosen.user), np.int64)
    choices = Choices(chosen.better, chosen.worse, chosen.user, np.ones(len(nothing)), nothing, np.arange(count))
    fitted = tune(BradleyTerry, z, held_out(choices, seed), seed)[0].fit(z, choices, seed)
    nobody = Answers(*np.zeros((2, 1, 0), np.int64), *np.zeros((2, 1, 0)))
    return halves.auc(fitted.rewards(z, nobody)[0])


def _rated(
    model: RewardModel,
    texts: Sequence[str],
    train: Floats,
    halves: _Halves,
    answers: Sequence[int],
    compared: Compared,
) -> dict[str, float]:
    """New people asked for ratings of random jokes: the model fitted on ratings, and the Gaussian over the jokes."""
    phi = model.phi([_PROMPT] * len(texts), texts)
    mean, cov = fit_gaussian(train)
    figures: dict[str, float] = {}
    for t in answers:
        said = halves.answered(t)
        user, records = _ratings(texts, said)
        rows = model.observations(records, user, len(said))
        belief = laplace_posterior(rows, model.prior_with_generosity, model.lapse)
        figures |= compared.add(f"ratings.rated.{t}", halves.auc(belief.mean[:, :-1] @ phi.T))
        figures |= compared.add(f"gaussian.{t}", halves.auc(expected_ratings(said, mean, cov)))
    return figures


def _differences(compared: Compared, strategies: Sequence[str], answers: Sequence[int]) -> dict[str, float]:
    """Paired by person."""
    figures: dict[str, float] = {}
    for t in answers:
        for source in ("choices", "ratings"):
            for name in strategies:
                method = f"{source}.{name}"
                figures |= compared.difference(
                    f"{method}_minus_bradley_terry.{t}", f"{method}.{t}", f"bradley_terry.{t}"
                )
        figures |= compared.difference(f"ratings.rated_minus_gaussian.{t}", f"ratings.rated.{t}", f"gaussian.{t}")
    return figures


def _table(figures: Mapping[str, float], strategies: Sequence[str], answers: Sequence[int]) -> str:
    def row(text: str, key: str) -> list[str]:
        return [text, *(interval(figures, f"auc.{key}.{t}") for t in answers)]

    header = ["", *map(str, answers)]
    auc, gain = [], []
    for source in ("choices", "ratings"):
        for name in strategies:
            text = f"fitted on {source}, choices asked by `{name}`"
            auc.append(row(text, f"{source}.{name}"))
            gain.append(row(text, f"{source}.{name}_minus_bradley_terry"))
    auc.append(row("one reward for all", "bradley_terry"))
    rated = [
        row("fitted on ratings, asked for ratings", "ratings.rated"),
        row("a Gaussian over the jokes", "gaussian"),
        row("less the Gaussian", "ratings.rated_minus_gaussian"),
    ]
    return (
        f"# Jester\n\nReal people: fitted on {figures['training_people']:,.0f}, measured on {figures['people']:,.0f} "
        "others. Half of the jokes that a person rated are asked about, the AUC is over the pairs of the other half "
        f"that differ by a point or more ({figures['test_pairs']:,.0f} pairs); in brackets 95 % intervals over people. "
        f"`random` is averaged over {RANDOM_DRAWS} draws. A fit on choices reads {_CHOICES} pairs of each person.\n\n"
        f"AUC after so many choices:\n\n{markdown(header, auc)}\n"
        f"What that is ahead of one reward for all:\n\n{markdown(header, gain)}\n"
        f"AUC after so many ratings of jokes drawn at random:\n\n{markdown(header, rated)}"
    )


def _picture(answers: Sequence[int]) -> Picture:
    # Colours of Okabe and Ito (2008), told apart by the colour-blind.
    return Picture(
        title="How well a new person's taste in jokes is known",
        x_label="answers given",
        y_label="AUC on jokes not asked about, real people; bands: 95 % over people",
        x=answers,
        lines=[
            Line("auc.ratings.rated", "ratings at random", "#007a5a"),
            Line(f"auc.ratings.{DEFAULT_STRATEGY}", "choices that tell most", "#d55e00"),
            Line("auc.ratings.random", "choices at random", "#0072b2"),
            Line(f"auc.choices.{DEFAULT_STRATEGY}", "the same, fitted on choices", "#e69f00"),
            Line("auc.gaussian", "ratings, a Gaussian", "#cc79a7"),
            Line("auc.bradley_terry", "one reward for all", "#57534e"),
        ],
    )
