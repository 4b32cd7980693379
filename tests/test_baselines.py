"""The peers: laws that all of them keep, and each against an oracle that is not our code."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize
from scipy.special import softmax
from tests.support import planted

from palate.rewards.baselines import (
    PAL,
    PEERS,
    VPL,
    Answers,
    BradleyTerry,
    Fitted,
    LoRe,
    Neighbours,
    Peer,
    PerUser,
    PReF,
    vpl,
)
from palate.rewards.baselines.base import descend, minus_log_likelihood
from palate.rewards.baselines.neighbours import Voting
from palate.rewards.baselines.pal import Prototypes
from palate.rewards.baselines.pref import svd_of_choices
from palate.rewards.baselines.simplex import mixture_rewards, mixture_weights
from palate.rewards.factorization import Choices
from palate.rewards.posterior import Floats

every_peer = pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
TRUTH = planted(users=16, each=60, rank=2, features=6, prompts=20)


@cache
def fitted(setting: Peer) -> Fitted:
    return setting.fit(TRUTH.z, TRUTH.choices, seed=3)


def said(people: int = 5, t: int = 8, seed: int = 0, z: Floats = TRUTH.z) -> Answers:
    """Random answers of people to random questions."""
    rng = np.random.default_rng(seed)
    first, second = rng.integers(len(z), size=(2, people, t))
    return Answers(first, second, rng.choice([0.0, 1.0, 0.7], (people, t)), np.ones((people, t)))


def of(answers: Answers, people: slice | np.ndarray) -> Answers:
    return Answers(*(getattr(answers, name)[people] for name in ("first", "second", "label", "weight")))


# Laws


@every_peer
def test_the_grid_is_eight_settings_one_of_them_the_peers_own(peer):
    assert len(set(peer.grid())) == 8
    assert {type(setting) for setting in peer.grid()} == {peer}


def test_every_peer_has_a_name_of_its_own():
    assert len({peer.name for peer in PEERS}) == len(PEERS)


@every_peer
def test_the_same_seed_gives_the_same_rewards_and_no_generator_but_its_own_is_drawn_from(peer):
    before = fitted(peer()).rewards(TRUTH.z, said())
    torch.manual_seed(0)
    np.random.seed(0)
    again = peer().fit(TRUTH.z, TRUTH.choices, seed=3).rewards(TRUTH.z, said())
    assert_array_equal(again, before)
    assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(0))
    assert np.random.random() == np.random.RandomState(0).random()


@every_peer
def test_many_at_once_are_each_alone_in_any_order(peer):
    answers, model = said(), fitted(peer())
    together = model.rewards(TRUTH.z, answers)
    assert together.shape == (5, len(TRUTH.z))
    alone = [model.rewards(TRUTH.z, of(answers, slice(user, user + 1)))[0] for user in range(5)]
    assert_allclose(together, alone, atol=1e-8)
    order = np.array([3, 1, 4, 0, 2])
    assert_allclose(model.rewards(TRUTH.z, of(answers, order)), together[order], atol=1e-8)


@every_peer
def test_who_said_nothing_gets_the_populations_rewards_or_none(peer):
    rewards = fitted(peer()).rewards(TRUTH.z, said(t=0))
    assert rewards.shape == (5, len(TRUTH.z))
    assert np.isfinite(rewards).all()
    assert_allclose(rewards, np.tile(rewards[0], (5, 1)), atol=1e-12)
    if peer in (PerUser, PReF):  # they know no population
        assert_array_equal(rewards, 0.0)


@every_peer
def test_a_place_that_is_only_filled_says_nothing(peer):
    answers = said()
    more = said(t=3, seed=1)
    filled = Answers(
        np.concatenate([answers.first, more.first], axis=1),
        np.concatenate([answers.second, more.second], axis=1),
        np.concatenate([answers.label, more.label], axis=1),
        np.tile([1.0] * 8 + [0.0] * 3, (5, 1)),
    )
    assert_allclose(fitted(peer()).rewards(TRUTH.z, filled), fitted(peer()).rewards(TRUTH.z, answers), atol=1e-6)


@every_peer
def test_which_answer_stands_first_does_not_matter(peer):
    answers = said()
    turned = replace(answers, first=answers.second, second=answers.first, label=1 - answers.label)
    assert_allclose(fitted(peer()).rewards(TRUTH.z, turned), fitted(peer()).rewards(TRUTH.z, answers), atol=1e-6)


@every_peer
def test_who_contradicts_themselves_or_compares_an_answer_with_itself_gets_finite_rewards(peer):
    answers = said(t=4)
    twice = Answers(
        np.concatenate([answers.first, answers.first], axis=1),
        np.concatenate([answers.second, answers.second], axis=1),
        np.concatenate([np.ones((5, 4)), np.zeros((5, 4))], axis=1),
        np.ones((5, 8)),
    )
    same = Answers(answers.first, answers.first, np.ones((5, 4)), np.ones((5, 4)))
    for odd in (twice, same):
        assert np.isfinite(fitted(peer()).rewards(TRUTH.z, odd)).all()


@every_peer
def test_the_order_of_a_persons_answers_does_not_matter(peer):
    answers = said()
    order = np.random.default_rng(0).permutation(8)
    turned = Answers(*(getattr(answers, name)[:, order] for name in ("first", "second", "label", "weight")))
    assert_allclose(fitted(peer()).rewards(TRUTH.z, turned), fitted(peer()).rewards(TRUTH.z, answers), atol=1e-6)


@every_peer
def test_answers_teach(peer):
    """Rewards of people whose taste is of the training people's make, before and after 30 answers."""
    rng = np.random.default_rng(9)
    people = 20
    tastes = np.column_stack([np.ones(people), 2 * rng.standard_normal((people, 2))]) @ TRUTH.base
    true = tastes @ TRUTH.z.T
    first, second = rng.integers(len(TRUTH.z), size=(2, people, 30))
    label = (np.take_along_axis(true, first, 1) > np.take_along_axis(true, second, 1)).astype(float)
    answers = Answers(first, second, label, np.ones((people, 30)))

    def agreement(t: int) -> float:
        rewards = fitted(peer()).rewards(TRUTH.z, of_first(answers, t))
        one, other = rng.integers(len(TRUTH.z), size=(2, 400))
        return float(np.mean(np.sign(rewards[:, one] - rewards[:, other]) == np.sign(true[:, one] - true[:, other])))

    if peer is BradleyTerry:
        assert agreement(30) > 0.55
    else:
        assert agreement(30) > agreement(0) + 0.1


def of_first(answers: Answers, t: int) -> Answers:
    return Answers(*(getattr(answers, name)[:, :t] for name in ("first", "second", "label", "weight")))


# Oracles


def ridge_logistic(v: Floats, precision: float, label: Floats | None = None) -> Floats:
    y = np.ones(len(v)) if label is None else label

    def objective(w: Floats) -> float:
        logit = v @ w
        return float(np.sum(np.logaddexp(0, logit) - y * logit) + 0.5 * precision * w @ w)

    return np.asarray(minimize(objective, np.zeros(v.shape[1]), method="BFGS", options={"gtol": 1e-7}).x)


def test_one_reward_for_all_is_penalised_logistic_regression():
    truth = planted(users=8, each=50, rank=1, features=6)
    weights = BradleyTerry(10.0).fit(truth.z, truth.choices).weights
    exact = ridge_logistic(truth.z[truth.choices.chosen] - truth.z[truth.choices.rejected], 10.0)
    assert_allclose(weights, exact, atol=0.01 * float(np.linalg.norm(exact)))


@pytest.mark.parametrize(("answers", "features"), [(6, 20), (12, 5), (1, 4)])
def test_a_model_per_person_is_ridge_in_all_dimensions(answers, features):
    z = np.random.default_rng(0).standard_normal((40, features))
    asked = said(3, answers, z=z)
    ours = PerUser(2.0).rewards(z, asked)
    for user in range(3):
        v = z[asked.first[user]] - z[asked.second[user]]
        assert_allclose(ours[user], z @ ridge_logistic(v, 2.0, asked.label[user]), atol=1e-4)


def test_neighbours_vote_as_a_plain_loop_counts():
    model, answers = Neighbours(0.7, 3.0).fit(TRUTH.z, TRUTH.choices), said(3, 5)
    rewards = model.rewards(TRUTH.z, answers)
    rms = np.sqrt(np.mean([x @ x for x in TRUTH.z]))

    def kernel(a: int, b: int) -> float:
        return float(np.exp(-np.sum((TRUTH.z[a] - TRUTH.z[b]) ** 2) / (2 * (0.7 * rms) ** 2)))

    def likeness(a: int, b: int, c: int, d: int) -> float:
        return kernel(a, c) - kernel(a, d) - kernel(b, c) + kernel(b, d)

    for user in range(3):
        for a, b in [(0, 7), (30, 2)]:
            votes = sum(
                (2 * label - 1) * likeness(a, b, c, d) / np.sqrt(likeness(c, d, c, d))
                for c, d, label in zip(answers.first[user], answers.second[user], answers.label[user], strict=True)
            )
            expected = (TRUTH.z[a] - TRUTH.z[b]) @ model.population + 3.0 * votes
            assert rewards[user, a] - rewards[user, b] == pytest.approx(expected)


def test_a_wide_kernel_compares_differences_linearly():
    z = np.random.default_rng(0).standard_normal((30, 4))
    model = Voting(np.zeros(4), width=1e3, votes=1.0)
    answers = said(1, 1, z=z)
    v = z[answers.first[0, 0]] - z[answers.second[0, 0]]
    votes = model.rewards(z, replace(answers, label=np.ones((1, 1))))[0]
    assert np.corrcoef(votes, z @ v)[0, 1] > 0.999


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.03, 0.3, 3.0]))
def test_weights_on_the_simplex_are_the_best_ones(seed, pull):
    rng = np.random.default_rng(seed)
    v = rng.standard_normal((1, 6, 3))
    answers = Answers(np.zeros((1, 6), int), np.zeros((1, 6), int), rng.choice([0.0, 1.0], (1, 6)), np.ones((1, 6)))
    weights = mixture_weights(v, answers, pull)
    assert weights.min() >= 0 and weights.sum() == pytest.approx(1)

    def loss(theta: Floats) -> float:
        logit = v[0] @ softmax(theta)
        return float(np.sum(np.logaddexp(0, logit) - answers.label[0] * logit) + 0.5 * pull * theta @ theta)

    best = minimize(loss, np.zeros(3), method="BFGS")
    # The logits of a softmax add up to nought at the optimum, so they can be read off the weights.
    theta = np.log(weights[0]) - np.log(weights[0]).mean()
    assert loss(theta) <= best.fun + 1e-3


def mixed_people(rewards: Floats, users: int, each: int, seed: int) -> tuple[Floats, Choices]:
    """People whose reward is one of the columns of (n, B) rewards, mostly, and their choices."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(rewards.shape[1], 0.2), users)
    user = np.repeat(np.arange(users), each)
    pair = rng.integers(len(rewards), size=(users * each, 2))
    pair[:, 1] = (pair[:, 0] + 1 + pair[:, 1] % (len(rewards) - 1)) % len(rewards)
    own = np.take_along_axis(weights[user] @ rewards.T, pair, axis=1)
    turned = own[:, 0] < own[:, 1]
    pair[turned] = pair[turned, ::-1]
    count = np.arange(len(user))
    return weights, Choices(pair[:, 0], pair[:, 1], user, np.ones(len(user)), count, np.arange(users))


def heard(choices: Choices, users: int, t: int) -> Answers:
    rows = np.searchsorted(choices.user, np.arange(users))[:, None] + np.arange(t)
    ones = np.ones((users, t))
    return Answers(choices.chosen[rows], choices.rejected[rows], ones, ones)


def mean_correlation(ours: Floats, true: Floats) -> float:
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(ours, true, strict=True)]))


def test_lore_finds_people_planted_on_a_simplex():
    rng = np.random.default_rng(1)
    z = rng.standard_normal((80, 5))
    basis = 2 * z @ rng.standard_normal((5, 3))
    _, train = mixed_people(basis, 40, 60, seed=2)
    weights, new = mixed_people(basis, 20, 20, seed=3)
    ours = LoRe(size=4, penalty=0.3, pull=0.03).fit(z, train).rewards(z, heard(new, 20, 20))
    assert mean_correlation(ours, weights @ basis.T) > 0.9


def test_pal_finds_people_planted_between_ideal_points():
    rng = np.random.default_rng(1)
    z = rng.standard_normal((80, 5))
    place, points = z @ rng.standard_normal((5, 2)), 3 * rng.standard_normal((3, 2))
    basis = -np.sum((place[:, None] - points) ** 2, axis=2)
    _, train = mixed_people(basis, 40, 60, seed=2)
    weights, new = mixed_people(basis, 20, 20, seed=3)
    ours = PAL(penalty=1.0, pull=0.03, prototypes=4, dim=2).fit(z, train).rewards(z, heard(new, 20, 20))
    assert mean_correlation(ours, weights @ basis.T) > 0.9


@pytest.mark.parametrize("hidden", [0, 3])
def test_pal_is_the_distance_to_a_persons_own_ideal_point(hidden):
    rng = np.random.default_rng(0)
    z, answers = rng.standard_normal((10, 4)), said(2, 3, z=np.zeros((10, 4)))
    maps = [rng.standard_normal((2, 4))]
    if hidden:
        maps += [rng.standard_normal((hidden, 4)), rng.standard_normal((2, hidden))]
    points = rng.standard_normal((3, 2))
    rewards = Prototypes(maps, points, 0.1).rewards(z, answers)
    f = np.array([maps[0] @ x + (maps[2] @ np.maximum(maps[1] @ x, 0) if hidden else 0) for x in z])
    basis = -np.sum((f[:, None] - points) ** 2, axis=2)
    weights = mixture_weights(answers.differences(basis), answers, 0.1)
    assert_allclose(rewards, mixture_rewards(basis, answers, 0.1), atol=1e-9)
    for user in range(2):
        distance = -np.sum((f - weights[user] @ points) ** 2, axis=1)
        # The same but for a constant of the person.
        assert_allclose(distance - distance[0], rewards[user] - rewards[user, 0], atol=1e-9)


def test_pref_adapts_by_ridge_logistic_regression_on_its_base_rewards():
    model, answers = PReF().fit(TRUTH.z, TRUTH.choices), said(3, 7)
    rewards, phi = model.rewards(TRUTH.z, answers), TRUTH.z @ model.weights.T
    for user in range(3):
        v = phi[answers.first[user]] - phi[answers.second[user]]
        assert_allclose(rewards[user], phi @ ridge_logistic(v, 1.0, answers.label[user]), atol=1e-3)


def test_pref_starts_at_the_svd_of_the_choices_where_people_share_pairs():
    truth = planted(users=30, each=40, rank=2, features=6, shared=True)
    w, tastes = svd_of_choices(truth.z, truth.choices, 3)
    choices = truth.choices
    pairs = sorted(
        {(min(c, r), max(c, r)) for c, r in zip(choices.chosen.tolist(), choices.rejected.tolist(), strict=True)}
    )
    dense = np.zeros((30, len(pairs)))
    for c, r, user in zip(choices.chosen.tolist(), choices.rejected.tolist(), choices.user, strict=True):
        dense[user, pairs.index((min(c, r), max(c, r)))] += 1 if c < r else -1
    u, s, vt = np.linalg.svd(dense, full_matrices=False)
    d = np.array([truth.z[a] - truth.z[b] for a, b in pairs])
    ridge = np.trace(d.T @ d) / 6
    factors = np.linalg.solve(d.T @ d + ridge * np.eye(6), d.T @ (vt[:3].T * np.sqrt(s[:3])))
    assert_allclose(tastes @ w, (u[:, :3] * np.sqrt(s[:3])) @ factors.T, atol=1e-8)


def test_the_divergence_is_that_of_torch():
    rng = np.random.default_rng(0)
    mean, log_variance = (torch.from_numpy(x) for x in rng.standard_normal((2, 4, 3)))
    normal = torch.distributions.Normal
    exact = torch.distributions.kl_divergence(normal(mean, (0.5 * log_variance).exp()), normal(0.0, 1.0)).sum(dim=1)
    assert_allclose(vpl.divergence(mean, log_variance), exact)


def test_the_gradient_through_encoder_and_divergence_is_right():
    networks = {name: x.double() for name, x in VPL(hidden=3, latent=2)._start(4, np.random.default_rng(0)).items()}
    table, answers = torch.from_numpy(TRUTH.z[:12, :4]), said(2, 3, z=TRUTH.z[:12])

    def loss(*weights: torch.Tensor) -> torch.Tensor:
        return vpl.divergence(*vpl.encode(dict(zip(networks, weights, strict=True)), table, answers)).sum()

    leaves = [x.requires_grad_(True) for x in networks.values()]
    assert torch.autograd.gradcheck(loss, leaves)


def test_a_context_is_drawn_from_the_persons_own_comparisons_without_repeats():
    choices = TRUTH.choices
    own = [
        set(zip(choices.chosen[choices.user == u], choices.rejected[choices.user == u], strict=True)) for u in range(16)
    ]
    for seed in range(5):
        drawn = vpl._draw(choices, np.random.default_rng(seed))
        assert drawn.first.shape[1] <= vpl.CONTEXT
        assert (drawn.weight.sum(axis=1) >= 1).all()
        for user in range(16):
            real = drawn.weight[user] > 0
            pairs = list(zip(drawn.first[user][real], drawn.second[user][real], strict=True))
            assert set(pairs) <= own[user]


def test_descent_reaches_the_least_squares_solution():
    rng = np.random.default_rng(0)
    a, b = torch.from_numpy(rng.standard_normal((20, 3))), torch.from_numpy(rng.standard_normal(20))
    x = torch.zeros(3, dtype=torch.float64)
    descend(lambda: torch.sum((a @ x - b) ** 2), [x], steps=500, rate=0.1)
    assert not x.requires_grad
    assert_allclose(x, np.linalg.lstsq(a.numpy(), b.numpy())[0], atol=1e-4)


def test_the_likelihood_is_the_mean_of_its_draws():
    choices, z = TRUTH.choices, torch.from_numpy(TRUTH.z)

    def logit(chosen: torch.Tensor, rejected: torch.Tensor, user: torch.Tensor) -> torch.Tensor:
        return (z[chosen] - z[rejected])[:, 0] * (1 + user)

    value = (TRUTH.z[choices.chosen] - TRUTH.z[choices.rejected])[:, 0] * (1 + choices.user)
    whole = minus_log_likelihood(choices, np.random.default_rng(0))(logit)
    assert float(whole) == pytest.approx(np.logaddexp(0, -value).sum())
    some = minus_log_likelihood(choices, np.random.default_rng(0), most=480)
    assert np.mean([float(some(logit)) for _ in range(200)]) == pytest.approx(float(whole), rel=0.02)
