"""The cache of vectors: right or absent, whatever befell its file."""

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from palate.encoders.cache import VectorCache

any_text = st.text(st.characters(codec=None))
any_vector = arrays(np.float32, 3, elements=st.floats(width=32, allow_nan=True, allow_infinity=True))


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(any_text, any_vector))
def test_what_is_saved_is_loaded_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, vectors: dict[str, np.ndarray]
) -> None:
    cache = VectorCache(tmp_path_factory.mktemp("cache") / "v.sqlite3")
    stacked = np.array(list(vectors.values()), np.float32).reshape(-1, 3)
    cache.save(list(vectors), stacked)
    out = np.zeros_like(stacked)
    assert cache.load(list(vectors), out).all()
    assert out.tobytes() == stacked.tobytes()


TEXTS = [f"text {i}" for i in range(60)]
VECTORS = np.random.default_rng(0).normal(size=(60, 700)).astype(np.float32)


def assert_right_and_usable(cache: VectorCache) -> None:
    """What it gives is what was saved, and what it lacks it takes again."""
    out = np.zeros_like(VECTORS)
    found = cache.load(TEXTS, out)
    np.testing.assert_array_equal(out[found], VECTORS[found])
    assert not out[~found].any()
    cache.save(TEXTS, VECTORS)
    assert cache.load(TEXTS, out).all()
    np.testing.assert_array_equal(out, VECTORS)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.5, 0.99])
def test_a_file_cut_short_is_rebuilt(tmp_path: Path, share: float) -> None:
    cache = VectorCache(tmp_path / "v.sqlite3")
    cache.save(TEXTS, VECTORS)
    os.truncate(cache.path, int(share * cache.path.stat().st_size))
    assert_right_and_usable(cache)


@pytest.mark.parametrize("seed", range(20))
def test_overwritten_bytes_give_no_wrong_vector(tmp_path: Path, seed: int) -> None:
    cache = VectorCache(tmp_path / "v.sqlite3")
    cache.save(TEXTS, VECTORS)
    rng = np.random.default_rng(seed)
    data = bytearray(cache.path.read_bytes())
    start = int(rng.integers(0, len(data))) if seed else 0
    data[start : start + 5000] = rng.bytes(len(data[start : start + 5000]))
    cache.path.write_bytes(data)
    out = np.zeros_like(VECTORS)
    found = cache.load(TEXTS, out)
    np.testing.assert_array_equal(out[found], VECTORS[found])
    assert not out[~found].any()


def test_a_file_that_is_no_database_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = VectorCache(tmp_path / "v.sqlite3")
    cache.path.write_bytes(b"never a database" * 100)
    (tmp_path / "v.sqlite3-journal").write_bytes(b"of the old one")
    assert_right_and_usable(cache)
    assert (tmp_path / "v.sqlite3.corrupt").read_bytes() == b"never a database" * 100
    assert caplog.messages == [
        f"The cache of text vectors {cache.path} is rebuilt (file is not a database); see {cache.path}.corrupt"
    ]


def test_a_full_disk_means_one_warning_and_what_is_there_is_still_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    resource = pytest.importorskip("resource")  # not on Windows
    cache = VectorCache(tmp_path / "v.sqlite3")
    cache.save(TEXTS[:5], VECTORS[:5])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (cache.path.stat().st_size + 4096, hard))
    try:
        cache.save(TEXTS, VECTORS)
        cache.save(TEXTS, VECTORS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"The cache of text vectors {cache.path} cannot be used: ")
    out = np.zeros_like(VECTORS)
    assert cache.load(TEXTS, out).tolist() == [True] * 5 + [False] * 55
    assert_right_and_usable(cache)


def test_a_writer_killed_half_way_leaves_what_was_there(tmp_path: Path) -> None:
    cache = VectorCache(tmp_path / "v.sqlite3")
    cache.save(TEXTS[:30], VECTORS[:30])
    code = f"""
import os, signal, sqlite3
connection = sqlite3.connect({str(cache.path)!r})
connection.execute("PRAGMA cache_size = 1")  # pages spill to the file before the commit
connection.execute("UPDATE vectors SET vector = zeroblob(2804)")
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert (tmp_path / "v.sqlite3-journal").exists()
    out = np.zeros_like(VECTORS)
    assert cache.load(TEXTS, out).sum() == 30
    np.testing.assert_array_equal(out[:30], VECTORS[:30])


def test_two_processes_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "v.sqlite3"
    code = f"""
import sys
import numpy as np
from pathlib import Path
from palate.encoders.cache import VectorCache
cache = VectorCache(Path({str(path)!r}))
for i in range(40):
    cache.save([f"both {{i}}", f"{{sys.argv[1]}} {{i}}"], np.full((2, 9), i, np.float32))
"""
    writers = [subprocess.Popen([sys.executable, "-c", code, name]) for name in ("one", "two")]
    assert [writer.wait() for writer in writers] == [0, 0]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM vectors").fetchone() == (120,)
