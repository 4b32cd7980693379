"""Where answers come from: an endpoint over HTTP, known answers, and what each says of bad requests."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.endpoint_support import endpoint

from palate.alignment.candidates import Known, Sampling, as_messages
from palate.alignment.endpoint import Endpoint
from palate.errors import InputError, UpstreamError
from palate.feedback import Message

KNOWN = Known({"How do I boil an egg?": ["Nine minutes.", "Patience, dear friend.", "Boil it."]})


@asynccontextmanager
async def closed(source: Any) -> AsyncIterator[Any]:
    try:
        yield source
    finally:
        if isinstance(source, Endpoint):
            await source.aclose()


def texts(source: Any, n: int = 3, sampling: Sampling = Sampling(), prompts: Any = ("Hi",)) -> list[list[str]]:
    async def drawn() -> list[list[str]]:
        async with closed(source):
            return [[one.text for one in answers] for answers in await source.sample(prompts, n, sampling)]

    return asyncio.run(drawn())


def said(source: Any) -> str:
    async def whole() -> str:
        async with closed(source):
            return "".join([piece async for piece in source.stream("Hi", Sampling())])

    return asyncio.run(whole())


def test_an_endpoint_gives_as_many_as_asked_in_one_request():
    with endpoint() as served:
        source = Endpoint(served.url)
        assert texts(source) == [["answer 0", "answer 1", "answer 2"]]
        assert source.name == "tiny"
    [request] = served.requests
    assert request["n"] == 3 and request["messages"] == [{"role": "user", "content": "Hi"}]
    assert request["max_tokens"] == 512 and "seed" not in request


def test_an_endpoint_that_knows_no_n_is_asked_again_with_other_seeds():
    with endpoint(knows_n=False) as served:
        assert sorted(texts(Endpoint(served.url), sampling=Sampling(seed=7))[0]) == [
            "answer 0",
            "answer 100",
            "answer 200",
        ]
    assert sorted(request["seed"] for request in served.requests) == [7, 8, 9]


def test_an_endpoint_that_refuses_n_is_asked_one_by_one_from_then_on():
    with endpoint(refuses_n=True) as served:

        async def twice() -> list[int]:
            async with Endpoint(served.url, retries=0) as source:
                return [len(answers) for _ in range(2) for answers in await source.sample(["Hi"], 3, Sampling())]

        assert asyncio.run(twice()) == [3, 3]
    assert [request.get("n", 1) for request in served.requests] == [3, 1, 1, 1, 1, 1, 1]


def test_what_was_answered_is_kept_where_a_further_request_fails():
    with endpoint(knows_n=False, status=lambda number: 500 if number == 1 else 200) as served:
        assert texts(Endpoint(served.url, retries=0)) == [["answer 0", "answer 200"]]


def test_the_likeliest_answer_is_asked_for_once():
    with endpoint() as served:
        assert texts(Endpoint(served.url), 8, Sampling(temperature=0)) == [["answer 0"]]
    assert "n" not in served.requests[0]


def test_no_more_requests_run_at_once_than_allowed():
    with endpoint(delay=0.05) as served:
        texts(Endpoint(served.url, at_once=2), 1, prompts=["Hi"] * 6)
    assert len(served.requests) == 6 and served.most_at_once == 2


def test_an_endpoint_is_asked_again_where_it_refuses():
    with endpoint(status=lambda number: 429 if number < 2 else 200) as served:
        assert texts(Endpoint(served.url), 1) == [["answer 200"]]
    with (
        endpoint(status=lambda number: 429) as served,
        pytest.raises(UpstreamError, match="too many requests, after 1"),
    ):
        texts(Endpoint(served.url, retries=1), 1)


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"status": lambda number: 400}, InputError, "longer than tiny reads: .*shorten it"),
        ({"status": lambda number: 504}, UpstreamError, "status 504"),
        ({"status": lambda number: 401}, UpstreamError, "status 401.*key and model"),
        ({"raw": b"<html>It works!</html>"}, UpstreamError, "no chat completion: '<html>"),
        ({"raw": b'{"choices": null}'}, UpstreamError, "no chat completion"),
        ({"raw": b'{"choi'}, UpstreamError, "no chat completion"),
        ({"answer": lambda request, number: "  "}, UpstreamError, "nothing but empty answers"),
        ({"delay": 0.5}, UpstreamError, "did not answer within 0.1 s, after 0 more tries"),
    ],
)
def test_what_an_endpoint_does_wrong_is_told(settings, kind, message):
    with endpoint(**settings) as served, pytest.raises(kind, match=message):
        texts(Endpoint(served.url, retries=0, timeout=0.1 if "delay" in settings else 10.0))


def test_an_endpoint_that_is_down_is_told():
    with endpoint() as served:
        pass
    with pytest.raises(UpstreamError, match="cannot be reached"):
        texts(Endpoint(served.url, retries=0))


def test_empty_answers_are_left_out():
    with endpoint(answer=lambda request, number: "" if number % 2 else f"answer {number}") as served:
        [found] = texts(Endpoint(served.url), 4)
    # The last two were asked for side by side: either may come first.
    assert found[:2] == ["answer 0", "answer 2"] and sorted(found[2:]) == ["answer 100", "answer 200"]


def test_a_stream_comes_in_pieces_and_one_that_breaks_off_is_told():
    with endpoint(answer=lambda *_: "one two") as served:
        assert said(Endpoint(served.url)) == "one two "
    with endpoint(answer=lambda *_: "") as served, pytest.raises(UpstreamError, match="an empty answer"):
        said(Endpoint(served.url))
    with endpoint(cut=True) as served, pytest.raises(UpstreamError, match="broke off after 9 characters"):
        said(Endpoint(served.url))


def test_known_answers_are_drawn_without_repeats_for_the_likest_prompt():
    [drawn] = texts(KNOWN, 8, prompts=["how do i boil an EGG"])
    assert sorted(drawn) == sorted(next(iter(KNOWN.answers.values())))
    assert texts(KNOWN, 2, Sampling(seed=3), ["How do I boil an egg?"]) == texts(
        KNOWN, 2, Sampling(seed=3), ["How do I boil an egg?"]
    )
    conversation = [{"role": "user", "content": "How do I boil an egg?"}, {"role": "assistant", "content": "So."}]
    assert len(texts(KNOWN, 3, prompts=[conversation])[0]) == 3
    with pytest.raises(InputError, match=r"no answer to 'Why\?'.*such as 'How do I boil an egg\?'"):
        texts(KNOWN, prompts=["Why?"])


def test_the_bundled_answers_are_whole():
    answers = Known.bundled().answers
    assert len(answers) == 120 and {len(those) for those in answers.values()} == {12}


@pytest.mark.parametrize("n", [0, -1, 10_000])
def test_a_count_out_of_range_is_refused(n):
    for source in (KNOWN, Endpoint("http://localhost:1/v1")):
        with pytest.raises(InputError, match="from 1 to 1,024"):
            texts(source, n)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"max_tokens": 0},
        {"seed": -1},
    ],
)
def test_a_sampling_out_of_range_is_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_what_is_no_endpoint_is_refused():
    with pytest.raises(InputError, match="no URL"):
        Endpoint("localhost:8000")
    with pytest.raises(InputError, match="out of range"):
        Endpoint("http://localhost:8000/v1", at_once=0)


def test_a_conversation_stays_one():
    turns: list[Message] = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert as_messages(turns) == turns
