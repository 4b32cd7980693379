"""`POST /v1/chat/completions` as OpenAI's clients and LangChain use it, against a live server."""

import asyncio
import json
import time
from collections.abc import Iterator

import httpx
import openai
import pytest
from langchain_openai import ChatOpenAI
from tests.endpoint_support import endpoint
from tests.server_support import COOKING, QUESTIONS, Live, events, live

PLEASED = "I love how warm and relaxed this answer is, exactly my style!"
ANNOYED = "Ugh, this is far too stiff and formal, I hate that tone."


@pytest.fixture(scope="module")
def server():
    with live() as one:
        yield one


def client(server: Live, **more) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0, **more)


def asked(text: str = QUESTIONS[0]) -> list:
    return [{"role": "user", "content": text}]


# OpenAI's own client


def test_a_plain_request_is_answered_in_openai_s_shape(server):
    said = client(server).chat.completions.create(model="any", messages=asked(), user="ann", n=3)
    assert said.object == "chat.completion" and said.id.startswith("chatcmpl-")
    assert [choice.index for choice in said.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in said.choices}) == 3
    assert all(choice.finish_reason == "stop" and choice.message.role == "assistant" for choice in said.choices)
    spent = said.usage
    assert spent and spent.prompt_tokens > 0 and spent.total_tokens == spent.prompt_tokens + spent.completion_tokens
    told = said.palate  # type: ignore[attr-defined]
    assert (told["strategy"], told["candidates"], told["generic"]) == ("best-of-n", 8, False)
    assert 0 < told["chosen_tokens"] < spent.completion_tokens


def test_the_spend_is_of_all_candidates(server):
    few, many = (
        client(server).chat.completions.create(
            model="m", messages=asked(), seed=1, extra_body={"palate": {"candidates": n}}
        )
        for n in (2, 12)
    )
    assert few.usage and many.usage and many.usage.completion_tokens > 3 * few.usage.completion_tokens


def test_a_stream_has_one_id_its_role_first_and_its_usage_only_when_asked(server):
    with server.http() as http:
        plain = http.post("/v1/chat/completions", json={"messages": asked(), "stream": True, "user": "ann"})
        counted = http.post(
            "/v1/chat/completions",
            json={"messages": asked(), "stream": True, "stream_options": {"include_usage": True}},
        )
    assert plain.headers["content-type"].startswith("text/event-stream")
    *chunks, done = events(plain)
    assert done == "[DONE]" and len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["id"] == plain.headers["x-palate-completion-id"]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop" and not any("usage" in chunk for chunk in chunks)
    *chunks, last, done = events(counted)
    assert last["choices"] == [] and last["usage"]["total_tokens"] > 0
    assert all(chunk["usage"] is None for chunk in chunks)


def test_a_stream_says_what_a_plain_answer_says(server):
    plain = client(server).chat.completions.create(model="m", messages=asked(), user="bob", seed=3, n=2)
    streamed = client(server).chat.completions.create(model="m", messages=asked(), user="bob", seed=3, n=2, stream=True)
    texts = ["", ""]
    for chunk in streamed:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in plain.choices]


def test_the_asynchronous_client_works_side_by_side(server):
    async def many() -> list:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=server.key) as one:
            asks = (
                one.chat.completions.create(model="m", messages=asked(q), user=f"u{i}")
                for i, q in enumerate(QUESTIONS[:8])
            )
            return await asyncio.gather(*asks)

    assert len({said.choices[0].message.content for said in asyncio.run(many())}) == 8


def test_parts_of_text_stop_and_limits_are_honoured(server):
    parts = [{"role": "user", "content": [{"type": "text", "text": QUESTIONS[0]}]}]
    made = client(server).chat.completions
    whole = made.create(model="m", messages=parts, seed=1).choices[0].message.content  # type: ignore[arg-type]
    assert whole == made.create(model="m", messages=asked(), seed=1).choices[0].message.content
    cut = made.create(model="m", messages=asked(), seed=1, max_tokens=3).choices[0]
    assert cut.finish_reason == "length" and len((cut.message.content or "").split()) == 3
    short = made.create(model="m", messages=asked(), seed=1, stop=["."], n=3)
    assert all("." not in (choice.message.content or "") for choice in short.choices)
    newer = made.create(model="m", messages=asked(), max_completion_tokens=2).choices[0]
    assert newer.finish_reason == "length"


@pytest.mark.parametrize(
    ("body", "error", "param"),
    [
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"messages": asked(), "n": 0}, openai.BadRequestError, "n"),
        ({"messages": asked(), "temperature": 9}, openai.BadRequestError, "temperature"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, openai.BadRequestError, "messages.0.role"),
        ({"messages": asked(), "palate": {"strategy": "magic"}}, openai.BadRequestError, None),
        ({"messages": asked(), "palate": {"colour": 1}}, openai.BadRequestError, "palate.colour"),
        ({"messages": asked(), "tools": [{"type": "function"}]}, openai.BadRequestError, "messages"),
        ({"messages": asked("Zxqv?")}, openai.BadRequestError, None),
    ],
)
def test_what_cannot_be_is_a_clear_error_of_openai_s_class(server, body, error, param):
    with pytest.raises(error) as caught:
        client(server).post("/chat/completions", body=body, cast_to=object)
    told = caught.value.body
    assert set(told) == {"message", "type", "param", "code"}
    assert told["type"] == "invalid_request_error" and told["message"] and told["param"] == param
    assert caught.value.request_id


def test_a_wrong_key_and_a_lacking_scope(server):
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="pk-guess", max_retries=0).models.list()
    narrow = openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key_of(scopes=("feedback",)), max_retries=0)
    with pytest.raises(openai.PermissionDeniedError):
        narrow.chat.completions.create(model="m", messages=asked())


def test_models_are_listed(server):
    listed = client(server).models.list()
    assert [model.id for model in listed] == ["bundled answers"]
    assert client(server).models.retrieve("bundled answers").owned_by == "palate"
    with pytest.raises(openai.NotFoundError):
        client(server).models.retrieve("none")


def test_langchain_works_unchanged(server):
    model = ChatOpenAI(base_url=f"{server.url}/v1", api_key=server.key, model="any", max_retries=0)
    said = model.invoke(QUESTIONS[1], user="lang")
    assert said.content and said.response_metadata["id"].startswith("chatcmpl-")
    streamed = "".join(str(chunk.content) for chunk in model.stream(QUESTIONS[1], user="lang"))
    assert len(streamed) > 20


# Who the user is


@pytest.mark.parametrize(
    ("headers", "body", "who"),
    [
        (
            {"x-palate-user": "head"},
            {"user": "by user", "metadata": {"user_id": "m"}, "safety_identifier": "s"},
            "head",
        ),
        ({}, {"user": "by body", "metadata": {"user_id": "m"}, "safety_identifier": "s"}, "by body"),
        ({}, {"metadata": {"user_id": "m2"}, "safety_identifier": "s"}, "m2"),
        ({}, {"safety_identifier": "s2"}, "s2"),
    ],
)
def test_the_user_is_taken_from_the_first_place_that_names_one(server, headers, body, who):
    with server.http() as http:
        said = http.post("/v1/chat/completions", json={"messages": asked()} | body, headers=headers).json()
    user = server.service.store.user(who)
    assert user is not None and [one.id for one in server.service.completions.of(user)] == [said["id"]]


def test_of_nobody_nothing_is_written(server):
    before = len(server.service.store.users())
    said = server.chat(QUESTIONS[0], user=None).json()
    assert said["choices"][0]["message"]["content"] and len(server.service.store.users()) == before
    with server.http() as http:
        assert http.get(f"/v1/completions/{said['id']}/explanation").status_code == 404


def test_names_of_any_script_are_names_and_others_are_refused(server):
    assert server.chat(QUESTIONS[0], user="مريم 🌱").status_code == 200
    assert server.service.store.user("مريم 🌱") is not None
    assert server.chat(QUESTIONS[0], user="x" * 257).json()["error"]["param"] == "user"


# Learning from what is typed next


def turn(server: Live, user: str, reply: str, question: str = COOKING, **body):
    first = server.chat(question, user=user).json()["choices"][0]["message"]["content"]
    return server.chat(question, first, reply, user=user, **body).json()["palate"]["reading"]


def test_what_is_typed_next_is_read_once_however_often_it_is_sent(server):
    first = server.chat(COOKING, user="typist").json()
    answer = first["choices"][0]["message"]["content"]
    for _ in range(3):
        read = server.chat(COOKING, answer, ANNOYED, user="typist").json()["palate"]["reading"]
        assert read["completion_id"] == first["id"] and read["satisfaction"] < 0.4
        assert (read["target"], read["learned"]) == ("taste", True)
    user = server.service.store.user("typist")
    assert user and len(server.service.store.evidence(user, include_provisional=True)) == 1


def test_a_message_after_an_answer_that_is_not_ours_is_no_reply(server):
    read = server.chat(QUESTIONS[0], "Somebody else wrote this.", PLEASED, user="stranger").json()["palate"]["reading"]
    assert read is None
    # Nor is an answer that somebody else was given.
    theirs = server.chat(QUESTIONS[2], user="her").json()["choices"][0]["message"]["content"]
    assert server.chat(QUESTIONS[2], theirs, PLEASED, user="him").json()["palate"]["reading"] is None


def test_a_question_says_nothing_of_taste_and_is_not_kept(server):
    read = turn(server, "curious", "And how long does that take?")
    assert not read["learned"] and "nothing clear of taste" in read["reason"]
    user = server.service.store.user("curious")
    assert user and not server.service.store.evidence(user, include_provisional=True)


@pytest.mark.parametrize(
    ("topic", "text"),
    [
        ("health", "I hate this tone, my doctor just told me that I have diabetes"),
        ("money", "Far too formal! My credit card debt is 12,000 and the bank wants it back"),
        ("passwords", "Love it. By the way my password is hunter2, keep it for me"),
        ("law", "Too dry for me. I am getting divorced and my lawyer says I lose custody"),
    ],
)
def test_sensitive_topics_are_never_learned_from(server, topic, text):
    read = turn(server, f"private {topic}", text)
    assert not read["learned"] and topic in read["reason"]
    user = server.service.store.user(f"private {topic}")
    assert user and not server.service.store.evidence(user, include_provisional=True, include_withdrawn=True)


def test_learning_is_switched_off_by_request_by_person_and_by_tenant(server):
    quiet = server.chat(QUESTIONS[0], user="once", palate={"learn": False}).json()
    assert server.service.store.user("once") is None and quiet["choices"]
    with server.http() as http:
        server.chat(QUESTIONS[0], user="pauser")
        assert http.patch("/v1/users/pauser", json={"paused": True}).json()["paused"]
    assert turn(server, "pauser", ANNOYED) is None
    key = server.key_of("silent")
    server.service.store.set_tenant("silent", learn=False)
    said = server.chat(QUESTIONS[0], user="ann", key=key).json()["choices"][0]["message"]["content"]
    again = server.chat(QUESTIONS[0], said, ANNOYED, user="ann", key=key).json()
    assert again["palate"]["reading"] is None and server.service.store.users("silent") == []


# Strategies, chance, and the upstream


def test_a_share_of_answers_is_generic_by_chance_and_its_propensity_is_kept():
    with live(generic=0.5) as server:
        user = server.service.store.ensure_user("ann")
        with server.http() as http:
            for _ in range(3):
                query = http.post("/v1/users/ann/queries").json()
                http.post(f"/v1/users/ann/queries/{query['query_id']}", json={"choice": "a"})
        for _ in range(24):
            server.chat(QUESTIONS[0])
        made = server.service.completions.of(user)
    generic = [one for one in made if one.generic]
    assert 3 <= len(generic) <= 21 and {one.propensity for one in made} == {0.5}
    assert {one.strategy for one in generic} == {"off"}


def test_the_upstream_sees_a_pseudonym_and_what_is_not_ours(server):
    with endpoint() as upstream, live(upstream=upstream.url) as one:
        said = one.chat("Hi there", user="ann@example.org", presence_penalty=0.5, palate={"candidates": 2}, model="big")
        assert said.status_code == 200
    request = upstream.requests[0]
    assert "ann@example.org" not in json.dumps(upstream.requests)
    assert request["presence_penalty"] == 0.5 and request["model"] == "big" and "palate" not in request
    assert len(request["user"]) == 32


def test_tools_pass_through_to_the_upstream():
    with endpoint() as upstream, live(upstream=upstream.url) as one:
        tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
        said = one.chat("Hi", tools=tools).json()
        assert upstream.requests[0]["tools"] == tools and said["palate"]["strategy"] == "off"
        assert said["choices"][0]["message"]["content"]
        with one.http() as http:
            body = {"messages": asked("Hi"), "tools": tools, "stream": True}
            assert events(http.post("/v1/chat/completions", json=body))[-1] == "[DONE]"


def test_the_upstream_s_errors_are_passed_on_in_shape():
    with endpoint(status=lambda number: 429) as upstream, live(upstream=upstream.url) as one:
        refused = one.chat("Hi", palate={"strategy": "off"})
        assert refused.status_code in (429, 502) and refused.json()["error"]["message"]
    with live(upstream="http://127.0.0.1:9/v1") as one:
        gone = one.chat("Hi", palate={"strategy": "off"})
        assert gone.status_code == 502 and gone.json()["error"]["type"] == "upstream_error"
        with one.http() as http:
            streamed = http.post("/v1/chat/completions", json={"messages": asked("Hi"), "stream": True})
        assert streamed.status_code == 502 or "error" in events(streamed)[-1]


def test_comments_keep_a_stream_open_while_candidates_are_drawn():
    with endpoint(delay=2.5) as upstream, live(upstream=upstream.url, keep_alive=0.3) as one, one.http() as http:
        said = http.post("/v1/chat/completions", json={"messages": asked("Hi"), "stream": True})
    assert said.text.count(": keep-alive") >= 2 and events(said)[-1] == "[DONE]"


def test_who_stops_listening_stops_the_work():
    with endpoint(delay=3.0) as upstream, live(upstream=upstream.url) as one:
        with (
            one.http() as http,
            http.stream(
                "POST", "/v1/chat/completions", json={"messages": asked("Hi"), "stream": True, "user": "ann"}
            ) as said,
        ):
            next(said.iter_lines())
        time.sleep(3.5)
        user = one.service.store.user("ann")
        assert user and one.service.completions.of(user) == []
        assert one.chat("Hi", palate={"strategy": "off"}).status_code == 200


def test_a_long_conversation_is_bounded_and_a_broken_body_is_told(server):
    with server.http() as http:
        large = http.post("/v1/chat/completions", json={"messages": asked("x" * 1_100_000)})
        assert large.status_code == 413 and large.json()["error"]["code"] == "body_too_large"

        def pieces() -> Iterator[bytes]:
            for _ in range(12):
                yield b"x" * 100_000

        assert http.post("/v1/chat/completions", content=pieces()).status_code == 413
        broken = http.post(
            "/v1/chat/completions", content=b'{"messages": [', headers={"content-type": "application/json"}
        )
        assert broken.status_code == 400 and broken.json()["error"]["code"] == "json_invalid"
        assert http.get("/v1/nothing").json()["error"]["type"] == "not_found_error"
        assert http.put("/v1/feedback").status_code == 405


def test_every_response_has_a_request_id(server):
    with server.http() as http:
        given = http.get("/v1/models", headers={"x-request-id": "mine-1"})
        assert given.headers["x-request-id"] == "mine-1"
        assert httpx.get(f"{server.url}/v1/models").headers["x-request-id"].startswith("req-")
        assert http.get("/health", headers={"x-request-id": "no\tgood"}).headers["x-request-id"].startswith("req-")
