"""A fine-tuning from beginning to end: methods, architectures, going on after a kill, two processes, adapters."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.cli_support import made_once
from tests.tiny_models import byte_tokenizer, save_causal
from tests.training_support import PROMPTS, texts, vowels

from palate.alignment.adapters import Adapter, erase_adapters, find_adapters
from palate.alignment.candidates import Sampling
from palate.alignment.local import LocalModel
from palate.errors import InputError, ModelError, UpstreamError
from palate.training.launch import Whose, fine_tune
from palate.training.methods import METHODS, Settings, trainer_of

SMALL = Settings(
    rounds=3, prompts=2, completions=4, max_tokens=6, passes=2, micro_batch=4, lora_rank=2, save_every=1,
    learning_rate=1e-2,
)  # fmt: skip


def policy(name: str = "qwen2") -> Path:
    return made_once(f"causal-{name}", lambda folder: save_causal(folder, name))


def tuned(
    folder: Path, method: str = "tracebias", settings: Settings = SMALL, reward: Any = vowels, **more: Any
) -> Any:
    return fine_tune(method, LocalModel.load(str(policy())), PROMPTS, reward, folder, settings, **more)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(folder / "adapter_model.safetensors")
    return found


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_leaves_an_adapter_that_changes_the_model(tmp_path, method):
    made = tuned(tmp_path / "out", method, whose=Whose(("ann",), "f" * 16))
    assert made.steps == 6 and len(made.reward) == (0 if method == "dpo" else 3)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "palate.json", "training.json", "README.md"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth")) or name == "checkpoints"]
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "**Whose taste it carries:** ann" in card and "To erase it" in card and f"palate train {method}" in card
    plain, changed = LocalModel.load(str(policy())), LocalModel.load(str(policy()), adapter=tmp_path / "out")
    ids = torch.arange(10)[None]
    with torch.inference_mode():
        assert not torch.allclose(plain.model(ids).logits, changed.model(ids).logits, atol=1e-4)
    assert changed.revision != plain.revision and changed.draw(["Hi"], 2, Sampling(max_tokens=4))
    # Called again, it is done.
    assert tuned(tmp_path / "out", method, whose=Whose(("ann",), "f" * 16)) == made


@pytest.mark.parametrize("name", ["qwen2", "gemma2", "llama"])
@pytest.mark.parametrize("rank", [0, 2])
def test_architectures_train_with_an_adapter_and_whole(tmp_path, name, rank):
    source = LocalModel.load(str(policy(name)))
    settings = Settings(rounds=1, prompts=2, completions=4, max_tokens=5, passes=2, micro_batch=8, lora_rank=rank)
    made = fine_tune("tracebias", source, PROMPTS, vowels, tmp_path / "out", settings)
    assert made.steps == 2
    used = LocalModel.load(str(policy(name)), adapter=made.folder) if rank else LocalModel.load(str(made.folder))
    assert used.draw(["Hi"], 1, Sampling(max_tokens=3))


class KilledError(Exception):
    pass


@pytest.mark.parametrize("method", ["tracebias", "ppo", "grpo", "dpo"])
@pytest.mark.parametrize("step", [1, 3, 5])
def test_killed_at_any_step_it_goes_on_to_the_same_weights(tmp_path, method, step):
    whole = made_once(f"whole-{method}", lambda folder: tuned(folder, method))

    def told(stage: str, done: int, _: int) -> None:
        if stage == "Training" and done == step:
            raise KilledError

    with pytest.raises(KilledError):
        tuned(tmp_path / "out", method, told=told)
    assert not (tmp_path / "out" / "palate.json").exists()
    tuned(tmp_path / "out", method)
    assert furthest(weights(whole), weights(tmp_path / "out")) == 0


def test_a_checkpoint_that_was_not_written_whole_is_not_gone_on_from(tmp_path):
    whole = made_once("whole-tracebias", lambda folder: tuned(folder))

    def told(stage: str, done: int, _: int) -> None:
        if done == 5:
            raise KilledError

    with pytest.raises(KilledError):
        tuned(tmp_path / "out", told=told)
    half = tmp_path / "out" / "checkpoints" / "checkpoint-4"
    (half / "complete").unlink()
    (half / "optimizer.pt").write_bytes(b"")
    tuned(tmp_path / "out")
    assert furthest(weights(whole), weights(tmp_path / "out")) == 0


def test_a_judge_that_fails_half_way_trains_on_nothing_made_up(tmp_path):
    whole = made_once("whole-tracebias", lambda folder: tuned(folder))
    calls = []

    def failing(prompts: Any, completions: Any, **more: Any) -> Any:
        calls.append(len(completions))
        if len(calls) == 2:
            raise UpstreamError("the judge is gone")
        return vowels(prompts, completions)

    with pytest.raises(UpstreamError, match="judge is gone"):
        tuned(tmp_path / "out", reward=failing)
    tuned(tmp_path / "out")
    assert furthest(weights(whole), weights(tmp_path / "out")) == 0


def test_other_settings_do_not_go_on_where_these_stopped(tmp_path):
    def told(stage: str, done: int, _: int) -> None:
        if done == 3:
            raise KilledError

    with pytest.raises(KilledError):
        tuned(tmp_path / "out", told=told)
    with pytest.raises(InputError, match="holds a training with other settings"):
        tuned(tmp_path / "out", "grpo")
    tuned(tmp_path / "out")
    with pytest.raises(InputError, match="holds an adapter that was trained otherwise"):
        tuned(tmp_path / "out", "grpo")


def test_memory_that_is_short_gives_advice(tmp_path):
    def short(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(InputError, match=r"too small for micro_batch 4.*halve micro_batch"):
        tuned(tmp_path / "out", reward=short)


def test_empty_answers_and_answers_that_were_cut_are_learned_from(tmp_path):
    seen: list[str] = []

    def reward(prompts: Any, completions: Any, **_: Any) -> list[float]:
        seen.extend(texts(completions))
        return [float(not text) for text in texts(completions)]

    tuned(tmp_path / "out", settings=Settings(**{**vars(SMALL), "max_tokens": 2}), reward=reward)
    assert seen


def test_a_prompt_without_a_chat_template_reads_as_it_does_elsewhere(tmp_path):
    folder = save_causal(tmp_path / "bare", tokenizer=byte_tokenizer(None))
    source, seen = LocalModel.load(str(folder)), []

    def reward(prompts: Any, completions: Any, **_: Any) -> list[float]:
        seen.extend(prompts)
        return vowels(prompts, completions)

    fine_tune("grpo", source, ["Hi"], reward, tmp_path / "out", SMALL)
    assert set(seen) == {"Hi\n\n"}


@pytest.mark.parametrize("name", ["qwen2", "llama", "gemma2"])
def test_the_prompt_that_is_trained_on_is_the_one_that_is_answered(tmp_path, name):
    source = LocalModel.load(str(policy(name)))
    trainer = trainer_of("tracebias", source, ["Why?"], vowels, SMALL, tmp_path)
    ids, *_ = trainer._tokenize_prompts([trainer.train_dataset[0]["prompt"]])
    assert ids[0] == source.tokens("Why?", "x")[0]


def test_adapters_are_found_by_whose_they_are_and_erased(tmp_path):
    tuned(tmp_path / "ann", whose=Whose(("ann",)))
    tuned(tmp_path / "both", whose=Whose(("ann", "bo")))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "palate.json").write_text("{")
    assert [path.name for path, _ in find_adapters(tmp_path)] == ["ann", "both"]
    assert [path.name for path, _ in find_adapters(tmp_path, "bo")] == ["both"]
    assert [path.name for path in erase_adapters(tmp_path, ["bo"])] == ["both"]
    assert not (tmp_path / "both").exists() and (tmp_path / "ann").exists()
    assert erase_adapters(tmp_path, ["nobody"]) == []


def test_an_adapter_of_other_weights_is_refused(tmp_path):
    tuned(tmp_path / "out")
    other = save_causal(tmp_path / "other", seed=1)
    with pytest.raises(ModelError, match=r"was trained on.*use it with the model that it was trained on"):
        LocalModel.load(str(other), adapter=tmp_path / "out")
    with pytest.raises(ModelError, match="is no adapter"):
        LocalModel.load(str(policy()), adapter=tmp_path)
    (tmp_path / "out" / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="cannot be read"):
        LocalModel.load(str(policy()), adapter=tmp_path / "out")
    (tmp_path / "out" / "palate.json").write_text(json.dumps({"format": 9}))
    with pytest.raises(ModelError, match="has format 9, this version reads 1"):
        Adapter.read(tmp_path / "out")


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"rounds": 0}, "rounds 0 is below 1"),
        ({"completions": 1}, "completions 1 is below 2"),
        ({"learning_rate": 0.0}, "learning_rate 0.0 is not above 0"),
        ({"micro_batch": 3}, "no multiple of micro_batch 3"),
        ({"lora_rank": -1}, "lora_rank -1 is below 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, told):
    with pytest.raises(InputError, match=told):
        Settings(**{**vars(SMALL), **settings})


def test_a_round_that_the_processes_cannot_share_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"A round of 8 completions is no multiple of micro_batch 4 on 3 processes"):
        trainer_of("grpo", LocalModel.load(str(policy())), PROMPTS, vowels, SMALL, tmp_path, processes=3)


def test_a_setting_that_a_method_does_not_have_is_named(tmp_path):
    with pytest.raises(InputError, match=r"GRPOConfig has no such setting.*gamma"):
        tuned(tmp_path / "out", "grpo", Settings(**{**vars(SMALL), "more": {"gamma": 0.5}}))
    with pytest.raises(InputError, match="Method 'sft' is not one of"):
        tuned(tmp_path / "out", "sft")
    with pytest.raises(InputError, match="No two completions of a prompt differ"):
        tuned(tmp_path / "out", "dpo", reward=lambda prompts, completions, **_: [1.0] * len(completions))


@pytest.mark.parametrize("name", ["qwen2", "gemma2", "llama"])
def test_two_processes_train_together(tmp_path, name):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "tests.two_trainers", str(policy(name)), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3_000:]
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert told[0] == told[1]  # the same critic, the same adapter
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
