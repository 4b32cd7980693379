"""The arithmetic of TraceBias: what a score says of each token, and how much a trace may move the policy.

A trace is a completion of T tokens with a score R. It is cut at random, a critic foretells the score after each part,
and the differences between what it foretells are the step preferences (ARF-RLHF, arXiv 2507.03069, describes this in
words; the equations are ours). All functions take whole batches: (n, ...) for n traces, in groups of one prompt that
follow one another.
"""

import torch
from torch import Tensor
from torch.nn import functional


def scaled(scores: Tensor, valid: Tensor) -> Tensor:
    """Scores over their standard deviation among the valid ones; 0 where they hardly differ.

    Args:
        scores: (n,) of the whole generation batch; NaN or infinite where not valid.
        valid: (n,) booleans.

    Example:
        >>> scaled(torch.tensor([1.0, 3.0, float("nan")]), torch.tensor([True, True, False]))
        tensor([0.7071, 2.1213, 0.0000])
    """
    known = scores[valid]
    deviation = known.std() if len(known) > 1 else torch.zeros((), device=scores.device)
    # What is left of a constant in single precision is no difference.
    if not float(deviation) > 1e-6 * max(1.0, float(known.abs().max()) if len(known) else 1.0):
        return torch.zeros_like(scores)
    return torch.where(valid, scores.nan_to_num(0.0, 0.0, 0.0) / deviation, 0.0)


def group_mean(values: Tensor, valid: Tensor, size: int) -> Tensor:
    """(n,) mean of the valid values of each one's group; 0 where a group has none.

    Args:
        values: (n,), finite.
        valid: (n,) booleans.
        size: traces in a group; n is a multiple of it.

    Example:
        >>> group_mean(torch.tensor([1.0, 3.0, 5.0, 9.0]), torch.tensor([True, True, True, False]), 2)
        tensor([2., 2., 5., 5.])
    """
    known = (values * valid).view(-1, size)
    counts = valid.view(-1, size).sum(1, keepdim=True).clamp_min(1)
    return (known.sum(1, keepdim=True) / counts).expand(-1, size).reshape(-1)


def random_cuts(lengths: Tensor, count: int) -> Tensor:
    """(n, count) where traces are cut, in order: distinct places from 1 to T − 1, and T where there are too few.

    Args:
        lengths: (n,) tokens of each trace, T.
        count: cuts, K ≥ 0.
    """
    longest = max(int(lengths.max()) - 1, count, 1)
    place = torch.arange(1, longest + 1, device=lengths.device).expand(len(lengths), -1)
    key = torch.rand(len(lengths), longest, device=lengths.device)
    key = key.masked_fill(place >= lengths[:, None], torch.inf)
    drawn = key.topk(count, dim=1, largest=False).indices + 1 if count else lengths.new_empty(len(lengths), 0)
    return torch.minimum(drawn, lengths[:, None]).sort(1).values


def even_cuts(lengths: Tensor, count: int) -> Tensor:
    """As `random_cuts`, but always the same: parts of like length.

    Example:
        >>> even_cuts(torch.tensor([8, 2, 1]), 3)
        tensor([[2, 4, 6],
                [1, 2, 2],
                [1, 1, 1]])
    """
    step = torch.arange(1, count + 1, device=lengths.device) / (count + 1)
    cuts = (lengths[:, None] * step).floor().long().clamp_min(1)
    # Where parts would be empty the cuts that are left over stand at the end.
    rank = torch.arange(1, count + 1, device=lengths.device)
    short = lengths[:, None] <= count + 1
    return torch.minimum(torch.where(short, rank, cuts), lengths[:, None])


def step_preferences(values: Tensor, first: Tensor, scores: Tensor, cuts: Tensor, lengths: Tensor) -> Tensor:
    """(n, K + 1) δ_k = V_k − V_{k−1}, with V_0 = `first` and V_{K+1} = R; they sum to R − V_0.

    Args:
        values: (n, K) the critic's value at each cut.
        first: (n,) V_0, the group's mean score.
        scores: (n,) R.
        cuts: (n, K) as `random_cuts` gives them.
        lengths: (n,) T.
    """
    inner = torch.where(cuts < lengths[:, None], values, scores[:, None])
    return torch.cat([first[:, None], inner, scores[:, None]], dim=1).diff(dim=1)


def discounted(preferences: Tensor, cuts: Tensor, width: int, gamma: float) -> Tensor:
    """(n, width) G_t = Σ_{k ≥ k(t)} γ^{k − k(t)} δ_k, with k(t) the part that token t stands in.

    Args:
        preferences: (n, K + 1) δ.
        cuts: (n, K) ends of the parts; token t, from 1 on, is in the first part that ends at t or later.
        width: tokens.
        gamma: γ in [0, 1].

    Example:
        >>> discounted(torch.tensor([[1.0, 2.0]]), torch.tensor([[2]]), 3, 0.5)
        tensor([[2., 2., 2.]])
    """
    returns = torch.zeros_like(preferences)
    later = torch.zeros_like(preferences[:, 0])
    for k in reversed(range(preferences.shape[1])):
        later = preferences[:, k] + gamma * later
        returns[:, k] = later
    token = torch.arange(1, width + 1, device=cuts.device).expand(len(cuts), -1).contiguous()
    return returns.gather(1, torch.searchsorted(cuts.contiguous(), token))


def per_trace(values: Tensor, mask: Tensor) -> Tensor:
    """(n,) mean of (n, T) values over each trace's own tokens; 0 where it has none."""
    return (values * mask).sum(1) / mask.sum(1).clamp_min(1)


def influence(log_ratios: Tensor, mask: Tensor, toward: Tensor) -> Tensor:
    """(n,) g = 2 / (1 + r̄^±1), the first average of the Double Average Method before it is divided by the second.

    r̄ = exp(Σ_t log ρ_t) is the ratio of the whole trace to the policy that sampled, + where it is to become likelier
    and − where less likely: what has moved as it should counts less, what has moved against it more. g is smooth,
    g(1) = 1, and never exceeds 2. No gradient passes.

    Args:
        log_ratios: (n, T) log ρ.
        mask: (n, T) the trace's own tokens.
        toward: (n,) above 0 for a trace that is to become likelier, below for one that is to become less likely.

    Example:
        >>> moved = torch.tensor([[0.0, 0.0], [2.0, 1.0], [2.0, 1.0]])
        >>> influence(moved, torch.ones(3, 2), torch.tensor([1.0, 1.0, -1.0]))
        tensor([1.0000, 0.0949, 1.9051])
    """
    return 2 * torch.sigmoid(-(log_ratios.detach() * mask).sum(1) * toward.sign())


def mean_influence(log_ratios: Tensor, mask: Tensor) -> Tensor:
    """(n,) g(r̄) = 2 r̄ / (1 + r̄), r̄ the geometric mean of a trace's ratios: the method as ARF-RLHF's words have it.

    Args:
        log_ratios: (n, T) log ρ.
        mask: (n, T) the trace's own tokens.

    Example:
        >>> mean_influence(torch.tensor([[0.0, 0.0], [50.0, 50.0]]), torch.ones(2, 2))
        tensor([1., 2.])
    """
    return 2 * torch.sigmoid(per_trace(log_ratios.detach(), mask))


def generalized_advantages(values: Tensor, scores: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """(n, T) generalised advantage estimates where the score comes with the last token.

    Schulman et al. 2016 (arXiv 1506.02438), equation 16: A_t = Σ_l (γλ)^l δ_{t+l}, δ_t = r_t + γ V_{t+1} − V_t.

    Args:
        values: (n, T) the critic's value before each token.
        scores: (n,) R.
        mask: (n, T) the trace's own tokens, which stand first.
        gamma: γ.
        lam: λ.
    """
    last = mask * (1 - functional.pad(mask[:, 1:], (0, 1)))
    following = functional.pad((values * mask)[:, 1:], (0, 1))
    error = (scores[:, None] * last + gamma * following - values) * mask
    out = torch.zeros_like(values)
    later = torch.zeros_like(scores)
    for t in reversed(range(values.shape[1])):
        later = error[:, t] + gamma * lam * later
        out[:, t] = later
    return out
