"""A stored person's posterior: kept where it is current, computed from the evidence where it is not."""

from palate.rewards import Gaussian, RewardModel
from palate.store.records import User
from palate.store.repository import Store


def posterior_of(store: Store, model: RewardModel, user: User) -> Gaussian:
    """What is known of a person's weights under a model, and keep it for the next time.

    The count of evidence is read before the evidence itself: what another process appends in between makes the
    kept posterior look old, never new.
    """
    count = store.evidence_count(user)
    stored = store.posterior(user, model.fingerprint)
    if stored and stored.evidence_count == count:
        return Gaussian(stored.mean, stored.cov)
    belief = model.posterior([said.record for said in store.evidence(user)])
    store.save_posterior(
        user,
        model.fingerprint,
        belief.mean,
        belief.cov,
        evidence_count=count,
        expected_version=stored.version if stored else 0,
    )
    return belief
