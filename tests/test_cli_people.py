"""`palate onboard`, `rank` and `explain`: one person is asked, ranked for, and explained."""

import json
import re
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from tests.cli_support import Ran, palate, tiny_encoder, tiny_model

from palate.cli.common import plain
from palate.feedback import as_text
from palate.rewards import RewardModel
from palate.rewards.queries import STRATEGIES
from palate.store import Store, StoredQuery

ASKED = "Which do you prefer? [a/b, t alike, s skip, q stop; then Enter] "
WORDS = "No taste of their own is clear yet."
EXPLANATION = {"user", "words", "styles", "axes", "example"}
EVIL = "\x1b[31mred\x07\x00\x9b2J\u202eab [bold]x[/bold] 🍵 שלום"


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The database that commands use, in an empty folder."""
    url = f"sqlite:///{tmp_path / 'people.db'}"
    monkeypatch.setenv("PALATE_DATABASE", url)
    return url


def onboard(*more: object, typed: str = "", user: str = "ann") -> Ran:
    return palate("onboard", tiny_model(), "--user", user, "--stop-below", 0, *more, typed=typed)


def asked(url: str, user: str = "ann") -> list[StoredQuery]:
    """What a user was asked so far."""
    with Store.open(url, create=False) as store:
        person = store.user(user)
        assert person is not None
        return store.queries(person, RewardModel.load(tiny_model()).fingerprint)


def choices(url: str) -> list[str | None]:
    return [query.choice for query in asked(url)]


def panel_words(text: str) -> list[str]:
    """The words of a text that may stand in frames."""
    return text.replace("│", " ").split()


# onboard


def test_onboard_asks_shows_both_answers_whole_and_tells(database):
    ran = onboard("--questions", 2, typed="a\nb\n")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.count(ASKED) == 2
    first, second, after = ran.out.split(ASKED)
    for number, shown, query in zip("12", (first, second), asked(database), strict=True):
        assert f"{number} of 2  {query.prompt}" in shown
        words = " ".join(panel_words(shown))
        assert all(" ".join(as_text(text).split()) in words for text in (query.response_a, query.response_b))
    assert choices(database) == ["a", "b"]
    with Store.open(database) as store:
        person = store.user("ann")
        assert person is not None
        told = [evidence.record.model_dump() for evidence in store.evidence(person)]
    assert [(row["chosen"], row["chosen_position"]) for row in told] == [
        (asked(database)[0].response_a, "a"),
        (asked(database)[1].response_b, "b"),
    ]
    assert after.strip()


def test_onboard_as_json_keeps_questions_from_standard_output(database):
    ran = onboard("--questions", 1, "--json", typed="b\n")
    told = ran.json
    assert set(told) == EXPLANATION | {"answered", "done"}
    assert (told["user"], told["answered"], told["done"]) == ("ann", 1, True)
    assert ASKED in ran.err


def test_onboard_goes_on_where_it_stopped(database):
    ran = onboard(typed="a\n")  # and then the input ends
    assert ran.out.endswith("1 of 10 answered; the same command goes on from here.\n")
    open_query = asked(database)[-1]
    assert choices(database) == ["a", None]
    again = onboard("--questions", 3, typed="q\n")
    assert f"2 of 3  {open_query.prompt}" in again.out
    assert asked(database)[-1] == open_query
    done = onboard("--questions", 3, "--json", typed="a\nb\n").json
    assert (done["answered"], done["done"], choices(database)) == (3, True, ["a", "a", "b"])
    over = onboard("--questions", 3)
    assert (over.out.count(ASKED), over.status) == (0, 0)


def test_skips_are_no_answers_and_ties_are(database):
    ran = onboard("--questions", 2, "--json", typed="s\nt\nskip\nTIE\n")
    assert (ran.json["answered"], ran.json["done"]) == (2, True)
    assert choices(database) == ["skip", "tie", "skip", "tie"]
    assert re.findall(r"^\d of 2 ", ran.err, re.MULTILINE) == ["1 of 2 "] * 2 + ["2 of 2 "] * 2
    with Store.open(database) as store:
        person = store.user("ann")
        assert person is not None
        assert [evidence.record.model_dump()["strength"] for evidence in store.evidence(person)] == [0.5, 0.5]


def test_other_keys_are_explained(database):
    ran = onboard("--questions", 1, typed="\nx\nyes\n A \n")
    assert ran.out.count("Type a, b, t, s or q, then Enter.\n") == 3
    assert choices(database) == ["a"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nothing_is_asked_twice(database, strategy):
    onboard("--questions", 12, "--query-strategy", strategy, typed="a\nb\ns\nt\n" * 4)
    pairs = [frozenset(query.pool_index or ()) for query in asked(database)]
    prompts = [query.prompt for query in asked(database)]
    assert len(set(pairs)) == len(pairs) == 16
    assert all(one != next_ for one, next_ in pairwise(prompts))


def test_onboard_stops_when_sure_enough(database):
    ran = palate("onboard", tiny_model(), "--user", "ann", "--stop-below", 0.7)  # nobody's choice tells more than log 2
    assert ran.out.endswith("After 0 answers no question is left that would tell 0.7 nats or more.\n")
    assert choices(database) == []


def test_the_same_seed_asks_the_same(database, tmp_path):
    other = f"sqlite:///{tmp_path / 'other.db'}"
    onboard("--questions", 3, "--seed", 5, typed="a\nb\na\n")
    onboard("--questions", 3, "--seed", 5, "--database", other, typed="a\nb\na\n")
    assert [query.pool_index for query in asked(database)] == [query.pool_index for query in asked(other)]


def test_what_was_answered_moves_the_taste(database):
    before = onboard("--json").json
    after = onboard("--questions", 5, "--json", typed="a\n" * 5).json
    assert [s["spread"] for s in before["styles"]] != []
    weights = [{axis["weight"] for axis in told["axes"]} for told in (before, after)]
    assert weights[0] != weights[1]
    assert palate("explain", tiny_model(), "--user", "ann", "--json").json["styles"] == after["styles"]


@pytest.mark.parametrize(
    ("user", "message"),
    [
        ("", "Invalid user id: '' has 0 characters; give 1 to 256"),
        ("x" * 257, f"Invalid user id: {'x' * 257!r} has 257 characters; give 1 to 256"),
        ("\udcff", "Text is not Unicode: '\\udcff'; replace these characters"),
    ],
    ids=["empty", "long", "surrogate"],
)
def test_a_user_needs_a_name(database, user, message):
    assert onboard(user=user).failure == message


def test_a_strategy_that_is_not_there(database):
    assert onboard("--query-strategy", "oracle").usage == (
        f"'--query-strategy': 'oracle' is no query strategy; choose one of {', '.join(STRATEGIES)}"
    )


# rank


def candidates(folder: Path, *values: object) -> Path:
    path = folder / "candidates.jsonl"
    path.write_text("".join(f"{json.dumps(value)}\n" for value in values))
    return path


def rank(file: Path, *more: object) -> Ran:
    return palate("rank", tiny_model(), "--prompt", "Is tea good?", "--candidates", file, *more)


FORMS: list[Any] = ["Yes.", {"completion": "No!"}, [{"role": "assistant", "content": "Who can say?"}]]


def test_rank_takes_every_form_of_candidate(database, tmp_path):
    told = rank(candidates(tmp_path, *FORMS), "--json").json
    assert (told["user"], told["prompt"]) == (None, "Is tea good?")
    rows = sorted(told["ranking"], key=lambda row: row["index"])
    assert [row["completion"] for row in rows] == ["Yes.", "No!", FORMS[2]]
    rewards = [row["reward"] for row in told["ranking"]]
    assert rewards == sorted(rewards, reverse=True)
    assert [row["better_than_next"] is None for row in told["ranking"]] == [False, False, True]
    assert not (tmp_path / "people.db").exists()  # the population's taste needs no database


def test_rank_for_a_user(database, tmp_path):
    onboard("--questions", 4, typed="a\n" * 4)
    file = candidates(tmp_path, *FORMS)
    own, shared = rank(file, "--user", "ann", "--json").json, rank(file, "--json").json
    assert own["user"] == "ann"
    assert {row["reward"] for row in own["ranking"]} != {row["reward"] for row in shared["ranking"]}


def test_rank_prints_a_table_with_whole_texts(tmp_path):
    long = "word " * 100 + "end"
    ran = rank(candidates(tmp_path, long, "[bold]short[/bold]"))
    assert (ran.status, ran.err) == (0, "")
    assert panel_words(ran.out).count("word") == 100
    assert "[bold]short[/bold]" in ran.out


def test_one_candidate_and_the_same_twice(tmp_path):
    alone = rank(candidates(tmp_path, "Yes."), "--json").json["ranking"]
    assert [(row["index"], row["better_than_next"]) for row in alone] == [(0, None)]
    twice = rank(candidates(tmp_path, "Yes.", "Yes."), "--json").json["ranking"]
    assert [(row["index"], row["better_than_next"]) for row in twice] == [(0, 0.5), (1, None)]


def test_control_characters_never_reach_the_terminal(tmp_path):
    ran = rank(candidates(tmp_path, EVIL, "\ud800"))
    assert ran.status == 0
    assert set("\x1b\x07\x00\x9b").isdisjoint(ran.out)
    assert "␛[31mred␇␀\N{REPLACEMENT CHARACTER}2J" in ran.out
    assert rank(candidates(tmp_path, EVIL, "\ud800"), "--json").json["ranking"][0]["completion"] in (EVIL, "\ud800")


def test_plain_keeps_lines_and_letters():
    assert plain("a\tb\nc é שלום 🍵\u200d") == "a\tb\nc é שלום 🍵\u200d"
    assert plain("\r\x7f") == "␍\N{REPLACEMENT CHARACTER}"
    assert plain([{"role": "assistant", "content": "\x1b"}]) == "␛"


@pytest.mark.parametrize("line", ["oops", "null", "5", '{"completion": 5}', '{"text": "x"}', "[5]", "[" * 100_000])
def test_rank_refuses_a_line_that_is_no_candidate(tmp_path, line):
    file = tmp_path / "candidates.jsonl"
    file.write_text(f'"Yes."\n\n{line}\n')
    assert rank(file).failure == (
        'candidates.jsonl:3: not a candidate; write a JSON string or {"completion": ...} on each line'
    )


def test_rank_needs_candidates(tmp_path):
    assert (
        rank(candidates(tmp_path)).failure == "candidates.jsonl holds no candidates; write one a line as a JSON string"
    )


def test_rank_reads_files_only(tmp_path):
    assert rank(tmp_path / "none").failure == (
        f"Cannot read candidates {str(tmp_path / 'none')!r}: no such file or directory; name a JSON Lines file"
    )
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(b'"caf\xe9"\n')
    assert rank(latin).failure == f"Cannot read candidates {str(latin)!r}: it is not UTF-8 text; name a JSON Lines file"


# explain


def test_explain_tells_words_styles_and_base_rewards(database):
    onboard("--questions", 3, typed="a\nb\na\n")
    ran = palate("explain", tiny_model(), "--user", "ann")
    told = palate("explain", tiny_model(), "--user", "ann", "--json").json
    assert (ran.status, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert (lines[0], lines[1].split()) == (told["words"], ["style", "liking", "±", "sure"])
    assert [line.split()[0] for line in lines[2:9]] == [style["word"] for style in told["styles"]]
    assert ran.out.count(": weight ") == 3
    assert set(told) == EXPLANATION | {"pictures", "guard", "turned", "influences"}
    assert told["guard"]["answers"] == 3 and told["turned"] is None
    assert (len(told["axes"]), told["pictures"]) == (4, [])


def test_explain_of_somebody_who_said_nothing_is_the_population(database):
    onboard()
    told = palate("explain", tiny_model(), "--user", "ann", "--json").json
    assert told["example"] is None
    assert all(style["liking"] == pytest.approx(style["population"]) for style in told["styles"])


def test_explain_draws_a_picture(database, tmp_path):
    onboard("--questions", 1, typed="a\n")
    files = [tmp_path / "pictures" / f"ann.{ending}" for ending in ("svg", "png")]
    ran = palate("explain", tiny_model(), "--user", "ann", "--picture", files[0].with_suffix(""))
    assert ran.line == f"Drawn as {files[0]} and {files[1]}"
    assert files[0].read_text().startswith("<?xml")
    assert files[1].read_bytes().startswith(b"\x89PNG")
    told = palate("explain", tiny_model(), "--user", "ann", "--picture", files[1], "--json").json
    assert told["pictures"] == [str(file) for file in files]


def test_a_picture_below_a_file(database, tmp_path):
    onboard()
    (tmp_path / "file").touch()
    ran = palate("explain", tiny_model(), "--user", "ann", "--picture", tmp_path / "file" / "taste")
    assert ran.failure.startswith(f"Cannot write the picture {str(tmp_path / 'file' / 'taste')!r}: ")


# The database


@pytest.mark.parametrize("command", ["explain", "rank"])
def test_a_user_who_is_not_there_is_not_made(database, tmp_path, command):
    onboard(user="bob")
    more = ["--prompt", "Hi", "--candidates", candidates(tmp_path, "Yes.")] if command == "rank" else []
    message = f"User 'ann lee' is not in the database; ask them first: palate onboard {tiny_model()} --user 'ann lee'"
    words = [command, tiny_model(), "--user", "ann lee", *more]
    assert palate(*words).failure == message
    assert palate(*words, "--database", database).failure == f"{message} --database ..."
    with Store.open(database) as store:
        assert [user.external_id for user in store.users()] == ["bob"]


@pytest.mark.parametrize("command", ["explain", "rank"])
def test_a_database_that_is_not_there_is_not_made(database, tmp_path, command):
    file = candidates(tmp_path, "Yes.")
    more = ["--prompt", "Hi", "--candidates", file] if command == "rank" else []
    failure = palate(command, tiny_model(), "--user", "ann", *more).failure
    assert failure.startswith(f"No Palate database at {database!r}; name another")
    assert list(tmp_path.iterdir()) == [file]


def test_a_database_that_is_none(tmp_path):
    file = tmp_path / "thesis.tex"
    file.write_text("years of work " * 100)
    for command in ("onboard", "explain"):
        assert palate(command, tiny_model(), "--user", "ann", "--database", f"sqlite:///{file}").failure == (
            f"Database 'sqlite:///{file}' is not a database file; name another file"
        )
    assert palate("explain", tiny_model(), "--user", "ann", "--database", file).failure == (
        f"Invalid database URL: {str(file)!r}; give one such as 'sqlite:///palate.db'"
    )


def test_a_database_of_a_newer_version(database):
    onboard()
    with sa.create_engine(database).begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    ran = palate("explain", tiny_model(), "--user", "ann")
    assert ran.failure.startswith(
        f"Database {database!r} is at revision '9999', and this version of Palate knows only "
    )
    assert ran.failure.endswith("; upgrade Palate, or name another database")


def test_only_unknown_texts_need_the_encoder(database, tmp_path):
    copy = shutil.copytree(tiny_model(), tmp_path / "copy")
    config = (copy / "config.json").read_text()
    (copy / "config.json").write_text(config.replace(str(tiny_encoder()), "no/such"))
    assert palate("onboard", copy, "--user", "ann", "--questions", 1, typed="a\n").status == 0
    known = RewardModel.load(copy).known
    words = ["rank", copy, "--user", "ann", "--prompt", known.prompts[0], "--candidates"]
    assert palate(*words, candidates(tmp_path, known.completions[0])).status == 0
    assert palate(*words, candidates(tmp_path, "Never seen.")).failure == (
        "Encoder 'no/such' not found: it must be a folder, an installed package, or a model on the Hugging Face hub "
        "that can be reached; give a folder that holds the model"
    )
