"""A small language model to measure on: it writes the answers to 24 prompts of Facets, in all of their styles.

It is a measuring stand. It shows whether a way of choosing or guiding answers works, and what it costs; it says
nothing of how well large models do. It is of Qwen 2's architecture, with a byte-pair tokeniser of its own, and learns
by heart what it is to write, plainly and when told what to be like. The prompts are of p4xx and p5xx, which no reward
model and no probe of these benchmarks was trained on.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from palate.alignment.candidates import Sampling
from palate.alignment.instruct import in_system, with_system
from palate.alignment.local import LocalModel
from palate.bench.people import opposite
from palate.bench.report import Result, markdown
from palate.data import POLES, Answer, load_answers
from palate.encoders.cache import default_cache_dir
from palate.encoders.models import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

Stage = Callable[[str, int, int], None]

_END, _USER, _ASSISTANT = "<|end|>", "<|user|>", "<|assistant|>"
_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True)
class Stand:
    """What the small model is.

    Args:
        prompts: of p4xx and p5xx, half of each.
        hidden: size of its states.
        layers: number of its layers.
        vocabulary: tokens.
        epochs: passes over its answers.
        rate: learning rate, which falls to nothing.
        batch: answers.
        sharpness: its logits are multiplied by this in the end, as if it always wrote at a lower temperature: what it
            learned by heart it then mostly writes without a slip, in all styles still.
        seed: same seed, same model.
    """

    prompts: int = 24
    hidden: int = 256
    layers: int = 4
    vocabulary: int = 2048
    epochs: int = 20
    rate: float = 2e-3
    batch: int = 24
    sharpness: float = 1.3
    seed: int = 0


def run(*, quick: bool, seed: int, data: Path | None = None, progress: Stage | None = None) -> Result:
    """Train the small model, or take it from the cache, and look at what it writes.

    Args:
        quick: fewer answers are looked at.
        seed: of the model and the answers.
        data: not used.
        progress: told of each stage.
    """
    told = progress or (lambda stage, done, total: None)
    stand = Stand(seed=seed)
    source, figures = policy(stand, told)
    answers = answers_of(stand)
    texts = {
        prompt: {a.text for a in answers if a.prompt == prompt} for prompt in dict.fromkeys(a.prompt for a in answers)
    }
    told("Answering", 0, 1)
    drawn = source.draw(list(texts), 8 if quick else 32, Sampling(max_tokens=320, seed=seed))
    every = [(prompt, one) for prompt, those in zip(texts, drawn, strict=True) for one in those]
    begun = time.perf_counter()
    source.draw(list(texts)[:16], 1, Sampling(max_tokens=64, seed=seed))
    figures |= {
        "prompts": float(len(texts)),
        "written": float(np.mean([one.text in texts[prompt] for prompt, one in every])),
        "distinct": float(np.mean([len({one.text for one in those}) / len(those) for those in drawn])),
        "cut": float(np.mean([one.cut for _, one in every])),
        "tokens": float(np.mean([one.tokens for _, one in every])),
        "seconds_per_token.16": (time.perf_counter() - begun) / 64,
    }
    names = {
        "parameters": "parameters",
        "loss": "loss, nats a token",
        "epochs": "passes over its answers",
        "written": "share of its answers that are written ones, word for word",
        "distinct": "share that differ from the others to the prompt",
        "cut": "share cut short",
        "tokens": "tokens an answer",
        "seconds_per_token.16": "seconds a token, sixteen answers at once",
    }
    rows = [[label, f"{figures[name]:,.3f}".removesuffix(".000")] for name, label in names.items()]
    return Result("policy", figures, markdown(["small policy, a measuring stand", ""], rows))


def answers_of(stand: Stand) -> list[Answer]:
    """The whole answers that the model learns to write, 12 to each prompt."""
    by_prompt: dict[str, list[Answer]] = {}
    for answer in load_answers():
        if answer.spoilt is None and answer.prompt_id[1] in "45":
            by_prompt.setdefault(answer.prompt_id, []).append(answer)
    four, five = ([p for p in by_prompt if p[1] == group] for group in "45")
    half = stand.prompts // 2
    return [answer for p in [*four[:half], *five[: stand.prompts - half]] for answer in by_prompt[p]]


def policy(stand: Stand = Stand(), told: Stage | None = None) -> tuple[LocalModel, dict[str, float]]:
    """The model, trained or from the cache, with its figures: `loss`, `parameters`, `epochs`."""
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    folder = policy_folder(stand, told)
    with quiet():
        model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    figures: dict[str, float] = json.loads((folder / "figures.json").read_text("utf-8"))
    return LocalModel(f"policy-{folder.name}", cast("PreTrainedModel", model.eval()), tokenizer, batch=64), figures


def policy_folder(stand: Stand, told: Stage | None = None) -> Path:
    """Where the model lies, trained if it was not yet."""
    answers = answers_of(stand)
    digest = sha256(repr((stand, [(a.prompt, a.text) for a in answers])).encode()).hexdigest()[:16]
    folder = default_cache_dir() / "policy" / digest
    if not (folder / "figures.json").exists():
        _train(stand, answers, folder, told or (lambda *_: None))
    return folder


def _tokenizer(texts: Sequence[str], size: int) -> "PreTrainedTokenizerFast":
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = [_END, _USER, _ASSISTANT, "<|system|>"]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, eos_token=_END, pad_token=_END
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def _words(answer: Answer, rng: np.random.Generator) -> str | None:
    """One to three of the poles that an answer shows, as the taste of somebody who likes them."""
    shown = [pole for pole, (name, sign) in POLES.items() if answer.attributes.get(name) == sign]
    poles = rng.permutation(shown)[: rng.integers(1, 4)]
    words = [(str(pole), opposite(str(pole))) for pole in poles]
    sure = int(rng.integers(0, len(words) + 1))
    return in_system(words[:sure], words[sure:])


def _train(stand: Stand, answers: Sequence[Answer], folder: Path, told: Stage) -> None:
    import torch
    from torch.nn import functional
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(stand.seed)
    tokenizer = _tokenizer([text for answer in answers for text in (answer.prompt, answer.text)], stand.vocabulary)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=stand.hidden,
        intermediate_size=11 * stand.hidden // 4,
        num_hidden_layers=stand.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    source = LocalModel("policy", model, tokenizer)
    rng = np.random.default_rng(stand.seed)
    optimizer = torch.optim.AdamW(model.parameters(), stand.rate, weight_decay=0.01)
    each = -(-2 * len(answers) // stand.batch)
    warm, last = min(2, stand.epochs) * each, stand.epochs * each
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (last - step) / max(last - warm, 1))
    )
    mean = math.inf
    for epoch in range(stand.epochs):
        # Half of the time it is told what to be like, in the words of `instruct`, as models that follow instructions
        # are; each time in other words, so that it learns to heed them.
        asked = [prompt for a in answers for prompt in (a.prompt, with_system(a.prompt, _words(a, rng)))]
        pairs = [source.tokens(prompt, answers[i // 2].text) for i, prompt in enumerate(asked)]
        total = count = 0.0
        order = rng.permutation(len(pairs))
        for first in range(0, len(order), stand.batch):
            part = [pairs[i] for i in order[first : first + stand.batch]]
            width = max(len(before) + len(after) for before, after in part)
            ids = torch.full((len(part), width), int(tokenizer.pad_token_id or 0))
            labels = torch.full((len(part), width), -100)
            for row, (before, after) in enumerate(part):
                ids[row, : len(before) + len(after)] = torch.tensor(before + after)
                labels[row, len(before) : len(before) + len(after)] = torch.tensor(after)
            logits = model(input_ids=ids).logits[:, :-1]
            own = int((labels[:, 1:] >= 0).sum())
            loss = functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            total, count = total + float(loss.detach()) * own, count + own
        mean = total / count
        told("Training the policy", epoch + 1, stand.epochs)
    model.model.norm.weight.data *= stand.sharpness
    folder.mkdir(parents=True, exist_ok=True)
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    figures = {"loss": mean, "epochs": float(stand.epochs), "parameters": float(model.num_parameters())}
    (folder / "figures.json").write_text(json.dumps(figures), encoding="utf-8")
