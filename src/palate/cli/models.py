"""Commands on reward models: check the data, fit, evaluate."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from palate.cli.common import (
    ColumnsOption,
    EngineOption,
    FilesArgument,
    JsonOption,
    ModelArgument,
    RayAddressOption,
    SeedOption,
    SkipOption,
    StrategyOption,
    note,
    print_json,
    progress,
    read,
    renamed,
    stdout,
    with_readings,
)
from palate.errors import InputError

if TYPE_CHECKING:
    from palate.rewards import RewardModel

EncoderOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Sentence encoder or causal language model, such as Qwen/Qwen2.5-0.5B: a folder, or a model's name.",
    ),
]


def check(
    feedback: FilesArgument,
    columns: ColumnsOption = None,
    learning_curve: Annotated[
        bool,
        typer.Option(
            "--learning-curve",
            help="Also fit on parts of the data, to say how many more users and answers would help; takes a minute.",
        ),
    ] = False,
    encoder: EncoderOption = "palate-minilm",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """The data doctor: what in feedback would mislead a fit, and what to do about it.

    Fails (exit status 1) where it finds a problem: a leak, overlapping splits, nothing to learn from.
    """
    from dataclasses import asdict

    from palate.doctor import examine
    from palate.feedback import read_feedback

    said = read_feedback(feedback, columns=renamed(columns), skip_bad_lines=True)
    report = examine(said)
    remarks, curves = report.remarks, []
    if learning_curve:
        from palate.doctor.curve import learning_curves
        from palate.encoders import load_encoder

        with progress() as told:
            curves = learning_curves(said, load_encoder(encoder), seed=seed, progress=told)
        remarks = [*remarks, *(curve.remark for curve in curves)]
    counts = {"comparisons": len(said.comparisons), "ratings": len(said.ratings), "replies": len(said.replies)}
    if as_json:
        more = {"learning_curves": [asdict(curve) for curve in curves]} if learning_curve else {}
        findings = [asdict(finding) for finding in report.findings]
        told_all = {"findings": findings, "figures": report.figures, "remarks": remarks, **more}
        print_json({**counts, "bad_lines": len(said.bad_lines), **told_all})
    else:
        console = stdout()
        console.print(", ".join(f"{count:,} {name}" for name, count in counts.items()))
        colours = {"problem": "red", "warning": "yellow", "note": "cyan"}
        for finding in report.findings:
            console.print(f"[{colours[finding.severity]}]{finding.severity}[/] {finding.code}: ", end="")
            console.print(finding.message, markup=False)
        if not report.findings:
            console.print("Nothing to object to.")
        for remark in remarks:
            console.print(remark, markup=False)
    if report.problems:
        raise InputError(
            f"Problems with which figures would be wrong: {', '.join(report.problems)}; mend them before a fit"
        )


def _rank(text: str) -> str:
    if text != "auto" and not (text.isascii() and text.isdigit() and 1 <= int(text) <= 64):
        raise typer.BadParameter(f"{text!r} is not a rank; give a number from 1 to 64, or auto")
    return text


def _half_life(text: str) -> str:
    try:
        valid = text == "learn" or float(text) > 0
    except ValueError:
        valid = False
    if not valid:
        raise typer.BadParameter(f"{text!r} is not a half-life; give a number of days above 0, inf, or learn")
    return text


def _finetune(how: str) -> str:
    from palate.rewards.finetuning import METHODS

    if how not in (*METHODS, "none"):
        raise typer.BadParameter(f"{how!r} is no way to fine-tune; choose one of {', '.join(METHODS)}, or none")
    return how


def fit(
    feedback: FilesArgument,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write the reward model to.")],
    rank: Annotated[
        str,
        typer.Option(
            metavar="J",
            callback=_rank,
            help="How many base rewards, 1 to 64; auto finds it, and the strength of L2, on people left out (slower).",
        ),
    ] = "12",
    encoder: EncoderOption = "palate-minilm",
    finetune: Annotated[
        str,
        typer.Option(
            metavar="HOW",
            callback=_finetune,
            help="Tune the encoder by the comparisons: full (its upper layers), lora, head (a small network on its "
            "frozen features), or none. As many epochs as held-out people and prompts bear.",
        ),
    ] = "none",
    checkpoints: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep checkpoints of the tuning here, and go on from them after a kill."),
    ] = None,
    columns: ColumnsOption = None,
    engine: EngineOption = "local",
    ray_address: RayAddressOption = None,
    half_life: Annotated[
        str,
        typer.Option(
            metavar="DAYS",
            callback=_half_life,
            help="Half of what is known of a person is forgotten after so many days, and reversals are looked for; "
            "learn finds it from created_at, inf forgets nothing.",
        ),
    ] = "inf",
    skip_bad_lines: SkipOption = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Learn base rewards and the population prior from people's comparisons, ratings and replies."""
    from palate.encoders import load_encoder
    from palate.rewards import fit as fit_model
    from palate.rewards.evidence import heard
    from palate.rewards.finetuning import Finetune, is_main_process, part
    from palate.rewards.folder import check_target

    started = time.perf_counter()
    check_target(output)
    said = read(feedback, skip_bad_lines, columns)
    said = with_readings(said)
    unused = len(said.replies) - len(heard(said.replies))
    if unused:
        note(f"{unused:,} of {len(said.replies):,} replies say nothing of taste, and are left out")
    reader = load_encoder(encoder)
    if engine == "ray":
        from palate.encoders.distributed import RayEncoder, connect

        if finetune != "none":
            raise InputError(
                "--engine ray reads with a frozen encoder; for tuning use accelerate launch, or leave it out"
            )
        connect(ray_address)
        reader = RayEncoder(reader)
    # A callback has checked what `finetune` may be.
    tuning = None if finetune == "none" else Finetune(finetune, checkpoints=checkpoints)  # type: ignore[arg-type]
    with progress() as told:
        model = fit_model(
            said,
            reader,
            rank="auto" if rank == "auto" else int(rank),
            seed=seed,
            finetune=tuning,
            half_life="learn" if half_life == "learn" else float(half_life),
            progress=told,
        )
    part()
    if not is_main_process():  # of those that `accelerate launch` started
        return
    model.save(output)
    seconds = time.perf_counter() - started
    if as_json:
        print_json(
            {
                "output": str(output),
                "fingerprint": model.fingerprint,
                "rank": model.n_rewards,
                "unused": unused,
                "bad_lines": len(said.bad_lines),
                "figures": model.figures,
                "seconds": round(seconds, 3),
            }
        )
        return
    _tell(model, seconds, half_life, tuned=tuning is not None)
    stdout().print(f"Written to {output}", markup=False)


def _tell(model: "RewardModel", seconds: float, half_life: str, tuned: bool) -> None:
    """What a fit found, for people."""
    from palate.rewards.folder import counted

    f = model.figures
    console = stdout()
    console.print(f"{model.n_rewards} base rewards from {counted(f)} of {f['users']:,.0f} people, in {seconds:.0f} s")
    measured = [f"{f[key]:.2f} after {t} answers" for t in (0, 5, 10) if (key := f"held_out_auc.{t}") in f]
    if "ratings" in f:
        console.print(f"A rating counts {model.scales.ratings.weight:.1f} times as much as a choice")
    if tuned and not model.finetune:
        console.print("No epoch of tuning helped people left out: the encoder stays as it was")
    if model.drift.moves:
        console.print(f"Half of what is known of a person is forgotten after {model.drift.half_life:g} days")
    elif half_life == "learn":
        console.print("Forgetting does not foretell people's dated answers better: nothing is forgotten")
    if measured:
        console.print("AUC for people and prompts left out, questions at random: " + ", ".join(measured))


def _counts(text: str) -> list[int]:
    try:
        counts = sorted({int(part) for part in text.split(",")})
    except ValueError:
        counts = [-1]
    if counts[0] < 0:
        raise typer.BadParameter(
            f"{text!r} is not a list of numbers of answers; write it like 0,5,10,20", param_hint="--answers"
        )
    return counts


def evaluate(
    model: ModelArgument,
    feedback: FilesArgument,
    answers: Annotated[str, typer.Option(metavar="N,N,...", help="Numbers of answers, by comma.")] = "0,5,10,20",
    query_strategy: StrategyOption = "v-optimal",
    guard: Annotated[
        bool,
        typer.Option(
            "--guard", help="Predict by the population's taste where a person's answers do not support personalising."
        ),
    ] = False,
    columns: ColumnsOption = None,
    skip_bad_lines: SkipOption = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Measure on new people: answers come from their `adapt` rows, figures from their `test` rows."""
    from palate.rewards import RewardModel
    from palate.rewards.evaluation import evaluate as measure

    counts = _counts(answers)
    reward_model = RewardModel.load(model)
    said = with_readings(read(feedback, skip_bad_lines, columns))
    with progress() as told:
        result = measure(reward_model, said, counts, query_strategy, seed=seed, guard=guard, progress=told)
    if as_json:
        print_json(result)
        return
    from rich.table import Table

    table = Table(title=f"{result['users']} people, {result['comparisons']:,} test pairs, strategy {query_strategy}")
    for name in ("answers", "AUC", "accuracy", "log loss", "ECE"):
        table.add_column(name, justify="right")
    for t in map(str, counts):
        table.add_row(t, *(f"{result[name][t]:.3f}" for name in ("auc", "accuracy", "log_loss", "ece")))
    stdout().print(table)
