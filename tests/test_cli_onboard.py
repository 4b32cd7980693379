"""`palate onboard` in processes of its own: killed, interrupted, twice at once, and in a real terminal."""

import fcntl
import os
import pty
import random
import signal
import struct
import subprocess
import termios
from pathlib import Path
from typing import Any

import pytest
from tests.cli_support import read_until, start, tiny_model

from palate.feedback import as_text
from palate.rewards import RewardModel
from palate.store import Store, StoredEvidence, StoredQuery

ASKED = "[a/b, t alike, s skip, q stop; then Enter] "


def onboard(folder: Path, *more: object) -> "subprocess.Popen[str]":
    words = ["onboard", tiny_model(), "--user", "ann", "--stop-below", 0, "--database", "sqlite:///people.db"]
    return start(*words, *more, cwd=folder)


def stored(folder: Path) -> tuple[list[StoredQuery], list[StoredEvidence]]:
    """What the user was asked and has said so far."""
    with Store.open(f"sqlite:///{folder / 'people.db'}", create=False) as store:
        person = store.user("ann")
        assert person is not None
        return store.queries(person, RewardModel.load(tiny_model()).fingerprint), store.evidence(person)


def type_in(running: "subprocess.Popen[str]", key: str) -> None:
    assert running.stdin is not None
    running.stdin.write(f"{key}\n")
    running.stdin.flush()


def question(running: "subprocess.Popen[str]") -> str:
    """The next question, whole."""
    assert running.stdout is not None
    return read_until(running.stdout, ASKED)


def kill(running: "subprocess.Popen[str]") -> None:
    running.kill()
    running.communicate()


def test_killed_at_any_moment_it_loses_nothing_and_asks_nothing_twice(tmp_path):
    rng = random.Random(0)
    acknowledged: list[str] = []
    left_open: StoredQuery | None = None
    for _ in range(3):
        running = onboard(tmp_path, "--questions", 50)
        first = question(running)
        if left_open:
            assert as_text(left_open.prompt) in first
        for _ in range(rng.randint(1, 3)):
            key = rng.choice("ab")
            type_in(running, key)
            acknowledged.append(key)
            question(running)  # the next question is shown: the answer is on disk
        if unsure := rng.random() < 0.7:
            type_in(running, "t")
        kill(running)
        queries, evidence = stored(tmp_path)
        answers = [query.choice for query in queries if query.choice]
        if unsure and answers[len(acknowledged) :] == ["tie"]:
            acknowledged.append("tie")
        assert answers == acknowledged
        assert len(evidence) == len(acknowledged)
        assert len({frozenset(query.pool_index or ()) for query in queries}) == len(queries)
        assert [query.choice for query in queries[:-1]].count(None) == 0
        left_open = queries[-1] if queries[-1].choice is None else None


def test_ctrl_c_keeps_the_question_open(tmp_path):
    running = onboard(tmp_path)
    shown = question(running)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (
        1,
        "palate: Interrupted; what was answered is kept, nothing half-done was written\n",
    )
    assert [query.choice for query in stored(tmp_path)[0]] == [None]
    again = onboard(tmp_path)
    assert question(again) == shown
    kill(again)


def test_two_at_once_share_one_open_question_and_lose_nothing(tmp_path):
    one, two = onboard(tmp_path, "--questions", 4), onboard(tmp_path, "--questions", 4)
    assert question(one) == question(two)
    assert len(stored(tmp_path)[0]) == 1
    for _ in range(3):
        type_in(one, "a")
        shown = question(one)
        type_in(two, "a")  # the same answer to the same question
        assert question(two) == shown
        assert [query.choice for query in stored(tmp_path)[0]].count(None) == 1
    type_in(one, "a")
    one.communicate(timeout=60)
    type_in(two, "b")  # too late, and something else
    _, err = two.communicate(timeout=60)
    queries, evidence = stored(tmp_path)
    assert [query.choice for query in queries] == ["a"] * 4
    assert len(evidence) == 4
    assert (one.returncode, two.returncode) == (0, 1)
    assert err == (
        f"palate: Query {queries[-1].id!r} was answered 'a', not 'b'; an answer stays, but its evidence can be "
        "withdrawn\n"
    )


def in_terminal(folder: Path, *keys: str) -> tuple[int, str]:
    """Onboard in a terminal of 80 columns, typing one key at each question."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    words = ["onboard", str(tiny_model()), "--user", "ann", "--stop-below", "0", "--database", "sqlite:///people.db"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    own: dict[str, Any] = {
        "start_new_session": True,
        "preexec_fn": lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    }  # Ctrl-C gets there
    with start(*words, cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, **own) as running:
        os.close(theirs)
        screen, waiting = b"", list(keys)
        while True:
            try:
                screen += os.read(ours, 65_536)
            except OSError:  # how Linux says that nobody is left at the other end
                break
            if screen.endswith(ASKED.encode()) and waiting:
                os.write(ours, waiting.pop(0).encode())
    os.close(ours)
    return running.returncode, screen.decode()


def test_in_a_terminal_of_80_columns(tmp_path):
    status, screen = in_terminal(tmp_path, "a\n", "t\n", "q\n")
    assert status == 0
    assert screen.count(ASKED) == 3
    frames = [line.rstrip() for line in screen.splitlines() if line.startswith(("╭", "│", "╰"))]
    assert frames
    assert {len(frame) for frame in frames} == {80}
    assert screen.splitlines()[-1] == "2 of 10 answered; the same command goes on from here."
    assert [query.choice for query in stored(tmp_path)[0]] == ["a", "tie", None]


@pytest.mark.parametrize(
    ("key", "status", "last"),
    [
        ("\x04", 0, "0 of 10 answered; the same command goes on from here."),
        ("\x03", 1, "palate: Interrupted; what was answered is kept, nothing half-done was written"),
    ],
    ids=["ctrl-d", "ctrl-c"],
)
def test_control_keys_stop_it(tmp_path, key, status, last):
    ended, screen = in_terminal(tmp_path, key)
    assert (ended, screen.splitlines()[-1]) == (status, last)
    assert [query.choice for query in stored(tmp_path)[0]] == [None]
