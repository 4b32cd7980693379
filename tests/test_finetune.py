"""Fine-tuning: step 0 is the light model, gradients are those of a plain loop, and nothing else moves."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from safetensors.numpy import load_file
from scipy.optimize import approx_fprime
from tests.finetune_support import (
    ANSWERS,
    INDEXED,
    RATE,
    every_way,
    light_of,
    settings_of,
    task,
    tiny_encoders,
    tiny_folders,
    tower,
)
from tests.test_encoders import Naive

from palate.encoders import CausalEncoder, Encoder, SentenceEncoder
from palate.errors import InputError
from palate.rewards.calibration import LAPSE
from palate.rewards.factorization import Choices, fit_weights
from palate.rewards.features import Coordinates
from palate.rewards.finetuning import Finetune
from palate.rewards.finetuning.batches import Batches
from palate.rewards.finetuning.towers import Tower
from palate.rewards.finetuning.training import Progress, Reading, Run, preference_loss, train
from palate.rewards.posterior import negative_log_likelihood


@pytest.fixture
def folders() -> dict[str, Path]:
    return tiny_folders()


@pytest.fixture
def encoders() -> dict[str, Encoder]:
    return tiny_encoders()


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
    it.train()  # as accelerate has it
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


@pytest.mark.parametrize("name", ["sentence", "causal"])
def test_checkpointing_changes_no_gradient(encoders: dict[str, Encoder], name: str) -> None:
    _, expected, _ = gradients(encoders[name], settings_of("full"))
    it, found, _ = gradients(encoders[name], settings_of("full", gradient_checkpointing=True))
    assert any(getattr(module, "gradient_checkpointing", False) for module in it.modules())
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        assert_allclose(found[key], gradient, atol=1e-5 * float(gradient.abs().max()) + 1e-8, err_msg=key)


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
