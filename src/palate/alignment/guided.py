"""Guided decoding: a value head moves each next token towards what a person likes, while the model writes.

The logits of the next token a become log π(a | h) + (λ · A(h, a)) / τ (value-augmented sampling, Han et al. 2024). λ
is contracted with the head first, (λᵀU h) · E_a, so that a step costs one small product beside the model's own output
layer; and every row of a batch may be of another person.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from palate.alignment.candidates import Candidate, Sampling
from palate.alignment.local import LocalModel
from palate.alignment.value_head import ValueHead
from palate.errors import InputError
from palate.feedback import Text
from palate.rewards.beliefs import Floats

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def guided(
    model: "PreTrainedModel", head: ValueHead, weights: Floats, temperature: float = 1.0, *, plausible: float = 0.02
) -> Iterator[None]:
    """Within this context the model's logits are moved, so that `model.generate` works as it is.

    Args:
        model: a causal language model.
        head: its value head.
        weights: (B, J) λ of each row of a batch; rows that `generate` repeats follow each other.
        temperature: τ > 0, in logits of reward: the smaller, the stronger.
        plausible: in [0, 1): tokens less likely to the model than this share of its likeliest are not written at all,
            as the head has never seen it write them (the paper looks at the k likeliest alone); 0 leaves all.

    Raises:
        InputError: τ is not above 0, `plausible` is out of its range, or the weights are not of the head's rank.
        ModelError: the head is of another model.

    Example:
        >>> with guided(model, head, np.stack([ana.mean, ben.mean])):  # doctest: +SKIP
        ...     model.generate(**tokenizer(["Hi", "Hi"], return_tensors="pt"), max_new_tokens=50)
    """
    if not 0 < temperature < np.inf:
        raise InputError(f"temperature {temperature!r} is not above 0; give 1, or less for a stronger hand")
    if weights.ndim != 2 or weights.shape[1] != head.n_rewards:
        raise InputError(f"weights of shape {weights.shape} are not (batch, {head.n_rewards}), as the value head's are")
    if not 0 <= plausible < 1:
        raise InputError(f"plausible {plausible!r} is not in [0, 1); give a small share such as 0.02")
    output = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    head.fits(output)
    device = output.weight.device
    lam = torch.from_numpy(np.asarray(weights / temperature, np.float32)).to(device)
    moved = torch.einsum("bj,jrh->bhr", lam, head.state.detach().to(device))
    tokens = head.token.detach().to(device).T.contiguous()
    seen: list[Tensor] = []

    def keep(_: Any, inputs: tuple[Tensor, ...]) -> None:
        seen[:] = inputs[:1]

    def move(_: Any, __: Any, said: Any) -> Any:
        states = seen.pop()
        times, rest = divmod(len(states), len(moved))
        if rest:
            raise InputError(f"A batch of {len(states)} rows does not fit the weights of {len(moved)} people")
        rows = moved if times == 1 else moved.repeat_interleave(times, dim=0)
        added = (states.float() @ rows @ tokens).to(said.logits.dtype)
        if plausible > 0:
            # Not −∞: a likelihood times a mask of 0 would be no number.
            unlikely = said.logits < said.logits.amax(-1, keepdim=True) + np.log(plausible)
            added = added.masked_fill(unlikely, torch.finfo(added.dtype).min / 2)
        said.logits += added
        return said

    handles = [output.register_forward_pre_hook(keep), model.register_forward_hook(move)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def guided_answers(
    source: LocalModel,
    head: ValueHead,
    prompts: Sequence[Text],
    weights: Floats,
    n: int = 1,
    sampling: Sampling = Sampling(),
    temperature: float = 1.0,
) -> list[list[Candidate]]:
    """Guided answers, n to each of m prompts, each for another person.

    Args:
        source: the policy.
        head: its value head.
        prompts: m prompts.
        weights: (m, J) the person's λ for each, such as a posterior's mean.
        n: answers to each.
        sampling: how they are drawn.
        temperature: τ > 0.

    Raises:
        InputError: as `guided` and `LocalModel.draw` do.
    """
    return source.draw(
        prompts, n, sampling, steered=lambda rows: guided(source.model, head, weights[list(rows)], temperature)
    )
