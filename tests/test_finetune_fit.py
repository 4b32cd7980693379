"""A whole fit with fine-tuning: how far it goes, what is saved of it, and what it says of bad input."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from tests.cli_support import palate, write
from tests.finetune_support import (
    CASES,
    every_way,
    light_settings,
    settings_of,
    task,
    tiny_encoders,
    tiny_folders,
    tower,
    word_people,
)
from tests.support import PlantedEncoder, people

from palate.data import load_answers
from palate.encoders import Encoder
from palate.errors import InputError, MissingExtraError, ModelError
from palate.feedback import Comparison, Feedback, Rating
from palate.rewards import RewardModel, fit, styles
from palate.rewards.calibration import splits
from palate.rewards.factorization import Choices
from palate.rewards.finetuning import METHODS, Finetune
from palate.rewards.finetuning.towers import Tower
from palate.rewards.finetuning.training import Task, train
from palate.rewards.finetuning.tuning import tune
from palate.rewards.indexing import Indexed
from palate.rewards.ratings import RatingScale


@pytest.fixture(autouse=True)
def few_words_for_tastes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Styles are not what is tested here: two prompts' answers to learn them from, and quickly read."""
    monkeypatch.setattr(styles, "load_answers", lambda: load_answers()[:28])


@pytest.fixture
def folders() -> dict[str, Path]:
    return tiny_folders()


@pytest.fixture
def encoders() -> dict[str, Encoder]:
    return tiny_encoders()


# How far


@pytest.mark.parametrize(
    ("losses", "patience", "best", "epochs"),
    [([3, 2, 1, 4, 5, 0], 2, 2, 4), ([3, 4, 2, 5], 1, 0, 1), ([1, 1, 1], 2, 0, 2), ([5, 4, 3, 2], 1, 3, 3)],
)
def test_it_stops_where_the_held_out_loss_no_longer_falls(
    encoders: dict[str, Encoder], losses: list[float], patience: int, best: int, epochs: int
) -> None:
    encoder, settings = encoders["sentence"], settings_of("head", patience=patience)
    told: list[int] = []
    it = task(encoder, judge=lambda raw: losses[len(told)], told=lambda done, total: told.append(done))
    progress, _ = train(tower(encoder, settings), it, settings, len(losses) - 1, seed=0)
    assert (progress.best, progress.epoch, progress.losses) == (best, epochs, losses[: epochs + 1])


class Crossed(PlantedEncoder):
    """Tells two hidden signs and noise; what people like or dislike is their product, which no line tells."""

    def _vector(self, prompt: str, completion: str) -> np.ndarray:
        noise = np.random.default_rng(abs(hash_of(completion))).standard_normal(self.width)
        first, second = (1 if c == "+" else -1 for c in completion[:2])
        return np.array([first, second, *(0.1 * noise[2:])])


def hash_of(text: str) -> int:
    return int.from_bytes(text.encode()[-4:], "big")


def crossed_people() -> list[Comparison]:
    rng = np.random.default_rng(0)
    rows = []
    for user in range(16):
        sign = 1 if user % 2 else -1
        for _ in range(40):
            prompt = int(rng.integers(16))
            like, other = (("++", "--"), ("+-", "-+"))[::sign]
            chosen, rejected = (f"{rng.choice(side)} {prompt} {rng.integers(4)}" for side in (like, other))
            rows.append(
                Comparison(user_id=f"u{user}", prompt=f"p{prompt}", chosen=chosen, rejected=rejected, kind=f"k{user}")
            )
    return rows


def test_a_head_learns_what_no_line_tells() -> None:
    said = Feedback(comparisons=crossed_people())
    frozen = fit(said, Crossed(), rank=2)
    settings = Finetune("head", learning_rate=0.1, width=16, texts=8, max_epochs=6, patience=6, folds=1)
    model = fit(said, Crossed(), rank=2, finetune=settings)
    assert model.finetune == "head" and model.figures["finetune_epochs"] >= 4
    assert frozen.figures["held_out_auc.10"] < 0.65
    assert model.figures["held_out_auc.10"] > 0.95
    assert model.figures["finetune_log_loss.after"] < model.figures["finetune_log_loss.before"] - 0.2


def test_where_tuning_does_not_help_the_model_is_the_light_one(encoders: dict[str, Encoder]) -> None:
    rows = word_people()
    light = fit(Feedback(comparisons=rows), encoders["sentence"], rank=3)
    # A rate that ruins the features at once.
    ruined = fit(
        Feedback(comparisons=rows), encoders["sentence"], rank=3,
        finetune=settings_of("full", learning_rate=30.0, max_epochs=1),
    )  # fmt: skip
    assert (ruined.finetune, ruined.figures["finetune_epochs"]) == (None, 0.0)
    assert ruined.fingerprint == light.fingerprint


def test_those_who_calibrate_were_never_learned_from(
    encoders: dict[str, Encoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    from palate.rewards.finetuning import tuning

    learned: list[Choices] = []

    def spy(it: Tower, what: Task, *more: Any) -> Any:
        learned.append(what.choices)
        return train(it, what, *more)

    monkeypatch.setattr(tuning, "train", spy)
    indexed = Indexed.of(word_people())
    tune(encoders["sentence"], indexed, light_settings(), settings_of("head", folds=2, max_epochs=1), seed=0)
    held_out = [unseen for _, unseen in splits(indexed.choices, np.random.default_rng(0))][:2]
    for choices, unseen in zip(learned, held_out, strict=False):
        left_out = indexed.choices.where(unseen)
        assert not set(choices.group) & set(left_out.group)
        assert not set(choices.prompt) & set(left_out.prompt)


# The whole, and its folder


def tuned_model(encoder: Encoder, method: str, monkeypatch: pytest.MonkeyPatch) -> RewardModel:
    """A fit that tunes one epoch whatever the held-out loss says."""
    from palate.rewards.finetuning import tuning

    def forced(*arguments: Any) -> Any:
        progress, state = train(*arguments)
        return replace(progress, best=1), state

    monkeypatch.setattr(tuning, "train", forced)
    return fit(
        Feedback(comparisons=word_people()), encoder, rank=3, finetune=settings_of(method, folds=1, max_epochs=1)
    )


NEW = (["hot tea"] * 3, ["rain falls on green hills", "tea is hot", "tea"])


@every_way
def test_a_tuned_model_is_saved_with_its_encoder(
    encoders: dict[str, Encoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, method: str
) -> None:
    monkeypatch.setenv("PALATE_CACHE", str(tmp_path / "cache"))
    model = tuned_model(encoders[name], method, monkeypatch)
    model.save(tmp_path / "model")
    files = {path.name for path in (tmp_path / "model" / "encoder").iterdir()}
    expected = {"head.json", "head.safetensors"} if method == "head" else {"config.json", "model.safetensors"}
    assert expected <= files and not any(name.endswith((".pkl", ".bin", ".pt")) for name in files)
    card = (tmp_path / "model" / "README.md").read_text("utf-8")
    assert f"tuned ({method}, 1 epochs), revision {model.encoder_revision}" in card
    moved = shutil.copytree(tmp_path / "model", tmp_path / "elsewhere")
    loaded = RewardModel.load(moved)
    assert (loaded.fingerprint, loaded.finetune) == (model.fingerprint, method)
    assert_allclose(loaded.phi(*NEW), model.phi(*NEW), atol=1e-6)
    loaded.save(moved)  # over itself
    for path in (tmp_path / "model").rglob("*"):
        if path.is_file():
            assert (moved / path.relative_to(tmp_path / "model")).read_bytes() == path.read_bytes(), path.name


def test_a_tuned_model_without_its_encoder_is_broken(
    encoders: dict[str, Encoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned_model(encoders["sentence"], "head", monkeypatch).save(tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "encoder")
    with pytest.raises(ModelError) as caught:
        RewardModel.load(tmp_path / "model")
    assert "encoder is missing" in str(caught.value)


def test_the_same_seed_tunes_to_the_same_bits(encoders: dict[str, Encoder], monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (tuned_model(encoders["sentence"], "lora", monkeypatch) for _ in range(2))
    assert one.encoder_revision == two.encoder_revision != encoders["sentence"].revision
    assert one.fingerprint == two.fingerprint


def test_the_command_tunes_and_says_so(folders: dict[str, Path], tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", word_people())
    words = ("fit", data, "--output", tmp_path / "model", "--encoder", folders["sentence"], "--rank", 2)
    ran = palate(*words, "--finetune", "head", "--checkpoints", tmp_path / "checkpoints", "--json")
    assert ran.json["figures"]["finetune_epochs"] >= 0
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir())[-1].startswith("without part")
    assert palate(*words, "--finetune", "half").usage == (
        "'--finetune': 'half' is no way to fine-tune; choose one of full, lora, head, or none"
    )


# Bad input


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "half"}, "'half' is no way to fine-tune; choose one of full, lora, head, or none"),
        ({"max_epochs": 0}, "max_epochs 0 is less than 1; give 1 or more"),
        ({"texts": 1}, "texts 1 is less than 2; give 2 or more"),
        ({"folds": 5}, "folds 5 is not in 1 to 4; give the number of held-out parts"),
        ({"learning_rate": -1.0}, "learning_rate -1.0 is not positive; give one such as 1e-4"),
        ({"layer_decay": 0.0}, "layer_decay 0.0 is not in (0, 1]; give 1 for the same rate everywhere"),
    ],
    ids=str,
)
def test_a_setting_out_of_range_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Finetune(**values)
    assert str(caught.value) == message


def refused(encoder: Encoder, rows: list[Comparison], settings: Finetune) -> str:
    with pytest.raises((InputError, MissingExtraError)) as caught:
        fit(Feedback(comparisons=rows), encoder, rank=2, finetune=settings)
    return str(caught.value)


def test_an_encoder_without_a_model_is_refused() -> None:
    assert refused(PlantedEncoder(), people(), Finetune("lora")) == (
        "Encoder 'planted' has no text model whose weights could be tuned with 'lora'; give finetune 'head', which "
        "takes any encoder, or 'none'"
    )


def test_no_comparisons_are_refused(encoders: dict[str, Encoder]) -> None:
    assert refused(encoders["sentence"], [], Finetune("head")).startswith(
        "There are 0 comparisons and 0 ratings to fit on"
    )


def test_ratings_alone_tune_nothing(encoders: dict[str, Encoder]) -> None:
    ratings = [
        Rating(user_id=row.user_id, prompt=row.prompt, completion=text, score=score, kind=row.kind)
        for row in word_people()
        for text, score in ((row.chosen, 0.9), (row.rejected, 0.2))
    ]
    with pytest.raises(InputError) as caught:
        fit(Feedback(ratings=ratings), encoders["sentence"], rank=2, finetune=Finetune("head"))
    assert str(caught.value) == (
        "There are 0 comparisons to tune by, ratings alone do not do; give some, or finetune 'none'"
    )


def test_ratings_beside_comparisons_calibrate(encoders: dict[str, Encoder], monkeypatch: pytest.MonkeyPatch) -> None:
    from palate.rewards.finetuning import tuning

    def forced(*arguments: Any) -> Any:
        progress, state = train(*arguments)
        return replace(progress, best=1), state

    monkeypatch.setattr(tuning, "train", forced)
    rows = word_people()
    ratings = [
        Rating(user_id=row.user_id, prompt=row.prompt, completion=text, score=score, kind=row.kind)
        for row in rows
        for text, score in ((row.chosen, 0.8), (row.rejected, 0.3))
    ]
    settings = settings_of("head", folds=1, max_epochs=1)
    model = fit(Feedback(comparisons=rows, ratings=ratings), encoders["sentence"], rank=2, finetune=settings)
    assert model.finetune == "head"
    assert model.scales.ratings != RatingScale()


def test_people_of_one_kind_are_too_few(encoders: dict[str, Encoder]) -> None:
    rows = [row.model_copy(update={"kind": "same"}) for row in word_people()]
    assert refused(encoders["sentence"], rows, Finetune("head")) == (
        "Fine-tuning needs groups of people to leave out, and there are 1 in all; give comparisons of more people, or "
        "kinds that differ, or finetune 'none'"
    )


def test_freezing_all_layers_leaves_nothing(encoders: dict[str, Encoder]) -> None:
    message = refused(encoders["sentence"], word_people(), Finetune("full", frozen_layers=2))
    assert message.startswith("2 frozen layers leave none of the 2 that ")


def test_lora_without_peft_names_the_extra(encoders: dict[str, Encoder], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    assert refused(encoders["sentence"], word_people(), Finetune("lora")) == (
        "The package 'peft' is not installed; run: pip install 'palate[finetune]'"
    )


def test_tuning_without_accelerate_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['accelerate'] = None\n"
        "from palate.errors import MissingExtraError\n"
        "try: import palate.rewards.finetuning.tuning\n"
        "except MissingExtraError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "The package 'accelerate' is not installed; run: pip install 'palate[finetune]'\n"


def test_importing_the_settings_loads_nothing_heavy() -> None:
    code = (
        "import sys, palate.rewards.finetuning as f; f.Finetune('lora')\n"
        "print({'torch', 'transformers', 'peft', 'accelerate'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_all_methods_are_tried_above() -> None:
    assert {method for _, method in CASES} == set(METHODS)
