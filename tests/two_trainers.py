"""Run under `torchrun`: a TraceBias training of two steps; what each process holds afterwards, into a file."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from accelerate import PartialState
from tests.training_support import PROMPTS, vowels

from palate.alignment.local import LocalModel
from palate.rewards.finetuning import part
from palate.training import launch
from palate.training.methods import Settings


def main(model: str, output: str) -> None:
    """Save digests of the critic and of what was trained."""
    held: dict[str, Any] = {}
    save = launch._save

    def seen(trainer: Any, *more: Any) -> None:
        held["trainer"] = trainer
        save(trainer, *more)

    launch._save = seen  # type: ignore[assignment]
    settings = Settings(
        rounds=1, prompts=2, completions=4, max_tokens=5, passes=2, micro_batch=4, lora_rank=2, learning_rate=1e-2
    )
    launch.fine_tune("tracebias", LocalModel.load(model), PROMPTS, vowels, Path(output) / "out", settings)
    trainer = held["trainer"]
    parts = {"critic": trainer.critic.state_dict(), "policy": trainer.model.state_dict()}
    digests = {
        name: hashlib.sha256(b"".join(value.numpy().tobytes() for value in state.values())).hexdigest()
        for name, state in parts.items()
    }
    (Path(output) / f"{PartialState().process_index}.json").write_text(json.dumps(digests))
    part()


if __name__ == "__main__":
    main(*sys.argv[1:])
