"""TraceBias: fine-tuning on continuous scores of whole completions, without pairs and without a clip.

ARF-RLHF (arXiv 2507.03069) describes it in words; what follows is our definition of it.

*Trajectory bias*: a trace's score against its group's mean. *Step preference*: traces are cut at random places, a
critic that learned from prefixes of random length foretells the score at each, and a token is given what is foretold
from its part on, discounted by γ. The two are mixed by η:

    A_{i,t} = (1 − η)(R_i − R̄) + η(G_{i,t} − Ḡ)

*Double Average Method*: a trace counts by how far it has moved since it was sampled, as a whole and in the direction of
its advantage: g_i = 2 / (1 + r̄_i^±1), r̄_i the ratio of the whole trace, + where it is to become likelier and −
where less likely; over the traces of a step w_i = g_i / max(1, mean_j g_j), g smooth and bounded, no gradient passing:

    loss = −(1/N) Σ_i (1/T_i) Σ_t w_i A_{i,t} π_t / sg(π_t) + β KL

Where the policy is still the one that sampled, its gradient is REINFORCE's; later no token has more influence than
sup g = 2 times that, and a trace that has moved far enough has none. With the mean of a trace's ratios for r̄ and
weights that rise with it (``dam-mean``) the policy goes further from where it was for less (docs/log.md).
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from palate.errors import InputError
from palate.training.critic import CriticConfig, CriticTrainer, Traces
from palate.training.traces import (
    discounted,
    even_cuts,
    influence,
    mean_influence,
    per_trace,
    random_cuts,
    step_preferences,
)

_MORE = (
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "spatial_shapes",
    "num_tiles",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
)  # what TRL passes on to a forward pass, where there is any


@dataclass
class TraceBiasConfig(CriticConfig):
    """Settings of `TraceBiasTrainer`: TRL's `GRPOConfig`, those of the critic, and each term of TraceBias by name.

    Args:
        cuts: K, places at which a trace is cut, 0 or more.
        gamma: γ in [0, 1], by how much a later step preference counts less.
        eta: η in [0, 1], share of the step preferences; 0 leaves the trajectory bias alone, 1 the step preferences.
        random_lengths: traces are cut, and the critic learns, at random places; else always in parts of like length.
        averaging: ``dam``, the Double Average Method; ``dam-mean``, the same by a trace's mean ratio;
            ``clip``, TRL's clip of each token's ratio by `epsilon`;
            ``none``, ratios as they are.

    Raises:
        InputError: a value is out of its range.

    Example:
        >>> TraceBiasConfig("out", gamma=0.9, eta=0.25, report_to="none", use_cpu=True, bf16=False).averaging
        'dam'
    """

    cuts: int = field(default=4, metadata={"help": "Places at which a trace is cut."})
    gamma: float = field(default=0.95, metadata={"help": "By how much a later step preference counts less."})
    eta: float = field(default=0.5, metadata={"help": "Share of the step preferences."})
    random_lengths: bool = field(default=True, metadata={"help": "Traces are cut at random places."})
    averaging: Literal["dam", "dam-mean", "clip", "none"] = field(
        default="dam", metadata={"help": "How ratios bear on the loss: dam, dam-mean, clip or none."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.cuts >= 0:
            raise InputError(f"cuts {self.cuts!r} is below 0; give 0 or more")
        for name in ("gamma", "eta"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} {getattr(self, name)!r} is not in [0, 1]")
        if self.averaging not in ("dam", "dam-mean", "clip", "none"):
            raise InputError(f"averaging {self.averaging!r} is not dam, dam-mean, clip or none")
        if self.averaging == "none":
            self.epsilon = self.epsilon_high = 1e9


class TraceBiasTrainer(CriticTrainer):
    """Fine-tune a causal language model on scores: a `GRPOTrainer` with other advantages and another loss.

    Generation (transformers or vLLM), PEFT, accelerate, checkpoints and logging are TRL's.

    Args:
        model: name, folder or model, as `trl.GRPOTrainer` takes it.
        reward_funcs: one or more, as TRL calls them; see `palate.training.rewards`.
        args: settings.
        more: as `trl.GRPOTrainer` takes it, `train_dataset` among it.

    Example:
        >>> trainer = TraceBiasTrainer(                                                    # doctest: +SKIP
        ...     "Qwen/Qwen2.5-0.5B-Instruct", TasteReward(model, ann.mean),
        ...     TraceBiasConfig("ann"), train_dataset=prompts, peft_config=LoraConfig(),
        ... )
        >>> trainer.train()                                                                # doctest: +SKIP
    """

    _tag_names = ["trl", "tracebias"]  # noqa: RUF012  (TRL reads a list)
    _name = "TraceBias"
    args: TraceBiasConfig
    _second: Tensor | None = None

    def token_advantages(self, traces: Traces) -> Tensor:
        """(n, T) (1 − η)(R − R̄) + η(G − Ḡ)."""
        eta, mask = self.args.eta, traces.mask
        total = (1 - eta) * (traces.scores - traces.centre)[:, None].expand_as(mask)
        if eta > 0:
            total = total + eta * self._steps(traces)
        return total

    def _steps(self, traces: Traces) -> Tensor:
        """(n, T) G − Ḡ."""
        # The critic foretells by how much a trace will differ from its group's mean; what it says of all of them
        # together, weighted as the loss weights tokens, is no preference.
        offset = self.group(per_trace(traces.values[:, :-1], traces.mask), traces.valid)
        values = traces.values + (traces.centre - offset)[:, None]
        lengths = traces.lengths
        cuts = (random_cuts if self.args.random_lengths else even_cuts)(lengths, self.args.cuts)
        steps = step_preferences(values.gather(1, cuts), traces.centre, traces.scores, cuts, lengths)
        returns = discounted(steps, cuts, traces.mask.shape[1], self.args.gamma)
        return returns - self.group(per_trace(returns, traces.mask), traces.valid)[:, None]

    def critic_lesson(self, traces: Traces) -> tuple[Tensor, Tensor]:
        """The score less its group's mean, after prefixes of random length: as many of each trace as it has cuts."""
        count = max(self.args.cuts, 1)
        lengths = traces.lengths
        cuts = (random_cuts if self.args.random_lengths else even_cuts)(lengths, count)
        weight = torch.zeros_like(traces.values).scatter_(1, cuts, 1.0) * traces.valid[:, None]
        target = (traces.scores - traces.centre)[:, None].expand_as(weight)
        return target, weight

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        if not self.args.averaging.startswith("dam"):
            return super()._compute_loss(model, inputs)  # type: ignore[no-any-return]
        log_probs, entropy, aux = self._pass(model, inputs, compute_entropy=True)
        mask = (inputs["completion_mask"] * inputs.get("tool_mask", 1)).float()
        sampled = inputs.get("old_per_token_logps")
        sampled = log_probs.detach() if sampled is None else sampled
        weight = self._first_average(log_probs - sampled, mask, inputs["advantages"])
        mode = "train" if self.model.training else "eval"
        second = self._second_average(model, weight, mask)
        # π / sg(π): 1, with the gradient of log π.
        each = -(weight / second)[:, None] * inputs["advantages"] * (log_probs - log_probs.detach()).exp()
        if "importance_sampling_ratio" in inputs:
            each = each * inputs["importance_sampling_ratio"]
        if self.beta != 0.0:
            less = inputs["ref_per_token_logps"] - log_probs
            kl = less.exp() - less - 1  # Schulman's k3, which is never below 0
            each = each + self.beta * kl
            self._tell(mode, "kl", kl, mask)
        # The traces that count in the whole generation batch, for each of its parts: accumulation changes nothing.
        parts = self.args.steps_per_generation if mode == "train" else 1
        count = (inputs["valid_traces"][0] / parts).clamp_min(1e-9)
        loss: Tensor = per_trace(each, mask).sum() / count
        if aux is not None:
            loss = loss + self.router_aux_loss_coef * aux
        self._tell(mode, "entropy", entropy, mask)
        self._metrics[mode]["dam/influence"].append(float(self.accelerator.gather(weight / second).max()))
        return loss / (self.current_gradient_accumulation_steps if mode == "train" else 1.0)

    def _pass(self, model: Any, inputs: dict[str, Any], *, compute_entropy: bool = False) -> Any:
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        seen = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        return self._get_per_token_logps_and_entropies(
            model,
            ids,
            seen,
            inputs["completion_ids"].shape[1],
            compute_entropy=compute_entropy,
            compute_aux_loss=self.aux_loss_enabled,
            **{name: inputs[name] for name in _MORE if name in inputs},
        )

    def _second_average(self, model: Any, weight: Tensor, mask: Tensor) -> Tensor:
        """Mean of g(r̄) over the traces of this optimiser step, on all processes and in all its parts."""
        parts = self.args.gradient_accumulation_steps if self.model.training else 1
        if self._step % parts == 0 or self._second is None:
            several = [(weight, mask)]
            period = self.args.steps_per_generation * self.args.num_iterations
            # Before the first optimiser step on a generation batch the policy is the one that sampled: g is 1.
            if parts > 1 and self._step % period and self._buffered_inputs is not None:
                later = [self._buffered_inputs[(self._step + i) % len(self._buffered_inputs)] for i in range(1, parts)]
                several += [self._influence(model, inputs) for inputs in later]
            weights = torch.cat([w for w, _ in several])
            counts = torch.cat([m.sum(1) > 0 for _, m in several]).float()
            sums = self.accelerator.reduce(torch.stack([(weights * counts).sum(), counts.sum()]), reduction="sum")
            self._second = torch.where(sums[1] > 0, sums[0] / sums[1].clamp_min(1), 1.0)
            if self.args.averaging == "dam":
                # Where all have moved as they should, none is given its influence back.
                self._second = self._second.clamp_min(1.0)
        return self._second

    def _influence(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """g(r̄) and the masks of another part of this optimiser step."""
        with torch.no_grad():
            log_probs, _, _ = self._pass(model, inputs)
        mask = (inputs["completion_mask"] * inputs.get("tool_mask", 1)).float()
        return self._first_average(log_probs - inputs["old_per_token_logps"], mask, inputs["advantages"]), mask

    def _first_average(self, log_ratios: Tensor, mask: Tensor, advantages: Tensor) -> Tensor:
        if self.args.averaging == "dam-mean":
            return mean_influence(log_ratios, mask)
        return influence(log_ratios, mask, per_trace(advantages, mask))

    def _tell(self, mode: str, name: str, values: Tensor, mask: Tensor) -> None:
        sums = self.accelerator.reduce(torch.stack([(values.detach() * mask).sum(), mask.sum()]), "sum")
        self._metrics[mode][name].append(float(sums[0] / sums[1].clamp_min(1)))
