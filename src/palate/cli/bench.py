"""The command that measures."""

import time
from pathlib import Path
from typing import Annotated

import typer

from palate.cli.common import JsonOption, SeedOption, print_json, progress, stdout


def bench(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="facets, jester, hh, drift, scale, growth, encoder, finetune, satisfaction, following, policy, "
            "alignment, or training.",
        ),
    ],
    quick: Annotated[bool, typer.Option("--quick", help="Fewer people and strategies, in a minute or two.")] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Where recorded people or public data are; jester and hh need it, facets simulates without. For "
            "finetune, the encoder's folder; for training, that of cells which were measured before.",
        ),
    ] = None,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Where NAME.json and its pictures go.")] = Path(
        "docs/results"
    ),
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Measure, and write the figures as JSON, a table and a picture."""
    from palate.bench import BENCHMARKS

    if name not in BENCHMARKS:
        raise typer.BadParameter(f"{name!r} is no benchmark; choose one of {', '.join(BENCHMARKS)}")
    started = time.perf_counter()
    with progress() as told:
        report = BENCHMARKS[name](quick=quick, data=data, seed=seed, progress=told)
    words = ["palate", "bench", name, *(["--quick"] if quick else []), *(["--data", data.name] if data else [])]
    written = report.write(" ".join(words), time.perf_counter() - started, output)
    if as_json:
        print_json(written)
    else:
        console = stdout()
        console.print(report.table, markup=False)
        console.print(f"Written to {output / name}.json", markup=False)
