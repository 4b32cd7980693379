"""How fast texts become vectors, beside plain sentence-transformers on the same machine."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np

from palate.bench.report import Result, markdown
from palate.data import load_answers
from palate.encoders import SentenceEncoder, load_encoder
from palate.encoders.models import quiet
from palate.errors import InputError, MissingExtraError


def throughput(encoder: SentenceEncoder, texts: Sequence[str], *, rounds: int = 5) -> dict[str, float]:
    """Distinct texts per second: all our features of them, and `SentenceTransformer.encode` as it comes.

    The two take turns, the cache is left out, and each is judged by its best round: what else runs on
    the machine can only add time.

    Args:
        encoder: The encoder; sentence-transformers loads the same folder.
        texts: Texts under 256 tokens, since sentence-transformers would cut longer ones.
        rounds: Turns of each, 1 or more.

    Returns:
        `palate_texts_per_second`, `sentence_transformers_texts_per_second`, and the first over the second
        as `ratio`.

    Raises:
        MissingExtraError: sentence-transformers is not installed.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ModuleNotFoundError as error:
        raise MissingExtraError("sentence-transformers", "bench") from error
    ours = replace(encoder, cache=None)
    with quiet():
        theirs = SentenceTransformer(str(encoder.folder), device=str(encoder.model.device))
    distinct = list(dict.fromkeys(texts))
    ours.encode(distinct[:32], distinct[:32])  # both warm up
    theirs.encode(distinct[:32], show_progress_bar=False)
    our_seconds, their_seconds = [], []
    for _ in range(rounds):
        start = perf_counter()
        ours.encode(distinct, distinct)  # each text is read once
        middle = perf_counter()
        theirs.encode(distinct, show_progress_bar=False)
        our_seconds.append(middle - start)
        their_seconds.append(perf_counter() - middle)
    return {
        "palate_texts_per_second": len(distinct) / min(our_seconds),
        "sentence_transformers_texts_per_second": len(distinct) / min(their_seconds),
        "ratio": min(their_seconds) / min(our_seconds),
    }


def run(
    *, quick: bool, seed: int, data: Path | None = None, progress: Callable[[str, int, int], None] | None = None
) -> Result:
    """Measure `throughput` on bundled answers: 256 of them, or 64 when `quick`.

    Raises:
        InputError: `data` is given; this benchmark reads the bundled answers.
    """
    if data is not None:
        raise InputError(f"The encoder's benchmark takes no data, got {str(data)!r}; leave --data out")
    rng = np.random.default_rng(seed)
    texts = [answer.text for answer in load_answers()]
    drawn = rng.choice(len(texts), 64 if quick else 256, replace=False)
    encoder = load_encoder()
    assert isinstance(encoder, SentenceEncoder)  # the default is one
    figures = throughput(encoder, [texts[i] for i in drawn])
    rows = [[name.replace("_", " "), f"{value:.3g}"] for name, value in figures.items()]
    return Result("encoder", figures, f"# Encoder\n\n{markdown(['', 'figure'], rows)}")
