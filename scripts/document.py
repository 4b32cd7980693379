"""The generated parts of the documents, called by cog: see `make docs`."""

from collections.abc import Iterator
from typing import Any

import typer.main

from palate.cli import app


def commands() -> str:
    """Every command with its arguments and options, as markdown."""
    group: Any = typer.main.get_command(app)
    return "\n".join(line for name, command in _flat(group) for line in _command(name, command))


def _flat(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """The commands of a group, and of the groups in it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _flat(command, f"{before}{name} ")
        else:
            yield f"{before}{name}", command


def _command(name: str, command: Any) -> Iterator[str]:
    options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
    words = ["palate", *name.split()]
    words += [p.metavar for p in command.params if p.param_type_name == "argument"]
    words += [f"{p.opts[0]} {_value(p)}" for p in options if p.required]
    yield f"## palate {name}\n"
    yield f"`{' '.join(words)} [options]`\n"
    yield command.help.replace("\n\n", "\n").strip() + "\n"
    for p in command.params:
        if p.param_type_name == "argument":
            yield f"`{p.metavar}`: {p.help}\n"
    yield "| option | meaning | default |"
    yield "| --- | --- | --- |"
    for p in options:
        flag = p.opts[0] if p.is_flag else f"{p.opts[0]} {_value(p)}"
        default = "required" if p.required else "" if p.default is None or p.default is False else f"`{p.default}`"
        yield f"| `{flag}` | {p.help} | {default} |"
    yield ""


def _value(p: Any) -> str:
    return str(p.metavar or p.name.upper())
