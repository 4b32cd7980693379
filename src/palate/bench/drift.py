"""A taste that turns: twenty dated answers, a day apart, then the person is of another kind, on other attributes.

Base rewards are fitted on the bundled people; who turns is of kinds, and asked about prompts, that none of them knows.
The half-life is learned on bundled kinds of people whose taste turned too, each at a time of their own. Questions are
chosen by the default strategy on what each way of remembering believes; the AUC is on the test rows of who the person
is now. Steady people, and people who click at random, show what remembering less and the guard cost.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from palate.bench.compared import Compared, interval
from palate.bench.people import Kind, parse_kind, simulate
from palate.bench.report import Line, Picture, Result, markdown
from palate.bench.unseen import Unseen, unseen_people
from palate.data import POLES, load_answers, load_people
from palate.encoders import load_encoder
from palate.errors import InputError
from palate.feedback import Comparison, Feedback
from palate.rewards import DEFAULT_STRATEGY, RewardModel, fit
from palate.rewards.drift import REVERSAL, Drift, Filter, elapsed_days, learn_half_life
from palate.rewards.evaluation import NewPeople, auc_by_user, learning_curve
from palate.rewards.fitting import Stage
from palate.rewards.indexing import Indexed
from palate.rewards.posterior import Floats, Ints, Observations, laplace_posterior
from palate.rewards.queries import choose, strategy

_TURN, _DAYS = 20, 40
_SHOWN = (0, 5, 10, 15, 20, 21, 22, 23, 25, 28, 30, 32, 35, 40)
_BACK = 0.95
_SHORT = 10.0
"""Days: the half-life that comes back soonest on bundled people whose taste turns (docs/log.md), at a price before."""


def run(*, quick: bool, seed: int, data: Path | None = None, progress: Stage | None = None) -> Result:
    """Turn everybody's taste, under each way of remembering.

    Args:
        quick: a fifth of the people.
        seed: of the people, the fit and the pairing of kinds.
        data: none is read.
        progress: told of each way.

    Raises:
        InputError: `data` is given.
    """
    if data is not None:
        raise InputError(f"The benchmark of drift takes no data, got {str(data)!r}; leave --data out")
    told = progress or (lambda stage, done, total: None)
    rows, encoder = unseen_people(seed, quick), load_encoder()
    told("Learning base rewards", 0, 1)
    model = fit(Feedback(comparisons=load_people()), encoder, seed=seed)
    told("Learning the half-life", 0, 1)
    half_life = _half_life(model, seed, quick)
    new = Indexed.of(rows)
    phi = model.phi(new.prompts, new.completions)
    unseen = Unseen.of(new.choices, new.split == "adapt", new.split == "test")
    people = _People(unseen.people(phi), partners(rows, seed))
    compared = Compared(new.choices.group, seed)
    arms = {
        "none": Drift(),
        "half_life": Drift(half_life),
        "reversal": Drift(threshold=REVERSAL),
        "both": Drift(half_life, REVERSAL),
        "short": Drift(_SHORT, REVERSAL),
    }
    figures: dict[str, float] = {"people": float(len(people.partner)), "half_life": half_life}
    for number, (name, drift) in enumerate(arms.items()):
        told("Turning tastes", number, len(arms))
        figures |= _turned(people, model, drift, name, compared)
    told("Steady people", 0, 1)
    figures |= _steady(people, model, Drift(half_life, REVERSAL), compared)
    told("The guard", 0, 1)
    figures |= _guarded(people, model, compared, seed)
    return Result("drift", figures, _table(figures, list(arms)), _picture())


@dataclass(frozen=True)
class _People:
    """New people, and (U,) who each of them becomes."""

    new: NewPeople
    partner: Ints


def _attributes(kind: Kind) -> set[str]:
    return {POLES[pole][0] for pole in kind}


def partners(rows: Sequence[Comparison], seed: int) -> Ints:
    """For each person another one who shares no attribute with them."""
    kinds = list({row.user_id: parse_kind(row.kind or "") for row in rows}.values())
    rng = np.random.default_rng(seed)
    apart = np.array([[not _attributes(one) & _attributes(other) for other in kinds] for one in kinds])
    return np.array([rng.choice(np.flatnonzero(others)) for others in apart], np.int64)


def _half_life(model: RewardModel, seed: int, quick: bool) -> float:
    """Learned on people of bundled kinds, on bundled prompts, who turned once between their 10th and 30th day."""
    seen = {row.kind for row in load_people()}
    kinds = [parse_kind(kind or "") for kind in sorted(seen, key=str)]
    answers = [answer for answer in load_answers() if not answer.prompt_id.startswith(("p4", "p5"))]
    each = 1 if quick else 2
    said = simulate(kinds, answers, people_per_kind=each, comparisons=_DAYS, seed=seed + 1, split_by_prompt=False)
    by_user: dict[str, list[Comparison]] = {}
    for row in said:
        by_user.setdefault(row.user_id, []).append(row)
    turning, rng, users = list(by_user), np.random.default_rng(seed), list(by_user.values())
    after = partners([rows[0] for rows in users], seed)
    records: list[Comparison] = []
    for number, name in enumerate(turning):
        at = int(rng.integers(10, 31))
        mixed = users[number][:at] + users[after[number]][at:]
        records += [
            row.model_copy(
                update={"user_id": name, "created_at": datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=day)}
            )
            for day, row in enumerate(mixed)
        ]
    user = np.repeat(np.arange(len(turning)), _DAYS)
    elapsed = elapsed_days([row.created_at for row in records])
    elapsed[::_DAYS] = 0.0
    return learn_half_life(
        model.observations(records, user, len(turning)), elapsed, model.prior_with_generosity, model.lapse
    )


def _turned(people: _People, model: RewardModel, drift: Drift, name: str, compared: Compared) -> dict[str, float]:
    """AUC day by day, the level just before the turn, and after how many answers 95 % of it are back."""
    figures: dict[str, float] = {}
    curve = _ask(people, model, drift, turn=_TURN)
    for t, auc in curve.auc.items():
        figures |= compared.add(f"{name}.{t}", auc)
    level = figures[f"auc.{name}.{_TURN}"]
    back = [t - _TURN for t in range(_TURN + 1, _DAYS + 1) if figures[f"auc.{name}.{t}"] >= _BACK * level]
    figures |= {
        f"level_before.{name}": level,
        f"share_back_after_10.{name}": figures[f"auc.{name}.{_TURN + 10}"] / level,
    }
    # One more than was looked at stands for "not within that".
    figures[f"answers_to_95_percent.{name}"] = float(back[0] if back else _DAYS - _TURN + 1)
    figures |= _back_to_common(figures | {f"auc.none.{_TURN}": float(np.mean(compared.auc[f"none.{_TURN}"]))}, name)
    figures[f"noticed.{name}"] = float(np.mean(curve.since > _TURN - 4))
    figures[f"false_alarms.{name}"] = float(np.mean(curve.early))
    return figures


def _back_to_common(figures: Mapping[str, float], name: str) -> dict[str, float]:
    """After how many answers 95 % of what is known without forgetting is back: the higher bar for who forgets."""
    level = _BACK * figures[f"auc.none.{_TURN}"]
    back = [t - _TURN for t in range(_TURN + 1, _DAYS + 1) if figures[f"auc.{name}.{t}"] >= level]
    return {f"answers_to_95_percent_of_none.{name}": float(back[0] if back else _DAYS - _TURN + 1)}


def _steady(people: _People, model: RewardModel, drift: Drift, compared: Compared) -> dict[str, float]:
    """What it costs those whose taste does not turn."""
    figures: dict[str, float] = {}
    for name, way in (("steady.none", Drift()), ("steady.both", drift), ("steady.short", Drift(_SHORT, REVERSAL))):
        curve = _ask(people, model, way, turn=_DAYS)
        for t in (10, 20, 40):
            figures |= compared.add(f"{name}.{t}", curve.auc[t])
        figures[f"false_alarms.{name}"] = float(np.mean(curve.since > 0))
    return figures


def _guarded(people: _People, model: RewardModel, compared: Compared, seed: int) -> dict[str, float]:
    """The guard on those who mean what they say, and on those who click at random."""
    figures: dict[str, float] = {}
    asked = people.new.asked
    clicks = np.random.default_rng(seed).integers(0, 2, len(asked.label)).astype(np.float64)
    answers = (10, 20)
    for who, label in (("sincere", asked.label), ("random", clicks)):
        new = replace(people.new, asked=replace(asked, label=label))
        for way, guard in (("off", None), ("on", model.guard)):
            curve = learning_curve(new, model.prior, model.lapse, answers, DEFAULT_STRATEGY, guard=guard)
            for t in answers:
                figures |= compared.add(f"guard.{who}.{way}.{t}", curve[t].auc)
    return figures


@dataclass(frozen=True)
class _Curve:
    """AUC by day (U,), the place of each person's last noticed reversal, and who was taken to turn before they did."""

    auc: Mapping[int, Floats]
    since: Ints
    early: NDArray[np.bool_]


def _ask(people: _People, model: RewardModel, drift: Drift, turn: int) -> _Curve:
    """Ask everybody a question a day; from `turn` on each person answers, and is tested, as their partner."""
    new, prior, lapse = people.new, model.prior, model.lapse
    users, dim = new.asked.n_users, new.asked.v.shape[1]
    score, rng = strategy(DEFAULT_STRATEGY), np.random.default_rng(0)
    count = np.bincount(new.asked.user, minlength=users)
    rows = np.searchsorted(new.asked.user, np.arange(users))[:, None] + np.arange(count.min())
    everyone, everybody = np.arange(users), Filter(prior, users, lapse, drift)
    asked, belief = np.zeros((users, 0), np.int64), everybody.current()
    available, last = np.ones(rows.shape, np.bool_), np.full(users, -1)
    auc, early = {}, np.zeros(users, np.bool_)
    for day in range(_DAYS + 1):
        who = everyone if day < turn else people.partner
        # The day of the turn itself still shows who the person was.
        auc[day] = _auc(new, belief.mean, everyone if day <= turn else people.partner)
        if day == turn:
            early = everybody.since > 0
            available[:], last[:] = True, -1
        if day == _DAYS:
            break
        mine = rows[who]
        best = choose(score(belief, new.asked.v[mine], lapse, rng), available, new.prompt[mine], last)
        available[everyone, best], taken = False, mine[everyone, best]
        last = new.prompt[taken]
        if drift.moves:
            everybody.take(everyone, day, new.asked.take(taken), np.full(users, 2.0 ** (-(day > 0) / drift.half_life)))
            belief = everybody.current()
        else:
            asked = np.column_stack([asked, taken])
            flat = asked.ravel()
            said = Observations(
                new.asked.v[flat].reshape(-1, dim),
                new.asked.label[flat],
                new.asked.weight[flat],
                np.repeat(everyone, asked.shape[1]),
                users,
            )
            belief = laplace_posterior(said, prior, lapse)
    return _Curve(auc, everybody.since, early)


def _auc(new: NewPeople, mean: Floats, who: Ints) -> Floats:
    """(U,) AUC of each person's mean weights on the test rows of `who` they are."""
    count = np.bincount(new.test_user, minlength=len(who))
    first = np.cumsum(count) - count
    size = count[who]
    user = np.repeat(np.arange(len(who)), size)
    place = np.arange(len(user)) - np.repeat(np.cumsum(size) - size, size)
    rows = np.repeat(first[who], size) + place
    return auc_by_user(np.sum(new.test[rows] * mean[user], axis=1), user, len(who))


_NAMES = {
    "none": "nothing is forgotten",
    "half_life": "half-life",
    "reversal": "reversals looked for",
    "both": "half-life and reversals",
    "short": f"half-life of {_SHORT:g} days and reversals",
}


def _table(figures: Mapping[str, float], arms: Sequence[str]) -> str:
    curve = [[_NAMES[arm], *(interval(figures, f"auc.{arm}.{t}") for t in _SHOWN)] for arm in arms]
    back = []
    header = ["", "level before", "answers to 95 %", "of the first level", "after 10", "noticed", "false alarms"]
    for arm in arms:
        within, common = (int(figures[f"answers_to_95_percent{of}.{arm}"]) for of in ("", "_of_none"))
        back.append(
            [
                _NAMES[arm],
                f"{figures[f'level_before.{arm}']:.3f}",
                *(str(t) if t <= _DAYS - _TURN else f"not within {_DAYS - _TURN}" for t in (within, common)),
                f"{figures[f'share_back_after_10.{arm}']:.1%}",
                f"{figures[f'noticed.{arm}']:.0%}",
                f"{figures[f'false_alarms.{arm}']:.1%}",
            ]
        )
    steady = [
        [text, *(interval(figures, f"auc.{key}.{t}") for t in (10, 20, 40)), f"{figures[f'false_alarms.{key}']:.1%}"]
        for key, text in ((f"steady.{arm}", _NAMES[arm]) for arm in ("none", "both", "short"))
    ]
    guard = [
        [text, *(interval(figures, f"auc.guard.{who}.{way}.{t}") for way in ("off", "on") for t in (10, 20))]
        for who, text in (("sincere", "say what they like"), ("random", "click at random"))
    ]
    return (
        f"# Drift\n\n{figures['people']:.0f} people of unseen kinds answer a question a day; after {_TURN} days they "
        "become another kind, on other attributes. AUC on who they are on that day; in brackets 95 % intervals over "
        f"kinds. The half-life of {figures['half_life']:g} days was learned on bundled people who turned.\n\n"
        f"{markdown(['', *map(str, _SHOWN)], curve)}\n"
        f"{markdown(header, back)}\n"
        f"Who does not turn:\n\n{markdown(['', '10', '20', '40', 'false alarms'], steady)}\n"
        "The guard: whose answers do not support personalising is given the population's taste. After 10 and 20 "
        f"answers, guard off and on:\n\n{markdown(['', 'off 10', 'off 20', 'on 10', 'on 20'], guard)}"
    )


def _picture() -> Picture:
    # Colours of Okabe and Ito (2008), told apart by the colour-blind.
    return Picture(
        title="A taste that turns after 20 days",
        x_label="days, an answer each",
        y_label="AUC on who the person is that day; bands: 95 % over kinds",
        x=range(_DAYS + 1),
        lines=[
            Line("auc.short", f"half-life of {_SHORT:g} days", "#d55e00"),
            Line("auc.both", "learned half-life", "#0072b2"),
            Line("auc.reversal", "reversals looked for", "#007a5a"),
            Line("auc.none", "nothing is forgotten", "#57534e"),
        ],
        scale="linear",
    )
