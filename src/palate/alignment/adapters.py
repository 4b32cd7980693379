"""Adapters: what a fine-tuning for one person or a group has made, beside the language model that it was made on.

A folder as PEFT writes it, with `palate.json`: whose taste it carries, and on which weights. It is worth nothing on
other weights, so they are compared.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from palate.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FORMAT = 1


@dataclass(frozen=True)
class Adapter:
    """What is written beside an adapter.

    Args:
        base: name of the language model that it changes.
        revision: of that model's weights.
        users: whose taste it carries; empty for the population's.
        method: how it was trained.
        fingerprint: of the reward model that it was trained by.
        steps: of its optimiser.
    """

    base: str
    revision: str
    users: tuple[str, ...]
    method: str
    fingerprint: str
    steps: int

    def write(self, folder: Path) -> None:
        """Write `palate.json` into the adapter's folder."""
        text = json.dumps({"format": _FORMAT, **asdict(self)}, indent=2, ensure_ascii=False)
        (folder / "palate.json").write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: str | Path) -> "Adapter":
        """What an adapter's folder says.

        Raises:
            ModelError: it is no adapter that Palate trained, or a newer one than this version reads.
        """
        path = Path(folder) / "palate.json"
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            form = told.pop("format")
            if form == _FORMAT:
                return cls(**told | {"users": tuple(told["users"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{str(folder)!r} is no adapter: {error}; make one with palate train") from error
        raise ModelError(f"{str(folder)!r} has format {form!r}, this version reads {_FORMAT}; install a newer Palate")


def find_adapters(folder: str | Path, user: str | None = None) -> list[tuple[Path, Adapter]]:
    """The adapters that lie in a folder, itself or anywhere below, in order of their paths.

    Args:
        folder: where to look.
        user: only those that carry this person's taste.
    """
    found = []
    for path in sorted(Path(folder).rglob("palate.json")):
        try:
            adapter = Adapter.read(path.parent)
        except ModelError:
            continue  # half written, or of another version: it cannot be used
        if user is None or user in adapter.users:
            found.append((path.parent, adapter))
    return found


def erase_adapters(folder: str | Path, users: Sequence[str]) -> list[Path]:
    """Delete the adapters, below a folder, that carry the taste of any of these people; their checkpoints with them."""
    gone = [path for path, adapter in find_adapters(folder) if set(users) & set(adapter.users)]
    for path in gone:
        shutil.rmtree(path)
    return gone


def adapter_revision(folder: str | Path) -> str:
    """The first 16 hex digits of the SHA-256 of an adapter's weights."""
    return sha256((Path(folder) / "adapter_model.safetensors").read_bytes()).hexdigest()[:16]


def with_adapter(model: "PreTrainedModel", folder: str | Path, revision: str) -> tuple["PreTrainedModel", str]:
    """The model with an adapter merged into its weights, as fast as without, and the revision that it then has.

    Args:
        model: the language model; it is changed.
        folder: of the adapter.
        revision: of the model's weights.

    Raises:
        ModelError: the folder holds no adapter, or one that was trained on other weights.
    """
    from peft import PeftModel
    from safetensors import SafetensorError

    adapter = Adapter.read(folder)
    if adapter.revision != revision:
        raise ModelError(
            f"Adapter {str(folder)!r} was trained on {adapter.base!r} with weights {adapter.revision or 'unknown'}, "
            f"these are {revision or 'unknown'}; use it with the model that it was trained on"
        )
    try:
        read = PeftModel.from_pretrained(model, str(folder))
        digest = adapter_revision(folder)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"Adapter {str(folder)!r} cannot be read: {reason}; train it again") from error
    return read.merge_and_unload(), f"{revision}+{digest}"
