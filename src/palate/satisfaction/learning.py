"""How a network learns from labelled texts, one network or several side by side."""

import copy
import itertools
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from palate.satisfaction.lessons import Lesson
from palate.satisfaction.network import EMOTIONS, LEVELS, TARGETS, Logits, Network, Sequences, sequences

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

    from tokenizers import Tokenizer

Stage = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, steps in all)."""


@dataclass(frozen=True)
class Lessons:
    """Lessons as tensors.

    Args:
        texts: token ids of n texts.
        satisfaction: (n, 5) soft labels; NaN where not known.
        target: (n,) number of the target; −1 where not known.
        emotion: (n, 4) ones and zeros; NaN where not known.
        weight: (n,).
    """

    texts: Sequences
    satisfaction: Tensor
    target: Tensor
    emotion: Tensor
    weight: Tensor

    @property
    def sizes(self) -> list[int]:
        """Tokens of each text."""
        return [len(ids) for ids in self.texts.ids]

    @classmethod
    def of(cls, tokenizer: "Tokenizer", lessons: Sequence[Lesson]) -> "Lessons":
        """Texts as token ids, labels as tensors."""
        known = torch.tensor([torch.nan if x.satisfaction is None else x.satisfaction for x in lessons])
        # Linear between the two nearest levels, so that the mean of the label is what is known.
        soft = (1 - (len(LEVELS) - 1) * (torch.tensor(LEVELS) - known[:, None]).abs()).clamp_min(0.0)
        soft[torch.tensor([x.foreign for x in lessons])] = 1 / len(LEVELS)
        nothing = [torch.nan] * len(EMOTIONS)
        return cls(
            sequences(tokenizer, [x.text for x in lessons], [x.context for x in lessons]),
            soft,
            torch.tensor([-1 if x.target is None else TARGETS.index(x.target) for x in lessons]),
            torch.tensor(
                [nothing if x.emotions is None else [float(e in x.emotions) for e in EMOTIONS] for x in lessons]
            ),
            torch.tensor([x.weight for x in lessons]),
        )

    def loss(self, rows: Sequence[int], said: Logits) -> Tensor:
        """Weighted mean over the rows of the cross-entropies of what is known of each."""
        soft, target, emotion = self.satisfaction[rows], self.target[rows], self.emotion[rows]
        told, felt = ~soft.isnan().any(1), ~emotion.isnan().any(1)
        pleased = functional.cross_entropy(said.satisfaction, soft.nan_to_num(), reduction="none")
        aimed = functional.cross_entropy(said.target, target, ignore_index=-1, reduction="none")
        shown = functional.binary_cross_entropy_with_logits(said.emotion, emotion.nan_to_num(), reduction="none")
        each = pleased * told + aimed + shown.mean(1) * felt
        weight = self.weight[rows]
        return (weight * each).sum() / weight.sum()


def in_batches(sizes: Sequence[int], rows: NDArray[np.int64], batch: int, rng: np.random.Generator) -> list[list[int]]:
    """Rows in batches of like length: by chance in runs of fifty batches, sorted within."""
    order = rng.permutation(rows)
    found: list[list[int]] = []
    for first in range(0, len(order), 50 * batch):
        run = sorted(order[first : first + 50 * batch].tolist(), key=lambda i: sizes[i])
        found += [run[k : k + batch] for k in range(0, len(run), batch)]
    return [found[i] for i in rng.permutation(len(found))]


class Pace(NamedTuple):
    """How fast a network learns.

    Args:
        rate: learning rate of the uppermost layer.
        decay: each layer below has so much of the rate of the one above.
        average: share of the way that the moving average of the weights looks back over.
    """

    rate: float
    decay: float
    average: float


class Job(NamedTuple):
    """What one network learns, and in which order.

    Args:
        network: what it starts from, not changed.
        table: n texts and what is known of them.
        order: batches of rows.
        pace: how fast.
        seed: of the noise.
    """

    network: Network
    table: Lessons
    order: list[list[int]]
    pace: Pace
    seed: int


def learn(job: Job, step_done: Callable[[], object] = lambda: None) -> Network:
    """One pass over the batches: AdamW, a cosine rate after a short rise, and the moving average of the weights."""
    from transformers import get_cosine_schedule_with_warmup

    network, table, order, pace, seed = job
    torch.manual_seed(seed)
    network = copy.deepcopy(network).train()
    optimizer = torch.optim.AdamW(_groups(network, pace), fused=True)
    schedule = get_cosine_schedule_with_warmup(optimizer, len(order) // 16, len(order))
    kept = 1 - min(1.0, 1 / (pace.average * len(order)))
    mean = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(kept))  # type: ignore[no-untyped-call]
    for rows in order:
        with torch.autocast("cpu", torch.bfloat16, enabled=HALF):
            said = network(*table.texts.batch(rows))
        loss = table.loss(rows, Logits(*(logits.float() for logits in said)))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        mean.update_parameters(network)
        step_done()
    return cast(Network, mean.module.eval())


def learn_all(jobs: Sequence[Job], stage: str, told: Stage | None = None, processes: int = 1) -> list[Network]:
    """Networks that learn side by side, each on one core: nearly twice as fast on two as one after the other on both.

    Args:
        jobs: what they learn.
        stage: told of.
        told: told of the steps done in all of them.
        processes: at once; 1: in this process, one after the other.
    """
    total, tell = sum(len(job.order) for job in jobs), told or (lambda *_: None)
    if processes == 1:
        count = itertools.count(1)
        return [learn(job, lambda: tell(stage, next(count), total)) for job in jobs]
    # Not forked: the threads of torch do not survive that.
    context = get_context("spawn")
    done = context.Value("q", 0)
    with ProcessPoolExecutor(min(processes, len(jobs)), context, _begin, (done,)) as pool:
        futures = [pool.submit(_learn_apart, _packed(job)) for job in jobs]
        try:
            while wait(futures, 1.0, FIRST_EXCEPTION).not_done and not any(f.done() and f.exception() for f in futures):
                tell(stage, done.value, total)
            return [_with_weights(job.network, future.result()) for job, future in zip(jobs, futures, strict=True)]
        finally:
            pool.shutdown(cancel_futures=True)


_done: "Synchronized[int]"
"""Steps done in all processes of a pool."""


def _begin(done: "Synchronized[int]") -> None:
    global _done
    _done = done
    torch.set_num_threads(1)


def _packed(job: Job) -> bytes:
    """A job for another process, with configuration and weights for the network: a pickled model gives no states.

    As bytes, since torch would put tensors into shared memory, which a container has little of.
    """
    network = job.network
    frozen = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    bare = job._replace(network=cast(Network, None))
    return pickle.dumps((network.body.config, network.drop.p, frozen, network.state_dict(), bare))


def _learn_apart(packed: bytes) -> bytes:
    from transformers import AutoModel

    config, dropout, frozen, weights, job = pickle.loads(packed)
    network = Network(AutoModel.from_config(config), dropout)  # type: ignore[no-untyped-call]
    network.load_state_dict(weights)
    for name in frozen:
        network.get_parameter(name).requires_grad_(False)
    return pickle.dumps(learn(job._replace(network=network), _count).state_dict())


def _with_weights(network: Network, weights: bytes) -> Network:
    network = copy.deepcopy(network)
    network.load_state_dict(pickle.loads(weights))
    return network.eval()


def _count() -> None:
    with _done.get_lock():
        _done.value += 1


def soup(networks: Sequence[Network]) -> Network:
    """A network with the average of their weights (model soups, Wortsman et al. 2022)."""
    mean = AveragedModel(networks[0])
    for network in networks:
        mean.update_parameters(network)
    return cast(Network, mean.module.eval())


HALF = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
"""Whether this processor multiplies in bfloat16: twice as fast, and no less accurate here (docs/log.md)."""


def _groups(network: Network, pace: Pace) -> list[dict[str, object]]:
    """Parameters with rates that fall from layer to layer, the embeddings' the lowest."""
    depth = int(network.body.config.num_hidden_layers)
    groups: list[dict[str, object]] = []
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            below = depth - 1 - int(name.split(".layer.")[1].split(".")[0]) if ".layer." in name else depth
            slowed = pace.rate * pace.decay**below if name.startswith("body.") else 4 * pace.rate
            groups.append({"params": [parameter], "lr": slowed, "weight_decay": 0.01 if parameter.ndim > 1 else 0.0})
    return groups
