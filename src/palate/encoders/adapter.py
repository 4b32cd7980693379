"""The style adapter that ships with Palate: what `all-MiniLM-L6-v2` lacks to see style, as low-rank differences.

`data/style-adapter/adapter.safetensors` holds, for each tuned matrix W, `W.a` (r, in) and `W.b` (out, r), and
W ← W + b @ a (LoRA, Hu et al. 2021, arXiv 2106.09685). scripts/train_style_adapter.py made it, from answers whose
style poles are known; its README says what it has seen.
"""

import hashlib
from importlib.resources import files
from typing import TYPE_CHECKING

from palate.errors import EncoderError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTED = "palate-minilm"
"""What the base with the adapter is called."""

BASE = "sentence-transformers/all-MiniLM-L6-v2"
BASE_REVISION = "53aa51172d142c89"


def adapt(model: "PreTrainedModel", revision: str) -> str:
    """Add the adapter to the base's weights.

    Args:
        model: the base; changed in place.
        revision: of its weights.

    Returns:
        The revision of the two together, 16 hex digits.

    Raises:
        EncoderError: the base has other weights than those that the adapter was made for.
    """
    if revision != BASE_REVISION:
        raise EncoderError(
            f"The style adapter does not fit weights of revision {revision!r}: it was made for {BASE_REVISION!r} of "
            f"{BASE}; install palate[minilm], or give another encoder"
        )
    import torch
    from safetensors.torch import load

    data = files("palate.data").joinpath("style-adapter/adapter.safetensors").read_bytes()
    tensors = load(data)
    weights = model.state_dict()
    with torch.no_grad():
        for name in (key.removesuffix(".a") for key in tensors if key.endswith(".a")):
            weights[name] += tensors[f"{name}.b"].float() @ tensors[f"{name}.a"].float()
    return hashlib.sha256(revision.encode() + data).hexdigest()[:16]
