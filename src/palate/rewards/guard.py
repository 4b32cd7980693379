"""Whether to personalise at all: a person's choices under their own posterior against the population's taste.

Each of a person's answers was foretold twice before it was given: by what their earlier answers had told of them, and
by the population's taste. The sum of the differences of log likelihood (prequential, Dawid 1984) and the log odds that
personalising helps anybody here, learned on held-out people, say which of the two to trust. Not leave-one-out
accuracy: questions are chosen to be uncertain, so that it is near ½ by design.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Guard:
    """The weighing of one person's answers.

    Args:
        prior: log odds, before any answer, that personalising helps.
        evidence: nats by which the person's own posterior foretold their answers better than the population's taste.
        answers: how many answers were foretold.

    Example:
        >>> Guard(prior=1.5, evidence=-3.0, answers=10).personal
        False
    """

    prior: float
    evidence: float
    answers: int

    @property
    def personal(self) -> bool:
        """Whether to use the person's own taste; before any answer the two are the same."""
        return self.prior + self.evidence >= 0
