"""The benchmarks on real data, on tiny files of their layouts; the Gaussian against closed forms."""

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.testing import assert_allclose
from pyarrow.parquet import write_table
from scipy.stats import multivariate_normal

from palate.bench import hh, jester, report
from palate.bench.compared import Compared
from palate.bench.gaussian import expected_ratings, fit_gaussian
from palate.errors import InputError
from palate.rewards.evaluation import auc_by_user


@dataclass(frozen=True)
class Hashed:
    """An encoder that hashes texts; what stands between two bars is read as numbers."""

    name: str = "hashed"
    revision: str = "1"
    width: int = 10

    @property
    def blocks(self) -> Mapping[str, slice]:
        return {"mean": slice(0, self.width)}

    def encode(self, prompts: Sequence[str], completions: Sequence[str], *, progress=None):
        return np.array([self._one(text) for text in completions], np.float32)

    def _one(self, text: str) -> np.ndarray:
        rng = np.random.default_rng(int.from_bytes(sha256(text.encode()).digest()[:8], "big"))
        vector = rng.standard_normal(self.width)
        if "|" in text:
            shown = np.array([float(x) for x in text.split("|")[1].split()])
            vector[: len(shown)] = 3 * shown
        return vector


# The Gaussian


def some_ratings(users: int = 60, items: int = 5, missing: float = 0.3, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    ratings = rng.standard_normal((users, 2)) @ rng.standard_normal((2, items)) + rng.standard_normal((users, items))
    ratings[rng.random(ratings.shape) < missing] = np.nan
    ratings[0] = np.nan  # somebody who rated nothing
    return ratings


def log_likelihood(ratings: np.ndarray, mean: np.ndarray, cov: np.ndarray) -> float:
    total = 0.0
    for row in ratings:
        o = ~np.isnan(row)
        if o.any():
            total += multivariate_normal.logpdf(row[o], mean[o], cov[np.ix_(o, o)])
    return total


def test_with_nothing_missing_the_gaussian_is_mean_and_covariance():
    ratings = some_ratings(missing=0.0)[1:]
    mean, cov = fit_gaussian(ratings, rounds=1)
    assert_allclose(mean, ratings.mean(axis=0), atol=1e-12)
    assert_allclose(cov, np.cov(ratings.T, bias=True), atol=1e-12)


def test_em_climbs_the_likelihood_to_a_stationary_point():
    ratings = some_ratings()
    values = [log_likelihood(ratings, *fit_gaussian(ratings, rounds)) for rounds in (1, 3, 10, 100, 400)]
    assert (np.diff(values) > -1e-9).all() and values[1] > values[0] + 1
    mean, cov = fit_gaussian(ratings, 400)
    rng = np.random.default_rng(1)
    for _ in range(5):
        step = 0.02 * rng.standard_normal((5, 5))
        assert log_likelihood(ratings, mean + 0.05 * step[0], cov + step @ step.T) < values[-1]
        assert log_likelihood(ratings, mean, (np.eye(5) + step) @ cov @ (np.eye(5) + step).T) < values[-1]


def test_expected_ratings_are_conditional_means():
    ratings = some_ratings()
    mean, cov = fit_gaussian(ratings)
    found = expected_ratings(ratings, mean, cov)
    for row, expected in zip(ratings, found, strict=True):
        o = ~np.isnan(row)
        gain = cov[:, o] @ np.linalg.inv(cov[np.ix_(o, o)]) if o.any() else np.zeros((5, 0))
        assert_allclose(expected, mean + gain @ (row[o] - mean[o]), atol=1e-9)
        assert_allclose(expected[o], row[o], atol=1e-9)


# Jester


def write_jester(folder: Path, users: int = 48, jokes: int = 24, seed: int = 0) -> np.ndarray:
    """Two sorts of jokes, people who like the one or the other; the ratings."""
    rng = np.random.default_rng(seed)
    sort, funny = np.arange(jokes) % 2 * 2 - 1, rng.standard_normal(jokes)
    side = rng.permutation(np.arange(users) % 2 * 2 - 1)
    ratings = np.clip(4 * side[:, None] * sort + 2 * funny + 2 * rng.standard_normal((users, jokes)), -10, 10)
    ratings[rng.random(ratings.shape) < 0.2] = np.nan
    texts = [f"Joke {i} |{s} {f:.3f}|" for i, (s, f) in enumerate(zip(sort, funny, strict=True))]
    write_table(pa.table({"joke_id": np.arange(jokes) + 7, "text": texts}), folder / "jokes.parquet")
    user, joke = np.nonzero(~np.isnan(ratings))
    columns = {"user_id": user + 100, "joke_id": joke + 7, "rating": ratings[user, joke]}
    write_table(pa.table(columns), folder / "ratings.parquet")
    return ratings


def run_jester(folder: Path, seed: int = 0) -> report.Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jester, "load_encoder", Hashed)
        return jester.run(quick=True, seed=seed, data=folder)


@pytest.fixture(scope="module")
def jokes(tmp_path_factory) -> tuple[Path, report.Result]:
    folder = tmp_path_factory.mktemp("jester")
    write_jester(folder)
    return folder, run_jester(folder)


def test_answers_about_jokes_teach(jokes):
    figures = jokes[1].figures
    assert (figures["people"], figures["training_people"]) == (12, 36)
    for source in ("choices", "ratings"):
        assert figures[f"auc.{source}.v-optimal.10"] > figures["auc.bradley_terry.10"] + 0.1
    assert figures["auc.ratings.rated.5"] > figures["auc.ratings.rated.0"] + 0.1
    assert figures["auc.gaussian.10"] > figures["auc.gaussian.0"] + 0.1
    assert figures["auc.choices.v-optimal_minus_bradley_terry.5"] == pytest.approx(
        figures["auc.choices.v-optimal.5"] - figures["auc.bradley_terry.5"]
    )
    for name in [name.removesuffix(".low") for name in figures if name.endswith(".low")]:
        assert figures[f"{name}.low"] <= figures[name] <= figures[f"{name}.high"]


def test_a_benchmark_s_figures_are_the_same_twice_and_can_be_written(jokes, tmp_path):
    folder, result = jokes
    assert run_jester(folder).figures == result.figures
    written = result.write("palate bench jester --quick", 1.0, tmp_path)
    assert json.loads((tmp_path / "jester.json").read_text("utf-8")) == written
    assert "| a Gaussian over the jokes" in (tmp_path / "jester.md").read_text("utf-8")


def test_jokes_are_read_as_they_were_written(tmp_path):
    ratings = write_jester(tmp_path)
    read = jester.read_jokes(tmp_path)
    assert_allclose(read.ratings, ratings)
    assert read.texts[3].startswith("Joke 3 |")


def test_halves_share_no_joke_and_pairs_differ_by_a_point(tmp_path):
    ratings = write_jester(tmp_path)
    halves = jester._Halves.of(ratings, np.random.default_rng(0))
    for u, row in enumerate(ratings):
        asked, test = (
            {(b, w) for b, w, of in zip(p.better, p.worse, p.user, strict=True) if of == u}
            for p in (halves.asked, halves.test)
        )
        first = set(np.flatnonzero(~np.isnan(halves.ratings[u])))
        rest = set(np.flatnonzero(~np.isnan(row))) - first
        assert len(first) == np.sum(~np.isnan(row)) // 2
        assert {joke for pair in asked for joke in pair} <= first
        assert test == {(b, w) for b in rest for w in rest if row[b] - row[w] >= 1}
        assert all(row[b] - row[w] >= 1 for b, w in asked)
        assert [np.sum(~np.isnan(halves.answered(t)[u])) for t in (0, 3, 40)] == [0, 3, len(first)]
    score = np.random.default_rng(1).standard_normal(ratings.shape)
    gain = [score[u, b] - score[u, w] for u, b, w in zip(*vars(halves.test).values(), strict=True)]
    assert_allclose(halves.auc(score), auc_by_user(np.array(gain), halves.test.user, len(ratings)))


def test_pairs_are_drawn_for_each_person():
    ratings = np.array([[0.0, 5.0, 9.0, 9.5], [np.nan, 1.0, np.nan, 3.0]])
    pairs = jester._pairs(ratings, np.random.default_rng(0), 3)
    assert pairs.user.tolist() == [0, 0, 0, 1]
    assert (pairs.better[-1], pairs.worse[-1]) == (3, 1)
    every = jester._pairs(ratings, np.random.default_rng(0))
    assert len(every.user) == 6  # 9 and 9.5 are too close


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rating": [11.0]}, "Rating 11.0 is not in -10 to 10; leave such rows out"),
        ({"rating": [float("nan")]}, "Rating nan is not in -10 to 10; leave such rows out"),
        ({"joke_id": [3]}, "ratings.parquet rates joke 3, which jokes.parquet has not; give both of one set"),
        ({}, "0 people rated 4 jokes or more, at least 8 are needed; give more"),
    ],
)
def test_what_is_no_jester_is_refused(tmp_path, change, message):
    write_jester(tmp_path)
    write_table(pa.table({"user_id": [1], "joke_id": [7], "rating": [1.0], **change}), tmp_path / "ratings.parquet")
    with pytest.raises(InputError) as error:
        jester.read_jokes(tmp_path)
    assert str(error.value) == message


def test_a_folder_without_jester_is_refused(tmp_path):
    with pytest.raises(InputError) as error:
        jester.run(quick=True, seed=0, data=tmp_path)
    assert str(error.value) == (
        f"Cannot read {str(tmp_path / 'jokes.parquet')!r}; give --data the folder with Jester's Parquet files"
    )
    write_table(pa.table({"text": ["Ha"]}), tmp_path / "jokes.parquet")
    with pytest.raises(InputError) as error:
        jester.read_jokes(tmp_path)
    assert str(error.value) == f"{str(tmp_path / 'jokes.parquet')!r} has no column 'joke_id'; it needs joke_id, text"


# HH


def write_hh(folder: Path, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for sign, name in ((1, "helpful"), (-1, "harmless")):
        rows = []
        for number in range(260):
            shown = rng.standard_normal((2, 2))
            label = int(np.argmax(sign * shown[:, 0] + 0.5 * shown[:, 1]))
            texts = [f"Answer |{a:.3f} {b:.3f}|" for a, b in shown]
            rows.append({"prompt": f"Human: {name} {number}", "responses": texts, "label": label})
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(data))


def run_hh(folder: Path) -> dict[str, float]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hh, "load_encoder", Hashed)
        return hh.run(quick=True, seed=0, data=folder).figures


def test_it_is_soon_known_which_objective_somebody_has(tmp_path):
    write_hh(tmp_path)
    figures = run_hh(tmp_path)
    assert (figures["people"], figures["training_people"], figures["training_comparisons"]) == (30, 30, 600)
    assert figures["auc.v-optimal.5"] > figures["auc.bradley_terry.5"] + 0.1
    assert figures["auc.v-optimal.20"] > 0.85
    assert figures["accuracy.v-optimal.20"] > figures["accuracy.bradley_terry.20"]


def test_nobody_is_asked_or_tested_on_a_prompt_that_was_fitted_on(tmp_path):
    write_hh(tmp_path)
    pairs = {name: hh.read_pairs(tmp_path, name) for name in ("helpful", "harmless")}
    rows = hh._people(pairs, hh._QUICK, 0)
    split = {s: {(r.user_id, str(r.prompt)) for r in rows if r.split == s} for s in ("train", "adapt", "test")}
    fitted, asked, tested = ({prompt for _, prompt in split[s]} for s in ("train", "adapt", "test"))
    assert not fitted & (asked | tested)
    assert not split["adapt"] & split["test"]
    better = {pair.better for own in pairs.values() for pair in own}
    assert {row.chosen for row in rows} <= better
    assert all(str(row.prompt).split()[1] == row.user_id.split("-")[0] for row in rows)


def test_what_is_no_hh_is_refused(tmp_path):
    with pytest.raises(InputError) as error:
        hh.run(quick=True, seed=0, data=None)
    assert str(error.value) == "HH-RLHF does not come with Palate; give --data the folder with its two files"
    with pytest.raises(InputError) as error:
        hh.read_pairs(tmp_path, "helpful")
    assert str(error.value).startswith("There is no helpful.jsonl or helpful.jsonl.gz in ")
    path = tmp_path / "helpful.jsonl"
    for text in ('{"prompt": "Hi"}\n', "no json\n", "[1]\n", '{"prompt": "Hi", "responses": ["a"], "label": 0}\n'):
        path.write_text(text)
        with pytest.raises(InputError) as error:
            hh.read_pairs(tmp_path, "helpful")
        assert str(error.value) == (
            f"{str(path)!r} is not a file of pairs with prompt, responses and label; give VPL's HH-RLHF"
        )
    few = [hh.Pair("Hi", "a", "b")]
    with pytest.raises(InputError) as error:
        hh._people({"helpful": few}, hh._QUICK, 0)
    assert str(error.value) == "There are 1 helpful pairs, 250 are needed; give the whole file"


def test_methods_are_paired_by_person():
    compared = Compared(np.arange(4), seed=0)
    one = np.array([0.5, 0.6, 0.7, np.nan])
    compared.add("one", one)
    compared.add("other", one - 0.1)
    figures = compared.difference("gain", "one", "other")
    assert [round(value, 9) for value in figures.values()] == [0.1, 0.1, 0.1]
