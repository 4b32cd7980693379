"""Which language completions are in: the default encoder reads English, and answers for no other.

A light heuristic, without a library: the script is told by the letters' blocks in Unicode, English by its forty
commonest words, which make up a third or more of English text and hardly any of another language's. Texts with fewer
than 20 words are not judged to be English or not, texts with fewer than 10 letters not at all.
"""

import re

import numpy as np

from palate.doctor.findings import Finding
from palate.doctor.table import Table

_LETTERS, _WORDS = 10, 20
_SAMPLE = 2_000  # texts read
_FEW = 0.12  # share of commonest words under which a text is likely not English
_SHARE = 0.05  # of texts, from which it is worth a word
_WORD = re.compile(r"[^\W\d_]+")
_LATIN = re.compile("[A-Za-z\u00aa-\u024f\u1e00-\u1eff]")
_COMMON = re.compile(
    "the|of|and|to|a|in|is|it|you|that|for|on|with|as|are|be|this|your|or|can|have|not|if|at|from|by|i|but|they|"
    "was|so|what|an|when|will|my|do|we|there|more"
)


def languages(table: Table) -> dict[str, float]:
    """Share of completions that are not in Latin script, and of longer ones that are likely not English.

    Returns:
        `texts_read`, how many were judged, `not_latin` and `not_english`; each is left out where no text could be.
    """
    rows = table.sample
    texts = np.unique(np.concatenate([table.chosen[rows], table.rejected[rows]]))
    judged: list[tuple[bool, bool | None]] = []
    for i in texts[:: max(1, len(texts) // _SAMPLE)]:
        words = _WORD.findall(table.texts[i].casefold())
        letters = "".join(words)
        if len(letters) >= _LETTERS:
            foreign = len(_LATIN.findall(letters)) < len(letters) / 2
            common = sum(_COMMON.fullmatch(word) is not None for word in words)
            judged.append((foreign, common < _FEW * len(words) if len(words) >= _WORDS else None))
    figures: dict[str, float] = {}
    if judged:
        figures["texts_read"] = float(len(judged))
        figures["not_latin"] = round(float(np.mean([foreign for foreign, _ in judged])), 4)
    known = [other or foreign for foreign, other in judged if other is not None]
    if known:
        figures["not_english"] = round(float(np.mean(known)), 4)
    return figures


def foreign(shares: dict[str, float]) -> Finding | None:
    """The finding that goes with what `languages` gave."""
    latin, english = shares.get("not_latin", 0.0), shares.get("not_english", 0.0)
    if max(latin, english) < _SHARE:
        return None
    message = (
        f"Completions not in Latin script: {latin:.0%}; likely not English, by common words: {english:.0%}; the "
        "default encoder reads English, so name a multilingual one with --encoder."
    )
    return Finding("languages", "warning", message, round(max(latin, english) * shares["texts_read"]))
