"""`palate check`, `fit` and `evaluate`: what they print, write, and say of bad data and broken models."""

import json
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.cli_support import Ran, palate, some_people, start, tiny_encoder, tiny_model, write

from palate.bench.people import Person, parse_kind, simulate
from palate.data import load_answers
from palate.feedback import Comparison, Rating, Record, Reply, as_text
from palate.rewards import RewardModel, folder
from palate.rewards.queries import STRATEGIES

KINDS = [parse_kind("concise,humorous"), parse_kind("verbose,polite")]
PEOPLE = some_people()
# Two users, three prompts: enough to fit on, and quick.
FEW = [row for user in ("t0000", "t0001") for row in [r for r in PEOPLE if r.user_id == user][:3]]
MEASURES = ("auc", "accuracy", "log_loss", "ece")


def changed(row: Record, **values: object) -> Any:
    """A copy, checked anew."""
    return type(row).model_validate({**row.model_dump(), **values})


def fit(rows: list[Any] | Path, place: Path, *more: object) -> Ran:
    data = rows if isinstance(rows, Path) else write(place / "data.jsonl", rows)
    return palate("fit", data, "--output", place / "model", "--encoder", tiny_encoder(), *more)


def lines(path: Path, *values: object) -> Path:
    path.write_text("".join(f"{value if isinstance(value, str) else json.dumps(value)}\n" for value in values))
    return path


# check


def test_check_prints_what_is_there_and_fails_on_what_misleads(tmp_path):
    data = write(tmp_path / "data.jsonl", [Rating(user_id="ann", prompt="Hi", completion="Hello!", score=1)])
    ran = palate("check", data)
    assert ran.status == 1
    assert ran.line == "Problems with which figures would be wrong: one-user; mend them before a fit"
    assert ran.out.splitlines() == [
        "0 comparisons, 1 ratings, 0 replies",
        "problem one-user: All records are of one user, 'ann': a taste cannot be separated from the population's; "
        "add other people's feedback.",
    ]


def test_check_has_nothing_to_object_to(tmp_path):
    ran = palate("check", write(tmp_path / "data.jsonl", PEOPLE))
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith(
        "240 comparisons, 0 ratings, 0 replies\nNothing to object to.\nLength alone gets an AUC of "
    )


def test_check_as_json_is_whole_though_it_fails(tmp_path):
    row = {"user_id": "ann", "prompt": "Hi", "completion": "Hello!", "score": 1}
    ran = palate("check", lines(tmp_path / "data.jsonl", row, "oops"), "--json")
    assert (ran.status, ran.out.count("\n")) == (1, 1)
    assert "one-user" in ran.line
    told = json.loads(ran.out)
    assert {name: told[name] for name in ("comparisons", "ratings", "replies", "bad_lines")} == {
        "comparisons": 0,
        "ratings": 1,
        "replies": 0,
        "bad_lines": 1,
    }
    assert [(f["code"], f["severity"], f["count"]) for f in told["findings"]] == [
        ("one-user", "problem", 1),
        ("bad-lines", "warning", 1),
    ]


def test_check_tells_figures_and_the_learning_curve(tmp_path, monkeypatch):
    monkeypatch.setattr("palate.doctor.curve._DRAWS", 1)
    data = write(tmp_path / "data.jsonl", some_people(16, 16))
    told = palate("check", data, "--learning-curve", "--encoder", tiny_encoder(), "--json").json
    assert {"length_auc", "length_auc_per_user", "raters_per_pair", "shared_pairs"} <= set(told["figures"])
    assert [curve["what"] for curve in told["learning_curves"]] == ["users", "answers"]
    for curve in told["learning_curves"]:
        assert len(curve["sizes"]) == len(curve["auc"]) == 4
        assert curve["sizes"] == sorted(curve["sizes"])
    assert told["remarks"][-1].startswith("AUC by answers of each: ")


def test_columns_with_other_names(tmp_path):
    theirs = {"annotator": "user_id", "better": "chosen", "worse": "rejected"}
    rows = [{mine: row.model_dump()[ours] for mine, ours in theirs.items()} | {"prompt": row.prompt} for row in PEOPLE]
    data = lines(tmp_path / "data.jsonl", *rows)
    names = ["--columns", "user_id=annotator,chosen=better,rejected=worse"]
    assert palate("check", data, *names, "--json").json["comparisons"] == len(PEOPLE)
    assert fit(data, tmp_path, *names).status == 0
    assert palate("check", data, "--columns", "user_id").usage == (
        "'--columns': 'user_id' is not OURS=THEIRS,...; write it like user_id=annotator,chosen=better"
    )
    assert palate("evaluate", tiny_model(), data, "--columns", "user=annotator").failure == (
        "'user' is no column of a record; rename to one of user_id, prompt, created_at, split, chosen, rejected, "
        "strength, chosen_position, kind, completion, score, reply, satisfaction, target, confidence"
    )
    assert palate("fit", data, "--output", tmp_path / "other", "--columns", "user_id=rater").failure == (
        f"{data}:1: there is no column 'rater'; the row has 'annotator, better, worse, prompt'"
    )


# fit


def test_fit_writes_a_model_and_says_so(tmp_path):
    ran = fit(FEW, tmp_path)
    assert (ran.status, ran.err) == (0, "")
    first, *_, last = ran.out.splitlines()
    rank = RewardModel.load(tmp_path / "model").n_rewards
    assert first.startswith(f"{rank} base rewards from 6 comparisons of 2 people, in ")
    assert last == f"Written to {tmp_path / 'model'}"


def test_fit_as_json_is_the_same_twice(tmp_path):
    told = fit(FEW, tmp_path, "--rank", 1, "--json").json
    assert set(told) == {"output", "fingerprint", "rank", "unused", "bad_lines", "figures", "seconds"}
    assert (told["rank"], told["unused"], told["bad_lines"]) == (1, 0, 0)
    again = fit(FEW, tmp_path, "--rank", 1, "--json").json  # over the older one
    assert told["fingerprint"] == again["fingerprint"] == RewardModel.load(tmp_path / "model").fingerprint


def test_fit_notes_what_it_does_not_use(tmp_path):
    reply = Reply(user_id="ann", prompt="Hi", completion="Hello!", reply="And on a Mac?")
    ran = fit([*FEW, reply], tmp_path, "--json")
    assert (ran.json["unused"], ran.line) == (1, "1 of 1 replies say nothing of taste, and are left out")


def test_fit_stops_at_a_bad_line(tmp_path):
    data = lines(tmp_path / "bad.jsonl", FEW[0].model_dump(mode="json"), "{")
    assert fit(data, tmp_path).failure == (
        f"{data}:2: not JSON (Expecting property name enclosed in double quotes at column 2); "
        "write one whole object a line"
    )
    assert not (tmp_path / "model").exists()


def test_fit_counts_bad_lines_where_they_are_to_be_skipped(tmp_path):
    rows = [row.model_dump(mode="json") for row in FEW]
    data = lines(tmp_path / "bad.jsonl", *rows, "[]", '"x"')
    ran = fit(data, tmp_path, "--skip-bad-lines", "--json")
    assert ran.json["bad_lines"] == 2
    assert ran.line == (
        f'2 bad lines left out; the first: {data}:7: [] is not an object; write one {{"user_id": ...}} a line'
    ).replace("...}", "..., ...}")


@pytest.mark.parametrize("score", ["NaN", "1.5", "-Infinity"])
def test_fit_refuses_a_score_that_is_none(tmp_path, score):
    data = lines(tmp_path / "r.jsonl", f'{{"user_id": "a", "prompt": "p", "completion": "c", "score": {score}}}')
    shown = {"NaN": "nan", "-Infinity": "-inf"}.get(score, score)
    assert fit(data, tmp_path).failure == f"{data}:1: score {shown} is not a number in [0, 1]; rescale it"


ONE_USER = [row for row in PEOPLE if row.user_id == "t0000"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "{data} holds no records; give a file with one record a line"),
        (
            ONE_USER,
            "All rows are of one user, 't0000'; base rewards need at least 2 people to differ",
        ),
        (
            [changed(row, strength=0.5) for row in FEW],
            "All 6 comparisons are ties (strength 0.5), which prefer nothing; give some decided ones",
        ),
        (
            [changed(row, split="test") for row in FEW],
            "There are 0 comparisons and 0 ratings to fit on (split absent or 'train'); give rows with chosen and "
            "rejected, or with completion and score",
        ),
    ],
    ids=["empty", "one user", "ties", "test rows"],
)
def test_fit_needs_people_who_choose(tmp_path, rows, message):
    assert fit(rows, tmp_path).failure == message.format(data=tmp_path / "data.jsonl")
    assert not (tmp_path / "model").exists()


def test_fit_of_a_file_that_is_not_there(tmp_path):
    data = tmp_path / "none.jsonl"
    assert fit(data, tmp_path).failure == (
        f"{data} cannot be read (No such file or directory); check the path and that the file is whole"
    )


def test_fit_works_on_contradictions_single_answers_and_odd_texts(tmp_path):
    odd = [
        Comparison(user_id="odd", prompt="word " * 20_000, chosen="🍵🍵🏽\u200d🚀", rejected="שלום \u202eעולם"),
        Comparison(user_id="even", prompt="", chosen="\x1b[31m\x07red", rejected="plain"),
    ]
    opposite = [changed(row, chosen=row.rejected, rejected=row.chosen) for row in FEW]
    told = fit([*FEW, *opposite, *odd], tmp_path, "--json").json
    assert (told["figures"]["users"], told["figures"]["comparisons"]) == (4, 14)


@pytest.mark.parametrize("rank", [0, 65, -1, "many", "", "½"])
def test_fit_refuses_what_is_no_rank(tmp_path, rank):
    rule = f"'--rank': {str(rank)!r} is not a rank; give a number from 1 to 64, or auto"
    assert fit(FEW, tmp_path, "--rank", rank).usage == rule


def test_fit_finds_the_rank_and_reads_ratings(tmp_path):
    ratings = [
        Rating(user_id=row.user_id, prompt=row.prompt, completion=row.chosen, score=0.9 - 0.1 * place)
        for place, row in enumerate(FEW)
    ]
    ran = fit([*FEW, *ratings], tmp_path, "--rank", "auto")
    first, second = ran.out.splitlines()[:2]
    assert " base rewards from 6 comparisons and 6 ratings of 2 people, in " in first
    assert second.startswith("A rating counts ")


def test_fit_with_an_encoder_that_is_not_there(tmp_path):
    data = write(tmp_path / "data.jsonl", FEW)
    assert palate("fit", data, "--output", tmp_path / "model", "--encoder", "no/such").failure == (
        "Encoder 'no/such' not found: it must be a folder, an installed package, or a model on the Hugging Face hub "
        "that can be reached; give a folder that holds the model"
    )


def test_fit_leaves_other_things_alone(tmp_path):
    other = tmp_path / "model" / "thesis.tex"
    other.parent.mkdir()
    other.write_text("years of work")
    message = f"{str(tmp_path / 'model')!r} is not a reward model's folder and is not empty; name another"
    assert fit(FEW, tmp_path).failure == message
    assert other.read_text() == "years of work"


def test_fit_cannot_write_below_a_file(tmp_path):
    file = tmp_path / "file"
    file.touch()
    data = write(tmp_path / "data.jsonl", FEW)
    ran = palate("fit", data, "--output", file / "model", "--encoder", tiny_encoder())
    assert ran.failure == f"{str(file / 'model')!r} lies below the file {str(file)!r}; name a folder"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl", "file"]


def test_ctrl_c_while_reading_leaves_nothing_behind(tmp_path):
    data, pipe = write(tmp_path / "data.jsonl", FEW), tmp_path / "more.jsonl"
    # The command waits for the end of a pipe: there it is interrupted, whatever the machine's speed.
    subprocess.run(["mkfifo", str(pipe)], check=True)
    running = start("fit", data, pipe, "--output", "out/model", "--encoder", tiny_encoder(), cwd=tmp_path)
    with pipe.open("w"):
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert (running.returncode, out, err) == (
        1,
        "",
        "palate: Interrupted; what was answered is kept, nothing half-done was written\n",
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl", "more.jsonl"]


def test_ctrl_c_while_writing_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupted(model: RewardModel) -> str:
        assert len(list(tmp_path.glob(".model.*/*"))) > 1  # all but the card is written
        raise KeyboardInterrupt

    monkeypatch.setattr(folder, "card", interrupted)
    assert fit(FEW, tmp_path).failure == "Interrupted; what was answered is kept, nothing half-done was written"
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]


# evaluate


def new_people() -> list[Comparison]:
    answers = [answer for answer in load_answers() if answer.prompt_id.startswith("p4")]
    return simulate(KINDS, answers, people_per_kind=2, comparisons=20, seed=1, split_by_prompt=True)


def ratings() -> list[Rating]:
    """Every new person's score of the answers they were shown, from their reward."""
    answers = {(answer.prompt, answer.text): answer for answer in load_answers()}
    scored = {}
    for row in new_people():
        for text in (as_text(row.chosen), as_text(row.rejected)):
            reward = Person(parse_kind(str(row.kind))).reward([answers[as_text(row.prompt), text]])[0]
            rating = Rating(
                user_id=row.user_id, prompt=row.prompt, completion=text, score=(reward + 4) / 6, split=row.split
            )
            scored[row.user_id, text] = rating
    return list(scored.values())


@pytest.mark.parametrize("rows", [new_people(), ratings()], ids=["comparisons", "ratings"])
def test_evaluate_as_json(tmp_path, rows):
    data = write(tmp_path / "new.jsonl", rows)
    told = palate("evaluate", tiny_model(), data, "--answers", "0,3", "--json").json
    assert set(told) == {"users", "comparisons", *MEASURES, "seconds_per_answer", "query_strategy", "guard"}
    assert (told["users"], told["guard"]) == (4, False)
    assert [list(told[name]) for name in MEASURES] == [["0", "3"]] * 4
    assert all(0 <= told[name][t] <= 1 for name in ("auc", "accuracy", "ece") for t in ("0", "3"))
    again = palate("evaluate", tiny_model(), data, "--answers", "3,0,3", "--json").json
    assert {name: told[name] for name in MEASURES} == {name: again[name] for name in MEASURES}


def test_evaluate_prints_a_table(tmp_path):
    data = write(tmp_path / "new.jsonl", new_people())
    ran = palate("evaluate", tiny_model(), data, "--answers", "0,3", "--query-strategy", "random", "--seed", 4)
    assert (ran.status, ran.err) == (0, "")
    assert "4 people, 40 test pairs, strategy random" in ran.out
    assert [line.split()[1] for line in ran.out.splitlines() if line.startswith("│")] == ["0", "3"]


@pytest.mark.parametrize("text", ["", "x", "5,", "-1", "1.5"])
def test_evaluate_takes_numbers_of_answers(text):
    ran = palate("evaluate", tiny_model(), "any.jsonl", f"--answers={text}")
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.splitlines()[-1] == (
        f"Error: Invalid value for --answers: {text!r} is not a list of numbers of answers; write it like 0,5,10,20"
    )


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (
            "adapt",
            "There are 0 test pairs; give comparisons, or ratings of one prompt that differ, with split 'test'",
        ),
        (
            "test",
            "There are 0 rows to answer from; give rows with split 'adapt', or measure at 0 answers only",
        ),
    ],
)
def test_evaluate_needs_both_splits(tmp_path, split, message):
    data = write(tmp_path / "new.jsonl", [row for row in new_people() if row.split == split])
    assert palate("evaluate", tiny_model(), data).failure == message


def test_evaluate_without_answers_needs_none(tmp_path):
    data = write(tmp_path / "new.jsonl", [row for row in new_people() if row.split == "test"])
    assert list(palate("evaluate", tiny_model(), data, "--answers", 0, "--json").json["auc"]) == ["0"]


def test_evaluate_with_a_strategy_that_is_not_there(tmp_path):
    data = write(tmp_path / "new.jsonl", new_people())
    assert palate("evaluate", tiny_model(), data, "--query-strategy", "oracle").usage == (
        f"'--query-strategy': 'oracle' is no query strategy; choose one of {', '.join(STRATEGIES)}"
    )


# Models that cannot be read


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the model, to be spoilt."""
    return shutil.copytree(tiny_model(), tmp_path / "copy")


def test_a_model_that_is_not_there(tmp_path):
    none = tmp_path / "none"
    assert palate("explain", none, "--user", "ann").failure == (
        f"There is no reward model at {str(none)!r}; make one with: palate fit FEEDBACK --output DIR"
    )


def test_a_model_cut_short(copied):
    file = copied / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert palate("evaluate", copied, "any.jsonl").failure == (
        f"Cannot read the reward model at {str(copied)!r}: model.safetensors is cut short or is no safetensors file; "
        "copy it again or fit it anew"
    )


def test_a_model_of_a_newer_version(copied):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "format": 99}))
    assert palate("onboard", copied, "--user", "ann").failure == (
        f"The reward model at {str(copied)!r} has format 99, this version of Palate reads up to 3; update Palate"
    )
