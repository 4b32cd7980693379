"""TraceBias and PPO on TRL's trainer: gradients, bounds, masks, and what accumulation must not change."""

import math
from importlib.metadata import version
from typing import Any

import pytest
import torch
from tests.training_support import trainer, vowels
from trl import GRPOConfig, GRPOTrainer

from palate.errors import InputError
from palate.training.critic import CriticTrainer, Traces
from palate.training.ppo import PPOConfig, PPOTrainer
from palate.training.tracebias import TraceBiasConfig, TraceBiasTrainer
from palate.training.traces import per_trace


def bias(folder, reward=vowels, **settings) -> Any:
    return trainer(TraceBiasTrainer, TraceBiasConfig, folder, reward, **settings)


def scored(one: Any) -> dict[str, Any]:
    """A generation batch with its advantages."""
    one.model.train()
    torch.manual_seed(5)
    rows = [{"prompt": [{"role": "user", "content": f"Hi {i}"}]} for i in range(2) for _ in range(4)]
    inputs: dict[str, Any] = one._generate_and_score_completions(rows)
    one._step = 0
    one.current_gradient_accumulation_steps = 1
    return inputs


def leaf(one: Any, inputs: dict[str, Any], shift: torch.Tensor | None = None) -> Any:
    """Gives the loss log-probabilities that stand alone, so that its gradient by each token can be read."""
    now = inputs["old_per_token_logps"] + (0 if shift is None else shift)
    now = now.detach().requires_grad_()
    one._get_per_token_logps_and_entropies = lambda *_, **__: (now, torch.ones_like(now), None)
    return now


def test_the_door_to_trl_is_where_it_was():
    assert version("trl") == "1.16.0"
    for name in ("_calculate_rewards", "_get_per_token_logps_and_entropies", "_generate_and_score_completions",
                 "_compute_loss", "_save_checkpoint", "_load_optimizer_and_scheduler"):  # fmt: skip
        assert callable(getattr(GRPOTrainer, name)), f"TRL has moved {name}"


def test_where_the_policy_is_the_one_that_sampled_the_gradient_is_that_of_reinforce(tmp_path):
    one = bias(tmp_path, beta=0.0)
    inputs = scored(one)
    one._compute_loss(one.model, inputs).backward()
    found = {name: p.grad.clone() for name, p in one.model.named_parameters() if p.grad is not None}
    one.model.zero_grad()
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    seen = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    width = inputs["completion_ids"].shape[1]
    said = one.model(input_ids=ids, attention_mask=seen).logits[:, -width - 1 : -1].log_softmax(-1)
    log_probs = said.gather(2, inputs["completion_ids"][..., None])[..., 0]
    mask = inputs["completion_mask"]
    loss: Any = -per_trace(inputs["advantages"] * log_probs, mask).mean()
    loss.backward()
    assert found and max(float(g.abs().max()) for g in found.values()) > 1e-4
    for name, parameter in one.model.named_parameters():
        if name in found:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-6)


def test_no_token_has_more_influence_than_the_bound(tmp_path):
    one = bias(tmp_path, beta=0.0)
    inputs = scored(one)
    shift = torch.linspace(-60, 60, 8)[:, None].expand_as(inputs["advantages"])
    now = leaf(one, inputs, shift)
    one._compute_loss(one.model, inputs).backward()
    lengths = inputs["completion_mask"].sum(1, keepdim=True)
    share = inputs["advantages"].abs() / (8 * lengths)
    assert bool((now.grad.abs() <= 2 * share + 1e-7).all())
    # A trace that has moved far in the direction of its advantage counts no more; one that moved against it does.
    toward = per_trace(inputs["advantages"], inputs["completion_mask"]) * shift[:, 0]
    assert not now.grad[toward > 0].abs().max() > 1e-6
    assert now.grad[toward < 0].abs().max() > 1e-4


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_advantages_are_of_mean_zero_in_each_group_as_the_loss_weights_them(tmp_path, eta, gamma):
    one = bias(tmp_path, eta=eta, gamma=gamma)
    torch.nn.init.normal_(one.critic.layers[-1].weight)  # a critic that says something
    inputs = scored(one)
    means = per_trace(inputs["advantages"], inputs["completion_mask"])
    torch.testing.assert_close(means.view(2, 4).mean(1), torch.zeros(2), atol=1e-5, rtol=0)
    assert inputs["advantages"].shape == inputs["completion_ids"].shape


def test_without_step_preferences_all_tokens_of_a_trace_have_its_score_against_the_group(tmp_path):
    inputs = scored(bias(tmp_path, eta=0.0))
    mask = inputs["completion_mask"] > 0
    for row, own in zip(inputs["advantages"], mask, strict=True):
        assert float(row[own].std(correction=0)) < 1e-6 and not row[~own].any()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None])
def test_a_trace_whose_score_is_no_number_is_in_no_term(tmp_path, bad):
    def reward(prompts, completions, **_):
        scores: list[Any] = vowels(prompts, completions)
        scores[3] = bad
        return scores

    one = bias(tmp_path, reward, beta=0.5)
    inputs = scored(one)
    assert not inputs["advantages"][3].any() and not inputs["completion_mask"][3].any()
    assert float(inputs["valid_traces"][0]) == 7
    means = per_trace(inputs["advantages"], inputs["completion_mask"])
    assert float(means[:4].sum()) == pytest.approx(0, abs=1e-5)
    now = leaf(one, inputs, torch.full_like(inputs["advantages"], 0.3))
    loss = one._compute_loss(one.model, inputs)
    loss.backward()
    assert bool(loss.isfinite()) and not now.grad[3].any() and bool(now.grad[2].any())


@pytest.mark.parametrize("make, config", [(TraceBiasTrainer, TraceBiasConfig), (PPOTrainer, PPOConfig)])
def test_scores_that_are_all_alike_move_nothing(tmp_path, make, config):
    one = trainer(make, config, tmp_path, lambda prompts, completions, **_: [0.3] * len(completions), beta=0.0)
    before = {name: p.clone() for name, p in one.model.named_parameters()}
    one.train()
    for name, parameter in one.model.named_parameters():
        torch.testing.assert_close(parameter, before[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("make, config", [(TraceBiasTrainer, TraceBiasConfig), (PPOTrainer, PPOConfig)])
def test_traces_of_one_token_and_traces_that_were_cut_can_be_learned_from(tmp_path, make, config):
    one = trainer(make, config, tmp_path, max_completion_length=1)
    one.train()
    assert all(math.isfinite(row["loss"]) for row in one.state.log_history if "loss" in row)
    one = trainer(make, config, tmp_path, mask_truncated_completions=True, max_completion_length=2)
    one.train()
    assert all(math.isfinite(row["loss"]) for row in one.state.log_history if "loss" in row)


@pytest.mark.parametrize("make, config", [(TraceBiasTrainer, TraceBiasConfig), (PPOTrainer, PPOConfig)])
def test_gradient_accumulation_changes_nothing(tmp_path, make, config):
    weights = []
    for size, parts in ((8, 1), (2, 4)):
        one = trainer(
            make, config, tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=parts, beta=0.1,
            max_steps=8, learning_rate=3e-3,
        )  # fmt: skip
        one.train()
        weights.append({name: p.detach().clone() for name, p in one.model.named_parameters()})
    for name, one_way in weights[0].items():
        torch.testing.assert_close(one_way, weights[1][name], rtol=0, atol=2e-4)


def test_a_clip_is_trls_own_and_none_is_no_clip(tmp_path):
    clipped = bias(tmp_path, averaging="clip", beta=0.0)
    plain = trainer(GRPOTrainer, GRPOConfig, tmp_path, loss_type="grpo", beta=0.0)
    inputs = scored(clipped)
    plain.model.train()
    plain.current_gradient_accumulation_steps = 1
    shift = torch.linspace(-1, 1, 8)[:, None].expand_as(inputs["advantages"])
    losses = []
    for one in (clipped, plain):
        leaf(one, inputs, shift)
        losses.append(float(one._compute_loss(one.model, inputs).detach()))
    assert losses[0] == losses[1]
    free = bias(tmp_path, averaging="none", beta=0.0)
    free.model.train()
    free.current_gradient_accumulation_steps = 1
    now = leaf(free, inputs, shift)
    wanted = -per_trace((now - inputs["old_per_token_logps"]).exp() * inputs["advantages"], inputs["completion_mask"])
    found = free._compute_loss(free.model, inputs).detach()
    assert float(found) == pytest.approx(float(wanted.mean().detach()), abs=1e-5)


def test_the_critic_learns_what_the_states_tell(tmp_path):
    one = bias(tmp_path, critic_epochs=300, critic_rate=1e-2)
    scores = torch.tensor([1.0, -1.0, 2.0, -2.0])
    states = torch.randn(4, 9, 16) + scores[:, None, None]
    traces = Traces(scores, torch.zeros(4), torch.ones(4, dtype=torch.bool), torch.ones(4, 8), torch.zeros(4, 9))
    before = float(((one.critic(states) - scores[:, None]) ** 2).mean().detach())
    one._learn_critic(traces, states)
    assert float(((one.critic(states) - scores[:, None]) ** 2).mean().detach()) < 0.3 * before


def test_the_critic_reads_the_states_of_the_policy_and_not_of_the_reference(tmp_path):
    from peft import LoraConfig

    # One pass over each batch, and it is on policy: TRL makes no pass of its own but the reference's.
    one = bias(tmp_path, num_iterations=1, beta=0.1)
    model = one.model
    args = TraceBiasConfig(
        str(tmp_path / "lora"), num_iterations=1, beta=0.1, per_device_train_batch_size=8, num_generations=4,
        max_completion_length=4, use_cpu=True, bf16=False, report_to="none", save_strategy="no",
    )  # fmt: skip
    one = TraceBiasTrainer(
        model, vowels, args, train_dataset=one.train_dataset, processing_class=one.processing_class,
        peft_config=LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False),
    )  # fmt: skip
    seen: list[torch.Tensor] = []
    one.critic.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    inputs = scored(one)
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    with torch.no_grad():
        states = one.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(seen[0], states[:, -(inputs["completion_ids"].shape[1] + 1) :], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"gamma": 1.5}, r"gamma 1.5 is not in \[0, 1\]"),
        ({"eta": -0.1}, r"eta -0.1 is not in \[0, 1\]"),
        ({"cuts": -1}, "cuts -1 is below 0"),
        ({"averaging": "mean"}, "averaging 'mean' is not dam, dam-mean, clip or none"),
        ({"critic_epochs": 0}, "critic_epochs 0 is not above 0"),
        ({"loss_type": "dapo"}, "loss_type 'dapo' is not 'grpo'"),
        ({"save_strategy": "steps", "save_steps": 6}, "save_steps 6 is no multiple of 4.*give 8"),
        ({"gradient_accumulation_steps": 8, "steps_per_generation": 3, "generation_batch_size": None,
          "per_device_train_batch_size": 4}, "does not divide 12"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(tmp_path, settings, told):
    with pytest.raises(InputError, match=told):
        bias(tmp_path, **settings)


def test_what_is_no_tracebias_says_what_it_wants():
    with pytest.raises(NotImplementedError):
        CriticTrainer.token_advantages(None, None)  # type: ignore[arg-type]
