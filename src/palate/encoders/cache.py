"""Vectors of texts on disk, so that no text is encoded twice: one SQLite file per model revision.

Promised: processes may share the file, be killed at any moment, and find it corrupt, read-only or on a
full disk; the worst that happens is a warning in the log and a text that is encoded again. A vector is
given back bit for bit, or not at all: each carries a checksum. Texts are stored as their SHA-256 only,
but a vector says something of its text: keep private texts out (`load_encoder(..., cache=False)`).

SQLite's default rollback journal serves better here than WAL: transactions are few and large, it works
on network disks, a read-only file can be read, and there is one file to set aside.
"""

import hashlib
import logging
import os
import sqlite3
import zlib
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

_CHECKSUM_BYTES = 4


def default_cache_dir() -> Path:
    """`$PALATE_CACHE`, else `palate` in `$XDG_CACHE_HOME`, else `~/.cache/palate`."""
    if chosen := os.environ.get("PALATE_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "palate"


class VectorCache:
    """Vectors by text, in the file `path`, which is made with the first vector.

    Each call opens the file anew (a millisecond), so that threads and forks can share one object.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     cache = VectorCache(Path(folder, "vectors.sqlite3"))
    ...     cache.save(["tea"], np.ones((1, 2), np.float32))
    ...     out = np.zeros((2, 2), np.float32)
    ...     cache.load(["coffee", "tea"], out).tolist(), out.tolist()
    ([False, True], [[0.0, 0.0], [1.0, 1.0]])
    """

    def __init__(self, path: Path) -> None:
        """Keep vectors in `path`, one file for one model and one layout of vectors."""
        self.path = path
        self._warned = False

    def load(self, texts: Sequence[str], out: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Fill the rows of `out` (n, width) whose texts are known; say which these are, (n,)."""
        found = np.zeros(len(texts), dtype=np.bool_)

        def read(connection: sqlite3.Connection) -> None:
            for i, key in enumerate(map(_key, texts)):
                row = connection.execute("SELECT vector FROM vectors WHERE key = ?", (key,)).fetchone()
                vector = row and _unpack(key, row[0])
                if vector is not None and vector.shape == out[i].shape:
                    out[i] = vector
                    found[i] = True

        if self.path.exists():
            self._attempt(read)
        return found

    def save(self, texts: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Remember the vectors (n, width) of `texts`, in one transaction."""
        keys = map(_key, texts)
        rows = [(key, _pack(key, vector)) for key, vector in zip(keys, vectors, strict=True)]

        def write(connection: sqlite3.Connection) -> None:
            with connection:
                connection.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)

        self._attempt(write)

    def _attempt(self, work: Callable[[sqlite3.Connection], None]) -> None:
        """Do `work` on the file, rebuilt if it is corrupt; failing only costs time, so warn once."""
        try:
            try:
                self._run(work)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:  # not a database, or a malformed one
                self._set_aside(error)
                self._run(work)
        except (OSError, sqlite3.Error) as error:
            if not self._warned:
                logger.warning("The cache of text vectors %s cannot be used: %s", self.path, error)
            self._warned = True

    def _run(self, work: Callable[[sqlite3.Connection], None]) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with closing(sqlite3.connect(self.path, timeout=10)) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB)")
            work(connection)

    def _set_aside(self, error: sqlite3.DatabaseError) -> None:
        aside = self.path.with_name(self.path.name + ".corrupt")
        logger.warning("The cache of text vectors %s is rebuilt (%s); see %s", self.path, error, aside)
        # The journal goes first: left behind, it would be rolled back into the new file.
        self.path.with_name(self.path.name + "-journal").unlink(missing_ok=True)
        self.path.replace(aside)


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _pack(key: bytes, vector: NDArray[np.float32]) -> bytes:
    data = vector.astype("<f4", copy=False).tobytes()
    return data + zlib.crc32(data, zlib.crc32(key)).to_bytes(_CHECKSUM_BYTES)


def _unpack(key: bytes, blob: bytes) -> NDArray[np.float32] | None:
    """The vector, or None where the bytes are not those that were saved: SQLite does not look at them."""
    data, checksum = blob[:-_CHECKSUM_BYTES], blob[-_CHECKSUM_BYTES:]
    if zlib.crc32(data, zlib.crc32(key)).to_bytes(_CHECKSUM_BYTES) != checksum:
        return None
    return np.frombuffer(data, dtype="<f4")
