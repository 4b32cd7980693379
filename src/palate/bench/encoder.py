"""How fast texts become vectors, beside plain sentence-transformers on the same machine."""

from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter

from palate.encoders import SentenceEncoder
from palate.encoders.models import quiet
from palate.errors import MissingExtraError


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
