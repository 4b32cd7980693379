"""The reward follower: how pleased a person will be with an answer, learning as replies come in.

ARF-RLHF (arXiv 2507.03069) lets a copy of its static scorer follow a person online (the "ARF scorer"). Here a person's
part is the posterior that choices and ratings move as well, λ_u · φ + b_u, and only what all people share is learned by
gradient: a small head on the base rewards that adds what these leave out. σ(own + head) is the satisfaction foretold.
The head learns in small steps from everybody's new records, mixed with old ones from a replay memory, so that whoever
talked last does not overwrite the rest.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import expit
from torch import nn

from palate.errors import InputError
from palate.feedback import Text
from palate.rewards.beliefs import Belief, Floats
from palate.rewards.model import RewardModel
from palate.satisfaction.replay import Experience, ReplayMemory


@dataclass(frozen=True)
class HeadSettings:
    """How the shared head learns.

    Args:
        hidden: width of its one hidden layer.
        rate: of AdamW.
        decay: AdamW's weight decay: the head stays near "adds nothing".
        batch: new records in a step.
        passes: times that new records are gone through.
        replayed: old records mixed in for each new one, ≥ 0.
        seed: of its first weights, and of what is replayed.

    Raises:
        InputError: a value is out of its range.
    """

    hidden: int = 32
    rate: float = 3e-3
    decay: float = 1e-2
    batch: int = 8
    passes: int = 5
    replayed: float = 3.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("hidden", 1), ("batch", 1), ("passes", 1), ("replayed", 0), ("decay", 0)):
            if not getattr(self, name) >= least:
                raise InputError(f"{name} {getattr(self, name)!r} is below {least}; give a larger one")
        if not self.rate > 0:
            raise InputError(f"rate {self.rate!r} is not above 0; give a learning rate such as 0.003")


class SharedHead:
    """What all people's satisfactions have in common beyond their own rewards, in logits.

    Args:
        width: J, how many base rewards it reads.
        settings: how it learns.

    Example:
        >>> head = SharedHead(width=2)
        >>> head(np.zeros((3, 2))).tolist()
        [0.0, 0.0, 0.0]
    """

    def __init__(self, width: int, settings: HeadSettings = HeadSettings()) -> None:
        self.settings = settings
        generator = torch.Generator().manual_seed(settings.seed)
        last = nn.Linear(settings.hidden, 1)
        first = nn.Linear(width, settings.hidden)
        nn.init.normal_(first.weight, std=width**-0.5, generator=generator)
        nn.init.zeros_(first.bias)
        # It starts by adding nothing: until somebody replied, the posterior speaks alone.
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(first, nn.Tanh(), last)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=settings.rate, weight_decay=settings.decay)
        self.steps = 0

    def __call__(self, phi: Floats) -> Floats:
        """(n,) logits to add for (n, J) base rewards less their centre."""
        with torch.inference_mode():
            return np.asarray(self.network(torch.from_numpy(phi).float())[:, 0].double().numpy(), np.float64)

    def learn(self, new: Sequence[Experience], memory: ReplayMemory) -> None:
        """Take in new records, in the order in which they came, each batch mixed with old ones, and remember them.

        What is replayed rests on the seed and on how many steps were taken: the same stream gives the same head.

        Args:
            new: records, of anybody.
            memory: where old ones are.
        """
        size = self.settings.batch
        for number in range(self.settings.passes):
            for first in range(0, len(new), size):
                batch = list(new[first : first + size])
                rng = np.random.default_rng([self.settings.seed, self.steps])
                self._step([*batch, *memory.sample(round(self.settings.replayed * len(batch)), rng)])
                if number == 0:
                    memory.add(batch)

    def _step(self, records: Sequence[Experience]) -> None:
        phi = torch.from_numpy(np.stack([record.phi for record in records])).float()
        own, target, weight = (
            torch.tensor([getattr(record, name) for record in records]) for name in ("own", "target", "weight")
        )
        added = self.network(phi)[:, 0]
        loss = nn.functional.binary_cross_entropy_with_logits(own + added, target, weight, reduction="sum")
        self.optimizer.zero_grad()
        (loss / weight.sum()).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.steps += 1

    def state(self) -> bytes:
        """All of it, to be kept: weights and the optimiser's memory."""
        from safetensors.torch import save

        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        for number, memory in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in memory.items()}
        tensors["steps"] = torch.tensor(self.steps)
        return bytes(save({name: value.contiguous() for name, value in tensors.items()}))

    def restore(self, state: bytes) -> None:
        """Go on where `state` was taken.

        Raises:
            InputError: it is of a head of another shape.
        """
        from safetensors.torch import load

        tensors = load(state)
        network = {name.removeprefix("network."): v for name, v in tensors.items() if name.startswith("network.")}
        try:
            self.network.load_state_dict(network)
        except RuntimeError as error:
            raise InputError("The shared head kept is of another shape than this one; let it learn anew") from error
        kept: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, number, part = name.split(".")
                kept.setdefault(int(number), {})[part] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": kept})
        self.steps = int(tensors["steps"])

    @property
    def revision(self) -> str:
        """16 hex digits that change when it has learned."""
        return hashlib.sha256(self.state()).hexdigest()[:16]


class RewardFollower:
    """Foretells a person's satisfaction with an answer.

    Args:
        model: base rewards, and how replies speak.
        head: what is shared beyond them; one that adds nothing yet by default.

    Example:
        >>> follower = RewardFollower(model)                                          # doctest: +SKIP
        >>> ann = model.posterior(said)                                               # doctest: +SKIP
        >>> follower.satisfaction("How do I boil an egg?", ["Nine minutes."], ann)    # doctest: +SKIP
    """

    def __init__(self, model: RewardModel, head: SharedHead | None = None) -> None:
        self.model = model
        self.head = head or SharedHead(model.n_rewards)

    def own(self, phi: Floats, user: Belief) -> Floats:
        """(n,) the person's own part in logits, a λ_u · φ + g b_u, for (n, J) base rewards less their centre.

        Args:
            phi: as `RewardModel.centred` gives them.
            user: a belief over (λ, b_u), as `RewardModel.posterior(..., level=True)` gives it, or over λ alone.
        """
        scale, dim = self.model.scales.replies, phi.shape[1]
        level = scale.generosity * user.mean[dim] if len(user.mean) > dim else 0.0
        return np.asarray(scale.slope * (phi @ user.mean[:dim]) + level, np.float64)

    def satisfaction(self, prompt: Text, completions: Sequence[Text], user: Belief | None = None) -> Floats:
        """Satisfaction foretold of each completion, in [0, 1]: (n,); the population's for `user` None."""
        return self.foretold(self.model.centred([prompt] * len(completions), completions), user)

    def foretold(self, phi: Floats, user: Belief | None = None) -> Floats:
        """(n,) satisfaction, in [0, 1], for (n, J) base rewards less their centre."""
        return np.asarray(expit(self.own(phi, user or self.model.prior) + self.head(phi)), np.float64)
