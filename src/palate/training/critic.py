"""A critic on the policy's own hidden states, and a TRL trainer that has one.

GRPO has no critic. TraceBias and PPO do, and share all of it: the states that it reads are kept from the pass over the
completions that TRL makes anyway, so a critic costs hardly any time; it learns with an optimiser of its own, once for
each generation batch, on the scores of all processes.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from trl import GRPOConfig, GRPOTrainer

from palate.errors import InputError
from palate.training.traces import group_mean, scaled


@dataclass
class CriticConfig(GRPOConfig):  # type: ignore[misc]
    """Settings of a trainer with a critic: TRL's `GRPOConfig`, and those of the critic.

    `loss_type` is ``"grpo"`` here: the mean over traces of the mean over their tokens. `num_iterations` is 4: a batch
    is gone through four times. Checkpoints must fall between generation batches, so that training goes on from one as
    if it had never stopped.

    Args:
        critic_hidden: width of the critic's one hidden layer.
        critic_rate: its learning rate, of AdamW.
        critic_epochs: times that it goes through a generation batch.

    Raises:
        InputError: a value is out of its range, or `save_steps` is no multiple of a generation batch's steps.
    """

    loss_type: str = field(default="grpo")
    num_iterations: int = field(default=4)
    critic_hidden: int = field(default=128, metadata={"help": "Width of the critic's one hidden layer."})
    critic_rate: float = field(default=1e-3, metadata={"help": "Learning rate of the critic."})
    critic_epochs: int = field(default=4, metadata={"help": "Times that the critic goes through a generation batch."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss_type != "grpo":
            raise InputError(f"loss_type {self.loss_type!r} is not 'grpo', the only one that averages over each trace")
        for name in ("critic_hidden", "critic_rate", "critic_epochs"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} {getattr(self, name)!r} is not above 0; give a larger one")
        period, parts = self.steps_per_generation * self.num_iterations, self.gradient_accumulation_steps
        if period % parts and parts % period:
            raise InputError(
                f"gradient_accumulation_steps {parts!r} does not divide {period}, the passes over a generation batch; "
                "give one that does, so that no optimiser step lies in two batches"
            )
        period = max(period // parts, 1)
        if self.save_strategy == "steps" and self.save_steps % period:
            raise InputError(
                f"save_steps {self.save_steps!r} is no multiple of {period}, the steps taken on one generation batch; "
                f"give {period * math.ceil(self.save_steps / period)}"
            )


class Critic(nn.Module):
    """Foretells a score from the state after any part of a completion.

    Args:
        width: H, size of the policy's hidden states.
        hidden: width of the one hidden layer.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        last = nn.Linear(hidden, 1)
        nn.init.zeros_(last.weight)  # it foretells the mean until it knows better
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), last)

    def forward(self, states: Tensor) -> Tensor:
        """(...) values of (..., H) states."""
        return self.layers(states.float())[..., 0]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Traces:
    """One generation batch on this process, as advantages are found for it.

    Args:
        scores: (n,) over their standard deviation in the batch; 0 where not valid.
        centre: (n,) mean score of each one's group.
        valid: (n,) booleans: it has a finite score and a token.
        mask: (n, T) its own tokens.
        values: (n, T + 1) the critic's value of the prompt, and after each token.
    """

    scores: Tensor
    centre: Tensor
    valid: Tensor
    mask: Tensor
    values: Tensor

    @property
    def lengths(self) -> Tensor:
        """(n,) tokens."""
        return self.mask.sum(1).long()


class CriticTrainer(GRPOTrainer):  # type: ignore[misc]
    """TRL's `GRPOTrainer` with a critic; what its values mean for each token is for a subclass to say.

    A trace whose score is NaN or infinite, or that has no token, is left out of everything: it does not move the
    policy, by no term of the loss, nor the critic, and counts in no mean.
    """

    def __init__(self, model: Any, reward_funcs: Any, args: CriticConfig, **more: Any) -> None:
        super().__init__(model, reward_funcs, args=args, **more)
        self._decoder = _decoder(self.accelerator.unwrap_model(self.model))
        width = self.model.config.get_text_config().hidden_size
        with torch.random.fork_rng():  # the same on all processes, whose seeds differ
            torch.manual_seed(args.seed)
            self.critic = Critic(width, args.critic_hidden).to(self.accelerator.device)
        self.critic_optimizer = torch.optim.AdamW(self.critic.parameters(), args.critic_rate, weight_decay=0.01)
        self._states: Tensor | None = None
        self._keeping = False
        self._raw: Tensor | None = None

    def token_advantages(self, traces: Traces) -> Tensor:
        """(n, T) advantage of each token."""
        raise NotImplementedError

    def critic_lesson(self, traces: Traces) -> tuple[Tensor, Tensor]:
        """What the critic is to learn: (n, T + 1) targets, and (n, T + 1) weights, drawn anew for each epoch."""
        raise NotImplementedError

    def group(self, values: Tensor, valid: Tensor) -> Tensor:
        """(n,) means over the groups of one prompt, which may stand on several processes."""
        every = self.accelerator.gather(torch.stack([values, valid.float()], dim=1))
        mean = group_mean(every[:, 0], every[:, 1] > 0, self._group_size)
        return mean[self._own(len(values))]

    @property
    def _group_size(self) -> int:
        return int(self.num_generations if self.model.training else self.num_generations_eval)

    def _own(self, count: int) -> slice:
        first = self.accelerator.process_index * count
        return slice(first, first + count)

    # What TRL does, with an ear at two doors.

    def _calculate_rewards(self, *args: Any, **more: Any) -> Tensor:
        each: Tensor = super()._calculate_rewards(*args, **more)  # of all processes
        # A mean over what is known would take an infinite score for a good one.
        each = each.masked_fill(each.isinf(), torch.nan)
        weights = self.reward_weights.to(each.device)
        total = (each * weights).nansum(dim=1)
        self._raw = total.masked_fill(each.isnan().all(dim=1), torch.nan)
        return each

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **more: Any) -> Any:
        if not self._keeping or self._states is not None:
            return super()._get_per_token_logps_and_entropies(model, *args, **more)
        with _hearing(self._decoder) as heard:
            result = super()._get_per_token_logps_and_entropies(model, *args, **more)
        self._states = torch.cat(heard)
        return result

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        self._keeping, self._states = True, None
        try:
            output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        finally:
            self._keeping = False
        mask = output["completion_mask"] * output.get("tool_mask", 1)
        width = mask.shape[1]
        if "old_per_token_logps" not in output:
            # TRL had no need of such a pass, or its only one was the reference's.
            self._states = self._read(output)
        assert self._states is not None and self._raw is not None
        states = self._states[:, -(width + 1) :].float()
        self._states = None
        count = len(mask)
        raw, lengths = self._raw, self.accelerator.gather(mask.sum(1))
        valid = raw.isfinite() & (lengths > 0)
        scores = scaled(raw, valid)
        centre = group_mean(scores, valid, self._group_size)
        own = self._own(count)
        # No term of the loss is to see what is not valid.
        output["completion_mask"] = output["completion_mask"] * valid[own, None]
        mask = mask * valid[own, None]
        with torch.no_grad():
            values = self.critic(states)
        traces = Traces(scores[own], centre[own], valid[own], mask.float(), values)
        output["advantages"] = torch.where(mask > 0, self.token_advantages(traces), 0.0)
        output["valid_traces"] = valid.sum().expand(count).float() / self.accelerator.num_processes
        if self.model.training:
            self._learn_critic(traces, states)
        return output

    def _read(self, output: dict[str, Any]) -> Tensor:
        """(n, ..., H) states of a batch, by a pass of its own."""
        ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
        seen = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
        size = self.args.per_device_train_batch_size
        self._keeping, self._states = True, None
        try:
            with torch.no_grad():
                self._get_per_token_logps_and_entropies(
                    self.model, ids, seen, output["completion_ids"].shape[1], batch_size=size
                )
        finally:
            self._keeping = False
        assert self._states is not None
        return self._states

    def _learn_critic(self, traces: Traces, states: Tensor) -> None:
        mode, losses = "train", []
        for _ in range(self.args.critic_epochs):
            target, weight = self.critic_lesson(traces)
            total = self.accelerator.reduce(weight.sum(), reduction="sum").clamp_min(1e-9)
            loss = (weight * (self.critic(states) - target) ** 2).sum() / total
            self.critic_optimizer.zero_grad()
            loss.backward()
            for parameter in self.critic.parameters():
                parameter.grad = self.accelerator.reduce(parameter.grad, reduction="sum")
            self.critic_optimizer.step()
            losses.append(float(self.accelerator.reduce(loss.detach(), reduction="sum")))
        self._metrics[mode]["critic/loss"].append(losses[0])  # before it has learned from these traces

    # The critic is part of a checkpoint.

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            save_file(_flat(self.critic, self.critic_optimizer), folder / "critic.safetensors")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        path = Path(checkpoint or "") / "critic.safetensors"
        if checkpoint is None:
            return
        if not path.exists():
            raise InputError(f"{checkpoint!r} holds no critic; go on with the method that it was made by")
        _restore(self.critic, self.critic_optimizer, load_file(path, device=str(self.accelerator.device)))


def _decoder(model: Any) -> nn.Module:
    """The part of a causal language model, under whatever wraps it, whose last states its head reads."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base.base_model  # type: ignore[no-any-return]


@contextmanager
def _hearing(decoder: nn.Module) -> Iterator[list[Tensor]]:
    """The last hidden states of each call, without their gradients, while the context lasts."""
    heard: list[Tensor] = []
    handle = decoder.register_forward_hook(lambda _, __, said: heard.append(said.last_hidden_state.detach()))
    try:
        yield heard
    finally:
        handle.remove()


def _flat(critic: Critic, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    kept = {f"critic.{name}": value for name, value in critic.state_dict().items()}
    for number, memory in optimizer.state_dict()["state"].items():
        kept |= {f"optimizer.{number}.{name}": torch.as_tensor(value) for name, value in memory.items()}
    return {name: value.contiguous() for name, value in kept.items()}


def _restore(critic: Critic, optimizer: torch.optim.Optimizer, kept: dict[str, Tensor]) -> None:
    critic.load_state_dict({name.removeprefix("critic."): v for name, v in kept.items() if name.startswith("critic.")})
    memory: dict[int, dict[str, Tensor]] = {}
    for name, value in kept.items():
        if name.startswith("optimizer."):
            _, number, part = name.split(".")
            memory.setdefault(int(number), {})[part] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": memory})
