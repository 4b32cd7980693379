"""Each illness planted in healthy feedback, and nothing found where nothing is wrong."""

import random
from math import sqrt

import pytest

from palate.bench.people import ALL_KINDS, simulate
from palate.data import load_answers, load_people
from palate.doctor import diagnose
from palate.feedback import Comparison, Feedback, Rating, Reply


def comparison(number: int = 0, user: str = "ann", **columns) -> Comparison:
    columns = {"prompt": f"prompt {number}", "chosen": "right", "rejected": "wrong", **columns}
    return Comparison(user_id=user, **columns)


def found(*records, bad_lines=()) -> dict[str, tuple[str, str, int]]:
    feedback = Feedback(
        comparisons=[record for record in records if isinstance(record, Comparison)],
        ratings=[record for record in records if isinstance(record, Rating)],
        replies=[record for record in records if isinstance(record, Reply)],
        bad_lines=list(bad_lines),
    )
    return {finding.code: (finding.severity, finding.message, finding.count) for finding in diagnose(feedback)}


def test_healthy_feedback_has_no_findings():
    assert diagnose(Feedback(comparisons=load_people())) == []
    rows = simulate(ALL_KINDS, load_answers(), people_per_kind=1, comparisons=20, seed=0, split_by_prompt=True)
    assert diagnose(Feedback(comparisons=rows)) == []


def test_no_records():
    assert found() == {"no-records": ("problem", "There are no records; collect some feedback.", 0)}


def test_bad_lines():
    bad = ["a.jsonl:3: score 1.7 is not a number in [0, 1]; rescale it", "a.jsonl:9: something"]
    assert found(comparison(user="ann"), comparison(user="bob"), bad_lines=bad)["bad-lines"] == (
        "warning",
        "Lines that could not be read: 2; correct them, the first is "
        "a.jsonl:3: score 1.7 is not a number in [0, 1]; rescale it",
        2,
    )


def test_one_user():
    assert found(comparison(1), comparison(2)) == {
        "one-user": (
            "problem",
            "All records are of one user, 'ann': a taste cannot be separated from the population's; "
            "add other people's feedback.",
            2,
        )
    }


def test_users_with_a_single_answer():
    records = [comparison(1), comparison(2), comparison(user="bob"), comparison(user="cat")]
    assert found(*records) == {
        "single-answers": (
            "note",
            "Users with a single answer: 2 of 3; one teaches the population's taste but hardly theirs, "
            "so ask them a few more.",
            2,
        )
    }


def test_ties():
    rows = [comparison(n, user=user, strength=0.5 if n else 1) for n in range(2) for user in ("ann", "bob")]
    assert found(*rows) == {
        "ties": (
            "note",
            "Ties: 2 of 4 comparisons (50%); if that is more than meant, check how strength is set.",
            2,
        )
    }


@pytest.mark.parametrize(("chosen", "rejected", "way"), [("long one", "short", "longer"), ("s", "long", "shorter")])
def test_length_leak_states_the_binomial_z(chosen, rejected, way):
    rows = [
        comparison(n, user=f"u{n % 10}", chosen=chosen, rejected=rejected)
        if n < 70
        else comparison(n, user=f"u{n % 10}", chosen=rejected, rejected=chosen)
        for n in range(100)
    ]
    equal = [comparison(n, user="equal") for n in range(100, 150)]
    z = (70 - 50) / sqrt(100 * 0.5 * 0.5)
    assert found(*rows, *equal) == {
        "length-leak": (
            "warning",
            f"The {way} completion was chosen in 70% of 100 comparisons of unequal length (z = {z:.1f}): "
            "a model may take length for taste; balance the pairs, or compare with length alone.",
            100,
        )
    }


def test_a_handful_of_rows_is_no_leak():
    rows = [comparison(n, user=f"u{n % 2}", rejected="short", chosen_position="a") for n in range(3)]
    assert set(found(*rows)) == {"single-answers"}


def test_sides_leak():
    rows = [comparison(n, user=f"u{n // 10}", chosen_position="a" if n % 10 < 8 else "b") for n in range(100)]
    assert found(*rows) == {
        "sides-leak": (
            "warning",
            "Side 'a' was chosen in 80% of 100 comparisons with a known side (z = 6.0); "
            "show the two completions in random order.",
            100,
        )
    }


def test_one_sided_users_are_told_from_ten_comparisons_on():
    rows = [
        *(comparison(n, user="always-a", chosen_position="a") for n in range(10)),
        *(comparison(n, user="always-b", chosen_position="b") for n in range(12)),
        *(comparison(n, user="too-few", chosen_position="b") for n in range(9)),
        *(comparison(n, user="both", chosen_position="ab"[n % 2]) for n in range(10)),
    ]
    assert found(*rows) == {
        "one-sided-users": (
            "warning",
            "Users who chose the same side in each of 10 or more comparisons: 2; they may not have "
            "read them, so look at their answers and leave them out if so.",
            2,
        )
    }


def test_users_who_chose_by_length_alone():
    rows = [
        *(comparison(n, user="long", rejected="no") for n in range(10)),
        *(comparison(n, user="equal", rejected="short") for n in range(10)),
        *(comparison(n, user="brief", chosen="brief", rejected="not so brief") for n in range(10)),
        *(comparison(n, user="neither", chosen="no", rejected="yes"[: 3 - n % 2 * 2]) for n in range(10)),
    ]
    assert found(*rows)["length-only-users"] == (
        "warning",
        "Users who chose always the longer or always the shorter completion in 10 or more comparisons: 2; "
        "ask them about pairs of equal length to see what else they like.",
        2,
    )


def test_mixed_forms():
    spoken = [{"role": "assistant", "content": "hello"}]
    records = [
        Reply(user_id="ann", prompt="p", completion="plain", reply="thanks"),
        *(Rating(user_id=user, prompt="p", completion=spoken, score=1) for user in ("ann", "bob")),
        Rating(user_id="bob", prompt="p", completion="plain", score=0),
        Rating(user_id="bob", prompt="q", completion="plain", score=0),
    ]
    assert found(*records) == {
        "mixed-forms": (
            "warning",
            "Plain completions in 3 and conversational ones in 2 of 5 records: where the form goes with the "
            "user or the answer it gives them away; write all in one form.",
            2,
        )
    }


def test_contradictions_are_counted_once_a_pair_and_ties_are_none():
    rows = [
        comparison(1),
        comparison(1, chosen="wrong", rejected="right"),
        comparison(1, user="bob", chosen="wrong", rejected="right"),
        comparison(2, user="bob"),
        comparison(2, user="bob", chosen="wrong", rejected="right", strength=0.5),
    ]
    assert found(*rows)["contradictions"] == (
        "warning",
        "Pairs of completions that one user chose both ways: 1; where the taste did not turn in between, "
        "keep one of the two answers.",
        1,
    )


def test_duplicates_are_the_same_answer_at_the_same_time():
    rating = {"user_id": "bob", "prompt": "p", "completion": "c"}
    records = [
        comparison(1),
        comparison(1),
        comparison(1),
        comparison(1, created_at=0),  # asked again later: evidence of its own
        Rating(**rating, score=0.5),
        Rating(**rating, score=0.25),
        Reply(**rating, reply="0.5"),
    ]
    assert found(*records) == {
        "duplicates": (
            "warning",
            "Records that repeat another (same user, texts, answer and time): 2; each counts twice, "
            "so drop the copies.",
            2,
        )
    }


def test_users_kinds_and_prompts_on_both_sides_of_a_split():
    rows = [
        comparison(1, split="train", kind="k"),
        comparison(2, split="test", kind="k"),
        comparison(1, user="bob", split="adapt"),
        comparison(1, user="bob", split="test", chosen="other"),
        comparison(2, user="bob", split="test"),
        comparison(1, user="cat", split="adapt"),
        comparison(2, user="cat", split="test"),
        comparison(1, user="dan", split="train"),
        comparison(2, user="dan"),
    ]
    assert found(*rows) == {
        "split-answers": (
            "problem",
            "Answers in adapt or test that stand in train too, word for word or nearly: 2 of 5 (40%); figures for "
            "unseen answers would be of seen ones, so hold out whole prompts.",
            2,
        ),
        "split-users": (
            "problem",
            "Users in train who also stand in adapt or test: 1; figures for new users would be of known "
            "ones, so move each to one side.",
            1,
        ),
        "split-kinds": (
            "problem",
            "Kinds of users in train that also stand in adapt or test: 1; held-out tastes would have been "
            "seen, so keep all users of a kind on one side.",
            1,
        ),
        "split-prompts": (
            "problem",
            "Test prompts that also stand in the same user's adapt rows: 1, of 1 of the users; "
            "test answers were given away, so split each user's rows by prompt.",
            1,
        ),
    }


def test_the_worst_comes_first_and_order_of_rows_does_not_matter():
    rows = [comparison(n % 30, strength=0.5 + 0.5 * (n % 3 > 0), rejected="short") for n in range(60)]
    findings = diagnose(Feedback(comparisons=rows))
    order = [finding.severity for finding in findings]
    assert order == sorted(order, key=["problem", "warning", "note"].index)
    assert set(order) == {"problem", "warning", "note"}
    random.Random(0).shuffle(rows)
    assert diagnose(Feedback(comparisons=rows)) == findings
