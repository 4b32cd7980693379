"""All peers on the same people and the same questions, each tuned on held-out training people with the same budget.

The budget: eight settings a peer, each fitted on three parts of the training people and tried on the rest, people
*and* prompts both unknown to the fit and people of one kind on one side, by mean AUC after 5, 10 and 20 answers to
the same random questions. The best setting is then fitted on all training people.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from threadpoolctl import threadpool_limits

from palate.bench.unseen import Questions, Unseen
from palate.rewards.baselines import PEERS, Fitted, Peer
from palate.rewards.baselines.pref import Bilinear
from palate.rewards.evaluation import Figures, learning_curve, measure
from palate.rewards.factorization import Choices
from palate.rewards.fitting import Stage
from palate.rewards.posterior import Belief, Floats, laplace_posterior

RANDOM_DRAWS = 5
"""What is asked at random is averaged over so many draws: one moves the AUC of 280 people by about 0.004."""

OWN_QUESTIONS = "pref_variance"
"""The curve of PReF with the questions that it chooses itself."""

TUNED_AT = (5, 10, 20)
FOLDS = 3
_FEW_PROMPTS = 8

Observer = Callable[[str, int, Floats], None]
"""Called with (peer, answers, (U, n) rewards), once a draw."""


@dataclass(frozen=True)
class Curve:
    """One peer on new people.

    Args:
        setting: the peer, its hyperparameters chosen.
        held_out: the mean AUC that it was chosen by; None where it was not tuned.
        auc: {answers: (U,) mean over draws of the questions}; NaN for people without test rows.
        accuracy: {answers: mean over people's test rows and draws}.
    """

    setting: Peer
    held_out: float | None
    auc: Mapping[int, Floats]
    accuracy: Mapping[int, float]


def random_questions(people: Unseen, answers: Sequence[int], seed: int) -> list[Questions]:
    """`RANDOM_DRAWS` draws of as many questions as are needed: the same ones for every method."""
    rng = np.random.default_rng(seed)
    return [people.questions(max(answers), rng) for _ in range(RANDOM_DRAWS)]


def compare(
    train: tuple[Floats, Choices],
    new: tuple[Floats, Unseen],
    answers: Sequence[int],
    questions: Sequence[Questions],
    *,
    seed: int = 0,
    tuned: bool = True,
    progress: Stage | None = None,
    observe: Observer | None = None,
) -> dict[str, Curve]:
    """Tune and fit every peer on training people, and ask new ones.

    Args:
        train: (n, K) coordinates of the training answers, and the comparisons. What people rate is given as the
            comparisons that it implies.
        new: (n', K) coordinates of the new answers, and who is asked about them; answers that nobody is asked about
            may follow, for `observe`.
        answers: numbers of answers to measure after; who has fewer rows is asked all of them.
        questions: of `random_questions`.
        seed: of the folds and the fits.
        tuned: False takes every peer's default setting.
        progress: told of each peer.
        observe: told of the rewards that everybody gives every answer.

    Returns:
        Curves by name, in the order of `PEERS`, and that of PReF with its own questions as `OWN_QUESTIONS`.
    """
    z, choices = train
    curves: dict[str, Curve] = {}
    # Many small products: more threads only wait for each other.
    with threadpool_limits(1):
        folds = held_out(choices, seed) if tuned else []
        for number, peer in enumerate(PEERS):
            if progress:
                progress("Fitting peers", number, len(PEERS))
            setting, value = tune(peer, z, folds, seed) if folds else (peer(), None)
            fitted = setting.fit(z, choices, seed)
            curves[peer.name] = Curve(setting, value, *_ask(fitted, peer.name, new, answers, questions, observe))
            if isinstance(fitted, Bilinear):
                curves[OWN_QUESTIONS] = Curve(setting, value, *_own_questions(fitted, new, answers, observe))
    return curves


def _ask(
    fitted: Fitted,
    name: str,
    new: tuple[Floats, Unseen],
    answers: Sequence[int],
    questions: Sequence[Questions],
    observe: Observer | None,
) -> tuple[dict[int, Floats], dict[int, float]]:
    z, people = new
    auc, accuracy = {}, {}
    for t in answers:
        measured = []
        for drawn in questions if t else questions[:1]:
            rewards = fitted.rewards(z, people.answers(drawn, t))
            measured.append(people.measure(rewards))
            if observe:
                observe(name, t, rewards)
        auc[t] = np.mean([one for one, _ in measured], axis=0)
        accuracy[t] = float(np.mean([share for _, share in measured]))
    return auc, accuracy


def _own_questions(
    fitted: Bilinear, new: tuple[Floats, Unseen], answers: Sequence[int], observe: Observer | None
) -> tuple[dict[int, Floats], dict[int, float]]:
    z, people = new
    phi = z @ fitted.weights.T
    curve = learning_curve(people.people(phi), fitted.start, 0.0, answers, "variance")
    for t, figures in curve.items():
        if observe and figures.belief is not None:
            observe(OWN_QUESTIONS, t, figures.belief.mean @ phi.T)
    return {t: figures.auc for t, figures in curve.items()}, {t: figures.accuracy for t, figures in curve.items()}


def ours_at_random(
    phi: Floats, people: Unseen, prior: Belief, lapse: float, answers: Sequence[int], questions: Sequence[Questions]
) -> dict[int, list[Figures]]:
    """Our own method on the questions that the peers are asked: {answers: figures of each draw}.

    Args:
        phi: (n, J) base rewards of the new answers.
        people: who is asked.
        prior: over their weights.
        lapse: ε while learning.
        answers: numbers of answers.
        questions: of `random_questions`.
    """
    tested = people.people(phi)

    def after(drawn: Questions, t: int) -> Figures:
        said = people.answers(drawn, t)
        belief = laplace_posterior(said.observations(said.differences(phi)), prior, lapse)
        return replace(measure(tested, belief), belief=belief)

    return {t: [after(drawn, t) for drawn in questions] for t in answers}


def tune(
    peer: type[Peer], z: Floats, folds: Sequence[tuple[Choices, Unseen, Questions]], seed: int
) -> tuple[Peer, float]:
    """The setting with the best mean AUC on held-out people and prompts, the first of equals, and that AUC."""

    def value(setting: Peer) -> float:
        aucs = []
        for known, unknown, questions in folds:
            fitted = setting.fit(z, known, seed)
            aucs += [np.nanmean(unknown.measure(fitted.rewards(z, unknown.answers(questions, t)))[0]) for t in TUNED_AT]
        return float(np.mean(aucs))

    values = {setting: value(setting) for setting in peer.grid()}
    best = max(values, key=values.__getitem__)
    return best, values[best]


def held_out(train: Choices, seed: int) -> list[tuple[Choices, Unseen, Questions]]:
    """Folds of training people: what is fitted on, who is asked, and what they are asked.

    A third of the groups of people and half of the prompts are unknown to each fit. Of those prompts each person is
    asked about a random half, and the other is predicted; where there are too few prompts to hold any out, it is
    halves of their rows.
    """
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.unique(train.group))
    folds = []
    for k in range(min(FOLDS, len(groups))):
        person_out = np.isin(train.group, groups[k::FOLDS])[train.user]
        prompts = rng.permutation(np.unique(train.prompt))
        by_prompt = len(prompts) >= _FEW_PROMPTS
        prompt_out = np.isin(train.prompt, prompts[: len(prompts) // 2])
        known = train.where(~person_out & ~prompt_out) if by_prompt else train.where(~person_out)
        unknown = train.where(person_out & prompt_out) if by_prompt else train.where(person_out)
        if not len(known.user) or not len(unknown.user):
            continue
        topic = unknown.prompt if by_prompt else np.arange(len(unknown.user))
        _, topic = np.unique(np.stack([unknown.user, topic]), axis=1, return_inverse=True)
        asked = (rng.random(int(topic.max()) + 1) < 0.5)[topic.ravel()]
        people = Unseen.of(unknown, asked, ~asked & (unknown.strength > 0.5))
        if len(people.test):
            folds.append((known, people, people.questions(max(TUNED_AT), rng)))
    return folds
