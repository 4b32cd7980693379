"""A stored person's posterior is the model's own of their evidence, kept while it is current."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from tests.support import PlantedEncoder, people

from palate.feedback import Comparison, Feedback, Rating, Record, Reply
from palate.rewards import Belief, Gaussian, Mixture, RewardModel, fit
from palate.store import Store, User
from palate.store.interview import next_question, posterior_of

NOON = datetime(2025, 5, 1, 12, tzinfo=UTC)
ROWS = people(prompts=slice(0, 6), comparisons=20)


@pytest.fixture(scope="module")
def model() -> RewardModel:
    return fit(Feedback(comparisons=ROWS), PlantedEncoder(), rank=3)


@pytest.fixture
def store(model: RewardModel) -> Iterator[Store]:
    with Store.open("sqlite://") as store:
        register(store, model)
        yield store


@pytest.fixture
def ann(store: Store) -> User:
    return store.ensure_user("ann")


def register(store: Store, model: RewardModel) -> None:
    store.register_model(
        model.fingerprint,
        path="model",
        encoder=model.encoder_name,
        encoder_revision=model.encoder_revision,
        rank=model.n_rewards,
    )


def said(number: int) -> Comparison:
    return ROWS[number].model_copy(update={"user_id": "ann"})


def same(one: Belief, other: Belief) -> bool:
    return bool(np.array_equal(one.mean, other.mean) and np.array_equal(one.cov, other.cov))


def of_evidence(store: Store, model: RewardModel, user: User) -> Belief:
    return model.posterior([evidence.record for evidence in store.evidence(user)])


def version(store: Store, model: RewardModel, user: User) -> int:
    kept = store.posterior(user, model.fingerprint)
    return kept.version if kept else 0


def test_who_said_nothing_has_the_prior(store, model, ann):
    assert same(posterior_of(store, model, ann), model.prior)


@pytest.mark.parametrize(
    "record",
    [
        said(0),
        said(1).model_copy(update={"strength": 0.5}),
        Rating(user_id="ann", prompt=said(0).prompt, completion=said(0).chosen, score=0.9),
        Reply(user_id="ann", prompt=said(0).prompt, completion=said(0).chosen, reply="Thanks."),
    ],
    ids=["comparison", "tie", "rating", "reply"],
)
def test_it_is_the_posterior_of_the_evidence(store, model, ann, record: Record):
    store.append(ann, said(2))
    store.append(ann, record)
    belief = posterior_of(store, model, ann)
    assert same(belief, of_evidence(store, model, ann))
    assert same(belief, posterior_of(store, model, ann))  # as it was kept


def test_a_current_one_is_kept_and_not_computed_again(store, model, ann):
    store.append(ann, said(0))
    belief = posterior_of(store, model, ann)
    # What was kept is given back, whatever it holds.
    other = Gaussian(belief.mean + 1, belief.cov * 2)
    count = store.evidence_count(ann)
    store.save_posterior(ann, model.fingerprint, other.mean, other.cov, evidence_count=count, expected_version=1)
    assert same(posterior_of(store, model, ann), other)
    assert version(store, model, ann) == 2


def test_it_is_computed_again_when_evidence_comes_or_goes(store, model, ann):
    first = store.append(ann, said(0))
    alone = posterior_of(store, model, ann)
    second = store.append(ann, said(1))
    both = posterior_of(store, model, ann)
    assert not same(alone, both)
    store.withdraw(ann, second)
    assert same(posterior_of(store, model, ann), alone)
    store.withdraw(ann, first)
    assert same(posterior_of(store, model, ann), model.prior)
    assert version(store, model, ann) == 4
    store.append(ann, said(1))  # as many pieces as once before, but not the same
    assert same(posterior_of(store, model, ann), of_evidence(store, model, ann))


def test_people_and_models_do_not_mix(store, model, ann):
    other = fit(Feedback(comparisons=ROWS), PlantedEncoder(revision="r2"), rank=2)
    register(store, other)
    bob = store.ensure_user("bob")
    store.append(ann, said(0))
    ours, theirs = posterior_of(store, model, ann), posterior_of(store, other, ann)
    assert theirs.mean.shape == other.prior.mean.shape
    assert same(posterior_of(store, model, bob), model.prior)
    assert same(posterior_of(store, model, ann), ours)
    assert same(posterior_of(store, other, ann), theirs)


def test_evidence_that_comes_between_makes_the_kept_one_old(store, model, ann, monkeypatch):
    store.append(ann, said(0))
    read = store.evidence

    def read_late(user: User) -> object:
        found = read(user)
        store.append(user, said(1))  # another process, after the evidence was read
        return found

    monkeypatch.setattr(store, "evidence", read_late)
    posterior_of(store, model, ann)
    monkeypatch.undo()
    assert same(posterior_of(store, model, ann), of_evidence(store, model, ann))


def test_a_newer_one_of_another_process_stays(store, model, ann, monkeypatch):
    store.append(ann, said(0))
    save = store.save_posterior

    def save_after_another(*args: object, **options: object) -> object:
        monkeypatch.undo()
        store.append(ann, said(1))
        newer = posterior_of(store, model, ann)
        assert save(*args, **options) is None
        assert same(posterior_of(store, model, ann), newer)
        return None

    monkeypatch.setattr(store, "save_posterior", save_after_another)
    posterior_of(store, model, ann)
    assert version(store, model, ann) == 1


@pytest.fixture
def mixed(store: Store, model: RewardModel) -> RewardModel:
    """The same base rewards under a prior of two parts."""
    mean = np.stack([model.prior.mean + 0.5, model.prior.mean - 0.5])
    prior = Mixture(np.array([0.25, 0.75]), Gaussian(mean, np.stack([model.prior.cov, model.prior.cov / 4])))
    fields = ("offset", "weights", "lapse", "encoder_name", "encoder_revision", "known")
    other = RewardModel(prior=prior, **{name: getattr(model, name) for name in fields})
    register(store, other)
    return other


def test_a_mixture_is_kept_and_comes_back_as_one(store, mixed, ann):
    assert posterior_of(store, mixed, ann, keep=False).weights.tolist() == [0.25, 0.75]
    store.append(ann, said(0))
    computed, kept = posterior_of(store, mixed, ann), posterior_of(store, mixed, ann)
    assert version(store, mixed, ann) == 1
    assert isinstance(computed, Mixture) and isinstance(kept, Mixture)
    assert computed.weights.tolist() != [0.25, 0.75]
    for belief in (kept, of_evidence(store, mixed, ann)):
        assert np.array_equal(belief.weights, computed.weights)
        assert same(belief.parts, computed.parts)


@pytest.mark.parametrize("query_strategy", ["v-optimal", "bald", "thompson"])
def test_who_has_a_mixture_is_asked(store, mixed, ann, query_strategy):
    question, answered = next_question(store, mixed, ann, answers=3, query_strategy=query_strategy)
    assert question is not None and answered == 0
    assert 0 < question.expected_information < np.log(2)


def test_another_half_life_is_another_posterior_even_for_who_read_the_person_before(store, model, ann):
    days = [said(i).model_copy(update={"created_at": NOON + timedelta(days=20 * i)}) for i in range(4)]
    for record in days:
        store.append(ann, record)
    steady = posterior_of(store, model, ann)
    forgetful = store.set_half_life(ann, 10.0)
    # Still with the half-life of before: not kept.
    assert same(posterior_of(store, model, ann), steady)
    faded = posterior_of(store, model, forgetful)
    assert not same(faded, steady)
    assert same(faded, model.posterior([e.record for e in store.evidence(ann)], half_life=10.0))
    assert same(posterior_of(store, model, forgetful), faded)
