"""Public data sets whose rows are not in TRL's columns, read from the hub or from a folder that holds a copy.

`read_feedback` knows them by name: ``HannahRoseKirk/prism-alignment``, ``namkoong-lab/PersonalLLM``,
``allenai/multipref``, or a folder called as the last part of these. The functions take options.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from palate.feedback.hub import Row
from palate.feedback.loaders.multipref import MULTIPREF, load_multipref, multipref_rows
from palate.feedback.loaders.personalllm import PERSONALLLM, load_personalllm, personalllm_rows
from palate.feedback.loaders.prism import PRISM, load_prism, prism_rows

KNOWN: Mapping[str, Callable[[str], Iterator[Row]]] = {
    MULTIPREF: multipref_rows,
    PERSONALLLM: personalllm_rows,
    PRISM: prism_rows,
}
"""How the rows of each data set are made, by its name on the hub."""


def known(source: str) -> Callable[[str], Iterator[Row]] | None:
    """What reads this data set, where it is one of those known.

    Example:
        >>> known("allenai/multipref") is known("copies/../multipref")
        False
    """
    if Path(source).is_dir():
        names = {name.partition("/")[2]: name for name in KNOWN}
        return KNOWN.get(names.get(Path(source).resolve().name, ""))
    return KNOWN.get(source)


__all__ = ["KNOWN", "MULTIPREF", "PERSONALLLM", "PRISM", "known", "load_multipref", "load_personalllm", "load_prism"]
