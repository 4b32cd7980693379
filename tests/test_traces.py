"""The arithmetic of TraceBias: cuts, step preferences, discounts, averages, and advantage estimates."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from palate.training.traces import (
    discounted,
    even_cuts,
    generalized_advantages,
    group_mean,
    influence,
    mean_influence,
    per_trace,
    random_cuts,
    scaled,
    step_preferences,
)

lengths = st.lists(st.integers(1, 40), min_size=1, max_size=8).map(torch.tensor)


@given(lengths, st.integers(0, 6), st.integers(0, 1_000))
def test_cuts_are_distinct_places_within_a_trace_or_its_end(length, count, seed):
    torch.manual_seed(seed)
    for cuts in (random_cuts(length, count), even_cuts(length, count)):
        assert cuts.shape == (len(length), count)
        for row, n in zip(cuts.tolist(), length.tolist(), strict=True):
            inner = [cut for cut in row if cut < n]
            assert row == sorted(row) and all(1 <= cut <= n for cut in row)
            assert len(set(inner)) == len(inner) == min(count, n - 1)


def test_random_cuts_fall_everywhere_alike():
    torch.manual_seed(0)
    cuts = random_cuts(torch.full((4_000,), 9), 2)
    counts = torch.bincount(cuts.flatten(), minlength=10)[1:9].float()
    assert float((counts / counts.sum() - 1 / 8).abs().max()) < 0.02


@given(lengths, st.integers(0, 6), st.integers(0, 1_000))
def test_undiscounted_step_preferences_sum_to_what_is_left_of_the_score(length, count, seed):
    torch.manual_seed(seed)
    cuts = random_cuts(length, count)
    values, first, scores = (torch.randn(s) for s in ((len(length), count), (len(length),), (len(length),)))
    steps = step_preferences(values, first, scores, cuts, length)
    torch.testing.assert_close(steps.sum(1), scores - first)
    width = int(length.max())
    returns = discounted(steps, cuts, width, 1.0)
    for i, n in enumerate(length.tolist()):
        for t in range(1, n + 1):
            part = next((k for k in range(count) if cuts[i, k] >= t), count)
            value = first[i] if part == 0 else values[i, part - 1]
            assert float(returns[i, t - 1]) == pytest.approx(float(scores[i] - value), abs=1e-5)


@given(lengths, st.integers(1, 5), st.floats(0, 1), st.integers(0, 1_000))
def test_discounts_are_those_of_the_definition(length, count, gamma, seed):
    torch.manual_seed(seed)
    cuts = random_cuts(length, count)
    steps = torch.randn(len(length), count + 1)
    found = discounted(steps, cuts, int(length.max()), gamma)
    ends = torch.cat([cuts, length[:, None]], dim=1)
    for i in range(len(length)):
        for t in range(1, int(length[i]) + 1):
            first = next(k for k in range(count + 1) if ends[i, k] >= t)
            wanted = sum(gamma ** (k - first) * float(steps[i, k]) for k in range(first, count + 1))
            assert float(found[i, t - 1]) == pytest.approx(wanted, abs=1e-4)


def test_scores_that_hardly_differ_say_nothing():
    same, valid = torch.full((4,), 0.3), torch.ones(4, dtype=torch.bool)
    assert scaled(same, valid).tolist() == [0, 0, 0, 0]
    assert scaled(same + torch.arange(4) * 1e-9, valid).tolist() == [0, 0, 0, 0]
    assert scaled(torch.tensor([5.0, torch.inf]), torch.tensor([True, False])).tolist() == [0, 0]
    assert not scaled(torch.full((2,), torch.nan), torch.zeros(2, dtype=torch.bool)).any()


def test_scores_are_scaled_alike_whatever_their_unit():
    scores, valid = torch.randn(32), torch.ones(32, dtype=torch.bool)
    assert float(scaled(scores, valid).std()) == pytest.approx(1)
    torch.testing.assert_close(scaled(scores, valid), scaled(scores * 1_000, valid))


def test_a_group_mean_is_of_what_is_valid():
    values, valid = torch.tensor([1.0, 2.0, 30.0, 4.0]), torch.tensor([True, True, False, False])
    assert group_mean(values, valid, 2).tolist() == [1.5, 1.5, 0.0, 0.0]


@settings(max_examples=30)
@given(st.floats(-40, 40), st.floats(-40, 40))
def test_influence_falls_smoothly_with_what_has_moved_as_it_should_and_is_bounded(a, b):
    mask = torch.ones(1, 3)
    low, high = sorted((a, b))
    for way in (1.0, -1.0):
        toward = torch.tensor([way])
        less, more = (float(influence(torch.full((1, 3), way * x), mask, toward)) for x in (high, low))
        assert 0 <= less <= more <= 2
        assert float(influence(torch.zeros(1, 3), mask, toward)) == 1
    rising = [float(mean_influence(torch.full((1, 3), x), mask)) for x in (low, high)]
    assert 0 <= rising[0] <= rising[1] <= 2 and float(mean_influence(torch.zeros(1, 3), mask)) == 1


def test_influence_is_of_a_traces_own_tokens_and_passes_no_gradient():
    ratios = torch.tensor([[0.5, 4.0, 100.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    found = influence(ratios.log().requires_grad_(), mask, torch.tensor([0.3]))
    assert float(found) == pytest.approx(2 / (1 + 0.5 * 4.0)) and not found.requires_grad
    against = influence(ratios.log(), mask, torch.tensor([-0.3]))
    assert float(against) == pytest.approx(2 / (1 + 1 / (0.5 * 4.0)))
    mean = (0.5 * 4.0) ** 0.5
    assert float(mean_influence(ratios.log(), mask)) == pytest.approx(2 * mean / (1 + mean))


def test_a_trace_without_tokens_has_mean_zero():
    assert per_trace(torch.ones(1, 3), torch.zeros(1, 3)).tolist() == [0.0]


def test_advantage_estimates_are_those_of_the_definition():
    torch.manual_seed(0)
    values, scores, size = torch.randn(3, 6), torch.randn(3), [6, 4, 1]
    mask = torch.tensor([[float(t < n) for t in range(6)] for n in size])
    found = generalized_advantages(values, scores, mask, 0.9, 0.8)
    for i, n in enumerate(size):
        after = functional.pad(values[i, :n], (0, 1))
        reward = torch.zeros(n)
        reward[-1] = scores[i]
        error = reward + 0.9 * after[1:] - after[:n]
        for t in range(n):
            wanted = sum(0.72**j * float(error[t + j]) for j in range(n - t))
            assert float(found[i, t]) == pytest.approx(wanted, abs=1e-5)
        assert not found[i, n:].any()
    # With λ = γ = 1 it is the score less the value.
    torch.testing.assert_close(
        generalized_advantages(values, scores, mask, 1.0, 1.0), (scores[:, None] - values) * mask
    )
