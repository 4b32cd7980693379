"""Base rewards on a fine-tuned encoder: what moves, the loop, and how many epochs held-out people bear."""

import os

from palate.rewards.finetuning.settings import METHODS, Finetune, Tuned

__all__ = ["METHODS", "Finetune", "Tuned", "is_main_process", "part"]


def is_main_process() -> bool:
    """Whether this process writes and prints, where `accelerate launch` has started several."""
    return os.environ.get("RANK", "0") == "0"


def part() -> None:
    """End what the processes share, once all is trained: one that ends with its threads still waiting may abort."""
    if "RANK" in os.environ:
        import torch

        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
