"""Answers from tiny language models of four architectures: chat templates, batches, seeds, streams, bad prompts."""

import asyncio
from functools import cache

import pytest
import torch
from tests.cli_support import made_once
from tests.tiny_models import CHAT, NAMES, byte_tokenizer, save_causal

from palate.alignment.candidates import Sampling
from palate.alignment.local import LocalModel
from palate.errors import EncoderError, InputError
from palate.feedback import Message

NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHAT
)


def local(name: str = "qwen2") -> LocalModel:
    return _local(name)


@cache
def _local(name: str) -> LocalModel:
    return LocalModel.load(str(made_once(f"causal-{name}", lambda folder: save_causal(folder, name))), batch=3)


def with_template(template: str | None) -> LocalModel:
    return LocalModel("tiny", local().model, byte_tokenizer(template), batch=3)


@pytest.mark.parametrize("name", NAMES)
def test_each_architecture_writes_as_many_answers_as_asked(name):
    drawn = local(name).draw(["Hi", "How do you do?"], 3, Sampling(max_tokens=5, seed=0))
    assert [len(answers) for answers in drawn] == [3, 3]
    assert all(one.tokens <= 5 for answers in drawn for one in answers)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_gives_each_prompt_what_it_gets_alone(name):
    prompts = ["Hi", "A prompt that is a good deal longer than the other", "Why?"]
    greedy = Sampling(temperature=0, max_tokens=6)
    together = local(name).draw(prompts, 1, greedy)
    assert together == [local(name).draw([prompt], 1, greedy)[0] for prompt in prompts]


def test_the_same_seed_gives_the_same_answers_and_leaves_the_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = (local().draw(["Hi"], 3, Sampling(max_tokens=8, seed=seed)) for seed in (1, 1, 2))
    assert one == same != other
    assert torch.equal(torch.rand(3), expected)


def test_an_answer_that_runs_into_the_limit_is_cut_and_one_that_meets_a_stop_is_not():
    [[long]] = local().draw(["Hi"], 1, Sampling(max_tokens=4, temperature=0))
    assert long.cut and long.tokens == 4
    [[stopped]] = local().draw(["Hi"], 1, Sampling(max_tokens=40, temperature=0, stop=(long.text[:1],)))
    assert not stopped.cut and stopped.text == ""


def test_the_prompt_is_written_in_the_template_or_plainly():
    source = with_template(CHAT)
    assert source.tokenizer.decode(source._ids("Hi", 1)) == "<bos><turn>user\nHi<end>\n<turn>assistant\n"
    plain = with_template(None)
    assert plain.tokenizer.decode(plain._ids("Hi", 1)) == "<bos>Hi\n\n"


def test_a_template_without_a_system_turn_takes_it_with_the_first_other_one():
    turns: list[Message] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    source = with_template(NO_SYSTEM)
    assert "<turn>user\nBe brief.\n\nHi<end>" in source.tokenizer.decode(source._ids(turns, 1))
    assert "<turn>system\nBe brief.<end>" in with_template(CHAT).tokenizer.decode(with_template(CHAT)._ids(turns, 1))


def test_a_template_that_fails_is_told():
    source = with_template("{{ raise_exception('Never') }}")
    with pytest.raises(InputError, match="does not take this conversation: Never"):
        source.draw(["Hi"], 1, Sampling(max_tokens=1))


def test_a_prompt_that_leaves_no_room_is_refused():
    with pytest.raises(InputError, match=r"1,0\d\d tokens.*reads 256 with the answer's 200"):
        local().draw(["x" * 1_000], 1, Sampling(max_tokens=200))


@pytest.mark.parametrize("n", [0, 10_000])
def test_a_count_out_of_range_is_refused(n):
    with pytest.raises(InputError, match="from 1 to"):
        local().draw(["Hi"], n, Sampling())


def test_a_stream_says_what_the_whole_answer_says():
    greedy = Sampling(temperature=0, max_tokens=12)

    async def whole() -> str:
        return "".join([piece async for piece in local().stream("Hi", greedy)])

    [[answer]] = asyncio.run(local().sample(["Hi"], 4, greedy))
    assert asyncio.run(whole()).strip() == answer.text


def test_what_is_no_causal_model_is_refused(tmp_path):
    with pytest.raises(EncoderError):
        LocalModel.load(str(tmp_path))
    from tests.cli_support import tiny_encoder

    with pytest.raises(InputError, match="causal language model"):
        LocalModel.load(str(tiny_encoder()))


def test_tokens_of_an_answer_end_with_the_end():
    before, after = local().tokens("Hi", "Ho")
    assert before == local()._ids("Hi", 0)
    assert local().tokenizer.decode(after) == "Ho<end>"
