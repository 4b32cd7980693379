"""The examples run as they stand, against a live server."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.server_support import live
from typer.main import get_command

from palate.cli import app

EXAMPLES = Path(__file__).parents[1] / "examples"
ROOT = EXAMPLES.parent


@pytest.fixture(scope="module")
def server():
    with live() as one:
        yield one


def ran(server, code: list[str]) -> str:
    environment = os.environ | {"PALATE_URL": server.url, "PALATE_KEY": server.key}
    done = subprocess.run([sys.executable, *code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2_000:]
    return done.stdout


def test_the_openai_client(server):
    told = ran(server, [str(EXAMPLES / "openai_client.py")])
    assert "Palate: " in told and "Known of ana: " in told and "Why: " in told


def test_langchain(server):
    assert "completion: chatcmpl-" in ran(server, [str(EXAMPLES / "langchain_chat.py")])


def test_the_notebook(server):
    cells = json.loads((EXAMPLES / "tour.ipynb").read_text("utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    told = ran(server, ["-c", code])
    assert "ben: " in told and "a stranger: " in told
    assert server.service.store.user("ben") is None  # the last cell has erased them


def test_the_page_is_of_forty_lines_and_speaks_the_api():
    text = (EXAMPLES / "chat.html").read_text("utf-8")
    assert 35 <= len(text.splitlines()) <= 45 and "/v1/chat/completions" in text


def test_what_is_deployed_starts_the_server_with_options_that_it_has():
    known = {option for p in get_command(app).commands["serve"].params for option in p.opts}  # type: ignore[attr-defined]
    for name in ("Dockerfile", "compose.yaml", "deploy/kubernetes.yaml"):
        text = (ROOT / name).read_text("utf-8")
        line = next(line for line in text.splitlines() if "[" in line and (" [serve," in line or '"serve",' in line))
        assert {word.strip(' "[],') for word in line.split() if word.strip(' "[],').startswith("--")} <= known
