"""Commands that fine-tune a language model for a person or a group, one for each method."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from palate.cli.common import DatabaseOption, JsonOption, ModelArgument, SeedOption, print_json, progress, stdout
from palate.cli.texts import read_prompts
from palate.errors import InputError

if TYPE_CHECKING:
    from palate.rewards import RewardModel
    from palate.rewards.beliefs import Belief

METHODS = {
    "tracebias": "by TraceBias: on the scores of whole answers, with step preferences and the Double Average Method",
    "ppo": "by proximal policy optimisation, with a critic and a clip",
    "dpo": "by direct preference optimisation, on pairs of its own answers",
    "grpo": "by group relative policy optimisation",
}


def _engine(name: str) -> str:
    if name not in ("local", "accelerate"):
        raise typer.BadParameter(f"{name!r} is no engine here; choose local or accelerate")
    return name


def _settings(texts: list[str]) -> list[str]:
    for text in texts:
        if not all(text.partition("=")[::2]):
            raise typer.BadParameter(f"{text!r} is not NAME=VALUE; write it like gamma=0.9")
    return texts


PolicyOption = Annotated[
    str, typer.Option(metavar="NAME", help="A causal language model: a folder, or one from the hub.")
]
PromptsOption = Annotated[
    Path, typer.Option(metavar="FILE", help='What your users ask, one a line: a JSON string, or {"prompt": ...}.')
]
OutputOption = Annotated[
    Path, typer.Option(metavar="DIR", help="Folder for the adapter, and for what it goes on from.")
]
UserOption = Annotated[str | None, typer.Option(metavar="U", help="Whose taste is learned.", show_default=False)]
GroupOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A group whose mean taste is learned: one person a line.", show_default=False),
]
RoundsOption = Annotated[int, typer.Option(metavar="N", help="Batches of answers written and scored.")]
PromptsEachOption = Annotated[int, typer.Option(metavar="N", help="Prompts in a round.")]
CompletionsOption = Annotated[int, typer.Option(metavar="N", help="Answers to each.")]
TokensOption = Annotated[int, typer.Option(metavar="N", help="Of an answer, at most.")]
RateOption = Annotated[float, typer.Option(metavar="X", help="Learning rate of AdamW.")]
BetaOption = Annotated[float, typer.Option(metavar="X", help="Weight of staying near the model as it is.")]
MicroBatchOption = Annotated[int, typer.Option(metavar="N", help="Answers in one forward pass.")]
RankOption = Annotated[int, typer.Option(metavar="R", help="Of the adapter; 0 trains all weights.")]
QualityOption = Annotated[
    float, typer.Option(metavar="X", help="Share of what people in general find good, in [0, 1].")
]
LengthOption = Annotated[bool, typer.Option("--length-control", help="Reward nothing for mere length.")]
JudgeOption = Annotated[
    str | None,
    typer.Option(metavar="URL", help="An OpenAI-compatible endpoint that judges instead (RLAIF).", show_default=False),
]
JudgeModelOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Which of its models; its first if left out.", show_default=False)
]
SetOption = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        callback=_settings,
        help="Any further setting of the method's TRL configuration; may be given more than once.",
        show_default=False,
    ),
]
EngineOption = Annotated[
    str, typer.Option(metavar="NAME", callback=_engine, help="local, or accelerate, over several processes.")
]
ConfigOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Of accelerate, such as fsdp.yaml.", show_default=False)
]


def command(method: str) -> Callable[..., None]:
    """The command of that method."""

    def train(
        model: ModelArgument,
        policy: PolicyOption,
        prompts: PromptsOption,
        output: OutputOption,
        user: UserOption = None,
        group: GroupOption = None,
        rounds: RoundsOption = 50,
        prompts_each: PromptsEachOption = 8,
        completions: CompletionsOption = 8,
        max_tokens: TokensOption = 256,
        learning_rate: RateOption = 1e-4,
        beta: BetaOption = 0.02,
        micro_batch: MicroBatchOption = 16,
        lora_rank: RankOption = 16,
        quality: QualityOption = 0.2,
        length_control: LengthOption = False,
        judge: JudgeOption = None,
        judge_model: JudgeModelOption = None,
        set_: SetOption = [],  # noqa: B006  (typer copies it)
        engine: EngineOption = "local",
        config: ConfigOption = None,
        database: DatabaseOption = None,
        seed: SeedOption = 0,
        as_json: JsonOption = False,
    ) -> None:
        if engine == "accelerate":
            _launch(config)
            return
        if config is not None:
            raise InputError("--config is of accelerate; give --engine accelerate with it")
        from palate.alignment.local import LocalModel
        from palate.rewards import RewardModel
        from palate.rewards.finetuning import is_main_process, part
        from palate.training.launch import Whose, fine_tune
        from palate.training.methods import Settings

        asked = read_prompts(prompts)
        settings = Settings(
            rounds=rounds,
            prompts=prompts_each,
            completions=completions,
            max_tokens=max_tokens,
            learning_rate=learning_rate,
            beta=beta,
            micro_batch=micro_batch,
            lora_rank=lora_rank,
            seed=seed,
            more=dict(_read_setting(text) for text in set_),
        )
        reward_model = RewardModel.load(model)
        names, tastes = _whose(reward_model, user, group, database)
        reward = _reward(reward_model, tastes, quality, length_control, judge, judge_model, seed)
        whose = Whose(tuple(names), reward_model.fingerprint)
        with progress() as told:
            made = fine_tune(method, LocalModel.load(policy), asked, reward, output, settings, whose=whose, told=told)
        part()
        if not is_main_process():
            return
        if as_json:
            print_json({"output": str(output), "users": names, "steps": made.steps, "reward": made.reward})
            return
        if made.reward:
            stdout().print(f"Mean reward of its answers: {made.reward[0]:.3f} at first, {made.reward[-1]:.3f} at last.")
        who = names[0] if len(names) == 1 else "U"
        carries = f"--policy {policy} --adapter {output}" if lora_rank else f"--policy {output}"
        stdout().print(f"Written to {output}; use it with: palate chat {model} --user {who} {carries}", markup=False)

    train.__name__ = method
    train.__doc__ = f"""Fine-tune a language model for a person or a group, {METHODS[method]}.

    The model answers the prompts, round after round, the reward model scores the answers, and what is rewarded becomes
    likelier. With neither --user nor --group it learns what people in general like. Killed and run again it goes on
    from its last checkpoint.
    """
    return train


def _launch(config: Path | None) -> None:
    """Run this very command again, in the processes that accelerate starts."""
    given = iter(sys.argv[1:])
    passed = []
    for argument in given:
        name, _, value = argument.partition("=")
        if name in ("--engine", "--config"):
            if not value:
                next(given, None)
            continue
        passed.append(argument)
    how = [] if config is None else ["--config_file", str(config)]
    command = [sys.executable, "-m", "accelerate.commands.launch", *how, "-m", "palate", *passed]
    raise typer.Exit(subprocess.run(command, check=False).returncode)


def _read_setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _whose(
    model: "RewardModel", user: str | None, group: Path | None, database: str | None
) -> tuple[list[str], list["Belief"]]:
    """The people whose taste is learned, and what is known of each."""
    if user is not None and group is not None:
        raise InputError("Both --user and --group are given; a taste is a person's or a group's, so leave one out")
    if user is not None:
        names = [user]
    elif group is not None:
        try:
            lines = group.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"Group {str(group)!r} cannot be read: {error}; write one person a line") from error
        names = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
        if not names:
            raise InputError(f"Group {str(group)!r} names nobody; write one person a line")
    else:
        return [], []
    from palate.store import Store
    from palate.store.interview import posterior_of

    with Store.open(database) as store:
        known = [(name, store.user(name)) for name in names]
        if missing := [name for name, person in known if person is None or not store.evidence_count(person)]:
            raise InputError(
                f"Nothing is known of {missing[0]!r}; ask them with palate onboard, or talk with palate chat, first"
            )
        return names, [posterior_of(store, model, one, keep=False) for _, one in known if one is not None]


def _reward(
    model: "RewardModel",
    tastes: list["Belief"],
    quality: float,
    length_control: bool,
    judge: str | None,
    judge_model: str | None,
    seed: int,
) -> Any:
    from palate.training.rewards import JudgeReward, TasteReward

    if judge is None:
        return TasteReward(model, tastes, quality=quality, length=length_control)
    from palate.alignment.endpoint import Endpoint
    from palate.alignment.instruct import instruction

    words = instruction(model, tastes[0]) if len(tastes) == 1 else None
    taste = f"You judge answers for somebody. {words}" if words else "You judge how good answers are."
    return JudgeReward(lambda: Endpoint(judge, judge_model), taste, seed=seed)
