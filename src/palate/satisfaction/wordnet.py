"""WordNet through NLTK, wherever its files lie: NLTK's own data, or the system's dictionary package.

NLTK reads below its data path only, follows no links out of it, and wants a file `lexnames` that Debian's packages
lack: a copy of the system's files, with that file beside, is made in the cache (35 MB). Nothing is downloaded.
"""

import os
import shutil
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from palate.encoders.cache import default_cache_dir
from palate.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

SYSTEM = Path("/usr/share/wordnet")
"""Where Debian's `wordnet-base` and `wordnet-sense-index` put their files."""

_FILES = [f"{kind}.{part}" for kind in ("data", "index") for part in ("noun", "verb", "adj", "adv")]
_FILES += [f"{part}.exc" for part in ("noun", "verb", "adj", "adv")] + ["index.sense"]

# lexnames(5WN): what the files of each part of speech (1 noun, 2 verb, 3 adjective, 4 adverb) are called, in order.
_NOUNS = (
    "Tops act animal artifact attribute body cognition communication event feeling food group location motive object "
    "person phenomenon plant possession process quantity relation shape state substance time"
)
_VERBS = (
    "body change cognition communication competition consumption contact creation emotion motion perception possession "
    "social stative weather"
)
_WAY_OUT = (
    "on Debian or Ubuntu: apt install wordnet-base wordnet-sense-index; elsewhere: python -m nltk.downloader wordnet"
)


def lexnames() -> str:
    """The file `lexnames` of WordNet 3.0."""
    order = [("adj.all", 3), ("adj.pert", 3), ("adv.all", 4)]
    order += [(f"noun.{name}", 1) for name in _NOUNS.split()] + [(f"verb.{name}", 2) for name in _VERBS.split()]
    return "".join(f"{number:02}\t{name}\t{part}\n" for number, (name, part) in enumerate([*order, ("adj.ppl", 3)]))


@cache
def wordnet() -> "WordNetCorpusReader":
    """The dictionary.

    Raises:
        MissingExtraError: NLTK is not installed.
        InputError: there is no WordNet on this machine; says how to get it.
    """
    try:
        import nltk
        from nltk.corpus.reader.wordnet import WordNetCorpusReader
    except ModuleNotFoundError as error:
        raise MissingExtraError("nltk", "replies") from error
    try:
        found = nltk.data.find("corpora/wordnet")
    except LookupError:
        try:
            nltk.data.path.append(str(_copied(SYSTEM)))
            found = nltk.data.find("corpora/wordnet")
        except (LookupError, OSError) as error:
            raise InputError(f"WordNet, which gives synonyms, is not on this machine; {_WAY_OUT}") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other languages are not wanted
        return WordNetCorpusReader(found, None)


def _copied(system: Path) -> Path:
    """A folder for NLTK's data path with a copy of a system's dictionary.

    Raises:
        FileNotFoundError: the system has none.
    """
    for name in _FILES:
        (system / name).stat()
    root = default_cache_dir() / "nltk"
    folder = root / "corpora" / "wordnet"
    folder.mkdir(parents=True, exist_ok=True)
    for name in [*_FILES, "lexnames"]:
        if not (folder / name).exists():
            # Two processes may try at once: each renames a file of its own.
            part = folder / f".{name}.{os.getpid()}"
            part.write_text(lexnames(), "utf-8") if name == "lexnames" else shutil.copyfile(system / name, part)
            part.replace(folder / name)
    return root
