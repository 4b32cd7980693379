"""Settings chosen on left-out people: what is tried, what is taken, and that a draw changes nothing."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import planted

from palate.rewards import selection
from palate.rewards.calibration import Calibration, cross_fit
from palate.rewards.factorization import Penalties
from palate.rewards.ratings import Scales
from palate.rewards.selection import Settings, choose_settings


def with_losses(losses: list[float], rank: int = 12) -> Settings:
    return Settings(rank, Penalties(), Scales(), Calibration(losses=np.array(losses)))


@pytest.mark.parametrize(
    ("one", "better"),
    [
        ([0.9, 0.9, 0.9], True),
        ([1.0, 1.0, 1.0], False),
        ([0.0, 1.0, 1.9], False),
        ([1.1, 1.1, 1.0], False),
        ([], False),
    ],
    ids=["all a little", "none", "one much, one worse", "worse", "nobody left out"],
)
def test_better_is_more_than_a_standard_error(one, better):
    other = with_losses([1.0] * len(one))
    assert with_losses(one).calibration.foretells_better_than(other.calibration) is better


@given(st.lists(st.floats(0, 10), min_size=3, max_size=7, unique=True), st.data())
def test_a_climb_ends_where_neither_neighbour_on_its_way_is_better(losses, data):
    """Without noise between groups, it is hill climbing: checked against a plain loop."""
    grid = list(range(len(losses)))
    start = data.draw(st.sampled_from(grid))

    def at(place: int) -> Settings:
        return with_losses([losses[place]] * 3, rank=place)

    def lower(place: int, than: int) -> bool:
        gain = [losses[than] - losses[place]] * 3
        return bool(sum(gain) > 3**0.5 * np.std(gain, ddof=1))

    place = start
    while place + 1 < len(grid) and lower(place + 1, place):
        place += 1
    if place == start:
        while place > 0 and lower(place - 1, place):
            place -= 1
    assert selection._climb(at(start), grid, start, lambda _, value: at(value)).rank == place


def test_fixed_settings_are_those_of_one_cross_fit():
    truth = planted(users=24, each=30, rank=1, prompts=24)
    found = choose_settings(truth.z, truth.choices, 2, Penalties(3.0, 4.0), seed=1)
    assert (found.rank, found.penalties, found.scales) == (2, Penalties(3.0, 4.0), Scales())
    assert found.calibration == cross_fit(truth.z, truth.choices, 2, Penalties(3.0, 4.0), seed=1)


def test_the_losses_are_those_of_the_figures():
    truth = planted(users=24, each=30, rank=1, prompts=24)
    choices = replace(truth.choices, group=np.arange(24) // 2)
    found = cross_fit(truth.z, choices, 2)
    assert len(found.losses) == 12
    before = sum(np.sum(choices.user == u) for u in range(24))
    # Each number of answers counts alike, as if each were asked of as many rows as the first.
    rows = found.losses.sum() / np.mean(list(found.log_loss.values()))
    assert 0 < rows < before
    assert rows == pytest.approx(round(rows))


def test_a_penalty_far_too_strong_is_lowered_where_asked():
    truth = planted(users=30, each=40, rank=1, features=6, prompts=24)
    found = choose_settings(truth.z, truth.choices, "auto", Penalties(1_000.0, 1_000.0))
    fixed = choose_settings(truth.z, truth.choices, 12, Penalties(1_000.0, 1_000.0))
    assert found.penalties.individual < 1_000 > found.penalties.population
    assert found.calibration.losses.sum() < fixed.calibration.losses.sum()


def test_rank_is_found_first_and_then_the_penalties(monkeypatch):
    tried: list[tuple[int, float]] = []

    def fake(z, choices, rank, penalties, **options):
        tried.append((rank, round(penalties.individual, 3)))
        return Calibration(losses=np.full(3, abs(np.log(rank / 6)) + abs(np.log(penalties.individual / 30))))

    monkeypatch.setattr(selection, "cross_fit", fake)
    truth = planted(users=4, each=4, rank=1)
    found = choose_settings(truth.z, truth.choices, "auto")
    assert (found.rank, found.penalties) == (6, Penalties(30.0, 30.0))
    assert tried == [(12, 10), (16, 10), (8, 10), (6, 10), (4, 10), (6, 30), (6, 100)]
