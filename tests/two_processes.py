"""Run under `torchrun`: gradients of a tuning's first step, and the weights after an epoch, into a file."""

import sys
from pathlib import Path

from safetensors.torch import save_file
from tests.finetune_support import INDEXED, light_of, settings_of, task, tower

from palate.encoders import load_encoder
from palate.rewards.finetuning import is_main_process, part
from palate.rewards.finetuning.training import Run, train


def main(folder: str, method: str, texts: str, output: str) -> None:
    """Save gradients as `gradient.NAME` and weights as `weight.NAME`."""
    encoder, settings = load_encoder(folder, cache=False, device="cpu"), settings_of(method, texts=int(texts))
    run = Run(tower(encoder, settings), task(encoder), settings, seed=0)
    run.optimizer.zero_grad = lambda: None  # so that they are still there after the step
    reading = light_of(encoder).solve(INDEXED.encode(encoder), INDEXED.choices)
    run.learn(next(iter(run.loader)), *run.on_device(reading), reading.lapse)
    whole = run.accelerator.unwrap_model(run.module)
    # Under FSDP each process holds a part.
    gradients = {name: getattr(p.grad, "full_tensor", lambda p=p: p.grad)() for name, p in whole.named_parameters()}
    found = {f"gradient.{name}": gradient.cpu() for name, gradient in gradients.items() if gradient is not None}
    _, state = train(tower(encoder, settings), task(encoder), settings, 1, seed=0)
    if is_main_process():
        save_file(found | {f"weight.{name}": tensor.contiguous() for name, tensor in state.items()}, Path(output))
    part()


if __name__ == "__main__":
    main(*sys.argv[1:])
