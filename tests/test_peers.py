"""The peers in the benchmarks: the same questions, folds that keep apart, and what is picked, against plain loops."""

import numpy as np
import pytest
from tests.support import Shown, shorten

from palate.bench import ablations, peers, unseen
from palate.bench.people import Person, parse_kind
from palate.bench.picks import Shelf
from palate.data import load_people
from palate.rewards import laplace_posterior
from palate.rewards.baselines import PEERS, BradleyTerry, Neighbours, Peer, PerUser
from palate.rewards.evaluation import auc_by_user
from palate.rewards.factorization import Choices
from palate.rewards.indexing import Indexed
from palate.rewards.posterior import Floats, Gaussian, Observations


def compared(users: int = 6, rows: int = 24, prompts: int = 12) -> tuple[Floats, Choices]:
    """Coordinates of 40 answers, and people of 3 groups who choose between them."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((40, 3))
    user = rng.permutation(np.repeat(np.arange(users), rows))
    pair = np.array([rng.choice(40, 2, replace=False) for _ in user])
    taste = rng.standard_normal((users, 3))
    turned = np.sum((z[pair[:, 0]] - z[pair[:, 1]]) * taste[user], axis=1) < 0
    pair[turned] = pair[turned, ::-1]
    prompt = rng.integers(prompts, size=len(user))
    return z, Choices(pair[:, 0], pair[:, 1], user, np.ones(len(user)), prompt, np.arange(users) % 3)


def halves(choices: Choices) -> unseen.Unseen:
    asked = np.random.default_rng(0).random(len(choices.user)) < 0.5
    return unseen.Unseen.of(choices, asked, ~asked)


# Questions


def test_random_questions_are_each_persons_own_and_fewer_are_the_first_of_more():
    choices = compared()[1].where(np.arange(144) % 7 > 0)
    people = halves(choices)
    drawn = people.questions(9, np.random.default_rng(0))
    user = choices.user[people.asked]
    assert drawn.real.sum(axis=1).tolist() == np.minimum(np.bincount(user), 9).tolist()
    said = people.answers(drawn, 4)
    for person in range(6):
        own = drawn.places[person][drawn.real[person]]
        assert len(set(own)) == len(own)
        assert (user[own] == person).all()
        assert said.first[person].tolist() == choices.chosen[people.asked[drawn.places[person, :4]]].tolist()


def test_who_has_nothing_to_be_asked_is_asked_nothing():
    choices = compared()[1]
    people = unseen.Unseen.of(choices, choices.user == 2, choices.user != 2)
    said = people.answers(people.questions(5, np.random.default_rng(0)), 5)
    assert said.weight.sum(axis=1).tolist() == [0, 0, 5, 0, 0, 0]
    nobody = unseen.Unseen.of(choices, np.zeros(144, bool), np.ones(144, bool))
    assert nobody.answers(nobody.questions(5, np.random.default_rng(0)), 5).label.shape == (6, 0)


def test_rewards_are_measured_as_a_plain_loop_does():
    choices = compared()[1]
    people, rewards = halves(choices), np.random.default_rng(0).standard_normal((6, 40)).round()
    auc, accuracy = people.measure(rewards)
    ahead = []
    for row in people.test:
        own = rewards[choices.user[row]]
        ahead.append(own[choices.chosen[row]] - own[choices.rejected[row]])
    assert accuracy == pytest.approx(np.mean([(x > 0) + 0.5 * (x == 0) for x in ahead]))
    assert auc == pytest.approx(auc_by_user(np.array(ahead), choices.user[people.test], 6))


# Tuning


@pytest.mark.parametrize("prompts", [12, 1])
def test_neither_people_nor_prompts_nor_groups_stand_on_both_sides_of_a_fold(prompts):
    choices = compared(users=9, rows=40, prompts=prompts)[1]
    folds = peers.held_out(choices, seed=0)
    assert len(folds) == 3
    tried: set[int] = set()
    for known, unknown, questions in folds:
        said = unknown.choices
        assert not set(known.group) & set(said.group)
        assert not set(unknown.asked) & set(unknown.test)
        if prompts > 1:
            assert not set(known.prompt) & set(said.prompt)
            asked, tested = (
                set(zip(said.user[rows], said.prompt[rows], strict=True)) for rows in (unknown.asked, unknown.test)
            )
            assert asked and tested and not asked & tested
        assert questions.places.max() < len(unknown.asked)
        tried |= set(said.group)
    assert tried == {0, 1, 2}


def test_people_of_one_group_cannot_be_held_out():
    choices = compared()[1]
    one = Choices(choices.chosen, choices.rejected, choices.user, choices.strength, choices.prompt, np.zeros(6, int))
    assert peers.held_out(one, seed=0) == []


@pytest.mark.parametrize("peer", [PerUser, BradleyTerry, Neighbours])
def test_the_setting_that_does_best_on_held_out_people_is_chosen(peer: type[Peer]):
    z, choices = compared(users=9, rows=60)
    folds = peers.held_out(choices, seed=0)
    values = []
    for setting in peer.grid():
        aucs = []
        for known, unknown, questions in folds:
            model = setting.fit(z, known)
            for t in (5, 10, 20):
                aucs.append(np.nanmean(unknown.measure(model.rewards(z, unknown.answers(questions, t)))[0]))
        values.append(np.mean(aucs))
    best, value = peers.tune(peer, z, folds, seed=0)
    assert value == max(values)
    assert best == peer.grid()[int(np.argmax(values))]


def test_every_peer_is_tuned_the_same_way_and_asked_the_same_questions(monkeypatch):
    shorten(monkeypatch)
    z, choices = compared(users=9, rows=40)
    people = halves(choices)
    questions = peers.random_questions(people, (0, 3), seed=1)
    told: list[tuple[str, int]] = []
    curves = peers.compare(
        (z, choices), (z, people), (0, 3), questions, observe=lambda name, t, rewards: told.append((name, t))
    )
    names = [peer.name for peer in PEERS]
    names.insert(names.index("pref") + 1, peers.OWN_QUESTIONS)
    assert list(curves) == names
    best = peers.tune(PerUser, z, peers.held_out(choices, 0), 0)[0]
    assert curves["per_user"].setting == best
    draws = [people.measure(best.fit(z, choices).rewards(z, people.answers(drawn, 3))) for drawn in questions]
    assert curves["per_user"].auc[3] == pytest.approx(np.mean([auc for auc, _ in draws], axis=0))
    assert curves["per_user"].accuracy[3] == pytest.approx(np.mean([accuracy for _, accuracy in draws]))
    assert curves["bradley_terry"].auc[3] == pytest.approx(curves["bradley_terry"].auc[0])
    assert all(told.count((name, 3)) == (1 if name == peers.OWN_QUESTIONS else peers.RANDOM_DRAWS) for name in names)


def test_our_method_learns_from_the_same_random_questions():
    z, choices = compared()
    people, prior = halves(choices), Gaussian(np.full(3, 0.2), np.eye(3))
    questions = peers.random_questions(people, (0, 4), seed=0)
    measured = peers.ours_at_random(z, people, prior, 0.05, (0, 4), questions)
    for drawn, figures in zip(questions, measured[4], strict=True):
        for user in range(6):
            rows = people.asked[drawn.places[user, :4]]
            v = z[choices.chosen[rows]] - z[choices.rejected[rows]]
            mean = laplace_posterior(Observations.of(v, np.zeros(4, int), 1), prior, 0.05).mean[0]
            test = people.test[choices.user[people.test] == user]
            ahead = (z[choices.chosen[test]] - z[choices.rejected[test]]) @ mean
            assert figures.auc[user] == pytest.approx(auc_by_user(ahead, np.zeros(len(test), int), 1)[0])


# What is picked


def test_picks_are_those_of_a_plain_loop():
    answers, rows = unseen.unseen_answers(), unseen.unseen_people(0, quick=True)
    shelf = Shelf.of(answers, rows)
    ours, theirs = np.random.default_rng(0).standard_normal((2, 56, len(answers)))
    picked, popular = shelf.picked(ours), shelf.picked(theirs)
    share, most = shelf.gain_share(picked, popular)
    wins = shelf.wins(picked, popular)
    users = list(dict.fromkeys(row.user_id for row in rows))
    for number in (0, 41):
        own = [row for row in rows if row.user_id == users[number]]
        likes = Person(parse_kind(own[0].kind or "")).reward(answers)
        gained, possible, won = [], [], []
        for prompt in {row.prompt for row in own if row.split == "test"}:
            these = [i for i, answer in enumerate(answers) if answer.prompt == prompt]
            assert len(these) == 14
            mine = likes[these[int(np.argmax(ours[number, these]))]]
            all_s = likes[these[int(np.argmax(theirs[number, these]))]]
            gained.append(mine - all_s)
            possible.append(max(likes[these]) - all_s)
            won.append((mine > all_s) + 0.5 * (mine == all_s))
        assert share[number] == pytest.approx(np.sum(gained) / np.sum(possible))
        assert most[number] == pytest.approx(np.mean(possible))
        assert wins[number] == pytest.approx(np.mean(won))


def test_who_picks_perfectly_gains_all_and_the_spoilt_can_be_left_out():
    answers, rows = unseen.unseen_answers(), unseen.unseen_people(0, quick=True)
    shelf, unspoilt = Shelf.of(answers, rows), Shelf.of(answers, rows, spoilt=False)
    share, _ = shelf.gain_share(shelf.picked(shelf.utility), shelf.picked(np.zeros((56, len(answers)))))
    assert share == pytest.approx(1.0)
    assert (shelf.rows.shape, unspoilt.rows.shape) == ((40, 14), (40, 12))
    assert all(answers[i].spoilt is None for i in unspoilt.rows.ravel())


# Ablations


def test_every_arm_is_measured_and_lacks_what_it_lacks_against_the_whole(monkeypatch):
    monkeypatch.setattr(ablations, "ARMS", {"full": "", "random_start": "", "last_layer": "", "rank_1": ""})
    monkeypatch.setattr(ablations, "_STARTS", 2)
    train, new = Indexed.of(load_people()[::4]), Indexed.of(unseen.unseen_people(0, quick=True))
    told: list[int] = []
    figures = ablations.ablations(train, new, Shown(), Shown(), progress=lambda stage, done, total: told.append(done))
    assert told == [0, 1, 2, 3]
    for t in ablations.ABLATED_AT:
        assert figures[f"ablation.last_layer_minus_full.{t}"] == 0.0
        assert figures[f"ablation.random_start.{t}.sd"] >= 0
        gap = figures[f"ablation.rank_1.{t}"] - figures[f"ablation.full.{t}"]
        assert figures[f"ablation.rank_1_minus_full.{t}"] == pytest.approx(gap)
    # One reward for all learns nothing of a person.
    assert figures["ablation.rank_1.20"] == pytest.approx(figures["ablation.rank_1.0"], abs=1e-9)
    assert figures["ablation.full.20"] > figures["ablation.full.0"] + 0.1
