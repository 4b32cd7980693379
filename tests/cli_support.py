"""What the tests of the command line share: a tiny encoder, feedback of a few bundled people, and running commands."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from io import StringIO
from pathlib import Path
from typing import IO, Any
from unittest.mock import patch

import pytest

from palate.cli import main
from palate.data import load_answers, load_people
from palate.encoders import load_encoder
from palate.encoders.models import quiet
from palate.feedback import Comparison, Feedback, Record, write_jsonl
from palate.rewards import fit


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """A folder that lives as long as the run, shared by its workers; whoever is first makes it."""
    place = Path(os.environ["PALATE_CACHE"]) / name
    if not place.exists():
        fresh = Path(tempfile.mkdtemp(dir=place.parent))
        make(fresh)
        try:
            fresh.rename(place)
        except OSError:
            assert place.exists()  # another worker was faster
    return place


def _save_tiny_encoder(folder: Path) -> None:
    """A random BERT of one layer that knows the hundred commonest words of the bundled answers."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    words = Counter(word for answer in load_answers() for word in re.findall(r"\w+|[!?.]", answer.text.lower()))
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(word for word, _ in words.most_common(100))]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(known),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=256,
        initializer_range=0.5,
        architectures=["BertModel"],
    )
    with quiet():
        BertModel(config).save_pretrained(folder)
        BertTokenizer(vocab={word: i for i, word in enumerate(known)}).save_pretrained(folder)


@cache
def tiny_encoder() -> Path:
    """The tiny encoder's folder."""
    return made_once("tiny-encoder", _save_tiny_encoder)


@cache
def tiny_model() -> Path:
    """A reward model of rank 4, fitted on `some_people` with the tiny encoder."""
    encoder = tiny_encoder()

    def make(folder: Path) -> None:
        fit(Feedback(comparisons=some_people()), load_encoder(str(encoder), device="cpu"), rank=4).save(folder)

    return made_once("tiny-model", make)


def some_people(count: int = 8, each: int = 30) -> list[Comparison]:
    """The first choices of the first bundled people."""
    users = list(dict.fromkeys(row.user_id for row in load_people()))[:count]
    return [row for user in users for row in [r for r in load_people() if r.user_id == user][:each]]


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object on standard output, where nothing else stands."""
        assert (self.status, self.out.count("\n")) == (0, 1), self
        return json.loads(self.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))

    @property
    def failure(self) -> str:
        """The one line on standard error of a command that failed."""
        assert (self.status, self.out) == (1, ""), self
        return self.line

    @property
    def usage(self) -> str:
        """What is wrong with the usage, from the last line on standard error."""
        assert (self.status, self.out) == (2, ""), self
        return self.err.splitlines()[-1].removeprefix("Error: Invalid value for ")

    @property
    def line(self) -> str:
        """The one line on standard error, without its mark."""
        assert re.fullmatch(r"palate: .*\n", self.err), self
        return self.err.removeprefix("palate: ").removesuffix("\n")


def palate(*words: object, typed: str = "", by_hand: bool = False) -> Ran:
    """Run a command in this process, as the script does; `by_hand`: standard input calls itself a terminal."""
    out, err, typing = StringIO(), StringIO(), StringIO(typed)
    arguments = ["palate", *(str(word) for word in words)]
    with (
        patch.object(sys, "argv", arguments),
        patch.object(sys, "stdin", typing),
        patch.object(typing, "isatty", lambda: by_hand),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as stop,
    ):
        main()
    return Ran(int(stop.value.code or 0), out.getvalue(), err.getvalue())


MAIN = "from palate.cli import main; main()"


def start(*words: object, cwd: Path, code: str = MAIN, **more: Any) -> "subprocess.Popen[str]":
    """Start a command in a process of its own, its standard streams on pipes."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *(str(word) for word in words)],
        cwd=cwd,
        **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **more},
    )


def read_until(stream: "IO[str]", mark: str) -> str:
    """Everything up to and with `mark`, or up to the end where it never comes."""
    text = ""
    while not text.endswith(mark) and (character := stream.read(1)):
        text += character
    return text


def write(path: Path, rows: Iterable[Record]) -> Path:
    """Write records as JSON Lines."""
    write_jsonl(rows, path)
    return path
