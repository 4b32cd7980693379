"""Collecting comparisons: whom to ask about which pair, and the filled-in sheets back."""

from pathlib import Path
from typing import Annotated

import typer

from palate.cli.common import JsonOption, SeedOption, note, print_json, stdout

_MISSING = (
    "palate collect CANDIDATES --people 20 --answers 40 --overlap 5 --output DIR, or --filled DIR/*.jsonl --output FILE"
)


def collect(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILES",
            help='Candidates, a line {"prompt", "completions": [...]} or {"prompt", "completion"}; or filled sheets.',
        ),
    ],
    output: Annotated[
        Path, typer.Option(metavar="PATH", help="Folder for a sheet a person, or NAME.jsonl for all in one file.")
    ],
    people: Annotated[
        str | None,
        typer.Option(
            metavar="N|NAMES", help="How many people, or a file of their names, one a line.", show_default=False
        ),
    ] = None,
    answers: Annotated[int, typer.Option(metavar="N", min=1, help="How many pairs a person is asked about.")] = 40,
    overlap: Annotated[int, typer.Option(metavar="K", min=2, help="How many people are asked about a pair.")] = 5,
    balance_length: Annotated[
        bool, typer.Option("--balance-length", help="Take the pairs of completions nearest in length.")
    ] = False,
    filled: Annotated[
        bool, typer.Option("--filled", help="Read filled-in sheets, and write comparisons in TRL's columns.")
    ] = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Assign pairs to people so that they overlap, and turn what they fill in into comparisons.

    In a sheet, `chosen_position` is to be filled in with a, b or tie. Every pair goes to K people, sides at random, and
    any two people are linked by pairs that they share.
    """
    if filled:
        _fill_in(files, output, as_json)
        return
    if people is None:
        raise typer.BadParameter("say how many, or give a file of names, one a line", param_hint="--people")
    from palate.feedback.design import design
    from palate.feedback.sheets import people_named, questions, read_candidates, write_sheets

    names, candidates = people_named(people), read_candidates(files)
    made = design(candidates, len(names), answers, overlap, balance_length=balance_length, seed=seed)
    written = write_sheets(questions(made, candidates, names, seed=seed), output)
    each, shared = made.answers(), made.shared()
    between = [int(shared[i, j]) for i in range(len(names)) for j in range(i)]
    if as_json:
        print_json(
            {
                "files": [str(path) for path in written],
                "people": len(names),
                "pairs": len(made.pairs),
                "overlap": overlap,
                "answers": [int(each.min()), int(each.max())],
                "shared_pairs": [min(between), max(between)],
            }
        )
        return
    low, high = each.min(), each.max()
    console = stdout()
    console.print(
        f"{len(made.pairs):,} pairs, each to {overlap} of {len(names):,} people; "
        f"{low if low == high else f'{low} or {high}'} each; two people share {min(between)} to {max(between)}",
    )
    console.print(f"Written to {output}; fill in chosen_position with a, b or tie, then:", markup=False)
    console.print(f"palate collect --filled {output}{'' if output.suffix else '/*.jsonl'} --output comparisons.jsonl")


def _fill_in(files: list[Path], output: Path, as_json: bool) -> None:
    from palate.errors import FeedbackError
    from palate.feedback import write_jsonl
    from palate.feedback.sheets import read_sheets

    comparisons, unanswered = read_sheets(files)
    if not comparisons:
        raise FeedbackError(f"None of {unanswered} questions is answered; fill in chosen_position with a, b or tie")
    write_jsonl(comparisons, output)
    if unanswered:
        note(f"{unanswered:,} questions are not answered yet, and left out")
    if as_json:
        print_json({"output": str(output), "comparisons": len(comparisons), "unanswered": unanswered})
    else:
        stdout().print(f"{len(comparisons):,} comparisons written to {output}", markup=False)
