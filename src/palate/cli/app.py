"""The commands together, and what becomes of errors: one clear line, and an exit status."""

import sys
from io import TextIOWrapper
from typing import Annotated

import typer

from palate import __version__
from palate.cli import bench, chat, collect, demo, follow, models, people, replies, serve, study, train
from palate.errors import PalateError

# What typer makes of Ctrl-C.
_INTERRUPTED = 130

app = typer.Typer(
    name="palate",
    help="Learn what each person likes in a language model's answers, from about ten choices.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"palate {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options before the command."""


app.command()(demo.demo)
app.command()(models.check)
app.command()(collect.collect)
app.command()(models.fit)
app.command()(models.evaluate)
app.command()(people.onboard)
app.command()(people.rank)
app.command()(people.explain)
app.command()(people.refit)
app.command()(chat.chat)
app.command()(follow.follow)
app.command()(serve.serve)
app.command()(bench.bench)
app.add_typer(replies.app)
app.add_typer(train.app)
app.add_typer(study.app)
app.add_typer(serve.keys)
app.add_typer(serve.users)
app.add_typer(serve.tenants)
app.add_typer(serve.db)


def main() -> None:
    """Run the command line; exit 0 when done, 1 with one line on standard error when failed, 2 on wrong usage."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    if isinstance(sys.stdout, TextIOWrapper):
        # Where the terminal's encoding lacks a character, a question mark will do.
        sys.stdout.reconfigure(errors="replace")
    try:
        # Anywhere on the line: it is thought of after the command failed.
        app([argument for argument in arguments if argument != "--debug"])
    except PalateError as error:
        _fail(str(error), debug)
    except SystemExit as stop:
        if stop.code != _INTERRUPTED:
            raise
        _fail("Interrupted; what was answered is kept, nothing half-done was written", debug)
    except Exception as error:
        _fail(f"Unexpected {type(error).__name__}: {error}; run again with --debug for where it happened", debug)


def _fail(message: str, debug: bool) -> None:
    if debug:
        raise  # called while an error is being handled
    print("palate:", *(line.strip() for line in message.splitlines()), file=sys.stderr)
    sys.exit(1)
