"""What the commands share: their common options, progress bars, and output for people or for programs."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from palate.feedback import Feedback, Text
    from palate.rewards.fitting import Stage

FilesArgument = Annotated[
    list[str], typer.Argument(metavar="FEEDBACK", help="JSON Lines, Parquet, or a Hugging Face dataset.")
]
ModelArgument = Annotated[Path, typer.Argument(metavar="DIR", help="A reward model's folder.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
SeedOption = Annotated[int, typer.Option(metavar="N", min=0, help="Same seed, same result.")]
UnusedSeedOption = Annotated[
    int, typer.Option("--seed", metavar="N", min=0, help="Taken as by every command; nothing is drawn by chance here.")
]
SkipOption = Annotated[bool, typer.Option("--skip-bad-lines", help="Count bad lines and go on, instead of stopping.")]


def _columns(text: str | None) -> str | None:
    if text is not None and not all(all(part.partition("=")[::2]) for part in text.split(",")):
        raise typer.BadParameter(f"{text!r} is not OURS=THEIRS,...; write it like user_id=annotator,chosen=better")
    return text


ColumnsOption = Annotated[
    str | None,
    typer.Option(
        metavar="OURS=THEIRS,...",
        callback=_columns,
        help="Columns that have other names, such as user_id=annotator,chosen=better.",
        show_default=False,
    ),
]
DatabaseOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Where answers are kept; else the environment's PALATE_DATABASE, else sqlite:///palate.db.",
        show_default=False,
    ),
]


def _engine(name: str) -> str:
    if name not in ("local", "ray"):
        raise typer.BadParameter(f"{name!r} is no engine; choose local or ray")
    return name


EngineOption = Annotated[
    str,
    typer.Option(
        metavar="NAME", callback=_engine, help="Where the work is done: local, or ray, on a cluster or these cores."
    ),
]
RayAddressOption = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="Of a Ray cluster; without one it is started here.", show_default=False),
]


def _strategy(name: str) -> str:
    from palate.rewards import STRATEGIES

    if name not in STRATEGIES:
        raise typer.BadParameter(f"{name!r} is no query strategy; choose one of {', '.join(STRATEGIES)}")
    return name


StrategyOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        callback=_strategy,
        help="How questions are chosen: v-optimal, bald, d-optimal, variance, thompson or random.",
    ),
]


def stdout() -> "Console":
    """For people; plain where standard output is no terminal."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def stderr() -> "Console":
    """For questions and notes that must not mix with the output."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())


def print_json(value: object) -> None:
    """One object on standard output, in ASCII: no terminal's encoding and no lone surrogate can spoil it."""
    # Flushed here, where a reader that has gone, as `head` goes, is no failure.
    print(json.dumps(value, allow_nan=False), flush=True)


@contextmanager
def progress() -> Iterator["Stage"]:
    """A bar for each stage on standard error, when that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
    tasks = {}

    def told(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            tasks[stage] = bars.add_task(stage, total=total)
        bars.update(tasks[stage], completed=done, total=total)

    with bars:
        yield told


def renamed(columns: str | None) -> dict[str, str]:
    """What `--columns` says: our columns to theirs."""
    return dict(part.split("=", 1) for part in columns.split(",")) if columns else {}


def read(paths: list[str], skip_bad_lines: bool, columns: str | None = None) -> "Feedback":
    """Read feedback files; bad lines that were skipped are counted on standard error."""
    from palate.feedback import read_feedback

    feedback = read_feedback(paths, columns=renamed(columns), skip_bad_lines=skip_bad_lines)
    if feedback.bad_lines:
        note(f"{len(feedback.bad_lines)} bad lines left out; the first: {feedback.bad_lines[0]}")
    return feedback


def with_readings(feedback: "Feedback") -> "Feedback":
    """The feedback with every reply read: what has no satisfaction or target is given one by the shipped scorer."""
    if all(reply.satisfaction is not None and reply.target is not None for reply in feedback.replies):
        return feedback
    from palate.satisfaction.scorer import SatisfactionScorer

    with progress() as told:
        read = SatisfactionScorer.load().read(
            feedback.replies, progress=lambda done, total: told("Reading replies", done, total)
        )
    return replace(feedback, replies=read)


def note(message: str) -> None:
    """A line on standard error for what must not go on silently."""
    print(f"palate: {message}", file=sys.stderr)


def plain(text: "Text") -> str:
    """A text for a terminal: control characters that could move the cursor or recolour are shown as ␛-like marks."""
    from palate.feedback import as_text

    return "".join(
        chr(0x2400 + ord(c))
        if ord(c) < 32 and c not in "\n\t"
        else "\N{REPLACEMENT CHARACTER}"
        if 127 <= ord(c) < 160
        else c
        for c in as_text(text)
    )


def short(text: "Text", length: int = 160) -> str:
    """A text on one line, cut where it is longer."""
    line = " ".join(plain(text).split())
    return line if len(line) <= length else line[: length - 1] + "…"
