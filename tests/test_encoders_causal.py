"""Causal language models as encoders: against transformers one text at a time, whatever the padding."""

import logging
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny_models import CHAT, DATED, NAMES, TRIMMING, byte_tokenizer, save_causal

from palate.encoders import CausalEncoder, Encoder, SentenceEncoder, Tunable, load_encoder
from palate.errors import EncoderError, InputError

PROMPTS = ["How do I boil an egg?", "Hi", "  Tell me\nof tea. ", "", "שלום 🍵", "How do I boil an egg?"]
COMPLETIONS = ["Nine minutes.", "Hello, my friend! " * 4, " Hot. ", "A", "", "Gently!"]


def load(folder: Path, **changes: Any) -> CausalEncoder:
    encoder = load_encoder(str(folder), cache=False, device="cpu")
    assert isinstance(encoder, CausalEncoder)
    return replace(encoder, **changes)


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_causal(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="session")
def qwen(qwen_folder: Path) -> CausalEncoder:
    return load(qwen_folder)


@cache
def as_transformers_loads(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder), model.eval()


def naive(folder: Path, prompt: str, completion: str) -> np.ndarray:
    """The last token's last hidden state, by transformers alone: no padding, no mask, no positions."""
    import torch

    tokenizer, model = as_transformers_loads(folder)
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, date_string="26 Jul 2024")
        ids = tokenizer(text, add_special_tokens=False).input_ids
    else:
        ids = tokenizer(f"{prompt}\n\n{completion}").input_ids
    with torch.no_grad():
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1]
    return np.asarray(states[0, -1].numpy())


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("template", [CHAT, None], ids=["chat", "plain"])
@pytest.mark.parametrize("name", NAMES)
def test_features_are_those_of_transformers_one_at_a_time(
    tmp_path: Path, name: str, template: str | None, side: str
) -> None:
    tokenizer = byte_tokenizer(template, pad=name == "gemma2", padding_side=side)  # most come without padding token
    folder = save_causal(tmp_path, name, tokenizer=tokenizer)
    encoder = load(folder)
    assert encoder.tokenizer.padding_side == side
    features = encoder.encode(PROMPTS, COMPLETIONS)
    assert features.dtype == np.float32
    expected = [naive(folder, p, c) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    np.testing.assert_allclose(features[:, encoder.blocks["state"]], expected, atol=2e-5)
    for i, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        np.testing.assert_allclose(encoder.encode([prompt], [completion])[0], features[i], atol=2e-5)


@pytest.mark.parametrize("template", [TRIMMING, DATED], ids=["trims", "dated"])
def test_templates_that_trim_or_write_the_date(tmp_path: Path, template: str) -> None:
    folder = save_causal(tmp_path, tokenizer=byte_tokenizer(template))
    encoder = load(folder)
    expected = [naive(folder, p, c) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    np.testing.assert_allclose(encoder.encode(PROMPTS, COMPLETIONS)[:, :-1], expected, atol=2e-5)
    assert encoder.frame.strips == (template == TRIMMING)


@settings(max_examples=40)
@given(st.text(max_size=30), st.text(max_size=30))
def test_the_length_is_that_of_the_completion_alone(qwen: CausalEncoder, prompt: str, completion: str) -> None:
    # one token a byte
    expected = np.log1p(len(completion.encode("utf-8", "replace")))
    assert qwen.encode([prompt], [completion])[0, -1] == pytest.approx(expected, abs=1e-6)


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.text(max_size=20), st.text(max_size=60)), min_size=1, max_size=8),
    st.sampled_from(["left", "right"]),
)
def test_a_pair_does_not_depend_on_its_batch_nor_on_the_padding(
    qwen_folder: Path, qwen: CausalEncoder, pairs: list[tuple[str, str]], side: str
) -> None:
    qwen.tokenizer.padding_side = side
    prompts, completions = [p for p, _ in pairs], [c for _, c in pairs]
    together = qwen.encode(prompts, completions)
    alone = np.concatenate([qwen.encode([p], [c]) for p, c in pairs])
    np.testing.assert_allclose(together, alone, atol=2e-5)


# Long texts


def test_a_long_prompt_loses_its_start_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import torch

    folder = save_causal(tmp_path, window=64)
    encoder = load(folder)
    end = "x" * 40
    first, other = encoder.encode(["A" * 100 + end, "BCD" * 200 + end], ["An answer."] * 2)
    np.testing.assert_array_equal(first, other)
    assert caplog.messages == [
        f"2 of 2 texts are longer than the 64 tokens that {encoder.name} reads: their prompts are cut from the start"
    ]
    # What is left, by hand: the template's head of one special token, "user\n" and `<bos>`, then the end.
    text = "<bos><turn>user\n" + "A" * 100 + end + "<end>\n<turn>assistant\nAn answer.<end>\n"
    ids = encoder.tokenizer(text, add_special_tokens=False).input_ids
    kept = ids[:7] + ids[len(ids) - 57 :]
    with torch.no_grad():
        expected = encoder.model(torch.tensor([kept])).last_hidden_state[0, -1]
    np.testing.assert_allclose(first[:-1], expected, atol=2e-5)
    assert first[-1] == pytest.approx(np.log1p(10))


def test_a_completion_past_the_window_is_read_by_its_end(tmp_path: Path) -> None:
    encoder = load(save_causal(tmp_path, window=64))
    one, other = encoder.encode(["Hi", "Bye"], ["a" * 500 + "c" * 60, "b" * 500 + "c" * 60])
    np.testing.assert_array_equal(one, other)  # the same last 64 less the head of 7
    assert one[-1] == pytest.approx(np.log1p(560))


def test_a_short_text_says_nothing(qwen: CausalEncoder, caplog: pytest.LogCaptureFixture) -> None:
    qwen.encode(PROMPTS, COMPLETIONS)
    assert caplog.messages == []


# What it is, and where it is kept


def test_it_is_an_encoder_that_can_be_tuned(qwen: CausalEncoder) -> None:
    encoder: Encoder = qwen
    assert isinstance(encoder, Tunable)
    assert (encoder.width, dict(encoder.blocks)) == (17, {"state": slice(0, 16), "length": slice(16, 17)})
    assert encoder.encode([], []).shape == (0, 17)
    with pytest.raises(InputError, match="Got 1 prompts and 2 completions"):
        encoder.encode(["tea"], ["tea", "rain"])


def test_features_are_differentiable_and_those_of_encode(qwen: CausalEncoder) -> None:
    import torch

    weight = qwen.model.get_parameter("layers.0.mlp.up_proj.weight")
    weight.requires_grad_(True)
    try:
        features = qwen.features(PROMPTS, COMPLETIONS)
        (gradient,) = torch.autograd.grad(features.sum(), weight)
    finally:
        weight.requires_grad_(False)
    assert float(gradient.abs().sum()) > 0
    np.testing.assert_allclose(features.detach().numpy(), qwen.encode(PROMPTS, COMPLETIONS), atol=1e-6)


def test_the_configuration_decides(tmp_path: Path, qwen_folder: Path) -> None:
    from tests.test_encoders import save_tiny
    from transformers import AutoModel, BertConfig

    assert isinstance(load_encoder(str(save_tiny(tmp_path / "bert")), cache=False), SentenceEncoder)
    decoder = save_tiny(tmp_path / "decoder")
    config = BertConfig.from_pretrained(decoder)
    config.is_decoder = True
    config.save_pretrained(decoder)
    assert isinstance(load_encoder(str(decoder), cache=False), CausalEncoder)
    headless = save_causal(tmp_path / "headless")
    AutoModel.from_pretrained(headless).save_pretrained(headless)  # Qwen2Model
    same = load(headless)
    np.testing.assert_array_equal(same.encode(PROMPTS, COMPLETIONS), load(qwen_folder).encode(PROMPTS, COMPLETIONS))


def test_a_pair_is_read_once_and_then_comes_from_the_cache(qwen_folder: Path, tmp_path: Path) -> None:
    encoder = load_encoder(str(qwen_folder), cache_dir=tmp_path, device="cpu")
    cold = encoder.encode(PROMPTS, COMPLETIONS)
    assert [path.name for path in tmp_path.iterdir()] == [f"{encoder.revision}-causal1.sqlite3"]
    assert isinstance(encoder, CausalEncoder)
    calls: list[tuple[int, int]] = []
    warm = encoder.encode(PROMPTS[::-1], COMPLETIONS[::-1], progress=lambda *call: calls.append(call))[::-1]
    assert calls == [(6, 6)]
    assert cold.tobytes() == warm.tobytes()
    # Where the prompt ends is part of what is read.
    one, other = encoder.encode(["ab", "a"], ["c", "bc"])
    assert not np.array_equal(one, other)


# Templates that cannot be used


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ messages[0]['content'] }}", "it leaves out the prompt or the completion"),
        ("{{ raise_exception('Only tools') }}", "Only tools"),
    ],
)
def test_a_template_that_cannot_be_used_is_named(tmp_path: Path, template: str, reason: str) -> None:
    encoder = load(save_causal(tmp_path, tokenizer=byte_tokenizer(template)))
    with pytest.raises(EncoderError) as caught:
        encoder.encode(["Hi"], ["Hello"])
    assert str(caught.value) == (
        f"The chat template of {encoder.name!r} cannot be used: {reason}; give a model whose template takes a user's "
        "turn and an assistant's, or take the template out of its tokenizer_config.json"
    )


def test_the_log_is_this_modules(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(save_causal(tmp_path, window=32)).encode(["p" * 99], ["c"])
    assert [(r.levelno, r.name) for r in caplog.records] == [(logging.WARNING, "palate.encoders.causal")]
