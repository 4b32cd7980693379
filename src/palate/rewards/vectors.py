"""An answer kept as what the encoder made of it, where its text may not be kept.

Such a vector stands where the text stood, so that records, files and the posterior need know nothing of it: the
reward model reads its base rewards from the vector. Without the encoder's own revision it is worth nothing.
"""

import base64
import binascii

import numpy as np
from numpy.typing import NDArray

from palate.errors import EncoderError

_PREFIX = "palate-vector:"


def as_vector_text(features: NDArray[np.float32], revision: str) -> str:
    """An answer's raw features, as `Encoder.encode` gives them, in half precision as text.

    Args:
        features: (D,).
        revision: of the encoder.

    Example:
        >>> text = as_vector_text(np.array([0.5, -2.0], np.float32), "r1")
        >>> is_vector_text(text), features_of(text, "r1").tolist()
        (True, [0.5, -2.0])
    """
    data = base64.b85encode(np.asarray(features, "<f2").tobytes()).decode("ascii")
    return f"{_PREFIX}{revision}:{data}"


def is_vector_text(text: str) -> bool:
    """Whether a vector stands in a text's place."""
    return text.startswith(_PREFIX)


def features_of(text: str, revision: str) -> NDArray[np.float32]:
    """(D,) the features in such a text.

    Raises:
        EncoderError: they are of another encoder's revision, or cut short.
    """
    made_with, _, data = text.removeprefix(_PREFIX).partition(":")
    if made_with != revision:
        raise EncoderError(
            f"An answer was kept as a vector of encoder revision {made_with[:40]!r} and the model reads {revision!r}; "
            "without its text it cannot be read anew"
        )
    try:
        return np.frombuffer(base64.b85decode(data), "<f2").astype(np.float32)
    except (ValueError, binascii.Error) as error:
        reason = f"A vector in the place of an answer is cut short: {error}; withdraw that evidence"
        raise EncoderError(reason) from error
