"""What moves in a fine-tuning: answers by their numbers → features (n, D), and the encoder that this becomes.

Every tower gives the encoder's own features at step 0: LoRA's second factors and the head's outer weights start at
zero. So does the model that is tuned, which starts at the light fit by singular value decomposition.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from palate.encoders import CausalEncoder, Encoder, HeadEncoder, SentenceEncoder
from palate.encoders.models import quiet
from palate.encoders.tuned import editable, sealed
from palate.errors import InputError, MissingExtraError
from palate.rewards.features import Coordinates
from palate.rewards.finetuning.settings import Finetune

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Groups = list[dict[str, Any]]


class Tower(nn.Module):
    """Features of answers, differentiable in what is tuned."""

    def forward(self, answers: Tensor) -> Tensor:
        """(n,) numbers of answers → (n, D) float32 features."""
        raise NotImplementedError

    def groups(self, settings: Finetune) -> Groups:
        """Parameters to tune, with their learning rates."""
        raise NotImplementedError

    def encoder(self) -> Encoder:
        """The encoder that gives these features of any text; the tower is used up."""
        raise NotImplementedError


class HeadTower(Tower):
    """z + tanh(z U + b) V in the standardised coordinates z, which is e + Δe in the encoder's own features.

    Args:
        base: the encoder, not touched.
        raw: (n, D) its features of the answers.
        coordinates: standardisation on them.
        width: H hidden units.
        seed: of U.
    """

    def __init__(self, base: Encoder, raw: np.ndarray, coordinates: Coordinates, width: int, seed: int) -> None:
        super().__init__()
        self.base, self.coordinates = base, coordinates
        size = coordinates.basis.shape[1]
        start = np.random.default_rng(seed).standard_normal((size, width))
        self.inner = nn.Parameter(torch.from_numpy(start).float())
        self.bias = nn.Parameter(torch.zeros(width))
        self.outer = nn.Parameter(torch.zeros(width, size))
        # Back from coordinates to features: the shortest change that moves z as wanted.
        self.decode = np.linalg.pinv(coordinates.basis)  # (K, D)
        for name, table in (("raw", raw), ("z", coordinates(raw)), ("back", self.decode)):
            self.register_buffer(name, torch.from_numpy(np.asarray(table, np.float32)), persistent=False)

    def forward(self, answers: Tensor) -> Tensor:
        """(n,) numbers of answers → (n, D) float32 features."""
        z: Tensor = self.z[answers]  # type: ignore[index]
        moved = torch.tanh(z @ self.inner + self.bias) @ self.outer
        features: Tensor = self.raw[answers] + moved @ self.back  # type: ignore[index,operator]
        return features.float()

    def groups(self, settings: Finetune) -> Groups:
        """All of it, at one rate."""
        return [{"params": list(self.parameters()), "lr": settings.rate}]

    def encoder(self) -> Encoder:
        """The base with this head."""
        inner, bias, outer = (p.detach().cpu().double().numpy() for p in (self.inner, self.bias, self.outer))
        into = self.coordinates.basis @ inner
        return HeadEncoder(
            self.base,
            into.astype(np.float32),
            (bias - self.coordinates.offset @ into).astype(np.float32),
            (outer @ self.decode).astype(np.float32),
        )


class TextTower(Tower):
    """The encoder's model itself, on a copy: with LoRA in its upper layers, or these layers' own weights.

    Args:
        base: the encoder, not touched.
        prompts: of the n answers.
        completions: the answers.
        settings: which layers, and how.
        seed: of LoRA's first factors.

    Raises:
        MissingExtraError: LoRA is wanted and peft is not installed.
        InputError: no layer is left to tune.
    """

    def __init__(
        self,
        base: SentenceEncoder | CausalEncoder,
        prompts: Sequence[str],
        completions: Sequence[str],
        settings: Finetune,
        seed: int,
    ) -> None:
        super().__init__()
        self.cache = base.cache
        self.texts = editable(base)
        self.prompts, self.completions = prompts, completions
        self.model = self.texts.model  # registered here: what accelerate wraps
        self.model.requires_grad_(False)
        _switch_dropout_off(self.model)
        if settings.gradient_checkpointing:
            # The name since transformers 5.20 or so, which warns of the older one.
            newer = getattr(self.model, "activation_checkpointing_enable", None)
            (newer or self.model.gradient_checkpointing_enable)({"use_reentrant": False})
        depth, frozen = base.deepest, settings.frozen_layers
        first = depth // 3 if frozen is None else frozen
        if not 0 <= first < depth:
            raise InputError(
                f"{first!r} frozen layers leave none of the {depth} that {base.name!r} reads to tune; freeze fewer"
            )
        self.tuned = list(layers_of(self.model))[first:depth]  # the same modules as in the model
        # Bound methods of peft's wrapper, which torch does not see: it would register every weight twice.
        self.merge: Callable[[], object] = lambda: None
        if settings.method == "lora":
            self.merge = _insert_lora(self.model, self.tuned, settings.width, seed)
        else:
            for layer in self.tuned:
                layer.requires_grad_(True)

    def forward(self, answers: Tensor) -> Tensor:
        """(n,) numbers of answers → (n, D) float32 features."""
        rows = answers.tolist()
        return self.texts.features([self.prompts[i] for i in rows], [self.completions[i] for i in rows])

    def groups(self, settings: Finetune) -> Groups:
        """A group for each layer: the further down, the slower."""
        return [
            {
                "params": [p for p in layer.parameters() if p.requires_grad],
                "lr": settings.rate * settings.layer_decay**below,
            }
            for below, layer in enumerate(reversed(self.tuned))
        ]

    def encoder(self) -> Encoder:
        """The tuned encoder, adapters merged into its weights."""
        self.merge()
        return sealed(self.texts, self.cache)


def layers_of(model: "PreTrainedModel") -> nn.ModuleList:
    """The model's stack of layers, whatever its architecture calls them.

    Raises:
        InputError: there is no such stack.
    """
    count = model.config.num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise InputError(
        f"A {type(model).__name__} has no list of its {count} layers, so that none can be tuned; give finetune 'head'"
    )


def _switch_dropout_off(model: nn.Module) -> None:
    """Features must be those of the light fit at step 0, also in training mode, which checkpointing needs."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]


def _insert_lora(model: "PreTrainedModel", layers: Sequence[nn.Module], rank: int, seed: int) -> Callable[[], object]:
    """Put adapters into all linear maps of these layers; returns what merges them into the weights."""
    try:
        from peft import LoraConfig, get_peft_model
    except ModuleNotFoundError as error:
        raise MissingExtraError("peft", "finetune") from error
    from transformers.pytorch_utils import Conv1D

    inside = {id(module) for layer in layers for module in layer.modules()}
    targets = [name for name, m in model.named_modules() if id(m) in inside and isinstance(m, nn.Linear | Conv1D)]
    # Alpha twice the rank, as is usual: Adam's steps then move the product as much at every rank.
    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=targets)
    with quiet(), warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that it will drop
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
    merge: Callable[[], object] = adapted.merge_and_unload
    return merge


def tower_of(
    encoder: Encoder,
    answers: tuple[Sequence[str], Sequence[str]],
    light: tuple[np.ndarray, Coordinates],
    settings: Finetune,
    seed: int,
) -> Tower:
    """The tower for a method.

    Args:
        encoder: not touched.
        answers: n prompts, and a completion to each.
        light: (n, D) the encoder's features of these, and their standardisation.
        settings: how to tune.
        seed: of whatever starts at random.

    Raises:
        InputError: the encoder has no model whose weights could move.
        MissingExtraError: peft is needed and not installed.
    """
    if settings.method == "head":
        return HeadTower(encoder, *light, settings.width, seed)
    if not isinstance(encoder, SentenceEncoder | CausalEncoder):
        raise InputError(
            f"Encoder {encoder.name!r} has no text model whose weights could be tuned with {settings.method!r}; give "
            "finetune 'head', which takes any encoder, or 'none'"
        )
    return TextTower(encoder, *answers, settings, seed)
