"""The whole loop on a tiny model: a person types, and the model is trained by it, round after round."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.cli_support import palate, tiny_model
from tests.support import fitted
from tests.test_bench_alignment import judge
from tests.test_fine_tuning import policy

from palate.alignment.adapters import find_adapters
from palate.bench.judge import Judge
from palate.bench.loop import Plan, follow
from palate.errors import InputError
from palate.feedback import Reply
from palate.store import Store
from palate.training import launch
from palate.training.methods import Settings

PLAN = Plan(2, (("concise", "informal"), ("formal", "verbose")), answers=1)
SMALL = Settings(
    rounds=1, prompts=2, completions=2, max_tokens=4, micro_batch=4, lora_rank=2, learning_rate=1e-2, save_every=1
)


@pytest.fixture(autouse=True)
def one_judge(monkeypatch):
    made = judge()
    monkeypatch.setattr(Judge, "train", lambda: made)


def run(folder: Path, plan: Plan = PLAN):
    return follow(fitted(), Path("model"), str(policy()), ["Hi", "Ho"], plan, SMALL, folder)


def test_each_round_leaves_replies_read_and_an_adapter_that_goes_on_from_the_last(tmp_path):
    rounds = run(tmp_path / "loop")
    assert [one.number for one in rounds] == [1, 2]
    assert [one.taste for one in rounds] == ["concise,informal", "formal,verbose"]
    assert all(0 <= value <= 1 for one in rounds for value in (one.pleased, one.read, one.foretold, one.broken))
    assert [path.name for path, _ in find_adapters(tmp_path, "simulated")] == ["adapter-1", "adapter-2"]
    told = [json.loads((tmp_path / "loop" / f"adapter-{n}" / "training.json").read_text()) for n in (1, 2)]
    assert told[0]["start"] is None and told[1]["start"] is not None
    with Store.open(f"sqlite:///{tmp_path / 'loop' / 'palate.db'}", create=False) as store:
        person = store.user("simulated")
        assert person is not None and person.half_life_days == 2.0
        said = [one.record for one in store.evidence(person)]
    assert len(said) == 4 and all(isinstance(one, Reply) and one.satisfaction is not None for one in said)


def test_stopped_between_replies_and_training_it_goes_on_as_if_it_had_not(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole")
    train = launch.fine_tune

    def stop(*given, **more):
        if str(given[4]).endswith("adapter-2"):
            raise KeyboardInterrupt
        return train(*given, **more)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("palate.bench.loop.fine_tune", stop)
        run(tmp_path / "cut")
    with (tmp_path / "cut" / "rounds.jsonl").open("a") as file:
        file.write('{"number": 2, "tas')  # half a line
    found = run(tmp_path / "cut")
    assert [replace(one, rescored=0) for one in found] == [replace(one, rescored=0) for one in whole]
    weights = [(tmp_path / name / "adapter-2" / "adapter_model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]


def test_another_run_does_not_go_on_here(tmp_path):
    run(tmp_path / "loop")
    with pytest.raises(InputError, match="holds another run"):
        run(tmp_path / "loop", replace(PLAN, seed=1))
    with pytest.raises(InputError, match="rounds 1 is below 2"):
        replace(PLAN, rounds=1)


def test_the_command_runs_it(tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('"Hi"\n"Ho"\n')
    words = ["follow", tiny_model(), "--policy", policy(), "--output", tmp_path / "loop", "--rounds", 2, "--steps", 1]
    assert "without --prompts" in palate(*words).failure
    words += ["--prompts", prompts]
    assert "shorten it, or lower max_tokens" in palate(*words).failure
    assert "holds another run" in palate(*words, "--max-tokens", 4).failure
    words[words.index("--output") + 1] = tmp_path / "other"
    told = palate(*words, "--max-tokens", 4, "--json").json
    assert [one["number"] for one in told["rounds"]] == [1, 2]
