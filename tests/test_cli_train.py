"""`palate train tracebias | ppo | dpo | grpo`, `list` and `erase`: run as people do, on a tiny model."""

import json
from pathlib import Path

import pytest
from tests.cli_support import palate, tiny_model
from tests.endpoint_support import endpoint
from tests.test_fine_tuning import policy
from tests.test_training_rewards import longest

from palate.data import load_answers
from palate.feedback import Comparison
from palate.store import Store


@pytest.fixture
def database(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path / 'palate.db'}"
    with Store.open(url) as store:
        for name, (better, worse) in {"ann": (0, 1), "bo": (2, 3)}.items():
            person = store.ensure_user(name)
            a, b = load_answers()[better], load_answers()[worse]
            store.append(person, Comparison(user_id=name, prompt=a.prompt, chosen=a.text, rejected=b.text))
        store.ensure_user("silent")
    return url


@pytest.fixture
def train(tmp_path: Path, database: str):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(text) + "\n" for text in ("Hi", "Ho", "Hi")))

    def run(method: str, *more: object, output: str = "out"):
        small = ["--rounds", 1, "--prompts-each", 2, "--completions", 2, "--max-tokens", 4, "--micro-batch", 4]
        words = ["train", method, tiny_model(), "--policy", policy(), "--prompts", prompts, "--lora-rank", 2]
        return palate(*words, *small, "--output", tmp_path / output, "--database", database, *more)

    return run


@pytest.mark.parametrize("method", ["tracebias", "ppo", "dpo", "grpo"])
def test_a_persons_adapter_is_trained_listed_talked_with_and_erased(tmp_path, database, train, method):
    told = train(method, "--user", "ann", "--json").json
    assert told["users"] == ["ann"] and told["steps"] == 4
    (listed,) = palate("train", "list", tmp_path, "--json").json["adapters"]
    assert listed["users"] == ["ann"] and listed["method"] == method and listed["folder"] == str(tmp_path / "out")
    talk = ["chat", tiny_model(), "--user", "ann", "--database", database, "--policy", policy()]
    turns = palate(*talk, "--adapter", tmp_path / "out", "--candidates", 2, "--max-tokens", 4, "--json", typed="Hi\n")
    assert turns.json["turns"][0]["answer"] and str(tmp_path / "out") in turns.json["source"]
    assert palate("train", "erase", tmp_path, "--user", "ann", "--json").json["erased"] == [str(tmp_path / "out")]
    assert palate("train", "list", tmp_path, "--json").json["adapters"] == []


def test_a_group_shares_an_adapter_and_nobody_has_everybodys(tmp_path, train):
    group = tmp_path / "group.txt"
    group.write_text("ann\n\nbo\nann\n")
    assert train("tracebias", "--group", group, "--json").json["users"] == ["ann", "bo"]
    ran = train("tracebias", output="all")
    assert ran.status == 0 and "--adapter" in ran.out
    out = palate("train", "list", tmp_path).out
    assert "ann, bo" in out and "everybody's" in out
    assert "carries the taste of 'zoe'" in palate("train", "erase", tmp_path, "--user", "zoe").out


def test_a_judge_stands_in_for_the_reward(train):
    with endpoint(answer=longest) as served:
        told = train("grpo", "--user", "ann", "--judge", served.url, "--json").json
    assert told["reward"] == [0.5] and len(served.requests) == 2  # of two answers one wins


def test_settings_of_the_method_are_passed_on(tmp_path, train):
    assert train("tracebias", "--set", "eta=0.25", "--set", "averaging=clip").status == 0
    assert json.loads((tmp_path / "out" / "training.json").read_text())["more"] == {"eta": 0.25, "averaging": "clip"}


def test_accelerate_starts_the_processes(tmp_path, train):
    config = tmp_path / "two.yaml"
    config.write_text(
        "distributed_type: MULTI_CPU\nnum_processes: 2\nnum_machines: 1\nuse_cpu: true\nmixed_precision: 'no'\n"
    )
    ran = train("tracebias", "--user", "ann", "--engine", "accelerate", "--config", config, "--micro-batch", 2)
    assert ran.status == 0, ran
    assert (tmp_path / "out" / "palate.json").exists()


@pytest.mark.parametrize(
    "more, told",
    [
        (["--user", "silent"], "Nothing is known of 'silent'"),
        (["--user", "nobody"], "Nothing is known of 'nobody'"),
        (["--user", "ann", "--group", "g"], "Both --user and --group are given"),
        (["--group", "missing.txt"], "Group 'missing.txt' cannot be read"),
        (["--config", "fsdp.yaml"], "--config is of accelerate"),
        (["--set", "warp=9"], "TraceBiasConfig has no such setting"),
        (["--quality", "2"], "quality 2.0 is not in [0, 1]"),
    ],
)
def test_what_cannot_be_trained_is_told_in_a_line(train, more, told):
    assert told in train("tracebias", *more).failure


def test_wrong_usage_is_told(train):
    assert train("tracebias", "--set", "eta").status == 2
    assert train("tracebias", "--engine", "ray").status == 2
