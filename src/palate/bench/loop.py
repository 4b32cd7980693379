"""The whole of ARF running by itself: answers, replies, scores, rescoring, training, round after round.

A simulated person types a reply to each answer of the policy; the scorer reads it, the store keeps it, history is
scored anew, the follower foretells satisfaction, TraceBias trains an adapter on that, and the next round is answered
with it. Half-way the person's taste turns. The replies come from the bundled bank, which the scorer was trained on: it
reads them better than it would read a stranger's.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from palate.alignment.candidates import Candidate, Sampling
from palate.alignment.local import LocalModel
from palate.bench.judge import ATTRIBUTES, Judge
from palate.bench.people import Kind, Person
from palate.bench.typed import ReplyBank, feelings
from palate.data import Answer
from palate.errors import InputError
from palate.feedback import Reply
from palate.rewards import RewardModel
from palate.rewards.fitting import Stage
from palate.satisfaction.follower import RewardFollower
from palate.satisfaction.scorer import SatisfactionScorer
from palate.store import Store, User
from palate.store.interview import posterior_of, register
from palate.store.replies import Rescorer
from palate.training.launch import Whose, fine_tune
from palate.training.methods import Settings
from palate.training.rewards import FollowerReward

_START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Plan:
    """What is run.

    Args:
        rounds: in all.
        tastes: what the person likes at first, and from the middle on.
        half_life: in days, of what is known of them; a round is a day.
        answers: to each prompt, each replied to.
        user: the person's id.
        seed: same seed, same run.

    Raises:
        InputError: there are fewer than two rounds.
    """

    rounds: int
    tastes: tuple[Kind, Kind]
    half_life: float = 2.0
    answers: int = 2
    user: str = "simulated"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rounds < 2:
            raise InputError(f"rounds {self.rounds!r} is below 2; a taste that turns half-way needs two")


@dataclass(frozen=True)
class Round:
    """What a round was like.

    Args:
        number: from 1 on.
        taste: what the person liked then.
        pleased: mean satisfaction of the person with the answers, as the judge knows it, in [0, 1].
        read: mean satisfaction that was read in the replies on taste.
        foretold: mean satisfaction that was foretold of the answers by what was known of the person before.
        broken: share of the answers that were broken.
        rescored: examples of history that were scored anew.
    """

    number: int
    taste: str
    pleased: float
    read: float
    foretold: float
    broken: float
    rescored: int


def follow(
    model: RewardModel,
    model_folder: Path,
    policy: str,
    prompts: Sequence[str],
    plan: Plan,
    settings: Settings,
    folder: Path,
    told: Stage | None = None,
) -> list[Round]:
    """Run the loop, or go on where it was stopped.

    Args:
        model: the reward model.
        model_folder: where it lies.
        policy: the language model's name.
        prompts: what is asked in every round.
        plan: rounds, and whose taste.
        settings: of the training in each round.
        folder: for the database, an adapter for each round, and `rounds.jsonl`.
        told: told of each stage.

    Raises:
        InputError: the folder holds another run.
    """
    told = told or (lambda *_: None)
    folder.mkdir(parents=True, exist_ok=True)
    done = _read(folder, plan, settings, model, prompts)
    scorer = SatisfactionScorer.load()
    with Store.open(f"sqlite:///{folder / 'palate.db'}") as store:
        register(store, model, model_folder)
        person = store.set_half_life(store.ensure_user(plan.user), plan.half_life)
        loop = _Loop(
            Rescorer(store, model, scorer), person, Judge.train(), ReplyBank(scorer.held_out), policy, prompts, plan,
            folder,
        )  # fmt: skip
        for number in range(len(done) + 1, plan.rounds + 1):
            told("Following", number - 1, plan.rounds)
            one = loop.talk(number, settings.max_tokens)
            loop.train(number, settings, told)
            done.append(one)
            # The last that is written: without it the round is done again, from replies that are kept.
            with (folder / "rounds.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(one)) + "\n")
    return done


def _read(folder: Path, plan: Plan, settings: Settings, model: RewardModel, prompts: Sequence[str]) -> list[Round]:
    """The rounds that are done; a line that was cut off is none."""
    path = folder / "plan.json"
    told = {"plan": asdict(plan), "settings": asdict(settings), "fingerprint": model.fingerprint, "prompts": prompts}
    told = json.loads(json.dumps(told))
    if path.exists() and json.loads(path.read_text("utf-8")) != told:
        raise InputError(f"{str(folder)!r} holds another run; give the same settings, or another output")
    path.write_text(json.dumps(told), encoding="utf-8")
    rounds = folder / "rounds.jsonl"
    if not rounds.exists():
        return []
    whole = [line for line in rounds.read_text("utf-8").splitlines(keepends=True) if line.endswith("\n")]
    rounds.write_text("".join(whole), encoding="utf-8")
    return [Round(**json.loads(line)) for line in whole]


@dataclass
class _Loop:
    """All that a round needs."""

    rescorer: Rescorer
    person: User
    judge: Judge
    bank: ReplyBank
    policy: str
    prompts: Sequence[str]
    plan: Plan
    folder: Path

    def _adapter(self, number: int) -> Path | None:
        return self.folder / f"adapter-{number}" if number else None

    def talk(self, number: int, max_tokens: int) -> Round:
        """Answer, let the person reply, read and keep the replies, and score history anew."""
        plan, prompts, store = self.plan, self.prompts, self.rescorer.store
        source = LocalModel.load(self.policy, adapter=self._adapter(number - 1))
        kind = plan.tastes[2 * (number - 1) >= plan.rounds]
        drawn = source.draw(prompts, plan.answers, Sampling(max_tokens=max_tokens, seed=plan.seed * 1_000 + number))
        asked = [prompt for prompt in prompts for _ in range(plan.answers)]
        answers = [one for those in drawn for one in those]
        seen = _seen(self.judge, asked, answers)
        rng = np.random.default_rng([plan.seed, number])
        levels = feelings(Person(kind), seen)
        earlier = [one.record for one in store.evidence(self.person) if not one.id.startswith(f"{number}-")]
        believed = self.rescorer.model.posterior(earlier, half_life=plan.half_life)
        phi = self.rescorer.model.centred(asked, [one.text for one in answers])
        foretold = RewardFollower(self.rescorer.model).foretold(phi, believed)
        for place, (level, poles) in enumerate(levels):
            said = Reply(
                user_id=plan.user,
                prompt=asked[place],
                completion=answers[place].text or "…",
                reply=str(self.bank.rows[self.bank.draw(level, poles, rng)]["reply"]),
                created_at=_START + timedelta(days=number, seconds=place),
            )
            store.append(self.person, said, evidence_id=f"{number}-{place}")
        self.rescorer.take_in(self.person)
        rescored = self.rescorer.score(self.person)
        read = [one.record for one in store.evidence(self.person) if one.id.startswith(f"{number}-")]
        heard = [r.satisfaction for r in read if isinstance(r, Reply) and r.target in ("taste", "both")]
        return Round(
            number,
            ",".join(kind),
            pleased=float(np.mean([level / 4 for level, _ in levels])),
            read=float(np.mean([value for value in heard if value is not None])) if heard else 0.5,
            foretold=float(foretold.mean()),
            broken=float(np.mean([answer.spoilt is not None for answer in seen])),
            rescored=rescored,
        )

    def train(self, number: int, settings: Settings, told: Stage) -> None:
        """An adapter that goes on from the last one, on the satisfaction that is foretold now."""
        model = self.rescorer.model
        belief = posterior_of(self.rescorer.store, model, self.person, keep=False)
        fine_tune(
            "tracebias",
            LocalModel.load(self.policy),
            self.prompts,
            FollowerReward(self.rescorer.follower(), belief),
            self.folder / f"adapter-{number}",
            replace(settings, seed=settings.seed * 1_000 + number, start=self._adapter(number - 1)),
            whose=Whose((self.plan.user,), model.fingerprint),
            told=told,
        )


def _seen(judge: Judge, prompts: Sequence[str], answers: Sequence[Candidate]) -> list[Answer]:
    """Answers as the person sees them."""
    texts = [one.text for one in answers]
    shows, broken = judge.shows(prompts, texts), judge.broken(prompts, texts, [one.cut for one in answers])
    return [
        Answer(
            "", "", "", prompt, text,
            {name: int(np.sign(sign)) for name, sign in zip(ATTRIBUTES, row, strict=True) if abs(sign) > 0.5},
            "cut" if bad else None,
        )
        for prompt, text, row, bad in zip(prompts, texts, shows, broken, strict=True)
    ]  # fmt: skip
