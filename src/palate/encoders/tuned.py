"""Encoders whose weights were changed: their revision, and a folder of their own that `load_encoder` reads."""

import copy
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from palate.encoders.base import Encoder
from palate.encoders.cache import VectorCache
from palate.encoders.causal import CausalEncoder
from palate.encoders.head import HeadEncoder
from palate.encoders.models import quiet
from palate.encoders.sentence import SentenceEncoder
from palate.errors import EncoderError

_WEIGHTS = "model.safetensors"
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "*.model", "chat_template.jinja", "chat_template.json"),
)

OnModel = TypeVar("OnModel", bound=SentenceEncoder | CausalEncoder)


def editable(encoder: OnModel) -> OnModel:
    """A copy whose model may be changed; it keeps no cache, since it is no revision yet."""
    return replace(encoder, model=copy.deepcopy(encoder.model), cache=None)


def sealed(encoder: OnModel, cache: VectorCache | None) -> OnModel:
    """A changed encoder as a revision of its own, with a cache of its own beside the one given."""
    encoder.model.requires_grad_(False)
    encoder.model.train(False)
    # What follows a dash in a revision says which layers are read.
    revision = "-".join([sha256(_weights(encoder)).hexdigest()[:16], *encoder.revision.split("-")[1:]])
    if cache:
        layout = cache.path.name.rpartition("-")[2]
        cache = VectorCache(cache.path.with_name(f"{revision}-{layout}"))
    return replace(encoder, revision=revision, cache=cache)


def save_encoder(encoder: Encoder, folder: Path) -> None:
    """Write a tuned encoder into an empty folder, from where `load_encoder` gives it back, revision and all.

    Raises:
        EncoderError: It is none of Palate's encoders.
    """
    if isinstance(encoder, HeadEncoder):
        encoder.save(folder)
        return
    if not isinstance(encoder, SentenceEncoder | CausalEncoder):
        raise EncoderError(f"Encoder {encoder.name!r} cannot be saved: only Palate's own can; fit without fine-tuning")
    (folder / _WEIGHTS).write_bytes(_weights(encoder))
    config = copy.deepcopy(encoder.model.config)
    config.dtype = encoder.model.dtype  # else transformers would read the weights as those that it was loaded from
    with quiet():
        config.save_pretrained(folder)
    for pattern in _TOKENIZER_FILES:
        for file in encoder.folder.glob(pattern):
            shutil.copyfile(file, folder / file.name)


def _weights(encoder: SentenceEncoder | CausalEncoder) -> bytes:
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.model.state_dict().items()}
    return save(tensors, metadata={"format": "pt"})
