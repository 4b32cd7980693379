"""What moved a taste: posteriors without each record, against posteriors computed anew without it."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from tests.support import evidence, fitted

from palate.feedback import Rating, Record, Reply
from palate.rewards.beliefs import Gaussian
from palate.rewards.drift import Drift
from palate.rewards.influence import divergence, influences, without_each

NOON = datetime(2025, 1, 2, tzinfo=UTC)


def mixed() -> list[Record]:
    """Choices, a rating and a reply of one person, and a reply that says nothing of taste."""
    model = fitted()
    prompt, completion = str(model.known.prompts[3]), str(model.known.completions[3])
    common: dict[str, Any] = {"user_id": "s0000", "prompt": prompt, "completion": completion, "created_at": NOON}
    said = Reply(**common, reply="Lovely.", satisfaction=0.9, target="both", confidence=0.7)
    task = Reply(**common, reply="Wrong year.", satisfaction=0.1, target="task")
    return [*evidence(6), Rating(**common, score=0.8), said, task]


@pytest.mark.parametrize("drift", [Drift(), Drift.forgetting(5.0)], ids=["steady", "drifting"])
def test_without_each_is_the_posterior_of_the_rest(drift):
    model = replace(fitted(), drift=drift)
    said = [record.model_copy(update={"created_at": NOON + timedelta(days=i)}) for i, record in enumerate(mixed())]
    for place, belief in zip([0, 4, 7], without_each(model, said, [0, 4, 7]), strict=True):
        rest = model.posterior(said[:place] + said[place + 1 :], level=True)
        assert_allclose(belief.mean, rest.mean, atol=1e-5)
        assert_allclose(belief.cov, rest.cov, atol=1e-5)


def test_all_that_counts_has_an_influence_the_most_telling_first():
    found = influences(fitted(), mixed())
    assert len(found) == 8
    assert [one.nats for one in found] == sorted((one.nats for one in found), reverse=True)
    assert all(one.nats > 0 and one.style and one.shift > 0 for one in found)
    assert "Wrong year." not in [getattr(one.record, "reply", None) for one in found]


def test_only_the_latest_are_looked_at():
    assert len(influences(fitted(), evidence(10), at_most=3)) == 3
    assert influences(fitted(), []) == []


def test_the_divergence_of_gaussians_is_the_closed_form():
    rng = np.random.default_rng(0)
    one, other = (Gaussian(rng.standard_normal(3), np.diag(rng.uniform(0.5, 2, 3))) for _ in range(2))
    a, b = np.diag(one.cov), np.diag(other.cov)
    expected = 0.5 * np.sum(a / b + (other.mean - one.mean) ** 2 / b - 1 + np.log(b / a))
    assert divergence(one, other) == pytest.approx(expected)
    assert divergence(one, one) == pytest.approx(0, abs=1e-12)
