"""The satisfaction scorer: how pleased a typed reply is, how sure that is, and what the feeling is on.

ARF-RLHF (arXiv 2507.03069) calls this the static scorer. It reads a reply as a distribution over five levels of [0, 1];
the satisfaction is its mean, and the confidence is 1 − its standard deviation over that of a uniform one: 0 where the
scorer knows nothing, as in a language it was not taught.

A folder holds one: `config.json`, `model.safetensors` (8-bit integers with a scale for each row), `tokenizer.json`,
`held_out.jsonl` (what was read in each reply it was trained on by a scorer that never saw it), and `README.md`, its
card. One ships with the package.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from palate.encoders.models import quiet
from palate.errors import InputError, ModelError
from palate.feedback import Reply
from palate.satisfaction.network import LEVELS, TARGETS, Logits, Network, read_all, sequences

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

    from palate.encoders.base import Progress

FORMAT = 1
CONFIG, TENSORS, TOKENIZER, HELD_OUT, CARD = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "held_out.jsonl",
    "README.md",
)
SHIPPED = "satisfaction-scorer"
"""Its folder in `palate.data`."""

_LEVELS = np.array(LEVELS)
_UNIFORM = float(np.std(_LEVELS))
_SCALE = ".scale"

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Temperatures:
    """What the logits of each head are divided by; of satisfaction and target learned on replies held out."""

    satisfaction: float = 1.0
    target: float = 1.0
    emotion: float = 1.0


@dataclass(frozen=True)
class Readings:
    """What was read in n replies.

    Args:
        levels: (n, 5) probability of each level of satisfaction.
        targets: (n, 4) probabilities that the feeling is on taste, on the task, on both, on none.
        emotions: (n, 4) probabilities of showing each group of emotions, each by itself.
    """

    levels: Floats
    targets: Floats
    emotions: Floats

    @property
    def satisfaction(self) -> Floats:
        """(n,) in [0, 1]."""
        return np.asarray(self.levels @ _LEVELS, np.float64)

    @property
    def confidence(self) -> Floats:
        """(n,) in [0, 1]."""
        spread = np.sqrt(np.maximum(self.levels @ _LEVELS**2 - self.satisfaction**2, 0.0))
        return np.asarray(np.clip(1 - spread / _UNIFORM, 0.0, 1.0), np.float64)

    @property
    def pleased(self) -> Floats:
        """(n,) probability that the satisfaction is 0.5 or more."""
        return np.asarray(self.levels[:, _LEVELS >= 0.5].sum(axis=1), np.float64)

    @property
    def target(self) -> list[str]:
        """The likeliest target of each."""
        return [TARGETS[i] for i in self.targets.argmax(axis=1)]

    def __getitem__(self, rows: NDArray[np.int64]) -> "Readings":
        """Those of some replies."""
        return Readings(self.levels[rows], self.targets[rows], self.emotions[rows])


@dataclass(eq=False)
class SatisfactionScorer:
    """Reads replies; `SatisfactionScorer.load()` gives the one that ships with Palate.

    Args:
        network: the model and its heads.
        tokenizer: of the model.
        temperatures: of the heads.
        figures: what was measured on replies held out, for the card.
        trained: what it was trained on and how, for the card.
        held_out: a row for each reply it was trained on: its labels, and what a scorer that never saw it read.
        revision: 16 hex digits that change with anything that a reading depends on.

    Example:
        >>> scorer = SatisfactionScorer.load()
        >>> read = scorer.score(["Perfect, exactly the tone I wanted!", "This is awful, dull and useless."])
        >>> bool(read.satisfaction[0] > 0.7), bool(read.satisfaction[1] < 0.4)
        (True, True)
    """

    network: Network = field(repr=False)
    tokenizer: "Tokenizer" = field(repr=False)
    temperatures: Temperatures = Temperatures()
    figures: dict[str, float] = field(default_factory=dict)
    trained: dict[str, object] = field(default_factory=dict)
    held_out: list[dict[str, object]] = field(default_factory=list, repr=False)
    revision: str = ""

    def __post_init__(self) -> None:
        self.revision = self.revision or _revision(_packed(self.network), self.temperatures)

    def score(
        self,
        replies: Sequence[str],
        contexts: Sequence[tuple[str, str] | None] | None = None,
        *,
        progress: "Progress | None" = None,
    ) -> Readings:
        """Read replies; one that occurs again is read once. Nothing is kept of them.

        Args:
            replies: n texts; of one longer than 126 tokens the first and last 63 are read.
            contexts: n pairs of the prompt and the completion that each answers; None where that is not known.
            progress: called with (distinct replies read, distinct replies in all).

        Raises:
            InputError: there are not as many contexts as replies, or a reply is empty.
        """
        contexts = [None] * len(replies) if contexts is None else contexts
        if len(contexts) != len(replies):
            raise InputError(f"Got {len(replies)!r} replies and {len(contexts)!r} contexts; give one, or None, to each")
        if empty := [i for i, reply in enumerate(replies) if not reply.strip()]:
            raise InputError(f"Reply {empty[0]!r} is empty, which says nothing; leave it out")
        keys = list(zip(replies, contexts, strict=True))
        place = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        read = self._read([text for text, _ in place], [context for _, context in place], progress)
        return read[np.array([place[key] for key in keys], np.int64)]

    def held_out_readings(self, replies: Sequence[str], *, progress: "Progress | None" = None) -> tuple[Readings, int]:
        """As `score`, but what it was trained on as it was read by a scorer that never saw it; and how many are new."""
        known = {str(row["reply"]): i for i, row in enumerate(self.held_out)}
        read = self.score(replies, progress=progress)
        seen = [i for i, reply in enumerate(replies) if reply in known]
        rows = [self.held_out[known[replies[i]]] for i in seen]
        for name in ("levels", "targets", "emotions"):
            for i, row in zip(seen, rows, strict=True):
                getattr(read, name)[i] = row[f"read_{name}"]
        return read, len(replies) - len(seen)

    def read(self, replies: Sequence[Reply], *, progress: "Progress | None" = None) -> list[Reply]:
        """Replies with `satisfaction`, `confidence` and `target` filled in; what somebody labelled stays."""
        unread = [i for i, reply in enumerate(replies) if reply.satisfaction is None or reply.target is None]
        said = [replies[i] for i in unread]
        # Not with what they answer: the scorer has seen too little of it, and is less sure then (docs/log.md).
        found = self.score([reply.reply for reply in said], progress=progress)
        out = list(replies)
        for i, satisfaction, confidence, target in zip(
            unread, found.satisfaction.tolist(), found.confidence.tolist(), found.target, strict=True
        ):
            out[i] = replies[i].read_as(satisfaction, confidence, target)
        return out

    def _read(
        self, texts: Sequence[str], contexts: Sequence[tuple[str, str] | None], progress: "Progress | None"
    ) -> Readings:
        said = sequences(self.tokenizer, texts, contexts)
        return self.readings(read_all(self.network, said, progress))

    def readings(self, logits: Logits) -> Readings:
        """What logits mean, temperatures applied."""
        t = self.temperatures
        levels, targets, emotions = (
            logits.satisfaction.double() / t.satisfaction,
            logits.target.double() / t.target,
            logits.emotion.double() / t.emotion,
        )
        return Readings(levels.softmax(1).numpy(), targets.softmax(1).numpy(), emotions.sigmoid().numpy())

    def save(self, path: str | Path) -> None:
        """Write the scorer's folder; `config.json`, without which it is not read, comes last.

        Raises:
            InputError: the path is a file, or a folder of something else.
            ModelError: it cannot be written.
        """
        path = Path(path)
        check_target(path)
        config = {
            "format": FORMAT,
            "revision": self.revision,
            "body": self.network.body.config.to_dict() | {"_name_or_path": ""},
            "temperatures": vars(self.temperatures),
            "figures": self.figures,
            "trained": self.trained,
        }
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / CONFIG).unlink(missing_ok=True)
            save_file(_packed(self.network), path / TENSORS)
            (path / TENSORS).chmod(0o644)
            self.tokenizer.save(str(path / TOKENIZER), pretty=False)
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in self.held_out)
            (path / HELD_OUT).write_text("".join(lines), encoding="utf-8")
            (path / CARD).write_text(card(self), encoding="utf-8")
            (path / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ModelError(f"Cannot write the scorer to {str(path)!r}: {reason}; name a folder with room") from error

    @classmethod
    def load(cls, path: str | Path | None = None) -> "SatisfactionScorer":
        """Read a scorer's folder; by default the one that ships with Palate.

        Raises:
            ModelError: the folder or one of its files is missing, cut short, or of a newer version.
        """
        if path is None:
            with as_file(files("palate.data").joinpath(SHIPPED)) as folder:
                return cls._load(folder)
        return cls._load(Path(path))

    @classmethod
    def _load(cls, path: Path) -> "SatisfactionScorer":
        from tokenizers import Tokenizer

        if not path.is_dir():
            raise ModelError(
                f"There is no scorer at {str(path)!r}; make one with: palate replies train --output DIR, or leave the "
                "path out for the one that ships with Palate"
            )
        try:
            config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
            if config["format"] > FORMAT:
                raise ModelError(
                    f"The scorer at {str(path)!r} has format {config['format']!r}, this version of Palate reads up to "
                    f"{FORMAT}; update Palate"
                )
            kind = config["body"].pop("model_type")
            with quiet():
                network = Network(_body(kind, config["body"]))
            packed = load_file(path / TENSORS)
            network.load_state_dict(_unpacked(packed))
            temperatures = Temperatures(**config["temperatures"])
            *lines, rest = (path / HELD_OUT).read_text(encoding="utf-8").split("\n")
            if rest:
                raise ValueError("the last line has no end")
            held_out = [json.loads(line) for line in lines]
            scorer = cls(
                network.eval(),
                Tokenizer.from_str((path / TOKENIZER).read_text(encoding="utf-8")),
                temperatures,
                config["figures"],
                config["trained"],
                held_out,
                _revision(packed, temperatures),
            )
        except OSError as error:
            missing = Path(error.filename or path).name
            raise ModelError(
                f"Cannot read the scorer at {str(path)!r}: {missing}: {error.strerror}; copy it again"
            ) from error
        except ModelError:
            raise
        except Exception as error:  # a tokeniser's errors have no class of their own
            raise ModelError(
                f"Cannot read the scorer at {str(path)!r}: a file is cut short or changed; copy it again"
            ) from error
        if scorer.revision != config["revision"]:
            raise ModelError(
                f"Cannot read the scorer at {str(path)!r}: {TENSORS} does not match {CONFIG}; copy it again"
            )
        return scorer


def _body(kind: str, config: dict[str, object]) -> "PreTrainedModel":
    from transformers import AutoConfig, AutoModel

    body: PreTrainedModel = AutoModel.from_config(AutoConfig.for_model(kind, **config))  # type: ignore[no-untyped-call]
    return body


_FILES = {CONFIG, TENSORS, TOKENIZER, HELD_OUT, CARD}


def check_target(path: Path) -> None:
    """Find out, before a long training, whether its scorer may be written there.

    Raises:
        InputError: the path is a file, or a folder that holds something else.
    """
    if path.exists() and (not path.is_dir() or {entry.name for entry in path.iterdir()} - _FILES):
        raise InputError(f"{str(path)!r} is not a scorer's folder and is not empty; name another")


def _revision(packed: dict[str, Tensor], temperatures: Temperatures) -> str:
    """16 hex digits that change with anything that a reading depends on."""
    digest = hashlib.sha256(json.dumps(vars(temperatures), sort_keys=True).encode())
    for name, tensor in sorted(packed.items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()[:16]


def rounded(network: Network) -> Network:
    """The network as it will be read back from its 8-bit integers, so that what is measured is what is saved."""
    network.load_state_dict(_unpacked(_packed(network)))
    return network


def _packed(network: Network) -> dict[str, Tensor]:
    """Matrices as 8-bit integers with a scale for each row, the rest as it is."""
    packed = {}
    for name, tensor in network.state_dict().items():
        value = tensor.detach().float().contiguous()
        if value.ndim == 2 and value.numel() > 4096:
            scale = value.abs().amax(1).clamp_min(1e-8) / 127
            packed[name] = (value / scale[:, None]).round().to(torch.int8)
            packed[name + _SCALE] = scale
        elif tensor.is_floating_point():
            packed[name] = value
    return packed


def _unpacked(packed: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor.float() * packed[name + _SCALE][:, None] if tensor.dtype == torch.int8 else tensor
        for name, tensor in packed.items()
        if not name.endswith(_SCALE)
    }


def card(scorer: SatisfactionScorer) -> str:
    """The model card: what it is, what it was trained on and how, and its figures on replies held out."""
    figures = "\n".join(f"| {name} | {value:.3f} |" for name, value in scorer.figures.items())
    trained = "\n".join(f"- {name}: {value}" for name, value in scorer.trained.items())
    return f"""---
library_name: palate
tags: [satisfaction, text-classification, personalisation]
language: en
---

# Palate satisfaction scorer {scorer.revision}

Reads what somebody types back to an assistant: satisfaction in [0, 1], confidence in [0, 1], and what the feeling is on
(taste, task, both, none). English; of other languages it leaves the satisfaction open, with a confidence near 0.

## Trained on

{trained}

GoEmotions (Demszky et al. 2020) is CC BY 4.0; remarks and replies were written for Palate, each labelled by who wrote
it.

## Figures

On replies held out, in five parts, twins together:

| figure | value |
| --- | ---: |
{figures}

Not for judging people: it reads one message about one answer, and takes one message in some as what it is not.
"""
