"""The bundled Facets, against its own description."""

from collections import Counter
from importlib.resources import files

import pytest

from palate.data import POLES, Answer, load_answers, load_people


@pytest.fixture(scope="module")
def answers():
    return {(answer.prompt, answer.text): answer for answer in load_answers()}


def likes(kind: str | None, answer: Answer) -> int:
    """The description's rule, written out again: the sum of signs shown, less 2 if spoilt."""
    wanted = dict(POLES[pole] for pole in (kind or "").split("+"))
    shown = answer.attributes
    return sum(shown[name] * sign for name, sign in wanted.items() if name in shown) - 2 * bool(answer.spoilt)


def test_poles_are_seven_attributes_in_both_directions():
    assert list(POLES)[:4] == ["verbose", "concise", "formal", "informal"]
    assert Counter(sign for _, sign in POLES.values()) == {1: 7, -1: 7}
    assert len(set(POLES.values())) == 14


def test_answers_have_the_counts_of_the_description(answers):
    rows = load_answers()
    assert len(rows) == len(answers) == len({answer.response_id for answer in rows}) == 1680
    assert set(Counter(answer.prompt_id for answer in rows).values()) == {14}
    assert len({answer.prompt for answer in rows}) == 120
    assert Counter(answer.spoilt for answer in rows) == {None: 1440, "cut": 120, "off-topic": 120}
    assert all(len(answer.attributes) == 3 for answer in rows)
    assert all(answer.response_id.startswith(answer.prompt_id) for answer in rows)


def test_people_have_the_counts_of_the_description():
    rows = load_people()
    assert len(rows) == 8960
    assert set(Counter(row.user_id for row in rows).values()) == {80}
    assert len({row.user_id for row in rows}) == 112
    kinds = Counter(kind for _, kind in {(row.user_id, row.kind) for row in rows})
    assert len(kinds) == 56
    assert set(kinds.values()) == {2}
    assert {row.split for row in rows} == {None}


def test_choices_follow_the_rule_but_for_the_slips(answers):
    gaps = [
        likes(row.kind, answers[row.prompt, row.chosen]) - likes(row.kind, answers[row.prompt, row.rejected])
        for row in load_people()
    ]
    assert 0 not in gaps
    # 5 in 100 are flipped: four standard errors of a share of 8,960 are 0.0092.
    assert sum(gap < 0 for gap in gaps) / len(gaps) == pytest.approx(0.05, abs=0.0092)


def test_bundled_people_leave_prompts_for_the_unseen(answers):
    hundreds = {answers[row.prompt, row.chosen].prompt_id[1] for row in load_people()}
    assert hundreds == {"0", "1", "2", "3"}


def test_what_is_loaded_can_be_changed_without_harm():
    load_answers().clear()
    load_people().clear()
    assert (len(load_answers()), len(load_people())) == (1680, 8960)


def test_a_readme_stands_beside_the_data():
    text = files("palate.data").joinpath("README.md").read_text(encoding="utf-8")
    assert "Apache-2.0" in text
    assert "written for this project" in text
