"""Fine-tuning by TraceBias, PPO, DPO, GRPO or RLOO, all on the same footing: one model, one reward, one budget."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback, set_seed
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from palate.alignment.candidates import Sampling
from palate.alignment.local import DATE, LocalModel
from palate.errors import InputError
from palate.feedback import Text, as_text
from palate.training.ppo import PPOConfig, PPOTrainer
from palate.training.tracebias import TraceBiasConfig, TraceBiasTrainer

if TYPE_CHECKING:
    from peft import LoraConfig

Stage = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, steps in all)."""
Reward = Callable[..., list[float] | list[float | None]]
"""As TRL's `reward_funcs`."""

METHODS = ("tracebias", "ppo", "dpo", "grpo", "rloo")
_ONLINE: dict[str, tuple[Any, Any]] = {
    "tracebias": (TraceBiasTrainer, TraceBiasConfig),
    "ppo": (PPOTrainer, PPOConfig),
    "grpo": (GRPOTrainer, GRPOConfig),
    "rloo": (RLOOTrainer, RLOOConfig),
}


@dataclass(frozen=True)
class Settings:
    """What a fine-tuning may spend, and how; the same for every method.

    Args:
        rounds: batches of completions that are written and scored.
        prompts: in each.
        completions: to each prompt.
        max_tokens: of a completion.
        passes: over each batch; optimiser steps of all methods but DPO are `rounds` times that.
        learning_rate: of AdamW, reached over the first round and then held.
        beta: weight of the divergence from the model at the start.
        micro_batch: completions in one forward pass; a round's are a multiple of it.
        lora_rank: of the adapter that is trained; 0 trains all weights.
        temperature: of the completions.
        save_every: rounds from checkpoint to checkpoint; 0 makes none.
        seed: same seed, same weights.
        start: folder of an adapter of the same model and rank that it goes on from; it still stays near the model
            itself.
        more: further settings of the method's TRL configuration, such as ``{"gamma": 0.9}`` of `TraceBiasConfig`.

    Raises:
        InputError: a value is out of its range.
    """

    rounds: int = 50
    prompts: int = 8
    completions: int = 8
    max_tokens: int = 256
    passes: int = 4
    learning_rate: float = 1e-4
    beta: float = 0.02
    micro_batch: int = 16
    lora_rank: int = 16
    temperature: float = 1.0
    save_every: int = 5
    seed: int = 0
    start: Path | None = None
    more: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        least = {"rounds": 1, "prompts": 1, "completions": 2, "max_tokens": 1, "passes": 1, "micro_batch": 1}
        for name, low in {**least, "lora_rank": 0, "save_every": 0, "beta": 0}.items():
            if not getattr(self, name) >= low:
                raise InputError(f"{name} {getattr(self, name)!r} is below {low}; give a larger one")
        for name in ("learning_rate", "temperature"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} {getattr(self, name)!r} is not above 0; give a larger one")
        if self.prompts * self.completions % self.micro_batch:
            raise InputError(
                f"{self.prompts} prompts of {self.completions} completions are no multiple of micro_batch "
                f"{self.micro_batch!r}; change one of them"
            )


def trainer_of(
    method: str,
    source: LocalModel,
    prompts: Sequence[Text],
    reward: Reward,
    settings: Settings,
    folder: Path,
    *,
    processes: int = 1,
    told: Stage | None = None,
) -> Any:
    """A TRL trainer of that method, ready for `train()`; the model of `source` is what it changes.

    Args:
        method: one of `METHODS`.
        source: the model and its tokeniser.
        prompts: what is asked, more than once if need be.
        reward: what is to be raised.
        settings: how.
        folder: for checkpoints.
        processes: that train together.
        told: told of each step.

    Raises:
        InputError: the method is not known, a round is no multiple of what the processes take at once, `more` names
            what its configuration has not, or DPO finds no two completions of a prompt that differ in reward.
    """
    if method not in METHODS:
        raise InputError(f"Method {method!r} is not one of {', '.join(METHODS)}")
    batch = settings.prompts * settings.completions
    if batch % (settings.micro_batch * processes):
        raise InputError(
            f"A round of {batch} completions is no multiple of micro_batch {settings.micro_batch!r} on {processes} "
            "processes; lower micro_batch, or ask for more completions"
        )
    told = told or (lambda *_: None)
    # TRL sets it by its old name, and whoever trains can do nothing about it.
    warnings.filterwarnings("ignore", ".*gradient_checkpointing.*is deprecated", FutureWarning)
    callbacks = [_EachStepBySeed(settings.seed), _Progress(told)]
    asked = _asked(prompts, settings)
    peft = _adapter(settings)
    if method == "dpo":
        pairs = _pairs(source, asked, reward, settings, told)
        count = settings.rounds * settings.passes * settings.micro_batch * processes
        rows = Dataset.from_list([pairs[i] for i in _in_turn(len(pairs), count, settings.seed)])
        config = _configured(
            DPOConfig,
            settings,
            folder,
            max_steps=settings.rounds * settings.passes,
            per_device_train_batch_size=settings.micro_batch,
            train_sampling_strategy="sequential",
        )
        trainer = DPOTrainer(
            source.model,
            args=config,
            train_dataset=rows,
            processing_class=source.tokenizer,
            peft_config=peft,
            callbacks=callbacks,
        )
        return _silent(trainer)
    make, configuration = _ONLINE[method]
    config = _configured(
        configuration,
        settings,
        folder,
        max_steps=settings.rounds * settings.passes,
        per_device_train_batch_size=settings.micro_batch,
        gradient_accumulation_steps=batch // (settings.micro_batch * processes),
        num_generations=settings.completions,
        num_iterations=settings.passes,
        max_completion_length=settings.max_tokens,
        temperature=settings.temperature,
        shuffle_dataset=False,
        # The mean over traces of the mean over their tokens, for all that average over tokens at all.
        **({} if method == "rloo" else {"loss_type": "grpo"}),
        **({"chat_template_kwargs": {"date_string": DATE}} if source.tokenizer.chat_template else {}),
    )
    rows = Dataset.from_list([{"prompt": _prompt(source, prompt)} for prompt in asked])
    trainer = make(
        source.model,
        reward,
        config,
        train_dataset=rows,
        processing_class=source.tokenizer,
        peft_config=peft,
        callbacks=callbacks,
    )
    return _silent(trainer)


def _silent(trainer: Any) -> Any:
    trainer.remove_callback(PrinterCallback)
    return trainer


def _configured(configuration: Any, settings: Settings, folder: Path, **own: Any) -> Any:
    cuda = torch.cuda.is_available()
    arguments: dict[str, Any] = {
        "output_dir": str(folder),
        "learning_rate": settings.learning_rate,
        "beta": settings.beta,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": settings.passes,
        "seed": settings.seed,
        "logging_steps": settings.passes,
        "save_strategy": "steps" if settings.save_every else "no",
        "save_steps": max(settings.save_every, 1) * settings.passes,
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not cuda,
        "bf16": cuda and torch.cuda.is_bf16_supported(),
        "gradient_checkpointing": cuda,
        **own,
        **settings.more,
    }
    try:
        return configuration(**arguments)
    except TypeError as error:
        raise InputError(f"{configuration.__name__} has no such setting: {error}; see its documentation") from error


def _adapter(settings: Settings) -> "LoraConfig | None":
    if not settings.lora_rank:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=settings.lora_rank, lora_alpha=2 * settings.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def _prompt(source: LocalModel, prompt: Text) -> str | list[dict[str, str]]:
    """A prompt as TRL takes it, so that the model reads what `LocalModel` gives it."""
    return source.turns(prompt) if source.tokenizer.chat_template else as_text(prompt) + "\n\n"


def _in_turn(count: int, needed: int, seed: int) -> list[int]:
    """So many of the first `count` numbers, each as often as the others, in an order by chance."""
    rng = np.random.default_rng(seed)
    turns = [rng.permutation(count) for _ in range(-(-needed // count))]
    return [int(i) for i in np.concatenate(turns)[:needed]]


def _asked(prompts: Sequence[Text], settings: Settings) -> list[Text]:
    """The prompts of all rounds, in order: what a training that goes on after a kill skips is what was done."""
    return [prompts[i] for i in _in_turn(len(prompts), settings.rounds * settings.prompts, settings.seed)]


def _pairs(
    source: LocalModel, asked: Sequence[Text], reward: Reward, settings: Settings, told: Stage
) -> list[dict[str, Any]]:
    """Pairs of completions, by the scores of as many as the other methods have: best against worst, and inwards."""
    pairs = []
    for number in range(settings.rounds):
        told("Writing pairs", number, settings.rounds)
        sampling = Sampling(settings.temperature, max_tokens=settings.max_tokens, seed=settings.seed + number)
        now = asked[number * settings.prompts : (number + 1) * settings.prompts]
        for prompt, drawn in zip(now, source.draw(now, settings.completions, sampling), strict=True):
            shown = _prompt(source, prompt)
            scores = reward(prompts=[shown] * len(drawn), completions=[one.text for one in drawn])
            order = sorted((s, i) for i, s in enumerate(scores) if s is not None and abs(s) < float("inf"))
            for (low, worse), (high, better) in zip(order[: len(order) // 2], reversed(order), strict=False):
                if high > low:
                    said = {"chosen": drawn[better].text, "rejected": drawn[worse].text}
                    pairs.append({"prompt": shown, **{name: _said(shown, text) for name, text in said.items()}})
    if not pairs:
        raise InputError("No two completions of a prompt differ in reward; give other prompts or another reward")
    return pairs


def _said(prompt: str | list[dict[str, str]], text: str) -> str | list[dict[str, str]]:
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


class _EachStepBySeed(TrainerCallback):
    """What is drawn by chance in a step rests on its number alone, so that a training can go on from any checkpoint."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        source = np.random.SeedSequence([self.seed, int(state.global_step), int(args.process_index)])
        set_seed(int(source.generate_state(1)[0]))


class _Progress(TrainerCallback):
    def __init__(self, told: Stage) -> None:
        self.told = told

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.told("Training", state.global_step, state.max_steps)
