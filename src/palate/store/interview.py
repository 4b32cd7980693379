"""Asking a stored person: one flow for the terminal, a server and a notebook.

What is answered is on disk before the next question is chosen, and the next question is a function of what is on
disk: whoever asks goes on where anybody stopped.
"""

from datetime import datetime
from pathlib import Path
from zlib import crc32

import numpy as np

from palate.rewards import DEFAULT_STRATEGY, Belief, Gaussian, Guard, Mixture, RewardModel
from palate.rewards.elicitation import next_query, pairs_in
from palate.rewards.evidence import heard
from palate.store.records import StoredQuery, User
from palate.store.repository import Store


def register(store: Store, model: RewardModel, path: Path) -> None:
    """Make a model known to the store, which keeps queries and posteriors under its fingerprint."""
    store.register_model(
        model.fingerprint,
        path=str(path.resolve()),
        encoder=model.encoder_name,
        encoder_revision=model.encoder_revision,
        rank=model.n_rewards,
    )


def posterior_of(store: Store, model: RewardModel, user: User, *, keep: bool = True) -> Belief:
    """What is known of a person's weights under a model, kept for the next time unless `keep` is false.

    The count of evidence is read before the evidence itself: what another process appends in between makes the
    kept posterior look old, never new.
    """
    count = store.evidence_count(user)
    stored = store.posterior(user, model.fingerprint)
    if stored and stored.evidence_count == count:
        kept = Gaussian(stored.mean, stored.cov)
        return kept if stored.weights is None else Mixture(stored.weights, kept)
    belief = model.posterior([said.record for said in store.evidence(user)], half_life=user.half_life_days)
    if keep:
        keep_posterior(store, model, user, belief, evidence_count=count, version=stored.version if stored else 0)
    return belief


def keep_posterior(
    store: Store, model: RewardModel, user: User, belief: Belief, *, evidence_count: int, version: int
) -> None:
    """Keep a posterior for the next time, unless another one was kept since `version`."""
    parts = belief.parts if isinstance(belief, Mixture) else belief
    store.save_posterior(
        user,
        model.fingerprint,
        parts.mean,
        parts.cov,
        weights=belief.weights if isinstance(belief, Mixture) else None,
        evidence_count=evidence_count,
        expected_version=version,
    )


def weigh(store: Store, model: RewardModel, user: User) -> Guard:
    """Whether a person's answers support personalising."""
    return model.weigh([said.record for said in store.evidence(user)], half_life=user.half_life_days)


def turned(store: Store, model: RewardModel, user: User) -> datetime | None:
    """When a person's taste turned last; None where it did not, or reversals are not looked for."""
    said = [one for one in store.evidence(user) if heard([one.record])]
    since = int(model.follow([one.record for one in said], half_life=user.half_life_days).since[0]) if said else 0
    return said[since].created_at if since else None


def next_question(
    store: Store,
    model: RewardModel,
    user: User,
    *,
    answers: int,
    stop_below: float = 0.0,
    query_strategy: str = DEFAULT_STRATEGY,
    seed: int = 0,
) -> tuple[StoredQuery | None, int]:
    """The question that is open, else the one that tells the most; and how many were answered so far.

    Args:
        store: where the model is registered.
        model: whose known answers are asked about.
        user: who is asked.
        answers: so many are wanted; skipped questions are none.
        stop_below: nothing more is asked once no question is expected to tell so much, in nats.
        query_strategy: one of `palate.rewards.STRATEGIES`.
        seed: of the sides, and of strategies of chance.

    Returns:
        The question, None when there is no more to ask, and the number of answers.
    """
    while True:
        asked = store.queries(user, model.fingerprint)
        answered = sum(query.choice in ("a", "b", "tie") for query in asked)
        if answered >= answers:
            return None, answered
        if asked and asked[-1].choice is None:
            return asked[-1], answered
        evidence = [said.record for said in store.evidence(user)]
        query = next_query(
            model,
            posterior_of(store, model, user),
            asked=pairs_in(model, evidence) + [frozenset(query.pool_index) for query in asked if query.pool_index],
            last_prompt=asked[-1].prompt if asked else None,
            query_strategy=query_strategy,
            stop_below=stop_below,
            # Sides and draws differ from question to question, and are the same when asked again.
            rng=np.random.default_rng([seed, crc32(user.external_id.encode()), len(asked)]),
        )
        if query is None:
            return None, answered
        put = store.ask(user, model.fingerprint, query, strategy=query_strategy, after=len(asked))
        # Somebody else asked, and had an answer, while this question was chosen: choose again.
        if put is not None:
            return put, answered
