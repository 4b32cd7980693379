"""The cells of the training benchmark on a tiny policy, and what is made of their figures."""

from dataclasses import replace

import numpy as np
import pytest
from tests.support import fitted
from tests.test_bench_alignment import SMALL, judge

from palate.bench import cells, training
from palate.bench.cells import DOMAINS, Cell, World, at_kl, measure
from palate.bench.policy import answers_of
from palate.training.methods import METHODS, Settings

FIRST = next(iter(DOMAINS))


@pytest.fixture
def tiny(monkeypatch):
    prompts = list(dict.fromkeys(answer.prompt for answer in answers_of(SMALL)))
    here = World(fitted(), fitted(), judge(), prompts, SMALL)
    small = Settings(
        rounds=2, prompts=2, completions=2, max_tokens=4, passes=2, micro_batch=4, lora_rank=2, save_every=0
    )
    monkeypatch.setattr(cells, "world", lambda seed: here)
    monkeypatch.setattr(cells, "_SAMPLING", replace(cells._SAMPLING, max_tokens=4))
    monkeypatch.setattr(cells, "settings_of", lambda cell: replace(small, learning_rate=cell.rate, seed=cell.seed))
    return here


@pytest.mark.parametrize("cell", [
    Cell(FIRST, "tracebias", 1e-2, rounds=2),
    Cell(FIRST, "dpo", 1e-2, rounds=2, judged=True),
    Cell(FIRST, "grpo", 1e-2, rounds=2, noise=1.0),
])  # fmt: skip
def test_a_cell_is_trained_judged_and_kept(tiny, tmp_path, monkeypatch, cell):
    found = measure(cell, tmp_path)
    curve = found["curve"]
    assert [point["round"] for point in curve] == [0, 1, 2]
    assert curve[0]["kl"] == pytest.approx(0, abs=1e-4) and curve[-1]["kl"] != 0
    assert found["reward_calls"] == 8
    for point in curve:
        assert 0 <= point["score"] <= 100 and 0 <= point["expected"] <= 100 and 0 <= point["mass"] <= 1 + 1e-6
        assert 0 <= point["win"] <= 1 and 0 <= point["whole"] <= 1
    monkeypatch.setattr(cells, "_train", lambda *_: pytest.fail("trained again"))
    assert measure(cell, tmp_path) == found


def test_cells_that_differ_have_files_of_their_own():
    many = [Cell(d, m, r, s) for d in DOMAINS for m in METHODS for r in training.RATES for s in (0, 1)]
    many += list(training._cells(dict.fromkeys(METHODS, 1e-3)))
    assert len({cell.key for cell in many}) == len(set(many))


def made(score: float, reward: float = 0.0) -> dict[str, object]:
    points = [
        {"round": n, "score": s, "expected": s, "mass": 1.0, "win": 0.5, "kl": kl, "reward": r,
         "quality": 0.5, "whole": 1.0, "characters": 300.0, "perplexity": 2.0}
        for n, s, kl, r in ((0, 50.0, 0.0, 0.0), (10, score, training._KL, reward))
    ]  # fmt: skip
    return {"curve": points, "seconds": 1.0, "reward_calls": 640}


def test_each_method_has_the_rate_with_the_most_of_what_it_was_trained_on():
    found = {Cell(FIRST, m, r): made(0.0, reward=-abs(np.log(r / 1e-3))) for m in METHODS for r in training.RATES}
    assert training._best(found) == dict.fromkeys(METHODS, 1e-3)


def test_methods_are_compared_by_domain_and_seed():
    best = dict.fromkeys(METHODS, 1e-3)
    found = {
        Cell(domain, method, 1e-3, seed): made(60.0 + 5 * place + seed + (2 if method == "tracebias" else 0))
        for place, domain in enumerate(DOMAINS) for method in METHODS for seed in (0, 1, 2)
    }  # fmt: skip
    found |= {Cell(domain, "ppo", 1e-3, judged=True): made(55.0) for domain in DOMAINS}
    figures = training._compared(found, best)
    assert figures["judged.tracebias"] == pytest.approx(60 + 7.5 + 1 + 2)
    for method in METHODS[1:]:
        name = f"judged.tracebias_minus_{method}"
        assert figures[name] == figures[f"{name}.low"] == figures[f"{name}.high"] == pytest.approx(2)
    assert figures["judged.rlaif"] == figures["judged.rlaif_ppo"] == 55
    assert figures["reward_calls.dpo"] == 640 and figures["untouched.score"] == 50
    assert "TraceBias less it" in training._table(figures)


def test_a_rate_is_good_that_keeps_most_of_the_gain():
    found = {}
    for name, more in training._AVERAGED.items():
        for rate in training._WIDE:
            found[Cell(FIRST, "tracebias", rate, more=more)] = made(80.0 if rate < 1e-2 or name == "dam" else 40.0)
    figures = training._stable(found)
    assert figures["stability.dam.good_rates"] == 7 and figures["stability.clip.good_rates"] == 4
    assert set(training._stability(found)) == {"stability"}


def test_a_curve_that_never_gets_there_counts_with_its_end():
    curve = [{"kl": 0.0, "x": 0.0}, {"kl": 2.0, "x": 4.0}, {"kl": 1.0, "x": 9.0}]
    assert at_kl(curve, 1.5, "x") == 3.0
    assert at_kl(curve, 5.0, "x") == 9.0
