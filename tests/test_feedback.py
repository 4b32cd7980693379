"""Feedback records and files: what is read, what is refused and in which words, and that nothing is lost."""

import gzip
import json
import warnings
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from palate.errors import FeedbackError
from palate.feedback import (
    Comparison,
    Message,
    Rating,
    Record,
    Reply,
    as_text,
    from_rows,
    read_feedback,
    write_jsonl,
)

COMPARISON = {"user_id": "ann", "prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}
RATING = {"user_id": "ann", "prompt": "Hi", "completion": "Hello!", "score": 0.75}
REPLY = {"user_id": "ann", "prompt": "Hi", "completion": "Hello!", "reply": "Too short."}
TEXT_RULE = "give a string or a list of {'role': string, 'content': string}"


def spoken(content: str, role: str = "assistant") -> list[Message]:
    return [{"role": role, "content": content}]


def lines(path, *rows) -> str:
    """Write rows, dicts or raw strings, one a line; the path as text, for `read_feedback` and messages."""
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return str(path)


def refusal(action) -> str:
    with pytest.raises(FeedbackError) as error:
        action()
    assert "\n" not in str(error.value)
    return str(error.value)


def reason(row) -> str:
    """Why a row is refused, without its place."""
    message = refusal(lambda: from_rows([row], source="rows"))
    assert message.startswith("rows:1: ")
    return message.removeprefix("rows:1: ")


# What a row is.


def test_a_row_is_told_by_its_columns():
    feedback = from_rows([COMPARISON, RATING, REPLY, REPLY], source="rows")
    assert feedback.comparisons == [Comparison(**COMPARISON)]
    assert feedback.ratings == [Rating(**RATING)]
    assert feedback.replies == [Reply(**REPLY)] * 2
    assert len(feedback) == 4


def test_none_counts_as_absent_and_further_columns_are_ignored():
    nothing = dict.fromkeys(["score", "reply", "strength", "kind", "created_at", "split", "completion"])
    feedback = from_rows([{**nothing, **COMPARISON, "score_chosen": 9}], source="rows")
    assert feedback.comparisons == [Comparison(**COMPARISON)]
    assert feedback.comparisons[0].strength == 1.0


def test_a_record_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        Rating(**RATING).score = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"user_id": "ann", "prompt": "Hi"},
            "the row has none of the columns chosen, rejected, score, reply; name the columns as TRL does",
        ),
        (
            {**COMPARISON, **RATING},
            "the row is a comparison and a rating at once; give each a row of its own",
        ),
        (
            {"user_id": "ann", "prompt": "Hi", "chosen": "Hello!"},
            "rejected is missing; a comparison needs user_id, prompt, chosen, rejected",
        ),
        (
            {**RATING, "user_id": None},
            "user_id is missing; a rating needs user_id, prompt, completion, score",
        ),
        (["ann"], "['ann'] is not an object; write one {\"user_id\": ..., ...} a line"),
    ],
)
def test_a_row_that_is_no_record_is_refused(row, message):
    assert reason(row) == message


# Users and groups.


@pytest.mark.parametrize("user", ["ann", "🦊", "مستخدم", "a b", " ", "x" * 256, "null"])
def test_any_short_string_names_a_user(user):
    assert Rating(**{**RATING, "user_id": user}).user_id == user


def test_an_integer_names_a_user():
    assert Rating(**{**RATING, "user_id": 7}) == Rating(**{**RATING, "user_id": "7"})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user_id": ""}, "user_id '' is not a non-empty string; give it a name"),
        ({"user_id": 1.0}, "user_id 1.0 is not a non-empty string; give it a name"),
        ({"user_id": True}, "user_id True is not a non-empty string; give it a name"),
        ({"kind": ""}, "kind '' is not a non-empty string; give it a name"),
        (
            {"user_id": "x" * 257},
            f"user_id '{'x' * 56}... has 257 characters, more than 256; shorten it",
        ),
        ({"user_id": "a\0b"}, "user_id has a NUL character at position 1; remove it"),
        ({"user_id": "\ud83e"}, "user_id has a lone surrogate at position 0; remove it"),
    ],
)
def test_other_names_are_refused(columns, message):
    assert reason({**RATING, **columns}) == message


# Texts.


def test_prompts_may_be_empty_and_conversational():
    conversation = [*spoken("Hi", "user"), *spoken("Hello!")]
    for prompt in ("", [], conversation):
        assert Comparison(**{**COMPARISON, "prompt": prompt}).prompt == prompt


def test_conversational_completions_are_kept_without_further_keys():
    row = {**COMPARISON, "chosen": [{**spoken("Hello!")[0], "name": None}], "rejected": spoken("What?")}
    assert Comparison(**row).chosen == spoken("Hello!")


def test_control_characters_other_than_nul_are_kept():
    text = "bell\a tab\t line\u2028 \x85 \ufeff \x1b[1m"
    assert Rating(**{**RATING, "completion": text}).completion == text


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"chosen": ""}, "chosen is empty; leave the row out"),
        ({"chosen": " \n"}, "chosen is empty; leave the row out"),
        ({"chosen": []}, "chosen is empty; leave the row out"),
        ({"chosen": spoken("")}, "chosen is empty; leave the row out"),
        (
            {"chosen": "What?"},
            "chosen and rejected are the same, which tells nothing; leave the row out",
        ),
        (
            {"chosen": spoken("Hello!")},
            "one of chosen and rejected is a string and the other a conversation, which gives the choice "
            "away; give both in one form",
        ),
        ({"prompt": 3}, f"prompt 3 is not a text; {TEXT_RULE}"),
        ({"prompt": ["Hi"]}, f"prompt ['Hi'] is not a text; {TEXT_RULE}"),
        (
            {"prompt": [{"role": "user", "content": None}]},
            f"prompt [{{'role': 'user', 'content': None}}] is not a text; {TEXT_RULE}",
        ),
        ({"prompt": {"a": "x" * 99}}, f"prompt {{'a': '{'x' * 50}... is not a text; {TEXT_RULE}"),
        ({"rejected": "a\0"}, "rejected has a NUL character at position 1; remove it"),
        ({"rejected": spoken("\udc00")}, "rejected has a lone surrogate at position 0; remove it"),
    ],
)
def test_texts_that_cannot_serve_are_refused(columns, message):
    assert reason({**COMPARISON, **columns}) == message


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ("", "reply is empty; leave the row out"),
        (["Thanks"], "reply ['Thanks'] is not a string; give the text that was typed"),
    ],
)
def test_a_reply_is_what_was_typed(reply, message):
    assert reason({**REPLY, "reply": reply}) == message


def test_a_conversation_as_text():
    assert as_text("plain") == "plain"
    assert as_text(spoken("Hello!")) == "Hello!"
    assert as_text([*spoken("Be kind", "system"), *spoken("Hi", "user")]) == "system: Be kind\nuser: Hi"
    assert as_text([]) == ""


# Numbers, words and times.


@pytest.mark.parametrize("value", [1.7, -0.01, float("nan"), float("inf"), True, "0.5", 10**400])
def test_scores_and_satisfactions_are_numbers_from_0_to_1(value):
    shown = repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."
    assert reason({**RATING, "score": value}) == f"score {shown} is not a number in [0, 1]; rescale it"
    assert reason({**REPLY, "satisfaction": value}) == f"satisfaction {shown} is not a number in [0, 1]; rescale it"


@pytest.mark.parametrize("value", [0, 1, 0.5, np.float32(0.5), np.float64(1), np.int64(0)])
def test_any_number_type_will_do(value):
    score = Rating(**{**RATING, "score": value}).score
    assert score == value
    assert type(score) is float


@pytest.mark.parametrize("value", [0.49, 1.01, float("nan"), float("inf")])
def test_strength_is_a_number_from_a_half_to_1(value):
    assert reason({**COMPARISON, "strength": value}) == (
        f"strength {value!r} is not a number in [0.5, 1]; swap chosen and rejected to turn it round"
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {**COMPARISON, "split": "dev"},
            "split 'dev' is not 'train', 'adapt' or 'test'; correct or drop it",
        ),
        (
            {**COMPARISON, "chosen_position": "left"},
            "chosen_position 'left' is not 'a' or 'b'; correct or drop it",
        ),
        (
            {**REPLY, "target": ["taste"]},
            "target ['taste'] is not 'taste', 'task', 'both' or 'none'; correct or drop it",
        ),
    ],
)
def test_words_from_a_list_are_checked(row, message):
    assert reason(row) == message


@pytest.mark.parametrize(
    "value",
    [
        "2024-05-01T12:00:00Z",
        "2024-05-01T14:00:00+02:00",
        "2024-05-01 12:00",
        1714564800,
        1714564800.0,
        datetime(2024, 5, 1, 12),
        datetime(2024, 5, 1, 14, tzinfo=timezone(timedelta(hours=2))),
    ],
)
def test_times_come_out_in_utc(value):
    created_at = Rating(**{**RATING, "created_at": value}).created_at
    assert created_at == datetime(2024, 5, 1, 12, tzinfo=UTC)
    assert created_at.tzinfo is UTC


@pytest.mark.parametrize(
    "value", ["yesterday", "", 1e300, float("nan"), 1714564800000, True, "0001-01-01T00:00+09:00", ["now"]]
)
def test_other_times_are_refused(value):
    assert reason({**RATING, "created_at": value}) == (
        f"created_at {value!r} is not a time; give an ISO 8601 string or epoch seconds"
    )


# Files.


def test_reading_stops_at_the_first_bad_line(tmp_path):
    path = lines(tmp_path / "ratings.jsonl", RATING, "", {**RATING, "score": 1.7}, {**RATING, "score": 2})
    assert refusal(lambda: read_feedback([path])) == (f"{path}:3: score 1.7 is not a number in [0, 1]; rescale it")


def test_bad_lines_are_collected_when_skipped(tmp_path):
    path = lines(tmp_path / "a.jsonl", {**RATING, "score": 2}, RATING, '{"user_id": "an')
    feedback = read_feedback(path, skip_bad_lines=True)
    assert feedback.ratings == [Rating(**RATING)]
    assert feedback.bad_lines == [
        f"{path}:1: score 2 is not a number in [0, 1]; rescale it",
        f"{path}:3: not JSON (Unterminated string starting at column 13); write one whole object a line",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            b"[]",
            '[] is not an object; write one {"user_id": ..., ...} a line',
        ),
        (
            b"{",
            "not JSON (Expecting property name enclosed in double quotes at column 2); write one whole object a line",
        ),
        (b'{"user_id": "\xff"}', "byte 13 is not UTF-8; save the file as UTF-8"),
        (json.dumps(RATING).encode("utf-16"), "byte 0 is not UTF-8; save the file as UTF-8"),
        (
            b'{"user_id": "a", "score": NaN, "prompt": "", "completion": "c"}',
            "score nan is not a number in [0, 1]; rescale it",
        ),
    ],
)
def test_lines_that_are_no_json_objects_are_refused(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(line)
    assert refusal(lambda: read_feedback([path])) == f"{path}:1: {message}"


def test_json_nested_beyond_measure_is_refused(tmp_path):
    path = lines(tmp_path / "a.jsonl", "[" * 100_000)
    assert refusal(lambda: read_feedback([path])).startswith(f"{path}:1: not JSON (")


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(RATING).encode() + b"\r\n")
    assert read_feedback([path]).ratings == [Rating(**RATING)]


def test_several_files_are_read_in_order(tmp_path):
    first = lines(tmp_path / "a.jsonl", RATING)
    second = lines(tmp_path / "b.json", {**RATING, "user_id": "bob"}, COMPARISON)
    assert [row.user_id for row in read_feedback([first, second]).ratings] == ["ann", "bob"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "holds no records; give a file with one record a line"),
        ("a.jsonl", b"\n \n", "holds no records; give a file with one record a line"),
        (
            "a.jsonl",
            None,
            "cannot be read (No such file or directory); check the path and that the file is whole",
        ),
        (
            "a.jsonl.gz",
            b"plain",
            "cannot be read (Not a gzipped file (b'pl')); check the path and that the file is whole",
        ),
        (
            "a.jsonl.gz",
            gzip.compress(json.dumps(RATING).encode(), mtime=0)[:-9],
            "cannot be read (Compressed file ended before the end-of-stream marker was reached); "
            "check the path and that the file is whole",
        ),
        (
            "a.parquet",
            None,
            "cannot be read (No such file or directory); check the path and that the file is whole",
        ),
        (
            "a.csv",
            b"user_id,prompt\n",
            "is not feedback that Palate can read; give a .jsonl, .json, .jsonl.gz, .json.gz or .parquet "
            "file, or a Hugging Face data set",
        ),
    ],
)
def test_files_that_cannot_be_read_say_why(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    assert refusal(lambda: read_feedback([path])) == f"{path} {message}"


def test_a_broken_parquet_file_says_so(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 and then nothing of the kind")
    message = refusal(lambda: read_feedback([path], skip_bad_lines=True))
    assert message.startswith(f"{path} cannot be read (Parquet magic bytes not found in footer.")
    assert message.endswith("); check the path and that the file is whole")


# Parquet and Hugging Face data sets.


@pytest.fixture(scope="module")
def datasets():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whatever its own dependencies say at import
        import datasets

        datasets.disable_progress_bars()
    return datasets


MIXED: list[Mapping[str, object]] = [
    COMPARISON,
    RATING,
    {**REPLY, "created_at": datetime(2024, 5, 1, tzinfo=UTC)},
]


def test_parquet_fills_columns_with_nulls_and_reads_back(tmp_path, datasets):
    path = tmp_path / "mixed.parquet"
    columns = {column for row in MIXED for column in row}
    rows = [{column: row.get(column) for column in columns} for row in MIXED]
    datasets.Dataset.from_list(rows).to_parquet(path)
    assert read_feedback([path]) == from_rows(MIXED, source="rows")


def test_bad_parquet_rows_are_reported_by_number(tmp_path, datasets):
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_list([RATING, {**RATING, "score": 1.5}]).to_parquet(path)
    assert refusal(lambda: read_feedback([path])) == (f"{path}:2: score 1.5 is not a number in [0, 1]; rescale it")


def test_conversations_survive_a_data_set(tmp_path, datasets):
    row = {**COMPARISON, "prompt": spoken("Hi", "user"), "chosen": spoken("A"), "rejected": spoken("B")}
    data = datasets.Dataset.from_list([row])
    assert from_rows(data, source="memory").comparisons == [Comparison(**row)]
    data.save_to_disk(tmp_path / "folder")
    assert read_feedback([tmp_path / "folder"]).comparisons == [Comparison(**row)]


def test_a_data_sets_splits_name_the_rows_split(tmp_path, datasets):
    parts = {
        "test": [RATING],
        "other": [RATING],
        "adapt": [{**RATING, "split": "train"}],
        "train": [{**RATING, "score": 2.0}],
    }
    folder = tmp_path / "folder"
    datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in parts.items()}).save_to_disk(folder)
    feedback = read_feedback([folder], skip_bad_lines=True)
    assert [row.split for row in feedback.ratings] == ["test", None, "train"]
    assert feedback.bad_lines == [f"{folder}/train:1: score 2.0 is not a number in [0, 1]; rescale it"]


def test_a_folder_that_is_no_data_set_says_so(tmp_path):
    assert refusal(lambda: read_feedback([tmp_path])) == (
        f"{tmp_path} is a folder but not a Hugging Face data set (EmptyDatasetError); name the files in it one by one"
    )


def test_a_name_on_the_hub_is_asked_for_and_offline_says_so(monkeypatch, datasets):
    def unreachable(name):
        raise ConnectionError(f"Couldn't reach {name!r} on the Hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    assert refusal(lambda: read_feedback(["owner/name"])) == (
        "owner/name is no file here and did not come from the Hugging Face hub (ConnectionError); check the name"
    )


def test_a_data_set_on_the_hub_is_read(monkeypatch, datasets):
    hub = {"owner/name": datasets.DatasetDict(test=datasets.Dataset.from_list([RATING]))}
    monkeypatch.setattr(datasets, "load_dataset", hub.__getitem__)
    assert read_feedback("owner/name").ratings == [Rating(**RATING, split="test")]


# Round trips.

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
filled = texts.filter(str.strip)
conversations = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": filled}), min_size=1
)
shares = st.floats(0, 1)
common = {
    "user_id": texts.filter(bool).map(lambda text: text[:256]),
    "prompt": texts | st.lists(conversations, max_size=1).map(lambda some: some[0] if some else []),
}
optional = {
    "created_at": st.datetimes(timezones=st.just(UTC)),
    "split": st.sampled_from(["train", "adapt", "test"]),
}
kinds = {"kind": common["user_id"]}
pairs = (st.tuples(filled, filled) | st.tuples(conversations, conversations)).filter(lambda two: two[0] != two[1])
comparisons = st.builds(
    lambda two, row: Comparison(chosen=two[0], rejected=two[1], **row),
    pairs,
    st.fixed_dictionaries(
        common,
        optional={
            **optional,
            **kinds,
            "strength": st.floats(0.5, 1),
            "chosen_position": st.sampled_from(["a", "b"]),
        },
    ),
)
ratings = st.fixed_dictionaries(
    {**common, "completion": filled | conversations, "score": shares}, optional={**optional, **kinds}
).map(lambda row: Rating(**row))
replies = st.fixed_dictionaries(
    {**common, "completion": filled | conversations, "reply": filled},
    optional={**optional, "satisfaction": shares, "target": st.sampled_from(["taste", "none"])},
).map(lambda row: Reply(**row))


@given(
    st.lists(comparisons | ratings | replies, min_size=1, max_size=5),
    st.sampled_from(["a.jsonl", "a.json.gz", "A.JSONL.GZ"]),
)
def test_what_is_written_is_read_back(tmp_path_factory, records, name):
    path = tmp_path_factory.getbasetemp() / name
    write_jsonl(records, path)
    feedback = read_feedback([path])
    assert feedback.bad_lines == []
    for kind, read in (
        (Comparison, feedback.comparisons),
        (Rating, feedback.ratings),
        (Reply, feedback.replies),
    ):
        assert read == [record for record in records if isinstance(record, kind)]


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.jsonl"
    write_jsonl([Rating(**RATING)], path)

    def broken() -> Iterator[Record]:
        yield Reply(**REPLY)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_jsonl(broken(), path)
    assert read_feedback([path]).ratings == [Rating(**RATING)]
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_says_so(tmp_path):
    path = tmp_path / "none" / "a.jsonl"
    assert refusal(lambda: write_jsonl([], path)) == (
        f"{path} cannot be written (No such file or directory); choose another place"
    )
