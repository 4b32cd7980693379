"""An encoder with a small nonlinear head on top of its frozen features: e + tanh(e · inner + bias) · outer."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np

from palate.encoders.base import Encoder, Progress
from palate.encoders.reading import Floats
from palate.errors import EncoderError

CONFIG, TENSORS = "head.json", "head.safetensors"


@dataclass(frozen=True, eq=False)
class HeadEncoder:
    """The features of another encoder, moved by a head with H hidden units; same columns, same blocks.

    Attributes:
        base: The encoder under the head.
        inner: (D, H) float32, raw features to hidden units.
        bias: (H,) float32.
        outer: (H, D) float32, hidden units to what is added.
    """

    base: Encoder
    inner: Floats = field(repr=False)
    bias: Floats = field(repr=False)
    outer: Floats = field(repr=False)

    @property
    def name(self) -> str:
        """The name of the encoder under the head."""
        return self.base.name

    @property
    def revision(self) -> str:
        """First 16 hex digits of the SHA-256 of the base's revision and the head's weights."""
        digest = sha256(self.base.revision.encode())
        for array in (self.inner, self.bias, self.outer):
            digest.update(np.ascontiguousarray(array, "<f4").tobytes())
        return digest.hexdigest()[:16]

    @property
    def blocks(self) -> Mapping[str, slice]:
        """Those of the base."""
        return self.base.blocks

    @property
    def width(self) -> int:
        """Number of columns, D."""
        return self.base.width

    def encode(self, prompts: Sequence[str], completions: Sequence[str], *, progress: Progress | None = None) -> Floats:
        """Features of each completion as an answer to its prompt, (n, D)."""
        raw = self.base.encode(prompts, completions, progress=progress)
        hidden = np.tanh(raw @ self.inner + self.bias)
        return np.asarray(raw + hidden @ self.outer, np.float32)

    def save(self, folder: Path) -> None:
        """Write the head, and which encoder it belongs on, into an empty folder."""
        from safetensors.numpy import save_file

        save_file({"inner": self.inner, "bias": self.bias, "outer": self.outer}, folder / TENSORS)
        base = {"name": self.base.name, "revision": self.base.revision}
        (folder / TENSORS).chmod(0o644)  # safetensors keeps others out
        (folder / CONFIG).write_text(json.dumps({"format": 1, "base": base}, indent=2) + "\n", "utf-8")


def base_of(folder: Path) -> tuple[str, str] | None:
    """Name and revision of the encoder under the head in `folder`; None where there is no head.

    Raises:
        EncoderError: The file that says so is cut short.
    """
    if not (folder / CONFIG).is_file():
        return None
    try:
        base = json.loads((folder / CONFIG).read_text("utf-8"))["base"]
        return str(base["name"]), str(base["revision"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unusable(folder, f"{CONFIG} is cut short or changed") from error


def load_head(folder: Path, base: Encoder) -> HeadEncoder:
    """The head in `folder` on its base.

    Raises:
        EncoderError: A file is missing or cut short, or the base is of another revision.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    _, revision = base_of(folder) or ("", "")
    if base.revision != revision:
        raise EncoderError(
            f"The head in {str(folder)!r} belongs on revision {revision} of {base.name!r}, which has revision "
            f"{base.revision}; install that one or fit anew"
        )
    try:
        tensors = load_file(folder / TENSORS)
        head = HeadEncoder(base, tensors["inner"], tensors["bias"], tensors["outer"])
        if head.inner.shape != head.outer.T.shape or len(head.inner) != base.width:
            raise ValueError("shapes")
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise _unusable(folder, f"{TENSORS} is missing, cut short or changed") from error
    return head


def _unusable(folder: Path, reason: str) -> EncoderError:
    return EncoderError(f"The head in {str(folder)!r} cannot be used: {reason}; copy the whole folder again")
