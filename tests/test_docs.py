"""The documents say what there is: every command, option, setting and error, and nothing that is not there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from palate.cli import app

ROOT = Path(__file__).parent.parent
GROUP = typer.main.get_command(app)
COMMANDS = {
    " ".join([*group, name]): command
    for group, commands in [
        ([], GROUP.commands),  # type: ignore[attr-defined]
        *(([name], group.commands) for name, group in GROUP.commands.items() if hasattr(group, "commands")),  # type: ignore[attr-defined]
    ]
    for name, command in commands.items()
    if not hasattr(command, "commands")
}
SOURCE = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_documented(name):
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    section = page.split(f"## palate {name}\n")[1].split("\n## ")[0]
    for parameter in COMMANDS[name].params:
        if parameter.param_type_name == "option" and parameter.name != "help":
            assert f"| `{parameter.opts[0]}" in section
            assert parameter.help


def test_every_setting_is_documented():
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    settings = set(re.findall(r"\bPALATE_[A-Z]+\b", SOURCE))
    assert settings == set(re.findall(r"^\| `(PALATE_[A-Z]+)`", page, flags=re.MULTILINE))


def test_the_readme_s_commands_exist():
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "README.md", ROOT / "docs" / "commands.md"))
    for line in re.findall(r"^(?:\$ )?palate .*$", text, flags=re.MULTILINE):
        words = line.removeprefix("$ ").split()
        command = COMMANDS.get(" ".join(words[1:3])) or COMMANDS[words[1]]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line


def test_relative_links_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def test_what_the_documents_python_imports_is_there():
    pages = (ROOT / "README.md", ROOT / "docs" / "alignment.md")
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    imports = [line for block in blocks for line in block.splitlines() if line.startswith("from palate")]
    assert imports
    subprocess.run([sys.executable, "-c", "\n".join(imports)], check=True)
    for block in blocks:
        compile(block, "a document", "exec")
