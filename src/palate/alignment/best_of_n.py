"""Best of n: of some answers the one that a person is expected to like best.

Each candidate is scored by the person's posterior, λ · φ(x, y). On request, less what its length alone earns, and less
some standard deviations of how sure its reward is: whoever is little known then gets what is near the usual answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax, softmax
from scipy.stats import t as student

from palate.alignment.candidates import Candidate
from palate.errors import InputError
from palate.feedback import Text, as_text
from palate.rewards import RewardModel
from palate.rewards.beliefs import Belief, Floats


@dataclass(frozen=True)
class Taking:
    """How one of the candidates is taken.

    Args:
        temperature: τ in logits, ≥ 0; 0 takes the best, else each by chance ∝ exp(score / τ).
        caution: c ≥ 0, standard deviations that are taken off where the reward is not sure.
        length: reward of one more unit of log(1 + characters), taken off; 0 leaves length as it is. See
            `length_coefficient`.

    Raises:
        InputError: a value is out of its range.
    """

    temperature: float = 0.0
    caution: float = 0.0
    length: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("temperature", self.temperature), ("caution", self.caution)):
            if not 0 <= value < np.inf:
                raise InputError(f"{name} {value!r} is not 0 or more; give 0 to leave it out")
        if not np.isfinite(self.length):
            raise InputError(f"length {self.length!r} is no number; give 0 to leave it out")


@dataclass(frozen=True)
class Scored:
    """A candidate and why it was taken or not.

    Args:
        text: what it says.
        reward: posterior mean of λ · φ, in logits, less the mean of the candidates.
        deviation: its standard deviation.
        population: the same reward by the population's taste.
        score: reward less what caution and length take off.
        probability: that it is taken.
        contributions: (J,) what each base reward adds to `reward`.
        tokens: that it took.
        cut: whether it ran into the most tokens allowed.
    """

    text: str
    reward: float
    deviation: float
    population: float
    score: float
    probability: float
    contributions: Floats
    tokens: int = 0
    cut: bool = False


@dataclass(frozen=True)
class Taken:
    """The candidate that was taken, and all of them for explanation.

    Args:
        index: where it stands among them.
        candidates: in the order given.
        divergence: KL of this way of choosing from choosing blindly, in nats: log n − entropy of `probability`, with
            ties; an upper bound of the KL from the policy.
    """

    index: int
    candidates: list[Scored]
    divergence: float

    @property
    def text(self) -> str:
        """What was taken."""
        return self.candidates[self.index].text


def best_of_n(
    model: RewardModel,
    user: Belief | None,
    prompt: Text,
    candidates: Sequence[Candidate],
    taking: Taking = Taking(),
    rng: np.random.Generator | None = None,
) -> Taken:
    """Take one of some candidates for a person.

    Args:
        model: the reward model.
        user: what is known of the person, by this model's `posterior`; None for the population's taste.
        prompt: what they answer.
        candidates: n answers.
        taking: how.
        rng: of soft choices.

    Raises:
        InputError: there is no candidate, or the belief has another rank than the model.

    Example:
        >>> best_of_n(model, ana, "How do I boil an egg?", [Candidate("Nine minutes.", 4)]).text  # doctest: +SKIP
        'Nine minutes.'
    """
    if not candidates:
        raise InputError("There is no candidate to choose from; draw one at least")
    belief = model.prior if user is None else user
    if belief.mean.shape != (model.n_rewards,):
        raise InputError(
            f"The taste has {belief.mean.shape[-1]!r} weights and the reward model {model.n_rewards}; "
            "compute the posterior from the evidence with this model"
        )
    phi = model.phi([prompt] * len(candidates), [one.text for one in candidates])
    lengths = np.log1p([len(one.text) for one in candidates])
    centred = phi - phi.mean(axis=0)
    reward, variance = belief.of(centred)
    deviation = np.sqrt(np.maximum(variance, 0.0))
    score = reward - taking.caution * deviation - taking.length * (lengths - lengths.mean())
    if taking.temperature > 0:
        probability = softmax(score / taking.temperature)
        entropy = -float(probability @ log_softmax(score / taking.temperature))
        index = int((rng or np.random.default_rng()).choice(len(score), p=probability))
    else:
        best = score >= score.max() - 1e-12
        probability = best / best.sum()
        entropy = float(np.log(best.sum()))
        index = int(np.argmax(score))
    contributions = centred * belief.mean
    population = centred @ model.prior.mean
    return Taken(
        index,
        [
            Scored(
                one.text,
                float(reward[i]),
                float(deviation[i]),
                float(population[i]),
                float(score[i]),
                float(probability[i]),
                contributions[i],
                one.tokens,
                one.cut,
            )
            for i, one in enumerate(candidates)
        ],
        float(np.log(len(score)) - entropy),
    )


def gain_of_more(rewards: Sequence[float], more: int) -> float:
    """By how much the best of `more` further candidates is expected to beat the best so far.

    Candidates are taken as draws from one normal distribution whose mean and spread are known by those drawn only, so
    that each further one is Student's t; the best of several is bounded by the sum of what each is expected to gain.

    Args:
        rewards: of n candidates drawn.
        more: candidates that may still be drawn.

    Returns:
        In the rewards' units; infinite for fewer than three candidates, 0 where all are alike.

    Example:
        >>> round(gain_of_more([0.0, 1.0, 2.0, 3.0], 4), 2)
        1.22
    """
    n = len(rewards)
    if n < 3 or more <= 0:
        return float("inf") if more > 0 else 0.0
    spread = float(np.std(rewards, ddof=1)) * np.sqrt(1 + 1 / n)
    if spread == 0:
        return 0.0
    over = (max(rewards) - float(np.mean(rewards))) / spread
    df = n - 1
    # E[(T − z)⁺] of Student's t.
    expected = (df + over**2) / (df - 1) * student.pdf(over, df) - over * student.sf(over, df)
    return float(more * spread * max(expected, 0.0))


def length_coefficient(model: RewardModel, user: Belief | None = None) -> float:
    """Reward, in logits, of one more unit of log(1 + characters): by regression over the known answers, in prompts.

    Args:
        model: the reward model.
        user: whose reward; None for the population's.
    """
    known = model.known
    length = np.log1p([len(as_text(text)) for text in known.completions])
    reward = known.phi @ (model.prior if user is None else user).mean
    number = known.prompt_numbers()
    count = np.bincount(number)
    x, y = (values - (np.bincount(number, values) / count)[number] for values in (length, reward))
    return float(x @ y / max(float(x @ x), 1e-12))
