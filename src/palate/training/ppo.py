"""Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347), which TRL no longer has: a baseline.

On the same rollouts as GRPO and TraceBias: TRL's clipped loss, a critic on the policy's states, and generalised
advantage estimates, whitened, of a score that comes with the last token. The divergence from the reference stands in
the loss, as it does for the others.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from palate.errors import InputError
from palate.training.critic import CriticConfig, CriticTrainer, Traces
from palate.training.traces import generalized_advantages, per_trace


@dataclass
class PPOConfig(CriticConfig):
    """Settings of `PPOTrainer`: TRL's `GRPOConfig`, of which `epsilon` is the clip, and those of the critic.

    Args:
        gamma: γ in [0, 1], discount of a token.
        lam: λ in [0, 1] of the advantage estimates.

    Raises:
        InputError: a value is out of its range.
    """

    gamma: float = field(default=1.0, metadata={"help": "Discount of a token."})
    lam: float = field(default=0.95, metadata={"help": "λ of the advantage estimates."})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} {getattr(self, name)!r} is not in [0, 1]")


class PPOTrainer(CriticTrainer):
    """Fine-tune a causal language model by PPO; see `palate.training.tracebias.TraceBiasTrainer` for the arguments."""

    _tag_names = ["trl", "ppo"]  # noqa: RUF012  (TRL reads a list)
    _name = "PPO"
    args: PPOConfig

    def token_advantages(self, traces: Traces) -> Tensor:
        """(n, T) generalised advantage estimates, of mean 0 and variance 1 as the loss weights tokens."""
        found, mask = self._estimates(traces), traces.mask
        moments = torch.stack([per_trace(found, mask), per_trace(found**2, mask), traces.valid.float()])
        first, second, count = self.accelerator.reduce(moments.sum(1), reduction="sum")
        mean = first / count.clamp_min(1)
        deviation = (second / count.clamp_min(1) - mean**2).clamp_min(0).sqrt()
        return torch.where(deviation > 1e-6, (found - mean) / deviation.clamp_min(1e-6), 0.0)

    def critic_lesson(self, traces: Traces) -> tuple[Tensor, Tensor]:
        """The λ-returns, before each token of each trace."""
        returns = (self._estimates(traces) + traces.values[:, :-1]) * traces.mask
        pad = torch.nn.functional.pad
        return pad(returns, (0, 1)), pad(traces.mask, (0, 1))

    def _estimates(self, traces: Traces) -> Tensor:
        # A critic that begins at 0 foretells scores about their mean.
        sums = torch.stack([traces.scores.sum(), traces.valid.sum().float()])
        total, count = self.accelerator.reduce(sums, reduction="sum")
        scores = torch.where(traces.valid, traces.scores - total / count.clamp_min(1), 0.0)
        return generalized_advantages(traces.values[:, :-1], scores, traces.mask, self.args.gamma, self.args.lam)
