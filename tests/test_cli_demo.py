"""`palate demo`: with planted features and fewer bundled people, and once the whole of it."""

import json
from pathlib import Path

import pytest
from tests import cli_support
from tests.cli_support import Ran
from tests.support import PlantedEncoder, people

import palate.data
import palate.encoders
import palate.rewards.model
from palate.cli.common import short
from palate.data import POLES
from palate.rewards import RewardModel
from palate.store import Store, StoredQuery

RESULT = {"simulated", "words", "styles", "axes", "example", "pictures", "unseen_prompts", "seconds"}
ASKED = "Which do you prefer? "
PEOPLE = people(comparisons=30)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder; features that show styles plainly for the encoder's, 24 of the people for 112."""
    encoder = PlantedEncoder()
    for module in (palate.encoders, palate.rewards.model):
        monkeypatch.setattr(module, "load_encoder", lambda *name: encoder)
    monkeypatch.setattr(palate.data, "load_people", lambda: PEOPLE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*more: str, typed: str = "", by_hand: bool = False) -> Ran:
    return cli_support.palate("demo", *more, typed=typed, by_hand=by_hand)


def asked(user: str) -> list[StoredQuery]:
    with Store.open("sqlite:///palate-demo/palate.db", create=False) as store:
        person = store.user(user)
        assert person is not None
        return store.queries(person, RewardModel.load("palate-demo/model").fingerprint)


def test_a_simulated_person_is_learned(folder):
    told = run("--simulate", "polite,uncertain", "--json").json
    assert set(told) == RESULT | {"picked_before", "picked_after"}
    assert (told["simulated"], told["unseen_prompts"]) == ("polite+uncertain", 40)
    assert 0 <= told["picked_before"] < told["picked_after"] <= 40
    assert all(Path(picture).stat().st_size for picture in told["pictures"])
    queries = asked("polite+uncertain")
    assert len(queries) == 10
    assert {query.choice for query in queries} <= {"a", "b", "tie"}
    assert sorted(path.name for path in (folder / "palate-demo").iterdir()) == [
        "model",
        "palate.db",
        "taste.png",
        "taste.svg",
    ]


def test_without_a_terminal_it_simulates_and_tells():
    ran = run()
    assert (ran.status, ran.err) == (0, "")
    assert "A simulated person who likes concise and humorous answers is asked:" in ran.out
    assert ran.out.count("  →  ") == 10
    assert "Of 40 unseen prompts with 14 answers each, Palate picks an answer that this person likes best" in ran.out
    assert "The picture: palate-demo/taste.svg and taste.png" in ran.out


def test_at_a_terminal_it_asks_you_and_goes_on_where_you_stopped():
    first = run(typed="a\nq\n", by_hand=True)
    assert (first.status, first.out.count(ASKED)) == (0, 2)
    assert "onboard palate-demo/model --user you --database sqlite:///palate-demo/palate.db --questions 20" in first.out
    again = run("--json", typed="b\n" * 9, by_hand=True)
    assert set(again.json) == RESULT
    assert (again.json["simulated"], again.err.count(ASKED)) == (None, 9)
    assert [query.choice for query in asked("you")] == ["a"] + ["b"] * 9


def test_a_simulated_person_starts_anew_each_time():
    one, two = (run("--simulate", "humorous,concise", "--json").json for _ in range(2))
    assert {**one, "seconds": 0} == {**two, "seconds": 0}
    assert len(asked("concise+humorous")) == 10


def test_those_of_the_simulated_kind_are_left_out():
    run("--simulate", "concise,humorous")
    kinds = {row.kind for row in PEOPLE}
    left = [row for row in PEOPLE if row.kind != "concise+humorous"]
    figures = RewardModel.load("palate-demo/model").figures
    assert "concise+humorous" in kinds
    assert (figures["comparisons"], figures["users"]) == (len(left), len({row.user_id for row in left}))


@pytest.mark.parametrize(
    ("poles", "message"),
    [
        ("concise,funny", f"'funny' is not a style pole; choose two of {', '.join(POLES)}"),
        ("concise", "'concise' is not two poles of different attributes; write them like concise,humorous"),
        (
            "concise,verbose",
            "'concise+verbose' is not two poles of different attributes; write them like concise,humorous",
        ),
    ],
)
def test_a_taste_that_nobody_has(folder, poles, message):
    assert run("--simulate", poles).usage == f"'--simulate': {message}"
    assert list(folder.iterdir()) == []


def test_a_line_is_cut_where_it_is_too_long():
    assert short("a\n  b\x1b", 10) == "a b␛"
    assert short("word " * 10, 8) == "word wo…"


@pytest.mark.slow
def test_the_whole_demo(folder, monkeypatch):
    monkeypatch.undo()  # the true encoder and all people, in a process of its own
    with cli_support.start("demo", "--simulate", "concise,humorous", "--json", cwd=folder) as running:
        out, err = running.communicate()
    assert (running.returncode, "Traceback" in err) == (0, False)
    told = json.loads(out)
    assert (told["simulated"], told["unseen_prompts"]) == ("concise+humorous", 40)
    assert told["picked_after"] > told["picked_before"]
    assert {"concise", "humorous"} <= {style["word"] for style in told["styles"]}
