"""Simulated people, against the bundled ones and against plain loops."""

from collections import Counter
from collections.abc import Iterable
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from palate.bench.people import ALL_KINDS, Kind, Person, parse_kind, simulate
from palate.data import POLES, Answer, load_answers, load_people
from palate.errors import InputError
from palate.feedback import Comparison, as_text

ANSWERS = load_answers()
BY_TEXT = {(answer.prompt, answer.text): answer for answer in ANSWERS}
POLE_NAMES = ", ".join(POLES)


def draw(
    kinds: Iterable[Kind] = (("concise", "humorous"),),
    *,
    people_per_kind: int = 1,
    comparisons: int = 160,
    seed: int = 0,
    flip: float = 0.05,
    split_by_prompt: bool = False,
) -> list[Comparison]:
    return simulate(
        kinds,
        ANSWERS,
        people_per_kind=people_per_kind,
        comparisons=comparisons,
        seed=seed,
        flip=flip,
        split_by_prompt=split_by_prompt,
    )


def completions(row: Comparison) -> list[Answer]:
    return [BY_TEXT[as_text(row.prompt), as_text(text)] for text in (row.chosen, row.rejected)]


def gap(row: Comparison) -> float:
    liked = Person(parse_kind(row.kind or "")).reward(completions(row))
    return float(liked[0] - liked[1])


def test_there_are_84_kinds_each_a_pair_of_poles_of_different_attributes():
    assert len(set(ALL_KINDS)) == 84
    assert {frozenset(kind) for kind in ALL_KINDS} == {
        frozenset(pair) for pair in combinations(POLES, 2) if POLES[pair[0]][0] != POLES[pair[1]][0]
    }
    assert {row.kind for row in load_people()} < {"+".join(kind) for kind in ALL_KINDS}


@pytest.mark.parametrize("text", ["concise,humorous", "concise+humorous", " humorous , concise "])
def test_a_kind_is_read_in_any_order(text):
    assert parse_kind(text) == ("concise", "humorous")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("concise,funny", f"'funny' is not a style pole; choose two of {POLE_NAMES}"),
        ("", f"'' is not a style pole; choose two of {POLE_NAMES}"),
        (
            "concise,verbose",
            "'concise+verbose' is not two poles of different attributes; write them like concise,humorous",
        ),
        (
            "concise",
            "'concise' is not two poles of different attributes; write them like concise,humorous",
        ),
        (
            "concise,humorous,polite",
            "'concise+humorous+polite' is not two poles of different attributes; write them like concise,humorous",
        ),
    ],
)
def test_a_wrong_kind_is_refused(text, message):
    with pytest.raises(InputError) as error:
        parse_kind(text)
    assert str(error.value) == message


def test_rewards_are_signs_less_two_if_spoilt():
    rewards = Person(("concise", "humorous")).reward(ANSWERS)
    by_hand = [
        -answer.attributes.get("length", 0) + answer.attributes.get("humour", 0) - 2 * bool(answer.spoilt)
        for answer in ANSWERS
    ]
    assert rewards.tolist() == by_hand
    assert (rewards.min(), rewards.max()) == (-4, 2)


def test_rows_compare_two_answers_to_one_prompt_that_differ_and_never_twice():
    rows = draw(people_per_kind=2, flip=0.0)
    assert all(gap(row) > 0 for row in rows)
    pairs = Counter((row.user_id, row.prompt, frozenset((row.chosen, row.rejected))) for row in rows)
    assert set(pairs.values()) == {1}
    assert Counter(row.user_id for row in rows) == {"s0000": 160, "s0001": 160}
    assert {row.kind for row in rows} == {"concise+humorous"}
    assert {row.split for row in rows} == {None}


def test_about_one_choice_in_twenty_is_flipped_but_none_in_test():
    rows = draw(ALL_KINDS, people_per_kind=2, split_by_prompt=True)
    flipped = {split: np.mean([gap(row) < 0 for row in rows if row.split == split]) for split in ("adapt", "test")}
    assert flipped["test"] == 0
    # Four standard errors of a share of 13,440.
    assert flipped["adapt"] == pytest.approx(0.05, abs=0.0075)


def test_flip_one_turns_every_choice_round():
    straight, turned = draw(flip=0.0), draw(flip=1.0)
    assert [(row.chosen, row.rejected) for row in straight] == [(row.rejected, row.chosen) for row in turned]


def test_a_split_gives_each_person_half_their_prompts_and_half_their_rows():
    for user in ("s0000", "s0001"):
        rows = [row for row in draw(people_per_kind=2, split_by_prompt=True) if row.user_id == user]
        adapt, test = ({row.prompt for row in rows if row.split == split} for split in ("adapt", "test"))
        assert not adapt & test
        assert max(len(adapt), len(test)) <= 60
        assert Counter(row.split for row in rows) == {"adapt": 80, "test": 80}


def test_the_same_seed_gives_the_same_people_and_another_gives_others():
    assert draw(seed=3) == draw(seed=3)
    assert draw(seed=3) != draw(seed=4)


def test_a_persons_choices_do_not_hang_on_who_else_is_drawn():
    def choices(rows: list[Comparison], user: str) -> list[tuple[object, ...]]:
        return [(row.prompt, row.chosen, row.rejected) for row in rows if row.user_id == user]

    alone = draw([("blunt", "confident")])
    crowd = draw([("concise", "humorous"), ("blunt", "confident")], people_per_kind=3)
    assert choices(crowd, "s0001") == choices(alone, "s0000")
    assert choices(crowd, "s0003") != choices(alone, "s0000")
    # More people of the kinds leave the earlier ones their ids and choices.
    fewer = draw([("concise", "humorous"), ("blunt", "confident")], people_per_kind=1)
    assert crowd[: len(fewer)] == fewer


def test_simulated_people_are_like_the_bundled_ones():
    """Shares of spoilt pairs, of longer chosen and of each reward gap: two samples of one law."""
    bundled = load_people()
    kinds = sorted({parse_kind(row.kind or "") for row in bundled})
    prompts = {row.prompt for row in bundled}
    answers = [answer for answer in ANSWERS if answer.prompt in prompts]
    simulated = simulate(kinds, answers, people_per_kind=4, comparisons=80, seed=0, split_by_prompt=False)

    def shares(rows: list[Comparison]) -> NDArray[np.float64]:
        spoilt = [any(answer.spoilt for answer in completions(row)) for row in rows]
        longer = [len(row.chosen) > len(row.rejected) for row in rows]
        gaps = [abs(gap(row)) for row in rows]
        return np.array([np.mean(spoilt), np.mean(longer), *(np.mean(np.equal(gaps, g)) for g in (1, 2, 3))])

    # Four standard errors of the difference of a half in 8,960 and in 17,920.
    assert shares(simulated) == pytest.approx(shares(bundled), abs=4 * 0.5 * np.sqrt(1 / 8960 + 1 / 17920))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": 1.5}, "flip 1.5 is not in [0, 1]; give the share of choices to turn round"),
        ({"flip": float("nan")}, "flip nan is not in [0, 1]; give the share of choices to turn round"),
        ({"people_per_kind": 0}, "people_per_kind 0 is less than 1; ask for one or more"),
        ({"comparisons": -1}, "comparisons -1 is less than 1; ask for one or more"),
    ],
)
def test_wrong_numbers_are_refused(options, message):
    with pytest.raises(InputError) as error:
        draw(**options)
    assert str(error.value) == message


def test_more_comparisons_than_pairs_are_refused():
    with pytest.raises(InputError) as error:
        simulate([("concise", "humorous")], [], people_per_kind=1, comparisons=1, seed=0, split_by_prompt=True)
    assert str(error.value) == (
        "1 comparisons are more than the 0 pairs of answers that differ for a person; "
        "ask for fewer or give more prompts"
    )
