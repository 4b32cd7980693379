"""The benchmarks of scale, drift and growth, small: the same as without their machinery, and what is drawn of them."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from tests.support import fitted

from palate.bench import drift, growth, scale
from palate.bench.people import parse_kind
from palate.bench.report import Line, Picture, draw
from palate.data import POLES, load_people
from palate.errors import InputError
from palate.rewards.beliefs import Gaussian
from palate.rewards.posterior import laplace_posterior


def test_people_are_the_same_however_they_are_streamed():
    batches = list(scale.people(70, seed=1, batch=30))
    assert [batch.n_users for batch in batches] == [30, 30, 10]
    again = list(scale.people(70, seed=1, batch=30))
    assert_allclose(batches[1].v, again[1].v)
    assert all(len(batch.label) == 10 * batch.n_users for batch in batches)
    # Their choices tell of a taste: what is believed of them afterwards is no longer the prior.
    belief = laplace_posterior(batches[0], Gaussian(np.zeros(8), np.eye(8)), 0.03)
    assert np.mean(np.linalg.norm(belief.mean, axis=1)) > 1


def test_a_size_is_measured_in_a_process_of_its_own():
    found = scale.measured(500, seed=0)
    assert found["seconds.500"] > 0 and found["peak_memory_mb.500"] > 20


def test_the_slope_is_that_of_a_power_law():
    figures = {f"seconds.{n}": 3e-6 * n**0.9 for n in (100_000, 1_000_000, 10_000_000)}
    assert scale._slope(figures, "seconds", (100_000, 1_000_000, 10_000_000)) == pytest.approx(0.9)


def test_a_picture_with_logarithmic_axes_is_drawn():
    picture = Picture(
        "Title", "people", "seconds", (10, 100, 1000), [Line("s", "one", "#000000"), Line("m", "two", "#555555")], "log"
    )
    figures = {f"s.{n}": n / 10 for n in (10, 100, 1000)} | {f"m.{n}": 5.0 for n in (10, 100, 1000)}
    assert draw(picture, figures, "png")[:4] == b"\x89PNG"
    assert draw(picture, figures, "svg") == draw(picture, figures, "svg")


def test_who_a_person_becomes_shares_no_attribute_with_them():
    rows = [row for row in load_people() if row.user_id in {f"t{i:04}" for i in range(30)}]
    kinds = list({row.user_id: parse_kind(row.kind or "") for row in rows}.values())
    for kind, other in zip(kinds, drift.partners(rows, seed=0), strict=True):
        assert not {POLES[p][0] for p in kind} & {POLES[p][0] for p in kinds[other]}


def test_the_auc_of_a_turned_person_is_on_the_rows_of_who_they_are():
    from tests.support import people

    from palate.bench.unseen import Unseen
    from palate.rewards.evaluation import auc_by_user
    from palate.rewards.indexing import Indexed

    model, indexed = fitted(), Indexed.of(people(each=1))
    first = np.arange(len(indexed.choices.user)) % 2 == 0
    new = Unseen.of(indexed.choices, first, ~first).people(model.phi(indexed.prompts, indexed.completions))
    mean, who = np.random.default_rng(0).standard_normal((6, model.n_rewards)), np.array([1, 0, 3, 2, 5, 4])
    found = drift._auc(new, mean, who)
    for user in range(6):
        mine = new.test[new.test_user == who[user]]
        assert found[user] == pytest.approx(auc_by_user(mine @ mean[user], np.zeros(len(mine), int), 1)[0])


def test_parts_of_the_people_are_parts():
    rows = load_people()
    few, each, prompts = (
        growth._some_people(rows, 10, 0),
        growth._some_of_each(rows, 7, 0),
        growth._some_prompts(rows, 5, 0),
    )
    assert len({row.user_id for row in few}) == 10 and len(few) == 800
    assert len(each) == 7 * 112 and len({row.user_id for row in each}) == 112
    assert len({str(row.prompt) for row in prompts}) == 5
    assert all(row in rows for row in prompts[:20])


@pytest.mark.parametrize("name", ["scale", "drift", "growth"])
def test_no_data_is_taken(name, tmp_path):
    run = {"scale": scale.run, "drift": drift.run, "growth": growth.run}[name]
    with pytest.raises(InputError, match=f"benchmark of {name} takes no data"):
        run(quick=True, seed=0, data=tmp_path)
