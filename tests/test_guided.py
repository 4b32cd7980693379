"""Guided decoding: what the logits become, for whom, and a value head that learns what there is to learn."""

from functools import cache

import numpy as np
import pytest
import torch
from tests.support import fitted
from tests.test_local_model import local
from tests.tiny_models import NAMES

from palate.alignment import Personalizer
from palate.alignment.candidates import Candidate, Sampling
from palate.alignment.guided import guided, guided_answers
from palate.alignment.value_head import HeadRecipe, ValueHead, train_value_head
from palate.errors import InputError, ModelError


@cache
def random_head(hidden: int = 16, vocabulary: int = 260) -> ValueHead:
    torch.manual_seed(1)
    head = ValueHead(fitted().n_rewards, hidden, vocabulary, rank=4, fingerprint=fitted().fingerprint, policy="tiny")
    head.token.data = torch.randn(vocabulary, 4)
    return head


def weights(people: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((people, fitted().n_rewards))


def logits_of(name: str, rows: int) -> torch.Tensor:
    ids = torch.arange(4, 4 + 6 * rows).reshape(rows, 6) % 260
    with torch.inference_mode():
        logits: torch.Tensor = local(name).model(input_ids=ids).logits
        return logits


@pytest.mark.parametrize("name", NAMES)
def test_logits_move_by_what_the_head_says_of_each_persons_taste(name):
    head, lam = random_head(), weights(2)
    ids = torch.arange(4, 16).reshape(2, 6)
    model = local(name).model
    with torch.inference_mode():
        plain = model(input_ids=ids, output_hidden_states=True)
        with guided(model, head, lam, temperature=0.5, plausible=0):
            moved = model(input_ids=ids).logits
        states = plain.hidden_states[-1]
        for person in range(2):
            for place in range(6):
                state = states[person, place].repeat(260, 1)
                _, advantage = head(state, torch.arange(260))
                expected = advantage @ torch.from_numpy(lam[person]).float() / 0.5
                found = moved[person, place] - plain.logits[person, place]
                torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
        assert torch.equal(logits_of(name, 2), logits_of(name, 2))


def test_without_a_taste_and_after_the_context_nothing_moves():
    before = logits_of("qwen2", 2)
    with guided(local().model, random_head(), np.zeros((2, fitted().n_rewards)), plausible=0):
        assert torch.equal(logits_of("qwen2", 2), before)
    with pytest.raises(RuntimeError), guided(local().model, random_head(), weights(2)):
        raise RuntimeError
    assert torch.equal(logits_of("qwen2", 2), before)


def test_different_people_in_one_batch_get_what_each_would_get_alone():
    lam = weights(3)
    greedy = Sampling(temperature=0, max_tokens=8)
    prompts = ["Hi", "How do you do, then?", "Why?"]
    together = guided_answers(local(), random_head(), prompts, lam, 1, greedy, 0.2)
    alone = [guided_answers(local(), random_head(), [p], lam[[i]], 1, greedy, 0.2)[0] for i, p in enumerate(prompts)]
    assert together == alone
    assert together != local().draw(prompts, 1, greedy)


def test_rows_that_are_repeated_follow_their_person():
    drawn = guided_answers(local(), random_head(), ["Hi", "Ho"], weights(2), 4, Sampling(max_tokens=3, seed=0))
    assert [len(answers) for answers in drawn] == [4, 4]
    with guided(local().model, random_head(), weights(1)):
        assert logits_of("qwen2", 3).shape[0] == 3
    with (
        pytest.raises(InputError, match="3 rows does not fit the weights of 2"),
        guided(local().model, random_head(), weights(2)),
    ):
        logits_of("qwen2", 3)


@pytest.mark.parametrize("tau", [0.0, -1.0, float("nan"), float("inf")])
def test_a_strength_out_of_range_is_refused(tau):
    with pytest.raises(InputError, match="not above 0"), guided(local().model, random_head(), weights(1), tau):
        pass


def test_weights_of_another_rank_are_refused():
    with (
        pytest.raises(InputError, match="as the value head's are"),
        guided(local().model, random_head(), np.zeros((1, 99))),
    ):
        pass


def test_a_head_learns_which_tokens_are_rewarded(monkeypatch):
    source, model = local(), fitted()
    texts = ["!" * k + "?" * (8 - k) for k in range(9)] * 6
    monkeypatch.setattr(
        type(source),
        "draw",
        lambda self, prompts, n, sampling, **_: [[Candidate(t, 9) for t in texts] for _ in prompts],
    )
    monkeypatch.setattr(
        type(model),
        "phi",
        lambda self, prompts, texts, progress=None: np.array([[t.count("!") / 8] * self.n_rewards for t in texts]),
    )
    head = train_value_head(source, model, ["Hi"], HeadRecipe(answers=54, rank=4, epochs=30, rate=1e-2, batch=18))
    mark, other = (source.tokenizer(t, add_special_tokens=False)["input_ids"][0] for t in "!?")
    before, _ = source.tokens("Hi", "!!??")
    with torch.inference_mode():
        state = source.model.base_model(input_ids=torch.tensor([before])).last_hidden_state[:, -1]
        _, rewarded = head(state, torch.tensor([mark]))
        _, not_ = head(state, torch.tensor([other]))
    assert (rewarded > not_ + 0.05).all()


def small(**more) -> HeadRecipe:
    return HeadRecipe(**{"answers": 4, "rank": 2, "epochs": 3, "batch": 4, **more})


def test_training_is_the_same_twice_and_goes_on_where_it_was_killed(tmp_path):
    short = Sampling(max_tokens=6)
    whole = train_value_head(local(), fitted(), ["Hi", "Ho"], small(), short)
    calls = []

    def killed(stage: str, done: int, total: int) -> None:
        calls.append(stage)
        if stage == "Training the value head" and done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_value_head(local(), fitted(), ["Hi", "Ho"], small(), short, folder=tmp_path, told=killed)
    told: list[tuple[str, int]] = []
    again = train_value_head(
        local(),
        fitted(),
        ["Hi", "Ho"],
        small(),
        short,
        folder=tmp_path,
        told=lambda stage, done, _: told.append((stage, done)),
    )
    assert "Writing answers" not in dict(told) and min(d for s, d in told if s == "Training the value head") > 1
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    read = ValueHead.load(tmp_path, fitted())
    assert torch.equal(read.token, whole.token)
    other = train_value_head(local(), fitted(), ["Hi", "Ho"], small(seed=1), short, folder=tmp_path)
    assert not torch.equal(other.token, whole.token)


def test_a_head_of_another_language_model_is_refused():
    with (
        pytest.raises(ModelError, match="260 tokens and states of 8"),
        guided(local().model, random_head(hidden=8), weights(1)),
    ):
        pass
    head = ValueHead(fitted().n_rewards, 16, 260, fingerprint=fitted().fingerprint, policy="p", revision="0" * 16)
    with pytest.raises(ModelError, match="trained on 'p', revision 0000"):
        Personalizer(fitted(), local(), head)


def test_a_head_of_another_reward_model_is_refused(tmp_path):
    head = ValueHead(fitted().n_rewards, 16, 260, rank=2, fingerprint="0" * 16)
    head.save(tmp_path)
    with pytest.raises(ModelError, match="was trained for reward model 0000"):
        ValueHead.load(tmp_path, fitted())
    (tmp_path / "model.safetensors").write_bytes(b"half")
    with pytest.raises(ModelError, match="cannot be read"):
        ValueHead.load(tmp_path, fitted())


def test_nothing_to_train_on_is_refused(monkeypatch):
    with pytest.raises(InputError, match="no prompt"):
        train_value_head(local(), fitted(), [])
    monkeypatch.setattr(
        type(local()), "draw", lambda self, prompts, n, sampling, **_: [[Candidate(" ", 1)]] * len(prompts)
    )
    with pytest.raises(InputError, match="nothing but empty answers"):
        train_value_head(local(), fitted(), ["Hi"], small())
