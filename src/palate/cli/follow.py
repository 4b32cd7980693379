"""The command that runs the whole loop: answers, replies, scores, training, round after round."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from palate.cli.common import JsonOption, ModelArgument, SeedOption, print_json, progress, stdout
from palate.cli.texts import read_prompts
from palate.errors import InputError


def follow(
    model: ModelArgument,
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for replies, an adapter a round, and what it goes on from.")
    ],
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A causal language model: a folder, or one from the hub. Without one, the small policy of the "
            "benchmarks, with its prompts.",
            show_default=False,
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What is asked in every round, one a line.", show_default=False),
    ] = None,
    simulate: Annotated[
        str, typer.Option(metavar="POLES", help="What the simulated person likes at first.")
    ] = "concise,informal",
    then: Annotated[str, typer.Option(metavar="POLES", help="What they like from the middle on.")] = "verbose,formal",
    rounds: Annotated[int, typer.Option(metavar="N", help="Rounds of answers, replies and training; a day each.")] = 8,
    steps: Annotated[int, typer.Option(metavar="N", help="Batches of answers that TraceBias trains on, a round.")] = 5,
    max_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Of an answer, at most.")] = 320,
    learning_rate: Annotated[float, typer.Option(metavar="X", help="Of AdamW.")] = 1e-3,
    half_life: Annotated[float, typer.Option(metavar="DAYS", help="Of what is known of the person.")] = 2.0,
    lora_rank: Annotated[int, typer.Option(metavar="R", min=1, help="Of the adapters.")] = 16,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Follow a simulated person whose taste turns: what they type trains the model, round after round.

    Killed and run again it goes on.
    """
    from palate.bench.loop import Plan
    from palate.bench.loop import follow as run
    from palate.bench.people import parse_kind
    from palate.bench.policy import Stand, answers_of, policy_folder
    from palate.feedback import as_text
    from palate.rewards import RewardModel
    from palate.training.methods import Settings

    if policy is not None and prompts is None:
        raise InputError("--policy is given without --prompts; give a file of what it is to be asked")
    plan = Plan(
        rounds, (parse_kind(simulate.replace(",", "+")), parse_kind(then.replace(",", "+"))), half_life, seed=seed
    )
    settings = Settings(
        rounds=steps,
        prompts=4,
        completions=8,
        max_tokens=max_tokens,
        learning_rate=learning_rate,
        micro_batch=32,
        lora_rank=lora_rank,
        save_every=1,
        seed=seed,
    )
    with progress() as told:
        name = policy or str(policy_folder(Stand(seed=seed), told))
        if prompts is not None:
            asked = [as_text(prompt) for prompt in read_prompts(prompts)]
        else:
            asked = list(dict.fromkeys(answer.prompt for answer in answers_of(Stand(seed=seed))))
        found = run(RewardModel.load(model), model, name, asked, plan, settings, output, told)
    if as_json:
        print_json({"output": str(output), "rounds": [asdict(one) for one in found]})
        return
    from rich.table import Table

    table = Table("round", "likes", "pleased", "read", "foretold", "broken", box=None, pad_edge=False)
    for one in found:
        numbers = (f"{value:.2f}" for value in (one.pleased, one.read, one.foretold, one.broken))
        table.add_row(str(one.number), one.taste, *numbers)
    stdout().print(table)
    stdout().print(f"Written to {output}", markup=False)
