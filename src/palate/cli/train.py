"""Commands that train what changes a model's answers."""

from pathlib import Path
from typing import Annotated

import typer

from palate.cli.common import JsonOption, ModelArgument, SeedOption, print_json, progress, stdout
from palate.cli.texts import read_prompts

app = typer.Typer(name="train", help="Train what changes a model's answers.", no_args_is_help=True)


@app.callback()  # else a group of one command is taken for the command
def _group() -> None:
    """Train what changes a model's answers."""


@app.command("value-head")
def value_head(
    model: ModelArgument,
    policy: Annotated[
        str, typer.Option(metavar="NAME", help="A causal language model: a folder, or one from the hub.")
    ],
    prompts: Annotated[
        Path, typer.Option(metavar="FILE", help='What your users ask, one a line: a JSON string, or {"prompt": ...}.')
    ],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the head, and for what it goes on from.")],
    answers: Annotated[int, typer.Option(metavar="N", min=2, max=1024, help="Answers written to each prompt.")] = 32,
    max_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Of an answer, at most.")] = 256,
    rank: Annotated[int, typer.Option(metavar="R", min=1, help="Of what the head knows of tokens.")] = 32,
    epochs: Annotated[int, typer.Option(metavar="N", min=1, help="Over the answers.")] = 6,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Train a value head, with which a model on this machine writes guided answers for anybody.

    The model answers each prompt, the reward model scores the answers, and the head learns to foretell that from each
    token on. Killed and run again it goes on from its last epoch.
    """
    from palate.alignment.candidates import Sampling
    from palate.alignment.local import LocalModel
    from palate.alignment.value_head import HeadRecipe, train_value_head
    from palate.rewards import RewardModel

    asked = read_prompts(prompts)
    reward_model, source = RewardModel.load(model), LocalModel.load(policy)
    recipe = HeadRecipe(answers=answers, rank=rank, epochs=epochs, seed=seed)
    with progress() as told:
        head = train_value_head(
            source, reward_model, asked, recipe, Sampling(max_tokens=max_tokens), folder=output, told=told
        )
    if as_json:
        more = {"fingerprint": head.fingerprint, "policy": head.policy, "explained": head.explained}
        print_json({"output": str(output), **more})
        return
    if head.explained is not None:
        stdout().print(f"Foretells {head.explained:.0%} of how answers that it never saw differ, from their middle on.")
    use = f"palate chat {model} --user U --policy {policy} --value-head {output} --strategy guided"
    stdout().print(f"Written to {output}; use it with: {use}", markup=False)
