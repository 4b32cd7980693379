"""Figures, against scikit-learn and naive loops; learning curves on people with planted tastes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.metrics import roc_auc_score
from tests.support import KINDS, fitted, people

from palate.errors import InputError
from palate.feedback import Comparison, Feedback, Rating
from palate.rewards.evaluation import (
    NewPeople,
    auc_by_user,
    calibration_error,
    evaluate,
    learning_curve,
    measure,
)
from palate.rewards.posterior import Floats, Gaussian, Observations, laplace_posterior, predict
from palate.rewards.queries import STRATEGIES

PRIOR = Gaussian(np.array([1.0, 0.0, 0.0]), np.diag([0.2, 4.0, 4.0]))


def new_people(users: int = 40, rows: int = 15, tests: int = 60, fewer: dict[int, int] | None = None) -> NewPeople:
    """People drawn from PRIOR who answer as the model says; `fewer` rows for some."""
    rng = np.random.default_rng(0)
    tastes = rng.multivariate_normal(PRIOR.mean, PRIOR.cov, users)

    def preferred(user: np.ndarray) -> Floats:
        v = rng.standard_normal((len(user), 3))
        slip = rng.random(len(user)) > 1 / (1 + np.exp(-np.sum(v * tastes[user], axis=1)))
        return np.where(slip[:, None], -v, v)

    user = np.repeat(np.arange(users), [(fewer or {}).get(u, rows) for u in range(users)])
    test_user = np.repeat(np.arange(users), tests)
    prompt = rng.integers(6, size=len(user))
    return NewPeople(Observations.of(preferred(user), user, users), prompt, preferred(test_user), test_user)


@given(rows=st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 3)), max_size=25))
def test_auc_is_that_of_scikit_learn(rows):
    difference, user = np.array(rows, float).reshape(-1, 2).T
    ours = auc_by_user(difference, user.astype(int), 5)
    for person in range(5):
        mine = difference[user == person]
        if len(mine):
            truth = np.repeat([1, 0], len(mine))
            assert_allclose(ours[person], roc_auc_score(truth, np.r_[mine, -mine]), atol=1e-12)
        else:
            assert np.isnan(ours[person])


def naive_calibration_error(p: Floats, bins: int) -> float:
    """Loop over bins of predictions sorted by size; without ties."""
    both = sorted([(value, 1.0) for value in p] + [(1 - value, 0.0) for value in p])
    total, start = 0.0, 0
    for b in range(bins):
        size = len(both) // bins + (b < len(both) % bins)
        part = both[start : start + size]
        start += size
        if part:
            total += abs(sum(value for value, _ in part) - sum(happened for _, happened in part))
    return total / len(both)


@given(p=st.lists(st.floats(0.001, 0.999), min_size=1, max_size=60), bins=st.integers(1, 12))
def test_calibration_error_is_that_of_a_loop(p, bins):
    values = np.array(p)
    if len(np.unique(np.r_[values, 1 - values])) == 2 * len(values):
        assert_allclose(calibration_error(values, bins), naive_calibration_error(values, bins), atol=1e-9)
    assert 0 <= calibration_error(values, bins) <= 1


def test_calibration_error_by_hand():
    # Bins of (0.1, 0.4) and (0.6, 0.9): all of the upper half happened, none of the lower.
    assert_allclose(calibration_error(np.array([0.9, 0.6]), bins=2), (1.5 - 1.5 + 2 * 0.5) / 4)
    # Four in five right at 80 %: nothing to complain of.
    assert_allclose(calibration_error(np.repeat([0.8, 0.2], [80, 20])), 0.0, atol=1e-12)
    assert_allclose(calibration_error(np.full(50, 1.0)), 0.0, atol=1e-12)


@pytest.mark.parametrize("count", [1, 7, 100])
def test_knowing_nothing_is_perfectly_calibrated(count):
    assert_allclose(calibration_error(np.full(count, 0.5)), 0.0, atol=1e-12)


@given(p=st.lists(st.sampled_from([0.2, 0.5, 0.7, 0.9]), min_size=1, max_size=30), seed=st.integers(0, 9))
def test_the_order_of_equal_predictions_does_not_matter(p, seed):
    mixed = np.random.default_rng(seed).permutation(p)
    assert_allclose(calibration_error(mixed), calibration_error(np.array(p)), atol=1e-12)


def test_figures_are_those_of_naive_loops():
    people = new_people(users=5, tests=20)
    belief = laplace_posterior(people.asked, PRIOR)
    figures = measure(people, belief)
    right, losses = [], []
    for v, user in zip(people.test, people.test_user, strict=True):
        right.append(v @ belief.mean[user] > 0)
        losses.append(-np.log(predict(belief[int(user)], v[None])[0]))
    assert_allclose(figures.accuracy, np.mean(right))
    assert_allclose(figures.log_loss, np.mean(losses))
    assert 0 <= figures.ece <= 1


def test_who_cannot_tell_is_right_half_the_time():
    people = new_people(users=5)
    nothing = Gaussian(np.zeros((5, 3)), np.tile(np.eye(3), (5, 1, 1)))
    figures = measure(people, nothing)
    assert_array_equal(figures.auc, np.full(5, 0.5))
    assert figures.accuracy == 0.5
    assert_allclose([figures.log_loss, figures.ece], [np.log(2), 0.0], atol=1e-12)


def test_sure_and_wrong_is_a_large_loss_but_not_an_infinite_one():
    people = new_people(users=2, tests=3)
    sure = Gaussian(-1e4 * np.ones((2, 3)), np.tile(1e-9 * np.eye(3), (2, 1, 1)))
    assert np.isfinite(measure(people, sure).log_loss)


@pytest.mark.parametrize("name", STRATEGIES)
def test_people_are_known_better_after_answers(name):
    curve = learning_curve(new_people(), PRIOR, 0.0, (0, 5, 15), name)
    assert list(curve) == [0, 5, 15]
    auc = [np.mean(curve[count].auc) for count in curve]
    assert auc[0] + 0.05 < auc[1]
    assert auc[1] - 0.01 < auc[2]
    assert curve[15].log_loss < curve[0].log_loss
    assert all(figures.ece < 0.1 for figures in curve.values())


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_curve_begins_at_the_prior_and_ends_at_all_rows(name):
    people = new_people(users=10)
    curve = learning_curve(people, PRIOR, 0.05, (0, 15), name, seed=1)
    prior = Gaussian(np.tile(PRIOR.mean, (10, 1)), np.tile(PRIOR.cov, (10, 1, 1)))
    for count, belief in ((0, prior), (15, laplace_posterior(people.asked, PRIOR, 0.05))):
        assert_allclose(curve[count].auc, measure(people, belief).auc)
        assert_allclose(curve[count].log_loss, measure(people, belief).log_loss, rtol=1e-6)


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_same_seed_gives_the_same_curve(name):
    one, two = (learning_curve(new_people(), PRIOR, 0.05, (3,), name, seed=5) for _ in range(2))
    assert_array_equal(one[3].auc, two[3].auc)
    assert (one[3].accuracy, one[3].log_loss, one[3].ece) == (two[3].accuracy, two[3].log_loss, two[3].ece)


def test_who_has_fewer_rows_is_asked_all_of_them():
    people = new_people(users=6, rows=4, fewer={1: 0, 3: 2})
    curve = learning_curve(people, PRIOR, 0.0, (2, 4, 20), "bald")
    everything = measure(people, laplace_posterior(people.asked, PRIOR))
    assert_allclose(curve[20].auc, everything.auc)
    assert_allclose(curve[4].auc, everything.auc)
    assert curve[2].auc[3] == pytest.approx(everything.auc[3])
    assert curve[2].auc[1] == curve[20].auc[1]


def test_nobody_has_rows_to_ask():
    curve = learning_curve(new_people(users=4, rows=0), PRIOR, 0.0, (0, 5), "bald")
    assert_array_equal(curve[0].auc, curve[5].auc)


def test_measuring_does_not_change_what_is_asked():
    people = new_people(users=8)
    often = learning_curve(people, PRIOR, 0.0, range(6), "thompson", seed=2)
    once = learning_curve(people, PRIOR, 0.0, (5,), "thompson", seed=2)
    assert_array_equal(often[5].auc, once[5].auc)


def test_progress_is_told_once_an_answer():
    told: list[tuple[int, int]] = []
    learning_curve(new_people(users=3), PRIOR, 0.0, (0, 3), "bald", progress=lambda *done: told.append(done))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_an_unknown_strategy_is_named():
    with pytest.raises(InputError) as caught:
        learning_curve(new_people(users=2), PRIOR, 0.0, (1,), "best")
    assert str(caught.value) == (
        "Query strategy 'best' is not known; choose one of v-optimal, bald, d-optimal, variance, thompson, random"
    )


# On texts


def told_apart(split: str, kinds: list[str] = KINDS) -> list[Comparison]:
    """New people's choices, all in one split; those to adapt and to test on are about other prompts."""
    prompts = slice(20, 40) if split == "adapt" else slice(40, 60)
    rows = people(kinds, prompts=prompts, each=1, comparisons=20, seed=4)
    return [row.model_copy(update={"split": split}) for row in rows]


def test_a_model_is_measured_on_people_it_has_not_seen():
    feedback = Feedback(comparisons=[*told_apart("test"), *told_apart("adapt")])
    found = evaluate(fitted(), feedback, (0, 5, 20))
    assert (found["users"], found["comparisons"], found["guard"]) == (6, 120, False)
    for figures in (found["auc"], found["accuracy"], found["log_loss"], found["ece"]):
        assert list(figures) == ["0", "5", "20"]
    assert found["auc"]["20"] > found["auc"]["0"] + 0.1
    assert found["log_loss"]["20"] < found["log_loss"]["0"]
    again = evaluate(fitted(), feedback, (0, 5, 20))
    assert {**again, "seconds_per_answer": 0.0} == {**found, "seconds_per_answer": 0.0}


def test_at_no_answers_everybody_is_the_population():
    rows = told_apart("test")
    found = evaluate(fitted(), Feedback(comparisons=rows), (0,))
    by_user: dict[str, list[float]] = {}
    for row in rows:
        one, other = fitted().reward(row.prompt, [row.chosen, row.rejected])
        by_user.setdefault(row.user_id, []).append(one - other)
    expected = [roc_auc_score(np.repeat([1, 0], len(d)), [*d, *(-x for x in d)]) for d in by_user.values()]
    assert found["auc"]["0"] == pytest.approx(np.mean(expected))


def test_after_all_answers_everybody_is_their_posterior():
    asked, rows = told_apart("adapt"), told_apart("test")
    found = evaluate(fitted(), Feedback(comparisons=[*asked, *rows]), (20,))
    right = []
    for row in rows:
        belief = fitted().posterior([a for a in asked if a.user_id == row.user_id])
        one, other = fitted().reward(row.prompt, [row.chosen, row.rejected], belief)
        right.append(one > other)
    assert found["accuracy"]["20"] == pytest.approx(np.mean(right))


def test_ties_among_test_rows_and_people_without_any_are_left_out():
    rows = told_apart("test")
    tied = [row.model_copy(update={"strength": 0.5, "user_id": "tied"}) for row in rows]
    asked = [row.model_copy(update={"user_id": "asked only"}) for row in told_apart("adapt")]
    with_them = evaluate(fitted(), Feedback(comparisons=[*tied, *rows, *asked]), (0,))
    alone = evaluate(fitted(), Feedback(comparisons=rows), (0,))
    assert (with_them["users"], with_them["comparisons"], with_them["auc"]) == (6, 120, alone["auc"])


def test_ratings_are_compared_where_they_differ():
    texts = [str(c) for p, c in zip(fitted().known.prompts, fitted().known.completions, strict=True)][:4]
    prompt = str(fitted().known.prompts[0])

    def rated(split: str, scores: list[float]) -> list[Rating]:
        return [
            Rating.model_validate({"user_id": "a", "prompt": prompt, "completion": c, "score": s, "split": split})
            for c, s in zip(texts, scores, strict=True)
        ]

    # Six pairs, of which (0.85, 0.8) differs enough and (0.8, 0.78) does not.
    ratings = [*rated("test", [0.85, 0.8, 0.78, 0.1]), *rated("adapt", [0.9, 0.8, 0.7, 0.1])]
    found = evaluate(fitted(), Feedback(ratings=ratings), (0, 4))
    assert (found["users"], found["comparisons"]) == (1, 5)
    assert found["auc"]["4"] >= found["auc"]["0"]


@pytest.mark.parametrize(
    ("rows", "answers", "message"),
    [
        (
            told_apart("adapt"),
            (0,),
            "There are 0 test pairs; give comparisons, or ratings of one prompt that differ, with split 'test'",
        ),
        (
            told_apart("test"),
            (0, 5),
            "There are 0 rows to answer from; give rows with split 'adapt', or measure at 0 answers only",
        ),
    ],
    ids=["nothing to test on", "nothing to answer from"],
)
def test_rows_that_are_not_there_are_named(rows, answers, message):
    with pytest.raises(InputError) as caught:
        evaluate(fitted(), Feedback(comparisons=rows), answers)
    assert str(caught.value) == message
