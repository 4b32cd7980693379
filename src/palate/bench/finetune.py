"""How fast an encoder is fine-tuned, and in how much memory: MiniLM, and a causal language model of random weights.

Speed and memory depend on a model's shape, not on its weights: where MiniLM's are not at hand, a random model of its
shape stands in, and the table says so. On an accelerator in bfloat16, on a CPU in single precision. What is timed is
the loop that `palate fit --finetune` runs: tokenising, forward and backward pass, and the optimiser's step.
"""

import resource
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from palate.bench.report import Result, markdown
from palate.data import load_people
from palate.encoders import CausalEncoder, SentenceEncoder, load_encoder
from palate.encoders.models import quiet, windows_of
from palate.errors import EncoderError, InputError, MissingExtraError
from palate.feedback import as_text
from palate.rewards.finetuning import Finetune
from palate.rewards.fitting import Stage
from palate.rewards.indexing import Indexed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_RANK = 12
_WARM_UP, _STEPS = 3, 20
_MEGABYTE = 2**20


def run(*, quick: bool, seed: int, data: Path | None = None, progress: Stage | None = None) -> Result:
    """Texts, comparisons and tokens per second, and peak memory, by model and method.

    Args:
        quick: few steps, and a tiny language model instead of one of 300 million weights.
        seed: of the random weights and the order of comparisons.
        data: folder of the sentence encoder; all-MiniLM-L6-v2 by default.
        progress: told of each case.

    Raises:
        InputError: `data` holds no sentence encoder.
        MissingExtraError: accelerate or peft is not installed.
    """
    told = progress or (lambda stage, done, total: None)
    indexed = Indexed.of(load_people())
    texts = sorted({as_text(text) for text in (*indexed.prompts, *indexed.completions)})
    sentence, is_random = _sentence_encoder(data, texts, seed)
    causal = _causal_encoder(texts, seed, quick=quick)
    cases = [(name, method, False) for name in ("minilm", "causal") for method in ("full", "lora")]
    cases += [("causal", method, True) for method in ("full", "lora")]
    figures = {
        "minilm.parameters": float(sentence.model.num_parameters()),
        "minilm.random_weights": float(is_random),
        "causal.parameters": float(causal.model.num_parameters()),
    }
    for number, (name, method, checkpointing) in enumerate(cases):
        told("Fine-tuning", number, len(cases))
        settings = Finetune(
            method,  # type: ignore[arg-type]
            precision="bf16" if sentence.model.device.type == "cuda" else "no",
            gradient_checkpointing=checkpointing,
            texts=8 if quick else 64,
            frozen_layers=0,
        )
        case = f"{name}.{method}{'.checkpointing' if checkpointing else ''}"
        encoder = sentence if name == "minilm" else causal
        figures |= {f"{case}.{key}": v for key, v in _measure(encoder, indexed, settings, seed, quick=quick).items()}
    return Result("finetune", figures, _table(figures, sentence))


def _measure(
    encoder: SentenceEncoder | CausalEncoder, indexed: Indexed, settings: Finetune, seed: int, *, quick: bool
) -> dict[str, float]:
    """One case, after some steps that are not timed."""
    try:
        from palate.rewards.finetuning.towers import TextTower
        from palate.rewards.finetuning.training import Reading, Run, Task
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "accelerate", "finetune") from error
    prompts, completions = [as_text(p) for p in indexed.prompts], [as_text(c) for c in indexed.completions]
    rng = np.random.default_rng(seed)
    reading = Reading(
        offset=np.zeros(encoder.width),
        weights=rng.standard_normal((_RANK, encoder.width)) / encoder.width,
        people=rng.standard_normal((indexed.choices.n_users, _RANK)),
        lapse=0.05,
    )
    tower = TextTower(encoder, prompts, completions, settings, seed)
    trained = sum(p.numel() for p in tower.parameters() if p.requires_grad)
    one = Run(tower, Task(indexed.choices, len(prompts), lambda raw: reading), settings, seed)
    by, batches = one.on_device(reading), _forever(one.loader)
    for batch in islice(batches, 1 if quick else _WARM_UP):
        one.learn(batch, *by, reading.lapse)
    _reset_memory()
    answers: list[int] = []
    comparisons, started = 0, perf_counter()
    for batch in islice(batches, 2 if quick else _STEPS):
        one.learn(batch, *by, reading.lapse)
        answers += batch["answers"].tolist()
        comparisons += len(batch["user"])
    memory = _peak_memory()  # waits for the accelerator
    seconds = perf_counter() - started
    one.finish()
    tokens = _tokens(encoder, [prompts[i] for i in answers], [completions[i] for i in answers])
    return {
        "texts_per_second": len(answers) / seconds,
        "comparisons_per_second": comparisons / seconds,
        "tokens_per_second": tokens / seconds,
        "tokens_per_text": tokens / len(answers),
        "peak_memory_mb": memory / _MEGABYTE,
        "trained_parameters": float(trained),
    }


def _forever(loader: Any) -> Iterator[dict[str, Any]]:
    while True:
        yield from loader


def _tokens(encoder: SentenceEncoder | CausalEncoder, prompts: Sequence[str], completions: Sequence[str]) -> int:
    """Tokens read of these answers, by the length of each text or pair in the encoder's features."""
    texts = list(completions)
    if isinstance(encoder, CausalEncoder):
        texts = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
        return sum(len(ids) for ids in encoder.tokenizer(texts).input_ids)
    return sum(len(e) + sum(map(len, e.overflowing)) for e in encoder.tokenizer.encode_batch_fast(texts))


def _reset_memory() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()


def _peak_memory() -> int:
    """Bytes: the accelerator's since the reset; the whole process's so far where there is none."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _sentence_encoder(data: Path | None, texts: Sequence[str], seed: int) -> tuple[SentenceEncoder, bool]:
    """MiniLM, or a random model of its shape."""
    try:
        encoder = load_encoder(str(data)) if data else load_encoder()
    except EncoderError:
        if data:
            raise
        return _random_minilm(texts, seed), True
    if not isinstance(encoder, SentenceEncoder):
        raise InputError(f"{str(data)!r} is no sentence encoder; give the folder of one such as all-MiniLM-L6-v2")
    return replace(encoder, cache=None), False


def _random_minilm(texts: Sequence[str], seed: int) -> SentenceEncoder:
    from transformers import BertConfig

    config = BertConfig(
        vocab_size=30_522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    model, tokenizer = _random_model(config, texts, seed)
    return SentenceEncoder("random MiniLM", "random", Path(), model, windows_of(tokenizer, model))


def _causal_encoder(texts: Sequence[str], seed: int, *, quick: bool) -> CausalEncoder:
    """Qwen 2.5's shape at 300 million weights, its vocabulary left out; a tiny one where it must be quick."""
    from transformers import Qwen2Config

    config = Qwen2Config(
        vocab_size=4096,
        hidden_size=64 if quick else 896,
        intermediate_size=256 if quick else 4864,
        num_hidden_layers=2 if quick else 20,
        num_attention_heads=4 if quick else 14,
        num_key_value_heads=2,
    )
    model, tokenizer = _random_model(config, texts, seed)
    return CausalEncoder("random Qwen 2", "random", Path(), model, tokenizer)


def _random_model(config: Any, texts: Sequence[str], seed: int) -> "tuple[Any, PreTrainedTokenizerFast]":
    """A model of that shape on the accelerator, where there is one, and a tokeniser learned from the texts."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import AutoModel, PreTrainedTokenizerFast

    make: Any = AutoModel.from_config
    wrap: Any = PreTrainedTokenizerFast
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2048, special_tokens=["<pad>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make(config).eval()
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), wrap(tokenizer_object=tokenizer, pad_token="<pad>")


def _table(figures: dict[str, float], sentence: SentenceEncoder) -> str:
    import torch

    on_gpu = sentence.model.device.type == "cuda"
    machine = f"{torch.cuda.get_device_name()}, bfloat16" if on_gpu else "CPU, single precision"
    cases = [name.removesuffix(".texts_per_second") for name in figures if name.endswith(".texts_per_second")]
    shown: Sequence[tuple[str, Callable[[float], str]]] = [
        ("texts_per_second", "{:.1f}".format),
        ("comparisons_per_second", "{:.0f}".format),
        ("tokens_per_second", "{:.0f}".format),
        ("tokens_per_text", "{:.0f}".format),
        ("peak_memory_mb", "{:.0f}".format),
        ("trained_parameters", "{:,.0f}".format),
    ]
    rows = [[case, *(written(figures[f"{case}.{key}"]) for key, written in shown)] for case in cases]
    note = " MiniLM's weights were not at hand: random ones of its shape." if figures["minilm.random_weights"] else ""
    return (
        f"# Fine-tuning\n\nOn {machine}. MiniLM has {figures['minilm.parameters'] / 1e6:.0f} million weights, the "
        f"causal model (Qwen 2's shape, random) {figures['causal.parameters'] / 1e6:.0f} million.{note} On a CPU, "
        "memory is the whole process's so far.\n\n" + markdown(["", *(key.replace("_", " ") for key, _ in shown)], rows)
    )
