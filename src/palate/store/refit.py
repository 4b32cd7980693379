"""A new reward model: everybody's posterior computed anew from their evidence, while the old model serves on.

Posteriors are kept by user and model, so those of the old one stay until the new one is put to use. The job walks over
the users by number, a batch at a time; whoever has an up-to-date posterior under the new model is passed over, so a job
that was killed goes on where it stopped, and two at once do no harm.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from palate.rewards import Belief, RewardModel
from palate.rewards.posterior import Observations
from palate.rewards.refit import posteriors
from palate.store.interview import keep_posterior, posterior_of, register
from palate.store.records import User
from palate.store.repository import Store

Posteriors = Callable[[Iterable[Observations], Belief, float], Iterator[Belief]]
"""(batches of rows, prior, lapse) → beliefs of each batch's people: `palate.rewards.refit.posteriors`, or Ray's."""

_BATCH = 500  # people whose evidence is in memory at once


def refit(
    store: Store,
    model: RewardModel,
    path: Path,
    *,
    engine: Posteriors = posteriors,
    progress: Callable[[int], None] | None = None,
) -> dict[str, int]:
    """Compute what is known of every stored person under a model, and keep it.

    Args:
        store: whose people.
        model: the new one; it is registered first.
        path: its folder.
        engine: what computes a batch of posteriors.
        progress: told how many people were seen so far.

    Returns:
        How many people were `computed`, and how many were `current` already.
    """
    register(store, model, path)
    done = {"computed": 0, "current": 0}
    last = 0
    while users := store.everybody(last, _BATCH):
        last = users[-1].id
        stale = [(user, *found) for user in users if (found := _stale(store, model, user))]
        done["current"] += len(users) - len(stale)
        # Whose memory fades is a sequence of steps, not one problem: each for themselves.
        fading = [one for one in stale if model.drift.moves or one[0].half_life_days is not None]
        for user, _, _ in fading:
            posterior_of(store, model, user)
        together = [one for one in stale if one not in fading]
        if together:
            _together(store, model, together, engine)
        done["computed"] += len(stale)
        if progress:
            progress(sum(done.values()))
    return done


def _stale(store: Store, model: RewardModel, user: User) -> tuple[int, int] | None:
    """Count of evidence and version of the posterior to replace; None where the kept one is up to date."""
    # The count is read before the evidence: what comes in between makes the posterior look old, never new.
    count, stored = store.evidence_count(user), store.posterior(user, model.fingerprint)
    if stored and stored.evidence_count == count:
        return None
    return count, stored.version if stored else 0


def _together(store: Store, model: RewardModel, people: list[tuple[User, int, int]], engine: Posteriors) -> None:
    said = [[one.record for one in store.evidence(user)] for user, _, _ in people]
    (beliefs,) = engine([model.rows_of_people(said)], model.prior_with_generosity, model.lapse)
    beliefs = beliefs.leading(model.n_rewards)
    for number, (user, count, version) in enumerate(people):
        keep_posterior(store, model, user, beliefs[number], evidence_count=count, version=version)
