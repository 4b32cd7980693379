"""A person's taste in plain words and numbers, and what each base reward is about.

The reward λ · φ is regressed, within prompts, on how much the known answers show of each named style. The
regression is linear in λ, so a Gaussian over λ gives a Gaussian over the person's liking of every style: words are
said as strongly as they are certain, and nothing is said of what is not known.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from palate.feedback import Text
from palate.rewards.model import RewardModel
from palate.rewards.posterior import Belief, Floats, Ints

_RIDGE = 0.05  # share of the number of answers: styles are correlated
# Over 28 simulated kinds of people after ten answers, 4 in 5 of the two true poles pass "likely" and 1 in 8 of the
# five other styles do (docs/log.md).
# A style is spoken of once answers narrowed it down: before, it is the population's taste.
_SURE, _LIKELY, _LARGE, _BESIDE, _HEARD = 0.95, 0.8, 0.33, 0.25, 0.95


@dataclass(frozen=True)
class StyleTaste:
    """How a person takes to one style.

    Args:
        high: word for much of it, such as "verbose".
        low: word for little of it, such as "concise".
        liking: reward, in logits, of one standard deviation more of it, other styles equal.
        deviation: its posterior standard deviation.
        population: the same liking in the population's mean.
        spread: how much people differ in it, one standard deviation.
    """

    high: str
    low: str
    liking: float
    deviation: float
    population: float
    spread: float

    @property
    def word(self) -> str:
        """The end that is liked more."""
        return self.high if self.liking >= 0 else self.low

    @property
    def other(self) -> str:
        """The end that is liked less."""
        return self.low if self.liking >= 0 else self.high

    @property
    def certainty(self) -> float:
        """Probability that this end is liked more than the other."""
        return float(ndtr(abs(self.liking) / max(self.deviation, 1e-12)))


@dataclass(frozen=True)
class Axis:
    """One base reward.

    Args:
        number: which, counted from 0.
        words: the named styles that move along it most, strongest first; may be empty.
        high: (prompt, completion) of the known answers that it rewards most, against others to their prompt.
        low: the same at the other end.
        weight: the person's weight, in prior standard deviations.
        deviation: its posterior standard deviation.
    """

    number: int
    words: list[str]
    high: list[tuple[Text, Text]]
    low: list[tuple[Text, Text]]
    weight: float
    deviation: float


@dataclass(frozen=True)
class Example:
    """Where this person's pick and the population's differ most clearly."""

    prompt: Text
    personal: Text
    generic: Text
    preferred: float


@dataclass(frozen=True)
class Explanation:
    """A taste, told.

    Args:
        words: one or two sentences.
        styles: every named style, the most certain first.
        axes: every base reward, the one this person departs most from the population in first.
        example: None where the population's pick is this person's too.
    """

    words: str
    styles: list[StyleTaste]
    axes: list[Axis]
    example: Example | None


def explain(model: RewardModel, user: Belief) -> Explanation:
    """Tell a person's taste.

    Args:
        model: the reward model.
        user: a posterior, mean (J,) and cov (J, J).
    """
    styles = style_tastes(model, user)
    return Explanation(in_words(styles), styles, _axes(model, user), _example(model, user))


def _within_prompts(model: RewardModel, values: Floats) -> Floats:
    """Values less their mean over the known answers to the same prompt."""
    number = model.known.prompt_numbers()
    means = np.zeros((number.max(initial=-1) + 1, values.shape[1]))
    np.add.at(means, number, values)
    return np.asarray(values - (means / np.bincount(number)[:, None])[number], np.float64)


def _regression(model: RewardModel) -> Floats:
    """(S, J) reward of one standard deviation of each style, per unit of each weight."""
    shown = _within_prompts(model, model.known.styles)
    phi = _within_prompts(model, model.known.phi)
    gram = shown.T @ shown + _RIDGE * len(shown) * np.eye(shown.shape[1])
    return np.asarray(np.linalg.solve(gram, shown.T @ phi), np.float64)


def style_tastes(model: RewardModel, user: Belief) -> list[StyleTaste]:
    """How the person takes to every named style, the most certain first."""
    if not model.style_names:
        return []
    slope = _regression(model)
    liking, variance = user.of(slope)
    population, spread = model.prior.of(slope)
    tastes = [
        StyleTaste(high, low, *map(float, row))
        for (high, low), *row in zip(
            model.style_names, liking, np.sqrt(variance), population, np.sqrt(spread), strict=True
        )
    ]
    return sorted(tastes, key=lambda taste: -taste.certainty)


def telling(styles: list[StyleTaste]) -> tuple[list[StyleTaste], list[StyleTaste]]:
    """The styles that can be spoken of: those that are sure, and those that are likely, the best liked first.

    A style counts once its liking is also large: a third of what people differ by, and a quarter of the largest.
    """
    heard = [s for s in styles if s.deviation <= _HEARD * s.spread]
    most = max((abs(s.liking) for s in heard), default=0.0)
    large = [s for s in heard if abs(s.liking) >= max(_LARGE * s.spread, _BESIDE * most)]
    large.sort(key=lambda s: -abs(s.liking))
    return [s for s in large if s.certainty >= _SURE], [s for s in large if _LIKELY <= s.certainty < _SURE]


def in_words(styles: list[StyleTaste]) -> str:
    """One or two sentences, as strong as they are certain.

    Example:
        >>> in_words([StyleTaste("verbose", "concise", -0.9, 0.3, 0.0, 0.8),
        ...           StyleTaste("formal", "informal", 0.1, 0.5, 0.0, 0.8)])
        'Prefers concise answers. Nothing clear yet on formal or informal.'
    """
    sure, likely = ([s.word for s in tastes] for tastes in telling(styles))
    open_ = [f"{s.high} or {s.low}" for s in styles if s.certainty < _LIKELY and s.deviation >= 0.5 * s.spread]
    if not sure and not likely:
        return "No clear taste yet."
    sentences = [f"Prefers {_listed(sure)} answers."] if sure else []
    if likely:
        words = _listed(likely)
        sentences.append(f"Probably also {words} ones." if sure else f"Probably prefers {words} answers.")
    if open_:
        sentences.append(f"Nothing clear yet on {_listed(open_)}.")
    return " ".join(sentences)


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _axes(model: RewardModel, user: Belief, shown: int = 2) -> list[Axis]:
    phi = _within_prompts(model, model.known.phi)
    styles = _within_prompts(model, model.known.styles)
    norm = np.maximum(np.linalg.norm(styles, axis=0)[:, None] * np.linalg.norm(phi, axis=0), 1e-12)
    correlation = styles.T @ phi / norm  # (S, J)
    deviation = np.sqrt(np.diag(user.cov))
    departure = np.abs(user.mean - model.prior.mean)
    axes = []
    for j in np.argsort(-departure, kind="stable"):
        order = np.argsort(phi[:, j], kind="stable")
        strongest = np.argsort(-np.abs(correlation[:, j]), kind="stable")[:2]
        words = [
            model.style_names[s][0 if correlation[s, j] > 0 else 1] for s in strongest if abs(correlation[s, j]) >= 0.3
        ]
        axes.append(
            Axis(
                int(j),
                words,
                [_answer(model, i) for i in order[::-1][:shown]],
                [_answer(model, i) for i in order[:shown]],
                float(user.mean[j]),
                float(deviation[j]),
            )
        )
    return axes


def _answer(model: RewardModel, row: int) -> tuple[Text, Text]:
    return model.known.prompts[row], model.known.completions[row]


def _example(model: RewardModel, user: Belief) -> Example | None:
    """The prompt where this person's pick beats the population's with the highest probability."""
    number = model.known.prompt_numbers()
    own, shared = (best_rows(model.known.phi @ mean, number) for mean in (user.mean, model.prior.mean))
    differ = own != shared
    if not differ.any():
        return None
    own, shared = own[differ], shared[differ]
    mean, variance = user.of(model.known.phi[own] - model.known.phi[shared])
    z = mean / np.sqrt(np.maximum(variance, 1e-12))
    best = int(np.argmax(z))
    return Example(
        model.known.prompts[own[best]],
        model.known.completions[own[best]],
        model.known.completions[shared[best]],
        float(ndtr(z[best])),
    )


def best_rows(reward: Floats, number: Ints) -> Ints:
    """Row with the highest reward for each prompt: (prompts,)."""
    order = np.lexsort((-reward, number))
    return order[np.r_[True, np.diff(number[order]) != 0]]
