"""The command line as a whole: help, exit statuses, one line for an error, and bars on a terminal alone."""

import inspect
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from tests.cli_support import MAIN, Ran, palate, some_people, start, tiny_model, write

from palate import __version__
from palate.cli import app, common, models
from palate.errors import PalateError
from palate.feedback import Rating

COMMANDS = {
    name: command.callback
    for group, commands in [
        ("", app.registered_commands),
        *(
            (f"{group.typer_instance.info.name} ", group.typer_instance.registered_commands)
            for group in app.registered_groups
            if group.typer_instance
        ),
    ]
    for command in commands
    if command.callback and (name := f"{group}{command.name or command.callback.__name__}")
}
by_command = pytest.mark.parametrize("command", COMMANDS)


def test_the_commands():
    assert list(COMMANDS) == [
        "demo",
        "check",
        "collect",
        "fit",
        "evaluate",
        "onboard",
        "rank",
        "explain",
        "refit",
        "chat",
        "follow",
        "serve",
        "bench",
        "replies train",
        "replies score",
        "replies evaluate",
        "replies rescore",
        "train tracebias",
        "train ppo",
        "train dpo",
        "train grpo",
        "train value-head",
        "train list",
        "train erase",
        "study make",
        "study score",
        "keys create",
        "keys list",
        "keys revoke",
        "users list",
        "users export",
        "users forget",
        "users link",
        "tenants list",
        "tenants set",
        "db upgrade",
    ]


@by_command
def test_every_command_and_option_is_described(command):
    ran = palate(*command.split(), "--help")
    assert (ran.status, ran.err) == (0, "")
    callback = COMMANDS[command]
    assert (inspect.getdoc(callback) or "nothing").splitlines()[0] in " ".join(ran.out.split())
    for name, parameter in inspect.signature(callback).parameters.items():
        _, option = parameter.annotation.__args__[0], parameter.annotation.__metadata__[0]
        assert option.help, f"{command}: {name} says nothing"


@by_command
def test_every_command_that_computes_takes_json(command):
    assert "--json" in palate(*command.split(), "--help").out


def test_version():
    assert palate("--version") == Ran(0, f"palate {__version__}\n", "")


def test_no_command_shows_help():
    ran = palate()
    assert ran.status == 2
    assert "Commands:" in ran.out + ran.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fti"], "No such command 'fti'. Did you mean 'fit'?"),
        (["fit", "x.jsonl"], "Missing option '--output'."),
        (["fit"], "Missing argument 'FEEDBACK'."),
        (["check", "x.jsonl", "--sseed", "1"], "No such option: --sseed"),
        (["fit", "x.jsonl", "--output", "y", "--seed", "x"], "Invalid value for '--seed'"),
        (["fit", "x.jsonl", "--output", "y", "--seed", "-1"], "Invalid value for '--seed'"),
        (["onboard", "m", "--user", "ann", "--questions", "0"], "Invalid value for '--questions'"),
        (["rank", "m", "--prompt", "Hi"], "Missing option '--candidates'."),
        (["explain", "m"], "Missing option '--user'."),
    ],
)
def test_wrong_usage(words, message):
    ran = palate(*words)
    assert (ran.status, ran.out) == (2, "")
    assert message in ran.err


@pytest.mark.parametrize("where", [0, 1, 3])
def test_debug_shows_the_traceback_wherever_it_stands(where):
    words = ["explain", "no-such-folder", "--user", "ann"]
    words.insert(where, "--debug")
    with pytest.raises(PalateError, match="There is no reward model at 'no-such-folder'"):
        palate(*words)


def test_a_traceback_in_a_process_of_its_own(tmp_path):
    for more in ([], ["--debug"]):
        ran = subprocess.run(
            start_words("check", "none.jsonl", *more), cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert (ran.returncode, ran.stdout) == (1, "")
        assert ("Traceback" in ran.stderr) == bool(more)
        assert ran.stderr.splitlines()[-1].endswith(
            "none.jsonl cannot be read (No such file or directory); check the path and that the file is whole"
        )


def start_words(*words: str) -> list[str]:
    return [sys.executable, "-c", MAIN, *words]


def test_what_nobody_foresaw_is_one_line_too(monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("first\n  second")

    monkeypatch.setattr(models, "read", fail)
    message = "Unexpected RuntimeError: first second; run again with --debug for where it happened"
    assert palate("fit", "x.jsonl", "--output", "y").failure == message


def test_an_encoding_without_the_letters_changes_them_only(tmp_path):
    """A terminal that shows ASCII alone: nothing fails, and JSON loses nothing."""
    data = write(tmp_path / "data.jsonl", [Rating(user_id="ann é", prompt="Hi", completion="Hello!", score=1)])
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    for more in ([], ["--json"]):
        with start("check", data, *more, cwd=tmp_path, env=ascii_only) as running:
            out, err = running.communicate()
        assert (running.returncode, err.count("\n")) == (1, 1)  # one user is a problem
        said = json.loads(out)["findings"][0]["message"] if more else out
        assert ("'ann é'" if more else "'ann ?'") in said


@pytest.mark.parametrize("more", [[], ["--json"]], ids=["text", "json"])
def test_a_reader_that_goes_away_is_no_error(tmp_path, more):
    data = write(tmp_path / "data.jsonl", some_people())
    reading, writing = os.pipe()
    os.close(reading)
    with start("check", data, *more, cwd=tmp_path, stdout=writing) as running:
        os.close(writing)
        assert running.stderr is not None
        assert running.stderr.read() == ""


def on_terminal(folder: Path, *words: object) -> tuple[str, str]:
    """Standard output, and what a terminal at standard error shows."""
    ours, theirs = pty.openpty()
    with start(*words, cwd=folder, stderr=theirs) as running:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 65_536)
            except OSError:  # how Linux says that nobody is left at the other end
                break
        assert running.stdout is not None
        out = running.stdout.read()
    os.close(ours)
    assert running.returncode == 0
    return out, shown.decode()


def test_bars_on_a_terminal_alone(tmp_path):
    halves = [row.model_copy(update={"split": "test" if i % 2 else "adapt"}) for i, row in enumerate(some_people())]
    words = ["evaluate", tiny_model(), write(tmp_path / "data.jsonl", halves), "--answers", "0,2", "--json"]
    out, shown = on_terminal(tmp_path, *words)
    assert json.loads(out)["users"] == 8
    assert "2/2" in shown
    assert palate(*words).err == ""


def test_json_is_one_line_without_nan(capsys):
    common.print_json({"é": ["\ud800", "\n"]})
    assert capsys.readouterr().out == '{"\\u00e9": ["\\ud800", "\\n"]}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        common.print_json(float("nan"))


def test_typer_makes_of_ctrl_c_what_we_take_it_for():
    """`main` tells Ctrl-C by this status."""

    def interrupted() -> None:
        raise KeyboardInterrupt

    small = typer.Typer()
    small.command()(interrupted)
    with pytest.raises(SystemExit, match=r"^130$"):
        small([])
