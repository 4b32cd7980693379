"""Fine-tuning: step 0 is the light model, gradients are those of a plain loop, and nothing else moves."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from safetensors.numpy import load_file
from scipy.optimize import approx_fprime
from tests.cli_support import palate, write
from tests.support import PlantedEncoder, people
from tests.test_encoders import WORDS, Naive, save_tiny
from tests.tiny_models import save_causal

from palate.data import load_answers
from palate.encoders import CausalEncoder, Encoder, SentenceEncoder, load_encoder
from palate.errors import InputError, MissingExtraError, ModelError
from palate.feedback import Comparison, Feedback, as_text
from palate.rewards import RewardModel, fit, styles
from palate.rewards.calibration import LAPSE, splits
from palate.rewards.factorization import Choices, Penalties, fit_weights
from palate.rewards.features import Coordinates
from palate.rewards.finetuning import METHODS, Finetune
from palate.rewards.finetuning.batches import Batches
from palate.rewards.finetuning.towers import Tower, tower_of
from palate.rewards.finetuning.training import Progress, Reading, Run, Task, preference_loss, train
from palate.rewards.finetuning.tuning import Light, tune
from palate.rewards.indexing import Indexed
from palate.rewards.posterior import negative_log_likelihood

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


@pytest.fixture(autouse=True)
def few_words_for_tastes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Styles are not what is tested here: two prompts' answers to learn them from, and quickly read."""
    monkeypatch.setattr(styles, "load_answers", lambda: load_answers()[:28])


INDEXED = Indexed.of(word_people())
ANSWERS = [as_text(p) for p in INDEXED.prompts], [as_text(c) for c in INDEXED.completions]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        "sentence": save_tiny(tmp_path_factory.mktemp("sentence")),
        "causal": save_causal(tmp_path_factory.mktemp("causal")),
    }


@pytest.fixture(scope="session")
def encoders(folders: dict[str, Path]) -> dict[str, Encoder]:
    return {name: load_encoder(str(folder), cache=False, device="cpu") for name, folder in folders.items()}


def light_of(encoder: Encoder, rank: int = 3) -> Light:
    return Light(dict(encoder.blocks), INDEXED.choices, rank, Penalties(), seed=0)


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


# Step 0


@every_way
def test_step_0_is_the_light_model(encoders: dict[str, Encoder], name: str, method: str) -> None:
    encoder = encoders[name]
    raw = INDEXED.encode(encoder)
    run = Run(tower(encoder, settings_of(method)), task(encoder), settings_of(method), seed=0)
    features = run.features()
    assert_allclose(features, raw, atol=2e-6)
    reading = run.read(judge=False)
    z = Coordinates.fit(raw, encoder.blocks)
    weights = fit_weights(z(raw), INDEXED.choices, 3, LAPSE)
    assert_allclose(
        (features - reading.offset) @ reading.weights.T, z(raw) @ weights.T, atol=1e-3 * float(np.abs(weights).max())
    )


# Gradients


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.05, 0.3]))
def test_the_loss_and_its_gradient_are_those_of_the_posterior_and_of_differences(seed: int, lapse: float) -> None:
    import torch

    rng = np.random.default_rng(seed)
    phi, lam = rng.standard_normal((5, 3)), rng.standard_normal((4, 3))
    batch = {
        "chosen": torch.from_numpy(rng.integers(5, size=9)),
        "rejected": torch.from_numpy(rng.integers(5, size=9)),
        "user": torch.from_numpy(rng.integers(4, size=9)),
        "strength": torch.from_numpy(rng.uniform(0.5, 1, 9)),
    }
    chosen, rejected, user, strength = (batch[key].numpy() for key in ("chosen", "rejected", "user", "strength"))

    def plain(flat: np.ndarray) -> float:
        table = flat.reshape(5, 3)
        logit = np.sum((table[chosen] - table[rejected]) * lam[user], axis=1)
        return float(negative_log_likelihood(logit, strength, lapse)[0].sum())

    free = torch.from_numpy(phi).requires_grad_()
    loss = preference_loss(free, batch, torch.from_numpy(lam), lapse)
    (found,) = torch.autograd.grad(loss, free)
    assert loss.item() == pytest.approx(plain(phi.ravel()), rel=1e-9)
    assert_allclose(found.numpy().ravel(), approx_fprime(phi.ravel(), plain, 1e-6), atol=1e-4)


def gradients(encoder: Encoder, settings: Finetune, texts: int = 10_000) -> tuple[Tower, dict[str, Any], Reading]:
    """One batch's gradients in a tower, all comparisons in it."""
    import torch

    it = tower(encoder, settings)
    reading = light_of(encoder).solve(INDEXED.encode(encoder), INDEXED.choices)
    batch = Batches(INDEXED.choices, texts, 1, 0)[0]
    offset, weights, lam = (torch.from_numpy(np.float32(a)) for a in (reading.offset, reading.weights, reading.people))
    phi = (it(batch["answers"]) - offset) @ weights.T
    preference_loss(phi, batch, lam, LAPSE).backward()  # type: ignore[no-untyped-call]
    return it, {name: p.grad for name, p in it.named_parameters() if p.requires_grad}, reading


def test_gradients_are_those_of_a_plain_loop_over_comparisons(
    encoders: dict[str, Encoder], folders: dict[str, Path]
) -> None:
    import torch

    encoder = encoders["sentence"]
    assert isinstance(encoder, SentenceEncoder)
    _, found, reading = gradients(encoder, settings_of("full", frozen_layers=0))
    # One text at a time, through transformers alone; the cosine stands still.
    naive = Naive(folders["sentence"])
    naive.model.requires_grad_(False)
    for layer in naive.model.encoder.layer[:2]:
        layer.requires_grad_(True)
    raw = INDEXED.encode(encoder)
    ids = [naive.tokenizer(text).input_ids for text in ANSWERS[1]]

    def features(row: int) -> torch.Tensor:
        states = naive.model(torch.tensor([ids[row]]), output_hidden_states=True).hidden_states
        parts = [states[k][0].mean(dim=0) for k in (1, 2)] + [states[k][0, -2] for k in (1, 2)]
        return torch.cat([*parts, torch.from_numpy(raw[row, -2:])])

    weights, lam = (torch.from_numpy(np.float32(a)) for a in (reading.weights, reading.people))
    phi = [weights @ features(row) for row in range(len(ids))]
    c, total = INDEXED.choices, torch.zeros(())
    for chosen, rejected, user in zip(c.chosen, c.rejected, c.user, strict=True):
        p = LAPSE + (1 - 2 * LAPSE) * torch.sigmoid(lam[user] @ (phi[chosen] - phi[rejected]))
        total = total - torch.log(p)
    total.backward()  # type: ignore[no-untyped-call]
    expected = {f"model.{name}": p.grad for name, p in naive.model.named_parameters() if p.requires_grad}
    assert found.keys() == expected.keys() and len(found) == 32
    for name, gradient in found.items():
        assert_allclose(gradient, expected[name], atol=2e-3 * float(expected[name].abs().max()) + 1e-4, err_msg=name)


@pytest.mark.parametrize("name", ["sentence", "causal"])
def test_gradients_of_adapters_follow_from_those_of_the_weights(encoders: dict[str, Encoder], name: str) -> None:
    # W + 2 B A at B = 0: the gradient of B is twice that of W times Aᵀ, and that of A is none.
    _, of_weights, _ = gradients(encoders[name], settings_of("full", frozen_layers=0))
    adapted, of_factors, _ = gradients(encoders[name], settings_of("lora", frozen_layers=0))
    weights = dict(adapted.named_parameters())
    second = [key for key in of_factors if ".lora_B." in key]
    assert len(second) > 8
    for key in second:
        weight = of_weights[key.replace(".lora_B.default", "")]
        first = key.replace("lora_B", "lora_A")
        expected = 2 * weight @ weights[first].detach().T
        assert_allclose(of_factors[key], expected, atol=1e-3 * float(expected.abs().max()) + 1e-5)
        assert float(of_factors[first].abs().max()) == 0


# What moves


def tensors(encoder: Encoder) -> dict[str, np.ndarray]:
    assert isinstance(encoder, SentenceEncoder | CausalEncoder)
    return {name: tensor.numpy().copy() for name, tensor in encoder.model.state_dict().items()}


def tuned(encoder: Encoder, settings: Finetune, epochs: int = 2, **more: Any) -> tuple[Encoder, dict[str, Any]]:
    _, state = train(tower(encoder, settings), task(encoder, **more), settings, epochs, seed=0)
    it = tower(encoder, settings)
    it.load_state_dict(state)
    return it.encoder(), state


@pytest.mark.parametrize("name", ["sentence", "causal"])
def test_lora_changes_its_adapters_alone_and_then_the_weights_they_are_merged_into(
    encoders: dict[str, Encoder], name: str
) -> None:
    encoder = encoders[name]
    before, start = tensors(encoder), tower(encoder, settings_of("lora")).state_dict()
    after, state = tuned(encoder, settings_of("lora"))
    for key, tensor in state.items():
        assert (".lora_" in key) != np.array_equal(tensor, start[key]), key
    merged = tensors(after)
    changed = {key for key in merged if not np.array_equal(merged[key], before[key])}
    assert changed == {key.removeprefix("model.").replace(".lora_A.default", "") for key in state if ".lora_A." in key}
    assert merged.keys() == before.keys()
    for key, tensor in tensors(encoder).items():
        assert_array_equal(tensor, before[key])  # the encoder given is as it was


@pytest.mark.parametrize("name", ["sentence", "causal"])
def test_full_changes_the_upper_layers_alone(encoders: dict[str, Encoder], name: str) -> None:
    before = tensors(encoders[name])
    after = tensors(tuned(encoders[name], settings_of("full", frozen_layers=1))[0])
    changed = {key for key in after if not np.array_equal(after[key], before[key])}
    layer = "encoder.layer.1." if name == "sentence" else "layers.1."
    # A key's bias shifts all of a query's scores alike: its gradient is nothing but rounding.
    assert changed <= {key for key in before if key.startswith(layer)}
    assert {key for key in before if key.startswith(layer) and key.endswith("weight")} <= changed


def test_layers_further_down_move_slower(encoders: dict[str, Encoder]) -> None:
    settings = settings_of("full", frozen_layers=0, layer_decay=0.5)
    it = tower(encoders["sentence"], settings)
    assert [group["lr"] for group in it.groups(settings)] == [1e-3, 5e-4]


@every_way
def test_the_loss_of_those_learned_from_falls(encoders: dict[str, Encoder], name: str, method: str) -> None:
    encoder, choices = encoders[name], INDEXED.choices
    after, _ = tuned(encoder, settings_of(method), epochs=4)

    def loss(it: Encoder) -> float:
        raw = INDEXED.encode(it)
        reading = light_of(it).solve(raw, choices)
        phi = (raw - reading.offset) @ reading.weights.T
        logit = np.sum((phi[choices.chosen] - phi[choices.rejected]) * reading.people[choices.user], axis=1)
        return float(negative_log_likelihood(logit, choices.strength, LAPSE)[0].mean())

    assert loss(after) < loss(encoder) - 0.005
    assert (after.name, after.width, after.blocks) == (encoder.name, encoder.width, encoder.blocks)
    assert after.revision != encoder.revision


# Batches


@given(st.integers(1, 60), st.integers(2, 40), st.integers(1, 3), st.integers(0, 5), st.integers(0, 3))
def test_each_comparison_is_in_one_batch_of_an_epoch(
    count: int, texts: int, multiple: int, seed: int, epoch: int
) -> None:
    rng = np.random.default_rng(seed)
    prompt = rng.integers(5, size=count)
    pair = prompt[:, None] * 4 + np.array([rng.choice(4, 2, replace=False) for _ in range(count)])
    choices = Choices(pair[:, 0], pair[:, 1], np.zeros(count, int), np.ones(count), prompt, np.zeros(1, int))
    if count < multiple:
        with pytest.raises(InputError, match="use fewer processes"):
            Batches(choices, texts, multiple, seed)
        return
    batches = Batches(choices, texts, multiple, seed)
    batches.shuffle(epoch)
    assert len(batches) % multiple == 0
    seen = []
    for batch in (batches[i] for i in range(len(batches))):
        answers = batch["answers"].numpy()
        assert len(np.unique(answers)) == len(answers)
        seen += list(zip(answers[batch["chosen"].numpy()], answers[batch["rejected"].numpy()], strict=True))
    assert sorted(seen) == sorted(zip(pair[:, 0], pair[:, 1], strict=True))


def test_a_batch_of_twice_the_size_is_two_together_and_the_order_changes_by_epoch() -> None:
    small, large = Batches(INDEXED.choices, 10, 2, 0), Batches(INDEXED.choices, 20, 1, 0)
    assert len(small) == 2 * len(large) >= 4
    for i in range(len(large)):
        assert_array_equal(np.concatenate([small.rows[2 * i], small.rows[2 * i + 1]]), large.rows[i])
    before = np.concatenate(large.rows)
    large.shuffle(1)
    assert not np.array_equal(np.concatenate(large.rows), before)


# Killed, and gone on


class KilledError(Exception):
    """Stands for a kill."""


def kill_after(monkeypatch: pytest.MonkeyPatch, saves: int) -> None:
    """Die right after so many checkpoints."""
    save, left = Run.save, [saves]

    def last(run: Run) -> None:
        save(run)
        left[0] -= 1
        if left[0] == 0:
            raise KilledError

    monkeypatch.setattr(Run, "save", last)


KILLS = [("sentence", "lora", 1), ("sentence", "lora", 2), ("sentence", "head", 3), ("causal", "full", 1)]


@pytest.mark.parametrize(("name", "method", "saves"), KILLS)
def test_a_tuning_that_was_killed_ends_with_the_same_bits(
    encoders: dict[str, Encoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, method: str, saves: int
) -> None:
    encoder, settings = encoders[name], settings_of(method, checkpoint_steps=2)

    def judge(raw: np.ndarray) -> float:
        return float(raw.std())

    def run(folder: Path | None) -> tuple[Progress, dict[str, Any]]:
        it = tower(encoder, settings)
        return train(it, task(encoder, judge=judge, folder=folder, signature="s"), settings, 2, seed=3)

    unbroken, expected = run(None)
    with monkeypatch.context() as patch:
        kill_after(patch, saves)
        with pytest.raises(KilledError):
            run(tmp_path / "c")
    assert len(list((tmp_path / "c").glob("step-*"))) == 1
    progress, state = run(tmp_path / "c")
    assert (progress.losses, progress.best, progress.steps) == (unbroken.losses, unbroken.best, unbroken.steps)
    assert_array_equal(progress.features, unbroken.features)
    for key, tensor in expected.items():
        assert_array_equal(state[key], tensor, err_msg=key)
    again, state = run(tmp_path / "c")  # it is done: nothing more is learned
    assert again.steps == unbroken.steps
    assert all(np.array_equal(state[key], tensor) for key, tensor in expected.items())


def test_a_checkpoint_of_another_tuning_is_refused(encoders: dict[str, Encoder], tmp_path: Path) -> None:
    encoder, settings = encoders["sentence"], settings_of("head")
    train(tower(encoder, settings), task(encoder, folder=tmp_path, signature="one"), settings, 1, seed=0)
    (place,) = tmp_path.iterdir()
    with pytest.raises(InputError) as caught:
        train(tower(encoder, settings), task(encoder, folder=tmp_path, signature="two"), settings, 1, seed=0)
    assert str(caught.value) == (
        f"The checkpoint {str(place)!r} is of other data or settings; name another folder, or delete it to begin anew"
    )


# More processes than one


def launch(processes: int, *words: object) -> None:
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += ["-m", "tests.two_processes", *(str(word) for word in words)]
    path = os.pathsep.join([str(root / "src"), str(root)])
    environment = {**os.environ, "PYTHONPATH": path, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), [("sentence", "lora"), ("causal", "full"), ("sentence", "head")])
def test_two_processes_follow_the_gradients_of_one_with_batches_of_twice_the_size(
    folders: dict[str, Path], tmp_path: Path, name: str, method: str
) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    launch(1, folders[name], method, 40, one)
    launch(2, folders[name], method, 20, two)
    expected, found = load_file(one), load_file(two)
    assert found.keys() == expected.keys()
    assert sum(key.startswith("gradient.") for key in found) >= 3
    for key, tensor in expected.items():
        # Weights less tightly: Adam turns a gradient that is nothing but rounding into a whole step.
        exact = key.startswith("gradient.")
        scale = float(np.abs(tensor).max()) if exact else RATE[method]
        assert_allclose(found[key], tensor, atol=(1e-4 if exact else 2.1) * scale + 1e-7, err_msg=key)


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
    tune(encoders["sentence"], indexed, 3, Penalties(), settings_of("head", folds=2, max_epochs=1), seed=0)
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
    assert refused(encoders["sentence"], [], Finetune("head")).startswith("There are 0 comparisons to fit on")


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
