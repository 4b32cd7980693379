"""How well new people are known after t answers, on the bundled Facets, against one reward for all and a model each.

Base rewards are fitted on the bundled people. Who is asked is of kinds, and about prompts, that none of them knows.
All methods see the same features and rows; intervals are 95 % bootstrap intervals over kinds of people.
"""

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from palate.bench.against import RANDOM_DRAWS, model_per_person, one_reward_for_all
from palate.bench.compared import Compared, interval
from palate.bench.interview import interview
from palate.bench.latency import cold_fit, seconds_per_answer, timed_fit
from palate.bench.people import Person, parse_kind
from palate.bench.report import Line, Picture, Result, markdown
from palate.bench.unseen import new_people, recorded_people, unseen_answers, unseen_people
from palate.data import load_people
from palate.encoders import load_encoder
from palate.feedback import Comparison
from palate.rewards import DEFAULT_STRATEGY, STRATEGIES, RewardModel
from palate.rewards.evaluation import NewPeople
from palate.rewards.features import Coordinates
from palate.rewards.fitting import Stage
from palate.rewards.indexing import Indexed
from palate.rewards.model import base_rewards
from palate.rewards.posterior import Floats

_ANSWERS, _QUICK_ANSWERS = (0, 1, 2, 5, 10, 20, 40), (0, 5, 10)
_QUICK_STRATEGIES = tuple(dict.fromkeys((DEFAULT_STRATEGY, "bald", "random")))
_PICKS_AFTER = 10


def run(*, quick: bool, seed: int, data: Path | None = None, progress: Stage | None = None) -> Result:
    """Fit on the bundled people, ask new ones, and measure.

    Args:
        quick: fewer people, strategies and numbers of answers, and no fit with an empty cache.
        seed: of the simulated people, the fit, and everything drawn at random.
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
    raw, raw_new = train.encode(encoder), new.encode(encoder)
    told("Learning base rewards", 0, 1)
    model, seconds = timed_fit(load_encoder, seed=seed)
    compared = Compared(new.choices.group, seed)
    people = _people(new, base_rewards(raw_new, model.offset, model.weights))
    figures = _size(new) | compared.asked(people, model, strategies, answers, told)
    # The default's calibration by its short name as well.
    figures |= {f"ece.{t}": figures[f"ece.{DEFAULT_STRATEGY}.{t}"] for t in answers}
    told("Fitting baselines", 0, 1)
    coordinates = Coordinates.fit(raw, encoder.blocks)
    z, in_z = coordinates(raw), _people(new, coordinates(raw_new))
    figures |= _baselines(z, train, in_z, model.lapse, answers, compared)
    figures |= _differences(compared, strategies, answers)
    if data is None:
        told("Picking answers", 0, 1)
        figures |= _pick_rates(model, rows, people)
    told("Timing", 0, 1)
    figures |= {"fit_seconds.warm": seconds} | seconds_per_answer(model, seed=seed)
    if not quick:
        told("Fitting with an empty cache", 0, 1)
        figures |= cold_fit(seed=seed)
    return Result("facets", figures, _table(figures, strategies, answers), _picture(answers))


def _people(new: Indexed, z: Floats) -> NewPeople:
    return new_people(z, new.choices, new.split == "adapt", new.split == "test")


def _size(new: Indexed) -> dict[str, float]:
    return {
        "people": float(new.choices.n_users),
        "kinds": float(len(np.unique(new.choices.group))),
        "test_comparisons": float(np.sum(new.split == "test")),
    }


def _baselines(
    z: Floats, train: Indexed, people: NewPeople, lapse: float, answers: Sequence[int], compared: Compared
) -> dict[str, float]:
    one, penalty = one_reward_for_all(z, train.choices, people, lapse, compared.seed)
    each, precision = model_per_person(z, train.choices, people, lapse, answers, compared.seed)
    figures = compared.add("bradley_terry", one.auc) | {
        "accuracy.bradley_terry": one.accuracy,
        "log_loss.bradley_terry": one.log_loss,
        "ece.bradley_terry": one.ece,
        "bradley_terry.penalty": penalty,
        "per_user.precision": precision,
    }
    for t, auc in each.items():
        figures |= compared.add(f"per_user.{t}", auc)
    return figures


def _differences(compared: Compared, strategies: Sequence[str], answers: Sequence[int]) -> dict[str, float]:
    """Paired by person: each strategy and the best one against random and against the baselines."""
    figures: dict[str, float] = {}
    others = [name for name in strategies if name != "random"]
    for t in answers:
        for name in others:
            figures |= compared.difference(f"{name}_minus_bradley_terry.{t}", f"{name}.{t}", "bradley_terry")
            if t > 0:  # before, nothing was asked
                figures |= compared.difference(f"{name}_minus_random.{t}", f"{name}.{t}", f"random.{t}")
            if f"per_user.{t}" in compared.auc:
                figures |= compared.difference(f"{name}_minus_per_user.{t}", f"{name}.{t}", f"per_user.{t}")
        if t > 0:
            best = max(others, key=lambda name: float(np.nanmean(compared.auc[f"{name}.{t}"])))
            figures |= compared.difference(f"best_minus_random.{t}", f"{best}.{t}", f"random.{t}")
    return figures


def _pick_rates(model: RewardModel, rows: Sequence[Comparison], people: NewPeople) -> dict[str, float]:
    """How often the first in rank of a prompt's unspoilt answers is one that the person likes best.

    Prompts are those of the person's test rows: what they were asked about is left out.
    """
    answers = [answer for answer in unseen_answers() if answer.spoilt is None]
    phi = model.phi([a.prompt for a in answers], [a.text for a in answers])
    of_prompt: dict[str, list[int]] = {}
    for i, answer in enumerate(answers):
        of_prompt.setdefault(answer.prompt, []).append(i)
    tested: dict[str, set[str]] = {}
    kind_of: dict[str, str] = {}
    for row in rows:
        kind_of[row.user_id] = row.kind or ""
        if row.split == "test":
            tested.setdefault(row.user_id, set()).add(str(row.prompt))
    hits: dict[int, list[bool]] = {0: [], _PICKS_AFTER: []}
    for number, (user, kind) in enumerate(kind_of.items()):
        liking = Person(parse_kind(kind)).reward(answers)
        for t, mean in _means(model, people, number).items():
            reward = phi @ mean
            for prompt in tested[user]:
                these = np.array(of_prompt[prompt])
                first = these[np.argmax(reward[these])]
                hits[t].append(bool(liking[first] == liking[these].max()))
    return {f"pick_rate.{t}": float(np.mean(hit)) for t, hit in hits.items()}


def _means(model: RewardModel, people: NewPeople, user: int) -> dict[int, Floats]:
    """Posterior mean of a person's weights before any answer, and after some."""
    own: NDArray[np.bool_] = people.asked.user == user
    asked = interview(model.prior, model.lapse, people.asked.v[own], people.prompt[own], people.asked.label[own])
    beliefs = [belief for belief, _ in islice(asked, _PICKS_AFTER + 1)]
    return {0: beliefs[0].mean, _PICKS_AFTER: beliefs[-1].mean}


def _table(figures: Mapping[str, float], strategies: Sequence[str], answers: Sequence[int]) -> str:
    def cells(key: str) -> list[str]:
        return [interval(figures, name) if (name := f"{key}.{t}") in figures else "" for t in answers]

    header = ["", *map(str, answers)]
    auc = [[f"asked by `{name}`", *cells(f"auc.{name}")] for name in strategies]
    auc.append(["a model per person", *cells("auc.per_user")])
    auc.append(["one reward for all", *[interval(figures, "auc.bradley_terry")] * len(answers)])
    gain = [
        [f"`{name}` less `random`", *cells(f"auc.{name}_minus_random")[1:]] for name in strategies if name != "random"
    ]
    more = [[name, *cells(f"{key}.{DEFAULT_STRATEGY}")] for key, name in _CALIBRATION.items()]
    single = [[text, f"{figures[key]:.3g}"] for key, text in _SINGLE.items() if key in figures]
    return (
        f"# Facets\n\n{figures['people']:.0f} people of {figures['kinds']:.0f} kinds, unknown to the fit like the "
        "prompts that they are asked about; in brackets 95 % intervals over kinds. What is asked at random "
        f"(`random`, `thompson`, a model per person) is averaged over {RANDOM_DRAWS} draws of the questions.\n\n"
        f"AUC on what they were not asked, after so many answers:\n\n{markdown(header, auc)}\n"
        f"What choosing the questions gains:\n\n{markdown([header[0], *header[2:]], gain)}\n"
        f"With `{DEFAULT_STRATEGY}`, the default:\n\n{markdown(header, more)}\n{markdown(['', 'figure'], single)}"
    )


_CALIBRATION = {"accuracy": "accuracy", "log_loss": "log loss (nats)", "ece": "calibration error"}
_SINGLE = {
    "pick_rate.0": "the best of 12 answers is picked, before any answer",
    "pick_rate.10": "the best of 12 answers is picked, after 10 answers",
    "seconds_per_answer": "seconds from an answer to the next question, 10,000 pairs (median)",
    "seconds_per_answer.p95": "the same, 95th percentile",
    "fit_seconds.warm": "seconds to fit, texts read before",
    "fit_seconds.cold": "seconds to fit, from nothing",
    "fit_peak_memory_mb": "most memory of that fit, MB",
}


def _picture(answers: Sequence[int]) -> Picture:
    # Colours of Okabe and Ito (2008), told apart by the colour-blind.
    lines = [
        Line(f"auc.{DEFAULT_STRATEGY}", "asked what tells most", "#d55e00"),
        Line("auc.random", "asked at random", "#0072b2"),
        Line("auc.per_user", "a model per person", "#007a5a"),
        Line("auc.bradley_terry", "one reward for all", "#57534e"),
    ]
    return Picture(
        title="How well a new person is known",
        x_label="answers given",
        y_label="AUC on unseen prompts, for people of unseen kinds; bands: 95 % over kinds",
        x=answers,
        lines=lines,
    )
