"""Fitting from texts: what is learned, from which rows, the same twice, and what is too little to learn from."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from tests.support import KINDS, PlantedEncoder, answers_to, comparison, evidence, fitted, people

from palate.bench.people import Person, parse_kind
from palate.data import load_answers
from palate.errors import InputError
from palate.feedback import Comparison, Feedback
from palate.rewards import Belief, RewardModel, fit
from palate.rewards.evaluation import auc_by_user


def test_new_people_on_new_prompts_are_known_after_their_answers():
    model = fitted()
    answers = answers_to(slice(80, 100))
    phi = model.phi([a.prompt for a in answers], [a.text for a in answers])
    prompt = np.array([a.prompt_id for a in answers])
    pairs = [(i, j) for i in range(len(answers)) for j in range(i) if prompt[i] == prompt[j]]

    def auc(kind: str, belief: Belief) -> float:
        truth = Person(parse_kind(kind)).reward(answers)
        better = np.array([(i, j) if truth[i] > truth[j] else (j, i) for i, j in pairs if truth[i] != truth[j]])
        difference = (phi[better[:, 0]] - phi[better[:, 1]]) @ belief.mean
        return float(auc_by_user(difference, np.zeros(len(better), int), 1)[0])

    before = np.mean([auc(kind, model.new_user()) for kind in KINDS])
    after = np.mean([auc(kind, model.posterior(evidence(20, kind))) for kind in KINDS])
    assert after > 0.85
    assert after > before + 0.15


def test_the_same_data_and_seed_give_the_same_model():
    again = fit(Feedback(comparisons=people()), PlantedEncoder(), rank=5)
    assert again.fingerprint == fitted().fingerprint
    assert again.figures == fitted().figures
    assert_array_equal(again.known.phi, fitted().known.phi)


def test_the_fitted_model_is_in_its_gauge():
    model = fitted()
    assert_allclose(model.prior.cov, np.eye(model.n_rewards), atol=1e-9)
    assert (model.prior.mean >= 0).all()
    assert {str(model.weights.dtype), str(model.offset.dtype)} == {"float32"}
    assert (model.encoder_name, model.encoder_revision) == ("planted", "r1")


def test_figures_say_what_was_fitted_on():
    figures = fitted().figures
    assert {name: figures[name] for name in ("users", "comparisons", "prompts")} == {
        "users": 24,
        "comparisons": 960,
        "prompts": 20,
    }
    assert figures["answers"] == len(fitted().known.prompts)
    assert {"held_out_auc.0", "held_out_auc.5", "held_out_auc.10", "held_out_log_loss.10"} <= set(figures)


def test_rows_for_adapting_and_testing_are_not_fitted_on():
    rows = people(each=1, comparisons=10)
    aside = [row.model_copy(update={"split": split}) for row in people(each=1, seed=9) for split in ("adapt", "test")]
    train = [row.model_copy(update={"split": "train"}) for row in rows]
    with_them = fit(Feedback(comparisons=[*aside, *train, *aside]), PlantedEncoder(), rank=2)
    assert with_them.fingerprint == fit(Feedback(comparisons=rows), PlantedEncoder(), rank=2).fingerprint


def test_each_text_is_encoded_once():
    encoder = PlantedEncoder()
    fit(Feedback(comparisons=people(each=1)), encoder, rank=2)
    probe = [a for a in load_answers() if a.prompt_id.startswith(("p0", "p1")) and a.spoilt is None]
    assert encoder.encoded <= 20 * 14 + len(probe)


def test_progress_goes_through_every_stage():
    told: list[tuple[str, int, int]] = []
    fit(Feedback(comparisons=people(each=1)), PlantedEncoder(), rank=1, progress=lambda *stage: told.append(stage))
    folds = [("Cross-fitting", fold, 4) for fold in (1, 2, 3, 4)]
    assert told == [*folds, ("Learning base rewards", 0, 1), ("Learning base rewards", 1, 1)]


def few(*rows: Comparison) -> RewardModel:
    return fit(Feedback(comparisons=list(rows)), PlantedEncoder())


@pytest.mark.parametrize(
    "rows",
    [
        [comparison("ann"), comparison("bob")],
        [comparison("ann"), comparison("bob", chosen="What?", rejected="Hello!")],
        [comparison("ann"), comparison("bob", strength=0.5)],
        [comparison("ann", prompt=""), comparison("bob", prompt="", chosen="Yes", rejected="No")],
        [comparison("ann", kind="a"), comparison("bob", kind="a"), comparison("ann", kind="a", chosen="Yes")],
    ],
    ids=["two agree", "two disagree", "one tie", "empty prompt", "one kind"],
)
def test_the_fewest_comparisons_give_a_model(rows):
    model = few(*rows)
    assert np.isfinite(model.weights).all() and np.isfinite(model.prior.mean).all()
    assert model.n_rewards <= 12
    before, after = (
        float(np.subtract(*model.reward("Hi", ["Hello!", "What?"], model.posterior(said))))
        for said in ([], [comparison()])
    )
    assert after >= before - 1e-9


@pytest.mark.parametrize("rank", [0, -1, 65])
def test_a_rank_out_of_range_is_refused(rank):
    with pytest.raises(InputError) as caught:
        fit(Feedback(comparisons=people(each=1)), PlantedEncoder(), rank=rank)
    assert str(caught.value) == f"Rank {rank} is not in 1 to 64; give the number of base rewards to learn"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [],
            "There are 0 comparisons and 0 ratings to fit on (split absent or 'train'); give rows with chosen and "
            "rejected, or with completion and score",
        ),
        (
            [comparison(split="test")],
            "There are 0 comparisons and 0 ratings to fit on (split absent or 'train'); give rows with chosen and "
            "rejected, or with completion and score",
        ),
        (
            [comparison("ann"), comparison("ann", prompt="Bye")],
            "All rows are of one user, 'ann'; base rewards need at least 2 people to differ",
        ),
        (
            [comparison("ann", strength=0.5), comparison("bob", strength=0.5)],
            "All 2 comparisons are ties (strength 0.5), which prefer nothing; give some decided ones",
        ),
    ],
    ids=["none", "none for training", "one user", "ties"],
)
def test_too_little_to_fit_on_is_refused(rows, message):
    with pytest.raises(InputError) as caught:
        few(*rows)
    assert str(caught.value) == message
