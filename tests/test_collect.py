"""Laws of the design (who is asked about which pair), and sheets that go out and come back filled in."""

import json
import random
import warnings
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.cli_support import palate

from palate.errors import FeedbackError, InputError
from palate.feedback import Comparison, Message, read_feedback
from palate.feedback.design import Candidates, Design, design
from palate.feedback.sheets import people_named, questions, read_candidates, read_sheets, write_sheets

CANDIDATES = [
    Candidates(f"Question {number}?", [f"Answer {k} to {number}: {'x' * (3 * k)}" for k in range(6)])
    for number in range(30)
]
numbers = st.tuples(st.integers(2, 12), st.integers(1, 12), st.integers(2, 12), st.integers(0, 5))


@given(numbers)
def test_laws_of_a_design(said):
    people, answers, overlap, seed = said
    needed = people * answers // max(overlap, 1)
    possible = overlap <= people and needed * (overlap - 1) >= people - 1
    if not possible:
        with pytest.raises(InputError):
            design(CANDIDATES, people, answers, overlap, seed=seed)
        return
    made = design(CANDIDATES, people, answers, overlap, seed=seed)
    # Each pair once, to exactly K people, nobody twice.
    assert made.people.shape == (needed, overlap)
    assert all(len(set(row)) == overlap for row in made.people.tolist())
    pairs = {(pair.prompt, *sorted((pair.one, pair.other))) for pair in made.pairs}
    assert len(pairs) == needed
    assert all(pair.one != pair.other for pair in made.pairs)
    # Each person n, or one less where the numbers do not divide.
    assert set(made.answers().tolist()) <= {answers, answers - 1}
    assert people * answers % overlap or set(made.answers().tolist()) == {answers}
    # Everybody linked: who can be reached from the first, by hand.
    reached, rows = {0}, [set(row) for row in made.people.tolist()]
    while grown := set().union(*(row for row in rows if row & reached)) - reached:
        reached |= grown
    assert reached == set(range(people))
    assert made.connected()
    shared = Counter(tuple(sorted(pair)) for row in made.people.tolist() for pair in combinations(row, 2))
    assert all(made.shared()[i, j] == shared[i, j] for i, j in combinations(range(people), 2))


def test_people_share_about_equally_many_pairs():
    shared = design(CANDIDATES, 20, 40, 5, seed=1).shared()[np.triu_indices(20, 1)]
    at_random = np.zeros((20, 20))
    rng = np.random.default_rng(0)
    for _ in range(160):
        row = rng.choice(20, 5, replace=False)
        at_random[np.ix_(row, row)] += 1
    assert shared.std() < 0.4 * at_random[np.triu_indices(20, 1)].std()
    assert shared.min() >= 6
    assert shared.max() <= 11


def test_prompts_are_used_alike():
    used = Counter(pair.prompt for pair in design(CANDIDATES, 10, 20, 4).pairs)
    assert set(used.values()) <= {1, 2}
    assert len(used) == 30


def test_same_seed_same_design():
    one, two, other = (design(CANDIDATES, 10, 12, 3, seed=seed) for seed in (1, 1, 2))
    assert one.pairs == two.pairs != other.pairs
    assert (one.people == two.people).all()


def test_pairs_of_equal_length_on_request():
    def ratio(made: Design) -> float:
        sizes = [[len(str(CANDIDATES[p.prompt].completions[side])) for side in (p.one, p.other)] for p in made.pairs]
        return float(np.mean(np.abs(np.diff(np.log(sizes)))))

    balanced = design(CANDIDATES, 10, 24, 4, balance_length=True)
    assert ratio(balanced) < 0.6 * ratio(design(CANDIDATES, 10, 24, 4))
    per_prompt = [p for p in balanced.pairs if p.prompt == 0]  # lengths grow: neighbours in length are in number
    assert {abs(p.one - p.other) for p in per_prompt} == {1}


@pytest.mark.parametrize(
    ("people", "answers", "overlap", "message"),
    [
        (4, 10, 5, "Overlap 5 is not in 2 to 4, the number of people; give each pair to so many"),
        (4, 10, 1, "Overlap 1 is not in 2 to 4, the number of people; give each pair to so many"),
        (
            10,
            1,
            2,
            "With 1 answers each and an overlap of 2, 10 people cannot all be linked; raise the answers or the overlap",
        ),
        (
            100,
            100,
            2,
            "The candidates make 450 pairs, fewer than the 5000 that these people, answers and overlap take; give more "
            "candidates, or raise the overlap",
        ),
    ],
)
def test_numbers_that_do_not_fit(people, answers, overlap, message):
    with pytest.raises(InputError) as error:
        design(CANDIDATES, people, answers, overlap)
    assert str(error.value) == message


# Sheets.


def test_sides_are_at_random_and_each_pair_is_seen_both_ways():
    made = design(CANDIDATES, 12, 30, 4, seed=3)
    sheets = questions(made, CANDIDATES, [f"p{i}" for i in range(12)], seed=3)
    assert [len(sheet) for sheet in sheets] == made.answers().tolist()
    seen: dict[frozenset[str], Counter[str]] = {}
    for sheet in sheets:
        for row in sheet:
            both = frozenset((str(row["response_a"]), str(row["response_b"])))
            seen.setdefault(both, Counter())[str(row["response_a"])] += 1
    assert {tuple(count.values()) for count in seen.values()} == {(2, 2)}
    firsts = [row["response_a"] for row in sheets[0]]
    lower = [min(str(row["response_a"]), str(row["response_b"])) for row in sheets[0]]
    assert 5 < sum(a == b for a, b in zip(firsts, lower, strict=True)) < 25
    assert questions(made, CANDIDATES, [f"p{i}" for i in range(12)], seed=3) == sheets


def lines(path: Path, *rows) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def test_candidates_in_both_forms(tmp_path):
    spoken: list[Message] = [{"role": "assistant", "content": "Hello!"}]
    one = lines(
        tmp_path / "a.jsonl",
        {"prompt": "Hi", "completions": ["Hello!", "What?", "Hello!"]},
        {"prompt": "Alone", "completions": ["x"]},
    )
    two = lines(
        tmp_path / "b.jsonl",
        {"prompt": "Bye", "completion": "So long"},
        {"prompt": "Hi", "completion": "Hey"},
        {"prompt": "Bye", "completion": spoken},
    )
    assert read_candidates([one, two]) == [
        Candidates("Hi", ["Hello!", "What?", "Hey"]),
        Candidates("Bye", ["So long", spoken]),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Hi"}, "{'prompt': 'Hi'} is no candidate; "),
        ({"completions": ["a", "b"]}, "{'completions': ['a', 'b']} is no candidate; "),
        ({"prompt": "Hi", "completions": ["a", " "]}, "{'prompt': 'Hi', 'completions': ['a', ' ']} is no candidate; "),
        ({"prompt": "Hi", "completion": 3}, "{'prompt': 'Hi', 'completion': 3} is no candidate; "),
        ("{", "not JSON (Expecting property name enclosed in double quotes at column 2); "),
    ],
)
def test_what_is_no_candidate(tmp_path, row, message):
    path = lines(tmp_path / "a.jsonl", {"prompt": "Hi", "completions": ["a", "b"]}, row)
    with pytest.raises(FeedbackError) as error:
        read_candidates([path])
    assert str(error.value).startswith(f"{path}:2: {message}")


def test_nothing_to_compare(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"prompt": "Hi", "completion": "a"})
    with pytest.raises(FeedbackError, match=r"No prompt in .*a.jsonl has two completions to compare; give two or more"):
        read_candidates([path])


def test_people_by_name(tmp_path):
    assert people_named("12")[:2] == ["person-01", "person-02"]
    names = tmp_path / "names.txt"
    names.write_text("Ana\n\n Zoë \n")
    assert people_named(str(names)) == ["Ana", "Zoë"]
    names.write_text("Ana\nBo\nAna\n")
    with pytest.raises(FeedbackError, match=f"The name 'Ana' stands twice in {names}; give everybody a name of"):
        people_named(str(names))
    with pytest.raises(FeedbackError, match="'0' is neither a number of people nor a file of names, one a line"):
        people_named("0")


def test_sheets_never_replace_others(tmp_path):
    sheets = [[{"user_id": "a/b c"}], [{"user_id": "a:b:c"}]]
    written = write_sheets(sheets, tmp_path / "new" / "folder")
    assert [path.name for path in written] == ["1-a-b-c.jsonl", "2-a-b-c.jsonl"]
    with pytest.raises(FeedbackError, match="folder is there already, perhaps filled in; choose another place"):
        write_sheets(sheets, tmp_path / "new" / "folder")
    assert write_sheets(sheets, tmp_path / "all.jsonl") == [tmp_path / "all.jsonl"]
    assert len((tmp_path / "all.jsonl").read_text().splitlines()) == 2


QUESTION = {"user_id": "ann", "prompt": "Hi", "response_a": "Hello!", "response_b": "What?"}


@pytest.mark.parametrize(
    ("choice", "columns"),
    [
        ("a", {"chosen": "Hello!", "rejected": "What?", "chosen_position": "a"}),
        (" B ", {"chosen": "What?", "rejected": "Hello!", "chosen_position": "b"}),
        ("tie", {"chosen": "Hello!", "rejected": "What?", "strength": 0.5}),
    ],
)
def test_what_a_filled_sheet_says(tmp_path, choice, columns):
    row = {**QUESTION, "chosen_position": choice, "created_at": "2025-01-01T00:00:00Z", "kind": None}
    path = lines(tmp_path / "a.jsonl", row, {**QUESTION, "chosen_position": None}, {**QUESTION, "chosen_position": ""})
    expected = Comparison(user_id="ann", prompt="Hi", created_at="2025-01-01T00:00:00Z", **columns)
    assert read_sheets([path]) == ([expected], 2)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**QUESTION, "chosen_position": "left"}, "chosen_position 'left' is not a, b or tie; correct it"),
        ({**QUESTION, "chosen_position": 1}, "chosen_position 1 is not a, b or tie; correct it"),
        ({"user_id": "ann"}, "{'user_id': 'ann'} is no question; give a sheet that palate collect wrote"),
        (
            {**QUESTION, "chosen_position": "a", "user_id": ""},
            "user_id '' is not a non-empty string; give it a name",
        ),
    ],
)
def test_what_is_no_answer(tmp_path, row, message):
    path = lines(tmp_path / "a.jsonl", {**QUESTION, "chosen_position": "a"}, row)
    with pytest.raises(FeedbackError) as error:
        read_sheets([path])
    assert str(error.value) == f"{path}:2: {message}"


# The command, there and back.


@pytest.fixture
def candidates(tmp_path) -> Path:
    rows = [{"prompt": c.prompt, "completions": list(c.completions)} for c in CANDIDATES]
    return lines(tmp_path / "candidates.jsonl", *rows)


def test_there_and_back(tmp_path, candidates):
    words = ["collect", candidates, "--people", "8", "--answers", "15", "--overlap", "4", "--json"]
    told = palate(*words, "--output", tmp_path / "sheets").json
    assert (told["people"], told["pairs"], told["overlap"], told["answers"]) == (8, 30, 4, [15, 15])
    assert told["shared_pairs"][0] >= 4
    rng, answers = random.Random(0), []
    for sheet in map(Path, told["files"]):
        rows = [json.loads(line) for line in sheet.read_text("utf-8").splitlines()]
        for row in rows:
            row["chosen_position"] = rng.choice("ab")
        answers += rows
        lines(sheet, *rows)
    output = tmp_path / "comparisons.jsonl"
    filled = palate("collect", "--filled", *told["files"], "--output", output, "--json").json
    assert filled == {"output": str(output), "comparisons": 120, "unanswered": 0}
    read = read_feedback(output).comparisons
    assert [(r.user_id, r.prompt, r.chosen, r.chosen_position) for r in read] == [
        (a["user_id"], a["prompt"], a[f"response_{a['chosen_position']}"], a["chosen_position"]) for a in answers
    ]
    figures = json.loads(palate("check", output, "--json").out)["figures"]
    assert (figures["raters_per_pair"], figures["shared_pairs"]) == (4, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whatever its own dependencies say at import
        import datasets
    datasets.disable_progress_bars()
    columns = datasets.load_dataset("json", data_files=str(output), split="train", cache_dir=str(tmp_path)).column_names
    assert set(columns) == {"user_id", "prompt", "chosen", "rejected", "chosen_position"}


def test_the_same_seed_writes_the_same_sheets(tmp_path, candidates):
    for name, seed in (("one", 5), ("two", 5), ("other", 6)):
        palate(
            *("collect", candidates, "--people", "6", "--answers", "10", "--overlap", "3", "--seed", seed),
            *("--output", tmp_path / f"{name}.jsonl"),
        )
    one, two, other = ((tmp_path / f"{name}.jsonl").read_text() for name in ("one", "two", "other"))
    assert one == two != other


def test_half_filled_sheets_say_so(tmp_path, candidates):
    ran = palate("collect", candidates, "--people", "5", "--answers", "6", "--output", tmp_path / "all.jsonl")
    assert ran.out.startswith("6 pairs, each to 5 of 5 people; 6 each; two people share 6 to 6\nWritten to ")
    words = ["collect", "--filled", tmp_path / "all.jsonl", "--output", tmp_path / "out.jsonl"]
    assert palate(*words).failure == ("None of 30 questions is answered; fill in chosen_position with a, b or tie")
    rows = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    lines(tmp_path / "all.jsonl", *[row | {"chosen_position": "tie"} for row in rows[:3]], *rows[3:])
    ran = palate(*words)
    assert (ran.status, ran.line) == (0, "27 questions are not answered yet, and left out")
    assert ran.out == f"3 comparisons written to {tmp_path / 'out.jsonl'}\n"


def test_how_many_people_must_be_said(tmp_path, candidates):
    assert palate("collect", candidates, "--output", tmp_path / "out").usage == (
        "--people: say how many, or give a file of names, one a line"
    )
