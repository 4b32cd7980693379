"""How an encoder is fine-tuned (what moves, how far, how it is stopped), and what comes of it."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from palate.encoders import Encoder
from palate.errors import InputError
from palate.rewards.selection import Settings

Method = Literal["full", "lora", "head"]
METHODS: tuple[str, ...] = get_args(Method)

# At LoRA's the loss on people and prompts left out fell for two epochs; three times that overfitted in one, as did
# five times that of `full` (docs/log.md).
_LEARNING_RATE = {"full": 2e-5, "lora": 3e-4, "head": 1e-3}


@dataclass(frozen=True)
class Finetune:
    """How to fine-tune; processes, precision and gradient accumulation are accelerate's own settings.

    Args:
        method: ``head`` learns a small nonlinear head on the frozen features; ``lora`` adapters of low rank in the
            model's layers; ``full`` all weights of its upper layers.
        max_epochs: passes over the comparisons at most, 1 or more.
        patience: epochs without a better held-out loss after which it stops, 1 or more.
        folds: held-out parts of people and prompts, 1 to 4, on each of which one tuning is judged; their epochs,
            averaged, are those of the last tuning, on everything. More take longer and calibrate better.
        learning_rate: of the uppermost layer; by method where None.
        layer_decay: in (0, 1], factor on the learning rate for each layer further down.
        frozen_layers: how many lower layers stay as they are (`full` and `lora`); a third of them where None.
        width: rank of LoRA, or hidden units of the head, 1 or more.
        texts: distinct answers in a batch, 2 or more; all comparisons between them come along.
        weight_decay: AdamW's, ≥ 0.
        precision: ``bf16`` or ``no``; what accelerate is configured to where None.
        gradient_checkpointing: True keeps no layer's activations and computes them twice, which saves memory.
        checkpoint_steps: optimiser's steps from one checkpoint to the next.
        checkpoints: folder of checkpoints, from which a tuning that was killed goes on; None keeps none. They hold
            pickles written by accelerate: resume from your own only.

    Raises:
        InputError: a value is out of range.

    Example:
        >>> Finetune("lora").rate
        0.0003
    """

    method: Method = "lora"
    max_epochs: int = 5
    patience: int = 2
    folds: int = 2
    learning_rate: float | None = None
    layer_decay: float = 0.8
    frozen_layers: int | None = None
    width: int = 8
    texts: int = 64
    weight_decay: float = 0.01
    precision: Literal["no", "bf16"] | None = None
    gradient_checkpointing: bool = False
    checkpoint_steps: int = 100
    checkpoints: Path | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"{self.method!r} is no way to fine-tune; choose one of {', '.join(METHODS)}, or none")
        for name, least in (("max_epochs", 1), ("patience", 1), ("width", 1), ("texts", 2), ("checkpoint_steps", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} {getattr(self, name)!r} is less than {least}; give {least} or more")
        if not 1 <= self.folds <= 4:
            raise InputError(f"folds {self.folds!r} is not in 1 to 4; give the number of held-out parts")
        if not self.rate > 0:
            raise InputError(f"learning_rate {self.learning_rate!r} is not positive; give one such as 1e-4")
        if not 0 < self.layer_decay <= 1:
            raise InputError(f"layer_decay {self.layer_decay!r} is not in (0, 1]; give 1 for the same rate everywhere")

    @property
    def rate(self) -> float:
        """The learning rate of the uppermost layer."""
        return _LEARNING_RATE[self.method] if self.learning_rate is None else self.learning_rate

    @property
    def words(self) -> str:
        """What a checkpoint must agree with to be gone on from."""
        return repr(replace(self, checkpoints=None, checkpoint_steps=1))


@dataclass(frozen=True)
class Tuned:
    """What came of a tuning.

    Args:
        encoder: tuned, or the one given where no epoch was better than none.
        settings: of the fit, calibrated by the held-out parts; those given where nothing was tuned.
        method: how it was tuned; None where nothing was.
        figures: epochs, and the held-out loss before and after.
    """

    encoder: Encoder
    settings: Settings
    method: Method | None = None
    figures: dict[str, float] = field(default_factory=dict)
