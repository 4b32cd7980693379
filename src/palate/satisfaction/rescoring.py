"""Preference-biased scoring: what a reply is worth as a training target, today.

target = (1 − w) static + w follower, the follower's part without the reply itself. w weighs the two by how well each
lately agreed with explicit feedback, as two measurements of one thing are averaged: by the inverse of their mean
squared errors. ARF-RLHF (arXiv 2507.03069) re-evaluates history regularly, so that a taste that turned is not fought
by its own past; the posterior itself is moved by the scorer's reading alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from palate.feedback import Comparison, Rating, Record, Reply, as_text
from palate.rewards.beliefs import Floats
from palate.rewards.evidence import heard
from palate.rewards.influence import without_each
from palate.rewards.model import RewardModel
from palate.rewards.posterior import predict
from palate.satisfaction.follower import RewardFollower

RECENT = 20
"""Pieces of explicit feedback that w looks back at."""

# Root mean squared errors before any explicit feedback, and for how many pieces of it they stand: of the scorer on
# replies held out, and of the follower on new people after ten replies (docs/log.md).
_STATIC_ERROR, _FOLLOWER_ERROR, _PRIOR_COUNT = 0.22, 0.28, 5.0


@dataclass(frozen=True)
class Target:
    """A reply as a training target.

    Args:
        followed: satisfaction that the follower foretells without this reply, in [0, 1].
        own: the person's own part of that, in logits.
        share: w, the weight of the follower, in [0, 1].
        value: (1 − w) static + w followed.
    """

    followed: float
    own: float
    share: float
    value: float


def biased(static: Floats, followed: Floats, share: float) -> Floats:
    """(1 − w) static + w followed.

    Example:
        >>> biased(np.array([1.0]), np.array([0.5]), share=0.25).tolist()
        [0.875]
    """
    return np.asarray((1 - share) * static + share * followed, np.float64)


def follower_share(static_squares: Sequence[float], follower_squares: Sequence[float]) -> float:
    """W in (0, 1), from recent squared errors against explicit feedback, each less what chance alone makes of it.

    Example:
        >>> round(follower_share([], []), 2), follower_share([0.25] * 20, []) > 0.6
        (0.38, True)
    """

    def square(squares: Sequence[float], before: float) -> float:
        # Chance taken off may leave less than nothing.
        return max(_PRIOR_COUNT * before**2 + sum(squares), before**2) / (_PRIOR_COUNT + len(squares))

    static, followed = square(static_squares, _STATIC_ERROR), square(follower_squares, _FOLLOWER_ERROR)
    return static / (static + followed)


def training_targets(
    follower: RewardFollower, evidence: Sequence[Record], *, half_life: float | None = None
) -> list[Target | None]:
    """What each record of a person is worth as a training target.

    Args:
        follower: today's.
        evidence: what one person said, in order of time, replies with their readings.
        half_life: in days, instead of the model's own.

    Returns:
        One for each record; None for what is no reply that was read.
    """
    model = follower.model
    said = heard(evidence)
    place = {id(record): i for i, record in enumerate(said)}
    replies = [i for i, r in enumerate(evidence) if isinstance(r, Reply) and r.satisfaction is not None]
    out: list[Target | None] = [None] * len(evidence)
    if not replies:
        return out
    share = follower_share(*_errors(model, evidence, half_life))
    # A reply on the task alone has not moved the posterior: nothing to leave out.
    inside = [i for i in replies if id(evidence[i]) in place]
    beliefs = dict(
        zip(
            inside,
            without_each(model, evidence, [place[id(evidence[i])] for i in inside], half_life=half_life),
            strict=True,
        )
    )
    everything = model.posterior(evidence, half_life=half_life, level=True)
    rows = [evidence[i] for i in replies]
    phi = model.centred([r.prompt for r in rows], [r.completion for r in rows if isinstance(r, Reply)])
    added = follower.head(phi)
    for row, (i, more) in enumerate(zip(replies, added.tolist(), strict=True)):
        reply = evidence[i]
        assert isinstance(reply, Reply) and reply.satisfaction is not None
        own = float(follower.own(phi[row : row + 1], beliefs.get(i, everything))[0])
        followed = float(expit(own + more))
        out[i] = Target(followed, own, share, (1 - share) * reply.satisfaction + share * followed)
    return out


def _errors(model: RewardModel, evidence: Sequence[Record], half_life: float | None) -> tuple[list[float], list[float]]:
    """Squared errors of the scorer and of the follower against the latest explicit feedback.

    The scorer's where a reply and a rating are of one answer; the follower's from everything else that was said. Of a
    choice, which is 0 or 1, p (1 − p) is taken off: that much even a follower errs who knows the person through and
    through.
    """
    read = {
        (as_text(r.prompt), as_text(r.completion)): r.satisfaction
        for r in evidence
        if isinstance(r, Reply) and r.satisfaction is not None
    }
    said = heard(evidence)
    explicit = [i for i, r in enumerate(said) if isinstance(r, Comparison | Rating)][-RECENT:]
    static = [
        (read[key] - record.score) ** 2
        for record in (said[i] for i in explicit)
        if isinstance(record, Rating) and (key := (as_text(record.prompt), as_text(record.completion))) in read
    ]
    followed: list[float] = []
    if explicit:
        rows = model.observations(said)
        beliefs = without_each(model, evidence, explicit, half_life=half_life)
        for i, belief in zip(explicit, beliefs, strict=True):
            p, label = float(predict(belief, rows.v[i : i + 1], model.lapse)[0]), float(rows.label[i])
            chance = p * (1 - p) if isinstance(said[i], Comparison) and label in (0.0, 1.0) else 0.0
            followed.append((p - label) ** 2 - chance)
    return static, followed
