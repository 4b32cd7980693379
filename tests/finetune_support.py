"""What the tests of fine-tuning share: people with plain tastes in words, and tiny encoders to tune."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.cli_support import made_once
from tests.test_encoders import WORDS, save_tiny
from tests.tiny_models import save_causal

from palate.encoders import Encoder, load_encoder
from palate.feedback import Comparison, as_text
from palate.rewards.calibration import Calibration
from palate.rewards.factorization import Penalties
from palate.rewards.finetuning import Finetune
from palate.rewards.finetuning.towers import Tower, tower_of
from palate.rewards.finetuning.training import Task
from palate.rewards.finetuning.tuning import Light
from palate.rewards.indexing import Indexed
from palate.rewards.ratings import Scales
from palate.rewards.selection import Settings

RATE = {"head": 3e-2, "lora": 1e-2, "full": 1e-3}


def word_people(users: int = 8, each: int = 24, prompts: int = 12, seed: int = 0) -> list[Comparison]:
    """People of four kinds who like or dislike `tea` and `rain`, answers being words at random."""
    rng = np.random.default_rng(seed)
    answers = {f"{WORDS[p]} {WORDS[p - 1]}": [" ".join(rng.choice(WORDS, 6)) for _ in range(5)] for p in range(prompts)}
    likes = [(1, 0), (-1, 0), (0, 1), (0, -1)]
    rows = []
    for user in range(users):
        tea, rain = likes[user % 4]
        for _ in range(each):
            prompt = str(rng.choice(list(answers)))
            one, two = rng.choice(5, 2, replace=False)
            one, two = answers[prompt][one], answers[prompt][two]
            gain = [tea * text.split().count("tea") + rain * text.split().count("rain") for text in (one, two)]
            best, rest = (one, two) if gain[0] + 0.1 * rng.standard_normal() >= gain[1] else (two, one)
            rows.append(Comparison(user_id=f"u{user}", prompt=prompt, chosen=best, rejected=rest, kind=f"k{user % 4}"))
    return rows


INDEXED = Indexed.of(word_people())
ANSWERS = [as_text(p) for p in INDEXED.prompts], [as_text(c) for c in INDEXED.completions]


@cache
def tiny_folders() -> dict[str, Path]:
    """A random BERT and a random Qwen 2, shared by all workers."""
    makers: dict[str, Callable[[Path], object]] = {"sentence": save_tiny, "causal": save_causal}
    return {name: made_once(f"finetune-{name}", make) for name, make in makers.items()}


@cache
def tiny_encoders() -> dict[str, Encoder]:
    """Both as encoders; whatever tunes them must leave them as they are."""
    return {name: load_encoder(str(folder), cache=False, device="cpu") for name, folder in tiny_folders().items()}


def light_settings(rank: int = 3) -> Settings:
    return Settings(rank, Penalties(), Scales(), Calibration())


def light_of(encoder: Encoder, rank: int = 3) -> Light:
    return Light(dict(encoder.blocks), INDEXED, light_settings(rank), seed=0)


def tower(encoder: Encoder, settings: Finetune, seed: int = 0) -> Tower:
    raw = INDEXED.encode(encoder)
    return tower_of(encoder, ANSWERS, (raw, light_of(encoder).coordinates(raw)), settings, seed)


def task(encoder: Encoder, **more: Any) -> Task:
    light = light_of(encoder)
    return Task(INDEXED.choices, len(ANSWERS[0]), lambda raw: light.solve(raw, INDEXED.choices), **more)


def settings_of(method: Any, **more: Any) -> Finetune:
    return Finetune(method, **{"learning_rate": RATE[method], "texts": 20, "width": 4, **more})


CASES = [("sentence", "head"), ("sentence", "lora"), ("sentence", "full"), ("causal", "lora"), ("causal", "full")]
every_way = pytest.mark.parametrize(("name", "method"), CASES)
