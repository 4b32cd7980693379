"""What the store gives out: frozen records that know no database."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from palate.feedback import Comparison, Record, Text

Choice = Literal["a", "b", "tie", "skip"]
CHOICES: tuple[Choice, ...] = get_args(Choice)


@dataclass(frozen=True)
class Tenant:
    """Whose users are kept apart from all others'.

    Attributes:
        id: the store's own number.
        name: as keys and commands name it.
        learn: whether anything is learned of its users.
        retention: ``texts``, or ``vectors``: once read, what people said is kept as the encoder's vectors alone.
        completion_days: how long answers are remembered, so that feedback can refer to them.
    """

    id: int
    name: str
    learn: bool
    retention: str
    completion_days: int


@dataclass(frozen=True)
class User:
    """A person.

    Attributes:
        id: the store's own number, never given twice.
        tenant: whose user this is.
        external_id: the tenant's name for the person, 1 to 256 characters.
        created_at: when first seen, UTC.
        paused: whether nothing is to be learned for now.
        half_life_days: after how many days half of what was learned is forgotten; None: the model's own.
    """

    id: int
    tenant: str
    external_id: str
    created_at: datetime
    paused: bool
    half_life_days: float | None


@dataclass(frozen=True)
class StoredEvidence:
    """One thing that a person said.

    Attributes:
        id: unique among this person's evidence.
        created_at: when it was said, UTC; when it was stored, where the record did not say.
        record: what was said, with `user_id` and `created_at`; a reply as it was last read.
        query_id: the query that it answers, if any.
        withdrawn: whether it counts no more.
        given: the record as it came, without what was read in it.
        provisional: whether it waits for something else to support it, and counts no more than if withdrawn.
    """

    id: str
    created_at: datetime
    record: Record
    query_id: str | None
    withdrawn: bool
    given: Record
    provisional: bool = False


@dataclass(frozen=True)
class StoredQuery:
    """A question put to a person: which of two responses is better?

    Attributes:
        id: unique in the database.
        fingerprint: the reward model that chose the question.
        seq: 1 for the person's first question, 2 for the next.
        prompt: what the responses answer.
        response_a: the response shown as A.
        response_b: the response shown as B.
        pool_index: where the two stand in the pool they were drawn from.
        strategy: what chose the question.
        expected_information: what the answer was expected to tell, in nats.
        asked_at: UTC.
        answered_at: UTC; None while the question is open.
        choice: what was answered; None while the question is open.
    """

    id: str
    fingerprint: str
    seq: int
    prompt: Text
    response_a: Text
    response_b: Text
    pool_index: tuple[int, int] | None
    strategy: str
    expected_information: float
    asked_at: datetime
    answered_at: datetime | None
    choice: Choice | None

    def comparison(self, user_id: str) -> Comparison | None:
        """The evidence in the answer; None while the question is open, and where it was skipped."""
        if self.choice is None or self.choice == "skip":
            return None
        chose_b = self.choice == "b"
        return Comparison(
            user_id=user_id,
            prompt=self.prompt,
            chosen=self.response_b if chose_b else self.response_a,
            rejected=self.response_a if chose_b else self.response_b,
            strength=0.5 if self.choice == "tie" else 1.0,
            chosen_position="b" if chose_b else "a",
            created_at=self.answered_at,
        )


@dataclass(frozen=True)
class StoredScore:
    """How a reply, or a child of it, was scored once.

    Attributes:
        number: 0 for the reply as it was typed.
        how: typed, synonyms or truncation.
        text: what it says.
        version: of scorer, model, follower and evidence together.
        scorer: revision of the scorer.
        satisfaction: the scorer's reading, in [0, 1].
        confidence: of that reading, in [0, 1].
        target: what the feeling is on.
        followed: what the follower foretold without this reply, in [0, 1].
        share: w, the weight of the follower.
        training_target: (1 − w) satisfaction + w followed.
        scored_at: UTC.
    """

    number: int
    how: str
    text: str
    version: str
    scorer: str
    satisfaction: float
    confidence: float
    target: str
    followed: float
    share: float
    training_target: float
    scored_at: datetime


@dataclass(frozen=True, eq=False)
class StoredPosterior:
    """What was known of a person's weights when it was last computed.

    Attributes:
        mean: (..., J).
        cov: (..., J, J).
        weights: (...) of a mixture's parts; None for a Gaussian.
        evidence_count: `Store.evidence_count` of the evidence it was computed from.
        version: 1 for the first one saved, one more with each save.
        updated_at: UTC.
    """

    mean: NDArray[np.float64]
    cov: NDArray[np.float64]
    weights: NDArray[np.float64] | None
    evidence_count: int
    version: int
    updated_at: datetime
