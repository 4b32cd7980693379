"""One cell of the training benchmark: a small policy fine-tuned for one domain of taste by one method, and judged.

All cells share the policy, the reward model and the judge, which a process makes once.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from palate.alignment.candidates import Candidate, Sampling
from palate.alignment.endpoint import Endpoint
from palate.alignment.local import LocalModel
from palate.bench.alignment import log_likelihood
from palate.bench.asked import ask
from palate.bench.judge import Judge
from palate.bench.judging import JudgeServer
from palate.bench.people import Kind
from palate.bench.policy import Stand, answers_of, policy
from palate.data import load_people
from palate.encoders import load_encoder
from palate.feedback import Feedback
from palate.rewards import RewardModel, fit
from palate.rewards.posterior import Floats
from palate.training.methods import Settings, trainer_of
from palate.training.rewards import JudgeReward, TasteReward, forgetful

DOMAINS: dict[str, Kind] = {
    "brief and informal": ("concise", "informal"),
    "formal and polite": ("formal", "polite"),
    "humorous and enthusiastic": ("humorous", "enthusiastic"),
    "confident and engaging": ("confident", "engaging"),
}
_GROUP = 5  # people of a domain, who answer ten questions each
_QUALITY = 0.2
_FLIPS = 0.2
_ANSWERS = 2  # to each prompt, whenever a policy is judged
_SAMPLING = Sampling(max_tokens=320, seed=9_000)


@dataclass(frozen=True)
class Cell:
    """What is trained.

    Args:
        domain: one of `DOMAINS`.
        method: one of `palate.training.methods.METHODS`.
        rate: learning rate.
        seed: of the training.
        judged: by a judge behind an endpoint that knows the taste from another encoder (RLAIF), not by the reward.
        noise: standard deviation of what is added to each score, in those of the scores.
        rounds: of completions.
        more: further settings of the method.
    """

    domain: str
    method: str
    rate: float
    seed: int = 0
    judged: bool = False
    noise: float = 0.0
    rounds: int = 10
    more: tuple[tuple[str, Any], ...] = ()

    @property
    def key(self) -> str:
        """A file's name."""
        digest = sha256(repr(self).encode()).hexdigest()[:8]
        what = "-".join(
            [self.domain.split()[0], "rlaif-" * self.judged + self.method, f"{self.rate:g}", str(self.seed)]
        )
        return f"{what}-{digest}"


@dataclass(frozen=True)
class Judged:
    """How good a policy's answers are.

    Args:
        round: after which.
        score: judged preference of sampled answers, in points of full score: 100 where every answer shows all that
            the domain likes, 0 where it shows the opposite; a broken answer is worth the opposite.
        expected: the same of the answers that the policy learned by heart, each as likely as the policy makes it: no
            chance of sampling is in it.
        mass: probability of these answers together, mean over prompts.
        win: share of prompts' answers that beat the untouched policy's, ties half.
        kl: divergence from the untouched policy, in nats an answer: of sampled answers, each token's exactly.
        reward: mean of what was trained on.
        quality: how likely the population prefers an answer to the untouched policy's: 0.5 is no change.
        whole: share of answers that are not broken.
        characters: of an answer.
        perplexity: of the untouched policy, a token.
    """

    round: int
    score: float
    expected: float
    mass: float
    win: float
    kl: float
    reward: float
    quality: float
    whole: float
    characters: float
    perplexity: float


@dataclass
class World:
    """What all cells share."""

    model: RewardModel
    plain: RewardModel  # on another encoder
    judge: Judge
    prompts: list[str]
    stand: Stand
    base: dict[str, Any] = field(default_factory=dict)

    def policy(self) -> LocalModel:
        """The untouched policy, anew."""
        return replace(policy(self.stand)[0], batch=96)


@cache
def world(seed: int) -> World:
    """Fit the base rewards, train the judge and the policy."""
    people = Feedback(comparisons=load_people())
    stand = Stand(seed=seed)
    prompts = list(dict.fromkeys(answer.prompt for answer in answers_of(stand)))
    other = load_encoder("sentence-transformers/all-MiniLM-L6-v2")
    own, plain = (forgetful(fit(people, encoder, seed=seed)) for encoder in (load_encoder(), other))
    return World(own, plain, Judge.train(), prompts, stand)


def settings_of(cell: Cell) -> Settings:
    """The same budget for all: rounds of 32 completions, gone through four times."""
    return Settings(
        rounds=cell.rounds,
        prompts=4,
        completions=8,
        max_tokens=_SAMPLING.max_tokens,
        learning_rate=cell.rate,
        beta=0.02,
        micro_batch=32,
        save_every=0,
        seed=cell.seed,
        more=dict(cell.more),
    )


def measure(cell: Cell, folder: Path, seed: int = 0) -> dict[str, Any]:
    """Train a cell and judge it on the way; or read what was measured before."""
    path = folder / f"{cell.key}.json"
    if path.exists():
        return json.loads(path.read_text("utf-8"))  # type: ignore[no-any-return]
    here = world(seed)
    kind = DOMAINS[cell.domain]
    group = [ask(here.model, kind, 0, np.random.default_rng([seed, i])) for i in range(_GROUP)]
    reward: Any = TasteReward(here.model, [one.belief for one in group], quality=_QUALITY)
    source = here.policy()
    settings = settings_of(cell)
    curve = [_judge(here, source, cell, reward, 0)]

    def stage(what: str, done: int, _: int) -> None:
        rounds, rest = divmod(done, settings.passes)
        if what == "Training" and not rest and rounds % max(cell.rounds // 5, 1) == 0:
            curve.append(_judge(here, source, cell, reward, rounds))

    counted = _Counted(_noisy(reward, cell) if cell.noise else reward)
    started = time.perf_counter()
    if cell.judged:
        judges = [ask(here.plain, kind, 0, np.random.default_rng([seed, i])).belief for i in range(_GROUP)]
        weights = np.mean([belief.mean for belief in judges], axis=0)
        with JudgeServer(here.plain, weights, _FLIPS, cell.seed) as server:
            counted.reward = JudgeReward(lambda: Endpoint(server.url, "judge"), "Prefer what this person likes.")
            _train(cell, source, here.prompts, counted, settings, folder, stage)
    else:
        _train(cell, source, here.prompts, counted, settings, folder, stage)
    found = {
        "cell": asdict(cell),
        "seconds": time.perf_counter() - started,
        "reward_calls": counted.calls,
        "curve": [asdict(point) for point in curve],
    }
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found), encoding="utf-8")
    part.replace(path)
    return measure(cell, folder, seed)  # as it is read later on


def _train(
    cell: Cell,
    source: LocalModel,
    prompts: Sequence[str],
    reward: Any,
    settings: Settings,
    folder: Path,
    stage: Callable[[str, int, int], None],
) -> None:
    trainer = trainer_of(cell.method, source, prompts, reward, settings, folder / "unused", told=stage)
    # What is judged on the way is the model that is trained, adapter and all.
    source.model = trainer.model
    trainer.train()


class _Counted:
    """A reward that counts for how many completions it was asked."""

    __name__ = "reward"

    def __init__(self, reward: Any) -> None:
        self.reward, self.calls = reward, 0

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **more: Any) -> Any:
        self.calls += len(completions)
        return self.reward(prompts, completions, **more)


def _noisy(reward: Any, cell: Cell) -> Callable[..., list[float]]:
    rng = np.random.default_rng([cell.seed, 77])

    def noisy(prompts: Sequence[Any], completions: Sequence[Any], **more: Any) -> list[float]:
        scores = np.array(reward(prompts, completions, **more))
        return list(map(float, scores + cell.noise * scores.std() * rng.normal(size=len(scores))))

    return noisy


def _judge(here: World, source: LocalModel, cell: Cell, reward: Any, round_: int) -> Judged:
    """The policy's answers to all prompts, against the untouched one's."""
    model: Any = source.model
    training = model.training
    model.eval()
    asked = [prompt for prompt in here.prompts for _ in range(_ANSWERS)]
    drawn = [one for those in source.draw(here.prompts, _ANSWERS, _SAMPLING) for one in those]
    texts = [one.text for one in drawn]
    shows, broken = here.judge.shows(asked, texts), here.judge.broken(asked, texts, [one.cut for one in drawn])
    kind = DOMAINS[cell.domain]
    likes = here.judge.utility(kind, shows, np.zeros_like(broken))
    likes = np.where(broken, -float(len(kind)), likes)
    other = _untouched(here)
    first, kl = _divergence(source, other["policy"], asked, drawn)
    theirs = np.where(
        other["broken"], -float(len(kind)), here.judge.utility(kind, other["shows"], np.zeros_like(other["broken"]))
    )
    population = here.model.phi(asked, texts) @ here.model.prior.mean
    if training:
        model.train()
    tokens = np.array([len(one.ids) for one in drawn])
    expected, mass = _expected(here, source, kind)
    return Judged(
        round=round_,
        score=float(np.mean(50 * (likes / len(kind) + 1))),
        expected=expected,
        mass=mass,
        win=float(np.mean((likes > theirs) + 0.5 * (likes == theirs))),
        kl=float(kl.mean()),
        reward=float(np.mean(reward(asked, texts))),
        quality=float(np.mean(expit(population - other["population"]))),
        whole=float(1 - broken.mean()),
        characters=float(np.mean([len(text) for text in texts])),
        perplexity=float(np.exp(-first.sum() / tokens.sum())),
    )


def _divergence(
    source: LocalModel, other: LocalModel, prompts: Sequence[str], answers: Sequence[Candidate]
) -> tuple[Floats, Floats]:
    """(n,) log-likelihood of a policy's answers under another one, and the sum of their tokens' KL divergences."""
    import torch

    likelihood, kl = np.zeros(len(prompts)), np.zeros(len(prompts))
    for i, (prompt, one) in enumerate(zip(prompts, answers, strict=True)):
        before, _ = source.tokens(prompt, one.text)
        ids = torch.tensor([before + list(one.ids)])
        with torch.inference_mode():
            own, theirs = (
                model.model(input_ids=ids).logits[0, len(before) - 1 : -1].log_softmax(-1) for model in (source, other)
            )
        likelihood[i] = float(theirs.gather(1, ids[0, len(before) :, None]).sum())
        kl[i] = float((own.exp() * (own - theirs)).sum())
    return likelihood, kl


def _expected(here: World, source: LocalModel, kind: Kind) -> tuple[float, float]:
    """The score of the written answers, weighted by how likely the policy makes them; and how likely they are."""
    answers = answers_of(here.stand)
    asked, texts = [one.prompt for one in answers], [one.text for one in answers]
    likelihood = log_likelihood(source, asked, [Candidate(text, 0) for text in texts])
    likes = here.judge.utility(kind, here.judge.shows(asked, texts), np.zeros(len(texts), np.bool_))
    number = np.array([here.prompts.index(prompt) for prompt in asked])
    p = np.exp(likelihood)
    mass = np.bincount(number, p)
    liked = np.bincount(number, p * likes) / np.maximum(mass, 1e-300)
    return float(np.mean(50 * (liked / len(kind) + 1))), float(mass.mean())


def _untouched(here: World) -> dict[str, Any]:
    """The untouched policy, and answers of it to the same prompts by another seed."""
    if not here.base:
        asked = [prompt for prompt in here.prompts for _ in range(_ANSWERS)]
        several = here.policy().draw(here.prompts, _ANSWERS, replace(_SAMPLING, seed=8_000))
        drawn = [one for those in several for one in those]
        texts = [one.text for one in drawn]
        here.base |= {
            "policy": here.policy(),
            "shows": here.judge.shows(asked, texts),
            "broken": here.judge.broken(asked, texts, [one.cut for one in drawn]),
            "population": here.model.phi(asked, texts) @ here.model.prior.mean,
        }
    return here.base


def at_kl(curve: Sequence[dict[str, float]], kl: float, name: str) -> float:
    """A figure of a curve where it reaches that divergence for the first time; its last one where it never does.

    Example:
        >>> at_kl([{"kl": 0.0, "score": 50.0}, {"kl": 4.0, "score": 60.0}], 2.0, "score")
        55.0
        >>> at_kl([{"kl": 0.0, "score": 50.0}, {"kl": 1.0, "score": 60.0}], 2.0, "score")
        60.0
    """
    for before, after in pairwise(curve):
        if before["kl"] <= kl < after["kl"]:
            part = (kl - before["kl"]) / (after["kl"] - before["kl"])
            return before[name] + part * (after[name] - before[name])
    return curve[-1][name] if math.isfinite(curve[-1]["kl"]) else math.nan
