"""Commands that train what changes a model's answers."""

from pathlib import Path
from typing import Annotated

import typer

from palate.cli import finetune
from palate.cli.common import (
    JsonOption,
    ModelArgument,
    SeedOption,
    print_json,
    progress,
    short,
    stdout,
)
from palate.cli.texts import read_prompts

app = typer.Typer(name="train", help="Train what changes a model's answers.", no_args_is_help=True)
for _method in finetune.METHODS:
    app.command(_method)(finetune.command(_method))


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


@app.command("list")
def list_(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that adapters lie in, or below.")],
    user: Annotated[
        str | None, typer.Option(metavar="U", help="Only those that carry this person's taste.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List adapters: whose taste they carry, and of which model they are."""
    from rich.table import Table

    from palate.alignment.adapters import find_adapters

    found = find_adapters(folder, user)
    if as_json:
        print_json({"adapters": [{"folder": str(p), **{n: getattr(a, n) for n in _TOLD}} for p, a in found]})
        return
    if not found:
        stdout().print(f"There are no adapters in {folder}.", markup=False)
        return
    table = Table("folder", "whose", "of", "method", "steps", box=None, pad_edge=False)
    for path, adapter in found:
        whose = short(", ".join(adapter.users), 40) if adapter.users else "everybody's"
        table.add_row(str(path), whose, adapter.base, adapter.method, str(adapter.steps))
    stdout().print(table)


_TOLD = ("users", "base", "revision", "method", "fingerprint", "steps")


@app.command("erase")
def erase(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that adapters lie in, or below.")],
    user: Annotated[str, typer.Option(metavar="U", help="Whose adapters go, those of groups among them.")],
    as_json: JsonOption = False,
) -> None:
    """Delete all adapters that carry a person's taste."""
    from palate.alignment.adapters import erase_adapters

    gone = erase_adapters(folder, [user])
    if as_json:
        print_json({"erased": [str(path) for path in gone]})
        return
    for path in gone:
        stdout().print(f"Erased {path}", markup=False)
    if not gone:
        stdout().print(f"No adapter in {folder} carries the taste of {user!r}.", markup=False)
