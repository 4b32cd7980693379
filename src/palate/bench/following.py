"""People who only type: how well they are known after so many replies, and what rescoring and replay do.

Base rewards, and how replies speak, are learned from the choices and replies of the bundled people. New people of
unseen kinds see, to each of the prompts they would be asked about, the answer that is best by what is known of them, or
one time in five any; they type a reply from the bank, read by a scorer that never saw it. The AUC is on their test
rows. Then tastes turn half-way; and the shared head learns from one person after the other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.special import expit

from palate.bench.compared import Compared, interval
from palate.bench.drift import partners
from palate.bench.people import Person, parse_kind
from palate.bench.report import Line, Picture, Result, markdown
from palate.bench.typed import LEVELS, ReplyBank, feelings
from palate.bench.unseen import Unseen, recorded_people, unseen_answers, unseen_people
from palate.data import load_answers, load_people
from palate.encoders import load_encoder
from palate.feedback import Comparison, Feedback, Reply
from palate.rewards import DEFAULT_STRATEGY, RewardModel, fit
from palate.rewards.drift import REVERSAL, Drift, Filter
from palate.rewards.evaluation import NewPeople, auc_by_user
from palate.rewards.fitting import Stage
from palate.rewards.indexing import Indexed
from palate.rewards.posterior import Belief, Floats, Ints, Observations, laplace_posterior
from palate.rewards.queries import choose, strategy
from palate.rewards.ratings import REPLY
from palate.satisfaction.follower import HeadSettings, SharedHead
from palate.satisfaction.replay import Experience, InMemoryReplay, NoMemory, ReplayMemory
from palate.satisfaction.scorer import SatisfactionScorer

_SHOWN = (0, 5, 10, 15, 20, 30, 40)
_TURN, _DAYS = 20, 40
_BACK = 0.95
_EXPLORED = 0.2
_REPLIES_FITTED = 20  # of each bundled person
_SHORT = 10.0
"""Days: the half-life of the reversal, as in the benchmark of drift."""


def run(*, quick: bool, seed: int, data: Path | None = None, progress: Stage | None = None) -> Result:
    """Follow people by what they type.

    Args:
        quick: a fifth of the people.
        seed: of the people, their replies and the fit.
        data: a file or folder with recorded new people of Facets, whose test rows are then measured on; simulated
            people by default.
        progress: told of each stage.
    """
    told = progress or (lambda stage, done, total: None)
    # The later twins probe how sarcasm is read: far more of it than people type.
    bank = ReplyBank([row for row in SatisfactionScorer.load().held_out if str(row["name"])[0] != "t"])
    told("Learning base rewards", 0, 1)
    model = fit(Feedback(comparisons=load_people(), replies=bundled_replies(bank, seed)), load_encoder(), seed=seed)
    rows = unseen_people(seed, quick) if data is None else recorded_people(data, quick)
    world = _World.of(model, rows, bank)
    compared = Compared(world.group, seed)
    scale = model.scales.replies
    figures = {
        "people": float(world.users),
        "slope": scale.slope,
        "weight": scale.weight,
        "generosity": scale.generosity,
    }
    for number, (name, plan) in enumerate(_PLANS.items()):
        told("Following", number, len(_PLANS))
        curve = _follow(world, plan, Drift(), seed)
        for t in (t for t in _SHOWN if t <= len(plan)):
            figures |= compared.add(f"{name}.{t}", curve.auc[t])
    for name, one, other in (
        ("both_10_10_minus_choices_10", "both.20", "choices.10"),
        ("both_10_10_minus_replies_10", "both.20", "replies.10"),
        ("both_5_5_minus_choices_10", "both.10", "choices.10"),
        ("both_5_5_minus_replies_10", "both.10", "replies.10"),
    ):
        figures |= compared.difference(name, one, other)
    told("Turning tastes", 0, 1)
    figures |= _turned(world, compared, seed)
    told("Replay", 0, 1)
    figures |= _replayed(world, seed)
    return Result("following", figures, _table(figures), _picture(), {"turned": _turned_picture()})


_PLANS = {"replies": "r" * 40, "choices": "c" * 40, "both": "cr" * 20}
"""What each person gives in turn: a choice or a reply."""


def bundled_replies(bank: ReplyBank, seed: int, each: int = _REPLIES_FITTED) -> list[Reply]:
    """What the bundled people type to answers they were asked about, any of them, as it was read."""
    rng = np.random.default_rng(seed)
    answers = [answer for answer in load_answers() if not answer.prompt_id.startswith(("p4", "p5"))]
    kinds = {row.user_id: parse_kind(row.kind or "") for row in load_people()}
    felt = {kind: feelings(Person(kind), answers) for kind in set(kinds.values())}
    said = []
    for user, kind in kinds.items():
        for place in rng.choice(len(answers), each, replace=False).tolist():
            level, poles = felt[kind][place]
            reply = bank.draw(level, poles, rng)
            row = bank.rows[reply]
            said.append(
                Reply(
                    user_id=user,
                    prompt=answers[place].prompt,
                    completion=answers[place].text,
                    reply=str(row["reply"]),
                    satisfaction=float(bank.satisfaction[reply]),
                    target=row["read_target"],
                    confidence=float(str(row["read_confidence"])),
                )
            )
    return said


@dataclass(frozen=True)
class _World:
    """New people, what they could be shown and asked, and what they feel of it.

    Args:
        model: fitted on the bundled people.
        bank: of replies.
        new: the choices they could be asked for, and the test rows, in base rewards.
        group: (U,) kind of each person.
        felt: of each kind, how pleased with each answer.
        kind: (U,) place in `felt`.
        phi: (n, J) base rewards of the answers, less the centre of their prompt.
        prompt: (n,) of each answer.
        shown: (U, P) prompts at which answers are shown, in an order of each person's own.
        partner: (U,) who each of them becomes.
    """

    model: RewardModel
    bank: ReplyBank
    new: NewPeople
    group: Ints
    felt: list[list[tuple[int, list[str]]]]
    kind: Ints
    phi: Floats
    prompt: Ints
    shown: list[Ints]
    partner: Ints

    @classmethod
    def of(cls, model: RewardModel, rows: Sequence[Comparison], bank: ReplyBank) -> "_World":
        """From their comparisons, `adapt` and `test`."""
        indexed = Indexed.of(rows)
        unseen = Unseen.of(indexed.choices, indexed.split == "adapt", indexed.split == "test")
        answers = unseen_answers()
        texts = {answer.prompt: place for place, answer in enumerate(answers)}
        number = {prompt: i for i, prompt in enumerate(texts)}
        kinds = [parse_kind(k) for k in dict((row.user_id, row.kind or "") for row in rows).values()]
        distinct = list(dict.fromkeys(kinds))
        users = list(dict.fromkeys(row.user_id for row in rows))
        asked: dict[str, set[int]] = {user: set() for user in users}
        for row in rows:
            if row.split == "adapt":
                asked[row.user_id].add(number[str(row.prompt)])
        return cls(
            model,
            bank,
            unseen.people(model.phi(indexed.prompts, indexed.completions)),
            indexed.choices.group,
            [feelings(Person(kind), answers) for kind in distinct],
            np.array([distinct.index(kind) for kind in kinds], np.int64),
            model.centred([a.prompt for a in answers], [a.text for a in answers]),
            np.array([number[a.prompt] for a in answers], np.int64),
            [np.array(sorted(asked[user]), np.int64) for user in users],
            partners(rows, 0),
        )

    @property
    def users(self) -> int:
        """U."""
        return len(self.kind)


@dataclass(frozen=True)
class _Curve:
    """AUC by number of answers (U,); and of each reply, in order, (T, U) what was shown and read."""

    auc: dict[int, Floats]
    shown: Ints
    read: Ints
    beliefs: list[Belief]


def _follow(world: _World, plan: str, drift: Drift, seed: int, turn: int | None = None) -> _Curve:
    """Let everybody give what the plan says, day by day; from `turn` on each is their partner."""
    model, new, rng = world.model, world.new, np.random.default_rng(seed)
    users, everyone = world.users, np.arange(world.users)
    prior = model.prior_with_generosity
    asker = _Asker(new, seed)
    state = Filter(prior, users, model.lapse, drift)
    rows: list[Observations] = []
    belief: Belief = state.current()
    order = [[rng.permutation(prompts) for _ in range(2)] for prompts in world.shown]
    auc, shown, read, beliefs = {}, [], [], []
    for day in range(len(plan) + 1):
        who = everyone if turn is None or day <= turn else world.partner
        auc[day] = _auc(new, belief.mean, who)
        beliefs.append(belief)
        if day == len(plan):
            break
        who = everyone if turn is None or day < turn else world.partner
        if plan[day] == "c":
            said = asker.ask(belief, model, who)
        else:
            at = np.array([order[u][day // len(order[u][0]) % 2][day % len(order[u][0])] for u in range(users)])
            answer = _best(world, belief, at, rng)
            felt = [world.felt[world.kind[w]][a] for w, a in zip(who, answer, strict=True)]
            reply = np.array([world.bank.draw(pleased, poles, rng) for pleased, poles in felt], np.int64)
            v, weight = model.scales.rows(world.phi[answer], np.full(users, REPLY))
            said = Observations(
                v, world.bank.satisfaction[reply], weight * world.bank.confidence[reply], everyone, users
            )
            shown.append(answer)
            read.append(reply)
        if drift.moves:
            state.take(everyone, day, said, np.full(users, 2.0 ** (-(day > 0) / drift.half_life)))
            belief = state.current()
        else:
            rows.append(said)
            belief = laplace_posterior(_together(rows), prior, model.lapse)
    return _Curve(auc, np.array(shown), np.array(read), beliefs)


def _together(rows: Sequence[Observations]) -> Observations:
    """What everybody said on each day, sorted by person."""
    v, label, weight, user = (
        np.concatenate([getattr(r, name) for r in rows]) for name in ("v", "label", "weight", "user")
    )
    return Observations.of(v, user, rows[0].n_users, label, weight)


def _best(world: _World, belief: Belief, prompt: Ints, rng: np.random.Generator) -> Ints:
    """(U,) the answer shown to each person at a prompt: the best known, or any."""
    reward = belief.mean[:, : world.phi.shape[1]] @ world.phi.T  # (U, n)
    here = world.prompt == prompt[:, None]
    explore = rng.random(len(prompt)) < _EXPLORED
    value = np.where(explore[:, None], rng.random(reward.shape), reward)
    return np.asarray(np.where(here, value, -np.inf).argmax(axis=1), np.int64)


class _Asker:
    """Asks everybody for the choice that tells the most of what is left."""

    def __init__(self, new: NewPeople, seed: int) -> None:
        self.new, self.rng = new, np.random.default_rng(seed)
        count = np.bincount(new.asked.user)
        self.rows = np.searchsorted(new.asked.user, np.arange(len(count)))[:, None] + np.arange(count.min())
        self.left = np.ones(self.rows.shape, np.bool_)
        self.last = np.full(len(count), -1)

    def ask(self, belief: Belief, model: RewardModel, who: Ints) -> Observations:
        """One choice of each person, as `who` they are."""
        dim = self.new.asked.v.shape[1]
        mine, everyone = self.rows[who], np.arange(len(who))
        known = belief.leading(dim)
        score = strategy(DEFAULT_STRATEGY)(known, self.new.asked.v[mine], model.lapse, self.rng)
        best = choose(score, self.left, self.new.prompt[mine], self.last)
        self.left[everyone, best], taken = False, mine[everyone, best]
        self.last = self.new.prompt[taken]
        said = self.new.asked.take(taken)
        return replace(said, v=np.column_stack([said.v, np.zeros(len(taken))]))


def _auc(new: NewPeople, mean: Floats, who: Ints) -> Floats:
    """(U,) AUC of each person's mean weights on the test rows of `who` they are."""
    count = np.bincount(new.test_user, minlength=len(who))
    first, size = np.cumsum(count) - count, count[who]
    user = np.repeat(np.arange(len(who)), size)
    place = np.arange(len(user)) - np.repeat(np.cumsum(size) - size, size)
    rows = np.repeat(first[who], size) + place
    return auc_by_user(np.sum(new.test[rows] * mean[user, : new.test.shape[1]], axis=1), user, len(who))


def _turned(world: _World, compared: Compared, seed: int) -> dict[str, float]:
    """A taste that turns after half of the replies; and what rescoring makes of the training targets since."""
    figures: dict[str, float] = {}
    for name, drift in (("turned.none", Drift()), ("turned.short", Drift(_SHORT, REVERSAL))):
        curve = _follow(world, "r" * _DAYS, drift, seed, turn=_TURN)
        for t, auc in curve.auc.items():
            figures |= compared.add(f"{name}.{t}", auc)
        # Against the level of who forgets nothing, which is the higher one.
        for level_name, level in (
            ("own", figures[f"auc.{name}.{_TURN}"]),
            ("common", figures[f"auc.turned.none.{_TURN}"]),
        ):
            back = [t - _TURN for t in range(_TURN + 1, _DAYS + 1) if figures[f"auc.{name}.{t}"] >= _BACK * level]
            figures[f"replies_to_95_percent.{level_name}.{name}"] = float(back[0] if back else _DAYS - _TURN + 1)
    # Targets of the first half of the history, as they were biased then, and as they are today.
    bank, first = world.bank, slice(0, _TURN)
    answer, reply = curve.shown[first], curve.read[first]
    static = bank.satisfaction[reply]
    now = np.array(
        [[LEVELS[world.felt[world.kind[world.partner[u]]][a][0]] for u, a in enumerate(day)] for day in answer]
    )
    before, after = (
        np.stack([_foretold(world, belief, day) for belief, day in zip(beliefs, answer, strict=True)])
        for beliefs in (curve.beliefs[first], [curve.beliefs[-1]] * _TURN)
    )
    for share in (0.0, 0.25, 0.5, 0.75):
        for name, foretold in (("kept", before), ("rescored", after)):
            target = (1 - share) * static + share * foretold
            figures[f"target_error.{name}.{share:g}"] = float(np.mean(np.abs(target - now)))
    return figures


def _foretold(world: _World, belief: Belief, answer: Ints) -> Floats:
    """(U,) satisfaction that the follower foretells of the answers."""
    scale, phi = world.model.scales.replies, world.phi[answer]
    own = scale.slope * np.sum(phi * belief.mean[:, :-1], axis=1) + scale.generosity * belief.mean[:, -1]
    return np.asarray(expit(own), np.float64)


def _replayed(world: _World, seed: int, each: int = 20) -> dict[str, float]:
    """The shared head learns from one person after another, kind by kind, with and without a memory."""
    curve = _follow(world, "r" * each, Drift(), seed)
    prior = world.model.prior_with_generosity
    nobody = prior.mean[None].repeat(world.users, axis=0)
    order = np.argsort(world.kind, kind="stable")
    scale = world.model.scales.replies
    records = {
        int(u): [
            Experience(
                str(u),
                f"{u}.{t}",
                world.phi[curve.shown[t, u]],
                float(scale.slope * (world.phi[curve.shown[t, u]] @ nobody[u, :-1])),
                float(world.bank.satisfaction[curve.read[t, u]]),
            )
            for t in range(each)
        ]
        for u in order
    }
    figures: dict[str, float] = {}
    old = order[: len(order) // 2]
    for name, (rate, replayed) in _LEARNING.items():
        memory: ReplayMemory = InMemoryReplay(seed=seed) if replayed else NoMemory()
        head = SharedHead(world.phi.shape[1], HeadSettings(seed=seed, rate=rate, replayed=replayed))
        just = {}
        for u in order:
            head.learn(records[int(u)], memory)
            just[int(u)] = _head_loss(head, records[int(u)])
        end = [_head_loss(head, records[int(u)]) for u in old]
        figures[f"forgetting.{name}"] = float(np.mean(end) - np.mean([just[int(u)] for u in old]))
        figures[f"head_loss.{name}"] = float(np.mean(end))
    nothing = SharedHead(world.phi.shape[1])
    figures["head_loss.untaught"] = float(np.mean([_head_loss(nothing, records[int(u)]) for u in old]))
    for pace in ("", ".fast"):
        with_it, without = (figures[f"forgetting.{name}{pace}"] for name in ("with", "without"))
        figures[f"forgetting_cut{pace}"] = 1 - with_it / without
    return figures


_LEARNING = {
    "with": (HeadSettings().rate, HeadSettings().replayed),
    "without": (HeadSettings().rate, 0.0),
    "with.fast": (0.01, HeadSettings().replayed),
    "without.fast": (0.01, 0.0),
}
"""Rate, and old records for each new one."""


def _head_loss(head: SharedHead, records: Sequence[Experience]) -> float:
    """Mean cross-entropy of one person's records, in nats."""
    phi = np.stack([record.phi for record in records])
    p = expit(np.array([record.own for record in records]) + head(phi))
    target = np.array([record.target for record in records])
    return float(-np.mean(target * np.log(p) + (1 - target) * np.log1p(-p)))


def _table(figures: Mapping[str, float]) -> str:
    names = {"replies": "replies only", "choices": "choices only", "both": "a choice, a reply, in turn"}
    curve = [[text, *(interval(figures, f"auc.{key}.{t}") for t in _SHOWN)] for key, text in names.items()]
    pairs = {
        "both_10_10_minus_choices_10": "10 and 10 less 10 choices",
        "both_10_10_minus_replies_10": "10 and 10 less 10 replies",
        "both_5_5_minus_choices_10": "5 and 5 less 10 choices",
        "both_5_5_minus_replies_10": "5 and 5 less 10 replies",
    }
    differences = [[text, interval(figures, f"auc.{key}")] for key, text in pairs.items()]
    turned = [
        [
            text,
            *(interval(figures, f"auc.{key}.{t}") for t in (20, 25, 30, 35, 40)),
            *(_within(figures[f"replies_to_95_percent.{level}.{key}"]) for level in ("own", "common")),
        ]
        for key, text in (("turned.none", "nothing is forgotten"), ("turned.short", f"half-life of {_SHORT:g} days"))
    ]
    shares = [f"{share:g}" for share in (0.0, 0.25, 0.5, 0.75)]
    targets = [
        [text, *(f"{figures[f'target_error.{key}.{share}']:.3f}" for share in shares)]
        for key, text in (("kept", "as scored then"), ("rescored", "rescored today"))
    ]
    replay = [
        [text, f"{figures[f'forgetting.{key}']:.4f}", f"{figures[f'head_loss.{key}']:.4f}"]
        for key, text in (
            ("with", "with replay"),
            ("without", "without"),
            ("with.fast", "with replay, learning faster"),
            ("without.fast", "without, learning faster"),
        )
    ]
    return (
        f"# Following\n\n{figures['people']:.0f} people of unseen kinds type what they think of the answer shown: the "
        "best known, or one time in five any. AUC on their test rows; in brackets 95 % intervals over kinds. A reply "
        f"counts {figures['weight']:.2f} times as much as a choice where it is read surely, with a slope of "
        f"{figures['slope']:.2f}.\n\n"
        f"{markdown(['', *map(str, _SHOWN)], curve)}\n{markdown(['paired', 'AUC'], differences)}\n"
        f"A taste that turns after {_TURN} replies, one a day: AUC on who the person is that day, and replies until "
        "95 % of the level before is back, of its own and of who forgets nothing:\n\n"
        f"{markdown(['', '20', '25', '30', '35', '40', 'own', 'common'], turned)}\n"
        "Training targets of the replies before the turn, (1 − w) static + w follower: mean distance to how pleased "
        f"the person is with those answers today, by w:\n\n{markdown(['', *shares], targets)}\n"
        "The shared head learns from one person after another, by kind. Loss on the first half of them at the end, "
        f"less just after they were learned, and at the end, in nats:\n\n{markdown(['', 'forgetting', 'loss'], replay)}"
    )


def _within(count: float) -> str:
    return f"{count:.0f}" if count <= _DAYS - _TURN else f"not within {_DAYS - _TURN}"


def _picture() -> Picture:
    return Picture(
        title="Known by what they type",
        x_label="choices or replies",
        y_label="AUC on unseen prompts; bands: 95 % over kinds",
        x=_SHOWN,
        lines=[
            Line("auc.choices", "choices only", "#007a5a"),
            Line("auc.both", "in turn", "#0072b2"),
            Line("auc.replies", "replies only", "#d55e00"),
        ],
    )


def _turned_picture() -> Picture:
    return Picture(
        title=f"A taste that turns after {_TURN} replies",
        x_label="days, a reply each",
        y_label="AUC on who the person is that day; bands: 95 % over kinds",
        x=range(_DAYS + 1),
        lines=[
            Line("auc.turned.short", f"half-life of {_SHORT:g} days", "#d55e00"),
            Line("auc.turned.none", "nothing is forgotten", "#57534e"),
        ],
        scale="linear",
    )
