"""What the doctor reads in the texts and in people: near-duplicates, layout, noise, language, the learning curve."""

import random
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata
from tests.support import PlantedEncoder, people

from palate.data import load_people
from palate.doctor import Report, examine
from palate.doctor import people as crowd
from palate.doctor.curve import _curve, learning_curves, power_law
from palate.doctor.findings import lean
from palate.doctor.leaks import FORMATS, length_alone
from palate.doctor.similar import near_duplicates
from palate.doctor.table import Table
from palate.errors import InputError
from palate.feedback import MIXED_FORMS, Comparison, Feedback

WORDS = [word for row in load_people()[:200] for word in row.chosen.split()]  # type: ignore[union-attr]


def text(rng: random.Random, words: int = 40) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def comparison(user: str, number: int = 0, **columns) -> Comparison:
    return Comparison(user_id=user, **{"prompt": f"prompt {number}", "chosen": "right", "rejected": "wrong", **columns})


def table(rows) -> Table:
    return Table.of(Feedback(comparisons=list(rows)))


def report(rows) -> Report:
    return examine(Feedback(comparisons=list(rows)))


def severity(rows) -> dict[str, str]:
    return {finding.code: finding.severity for finding in report(rows).findings}


# Leaks.


@given(st.lists(st.integers(-1, 1), min_size=1, max_size=200))
def test_a_lean_is_the_same_the_other_way_round(signs):
    here, there = lean(np.array(signs)), lean(-np.array(signs))
    if here is None or there is None:
        assert here is there is None
    else:
        assert (here.way, here.share, here.z, here.severity) == (-there.way, there.share, there.z, there.severity)
        assert 0.6 <= here.share <= 1
        assert 0.5 <= here.guessed <= here.share


@pytest.mark.parametrize(("leaning", "expected"), [(100, "problem"), (85, "problem"), (70, "warning"), (55, None)])
def test_a_cue_that_gives_the_choice_away_is_a_problem(leaning, expected):
    found = lean(np.array([1] * leaning + [-1] * (100 - leaning)))
    assert (found and found.severity) == expected


def test_what_length_gives_away_is_a_problem():
    rows = [comparison(f"u{n % 10}", n, chosen="the longer one", rejected="short") for n in range(100)]
    assert severity(rows)["length-leak"] == "problem"
    assert report(rows).problems == ["length-leak"]


@pytest.mark.parametrize(
    ("name", "laid_out"),
    [
        ("list items", "- one\n- two, and more to say of it"),
        ("headings", "## Here\nsome words"),
        ("code blocks", "```\nx = 1\n```"),
        ("bold words", "some **bold** words"),
        ("table rows", "| a | b |"),
        ("links", "see https://example.org"),
        ("emoji", "well done \N{PARTY POPPER}"),
        ("exclamation marks", "well done!"),
        ("question marks", "well done?"),
        ("capitals", "VERY good"),
    ],
)
def test_layout_that_gives_the_choice_away_is_a_problem(name, laid_out):
    assert FORMATS[name](laid_out) > 0
    plain = "x" * len(laid_out)  # as long, so that length says nothing
    rows = [comparison(f"u{n % 8}", n, chosen=laid_out, rejected=plain) for n in range(40)]
    found = next(finding for finding in report(rows).findings if finding.code == "format-leak")
    assert found.severity == "problem"
    assert f"more {name} 100% of 40" in found.message


def test_layout_that_some_like_and_some_do_not_is_a_taste():
    rows = [
        comparison(
            f"u{user}",
            n,
            **dict(zip(("chosen", "rejected"), ("fine!!", "finest")[:: 1 if user < 13 else -1], strict=True)),
        )
        for user in range(20)
        for n in range(10)
    ]
    assert "format-leak" not in severity(rows)


def spoken(*turns: str) -> list[dict[str, str]]:
    return [{"role": role, "content": f"{role} says"} for role in turns]


def test_conversations_of_another_shape_are_a_type_leak():
    rows = [
        comparison(f"u{n % 8}", n, chosen=spoken("assistant"), rejected=spoken("assistant", "user", "assistant"))
        for n in range(40)
    ]
    assert severity(rows)["type-leak"] == "problem"
    rows = [
        comparison(f"u{n % 8}", n, chosen=spoken("user", "assistant"), rejected=spoken("assistant", "user"))
        for n in range(40)
    ]
    assert severity(rows)["type-leak"] == "problem"


def test_refused_rows_of_two_types_are_a_type_leak():
    rows = [comparison("ann", 1), comparison("bob", 2)]
    found = examine(Feedback(comparisons=rows, bad_lines=[f"a.jsonl:{n}: {MIXED_FORMS}" for n in (3, 4)]))
    assert found.problems == ["type-leak"]
    assert found.findings[0].count == 2


def test_length_alone_against_ranks():
    rng = np.random.default_rng(0)
    longer = rng.integers(1, 9, size=(60, 2))
    rows = [comparison(f"u{n % 3}", n, chosen="x" * a, rejected="y" * b) for n, (a, b) in enumerate(longer.tolist())]

    def auc(d: np.ndarray) -> float:
        ranks = rankdata(np.concatenate([d, -d]))[: len(d)]
        return float((ranks.sum() - len(d) * (len(d) + 1) / 2) / len(d) ** 2)

    d = longer[:, 0] - longer[:, 1]
    figures = length_alone(table(rows))
    assert figures["length_auc"] == round(auc(d), 4)
    assert figures["length_auc_per_user"] == round(np.mean([auc(d[user::3]) for user in range(3)]), 4)
    guesses = [
        (np.sign(d[i]) * np.sign(np.sign(np.delete(d, i)[np.delete(np.arange(60), i) % 3 == i % 3]).sum()) + 1) / 2
        for i in range(60)
    ]
    assert figures["length_own_accuracy"] == round(np.mean(guesses), 4)


# Near-duplicates.


def jaccard(one: str, two: str) -> float:
    sets = [{t[i : i + 8] for i in range(len(t) - 7)} for t in (" ".join(t.lower().split()) for t in (one, two))]
    return len(sets[0] & sets[1]) / max(len(sets[0] | sets[1]), 1)


def test_near_duplicates_against_all_pairs():
    rng = random.Random(0)
    texts = []
    for _ in range(30):
        base = text(rng)
        texts.append(base)
        for edits in (1, 2, 6, 15):
            words = base.split()
            for _ in range(edits):
                words[rng.randrange(len(words))] = rng.choice(WORDS)
            texts.append(" ".join(words))
    label = near_duplicates(texts)
    joined = np.arange(len(texts))  # by brute force: all pairs, then what is linked by them
    for i, j in combinations(range(len(texts)), 2):
        overlap = jaccard(texts[i], texts[j])
        if overlap >= 0.8:
            joined[joined == joined[j]] = joined[i]
        assert overlap < 0.9 or label[i] == label[j]
    same, expected = label[:, None] == label, joined[:, None] == joined
    assert not (same & ~expected).any()  # never too many
    assert (same & expected).sum() >= 0.9 * expected.sum()  # and hardly too few
    assert expected.sum() > len(texts)


@given(st.lists(st.text(max_size=30), max_size=8))
def test_texts_equal_but_for_case_and_space_share_a_number(texts):
    label = near_duplicates([*texts, *(f"  {t.upper().lower()}\n" for t in texts)])
    plain = [" ".join(t.casefold().split()) == " ".join(t.upper().lower().casefold().split()) for t in texts]
    assert all(label[i] == label[len(texts) + i] for i, same in enumerate(plain) if same)


def test_many_texts_are_sampled_alike(monkeypatch):
    monkeypatch.setattr("palate.doctor.similar._SAMPLE", 20_000)
    monkeypatch.setattr("palate.doctor.similar._CHUNK", 10_000)
    rng = random.Random(1)
    texts = [text(rng, 100) for _ in range(400)]
    label = near_duplicates([*texts, *(t + " And so on." for t in texts)])
    assert (label[:400] == label[400:]).mean() > 0.9
    assert len(set(label[:400].tolist())) == 400


def test_nearly_equal_pairs_are_told():
    rng = random.Random(2)
    base = text(rng)
    rows = [comparison("ann", 1, chosen=base, rejected=base.upper() + "!"), comparison("bob", 2)]
    assert severity(rows)["near-equal-pairs"] == "warning"


def test_near_copies_in_train_of_held_out_answers_are_a_leak():
    rng = random.Random(3)
    asked, one, other = text(rng), text(rng), text(rng)
    train = comparison("ann", prompt=asked, chosen=one, rejected=other, split="train")
    test = comparison("bob", prompt=asked + " Please.", chosen=one + " Yes.", rejected=text(rng), split="test")
    assert severity([train, test])["split-answers"] == "problem"
    # The same words for another prompt are another answer.
    elsewhere = comparison("bob", prompt=text(rng), chosen=one, rejected=text(rng), split="test")
    assert "split-answers" not in severity([train, elsewhere])
    assert "split-answers" not in severity([train, test.model_copy(update={"split": "train"})])


# People.


def tossed(rows, share: float, seed: int) -> tuple[list[Comparison], set[str]]:
    """Some of the people answer by a coin."""
    rng = random.Random(seed)
    users = list(dict.fromkeys(row.user_id for row in rows))
    coins = set(rng.sample(users, round(share * len(users))))
    turned = [
        row.model_copy(update={"chosen": row.rejected, "rejected": row.chosen})
        if row.user_id in coins and rng.random() < 0.5
        else row
        for row in rows
    ]
    return turned, coins


def test_nobody_is_noise_where_nobody_tossed_a_coin():
    assert crowd.noise(table(load_people()))[0] == []


@pytest.mark.parametrize("seed", range(3))
def test_who_tosses_a_coin_is_found(seed):
    rows, coins = tossed(load_people(), 0.2, seed)
    names, figures = crowd.noise(table(rows))
    assert len(set(names) & coins) >= 0.6 * len(coins)
    assert len(set(names) - coins) <= 0.1 * len(names)
    assert figures["noise_users"] == len(names)
    found = next(finding for finding in report(rows).findings if finding.code == "noise-users")
    assert (found.severity, found.count) == ("warning", len(names))


def test_who_contradicts_themselves_is_found_by_repeats():
    rng = random.Random(0)
    rows = []
    for user in range(30):
        for pair in range(15):
            for _ in range(2):
                turned = rng.random() < (0.5 if user < 4 else 0.02)
                sides = (f"answer {pair}x", f"answer {pair}y")[:: -1 if turned ^ (user % 2 > 0) else 1]
                rows.append(comparison(f"u{user:02}", pair, chosen=sides[0], rejected=sides[1]))
    names, figures = crowd.noise(table(rows))
    assert figures["agreement_repeats"] > 0.8
    assert set(names) <= {"u00", "u01", "u02", "u03"}
    assert len(names) >= 3


def test_repeats_and_triads_against_counting():
    rng = random.Random(0)
    rows = []
    for user, prompt in ((u, p) for u in "ab" for p in range(4)):
        for one, other in combinations(range(5), 2):
            if rng.random() < 0.8:
                chosen, rejected = rng.sample([f"answer {one}", f"answer {other}"], 2)
                rows += [comparison(user, prompt, chosen=chosen, rejected=rejected)] * rng.choice([1, 1, 2])
    at = table(rows)
    for evidence, count in ((crowd.triads(at), counted_triads), (crowd.repeats(at), counted_repeats)):
        for number, name in enumerate(at.users):
            hits, total = count([row for row in rows if row.user_id == name])
            assert (evidence.hits[number], evidence.total[number]) == (hits, total)
            assert total


def counted_triads(rows) -> tuple[int, int]:
    hits = total = 0
    for prompt in {row.prompt for row in rows}:
        better = {(row.chosen, row.rejected) for row in rows if row.prompt == prompt}
        for three in combinations(sorted({text for pair in better for text in pair}), 3):
            pairs = [(a, b) for a in three for b in three if (a, b) in better]
            if len(pairs) == 3:
                total += 1
                hits += max(sum(a == text for a, _ in pairs) for text in three) == 2
    return hits, total


def counted_repeats(rows) -> tuple[int, int]:
    said = [(row.prompt, frozenset((row.chosen, row.rejected)), row.chosen) for row in rows]
    pairs = [(one, two) for one, two in combinations(said, 2) if one[:2] == two[:2]]
    return sum(one == two for one, two in pairs), len(pairs)


def test_predictions_leave_one_out():
    """The closed form against refitting without each row."""
    rng = np.random.default_rng(0)
    v = rng.standard_normal((2, 6, 3))
    v[1, 4:] = 0  # padding
    found = crowd._leave_one_out(v)
    for user, rows in ((0, 6), (1, 4)):
        for left_out in range(rows):
            seen = np.delete(v[user, :rows], left_out, axis=0)
            w = np.linalg.solve(seen.T @ seen + crowd._RIDGE * np.eye(3), seen.sum(axis=0))
            assert found[user, left_out] == pytest.approx(v[user, left_out] @ w)


def test_raters_per_pair_whichever_way_it_stands():
    rows = [
        comparison("ann", 1),
        comparison("bob", 1, chosen="wrong", rejected="right"),
        comparison("bob", 1),
        comparison("ann", 2),
    ]
    assert crowd.raters(table(rows)) == {"raters_per_pair": 1.5, "shared_pairs": 0.5}


def test_order_of_rows_does_not_matter():
    rows, _ = tossed(load_people(), 0.2, 0)
    shuffled = random.Random(0).sample(rows, len(rows))
    assert report(rows) == report(shuffled)
    assert report(rows).findings


def test_people_of_a_large_set_are_sampled_whole(monkeypatch):
    monkeypatch.setattr("palate.doctor.table.SAMPLED", 1000)
    rows = load_people()
    at = table(rows)
    taken = at.sample
    assert 900 < len(taken) <= 1000
    counts = np.bincount(at.user[taken])
    assert set(counts.tolist()) == {0, 80}


# Language.


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("这是一个很长的中文句子用来测试语言的判断", "languages"),
        ("der schnelle braune Fuchs springt über den faulen Hund und freut sich dabei sehr " * 2, "languages"),
        ("This is how you would say it in plain English, and that is all there is to it. " * 2, None),
        ("Oui.", None),  # too short to tell
    ],
)
def test_other_languages_are_told(written, expected):
    rows = [comparison(f"u{n % 5}", n, chosen=f"{written} {n}", rejected=f"{n} {written}") for n in range(20)]
    assert severity(rows).get("languages") == (expected and "warning")


# The learning curve.


def test_a_power_law_is_found_and_turned_round():
    size = np.array([10.0, 20, 40, 80])
    auc = 0.9 - 0.6 * size**-0.5
    top, b, c = power_law(size, auc)
    assert (top, b, c) == pytest.approx((0.9, 0.6, 0.5), rel=1e-3)
    curve = _curve("users", np.column_stack([size, auc]), 100.0)
    # 0.9 − 0.6 n^−½ = 0.84 + 0.01 at n = 144
    assert curve.needed == pytest.approx(144, rel=0.01)
    assert curve.remark.endswith("another 0.01 would take about 44 more users, by its power law.")


def test_a_flat_curve_says_that_more_would_not_help():
    curve = _curve("answers", np.array([[10.0, 0.8], [20, 0.8], [40, 0.8], [80, 0.8]]), 80.0)
    assert curve.needed is None
    assert "would hardly bring another 0.01" in curve.remark


def test_more_people_are_better_and_the_same_seed_says_the_same(monkeypatch):
    monkeypatch.setattr("palate.doctor.curve._DRAWS", 1)
    rows = people(each=3, comparisons=24)
    feedback = Feedback(comparisons=[row.model_copy(update={"kind": None}) for row in rows])
    users, answers = learning_curves(feedback, PlantedEncoder(), rank=4, seed=1)
    assert users.auc[-1] > users.auc[0] + 0.02
    assert users.auc[-1] == answers.auc[-1]
    assert users.have == 18
    assert answers.have == 24
    assert learning_curves(feedback, PlantedEncoder(), rank=4, seed=1) == [users, answers]


def test_a_learning_curve_needs_people():
    with pytest.raises(InputError, match="needs 8 users of 8 kinds and 8 prompts, not 24 and 20"):
        learning_curves(Feedback(comparisons=people()), PlantedEncoder())  # of six kinds
