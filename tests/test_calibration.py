"""The prior: EM against its fixed point, and folds that never let one group stand on both sides."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import norm
from tests.support import Planted, planted

from palate.rewards import calibration
from palate.rewards.calibration import LAPSE, Calibration, cross_fit
from palate.rewards.factorization import Choices, fit_weights
from palate.rewards.population import fit_prior
from palate.rewards.posterior import Floats, Gaussian, Mixture, Observations, laplace_posterior


def grouped(truth: Planted, groups: int) -> Choices:
    return replace(truth.choices, group=np.arange(truth.choices.n_users) % groups)


def test_the_prior_is_a_fixed_point_of_em():
    truth = planted(users=40, each=30, rank=2)
    said = truth.choices.observations(truth.z @ truth.base.T)
    prior = fit_prior(said, 0.0, max_rounds=500)
    people = laplace_posterior(said, prior)
    # One more person than were seen: the population's taste once, unit variance.
    mean = (people.mean.sum(axis=0) + np.eye(3)[0]) / 41
    d = np.vstack([people.mean, np.eye(3)[0]]) - mean
    cov = (np.einsum("ui,uj->ij", d, d) + people.cov.sum(axis=0) + np.eye(3)) / 41
    assert_allclose(prior.mean, mean, atol=2e-3)
    assert_allclose(prior.cov, cov, rtol=0.02, atol=0.02)


def test_the_prior_finds_how_people_truly_differ():
    truth = planted(users=300, each=100, rank=2)
    prior = fit_prior(truth.choices.observations(truth.z @ truth.base.T), 0.0)
    assert_allclose(prior.mean, truth.tastes.mean(axis=0), atol=0.3)
    # Everybody has the population's weight 1: its spread is the smallest.
    assert_allclose(np.sqrt(np.diag(prior.cov))[1:], truth.tastes.std(axis=0)[1:], rtol=0.25)
    assert prior.cov[0, 0] < 0.5


@pytest.mark.parametrize("rows", [0, 1])
def test_one_person_gives_a_proper_prior(rows):
    said = Observations.of(np.ones((rows, 2)), np.zeros(rows, int), 1)
    prior = fit_prior(said, LAPSE)
    assert (np.linalg.eigvalsh(prior.cov) > 0.1).all()
    assert np.isfinite(prior.mean).all()


def spy(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Choices, Choices]]:
    """Of each fold, what was fitted on and what was held out."""
    folds: list[tuple[Choices, Choices]] = []
    fitted: list[Choices] = []
    held_out = calibration._held_out

    def record_fit(z, choices, *args, **options):
        fitted.append(choices)
        return fit_weights(z, choices, *args, **options)

    def record_held_out(phi, new, *args):
        folds.append((fitted[-1], new))
        return held_out(phi, new, *args)

    monkeypatch.setattr(calibration, "fit_weights", record_fit)
    monkeypatch.setattr(calibration, "_held_out", record_held_out)
    return folds


@pytest.mark.parametrize(("groups", "expected"), [(2, 2), (6, 4), (30, 4)])
def test_no_group_stands_on_both_sides(monkeypatch, groups, expected):
    folds = spy(monkeypatch)
    truth = planted(users=30, each=24, rank=1, prompts=24)
    found = cross_fit(truth.z, grouped(truth, groups), 2)
    assert len(folds) == expected
    for seen, unseen in folds:
        assert not set(seen.group) & set(unseen.group)
        assert not set(seen.prompt) & set(unseen.prompt)
    # Everybody is held out once, and their group's number came along.
    assert found.people == 30
    assert sorted(g for _, unseen in folds for g in unseen.group) == sorted(np.arange(30) % groups)


def test_with_few_prompts_only_people_are_held_out(monkeypatch):
    folds = spy(monkeypatch)
    truth = planted(users=12, each=24, rank=1, prompts=3)
    cross_fit(truth.z, grouped(truth, 4), 2)
    assert len(folds) == 4
    for seen, unseen in folds:
        assert not set(seen.group) & set(unseen.group)
        assert set(seen.prompt) == set(unseen.prompt) == {0, 1, 2}


def test_one_group_alone_cannot_be_split():
    truth = planted(users=10, each=10, rank=1)
    assert cross_fit(truth.z, grouped(truth, 1), 2) == Calibration(1.0, 1.0, LAPSE, {}, {}, 0)


def test_cross_fitting_is_repeatable_and_its_figures_are_sound():
    truth = planted(users=24, each=30, rank=1, prompts=24)
    found = cross_fit(truth.z, truth.choices, 2, seed=3)
    assert found == cross_fit(truth.z, truth.choices, 2, seed=3)
    assert set(found.log_loss) == set(found.auc) == {0, 5, 10}
    assert all(0 < loss < 1 for loss in found.log_loss.values())
    assert all(0 <= auc <= 1 for auc in found.auc.values())
    assert found.auc[10] > found.auc[0]
    assert 0 < found.lapse < 0.5


def test_scales_undo_a_prior_that_is_wrong(monkeypatch):
    truth = planted(users=40, each=30, rank=1, prompts=24)
    right = cross_fit(truth.z, truth.choices, 2)

    def wrong(said, lapse, parts):
        prior = fit_prior(said, lapse)
        return Gaussian(4 * prior.mean, prior.cov / 16)

    monkeypatch.setattr(calibration, "fit_prior", wrong)
    found = cross_fit(truth.z, truth.choices, 2)
    assert found.mean_scale < 0.6 * right.mean_scale
    assert found.spread_scale > 1.5 * right.spread_scale


def test_a_calibration_scales_mean_and_deviation():
    scaled = Calibration(mean_scale=2.0, spread_scale=3.0).apply(Gaussian(np.array([1.0, 0.0]), np.eye(2)))
    assert_allclose(scaled.mean, [2, 0])
    assert_allclose(scaled.cov, 9 * np.eye(2))


def test_a_mixture_is_scaled_as_a_whole():
    prior = Mixture(np.array([0.25, 0.75]), Gaussian(np.array([[4.0, 0.0], [0.0, 2.0]]), np.stack([np.eye(2)] * 2)))
    scaled = Calibration(mean_scale=2.0, spread_scale=3.0).apply(prior)
    assert_allclose(scaled.mean, 2 * prior.mean)
    assert_allclose(scaled.cov, 9 * prior.cov)
    # The parts keep their places: so many deviations of the whole from its mean.
    assert_allclose(scaled.parts.mean - scaled.mean, 3 * (prior.parts.mean - prior.mean))
    assert_array_equal(scaled.weights, prior.weights)


PEOPLE = 64


def choices_of(own: Floats) -> tuple[Floats, Choices]:
    """Answers, and what people choose who have these weights on the one axis beside the population's."""
    truth, rng = planted(users=PEOPLE, each=40, rank=1, prompts=24, seed=1), np.random.default_rng(1)
    first, other = truth.choices.chosen, truth.choices.rejected
    rewards = np.column_stack([np.ones(PEOPLE), own]) @ truth.base
    logit = np.sum((truth.z[first] - truth.z[other]) * rewards[truth.choices.user], axis=1)
    flip = rng.random(len(logit)) > 1 / (1 + np.exp(-logit))
    chosen, rejected = np.where(flip, other, first), np.where(flip, first, other)
    return truth.z, replace(truth.choices, chosen=chosen, rejected=rejected)


@cache
def cross_fitted(kind: str) -> Calibration:
    # A cloud as round as so many people can be.
    noise = np.random.default_rng(0).permutation(norm.ppf((np.arange(PEOPLE) + 0.5) / PEOPLE))
    own = 0.7 * noise if kind == "one cloud" else np.where(np.arange(PEOPLE) % 2, 4.0, -4.0) + 0.2 * noise
    return cross_fit(*choices_of(own), 2)


@pytest.fixture
def gain(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], float]:
    """By what share of one part's loss the parts that were chosen lower it."""

    def gain(kind: str) -> float:
        chosen = cross_fitted(kind).losses.sum()
        monkeypatch.setattr(calibration, "PARTS", (1,))
        one = cross_fitted.__wrapped__(kind)
        assert one.parts == 1
        return float(1 - chosen / one.losses.sum())

    return gain


def test_more_parts_are_kept_where_people_fall_into_camps(gain):
    assert cross_fitted("two camps").parts > 1
    assert len(cross_fitted("two camps").losses) == PEOPLE
    assert gain("two camps") > 0.03


def test_in_one_cloud_the_number_of_parts_makes_no_difference(gain):
    # A standard error is a low bar: two parts often pass it, by a hair, and do as one does.
    assert abs(gain("one cloud")) < 0.005


def test_parts_are_kept_only_for_a_gain_of_more_than_a_standard_error():
    one = Calibration(losses=np.full(100, 5.0))
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(100)
    noise -= noise.mean()
    for gain, better in ((0.0, False), (0.05, False), (0.2, True), (-0.2, False)):
        # Of 100 groups with deviation 1, the standard error of the mean gain is 0.1.
        other = Calibration(losses=5.0 - gain - noise / noise.std(ddof=1))
        assert other.foretells_better_than(one) == better
    assert not Calibration(losses=np.zeros(1)).foretells_better_than(Calibration(losses=np.ones(1)))


def test_the_guard_trusts_people_s_own_answers_where_people_differ():
    assert cross_fitted("two camps").guard > max(1.0, cross_fitted("one cloud").guard)
    z, choices = choices_of(np.zeros(PEOPLE))
    coin = np.random.default_rng(2).random(len(choices.user)) < 0.5
    chosen, rejected = np.where(coin, [choices.chosen, choices.rejected], [choices.rejected, choices.chosen])
    # Of what is tossed with a coin nothing can be foretold.
    assert cross_fit(z, replace(choices, chosen=chosen, rejected=rejected), 2).guard < 0.5
