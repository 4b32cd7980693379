"""A fine-tuning from beginning to end: goes on where it was killed, and leaves an adapter with a card."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from palate.alignment.adapters import Adapter, adapter_revision
from palate.alignment.local import LocalModel
from palate.encoders.models import quiet
from palate.errors import InputError, ModelError
from palate.feedback import Text
from palate.training.methods import Reward, Settings, Stage, trainer_of

_DONE = "complete"  # written into a checkpoint when all of it is there


@dataclass(frozen=True)
class FineTuned:
    """What a fine-tuning has made.

    Args:
        folder: of the adapter, or of the whole model where all weights were trained.
        steps: of the optimiser.
        reward: mean reward of the completions of each round; none of DPO.
    """

    folder: Path
    steps: int
    reward: list[float]


@dataclass(frozen=True)
class Whose:
    """Whose taste an adapter carries.

    Args:
        users: one person, or the members of a group; nobody for the population's.
        fingerprint: of the reward model.
    """

    users: tuple[str, ...] = ()
    fingerprint: str = ""


def fine_tune(
    method: str,
    source: LocalModel,
    prompts: Sequence[Text],
    reward: Reward,
    folder: str | Path,
    settings: Settings = Settings(),
    *,
    whose: Whose = Whose(),
    told: Stage | None = None,
) -> FineTuned:
    """Fine-tune a language model on a reward.

    Killed and called again it goes on from its last checkpoint, to the same weights; called when it was done it does
    nothing. Under `accelerate launch` all processes call it.

    Args:
        method: one of `palate.training.methods.METHODS`.
        source: the language model; it is changed.
        prompts: what is asked.
        reward: what is to be raised; see `palate.training.rewards`.
        folder: for the adapter, and for checkpoints until it is done.
        settings: how.
        whose: whose taste the reward is, for the card.
        told: told of each stage.

    Raises:
        InputError: a setting does not fit, the folder holds a training with other settings, or memory is short.
        UpstreamError: a judge kept failing; call again to go on.

    Example:
        >>> made = fine_tune("tracebias", LocalModel.load("Qwen/Qwen2.5-0.5B-Instruct"), prompts,   # doctest: +SKIP
        ...                  TasteReward(model, [ann]), "adapters/ann", whose=Whose(("ann",)))
    """
    folder = Path(folder)
    checkpoints = folder / "checkpoints"
    plan = _plan(method, source, prompts, settings, whose)
    result = _finished(folder, plan)
    if result:
        return result
    last = _last_checkpoint(checkpoints, folder, plan)
    from accelerate import PartialState

    processes = PartialState().num_processes
    try:
        with quiet():
            trainer = trainer_of(method, source, prompts, reward, settings, checkpoints, processes=processes, told=told)
            trainer.add_callback(_Whole())
            if settings.start is not None:
                _go_on_from(trainer, settings.start, source)
            if trainer.accelerator.is_main_process:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "training.json").write_text(plan, encoding="utf-8")
            trainer.train(resume_from_checkpoint=str(last) if last else None)
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"The device's memory is too small for micro_batch {settings.micro_batch!r} of up to "
            f"{settings.max_tokens!r} tokens; halve micro_batch, lower max_tokens, or train an adapter of lower rank"
        ) from error
    history = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    steps = int(trainer.state.global_step)
    adapter = Adapter(source.name, source.revision, tuple(whose.users), method, whose.fingerprint, steps)
    _save(trainer, source, folder, adapter, history, plan)
    trainer.accelerator.wait_for_everyone()
    return FineTuned(folder, adapter.steps, history)


def _plan(
    method: str,
    source: LocalModel,
    prompts: Sequence[Text],
    settings: Settings,
    whose: Whose,
) -> str:
    """All that the weights rest on, to be compared when a training goes on."""
    asked = sha256(json.dumps(list(prompts), ensure_ascii=False).encode()).hexdigest()[:16]
    told: dict[str, Any] = {
        "method": method,
        "base": source.name,
        "revision": source.revision,
        "users": list(whose.users),
        "fingerprint": whose.fingerprint,
        **asdict(settings),
        "asked": asked,
        "start": None if settings.start is None else adapter_revision(settings.start),
    }
    return json.dumps(told, indent=2, ensure_ascii=False, sort_keys=True)


def _go_on_from(trainer: Any, start: Path, source: LocalModel) -> None:
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    if Adapter.read(start).revision != source.revision:
        raise ModelError(f"Adapter {str(start)!r} is of other weights than {source.name!r}; start without it")
    try:
        set_peft_model_state_dict(trainer.model, load_file(start / "adapter_model.safetensors"))
    except (AttributeError, RuntimeError) as error:
        raise ModelError(f"Adapter {str(start)!r} is of another rank; give lora_rank as it was") from error


def _finished(folder: Path, plan: str) -> FineTuned | None:
    """What was made before, by the same plan."""
    try:
        adapter = Adapter.read(folder)
        told = json.loads((folder / "training.json").read_text("utf-8"))
    except (ModelError, OSError, ValueError):
        return None
    if {name: told.get(name) for name in json.loads(plan)} != json.loads(plan):
        raise InputError(f"{str(folder)!r} holds an adapter that was trained otherwise; give another output")
    return FineTuned(folder, adapter.steps, told["reward"])


def _last_checkpoint(checkpoints: Path, folder: Path, plan: str) -> Path | None:
    """The last checkpoint that was written whole.

    Raises:
        InputError: it is of another plan.
    """
    whole = [path.parent for path in checkpoints.glob(f"checkpoint-*/{_DONE}")]
    if not whole:
        shutil.rmtree(checkpoints, ignore_errors=True)
        return None
    if (folder / "training.json").read_text("utf-8") != plan:
        raise InputError(
            f"{str(folder)!r} holds a training with other settings that is not done; run it with those to the end, "
            "or give another output"
        )
    for path in checkpoints.glob("checkpoint-*"):
        if path not in whole:
            shutil.rmtree(path)
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]))


class _Whole(TrainerCallback):
    """Marks a checkpoint when nothing more is written into it."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / _DONE).touch()


def _save(trainer: Any, source: LocalModel, folder: Path, adapter: Adapter, history: list[float], plan: str) -> None:
    # Sharded weights are gathered by all processes, and written by one.
    trainer.save_model(str(folder))
    if not trainer.accelerator.is_main_process:
        return
    for name in ("training_args.bin", "README.md"):  # a pickle, and a card that says nothing of whose taste it is
        (folder / name).unlink(missing_ok=True)
    (folder / "README.md").write_text(_card(adapter, folder, history), encoding="utf-8")
    told = json.loads(plan) | {"reward": history}
    (folder / "training.json").write_text(json.dumps(told, indent=2, ensure_ascii=False), encoding="utf-8")
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    adapter.write(folder)  # last: with it the folder is an adapter


def _card(adapter: Adapter, folder: Path, history: list[float]) -> str:
    whose = (
        ", ".join(adapter.users) if adapter.users else "nobody in particular: it follows what people in general like"
    )
    lines = [
        "---",
        f"base_model: {json.dumps(adapter.base, ensure_ascii=False)}",
        "library_name: peft",
        "tags: [palate, trl, personalisation]",
        "---",
        "",
        f"# Adapter of {adapter.base}",
        "",
        f"**Whose taste it carries:** {whose}.",
        "",
        f"**How it was made:** `palate train {adapter.method}`, {adapter.steps} steps on the weights "
        f"`{adapter.revision or 'unknown'}`, by the reward model `{adapter.fingerprint or 'unknown'}`; "
        "all settings are in `training.json`.",
        "",
        f"**To use it:** `palate chat DIR --user U --policy {adapter.base} --adapter {folder.name}`.",
        "",
        "**To erase it:** delete this folder, or run `palate train erase` with the folder that adapters lie in and the "
        "person's id. What a person said can be read from weights that learned it, so an adapter goes when its person "
        "does.",
        "",
    ]
    if history:
        lines += [
            f"Mean reward of its completions: {history[0]:.3f} in the first round, {history[-1]:.3f} in the last.",
            "",
        ]
    return "\n".join(lines)
