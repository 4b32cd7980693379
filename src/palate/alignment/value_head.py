"""A head on a language model's states that foretells the base rewards of the finished answer, for each next token.

Q_j(h, a) = V_j(h) + A_j(h, a), where h is the state that the model's own output layer reads and a the next token
(value-augmented sampling: Han, Shenfeld, Srivastava, Kim, Agrawal 2024, arXiv 2405.06639; here one head for all
people, with a value for each base reward). A is of low rank, A_j(h, a) = (U_j h) · E_a. Only A moves an answer: V is
the same for all tokens, and takes from A's lesson what the beginning alone foretells.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from palate.alignment.candidates import Candidate, Sampling
from palate.alignment.local import LocalModel
from palate.errors import InputError, ModelError
from palate.feedback import Text
from palate.rewards import RewardModel
from palate.rewards.beliefs import Floats

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Stage = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, steps in all)."""

FORMAT = 1


class ValueHead(nn.Module):
    """The head.

    Args:
        n_rewards: J.
        hidden: H, size of the states.
        vocabulary: number of tokens.
        rank: R.
        fingerprint: of the reward model whose base rewards it foretells.
        policy: the language model's name.
        revision: of the language model's weights; empty where that is not known.
        explained: share of how the answers to one prompt differ that it foretells from their middle on, over prompts
            that it was not trained on; None where there were too few to leave any aside.
    """

    def __init__(
        self,
        n_rewards: int,
        hidden: int,
        vocabulary: int,
        rank: int = 32,
        *,
        fingerprint: str = "",
        policy: str = "",
        revision: str = "",
        explained: float | None = None,
    ) -> None:
        super().__init__()
        self.rank, self.fingerprint, self.explained = rank, fingerprint, explained
        self.policy, self.revision = policy, revision
        self.value = nn.Linear(hidden, n_rewards)
        self.state = nn.Parameter(torch.randn(n_rewards, rank, hidden) / hidden**0.5)
        self.token = nn.Parameter(torch.zeros(vocabulary, rank))

    @property
    def n_rewards(self) -> int:
        """J."""
        return int(self.state.shape[0])

    def forward(self, states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """V (N, J) of (N, H) states, and A (N, J) of the (N,) tokens that came next."""
        moved = torch.einsum("nh,jrh->njr", states, self.state)
        return self.value(states), torch.einsum("njr,nr->nj", moved, self.token[tokens])

    def save(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        config = {
            "format": FORMAT,
            "n_rewards": self.n_rewards,
            "hidden": int(self.state.shape[2]),
            "vocabulary": int(self.token.shape[0]),
            "rank": self.rank,
            "fingerprint": self.fingerprint,
            "policy": self.policy,
            "revision": self.revision,
            "explained": self.explained,
        }
        weights = {name: value.detach().contiguous() for name, value in self.state_dict().items()}
        _replace(path / "model.safetensors", lambda part: save_file(weights, part))
        (path / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path, model: RewardModel) -> "ValueHead":
        """Read a head's folder.

        Args:
            folder: as `save` wrote it.
            model: the reward model that it is to be used with.

        Raises:
            ModelError: a file is missing or cut short, or the head foretells another reward model's rewards.
        """
        path = Path(folder)
        try:
            config = json.loads((path / "config.json").read_text("utf-8"))
            if config.pop("format") != FORMAT:
                raise ModelError(f"The value head in {str(path)!r} is of another version; train it anew")
            head = cls(**config)
            head.load_state_dict(load_file(path / "model.safetensors"))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            reason = str(error).split("\n")[0]
            raise ModelError(f"The value head in {str(path)!r} cannot be read: {reason}; train it anew") from error
        head.check(model)
        return head.eval()

    def fits(self, output: nn.Linear) -> None:
        """Whether it is of a model with this output layer.

        Raises:
            ModelError: it is not.
        """
        shape = (int(self.token.shape[0]), int(self.state.shape[2]))
        if tuple(output.weight.shape) != shape:
            raise ModelError(
                f"The value head is of {self.policy!r}, with {shape[0]:,} tokens and states of {shape[1]:,}, and "
                "does not fit this model; train one for it: palate train value-head"
            )

    def check(self, model: RewardModel, revision: str = "") -> None:
        """Whether it foretells this reward model's rewards, and is of the language model of that revision.

        Raises:
            ModelError: it does not, or is not.
        """
        if revision and self.revision and revision != self.revision:
            raise ModelError(
                f"The value head was trained on {self.policy!r}, revision {self.revision}, not {revision}; "
                "train one for this model: palate train value-head"
            )
        if self.fingerprint != model.fingerprint:
            raise ModelError(
                f"The value head was trained for reward model {self.fingerprint}, not {model.fingerprint}; "
                "train one for it: palate train value-head"
            )


@dataclass(frozen=True)
class HeadRecipe:
    """How a value head is trained.

    Args:
        answers: drawn for each prompt.
        rank: R.
        epochs: over the answers.
        rate: learning rate, at most.
        batch: answers.
        seed: same seed, same head.
    """

    answers: int = 32
    rank: int = 32
    epochs: int = 6
    rate: float = 3e-3
    batch: int = 32
    seed: int = 0


class Written(NamedTuple):
    """An answer as tokens after its prompt's, its base rewards, and the number of its prompt."""

    ids: list[int]
    start: int
    phi: Floats
    prompt: int


def train_value_head(
    source: LocalModel,
    model: RewardModel,
    prompts: Sequence[Text],
    recipe: HeadRecipe = HeadRecipe(),
    sampling: Sampling = Sampling(),
    *,
    folder: Path | None = None,
    told: Stage | None = None,
) -> ValueHead:
    """Train a value head on answers that the policy itself writes.

    Args:
        source: the policy.
        model: whose base rewards are foretold.
        prompts: that it answers.
        recipe: how.
        sampling: how answers are drawn.
        folder: where answers and the head after each epoch are kept, so that a training that was killed goes on from
            there; None: nowhere.
        told: told of each stage.

    Raises:
        InputError: there are no prompts, or no answer that says anything.
    """
    if not prompts:
        raise InputError("There is no prompt to train a value head on; give some that your users ask")
    tell = told or (lambda *_: None)
    torch.manual_seed(recipe.seed)
    policy = source.model
    output = cast(nn.Linear, policy.get_output_embeddings())  # type: ignore[no-untyped-call]
    vocabulary, hidden = output.weight.shape
    head = ValueHead(
        model.n_rewards,
        hidden,
        vocabulary,
        recipe.rank,
        fingerprint=model.fingerprint,
        policy=source.name,
        revision=source.revision,
    )
    of = repr((recipe, sampling, model.fingerprint, source.name, source.revision, list(prompts)))
    kept = None if folder is None else _Kept(folder, of)
    drawn = _drawn(source, prompts, recipe, sampling, kept, tell)
    every = _scored(source, model, prompts, drawn, tell)
    # Whole prompts: other answers to the same one would be known half.
    order = np.random.default_rng(recipe.seed).permutation(len(prompts))
    aside = set(order[: len(prompts) // 8].tolist())
    answers = [answer for answer in every if answer.prompt not in aside]
    target = np.stack([answer.phi for answer in answers])
    scale = torch.from_numpy(target.std(axis=0) + 1e-6).float()
    head.value.bias.data = torch.from_numpy(target.mean(axis=0)).float()
    with torch.no_grad():
        # Tokens begin where the model's own output layer has them, so that alike ones are moved alike.
        mixed = output.weight.float().cpu() @ torch.randn(hidden, recipe.rank)
        head.token.copy_(0.1 * mixed / mixed.std())
    sizes = np.array([len(answer.ids) for answer in answers])
    steps = recipe.epochs * -(-len(answers) // recipe.batch)
    optimizer = torch.optim.AdamW(head.parameters(), recipe.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=steps + recipe.epochs + 1)
    parts = {"head": head, "optimizer": optimizer, "schedule": schedule}
    first = kept.resume(parts) if kept else 0
    head.train()
    for epoch in range(first, recipe.epochs):
        rng = np.random.default_rng([recipe.seed, epoch])
        for step, rows in enumerate(_in_batches(sizes, recipe.batch, rng)):
            states, tokens, phi = _read(policy, [answers[i] for i in rows])
            value, advantage = head(states, tokens)
            ahead, after = ((said - phi) / scale for said in (value, value.detach() + advantage))
            loss = ahead.square().mean() + after.square().mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            tell("Training the value head", epoch * (steps // recipe.epochs) + step + 1, steps)
        if kept:
            kept.checkpoint(parts, epoch + 1)
    head.eval().explained = _explained(head, policy, [answer for answer in every if answer.prompt in aside])
    if folder is not None:
        head.save(folder)
    return head


def _explained(head: ValueHead, policy: "PreTrainedModel", answers: Sequence[Written]) -> float | None:
    """R² of Q at the later half of the answers' tokens, all less the mean of their prompt; over base rewards."""
    if not answers:
        return None
    said = []
    for answer in answers:
        states, tokens, phi = _read(policy, [answer])
        with torch.no_grad():
            value, advantage = head(states, tokens)
        said.append((value + advantage)[len(phi) // 2 :].mean(0).double().numpy())
    number = np.array([answer.prompt for answer in answers])
    true, found = (_centred(np.stack(values), number) for values in ([answer.phi for answer in answers], said))
    return float(np.mean(1 - np.mean((true - found) ** 2, axis=0) / np.maximum(true.var(axis=0), 1e-12)))


def _centred(values: Floats, number: "np.typing.NDArray[np.int64]") -> Floats:
    return np.asarray(np.concatenate([values[number == n] - values[number == n].mean(0) for n in np.unique(number)]))


def _drawn(
    source: LocalModel,
    prompts: Sequence[Text],
    recipe: HeadRecipe,
    sampling: Sampling,
    kept: "_Kept | None",
    tell: Stage,
) -> list[list[Candidate]]:
    """Answers to each prompt, those that were kept first."""
    found = kept.answers() if kept else []
    for done in range(len(found), len(prompts)):
        seeded = replace(sampling, seed=recipe.seed * 100_003 + done)
        [answers] = source.draw([prompts[done]], recipe.answers, seeded)
        found.append(answers)
        if kept:
            kept.keep(answers)
        tell("Writing answers", done + 1, len(prompts))
    return found


def _scored(
    source: LocalModel, model: RewardModel, prompts: Sequence[Text], drawn: list[list[Candidate]], tell: Stage
) -> list[Written]:
    """Answers with their base rewards, those that say nothing left out."""
    said = [(i, one) for i, answers in enumerate(drawn) for one in answers if one.text.strip()]
    if not said:
        raise InputError(f"{source.name!r} wrote nothing but empty answers; give a model that answers these prompts")
    phi = model.phi(
        [prompts[i] for i, _ in said],
        [one.text for _, one in said],
        progress=lambda done, total: tell("Reading answers", done, total),
    )
    written = []
    for (i, one), row in zip(said, phi, strict=True):
        before, after = source.tokens(prompts[i], one.text)
        own = list(one.ids) or after
        written.append(Written(before + own, len(before), row, i))
    return written


def _read(policy: "PreTrainedModel", answers: Sequence[Written]) -> tuple[Tensor, Tensor, Tensor]:
    """States before each token of the answers, (N, H), these tokens, (N,), and their answers' base rewards, (N, J)."""
    width = max(len(answer.ids) for answer in answers)
    ids, mask, own = (torch.zeros(len(answers), width, dtype=torch.long) for _ in range(3))
    for row, answer in enumerate(answers):
        ids[row, : len(answer.ids)] = torch.tensor(answer.ids)
        mask[row, : len(answer.ids)] = 1
        own[row, answer.start - 1 : len(answer.ids) - 1] = 1
    with torch.inference_mode():
        body = policy.base_model(input_ids=ids.to(policy.device), attention_mask=mask.to(policy.device))
        states = body.last_hidden_state.float().cpu()
    chosen = own.bool()
    following = torch.roll(ids, -1, dims=1)[chosen]
    phi = torch.from_numpy(np.stack([answer.phi for answer in answers])).float()
    return states[chosen].clone(), following, phi.repeat_interleave(own.sum(1), dim=0)


class _Kept:
    """Where a training left off: the answers that were drawn, and all that changes while it learns."""

    def __init__(self, folder: Path, of: str) -> None:
        self._answers, self._state = folder / "answers.jsonl", folder / "checkpoint.pt"
        self._of = sha256(of.encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)

    def answers(self) -> list[list[Candidate]]:
        """What was drawn for this training; what was for another is done away with."""
        lines = self._answers.read_text("utf-8").split("\n") if self._answers.exists() else []
        if not lines or lines[0] != json.dumps(self._of):
            self._state.unlink(missing_ok=True)
            self._answers.write_text(json.dumps(self._of) + "\n", "utf-8")
            return []
        whole = lines[1:-1]  # a last line without an end is half-written
        if lines[-1]:
            _replace(self._answers, lambda part: part.write_text("\n".join([lines[0], *whole, ""]), "utf-8"))
        return [[Candidate(**one | {"ids": tuple(one["ids"])}) for one in json.loads(line)] for line in whole]

    def keep(self, answers: Sequence[Candidate]) -> None:
        """The answers to the next prompt."""
        with self._answers.open("a", encoding="utf-8") as file:
            file.write(json.dumps([asdict(one) for one in answers]) + "\n")

    def checkpoint(self, parts: Mapping[str, Any], epoch: int) -> None:
        state = {"of": self._of, "epoch": epoch, **{name: part.state_dict() for name, part in parts.items()}}
        _replace(self._state, lambda part: torch.save(state, part))

    def resume(self, parts: Mapping[str, Any]) -> int:
        """Takes up the last checkpoint of this training, and tells how many epochs it had; 0 if there is none."""
        if not self._state.exists():
            return 0
        state = torch.load(self._state, weights_only=True)
        if state["of"] != self._of:
            return 0
        for name, part in parts.items():
            part.load_state_dict(state[name])
        return int(state["epoch"])


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all."""
    part = path.with_suffix(".part")
    write(part)
    part.replace(path)


def _in_batches(sizes: "np.typing.NDArray[np.int64]", batch: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """Rows in batches of like length: by chance in runs of sixteen batches, sorted within."""
    order = rng.permutation(len(sizes))
    found: list[list[int]] = []
    for first in range(0, len(order), 16 * batch):
        run = sorted(order[first : first + 16 * batch].tolist(), key=lambda i: sizes[i])
        found += [run[k : k + batch] for k in range(0, len(run), batch)]
    return (found[i] for i in rng.permutation(len(found)))
