"""The benchmark: what it is fitted on and what it measures never meet, and its figures against plain loops."""

import json
import sys
from collections.abc import Mapping
from functools import cache
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import Shown, shorten

from palate.bench import facets, facets_page, latency, peers, report, unseen
from palate.bench.ablations import ABLATED_AT, ARMS
from palate.bench.intervals import cluster_interval
from palate.bench.interview import interview
from palate.data import load_people
from palate.errors import EncoderError, InputError, MissingExtraError
from palate.feedback import Comparison, as_text, write_jsonl
from palate.rewards import DEFAULT_STRATEGY, RewardModel
from palate.rewards.baselines import PEERS
from palate.rewards.evaluation import NewPeople, auc_by_user, learning_curve
from palate.rewards.indexing import Indexed
from palate.rewards.posterior import Gaussian, Observations

TIMED = ("seconds", "memory")


@cache
def fitted() -> tuple[RewardModel, float]:
    return latency.timed_fit(Shown, seed=0)


def run(seed: int = 0, data: Path | None = None) -> report.Result:
    """The quick benchmark with this encoder, fitted once for all runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(facets, "load_encoder", Shown)
        patch.setattr(facets, "timed_fit", lambda load, *, seed: fitted())
        shorten(patch)
        return facets.run(quick=True, seed=seed, data=data)


def untimed(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if not any(word in name for word in TIMED)}


@pytest.fixture(scope="module")
def result() -> report.Result:
    return run()


# What is measured


def test_nobody_and_nothing_asked_is_known_to_the_fit():
    train, new = load_people(), unseen.unseen_people(0, quick=True)
    assert not {row.kind for row in train} & {row.kind for row in new}
    assert not {as_text(row.prompt) for row in train} & {as_text(row.prompt) for row in new}
    assert len({row.kind for row in new}) == 28
    assert len({row.user_id for row in new}) == 56
    assert len({answer.prompt_id for answer in unseen.unseen_answers()}) == 40


def test_the_full_benchmark_asks_280_people():
    rows = unseen.unseen_people(0, quick=False)
    assert len({row.user_id for row in rows}) == 280
    assert len(rows) == 280 * 160


def test_figures_are_finite_and_there(result):
    figures = result.figures
    assert [name for name, value in figures.items() if not (isinstance(value, float) and np.isfinite(value))] == []
    for t in (0, 5, 10):
        for strategy in ("bald", "random"):
            for figure in ("auc", "accuracy", "log_loss", "ece"):
                assert f"{figure}.{strategy}.{t}" in figures
    expected = {
        "people", "kinds", "test_comparisons", "auc.bradley_terry", "auc.bald_minus_random.10",
        "auc.best_minus_random.10", "pick_rate.0", "pick_rate.10", "gain_share.10", "win_rate.10.low",
        "seconds_per_answer", "seconds_per_answer.p95", "fit_seconds.warm",
    }  # fmt: skip
    assert expected <= set(figures)
    for name in [*(peer.name for peer in PEERS), peers.OWN_QUESTIONS]:
        assert {f"auc.{name}.5", f"accuracy.{name}.5", f"gain_share.{name}.5", f"win_rate.{name}.5"} <= set(figures)
        for ours in (DEFAULT_STRATEGY, "random"):
            difference = figures[f"auc.{ours}.5"] - figures[f"auc.{name}.5"]
            assert figures[f"auc.{ours}_minus_{name}.5"] == pytest.approx(difference)
    assert "fit_seconds.cold" not in figures
    assert (figures["people"], figures["kinds"], figures["test_comparisons"]) == (56, 28, 56 * 80)


def test_answers_teach_and_good_features_teach_most_of_it(result):
    figures = result.figures
    assert figures["auc.bald.10"] > figures["auc.bald.5"] > figures["auc.bald.0"] > 0.5
    assert figures["auc.bald.10"] > 0.9
    assert figures["pick_rate.10"] > figures["pick_rate.0"]
    assert figures["gain_share.10"] > 0.5 > abs(figures["gain_share.0"])
    assert figures["win_rate.10"] > 0.6
    assert (figures["gain_share.bradley_terry.10"], figures["win_rate.bradley_terry.10"]) == (0.0, 0.5)
    assert figures["auc.bald.0"] == figures["auc.random.0"]


def test_intervals_hold_their_figure_and_differences_add_up(result):
    figures = result.figures
    for name in [name.removesuffix(".low") for name in figures if name.endswith(".low")]:
        assert figures[f"{name}.low"] <= figures[name] <= figures[f"{name}.high"]
    assert figures["auc.bald_minus_random.10"] == pytest.approx(figures["auc.bald.10"] - figures["auc.random.10"])
    gains = [figures[f"auc.{name}_minus_random.10"] for name in {DEFAULT_STRATEGY, "bald"}]
    assert figures["auc.best_minus_random.10"] == max(gains)


def test_the_same_seed_gives_the_same_figures_and_another_gives_others(result):
    again, other = run(), run(seed=1)
    assert untimed(again.figures) == untimed(result.figures)
    assert untimed(other.figures) != untimed(result.figures)


# Recorded people


def test_recorded_people_give_what_the_same_people_simulated_gave(result, tmp_path):
    path = tmp_path / "new_users.jsonl"
    rows = unseen.unseen_people(0, quick=True)
    write_jsonl(rows, path)
    assert unseen.recorded_people(path, quick=False) == rows
    assert unseen.recorded_people(tmp_path, quick=True) == rows
    recorded, simulated = untimed(run(data=tmp_path).figures), untimed(result.figures)
    only = {name for name in simulated if name.startswith(("pick_rate.", "gain_share.", "win_rate."))}
    assert set(simulated) - set(recorded) == only
    assert recorded == {name: simulated[name] for name in recorded}


def said(user: str, split: str, strength: float = 1.0) -> Comparison:
    return Comparison(user_id=user, prompt="Tea?", chosen="Yes.", rejected="No.", split=split, strength=strength)


def test_people_without_both_splits_are_left_out(tmp_path):
    both = [said("b", "adapt"), said("b", "test"), said("b", "train")]
    write_jsonl([said("a", "adapt"), *both, said("c", "test")], tmp_path / "some.jsonl")
    assert unseen.recorded_people(tmp_path / "some.jsonl", quick=False) == both[:2]


def test_data_with_nobody_to_measure_on_is_refused(tmp_path):
    path = tmp_path / "some.jsonl"
    write_jsonl([said("a", "adapt"), said("a", "test", strength=0.5), said("b", "test")], path)
    with pytest.raises(InputError) as error:
        unseen.recorded_people(path, quick=False)
    assert str(error.value) == (
        f"Nobody in {str(path)!r} has comparisons with split 'adapt' and with split 'test'; give both to measure on"
    )


# Comparisons as indices


def test_indices_give_back_the_rows():
    rows = [*unseen.unseen_people(0, quick=True)[::37], said("x", "adapt", 0.7), said("y", "test")]
    indexed = Indexed.of(rows)
    choices = indexed.choices
    for i, row in enumerate(rows):
        assert (indexed.prompts[choices.chosen[i]], indexed.completions[choices.chosen[i]]) == (row.prompt, row.chosen)
        assert (indexed.prompts[choices.rejected[i]], indexed.completions[choices.rejected[i]]) == (
            row.prompt,
            row.rejected,
        )
        assert (choices.strength[i], indexed.split[i]) == (row.strength, row.split)
        same_prompt = [other.prompt == row.prompt for other in rows]
        assert (choices.prompt == choices.prompt[i]).tolist() == same_prompt
        same_user = [other.user_id == row.user_id for other in rows]
        assert (choices.user == choices.user[i]).tolist() == same_user
        if row.kind is not None:
            same_kind = [other.kind == row.kind for other in rows]
            assert (choices.group[choices.user] == choices.group[choices.user[i]]).tolist() == same_kind
    answers = list(zip(indexed.prompts, indexed.completions, strict=True))
    assert len(set(answers)) == len(answers)
    assert choices.group[-1] != choices.group[-2]  # no kind: each their own


def some_people(seed: int = 0, users: int = 6, rows: int = 30, dim: int = 3) -> NewPeople:
    rng = np.random.default_rng(seed)
    taste = 2 * rng.standard_normal((users, dim))
    user = np.repeat(np.arange(users), rows)
    v = rng.standard_normal((2, users * rows, dim))
    v *= np.sign(np.sum(v * taste[user], axis=2))[..., None]
    return NewPeople(Observations.of(v[0], user, users), rng.integers(7, size=users * rows), v[1], user)


def test_one_person_asked_alone_learns_what_they_learn_among_many():
    people = some_people()
    prior = Gaussian(np.full(3, 0.1), np.eye(3))
    curve = learning_curve(people, prior, 0.05, (0, 3, 8), DEFAULT_STRATEGY)
    for user in range(6):
        own = people.asked.user == user
        asked = interview(prior, 0.05, people.asked.v[own], people.prompt[own], people.asked.label[own])
        beliefs = [belief for belief, _ in islice(asked, 9)]
        test = people.test[people.test_user == user]
        for t, figures in curve.items():
            auc = auc_by_user(test @ beliefs[t].mean, np.zeros(len(test), np.int64), 1)[0]
            assert figures.auc[user] == pytest.approx(auc)


def test_an_interview_asks_everything_once_and_ends():
    people = some_people(users=1, rows=5)
    asked = interview(Gaussian(np.zeros(3), np.eye(3)), 0.05, people.asked.v, people.prompt, people.asked.label)
    questions = [question for _, question in asked]
    assert (sorted(questions[:-1]), questions[-1]) == ([0, 1, 2, 3, 4], -1)


# Intervals


def naive(values: list[float], cluster: list[int], seed: int) -> tuple[float, float]:
    names = sorted({c for v, c in zip(values, cluster, strict=True) if np.isfinite(v)})
    drawn = np.random.default_rng(seed).integers(len(names), size=(200, len(names)))
    means = []
    for draw in drawn:
        people = [v for k in draw for v, c in zip(values, cluster, strict=True) if c == names[k] and np.isfinite(v)]
        means.append(sum(people) / len(people))
    return float(np.quantile(means, 0.05)), float(np.quantile(means, 0.95))


@given(
    st.lists(st.tuples(st.floats(-1, 1) | st.just(float("nan")), st.integers(0, 4)), min_size=1, max_size=20).filter(
        lambda people: any(np.isfinite(value) for value, _ in people)
    ),
    st.integers(0, 3),
)
def test_the_cluster_bootstrap_is_the_plain_loop(people, seed):
    values, cluster = map(list, zip(*people, strict=True))
    found = cluster_interval(np.array(values), np.array(cluster), seed=seed, draws=200, level=0.9)
    assert found == pytest.approx(naive(values, cluster, seed), abs=1e-12)


def test_people_who_repeat_their_kind_do_not_narrow_the_interval():
    kinds = np.random.default_rng(0).random(10)
    once = cluster_interval(kinds, np.arange(10))
    assert cluster_interval(np.repeat(kinds, 50), np.repeat(np.arange(10), 50)) == pytest.approx(once)


def test_who_weighs_twice_counts_as_two_of_their_kind():
    values, kind = np.array([0.1, 0.7, 0.4, np.nan]), np.array([0, 1, 2, 2])
    twice = cluster_interval(values[[0, 1, 1, 2]], kind[[0, 1, 1, 2]])
    assert cluster_interval(values, kind, weight=np.array([1.0, 2.0, 1.0, 5.0])) == pytest.approx(twice)
    assert cluster_interval(values, kind, weight=np.array([1.0, 0.0, 0.0, 1.0])) == pytest.approx((0.1, 0.1))


def test_an_interval_of_nobody_is_refused():
    with pytest.raises(InputError) as error:
        cluster_interval(np.array([np.nan]), np.array([0]))
    assert str(error.value) == "None of 1 people has a value; give people with rows to measure on"


# Costs


def test_peak_memory_is_that_of_a_process_with_numpy():
    assert 2e7 < latency.peak_memory() < 2e10


def test_a_cold_fit_starts_with_an_empty_cache_and_reads_the_childs_memory(monkeypatch):
    def fake(arguments, *, env, **options):
        assert list(Path(env["PALATE_CACHE"]).iterdir()) == []
        assert arguments[-1].endswith("fit_in_child(7)")
        return SimpleNamespace(returncode=0, stdout="a warning\n812.5\n", stderr="")

    monkeypatch.setattr(latency, "run", fake)
    figures = latency.cold_fit(seed=7)
    assert figures["fit_peak_memory_mb"] == 812.5
    assert figures["fit_seconds.cold"] >= 0


def test_a_cold_fit_that_fails_says_why(monkeypatch):
    monkeypatch.setattr(latency, "_CHILD", "raise SystemExit('no room for {seed}')")
    with pytest.raises(EncoderError) as error:
        latency.cold_fit(seed=3)
    assert str(error.value) == ("Fitting with an empty cache failed (no room for 3); free some memory, or give --quick")


# The report


def test_files_have_their_schema_and_are_whole(result, tmp_path):
    written = result.write("palate bench facets --quick", 12.34, tmp_path / "new")
    json_file, table_file, png_file, svg_file = (
        tmp_path / "new" / f"facets.{end}" for end in ("json", "md", "png", "svg")
    )
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "facets.json", "facets.md", "facets.png", "facets.svg",
    ]  # fmt: skip
    record = json.loads(json_file.read_text("utf-8"))
    assert record == written
    assert list(record) == ["command", "machine", "seconds", "figures"]
    assert (record["command"], record["seconds"]) == ("palate bench facets --quick", 12.3)
    assert record["machine"] == report.machine()
    assert record["figures"] == result.figures
    page = table_file.read_text("utf-8")
    assert f"{result.figures['auc.bald.10']:.3f}" in page
    assert "![How well a new person is known](facets.svg)" in page
    assert svg_file.read_bytes().startswith(b"<?xml")
    assert png_file.read_bytes().startswith(b"\x89PNG")


def test_the_page_shows_every_peer_and_every_arm_that_was_measured(result):
    figures = result.figures | {f"ablation.{arm}.{t}": 0.5124 for arm in ARMS for t in ABLATED_AT}
    figures |= {"ablation.random_start.10.sd": 0.0312, "ablation.no_l2_minus_full.10": 0.25}
    page = facets_page.page(figures, (DEFAULT_STRATEGY, "bald", "random"), (0, 5, 10), facets_page.PEER_NAMES)
    assert set(facets_page.PEER_NAMES) == {*(peer.name for peer in PEERS), peers.OWN_QUESTIONS}
    assert [name for name in [*facets_page.PEER_NAMES.values(), *ARMS.values()] if f"| {name} " not in page] == []
    assert "0.512 ± 0.031" in page
    assert "+0.250" in page
    assert "What each part does" not in result.table


def test_the_same_figures_give_the_same_picture(result):
    pictures = [report.draw(result.picture, result.figures, "svg") for _ in range(2)]
    assert pictures[0] == pictures[1]


def test_the_machine_is_named_without_its_host():
    import platform

    assert platform.node() not in report.machine()


def test_a_folder_that_cannot_be_written_is_refused(result, tmp_path):
    (tmp_path / "file").write_text("")
    output = tmp_path / "file" / "results"
    with pytest.raises(InputError) as error:
        report.write("facets", "", {}, 0, output, table="", picture=result.picture)
    assert str(error.value) == f"Cannot write figures to {str(output)!r}: not a directory; name another folder"


def test_without_matplotlib_the_figures_are_written_first(result, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError) as error:
        report.write("facets", "", result.figures, 0, tmp_path, table="", picture=result.picture)
    assert str(error.value) == "The package 'matplotlib' is not installed; run: pip install 'palate[plot]'"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["facets.json", "facets.md"]
