"""The loop: fit base rewards and everybody's weights exactly, move the features by one epoch, and again.

Within an epoch W and the people's weights λ stand still, and the features e move down the gradient of the soft-label
cross-entropy with lapse of λ_u · W (e_chosen − e_rejected); between epochs both are solved anew by the light fit
(variable projection, as in `factorization`). So epoch 0 is the light model, and any other is the light model on
features that were moved. Accelerate carries the rest: several processes (DDP, FSDP), bfloat16 and accumulated
gradients are its settings (`accelerate launch --mixed_precision bf16 -m palate fit ...`), not ours.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import DistributedDataParallelKwargs, broadcast, broadcast_object_list
from torch import Tensor
from torch.utils.data import DataLoader

from palate.errors import InputError
from palate.rewards.factorization import Choices
from palate.rewards.finetuning.batches import Batches
from palate.rewards.finetuning.settings import Finetune
from palate.rewards.finetuning.towers import Tower
from palate.rewards.posterior import Floats

Raw = np.ndarray
_MAX_NORM = 1.0
_WARM_UP = 10  # steps over which the learning rate rises: Adam knows nothing yet of the gradients' size
_SIGNATURE = "palate.json"
_TEXTS_AT_ONCE = 64  # where features are only read


@dataclass(frozen=True)
class Reading:
    """Base rewards and people's weights on the present features.

    Args:
        offset: (D,) mean of the features.
        weights: (J, D), φ = weights (e − offset).
        people: (U, J) everybody's λ.
        lapse: ε in [0, 0.5).
    """

    offset: Floats
    weights: Floats
    people: Floats
    lapse: float


@dataclass(frozen=True)
class Task:
    """What is learned from, and how it is solved and judged between epochs.

    Args:
        choices: N comparisons to learn from, between the rows of all answers.
        n_answers: of all, also those that no comparison here is about.
        solve: features of all answers (n, D) → base rewards and weights of the people of `choices`.
        judge: features of all answers → held-out loss; None learns for `max_epochs` without looking.
        signature: what a checkpoint must agree with.
        folder: of this task's checkpoints; None keeps none.
        told: called with (epochs done, epochs at most).
    """

    choices: Choices
    n_answers: int
    solve: Callable[[Raw], Reading]
    judge: Callable[[Raw], float] | None = None
    signature: str = ""
    folder: Path | None = None
    told: Callable[[int, int], None] = lambda done, total: None


@dataclass
class Progress:
    """Where a tuning stands; goes into each checkpoint.

    Args:
        epoch: passes done.
        batches: of this pass done, in this process.
        steps: of the optimiser, in all.
        losses: held-out, after epochs 0, 1, ...; empty where nobody judges.
        best: the epoch with the lowest of these.
        features: (n, D) after that epoch.
        reading: that this pass learns by; None between passes.
    """

    epoch: int = 0
    batches: int = 0
    steps: int = 0
    losses: list[float] = field(default_factory=list)
    best: int = 0
    features: Raw | None = None
    reading: Reading | None = None

    def state_dict(self) -> dict[str, Any]:
        """For accelerate's checkpoints."""
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From accelerate's checkpoints."""
        vars(self).update(state)

    def judged(self, loss: float, features: Raw) -> None:
        """Remember the loss after this epoch, and the features if it is the best."""
        if not self.losses or loss < min(self.losses):
            self.best, self.features = self.epoch, features
        self.losses.append(loss)


def preference_loss(phi: Tensor, batch: Mapping[str, Tensor], people: Tensor, lapse: float) -> Tensor:
    """Soft-label cross-entropy with lapse, in nats, summed over a batch's comparisons.

    Args:
        phi: (n, J) base rewards of the batch's answers.
        batch: as `Batches` gives them.
        people: (U, J) weights.
        lapse: ε in [0, 0.5).
    """
    v = phi[batch["chosen"]] - phi[batch["rejected"]]
    logit = torch.sum(v * people[batch["user"]], dim=1)
    label = batch["strength"].to(logit.dtype)
    if lapse == 0:
        return torch.nn.functional.binary_cross_entropy_with_logits(logit, label, reduction="sum")
    p = lapse + (1 - 2 * lapse) * torch.sigmoid(logit)
    return torch.nn.functional.binary_cross_entropy(p, label, reduction="sum")


def train(tower: Tower, task: Task, settings: Finetune, epochs: int, seed: int) -> tuple[Progress, dict[str, Tensor]]:
    """Tune a tower for so many epochs, or until its held-out loss has not fallen for `patience` of them.

    Args:
        tower: wrapped and moved by accelerate; use the weights that are returned.
        task: what to learn.
        settings: how.
        epochs: at most.
        seed: of the order of comparisons.

    Returns:
        How it went, and the tower's weights in the end (not those of the best epoch), on the CPU in every process.

    Raises:
        InputError: a checkpoint in the folder is of another tuning.
    """
    run = Run(tower, task, settings, seed)
    run.resume()
    progress = run.progress
    while True:
        if progress.reading is None:
            progress.reading = run.read(judge=len(progress.losses) <= progress.epoch)
            task.told(progress.epoch, epochs)
        stale = task.judge is not None and progress.epoch - progress.best >= settings.patience
        if progress.epoch >= epochs or stale:
            break
        run.epoch(progress.reading)
    return progress, run.finish()


class Run:
    """One tuning under accelerate: a wrapped tower, its optimiser, and its place in the data.

    The learning rate is not handed to accelerate, which would step it once for each process.
    """

    def __init__(self, tower: Tower, task: Task, settings: Finetune, seed: int) -> None:
        self.task, self.settings, self.progress = task, settings, Progress()
        self.accelerator = Accelerator(
            mixed_precision=settings.precision,
            step_scheduler_with_optimizer=False,
            # What a tower does not learn is the same in every process from the start.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        share = self.accelerator.num_processes * self.accelerator.gradient_accumulation_steps
        self.data = Batches(task.choices, settings.texts, share, seed)
        groups = tower.groups(settings)
        optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
        loader: DataLoader[Any] = DataLoader(
            self.data,  # type: ignore[arg-type]  # a map-style data set by what it can do
            batch_size=1,
            collate_fn=lambda items: items[0],
        )
        tower.train()
        self.module, self.optimizer, self.loader = self.accelerator.prepare(tower, optimizer, loader)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer.optimizer, lambda step: min(1.0, (step + 1) / _WARM_UP)
        )
        self.accelerator.register_for_checkpointing(self.progress, self.schedule)

    def read(self, *, judge: bool) -> Reading:
        """Features of all answers → base rewards and people's weights, the same in every process."""
        features = self.features()
        if judge and self.task.judge is not None:
            self.progress.judged(self.task.judge(features), features)
        return self._agreed(self.task.solve(features))

    def features(self) -> Raw:
        """(n, D) of all answers, by the present weights. Every process reads all: FSDP wants them in step."""
        parts = []
        with torch.no_grad():
            for start in range(0, self.task.n_answers, _TEXTS_AT_ONCE):
                stop = min(start + _TEXTS_AT_ONCE, self.task.n_answers)
                parts.append(self.module(torch.arange(start, stop, device=self.accelerator.device)).cpu().numpy())
        return np.concatenate(parts)

    def epoch(self, reading: Reading) -> None:
        """Go on with the pass that was begun, to its end."""
        progress = self.progress
        self.data.shuffle(progress.epoch)
        loader = skip_first_batches(self.loader, progress.batches) if progress.batches else self.loader
        by = self.on_device(reading)
        for batch in loader:
            self.learn(batch, *by, reading.lapse)
            progress.batches += 1
            if self.accelerator.sync_gradients:
                progress.steps += 1
                if progress.steps % self.settings.checkpoint_steps == 0:
                    self.save()
        progress.epoch, progress.batches, progress.reading = progress.epoch + 1, 0, None
        self.save()

    def on_device(self, reading: Reading) -> tuple[Tensor, Tensor, Tensor]:
        """Offset, weights and people in single precision, where the features are."""
        offset, weights, people = (
            torch.from_numpy(np.asarray(array, np.float32)).to(self.accelerator.device)
            for array in (reading.offset, reading.weights, reading.people)
        )
        return offset, weights, people

    def learn(self, batch: Mapping[str, Tensor], offset: Tensor, weights: Tensor, people: Tensor, lapse: float) -> None:
        """Follow one batch's gradients, once those of a whole step are there."""
        with self.accelerator.accumulate(self.module):
            phi = (self.module(batch["answers"]) - offset) @ weights.T
            loss = preference_loss(phi, batch, people, lapse)
            # The mean over all comparisons, estimated from this share of them.
            self.accelerator.backward(loss * (len(self.data) / len(self.data.cost)))
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.module.parameters(), _MAX_NORM)
            self.optimizer.step()
            if self.accelerator.sync_gradients:
                self.schedule.step()
            self.optimizer.zero_grad()

    def save(self) -> None:
        """A checkpoint, whole or not at all; older ones go."""
        if (folder := self.task.folder) is None:
            return
        place = folder / f"step-{self.progress.steps:08}-{self.progress.epoch:04}"
        part = place.with_name(f".{place.name}.part")
        if self.accelerator.is_main_process:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            (part / _SIGNATURE).write_text(json.dumps({"tuning": self.task.signature}), "utf-8")
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(part))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            older = list(folder.glob("step-*"))
            part.replace(place)
            for old in older:
                shutil.rmtree(old, ignore_errors=True)

    def resume(self) -> None:
        """Go on from the last checkpoint, if there is one."""
        places = sorted(self.task.folder.glob("step-*")) if self.task.folder else []
        if not places:
            return
        signature = json.loads((places[-1] / _SIGNATURE).read_text("utf-8"))["tuning"]
        if signature != self.task.signature:
            raise InputError(
                f"The checkpoint {str(places[-1])!r} is of other data or settings; name another folder, or delete it "
                "to begin anew"
            )
        self.accelerator.load_state(str(places[-1]))

    def finish(self) -> dict[str, Tensor]:
        """The tower's weights, whole and on the CPU; accelerate lets go of everything."""
        state = {name: tensor.cpu() for name, tensor in self.accelerator.get_state_dict(self.module).items()}
        if self.accelerator.num_processes > 1:
            # Sharded weights arrive in the main process alone.
            state = broadcast_object_list([state])[0]
        self.accelerator.free_memory()
        return state

    def _agreed(self, reading: Reading) -> Reading:
        """The main process's, where several could differ in the last bit."""
        if self.accelerator.num_processes == 1:
            return reading
        device = self.accelerator.device
        offset, weights, people = (
            broadcast(torch.from_numpy(np.ascontiguousarray(a)).to(device)).cpu().numpy()
            for a in (reading.offset, reading.weights, reading.people)
        )
        return Reading(offset, weights, people, reading.lapse)
