"""The benchmark of fine-tuning, on tiny models: what it measures is there, and what stands in is named."""

from pathlib import Path

import pytest
from tests.cli_support import palate
from tests.finetune_support import tiny_encoders, tiny_folders

from palate.bench import finetune
from palate.encoders import SentenceEncoder
from palate.errors import EncoderError

CASES = ["minilm.full", "minilm.lora", "causal.full", "causal.lora"]


def test_every_case_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = tiny_encoders()["sentence"]
    assert isinstance(encoder, SentenceEncoder)
    result = finetune.run(quick=True, seed=0, data=tiny_folders()["sentence"])
    figures = result.figures
    for case in [*CASES, "causal.full.checkpointing", "causal.lora.checkpointing"]:
        for key in ("texts_per_second", "comparisons_per_second", "tokens_per_second", "peak_memory_mb"):
            assert figures[f"{case}.{key}"] > 0
        assert f"| {case} " in result.table
    assert figures["causal.lora.trained_parameters"] < figures["causal.full.trained_parameters"]
    assert figures["minilm.random_weights"] == 0
    assert figures["minilm.parameters"] == encoder.model.num_parameters()


def test_a_random_model_of_its_shape_stands_in_for_minilm(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_names: str) -> None:
        raise EncoderError("offline")

    monkeypatch.setattr(finetune, "load_encoder", offline)
    encoder, is_random = finetune._sentence_encoder(None, ["tea is hot", "rain"], seed=0)
    assert is_random and encoder.width == 8 * 384 + 2
    assert 22e6 < encoder.model.num_parameters() < 23e6
    assert encoder.encode(["tea"], ["rain"]).shape == (1, encoder.width)


def test_a_language_model_is_no_sentence_encoder(tmp_path: Path) -> None:
    folder = tiny_folders()["causal"]
    ran = palate("bench", "finetune", "--quick", "--data", folder, "--output", tmp_path)
    assert ran.failure == (f"{str(folder)!r} is no sentence encoder; give the folder of one such as all-MiniLM-L6-v2")
