"""`palate replies`: rows in, rows out, nothing lost; and what a reply does to what people are told."""

import json
from functools import cache, partial
from pathlib import Path

import pytest
from tests.cli_support import palate, some_people, tiny_encoder, tiny_model, write

from palate.data import load_answers
from palate.feedback import Reply
from palate.satisfaction import training
from palate.satisfaction.scorer import SatisfactionScorer
from palate.store import Store

ANSWERS = load_answers()[:14]


@cache
def revision() -> str:
    return SatisfactionScorer.load().revision


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_are_written_with_what_was_read_in_them(tmp_path):
    rows: list[dict[str, object]] = [
        {"reply": "love it, thanks", "id": 7, "note": ["kept", None]},
        {"reply": "dull and useless", "prompt": "Hi", "completion": "Hello, my dear friend."},
        {"reply": "ok", "prompt": [{"role": "user", "content": "Hi"}], "completion": "Hey", "satisfaction": 0.9},
        {"reply": "😂 \u202bשלום", "completion": None},
    ]
    file, out = jsonl(tmp_path / "in.jsonl", *rows), tmp_path / "out.jsonl"
    ran = palate("replies", "score", file, "--output", out, "--json")
    assert ran.json == {"output": str(out), "replies": 4, "bad_lines": 0, "scorer": revision()}
    read = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    for before, after in zip(rows, read, strict=True):
        assert {**before, **{name: after[name] for name in ("satisfaction", "confidence", "target")}} == after
    assert read[0]["satisfaction"] > 0.6 > 0.4 > read[1]["satisfaction"]
    assert list(tmp_path.iterdir()) in ([file, out], [out, file])
    again = tmp_path / "again.jsonl"
    assert palate("replies", "score", file, "--output", again).status == 0
    assert again.read_bytes() == out.read_bytes()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "in.jsonl:2: not JSON; write one object a line"),
        ("[1]", "in.jsonl:2: it has no reply, a string; add one"),
        ('{"reply": 3}', "in.jsonl:2: it has no reply, a string; add one"),
        ('{"reply": "  "}', "in.jsonl:2: reply is empty; leave the row out"),
    ],
)
def test_a_bad_line_stops_the_reading_or_is_counted(tmp_path, line, message):
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text(f'{{"reply": "fine"}}\n{line}\n{{"reply": "good"}}\n')
    out.write_text("what was there")
    assert palate("replies", "score", file, "--output", out).failure == message
    assert out.read_text() == "what was there"
    ran = palate("replies", "score", file, "--output", out, "--skip-bad-lines", "--json")
    assert (ran.json["replies"], ran.json["bad_lines"]) == (2, 1)
    assert message in ran.err
    assert len(out.read_text().splitlines()) == 2


def test_files_that_cannot_be_read_or_written_are_named(tmp_path):
    out = tmp_path / "out.jsonl"
    assert "Cannot read" in palate("replies", "score", tmp_path / "none", "--output", out).failure
    empty = jsonl(tmp_path / "empty.jsonl")
    assert palate("replies", "score", empty, "--output", out).failure.startswith("empty.jsonl holds no replies")
    (tmp_path / "latin.jsonl").write_bytes('{"reply": "caf\xe9"}'.encode("latin-1"))
    assert "is not UTF-8" in palate("replies", "score", tmp_path / "latin.jsonl", "--output", out).failure
    file = jsonl(tmp_path / "in.jsonl", {"reply": "ok"})
    assert "Cannot write to" in palate("replies", "score", file, "--output", tmp_path / "none" / "out").failure
    assert "There is no scorer" in palate("replies", "score", file, "--output", out, "--scorer", tmp_path / "x").failure
    assert not out.exists()


def test_a_scorer_is_measured_on_labelled_replies(tmp_path):
    rows = [
        {"reply": text, "satisfaction": value, "target": target}
        for text, value, target in (
            ("absolutely wonderful work here", 1, "task"),
            ("dreadful, wrong and late", 0, "task"),
            ("too stiff for my friends", 0.25, "taste"),
            ("omg yes yes yes", 1, "task"),  # it was trained on this one
        )
    ]
    told = palate("replies", "evaluate", jsonl(tmp_path / "in.jsonl", *rows), "--json").json
    assert (told["replies"], told["unseen"]) == (4, 3)
    assert told["spearman"] > 0.7 and told["mae"] < 0.3
    shown = palate("replies", "evaluate", tmp_path / "in.jsonl")
    assert "satisfaction, mean absolute error" in shown.out


def test_training_writes_a_scorer_that_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "Recipe", partial(training.Recipe, encoder=str(tiny_encoder()), reply_epochs=1))
    folder = tmp_path / "goemotions"
    folder.mkdir()
    (folder / "labels.txt").write_text("ambiguous\nnegative\nneutral\npositive")
    for split in ("train", "dev"):
        (folder / f"{split}.tsv").write_text("you can do it\t3\ta\nis the for not\t1\tb\n")
    replies = jsonl(
        tmp_path / "replies.jsonl",
        *({"reply": f"you can {i}", "satisfaction": 1, "target": "taste"} for i in range(8)),
        *({"reply": f"not for {i}", "satisfaction": 0, "target": "task"} for i in range(8)),
    )
    words = ["--goemotions", folder, "--output", tmp_path / "scorer", "--replies", replies]
    told = palate("replies", "train", *words, "--json").json
    assert set(told["figures"]) >= {"spearman", "mae", "target_accuracy", "ece"}
    file = jsonl(tmp_path / "in.jsonl", {"reply": "you can"})
    ran = palate("replies", "score", file, "--output", tmp_path / "out", "--scorer", tmp_path / "scorer", "--json")
    assert ran.json["scorer"] == told["revision"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").write_text("")
    taken = palate("replies", "train", "--goemotions", folder, "--output", tmp_path / "mine").failure
    assert "is not a scorer's folder" in taken


def test_replies_are_rescored_and_move_what_is_explained(tmp_path):
    url = f"sqlite:///{tmp_path / 'palate.db'}"
    with Store.open(url) as store:
        ann = store.ensure_user("ann")
        for number, text in enumerate(["love the tone", "The tone is dull, I hated it", "and on a Mac?"]):
            answer = ANSWERS[number]
            said = Reply(user_id="ann", prompt=answer.prompt, completion=answer.text, reply=text)
            store.append(ann, said)
    told = palate("replies", "rescore", tiny_model(), "--database", url, "--augment", "--json").json
    assert told["new"] == 3 and told["scored"] >= 3
    assert palate("replies", "rescore", tiny_model(), "--database", url, "--augment", "--json").json == {
        "new": 0,
        "scored": 0,
        "current": 1,
    }
    told = palate("explain", tiny_model(), "--user", "ann", "--database", url, "--json").json
    kinds = {one["kind"] for one in told["influences"]}
    assert kinds == {"reply"}
    assert all(one["nats"] > 0 for one in told["influences"])
    shown = palate("explain", tiny_model(), "--user", "ann", "--database", url).out
    assert "What moved it most" in shown and "typed “love the tone” (read as" in shown


def test_a_fit_reads_replies_and_says_what_says_nothing_of_taste(tmp_path):
    answer = ANSWERS[0]
    typed = [
        Reply(user_id=row.user_id, prompt=answer.prompt, completion=answer.text, reply=text)
        for row, text in zip(
            some_people()[:61:30], ["love the tone", "The tone is dull, I hated it", "what time is it?"], strict=True
        )
    ]
    file = write(tmp_path / "all.jsonl", [*some_people(), *typed])
    ran = palate("fit", file, "--output", tmp_path / "m", "--encoder", tiny_encoder(), "--rank", 2, "--json")
    assert ran.json["figures"]["replies"] == 2
    assert ran.json["unused"] == 1
    assert "1 of 3 replies say nothing of taste" in ran.err
