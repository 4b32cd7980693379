"""`palate chat`, `study` and `train value-head`: talked to and run as people do, over HTTP and on a tiny model."""

import json
import re
from pathlib import Path

import pytest
from tests.cli_support import made_once, palate, tiny_model
from tests.endpoint_support import endpoint
from tests.tiny_models import save_causal

from palate.alignment.value_head import ValueHead
from palate.data import load_answers
from palate.feedback import Reply
from palate.rewards import RewardModel
from palate.store import Store

PROMPT = load_answers()[0].prompt
OTHER = load_answers()[14].prompt


def policy() -> Path:
    return made_once("causal-qwen2", lambda folder: save_causal(folder, "qwen2"))


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'palate.db'}"


def talk(database: str, typed: str, *more: object, by_hand: bool = False):
    words = ("chat", tiny_model(), "--user", "ana", "--database", database, *more)
    return palate(*words, typed=typed, by_hand=by_hand)


def test_what_is_typed_next_becomes_evidence(database):
    typed = f"{PROMPT}\nfar too long-winded, i hated that\n{OTHER}\n"
    with endpoint(answer=lambda request, number: f"answer {number}") as served:
        told = talk(database, typed, "--upstream", served.url, "--candidates", 3, "--json").json
    assert [turn["message"] for turn in told["turns"]] == typed.splitlines()
    assert [turn["drawn"] for turn in told["turns"]] == [3, 3, 3]
    assert "read" not in told["turns"][0] and told["turns"][1]["read"]["satisfaction"] < 0.4
    assert [len(request["messages"]) for request in served.requests] == [1, 3, 5]
    with Store.open(database, create=False) as store:
        person = store.user("ana")
        assert person is not None
        replies = [one.record for one in store.evidence(person)]
    assert [reply.reply for reply in replies if isinstance(reply, Reply)] == typed.splitlines()[1:]
    first = replies[0]
    assert isinstance(first, Reply) and first.prompt == PROMPT and first.completion == told["turns"][0]["answer"]


def test_markup_and_an_empty_answer_end_nothing(database):
    typed = f"what is [/b] in html?\n{PROMPT}\n"
    ran = talk(database, typed, by_hand=True)
    assert ran.status == 0 and "no answer to 'what is [/b] in html?'" in ran.out.replace("\n", " ")
    with endpoint(answer=lambda request, number: "" if number < 300 else "[b]fine[/b]") as served:
        ran = talk(database, "Hi\nHo\n", "--upstream", served.url, "--candidates", 1, by_hand=True)
    assert ran.status == 0 and "nothing but empty answers" in ran.out.replace("\n", " ")


def test_bundled_answers_serve_where_there_is_no_model(database):
    ran = talk(database, f"{PROMPT}\n/why\n/taste\n/nothing\n/new\n{PROMPT}\n", by_hand=True)
    assert ran.status == 0, ran
    assert "Answers come from bundled answers" in ran.out and "There is no /nothing" in ran.out
    assert "your reward" in ran.out and ran.out.count("•") == 1
    assert any(answer.text[:40] in ran.out for answer in load_answers() if answer.prompt == PROMPT)


def test_a_question_without_an_answer_ends_a_pipe_and_goes_on_by_hand(database):
    assert "no answer to 'Why?' among the bundled answers" in talk(database, "Why?\n").failure
    ran = talk(database, f"Why?\n{PROMPT}\n", by_hand=True)
    assert ran.status == 0 and "no answer to 'Why?'" in ran.out


def test_an_answer_streams_where_one_is_drawn(database):
    with endpoint(answer=lambda *_: "one two three") as served:
        ran = talk(database, "Hi\n", "--upstream", served.url, "--strategy", "off", "--json")
    assert ran.json["turns"][0]["answer"] == "one two three" and served.requests[0]["stream"]


def test_an_endpoint_that_is_down_is_one_line(database):
    with endpoint() as served:
        pass
    assert "cannot be reached" in talk(database, "Hi\n", "--upstream", served.url).failure


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--upstream", "http://localhost:1/v1", "--policy", "p"), "Both --upstream and --policy"),
        (("--strategy", "best"), "no strategy 'best'"),
        (("--candidates", 0), "from 1 to 1,024"),
        (("--temperature", "-1"), "temperature -1.0 is not 0 or more"),
        (("--strategy", "guided"), "cannot be guided"),
    ],
)
def test_what_cannot_be_is_refused(database, more, message):
    assert message in talk(database, f"{PROMPT}\n", *more).failure


def test_a_value_head_is_trained_and_used(tmp_path, database):
    prompts, head = tmp_path / "prompts.jsonl", tmp_path / "head"
    prompts.write_text('"Hi"\n{"prompt": "How do you do?"}\n"Hi"\n')
    words = ["train", "value-head", tiny_model(), "--policy", policy(), "--prompts", prompts, "--output", head]
    words += ["--answers", 8, "--max-tokens", 6, "--rank", 2, "--epochs", 2]
    told = palate(*words, "--json").json
    assert told["fingerprint"] == RewardModel.load(tiny_model()).fingerprint
    assert ValueHead.load(head, RewardModel.load(tiny_model())).rank == 2
    assert "--strategy guided" in palate(*words).out
    more = ("--policy", policy(), "--value-head", head, "--strategy", "guided+best-of-n", "--max-tokens", 6)
    assert talk(database, "Hi\n", *more, "--candidates", 2, "--json").json["turns"][0]["drawn"] == 2
    (tmp_path / "none.jsonl").write_text("\n")
    words[words.index(prompts)] = tmp_path / "none.jsonl"
    assert palate(*words).failure == "none.jsonl holds no prompts; write one a line as a JSON string"


def test_a_study_is_blind_and_counts_what_people_chose(tmp_path, database):
    talk(database, f"{PROMPT}\nlovely\n")
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "study"
    asked = list(dict.fromkeys(answer.prompt for answer in load_answers()))[:12]
    prompts.write_text("".join(json.dumps(prompt) + "\n" for prompt in asked))
    words = ("study", "make", tiny_model(), "--user", "ana", "--prompts", prompts, "--output", out)
    told = palate(*words, "--database", database, "--json").json
    assert told["questions"] + told["same"] == 12 and told["questions"] > 4
    page = (out / f"study-{told['study']}.html").read_text()
    assert "personal" not in page.lower()
    data = json.loads(re.findall(r'id="data">(.*?)</script>', page, re.S)[0])
    key = json.loads((out / f"key-{told['study']}.json").read_text())["key"]
    assert {key[question["id"]]["personal"] for question in data["questions"]} == {"a", "b"}
    choices = {question["id"]: key[question["id"]]["personal"] for question in data["questions"]}
    saved = tmp_path / "answers.json"
    saved.write_text(json.dumps({"study": told["study"], "choices": choices}))
    scored = palate("study", "score", out, saved, "--json").json
    assert scored["win_rate"] == pytest.approx((told["questions"] + 0.5 * told["same"]) / 12)
    assert scored["low"] <= scored["win_rate"] <= scored["high"]
    saved.write_text(json.dumps({"study": told["study"], "choices": {name: "tie" for name in choices}}))
    assert palate("study", "score", out, saved, "--json").json["win_rate"] == 0.5
    assert "counted already" in palate("study", "score", out, saved, saved).failure
    saved.write_text(json.dumps({"study": told["study"], "choices": {}}))
    assert "Nobody chose anything" in palate("study", "score", out, saved).failure
    usual = palate(*words, "--database", database, "--against", "population", "--json").json
    assert usual["questions"] + usual["same"] == 12
    saved.write_text("[]")
    assert "not what a study's page saved" in palate("study", "score", out, saved).failure
    assert "the usual answer itself" in palate(*words, "--database", database, "--strategy", "off").failure
