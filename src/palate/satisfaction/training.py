"""Train the satisfaction scorer: first to see emotion, then to read replies.

1. All of the network on comments with known emotions, from a sentence encoder.
2. From there, on replies with a known satisfaction and target, and on replies in other languages, whose satisfaction
   it learns to leave open; some comments are mixed in, so that the first lesson is kept.
3. What reads emotions, and that alone, on the comments again: the second step moved what it stands on.

The first two are made once for each of some seeds, and the average of these networks' weights goes on. The second is
made without each fifth of the replies, too, which gives a reading of every reply by a scorer that never saw it, or
anything of its group: figures, temperatures and simulated people rest on those.
"""

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional

from palate.encoders.models import find_model, load_model, load_tokenizer, quiet, read_config
from palate.errors import InputError
from palate.satisfaction.augmentation import Augmentation
from palate.satisfaction.figures import reply_figures
from palate.satisfaction.learning import HALF, Job, Lessons, Pace, Stage, in_batches, learn_all, soup
from palate.satisfaction.lessons import Lesson, with_contexts
from palate.satisfaction.network import Logits, Network, pooled, read_all, sequences
from palate.satisfaction.scorer import SatisfactionScorer, Temperatures, rounded

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FOLDS = 5


@dataclass(frozen=True)
class Recipe:
    """How the network is trained.

    Args:
        encoder: what it starts from.
        emotion_networks: that the first step makes, with seeds of their own, and averages.
        reply_networks: the same in the second step.
        emotion_epochs: over the comments.
        reply_epochs: over the replies.
        emotion_again_epochs: over the comments in the third step.
        emotion_again_rate: learning rate in the third step.
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
    emotion_networks: int = 4
    reply_networks: int = 2
    emotion_epochs: int = 2
    reply_epochs: int = 3
    emotion_again_epochs: int = 3
    emotion_again_rate: float = 1e-3
    emotion_rate: float = 1e-4
    reply_rate: float = 1e-4
    decay: float = 0.85
    batch: int = 48
    mixed: float = 0.6
    emotion_average: float = 0.38
    reply_average: float = 0.12
    dropout: float = 0.15
    seed: int = 0


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
    network: Network,
    tokenizer: "Tokenizer",
    comments: Sequence[Lesson],
    recipe: Recipe,
    told: Stage | None = None,
    processes: int = 1,
) -> Network:
    """The network after the comments; the one given is not changed."""
    table = Lessons.of(tokenizer, comments)
    pace = Pace(recipe.emotion_rate, recipe.decay, recipe.emotion_average)
    jobs = []
    for seed in range(recipe.seed, recipe.seed + recipe.emotion_networks):
        rng = np.random.default_rng(seed)
        rows = np.arange(len(comments))
        order = [b for _ in range(recipe.emotion_epochs) for b in in_batches(table.sizes, rows, recipe.batch, rng)]
        jobs.append(Job(network, table, order, pace, seed))
    learned = soup(learn_all(jobs, "Learning emotions", told, processes))
    # Where the replies begin from.
    learned.mix.load_state_dict(learned.feel.state_dict())
    return learned


def reply_jobs(
    network: Network, tokenizer: "Tokenizer", replies: Sequence[Lesson], comments: Sequence[Lesson], recipe: Recipe
) -> list[Job]:
    """Learning the replies, with comments mixed in, once for each seed."""
    # Some thousand replies do not bear new meanings of words, and steps without them take a third less time.
    network = copy.deepcopy(network)
    network.body.get_input_embeddings().weight.requires_grad_(False)
    pace = Pace(recipe.reply_rate, recipe.decay, recipe.reply_average)
    jobs = []
    for seed in range(recipe.seed, recipe.seed + recipe.reply_networks):
        rng = np.random.default_rng(seed)
        count = min(len(comments), int(recipe.mixed * len(replies) * recipe.reply_epochs))
        drawn = [comments[i] for i in rng.choice(len(comments), count, replace=False)] if count else []
        table = Lessons.of(tokenizer, [*replies, *drawn])
        # Each comment is read once, each reply in every epoch.
        parts = np.array_split(np.arange(len(replies), len(replies) + count), recipe.reply_epochs)
        epochs = (np.r_[np.arange(len(replies)), part] for part in parts)
        order = [b for rows in epochs for b in in_batches(table.sizes, rows, recipe.batch, rng)]
        jobs.append(Job(network, table, order, pace, seed))
    return jobs


def relearn_emotions(
    network: Network, tokenizer: "Tokenizer", comments: Sequence[Lesson], recipe: Recipe, told: Stage | None = None
) -> Network:
    """The network with its reading of emotions learned anew, all else as it is; the one given is not changed."""
    tell = told or (lambda *_: None)
    table = Lessons.of(tokenizer, comments)
    features = pooled(network, table.texts, lambda done, total: tell("Reading comments", done, total))
    torch.manual_seed(recipe.seed)
    network = copy.deepcopy(network).train()
    parameters = [*network.feel.parameters(), *network.emotion.parameters()]
    optimizer = torch.optim.AdamW(parameters, recipe.emotion_again_rate, weight_decay=0.01)
    rows = [
        part for _ in range(recipe.emotion_again_epochs) for part in torch.split(torch.randperm(len(comments)), 256)
    ]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.emotion_again_rate, total_steps=len(rows) + 1)
    for part in rows:
        said = network.emotions(features[part])
        loss = functional.binary_cross_entropy_with_logits(said, table.emotion[part])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return network.eval()


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
    processes: int = 1,
) -> Network:
    """As `learn_emotions`, from where it was kept in a folder if the same was learned before."""
    first_step = replace(recipe, reply_networks=0, reply_epochs=0, reply_rate=0.0, reply_average=0.0, mixed=0.0)
    first_step = replace(first_step, emotion_again_epochs=0, emotion_again_rate=0.0)
    digest = sha256(repr((HALF, first_step)).encode())
    for lesson in comments:
        digest.update(repr((lesson.text, lesson.satisfaction, sorted(lesson.emotions or ()))).encode())
    path = folder / f"emotions-{digest.hexdigest()[:16]}.safetensors"
    if path.exists():
        learned = copy.deepcopy(network)
        learned.load_state_dict(load_file(path))
        return learned
    learned = learn_emotions(network, tokenizer, comments, recipe, told, processes)
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
    processes: int = 1,
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
        processes: networks that learn at once, each on one core.

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
        network = learn_emotions(network, tokenizer, comments, recipe, told, processes)
    else:
        network = remembered_emotions(network, tokenizer, comments, recipe, remember, told, processes)
    fold = folds(replies, recipe.seed)
    lessons = [[reply] for reply in replies]

    def without(parts: Sequence[int | None]) -> list[Network]:
        jobs: list[Job] = []
        for part in parts:
            seen = [lesson for i, family in enumerate(lessons) if fold[i] != part for lesson in family]
            jobs += reply_jobs(network, tokenizer, with_contexts(seen, recipe.seed), comments, recipe)
        learned = learn_all(jobs, "Learning to read replies", told, processes)
        return [soup(learned[k : k + recipe.reply_networks]) for k in range(0, len(learned), recipe.reply_networks)]

    if augmentation is not None:
        lessons = _families(replies, fold, without(range(FOLDS)), tokenizer, augmentation)
    *networks, whole = without([*range(FOLDS), None])
    whole = relearn_emotions(whole, tokenizer, comments, recipe, told)
    held_out = _held_out(replies, fold, [rounded(network) for network in networks], tokenizer)
    table = Lessons.of(tokenizer, replies)
    told_of = torch.tensor([not x.foreign for x in replies])
    soft, pleased = table.satisfaction[told_of], held_out.satisfaction[told_of]
    temperatures = Temperatures(
        _temperature(lambda t: functional.cross_entropy(pleased / t, soft)),
        _temperature(lambda t: functional.cross_entropy(held_out.target / t, table.target, ignore_index=-1)),
    )
    scorer = SatisfactionScorer(rounded(whole), tokenizer, temperatures)
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
