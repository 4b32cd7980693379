"""Feedback, elicitation and people's rights over the API of a live server."""

import sqlite3
from pathlib import Path

import httpx
import pytest
from tests.server_support import COOKING, QUESTIONS, Live, live

from palate.store.interview import posterior_of


@pytest.fixture(scope="module")
def server():
    with live() as one:
        yield one


@pytest.fixture
def http(server):
    with server.http() as client:
        yield client


def told(http: httpx.Client, completion: str, name: str, value: object, **more: object) -> httpx.Response:
    return http.post("/v1/feedback", json={"completion_id": completion, "name": name, "value": value, **more})


def evidence(server: Live, user: str) -> list:
    found = server.service.store.user(user)
    return [] if found is None else server.service.store.evidence(found)


# Feedback


@pytest.mark.parametrize(
    ("name", "value", "count", "kind"),
    [
        ("rating", 0.25, 1, "Rating"),
        ("rating", True, 1, "Rating"),
        ("comparison", 2, 2, "Comparison"),
        ("reply", "Too stiff and formal for me, I hate that tone.", 1, "Reply"),
        ("comment", "Too stiff and formal for me, I hate that tone.", 1, "Reply"),
        ("demonstration", "Make a stew on Sunday, mate!", 1, "Comparison"),
    ],
)
def test_each_kind_of_feedback_becomes_evidence(server, http, name, value, count, kind):
    user = f"kind {name} {value}"
    said = server.chat(COOKING, user=user, n=3).json()
    made = told(http, said["id"], name, value).json()
    assert made["learned"] and (made["evidence"], made["user"]) == (count, user)
    found = evidence(server, user)
    assert [type(one.record).__name__ for one in found] == [kind] * count
    if name == "comparison":
        assert {one.record.chosen for one in found} == {said["choices"][2]["message"]["content"]}
    if name == "rating":
        assert found[0].record.score == float(value)
    if name == "demonstration":
        assert found[0].record.rejected == said["choices"][0]["message"]["content"]


def test_a_comment_beside_a_rating_is_read_too(server, http):
    said = server.chat(COOKING, user="both").json()
    made = told(http, said["id"], "rating", 0.0, comment="Too stiff and formal for me, I hate that tone.").json()
    assert made["evidence"] == 2
    reply = next(one.record for one in evidence(server, "both") if type(one.record).__name__ == "Reply")
    assert reply.satisfaction < 0.4


def test_a_repeated_id_replaces_and_the_same_again_changes_nothing(server, http):
    said = server.chat(COOKING, user="changer").json()
    for value in (1.0, 1.0, 0.2, 0.2):
        assert told(http, said["id"], "rating", value, id="mine").status_code == 200
    assert [one.record.score for one in evidence(server, "changer")] == [0.2]
    user = server.service.store.user("changer")
    assert len(server.service.store.evidence(user, include_withdrawn=True)) == 2


def test_null_takes_back_what_was_said(server, http):
    said = server.chat(COOKING, user="regret").json()
    told(http, said["id"], "rating", 1.0, id="r1")
    assert told(http, said["id"], "rating", None, id="r1").json()["evidence"] == 0
    assert evidence(server, "regret") == []
    assert told(http, said["id"], "rating", None).json()["error"]["param"] == "id"
    assert told(http, said["id"], "rating", None, id="never").status_code == 404


def test_a_dry_run_tells_and_does_nothing(server, http):
    said = server.chat(COOKING, user="dry").json()
    made = told(http, said["id"], "rating", 1.0, dryrun=True).json()
    assert made["learned"] and made["dryrun"] and evidence(server, "dry") == []


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [("rating", 1.5, 400), ("rating", "good", 400), ("comparison", 7, 400), ("comparison", 0.5, 400),
     ("reply", "  ", 400), ("demonstration", 3, 400), ("applause", 1, 400)],
)  # fmt: skip
def test_a_value_that_the_name_does_not_take_is_refused_and_nothing_is_kept(server, http, name, value, status):
    said = server.chat(COOKING, user="refused").json()
    answer = told(http, said["id"], name, value)
    assert answer.status_code == status and answer.json()["error"]["message"]
    assert evidence(server, "refused") == []


def test_feedback_on_what_is_unknown_or_somebody_else_s(server, http):
    said = server.chat(COOKING, user="owner").json()
    assert told(http, "chatcmpl-none", "rating", 1).status_code == 404
    assert told(http, said["id"], "rating", 1, user="thief").status_code == 403
    other = server.chat(COOKING, user="owner").json()
    told(http, said["id"], "rating", 1, id="once")
    assert told(http, other["id"], "rating", 1, id="once").status_code == 400
    with server.http(server.key_of("elsewhere")) as theirs:
        assert told(theirs, said["id"], "rating", 1).status_code == 404


def test_what_is_sensitive_and_who_is_paused_is_not_learned_from(server, http):
    said = server.chat(COOKING, user="careful").json()
    made = told(http, said["id"], "reply", "I hate this, my doctor says it is cancer").json()
    assert not made["learned"] and "health" in made["reason"]
    http.patch("/v1/users/careful", json={"paused": True})
    made = told(http, said["id"], "rating", 1).json()
    assert not made["learned"] and "paused" in made["reason"] and evidence(server, "careful") == []


def test_feedback_moves_the_taste_towards_what_was_preferred(server, http):
    liked = server.chat(COOKING, user="mover", n=8).json()
    texts = [choice["message"]["content"] for choice in liked["choices"]]
    told(http, liked["id"], "comparison", 7)
    model = server.service.model
    own = server.service.person(server.service.store.user("mover")).belief
    before, after = (model.reward(COOKING, texts, belief) for belief in (model.prior, own))
    assert (after[7] - after[:7]).mean() > (before[7] - before[:7]).mean() + 0.1
    profile = http.get("/v1/users/mover").json()
    assert len(profile["evidence"]) == 7 and profile["confidence"] > 0


# Elicitation


def test_questions_until_sure_and_what_is_known_grows(http):
    seen, confidence = set(), []
    query = http.post("/v1/users/quiz/queries", json={"answers": 6}).json()
    again = http.post("/v1/users/quiz/queries", json={"answers": 6}).json()
    assert query == again and query["asked"] == 0  # the open one, not another
    for number in range(6):
        assert query["response_a"] != query["response_b"] and query["expected_information"] > 0
        seen.add(query["query_id"])
        confidence.append(query["confidence"])
        query = http.post(f"/v1/users/quiz/queries/{query['query_id']}", json={"choice": "ab"[number % 2]}).json()
    assert len(seen) == 6 and query["asked"] == 6
    assert confidence[0] == pytest.approx(0, abs=1e-9) and query["confidence"] > confidence[1] > 0
    done = http.post("/v1/users/quiz/queries", json={"answers": 6}).json()
    assert done["query_id"] is None and done["prompt"] is None


def test_a_skipped_question_says_nothing_and_a_tie_says_half(server, http):
    query = http.post("/v1/users/skipper/queries").json()
    query = http.post(f"/v1/users/skipper/queries/{query['query_id']}", json={"choice": "skip"}).json()
    assert query["asked"] == 0 and evidence(server, "skipper") == []
    http.post(f"/v1/users/skipper/queries/{query['query_id']}", json={"choice": "tie"})
    assert [one.record.strength for one in evidence(server, "skipper")] == [0.5]


def test_an_answer_stays_and_is_of_the_person_who_was_asked(http):
    query = http.post("/v1/users/firm/queries").json()
    path = f"/v1/users/firm/queries/{query['query_id']}"
    assert http.post(path, json={"choice": "a"}).status_code == 200
    assert http.post(path, json={"choice": "a"}).status_code == 200  # a client that tried again
    assert http.post(path, json={"choice": "b"}).status_code == 409
    http.post("/v1/users/other/queries")
    assert http.post(f"/v1/users/other/queries/{query['query_id']}", json={"choice": "a"}).status_code == 404
    assert http.post(path, json={"choice": "maybe"}).json()["error"]["param"] == "choice"


# Rights


def test_a_profile_tells_what_is_known_how_surely_and_from_what(server, http):
    query = http.post("/v1/users/seen/queries").json()
    http.post(f"/v1/users/seen/queries/{query['query_id']}", json={"choice": "b"})
    profile = http.get("/v1/users/seen").json()
    assert profile["id"] == "seen" and profile["words"] and profile["personal"] and not profile["paused"]
    assert profile["evidence"][0]["said"]["chosen"] == query["response_b"]
    assert all(0.5 <= style["certainty"] <= 1 and style["liking"] >= 0 for style in profile["styles"])
    assert http.get("/v1/users/nobody").json()["error"]["code"] == "user_not_found"
    assert "seen" in [one["id"] for one in http.get("/v1/users").json()["data"]]


def test_pause_half_life_withdrawal_and_reset(server, http):
    for _ in range(3):
        query = http.post("/v1/users/turner/queries").json()
        http.post(f"/v1/users/turner/queries/{query['query_id']}", json={"choice": "a"})
    first = http.get("/v1/users/turner").json()["evidence"][0]["id"]
    assert len(http.patch("/v1/users/turner", json={"withdraw": first}).json()["evidence"]) == 2
    assert http.patch("/v1/users/turner", json={"withdraw": first}).status_code == 404
    assert http.patch("/v1/users/turner", json={"half_life_days": 3.5}).json()["half_life_days"] == 3.5
    assert http.patch("/v1/users/turner", json={}).json()["half_life_days"] == 3.5
    assert http.patch("/v1/users/turner", json={"half_life_days": None}).json()["half_life_days"] is None
    assert http.patch("/v1/users/turner", json={"half_life_days": 0}).status_code == 400
    gone = http.patch("/v1/users/turner", json={"reset": True}).json()
    assert gone["evidence"] == [] and gone["confidence"] == pytest.approx(0, abs=1e-9)


def test_an_export_holds_everything(server, http):
    said = server.chat(COOKING, user="mover2").json()
    told(http, said["id"], "rating", 0.5, comment="A nice answer, lovely tone, thank you!")
    whole = http.get("/v1/users/mover2/export").json()
    assert whole["profile"]["id"] == "mover2"
    assert whole["completion"][0]["candidates"] and len(whole["evidence"]) == 2 and whole["feedback"][0]["value"] == 0.5


def test_an_erased_person_is_in_no_table_and_not_in_the_raw_bytes(tmp_path):
    secret = "Zwölf Kängurus 🦘 jumping over my kitchen table, far too formal!"
    with live(tmp_path, work=True) as server, server.http() as http:
        said = server.chat(COOKING, user="erase-me@example.org").json()
        answer = said["choices"][0]["message"]["content"]
        server.chat(COOKING, answer, secret, user="erase-me@example.org")
        told(http, said["id"], "comment", secret + " Again.")
        told(http, said["id"], "demonstration", secret + " In my words.")
        kept = server.chat(COOKING, user="stays@example.org").json()
        assert any(secret.encode() in path.read_bytes() for path in files(tmp_path))
        gone = http.delete("/v1/users/erase-me@example.org").json()
        assert gone["deleted"] and gone["traces"] == 0 and gone["rows"]["completion"] == 2
        for path in files(tmp_path):
            content = path.read_bytes()
            assert b"erase-me@example.org" not in content and "Kängurus".encode() not in content, path
        assert http.get("/v1/users/erase-me@example.org").status_code == 404
        assert http.get(f"/v1/completions/{said['id']}/explanation").status_code == 404
        assert http.get(f"/v1/completions/{kept['id']}/explanation").status_code == 200
        assert http.delete("/v1/users/erase-me@example.org").status_code == 404
    with sqlite3.connect(tmp_path / "palate.db") as db:
        assert db.execute("SELECT COUNT(*) FROM user").fetchone() == (1,)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.startswith("palate.db")]


# Why


def test_an_explanation_tells_candidates_contributions_and_what_it_rests_on(server, http):
    for _ in range(4):
        query = http.post("/v1/users/why/queries").json()
        http.post(f"/v1/users/why/queries/{query['query_id']}", json={"choice": "a"})
    said = server.chat(QUESTIONS[3], user="why", n=2).json()
    why = http.get(f"/v1/completions/{said['id']}/explanation").json()
    assert [one["shown"] for one in why["candidates"]].count(True) == 2
    best = max(why["candidates"], key=lambda one: one["score"])
    assert best["text"] == said["choices"][0]["message"]["content"]
    for one in why["candidates"]:
        assert sum(one["contributions"]) == pytest.approx(one["reward"], abs=2e-3)
        assert len(one["contributions"]) == len(why["base_rewards"])
    assert len(why["evidence"]) == 4 and why["evidence"][0]["id"] and "taste" in why["words"]


def test_a_posterior_on_disk_is_what_its_evidence_says(server, http):
    said = server.chat(COOKING, user="exact", n=4).json()
    told(http, said["id"], "comparison", 1)
    told(http, said["id"], "rating", 0.9)
    server.chat(COOKING, user="exact")
    user = server.service.store.user("exact")
    kept = posterior_of(server.service.store, server.service.model, user)
    anew = server.service.model.posterior([one.record for one in server.service.store.evidence(user)])
    assert abs(kept.mean - anew.mean).max() < 1e-9
