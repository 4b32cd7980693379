"""Train the satisfaction scorer: first to see emotion, then to read replies.

1. All of the network on comments with known emotions and sentences of reviews with a known valence, from a sentence
   encoder; once for each of some seeds. The average of these networks' weights goes on (model soups, Wortsman et al.
   2022).
2. From there, on replies with a known satisfaction and target, and on replies in other languages, whose satisfaction
   it learns to leave open; some comments are mixed in, so that the first lesson is kept.

The second step is made once without each fifth of the replies, which gives a reading of every reply by a scorer that
never saw it, or anything of its group: figures, temperatures and simulated people rest on those. Then it is made with
all. Batches, dropout and weights are drawn from one seed.
"""

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from palate.encoders.models import find_model, load_model, load_tokenizer, quiet, read_config
from palate.errors import InputError
from palate.satisfaction.augmentation import Augmentation
from palate.satisfaction.figures import reply_figures
from palate.satisfaction.lessons import Lesson, with_contexts
from palate.satisfaction.network import EMOTIONS, LEVELS, TARGETS, Logits, Network, Sequences, read_all, sequences
from palate.satisfaction.scorer import SatisfactionScorer, Temperatures, rounded

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Stage = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, steps in all)."""

FOLDS = 5


@dataclass(frozen=True)
class Recipe:
    """How the network is trained.

    Args:
        encoder: what it starts from.
        emotion_epochs: over the comments, for each seed.
        averaged: networks that the first step makes, with seeds of their own.
        reply_epochs: over the replies.
        emotion_rate: learning rate of the uppermost layer in the first step; each layer below has `decay` of it.
        reply_rate: the same in the second step.
        decay: from layer to layer.
        batch: texts.
        mixed: comments mixed in for each reply.
        emotion_average: share of the first step's way that the moving average of the weights looks back over.
        reply_average: the same in the second step.
        dropout: within the encoder.
        seed: same seed and lessons, same scorer.
    """

    encoder: str = "sentence-transformers/all-MiniLM-L6-v2"
    emotion_epochs: int = 2
    averaged: int = 2
    reply_epochs: int = 4
    emotion_rate: float = 1e-4
    reply_rate: float = 1e-4
    decay: float = 0.85
    batch: int = 48
    mixed: float = 0.6
    emotion_average: float = 0.38
    reply_average: float = 0.12
    dropout: float = 0.15
    seed: int = 0


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
        shown = functional.binary_cross_entropy_with_logits(said.emotion, emotion.nan_to_num(), reduction="none").mean(
            1
        )
        each = pleased * told + aimed + shown * felt
        weight = self.weight[rows]
        return (weight * each).sum() / weight.sum()


def base_network(recipe: Recipe) -> tuple[Network, "Tokenizer"]:
    """The encoder with heads that know nothing yet, and its tokeniser."""
    torch.manual_seed(recipe.seed)
    folder = find_model(recipe.encoder)
    config = read_config(folder)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = recipe.dropout
    with quiet():
        network = Network(load_model(folder, config))
    tokenizer = load_tokenizer(folder).backend_tokenizer
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return network, tokenizer


def learn_emotions(
    network: Network, tokenizer: "Tokenizer", comments: Sequence[Lesson], recipe: Recipe, told: Stage | None = None
) -> Network:
    """The network after the comments; the one given is not changed."""
    table = Lessons.of(tokenizer, comments)
    sizes = [len(ids) for ids in table.texts.ids]

    pace = _Pace(recipe.emotion_rate, recipe.emotion_average, recipe.decay)

    def learned(seed: int) -> Network:
        rng = np.random.default_rng(seed)
        rows = np.arange(len(sizes))
        order = [b for _ in range(recipe.emotion_epochs) for b in _batches(sizes, rows, recipe.batch, rng)]
        return _learn(network, table, order, pace, seed, "Learning emotions", told)

    mean = AveragedModel(network)
    for number in range(recipe.averaged):
        mean.update_parameters(learned(recipe.seed + number))
    return cast(Network, mean.module.eval())


def learn_replies(
    network: Network,
    tokenizer: "Tokenizer",
    replies: Sequence[Lesson],
    comments: Sequence[Lesson],
    recipe: Recipe,
    told: Stage | None = None,
) -> Network:
    """The network after the replies, with comments mixed in; the one given is not changed."""
    rng = np.random.default_rng(recipe.seed + 1)
    count = min(len(comments), int(recipe.mixed * len(replies) * recipe.reply_epochs))
    drawn = [comments[i] for i in rng.choice(len(comments), count, replace=False)] if count else []
    table = Lessons.of(tokenizer, [*replies, *drawn])
    sizes = [len(ids) for ids in table.texts.ids]
    # Each comment is read once, each reply in every epoch.
    parts = np.array_split(np.arange(len(replies), len(sizes)), recipe.reply_epochs)
    # Some thousand replies do not bear new meanings of words, and steps without them take a third less time.
    network = copy.deepcopy(network)
    network.body.get_input_embeddings().weight.requires_grad_(False)
    order = [b for part in parts for b in _batches(sizes, np.r_[np.arange(len(replies)), part], recipe.batch, rng)]
    pace = _Pace(recipe.reply_rate, recipe.reply_average, recipe.decay)
    return _learn(network, table, order, pace, recipe.seed, "Learning to read replies", told)


def _batches(sizes: Sequence[int], rows: NDArray[np.int64], batch: int, rng: np.random.Generator) -> list[list[int]]:
    """Rows in batches of like length: by chance in runs of fifty batches, sorted within."""
    order = rng.permutation(rows)
    found: list[list[int]] = []
    for first in range(0, len(order), 50 * batch):
        run = sorted(order[first : first + 50 * batch].tolist(), key=lambda i: sizes[i])
        found += [run[k : k + batch] for k in range(0, len(run), batch)]
    return [found[i] for i in rng.permutation(len(found))]


class _Pace(NamedTuple):
    rate: float
    average: float
    decay: float


def _learn(
    network: Network,
    table: Lessons,
    order: Sequence[list[int]],
    pace: _Pace,
    seed: int,
    stage: str,
    told: Stage | None,
) -> Network:
    """One pass over batches of rows: AdamW, a cosine rate after a short rise, and the moving average of the weights."""
    from transformers import get_cosine_schedule_with_warmup

    torch.manual_seed(seed)  # of the noise
    network = copy.deepcopy(network).train()
    optimizer = torch.optim.AdamW(_groups(network, pace.rate, pace.decay), fused=True)
    schedule = get_cosine_schedule_with_warmup(optimizer, len(order) // 16, len(order))
    kept = 1 - min(1.0, 1 / (pace.average * len(order)))
    mean = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(kept))  # type: ignore[no-untyped-call]
    for step, rows in enumerate(order, 1):
        with torch.autocast("cpu", torch.bfloat16, enabled=_HALF):
            said = network(*table.texts.batch(rows))
        loss = table.loss(rows, Logits(*(logits.float() for logits in said)))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        mean.update_parameters(network)
        if told:
            told(stage, step, len(order))
    return cast(Network, mean.module.eval())


_HALF = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
"""Whether this processor multiplies in bfloat16: twice as fast, and no less accurate here (docs/log.md)."""


def _groups(network: Network, rate: float, decay: float) -> list[dict[str, object]]:
    """Parameters with rates that fall from layer to layer, the embeddings' the lowest."""
    depth = int(network.body.config.num_hidden_layers)
    groups: list[dict[str, object]] = []
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            below = depth - 1 - int(name.split(".layer.")[1].split(".")[0]) if ".layer." in name else depth
            slowed = rate * decay**below if name.startswith("body.") else 4 * rate
            groups.append({"params": [parameter], "lr": slowed, "weight_decay": 0.01 if parameter.ndim > 1 else 0.0})
    return groups


def folds(replies: Sequence[Lesson], seed: int) -> NDArray[np.int64]:
    """(n,) which fifth each reply belongs to; those of one group are together."""
    names = [lesson.group or f"#{i}" for i, lesson in enumerate(replies)]
    groups = {name: place for place, name in enumerate(dict.fromkeys(names))}
    fold = np.random.default_rng(seed).permutation(len(groups)) % FOLDS
    return np.array([fold[groups[name]] for name in names], np.int64)


def remembered_emotions(
    network: Network,
    tokenizer: "Tokenizer",
    comments: Sequence[Lesson],
    recipe: Recipe,
    folder: Path,
    told: Stage | None = None,
) -> Network:
    """As `learn_emotions`, from where it was kept in a folder if the same was learned before."""
    first_step = replace(recipe, reply_epochs=0, reply_rate=0.0, reply_average=0.0, mixed=0.0)
    digest = sha256(repr((_HALF, first_step)).encode())
    for lesson in comments:
        digest.update(repr((lesson.text, lesson.satisfaction, sorted(lesson.emotions or ()))).encode())
    path = folder / f"emotions-{digest.hexdigest()[:16]}.safetensors"
    if path.exists():
        learned = copy.deepcopy(network)
        learned.load_state_dict(load_file(path))
        return learned
    learned = learn_emotions(network, tokenizer, comments, recipe, told)
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    save_file({name: value.contiguous() for name, value in learned.state_dict().items()}, part)
    part.replace(path)
    return learned


def train(
    replies: Sequence[Lesson],
    comments: Sequence[Lesson],
    recipe: Recipe = Recipe(),
    *,
    augmentation: Augmentation | None = None,
    remember: Path | None = None,
    told: Stage | None = None,
) -> SatisfactionScorer:
    """Train a scorer, with its figures on replies held out.

    Args:
        replies: with labels, or foreign.
        comments: with emotions.
        recipe: how.
        augmentation: how replies are said in other words, too; None: not at all. A child is checked by a scorer that
            never saw its parent.
        remember: folder in which what was learned of emotions is kept, so that training goes on from there when it is
            run again; None: nowhere.
        told: told of each stage.

    Raises:
        InputError: there are fewer than two groups of replies with labels, or no comments.
    """
    if len({lesson.group for lesson in replies if not lesson.foreign}) < 2 or not comments:
        raise InputError(
            f"There are {len(replies)!r} replies and {len(comments)!r} comments; "
            "give two replies with labels and one comment at least"
        )
    network, tokenizer = base_network(recipe)
    if remember is None:
        network = learn_emotions(network, tokenizer, comments, recipe, told)
    else:
        network = remembered_emotions(network, tokenizer, comments, recipe, remember, told)
    fold = folds(replies, recipe.seed)
    lessons = [[reply] for reply in replies]

    def without(part: int | None) -> Network:
        seen = [lesson for i, family in enumerate(lessons) if fold[i] != part for lesson in family]
        return learn_replies(network, tokenizer, with_contexts(seen, recipe.seed), comments, recipe, told)

    networks = [without(part) for part in range(FOLDS)]
    if augmentation is not None:
        lessons = _families(replies, fold, networks, tokenizer, augmentation)
        networks = [without(part) for part in range(FOLDS)]
    held_out = _held_out(replies, fold, [rounded(network) for network in networks], tokenizer)
    table = Lessons.of(tokenizer, replies)
    told_of = torch.tensor([not x.foreign for x in replies])
    soft, pleased = table.satisfaction[told_of], held_out.satisfaction[told_of]
    temperatures = Temperatures(
        _temperature(lambda t: functional.cross_entropy(pleased / t, soft)),
        _temperature(lambda t: functional.cross_entropy(held_out.target / t, table.target, ignore_index=-1)),
    )
    scorer = SatisfactionScorer(rounded(without(None)), tokenizer, temperatures)
    read = scorer.readings(held_out)
    scorer.figures = reply_figures(replies, read)
    scorer.held_out = [
        {
            "reply": reply.text,
            **{name: value for name, value in _labels(reply).items() if value is not None},
            "read_satisfaction": round(float(read.satisfaction[i]), 4),
            "read_confidence": round(float(read.confidence[i]), 4),
            "read_target": read.target[i],
            **{f"read_{name}": getattr(read, name)[i].round(4).tolist() for name in ("levels", "targets", "emotions")},
        }
        for i, reply in enumerate(replies)
    ]
    return scorer


def _labels(reply: Lesson) -> dict[str, object]:
    labels = {name: getattr(reply, name) for name in ("name", "satisfaction", "target", "about", "kind")}
    return labels | {"foreign": reply.foreign or None}


def _families(
    replies: Sequence[Lesson],
    fold: NDArray[np.int64],
    networks: Sequence[Network],
    tokenizer: "Tokenizer",
    augmentation: Augmentation,
) -> list[list[Lesson]]:
    """Each reply with the children that are kept, the weight of one shared between them."""
    families = []
    for reply, part in zip(replies, fold, strict=True):
        made = [] if reply.foreign else augmentation.children(reply.text)
        texts = sequences(tokenizer, [reply.text, *(child.text for child in made)], [None] * (1 + len(made)))
        score = SatisfactionScorer(networks[part], tokenizer).readings(read_all(networks[part], texts)).satisfaction
        kept = [
            reply,
            *(
                replace(reply, text=child.text)
                for child, keep in zip(made, augmentation.keeps(score[0], score[1:]), strict=True)
                if keep
            ),
        ]
        families.append([replace(one, weight=reply.weight / len(kept)) for one in kept])
    return families


def _held_out(
    replies: Sequence[Lesson], fold: NDArray[np.int64], networks: Sequence[Network], tokenizer: "Tokenizer"
) -> Logits:
    """What is read in each reply by the network that never saw its fold."""
    texts = sequences(tokenizer, [x.text for x in replies], [None] * len(replies))
    all_read = [read_all(network, texts) for network in networks]
    rows = torch.arange(len(replies))
    return Logits(*(torch.stack(heads)[torch.from_numpy(fold), rows] for heads in zip(*all_read, strict=True)))


def _temperature(loss: Callable[[float], Tensor]) -> float:
    """The temperature with the least loss."""
    found = minimize_scalar(lambda log: float(loss(float(np.exp(log)))), bounds=(-1.5, 1.5), method="bounded")
    return float(np.exp(found.x))
