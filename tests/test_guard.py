"""The guard, and drift as the commands show it: who contradicts their own answers is given the population's taste."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from numpy.testing import assert_allclose
from tests.cli_support import palate
from tests.support import KINDS, PlantedEncoder, evidence, fitted, people

from palate.errors import InputError
from palate.feedback import Comparison, Feedback, write_jsonl
from palate.rewards import Belief, fit, predict
from palate.rewards.drift import Drift
from palate.rewards.evaluation import learning_curve
from palate.rewards.guard import Guard
from palate.store import Store
from palate.store.interview import turned, weigh

START = datetime(2026, 1, 1, tzinfo=UTC)


def dated(rows: list[Comparison], user: str = "ann") -> list[Comparison]:
    return [
        row.model_copy(update={"user_id": user, "created_at": START + timedelta(days=i)}) for i, row in enumerate(rows)
    ]


def swapped(rows: list[Comparison]) -> list[Comparison]:
    return [row.model_copy(update={"chosen": row.rejected, "rejected": row.chosen}) for row in rows]


def contrary(count: int = 20) -> list[Comparison]:
    """Who says one thing, and the opposite of it the next time."""
    rows = [row for row in evidence(count) if isinstance(row, Comparison)]
    return dated([turn for row in rows for turn in (row, *swapped([row]))])


def test_the_evidence_is_the_difference_of_what_was_foretold():
    said = evidence(6)
    model, gain = fitted(), 0.0
    for i, record in enumerate(said):
        assert isinstance(record, Comparison)
        v = model.phi([record.prompt], [record.chosen]) - model.phi([record.prompt], [record.rejected])
        before = model.follow(said[:i]).belief[0].leading(model.n_rewards) if i else model.prior
        own, population = (probability(belief, v, model.lapse) for belief in (before, model.prior))
        gain += np.log(own) - np.log(population)
    weighed = model.weigh(said)
    assert_allclose(weighed.evidence, gain, atol=1e-6)
    assert (weighed.prior, weighed.answers) == (model.guard, 6)


def probability(belief: Belief, v: np.ndarray, lapse: float) -> float:
    return float(predict(belief, v, lapse)[0])


def test_consistent_people_are_personal_and_contrary_ones_are_not():
    assert fitted().weigh(evidence(20)).personal
    assert not replace(fitted(), guard=0.0).weigh(contrary()).personal
    assert Guard(0.0, 0.0, 0).personal  # nothing said yet: both tastes are one


def test_with_the_guard_contrary_people_are_foretold_by_the_population():
    from palate.bench.unseen import new_people as rows_of
    from palate.rewards.indexing import Indexed

    model = fitted()
    indexed = Indexed.of(people([KINDS[0]], each=3))
    phi, first = model.phi(indexed.prompts, indexed.completions), np.arange(len(indexed.choices.user)) % 2 == 0
    new = rows_of(phi, indexed.choices, first, ~first)
    label = np.where(np.arange(len(new.asked.label)) % 2, 1.0, 0.0)
    contrary_people = replace(new, asked=replace(new.asked, label=label))
    guarded = learning_curve(contrary_people, model.prior, model.lapse, (0, 10), "bald", guard=-1e3)
    assert_allclose(guarded[10].auc, guarded[0].auc)
    off, on = (learning_curve(new, model.prior, model.lapse, (10,), "bald", guard=guard)[10] for guard in (None, 1e3))
    assert_allclose(on.auc, off.auc)


@pytest.fixture
def stored(tmp_path):
    """A model that has seen the texts, and ann, who contradicts herself about them."""
    folder, url = tmp_path / "model", f"sqlite:///{tmp_path / 'palate.db'}"
    replace(fitted(), guard=0.0).save(folder)
    rows = people([KINDS[0]], each=1, seed=4)[:15]
    with Store.open(url) as store:
        ann, bob = store.ensure_user("ann"), store.ensure_user("bob")
        for row in dated([turn for one in rows for turn in (one, *swapped([one]))]):
            store.append(ann, row)
        for row in dated(rows, "bob"):
            store.append(bob, row)
    return folder, url


def test_rank_falls_back_and_says_so(stored, tmp_path):
    folder, url = stored
    row = people([KINDS[0]], each=1, seed=4)[0]
    candidates = tmp_path / "candidates.jsonl"
    import json

    candidates.write_text("\n".join(json.dumps(text) for text in (row.chosen, row.rejected)) + "\n")
    words = ("rank", folder, "--prompt", row.prompt, "--candidates", candidates, "--database", url, "--json")
    generic, ann, bob = (palate(*words, *user) for user in ((), ("--user", "ann"), ("--user", "bob")))
    assert generic.json["guard"] is None
    assert ann.json["guard"]["personal"] is False and bob.json["guard"]["personal"] is True
    assert ann.json["ranking"] == generic.json["ranking"] != bob.json["ranking"]
    assert "the population's taste is used" in ann.err and "'ann'" in ann.err
    assert palate("explain", folder, "--user", "ann", "--database", url, "--json").json["guard"]["personal"] is False
    assert "to rank" in palate("explain", folder, "--user", "ann", "--database", url).out


def test_explain_says_when_a_taste_turned(tmp_path):
    model = replace(fitted(), drift=Drift(half_life=1e6, threshold=1.0))
    folder, url = tmp_path / "model", f"sqlite:///{tmp_path / 'palate.db'}"
    model.save(folder)
    first, then = (people([kind], each=1, comparisons=40, seed=0) for kind in ("concise,humorous", "verbose,serious"))
    with Store.open(url) as store:
        ann = store.ensure_user("ann")
        for row in dated(first[:25] + then[:15]):
            store.append(ann, row)
        when = turned(store, model, ann)
        assert when is not None and abs((when - START).days - 25) <= 4
        assert weigh(store, model, ann).answers == 40
    told = palate("explain", folder, "--user", "ann", "--database", url)
    assert f"what was said before {when:%d %B %Y}" in told.out
    assert palate("explain", folder, "--user", "ann", "--database", url, "--json").json["turned"] == when.isoformat()


def test_a_half_life_is_kept_with_the_model_and_changes_its_posteriors(tmp_path):
    rows = [
        row
        for user in sorted({r.user_id for r in people()})
        for row in dated([r for r in people() if r.user_id == user], user)
    ]
    model = fit(Feedback(comparisons=rows), PlantedEncoder(), rank=3, half_life=7.0)
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model")
    assert loaded.drift == model.drift == Drift.forgetting(7.0)
    said = evidence(6)
    assert_allclose(model.posterior(said, half_life=np.inf).mean, replace(model, drift=Drift()).posterior(said).mean)
    assert model.fingerprint != replace(model, drift=Drift()).fingerprint
    steady = fit(Feedback(comparisons=rows), PlantedEncoder(), rank=3, half_life="learn")
    assert steady.drift.half_life >= 64  # these people never turn


def test_a_half_life_is_not_learned_from_rows_without_dates(tmp_path):
    with pytest.raises(InputError) as caught:
        fit(Feedback(comparisons=people()), PlantedEncoder(), rank=2, half_life="learn")
    assert str(caught.value) == (
        "A half-life cannot be learned from 960 of 960 rows: they have no created_at; date them, or give a number of "
        "days"
    )


@pytest.mark.parametrize("days", ["0", "-3", "soon", "nan"])
def test_a_half_life_must_be_a_number_of_days(tmp_path, days):
    file = tmp_path / "rows.jsonl"
    write_jsonl(people()[:4], file)
    ran = palate("fit", file, "--output", tmp_path / "m", "--half-life", days)
    assert f"{days!r} is not a half-life; give a number of days above 0, inf, or learn" in ran.usage
