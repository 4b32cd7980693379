"""Everybody's posterior anew: batches and threads change nothing, and the job goes on where it stopped."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from numpy.testing import assert_allclose
from tests.cli_support import palate
from tests.support import evidence, fitted, people

from palate.errors import InputError
from palate.rewards.beliefs import Gaussian, Mixture
from palate.rewards.drift import Drift
from palate.rewards.posterior import Observations, laplace_posterior
from palate.rewards.refit import in_batches, posteriors
from palate.store import Store
from palate.store.interview import posterior_of, register
from palate.store.refit import refit

PRIOR = Gaussian(np.zeros(3), np.eye(3))
MIXED = Mixture(np.array([0.5, 0.5]), Gaussian(np.array([[1.0, 0, 0], [-1.0, 0, 0]]), np.stack([np.eye(3)] * 2)))


def said(users: int = 50) -> Observations:
    rng = np.random.default_rng(0)
    user = rng.integers(0, users - 1, 6 * users)  # the last one says nothing
    return Observations.of(rng.standard_normal((len(user), 3)), user, users, rng.random(len(user)))


@pytest.mark.parametrize("prior", [PRIOR, MIXED], ids=["Gaussian", "mixture"])
@pytest.mark.parametrize(("size", "threads"), [(7, 1), (7, 3), (1, 2), (1_000, 2)])
def test_batches_and_threads_change_nothing(prior, size, threads):
    rows = said()
    found = list(posteriors(in_batches(rows, size), prior, 0.03, threads=threads, tolerance=1e-9))
    together = laplace_posterior(rows, prior, 0.03, tolerance=1e-9)
    assert_allclose(np.concatenate([belief.mean for belief in found]), together.mean, atol=1e-7)
    assert_allclose(np.concatenate([belief.cov for belief in found]), together.cov, atol=1e-7)


def test_only_a_few_batches_are_made_before_they_are_asked_for():
    made = []

    def batches() -> Iterator[Observations]:
        for batch in in_batches(said(), 5):
            made.append(batch)
            yield batch

    stream = posteriors(batches(), PRIOR, threads=2)
    next(stream)
    assert len(made) == 3


def test_no_thread_is_refused():
    with pytest.raises(InputError) as caught:
        list(posteriors([], PRIOR, threads=0))
    assert str(caught.value) == "threads 0 is less than 1; give 1 or more"


@pytest.fixture
def store():
    with Store.open("sqlite://") as opened:
        for number in range(6):
            user = opened.ensure_user(f"u{number}")
            for record in evidence(number):
                opened.append(user, record.model_copy(update={"user_id": user.external_id}))
        yield opened


def test_everybody_has_what_their_evidence_says(store, tmp_path):
    model = fitted()
    assert refit(store, model, tmp_path) == {"computed": 6, "current": 0}
    for user in store.everybody():
        kept = store.posterior(user, model.fingerprint)
        own = model.posterior([one.record for one in store.evidence(user)])
        assert_allclose(posterior_of(store, model, user).mean, own.mean, atol=1e-6)
        assert kept is not None and kept.version == 1


def test_who_is_up_to_date_is_passed_over(store, tmp_path):
    model = fitted()
    register(store, model, tmp_path)
    first = store.everybody()[3]
    posterior_of(store, model, first)
    assert refit(store, model, tmp_path) == {"computed": 5, "current": 1}
    store.append(first, evidence(8)[7].model_copy(update={"user_id": first.external_id}))
    assert refit(store, model, tmp_path) == {"computed": 1, "current": 5}


def test_a_job_that_was_killed_goes_on(store, tmp_path, monkeypatch):
    monkeypatch.setattr("palate.store.refit._BATCH", 2)

    def dies_after_four(people: int) -> None:
        if people == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refit(store, fitted(), tmp_path, progress=dies_after_four)
    assert refit(store, fitted(), tmp_path) == {"computed": 2, "current": 4}


def test_the_old_model_s_posteriors_stay(store, tmp_path):
    old, new = fitted(), replace(fitted(), lapse=0.01)
    refit(store, old, tmp_path)
    before = [store.posterior(user, old.fingerprint) for user in store.everybody()]
    refit(store, new, tmp_path)
    after = [store.posterior(user, old.fingerprint) for user in store.everybody()]
    assert [(kept.version, kept.mean.tolist()) for kept in before if kept] == [
        (kept.version, kept.mean.tolist()) for kept in after if kept
    ]


def test_whose_memory_fades_is_filtered(store, tmp_path):
    user = store.set_half_life(store.everybody()[5], 0.001)
    refit(store, fitted(), tmp_path)
    records = [one.record for one in store.evidence(user)]
    assert records[-1].created_at - records[0].created_at == timedelta(minutes=4)
    steady, fading = fitted().posterior(records), fitted().posterior(records, half_life=0.001)
    assert_allclose(posterior_of(store, fitted(), user).mean, fading.mean, atol=1e-9)
    assert np.abs(steady.mean - fading.mean).max() > 0.05
    drifting = replace(fitted(), drift=Drift(half_life=0.001))
    refit(store, drifting, tmp_path)
    assert_allclose(
        posterior_of(store, drifting, user).mean, replace(fitted(), drift=Drift(0.001)).posterior(records).mean
    )


def test_the_command_says_what_it_did(tmp_path):
    url, folder = f"sqlite:///{tmp_path / 'palate.db'}", tmp_path / "model"
    fitted().save(folder)
    with Store.open(url) as opened:
        user = opened.ensure_user("ann")
        opened.append(user, people()[0].model_copy(update={"user_id": "ann"}))  # of texts that the model knows
    assert palate("refit", folder, "--database", url).out == "1 people computed, 0 were up to date\n"
    assert palate("refit", folder, "--database", url, "--json").json == {
        "fingerprint": fitted().fingerprint,
        "computed": 0,
        "current": 1,
    }
