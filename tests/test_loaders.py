"""Public data sets, read from tiny local copies of their layouts: the same files that the hub would serve."""

import json
import warnings
from collections import Counter
from datetime import UTC, datetime

import numpy as np
import pytest

from palate.errors import FeedbackError, InputError
from palate.feedback import Comparison, Feedback, Message, as_text, from_rows, read_feedback
from palate.feedback.loaders import KNOWN, known, load_multipref, load_personalllm, load_prism
from palate.feedback.loaders.personalllm import Crowd


@pytest.fixture(autouse=True)
def datasets(tmp_path_factory, monkeypatch):
    """The library, keeping what it prepares away from the home directory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whatever its own dependencies say at import
        import datasets
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    return datasets


def lines(path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


# PRISM.


def model(turn: int, number: int, content: str, score: int, chosen: bool) -> dict[str, object]:
    return {
        "turn": turn,
        "role": "model",
        "content": content,
        "model_name": f"model-{number}",
        "model_provider": "lab",
        "score": score,
        "if_chosen": chosen,
        "within_turn_id": number,
    }


def user(turn: int, content: str) -> dict[str, object]:
    blank = dict.fromkeys(("model_name", "model_provider", "score", "if_chosen", "within_turn_id"))
    return {"turn": turn, "role": "user", "content": content, **blank}


CONVERSATIONS = [
    {
        "conversation_id": "c0",
        "user_id": "user0",
        "conversation_type": "unguided",
        "generated_datetime": "2023-11-24 20:21:09",
        "opening_prompt": "Is tea better?",
        "conversation_turns": 2,
        "conversation_history": [
            user(0, "Is tea better?"),
            model(0, 0, "Yes.", 90, True),
            model(0, 1, "No.", 20, False),
            model(0, 2, "It depends.", 55, False),
            model(0, 3, "", 1, False),  # a model that gave nothing
            user(1, "Why?"),
            model(1, 0, "It keeps.", 70, True),
            model(1, 1, "It is warm.", 60, False),
        ],
    },
    {
        "conversation_id": "c1",
        "user_id": "user1",
        "conversation_type": "values guided",
        "generated_datetime": "2023-12-01 08:00:00",
        "opening_prompt": "Hello",
        "conversation_turns": 3,
        "conversation_history": [
            user(0, "Hello"),
            model(0, 0, "Hi!", 80, True),
            model(0, 1, "Hi!", 80, True),  # two chosen that are the same
            model(0, 2, "Good day.", 40, False),
            user(1, "Who are you?"),
            model(1, 0, "A model.", 50, False),  # none chosen: what came next is not known
            model(1, 1, "A program.", 50, False),
            user(2, "Bye"),
            model(2, 0, "Bye!", 50, True),
            model(2, 1, "So long!", 40, False),
        ],
    },
]
PRISM_CARD = """---
configs:
- config_name: survey
  data_files: "survey.jsonl"
- config_name: conversations
  data_files: "conversations.jsonl"
- config_name: utterances
  data_files: "utterances.jsonl"
---
"""


@pytest.fixture
def prism(tmp_path):
    folder = tmp_path / "prism-alignment"
    folder.mkdir()
    (folder / "README.md").write_text(PRISM_CARD)
    lines(folder / "conversations.jsonl", CONVERSATIONS)
    lines(folder / "survey.jsonl", [{"user_id": "user0", "age": "25-34"}])
    lines(folder / "utterances.jsonl", [{"utterance_id": "ut0", "user_id": "user0"}])
    return folder


def said(role: str, content: str) -> list[Message]:
    return [{"role": role, "content": content}]


def test_prism_choices_carry_the_turns_before(prism):
    rows = load_prism(str(prism)).comparisons
    assert [(row.user_id, as_text(row.chosen), as_text(row.rejected)) for row in rows] == [
        ("user0", "Yes.", "No."),
        ("user0", "Yes.", "It depends."),
        ("user0", "It keeps.", "It is warm."),
        ("user1", "Hi!", "Good day."),
    ]
    assert rows[0].prompt == said("user", "Is tea better?")
    assert rows[2].prompt == said("user", "Is tea better?") + said("assistant", "Yes.") + said("user", "Why?")
    assert rows[2].chosen == said("assistant", "It keeps.")
    assert rows[0].created_at == datetime(2023, 11, 24, 20, 21, 9, tzinfo=UTC)
    assert {row.split for row in rows} == {None}


def test_prism_scores_are_ratings(prism):
    feedback = load_prism(str(prism), evidence="scores")
    assert feedback.comparisons == []
    assert [row.score for row in feedback.ratings] == [0.9, 0.2, 0.55, 0.7, 0.6, 0.8, 0.8, 0.4, 0.5, 0.5]
    assert feedback.ratings[0].prompt == said("user", "Is tea better?")


def test_a_folder_of_the_name_is_known(prism):
    assert read_feedback(prism) == load_prism(str(prism))


def test_another_layout_is_refused(tmp_path):
    lines(tmp_path / "conversations.jsonl", [{"user_id": "user0", "text": "Hi"}])
    (tmp_path / "README.md").write_text(PRISM_CARD.replace("survey.jsonl", "*").replace("utterances.jsonl", "*"))
    with pytest.raises(FeedbackError, match="has no column 'conversation_history'; give the data set as it is on"):
        load_prism(str(tmp_path))


# MultiPref.


def annotation(
    evaluator: str, overall: str, helpful: str = "Tie", timestamp: str = "2024-06-21 15:34:48"
) -> dict[str, str]:
    return {"evaluator": evaluator, "overall_pref": overall, "helpful_pref": helpful, "timestamp": timestamp}


@pytest.fixture
def multipref(tmp_path, datasets):
    folder = tmp_path / "multipref"
    (folder / "data").mkdir(parents=True)
    shared = {"prompt_id": "p", "text": "Who would win?", "model_a": "one", "model_b": "two", "source": "wildchat"}
    rows = [
        {
            "comparison_id": "d0",
            **shared,
            "completion_a": "The team.",
            "completion_b": "The other team.",
            "normal_worker_annotations": [
                annotation("n5", "A-is-clearly-better", helpful="B-is-slightly-better"),
                annotation("n7", "Tie"),
            ],
            "expert_worker_annotations": [
                annotation("e2", "B-is-slightly-better"),
                annotation("e3", "", timestamp="unknown"),
            ],
        },
        {
            "comparison_id": "d1",
            **shared,
            "completion_a": "The same.",
            "completion_b": "The same.",
            "normal_worker_annotations": [annotation("n5", "A-is-slightly-better")],
            "expert_worker_annotations": [],
        },
    ]
    datasets.Dataset.from_list(rows).to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n---\n"
    )
    return folder


def test_multipref_judges_are_users(multipref):
    rows = load_multipref(str(multipref)).comparisons
    told = [(r.user_id, r.chosen, r.rejected, r.strength, r.chosen_position) for r in rows]
    assert told == [
        ("n5", "The team.", "The other team.", 1.0, "a"),
        ("n7", "The team.", "The other team.", 0.5, None),
        ("e2", "The other team.", "The team.", 0.75, "b"),
    ]
    assert rows[0].created_at == datetime(2024, 6, 21, 15, 34, 48, tzinfo=UTC)
    assert read_feedback(multipref).comparisons == rows


def test_multipref_by_another_aspect(multipref):
    rows = load_multipref(str(multipref), aspect="helpful", slightly=0.6).comparisons
    assert [(r.user_id, r.strength) for r in rows] == [("n5", 0.6), ("n7", 0.5), ("e2", 0.5), ("e3", 0.5)]
    assert rows[-1].created_at is None  # "unknown"
    with pytest.raises(InputError, match=r"slightly 0.5 is not in \(0.5, 1\]"):
        load_multipref(str(multipref), slightly=0.5)


# PersonalLLM.

JUDGES = ("gemma_2b", "oasst_pythia_1b")


def answered(number: int, rng) -> dict[str, object]:
    row: dict[str, object] = {"prompt": f"prompt {number}", "subset": "help", "prompt_id": number}
    for k in range(1, 9):
        row |= {f"response_{k}": f"answer {k} to {number}", f"response_{k}_model": f"model {k}"}
        # One judge likes late answers, the other early ones, on scales of their own.
        row |= {f"response_{k}_gemma_2b": 10.0 * k + rng.normal(), f"response_{k}_oasst_pythia_1b": -0.1 * k}
    return row


@pytest.fixture
def personalllm(tmp_path, datasets):
    folder = tmp_path / "PersonalLLM"
    (folder / "data").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, numbers in (("train", range(12)), ("test", range(12, 20))):
        rows = [answered(number, rng) for number in numbers]
        datasets.Dataset.from_list(rows).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n"
        "  - split: test\n    path: data/test-*\n---\n"
    )
    return folder


def test_personalllm_people_choose_by_their_reward_models(personalllm):
    crowd = Crowd(users=30, new_users=10, answers=8, alpha=1e-3)  # each heeds one reward model alone
    rows = load_personalllm(str(personalllm), crowd).comparisons
    ways: dict[str, set[bool]] = {}
    for row in rows:
        late, early = (int(str(text).split()[1]) for text in (row.chosen, row.rejected))
        ways.setdefault(row.user_id, set()).add(late > early)
    assert all(len(way) == 1 for way in ways.values())
    assert len({frozenset(way) for way in ways.values()}) == 2  # and both kinds of people there are


def test_personalllm_splits_people_and_prompts(personalllm):
    rows = load_personalllm(str(personalllm), Crowd(users=5, new_users=4, answers=8)).comparisons
    by_split = {split: [row for row in rows if row.split == split] for split in ("train", "adapt", "test")}
    assert Counter(row.split for row in rows) == {"train": 40, "adapt": 16, "test": 16}
    users = {split: {row.user_id for row in part} for split, part in by_split.items()}
    assert users["adapt"] == users["test"]
    assert not users["train"] & users["test"]
    prompts = {split: {str(row.prompt) for row in part} for split, part in by_split.items()}
    assert not prompts["train"] & (prompts["adapt"] | prompts["test"])
    for one in users["test"]:
        asked, tested = ({row.prompt for row in by_split[s] if row.user_id == one} for s in ("adapt", "test"))
        assert not asked & tested


def test_personalllm_same_seed_same_people(personalllm):
    one, two, other = (load_personalllm(str(personalllm), Crowd(5, 2, 6, seed=seed)) for seed in (1, 1, 2))
    assert one == two != other
    assert len(read_feedback(personalllm)) == (200 + 100) * 80


@pytest.mark.parametrize("wrong", [{"users": -1}, {"answers": 0}, {"alpha": 0.0}, {"alpha": float("nan")}])
def test_impossible_crowds_are_refused(wrong):
    with pytest.raises(InputError, match="cannot be simulated; give users from 0"):
        Crowd(**wrong)


def test_personalllm_in_another_layout_is_refused(tmp_path):
    lines(tmp_path / "train.jsonl", [{"prompt": "Hi", "response_1": "Hello"}])
    with pytest.raises(FeedbackError, match="has no columns prompt, response_1, response_1_NAME"):
        load_personalllm(str(tmp_path))


# By name on the hub.


@pytest.mark.parametrize("name", KNOWN)
def test_names_on_the_hub_are_asked_for(name, monkeypatch, datasets):
    asked = []

    def unreachable(*words):
        asked.append(words)
        raise ConnectionError

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(FeedbackError, match=f"{name} is no file here and did not come from the Hugging Face hub"):
        read_feedback(name)
    assert asked[0][0] == name
    assert known(name) is KNOWN[name]
    assert known(name + "2") is None


# Any other set.


def test_a_copy_of_any_set_is_read_with_its_splits(tmp_path, datasets):
    row = {"annotator": "ann", "prompt": "Hi", "better": "Hello!", "worse": "What?"}
    for split in ("train", "test"):
        datasets.Dataset.from_list([row]).to_parquet(tmp_path / f"{split}.parquet")
    columns = {"user_id": "annotator", "chosen": "better", "rejected": "worse"}
    said = read_feedback(tmp_path, columns=columns).comparisons
    expected = Comparison(user_id="ann", prompt="Hi", chosen="Hello!", rejected="What?")
    assert [row.model_copy(update={"split": None}) for row in said] == [expected, expected]
    assert {row.split for row in said} == {"train", "test"}


def test_columns_named_override_a_known_layout(prism):
    with pytest.raises(FeedbackError):
        read_feedback(prism, columns={"prompt": "opening_prompt"})  # it is not read as PRISM then


def test_a_column_of_ours_that_is_named_elsewhere_is_not_read(tmp_path):
    row = {"user_id": "the set's own number", "rater": "ann", "prompt": "Hi", "completion": "Hello!", "score": 1}
    lines(tmp_path / "a.jsonl", [row])
    assert read_feedback(tmp_path / "a.jsonl", columns={"user_id": "rater"}).ratings[0].user_id == "ann"


def test_bad_lines_of_renamed_columns_are_collected(tmp_path):
    lines(tmp_path / "a.jsonl", [{"rater": "ann"}, {"other": 1}])
    read: Feedback = read_feedback(tmp_path / "a.jsonl", columns={"user_id": "rater"}, skip_bad_lines=True)
    assert [line.partition(": ")[2] for line in read.bad_lines] == [
        "the row has none of the columns chosen, rejected, score, reply; name the columns as TRL does",
        "there is no column 'rater'; the row has 'other'",
    ]


HELLO, MORE = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi. And?"}
ONE, TWO = {"role": "assistant", "content": "One"}, {"role": "assistant", "content": "Two"}


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ([HELLO, ONE], [HELLO, TWO], [HELLO]),
        ([HELLO, MORE, HELLO, ONE], [HELLO, MORE, HELLO, TWO], [HELLO, MORE, HELLO]),
        ([HELLO, ONE, HELLO, ONE], [HELLO, TWO], [HELLO]),
    ],
)
def test_an_implicit_prompt_is_what_both_begin_with(chosen, rejected, prompt):
    row = {"user_id": "ann", "chosen": chosen, "rejected": rejected}
    read = from_rows([row], source="rows").comparisons[0]
    assert (read.prompt, [*prompt, *read.chosen], [*prompt, *read.rejected]) == (prompt, chosen, rejected)


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        ([ONE], [TWO], "prompt is missing; a comparison needs user_id, prompt, chosen, rejected"),
        ("One", "Two", "prompt is missing; a comparison needs user_id, prompt, chosen, rejected"),
        ([HELLO, ONE], [HELLO, ONE], "chosen and rejected are the same, which tells nothing; leave the row out"),
    ],
)
def test_no_prompt_is_invented(chosen, rejected, reason):
    with pytest.raises(FeedbackError, match=reason):
        from_rows([{"user_id": "ann", "chosen": chosen, "rejected": rejected}], source="rows")
