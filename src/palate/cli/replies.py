"""Commands on what people type: train and measure the satisfaction scorer, read replies, score history anew."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from palate.cli.common import (
    DatabaseOption,
    JsonOption,
    ModelArgument,
    SeedOption,
    UnusedSeedOption,
    note,
    print_json,
    progress,
    stdout,
)
from palate.errors import FeedbackError, InputError

if TYPE_CHECKING:
    from palate.satisfaction.scorer import Readings

app = typer.Typer(
    name="replies",
    help="Read how pleased people are from what they type back.",
    no_args_is_help=True,
    add_completion=False,
)

ScorerOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="A scorer's folder; the one that ships with Palate if left out.")
]
RepliesArgument = Annotated[Path, typer.Argument(metavar="FILE", help="JSON Lines, a row with a reply on each line.")]

_BATCH = 2_000  # rows in memory at once


@app.command()
def train(
    goemotions: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="GoEmotions with grouped labels: train.tsv, dev.tsv, labels.txt, and test.tsv to measure on.",
        ),
    ],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write the scorer to.")],
    replies: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Labelled replies; those that ship with Palate if left out.")
    ] = None,
    augment: Annotated[
        bool, typer.Option("--augment", help="Also learn from the replies said in other words, and broken off.")
    ] = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Train a satisfaction scorer, and measure it on replies held out; nearly two hours on two cores.

    What was learned of emotions is kept in the cache: killed and run again, training goes on from there.
    """
    from palate.encoders.cache import default_cache_dir
    from palate.satisfaction.augmentation import Augmentation
    from palate.satisfaction.figures import emotion_figures
    from palate.satisfaction.lessons import read_goemotions, read_remarks, read_replies
    from palate.satisfaction.scorer import check_target
    from palate.satisfaction.training import Recipe
    from palate.satisfaction.training import train as learn

    check_target(output)
    comments = [*read_goemotions(goemotions, "train"), *read_goemotions(goemotions, "dev")]
    remarks = read_remarks()
    with progress() as told:
        scorer = learn(
            read_replies(replies),
            [*comments, *remarks],
            Recipe(seed=seed),
            augmentation=Augmentation(seed=seed) if augment else None,
            remember=default_cache_dir() / "training",
            told=told,
            processes=os.cpu_count() or 1,
        )
    scorer.trained = {
        "comments": f"{len(comments):,} of GoEmotions, grouped labels, train and dev",
        "remarks": f"{len(remarks):,} from the package (palate.data)",
        "replies": f"{len(scorer.held_out):,} from {replies.name if replies else 'the package (palate.data)'}",
        "command": f"palate replies train --goemotions DIR --output DIR{' --augment' if augment else ''} --seed {seed}",
    }
    if (goemotions / "test.tsv").exists():
        test = read_goemotions(goemotions, "test")
        found = emotion_figures(test, scorer.score([comment.text for comment in test]))
        scorer.figures |= {f"goemotions_{name}": value for name, value in found.items()}
    scorer.save(output)
    if as_json:
        print_json({"output": str(output), "revision": scorer.revision, "figures": scorer.figures})
        return
    _show(scorer.figures)
    stdout().print(f"Written to {output}", markup=False)


@app.command()
def score(
    file: RepliesArgument,
    output: Annotated[Path, typer.Option(metavar="OUT", help="Where the rows go, with what was read in each.")],
    scorer: ScorerOption = None,
    skip_bad_lines: Annotated[
        bool, typer.Option("--skip-bad-lines", help="Leave bad lines out, and say how many there were.")
    ] = False,
    seed: UnusedSeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Read replies: adds `satisfaction`, `confidence` and `target` to each row.

    A row needs `reply`; what else is in it stays, but for older readings under these names.
    """
    from palate.satisfaction.scorer import SatisfactionScorer

    reader = SatisfactionScorer.load(scorer)
    bad: list[str] | None = [] if skip_bad_lines else None
    count, part = 0, output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
        with progress() as told, part.open("w", encoding="utf-8") as out:
            for rows in _batches(_rows(file, bad)):
                for row in _scored(rows, reader.score([row["reply"] for row in rows])):
                    out.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += len(rows)
                told("Reading replies", count, count)
        if not count:
            raise FeedbackError(f"{file.name} holds no replies; give a row with a reply on each line")
        part.replace(output)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"Cannot write to {str(output)!r}: {reason}; name a file in a folder with room") from error
    finally:
        part.unlink(missing_ok=True)
    if bad:
        note(f"{len(bad):,} bad lines were left out, the first: {bad[0]}")
    if as_json:
        print_json({"output": str(output), "replies": count, "bad_lines": len(bad or []), "scorer": reader.revision})
    else:
        stdout().print(f"{count:,} replies read, written to {output}", markup=False)


@app.command()
def evaluate(
    file: RepliesArgument,
    scorer: ScorerOption = None,
    seed: UnusedSeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Measure a scorer on replies with known satisfaction and target.

    Replies that it was trained on are read as a scorer read them that never saw them.
    """
    from palate.satisfaction.figures import reply_figures
    from palate.satisfaction.lessons import read_replies
    from palate.satisfaction.scorer import SatisfactionScorer

    lessons = read_replies(file)
    with progress() as told:
        reader = SatisfactionScorer.load(scorer)
        read, unseen = reader.held_out_readings(
            [lesson.text for lesson in lessons], progress=lambda done, total: told("Reading replies", done, total)
        )
    figures = {"replies": float(len(lessons)), "unseen": float(unseen)} | reply_figures(lessons, read)
    if as_json:
        print_json(figures)
        return
    _show(figures)


@app.command()
def rescore(
    model: ModelArgument,
    database: DatabaseOption = None,
    scorer: ScorerOption = None,
    augment: Annotated[
        bool, typer.Option("--augment", help="Make children of new replies: synonyms (needs WordNet) and truncations.")
    ] = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Read new replies, and score all of history anew with today's scorer and follower.

    Older scores are kept beside. Killed and run again, it goes on where it stopped; what is up to date is passed over.
    """
    from palate.rewards import RewardModel
    from palate.satisfaction.augmentation import Augmentation
    from palate.satisfaction.follower import HeadSettings
    from palate.satisfaction.scorer import SatisfactionScorer
    from palate.store import Store
    from palate.store.interview import register
    from palate.store.replies import Rescorer

    reward_model = RewardModel.load(model)
    augmentation = Augmentation(seed=seed) if augment else None
    with Store.open(database, create=False) as store, progress() as told:
        register(store, reward_model, model)
        job = Rescorer(store, reward_model, SatisfactionScorer.load(scorer), augmentation, HeadSettings(seed=seed))
        done = job.run(progress=lambda people: told("People", people, people))
    if as_json:
        print_json(done)
        return
    stdout().print(
        f"{done['new']:,} new replies, {done['scored']:,} scores, {done['current']:,} people were up to date"
    )


def _rows(file: Path, bad: list[str] | None) -> Iterator[dict[str, Any]]:
    """The rows of a file, each with a reply; bad ones go into the list, or stop the reading where there is none."""
    try:
        with file.open(encoding="utf-8-sig", newline="\n") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                if reason := _fault(line):
                    if bad is None:
                        raise FeedbackError(f"{file.name}:{number}: {reason}")
                    bad.append(f"{file.name}:{number}: {reason}")
                else:
                    yield json.loads(line)
    except UnicodeDecodeError as error:
        raise FeedbackError(f"{file.name} is not UTF-8 text; save it as UTF-8") from error
    except OSError as error:
        raise FeedbackError(f"Cannot read {str(file)!r}: {(error.strerror or str(error)).lower()}") from error


def _fault(line: str) -> str | None:
    try:
        row = json.loads(line, parse_constant=_no_number)
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "half of a surrogate pair, which is no character; write the whole character"
    except (ValueError, RecursionError):
        return "not JSON; write one object a line"
    if not isinstance(row, dict) or not isinstance(row.get("reply"), str):
        return "it has no reply, a string; add one"
    return None if row["reply"].strip() else "reply is empty; leave the row out"


def _no_number(name: str) -> None:
    raise ValueError(name)


def _batches(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _scored(rows: list[dict[str, Any]], read: "Readings") -> Iterator[dict[str, Any]]:
    columns = zip(rows, read.satisfaction.tolist(), read.confidence.tolist(), read.target, strict=True)
    for row, satisfaction, confidence, target in columns:
        reading = {"satisfaction": round(satisfaction, 4), "confidence": round(confidence, 4), "target": target}
        yield {**row, **reading}


_NAMES = {
    "replies": "replies",
    "unseen": "of which it was not trained on",
    "spearman": "satisfaction, rank correlation (Spearman)",
    "mae": "satisfaction, mean absolute error",
    "target_accuracy": "what the feeling is on, accuracy",
    "ece": "satisfaction of 0.5 or more, calibration error",
    "confidence": "mean confidence",
    "sarcasm": "sarcasm against sincere twins, balanced accuracy",
    "foreign_confidence": "mean confidence in other languages",
    "goemotions_accuracy": "GoEmotions, negative, neutral or positive, accuracy",
    "goemotions_accuracy_pos_neg": "GoEmotions, negative or positive, accuracy",
}


def _show(figures: dict[str, float]) -> None:
    from rich.table import Table

    table = Table("", "", box=None, pad_edge=False, show_header=False)
    for name, value in figures.items():
        table.add_row(_NAMES[name], f"{value:,.0f}" if name in ("replies", "unseen") else f"{value:.3f}")
    stdout().print(table)
