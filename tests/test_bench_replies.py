"""Simulated people who type, and the readers of public dialogues."""

import numpy as np
import pytest

from palate.bench.following import bundled_replies
from palate.bench.people import Person
from palate.bench.typed import LEVELS, ReplyBank, feelings
from palate.bench.uss import read_turns
from palate.data import POLES, load_answers, load_people
from palate.errors import InputError
from palate.satisfaction.scorer import SatisfactionScorer

PERSON = Person(("concise", "humorous"))


def bank(extra=()) -> ReplyBank:
    rows = [
        {"reply": f"{level} {about}", "satisfaction": level, "about": about, "read_satisfaction": level}
        for level in LEVELS
        for about in (None, "concise", "verbose")
    ]
    return ReplyBank([{**row, "read_confidence": 0.5, "read_target": "taste"} for row in [*rows, *extra]])


def test_who_is_pleased_speaks_of_what_they_like_and_who_is_not_of_what_they_do_not():
    answers = load_answers()
    for answer, (level, poles), reward in zip(
        answers, feelings(PERSON, answers), PERSON.reward(answers).tolist(), strict=True
    ):
        assert LEVELS[level] == pytest.approx(np.clip(0.5 + reward / 4, 0, 1))
        shown = {pole for pole, (name, sign) in POLES.items() if answer.attributes.get(name) == sign}
        assert set(poles) <= shown
        if answer.spoilt:
            assert poles == []
        elif level > 2:
            assert set(poles) == shown & {"concise", "humorous"} and poles
        elif level < 2:
            assert set(poles) == shown & {"verbose", "serious"} and poles


def test_a_reply_is_of_the_level_and_about_a_fitting_pole_where_there_is_one():
    rng, replies = np.random.default_rng(0), bank()
    for level in range(5):
        assert replies.rows[replies.draw(level, ["verbose", "serious"], rng)]["about"] == "verbose"
        row = replies.rows[replies.draw(level, ["humorous"], rng)]
        assert (row["about"], row["satisfaction"]) == (None, LEVELS[level])


def test_what_was_not_read_to_be_on_taste_has_no_confidence():
    extra = [{"reply": "x", "satisfaction": 1.0, "read_satisfaction": 1.0}]
    replies = bank(extra)
    assert replies.confidence.tolist() == [0.5] * 16
    assert ReplyBank([{**row, "read_target": "task"} for row in replies.rows]).confidence.tolist() == [0.0] * 16


def test_a_bank_that_lacks_a_level_is_refused():
    with pytest.raises(InputError, match=r"no reply of satisfaction 0\.75 about no pole"):
        ReplyBank([row for row in bank().rows if row["satisfaction"] != 0.75])


def test_bundled_people_type_replies_as_they_were_read():
    replies = ReplyBank(SatisfactionScorer.load().held_out)
    said = bundled_replies(replies, seed=0, each=3)
    assert len(said) == 3 * 112 and said == bundled_replies(replies, seed=0, each=3)
    assert {one.user_id for one in said} == {row.user_id for row in load_people()}
    assert all(one.satisfaction is not None and one.confidence is not None and one.target for one in said)


def test_rated_turns_are_read_with_what_was_said_before(tmp_path):
    (tmp_path / "CCPE.txt").write_text(
        "USER\tHi\t\t3,3,4\nSYSTEM\tWhich film?\t\t\nUSER\tNone of these\tDENY\t1,2,2\nUSER\tOVERALL\t\t3,3,3\n\n"
        "USER\tBye\t\t5,5,5\n"
    )
    turns = read_turns(tmp_path / "CCPE.txt")
    assert turns.texts == ["Hi", "None of these", "Bye"]
    assert turns.contexts == [None, ("Hi", "Which film?"), None]
    assert turns.rating.round(2).tolist() == [3.33, 1.67, 5.0]
    assert turns.label.tolist() == [2, 1, 4]
    (tmp_path / "CCPE.txt").write_text("SYSTEM\tHello\t\t\n")
    with pytest.raises(InputError, match="holds no rated user turn"):
        read_turns(tmp_path / "CCPE.txt")
    with pytest.raises(InputError, match="USS cannot be read"):
        read_turns(tmp_path / "none")
