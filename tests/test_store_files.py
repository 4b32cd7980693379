"""The store's database: whoever else writes, however that ends, and whatever it finds, nothing is lost."""

import os
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from palate.errors import StoreError
from palate.feedback import Rating
from palate.store import Store
from palate.store.database import READ, WRITE


@pytest.fixture
def path(tmp_path):
    return tmp_path / "palate.db"


@pytest.fixture
def url(path):
    return f"sqlite:///{path}"


@pytest.fixture
def store(url):
    with Store.open(url) as store:
        yield store


@pytest.fixture
def ann(store):
    return store.ensure_user("ann")


def said(completion: str = "Yes.") -> Rating:
    return Rating(user_id="ann", prompt="Well?", completion=completion, score=1)


def python(code: str, *args: str) -> "subprocess.Popen[str]":
    """A Python process that runs `code`, its output read through a pipe."""
    return subprocess.Popen([sys.executable, "-c", code, *args], stdout=subprocess.PIPE, text=True)


# What outlives what


def test_an_acknowledged_answer_survives_kill_9(store, ann, url):
    code = """if True:
        import sys
        from palate.feedback import Rating
        from palate.store import Store
        store = Store.open(sys.argv[1])
        ann = store.user("ann")
        while True:
            print(store.append(ann, Rating(user_id="ann", prompt="", completion="x", score=1)), flush=True)
    """
    with python(code, url) as writer:
        assert writer.stdout is not None
        acknowledged = [writer.stdout.readline().strip() for _ in range(20)]
        writer.kill()
        acknowledged += [line.strip() for line in writer.stdout if line.endswith("\n")]
    assert writer.returncode == -9
    assert set(acknowledged) <= {evidence.id for evidence in store.evidence(ann)}


def test_two_processes_that_write_at_once_lose_nothing(store, ann, url):
    code = """if True:
        import sys
        from palate.feedback import Rating
        from palate.store import Store
        with Store.open(sys.argv[1]) as store:
            ann = store.user("ann")
            for number in range(50):
                rating = Rating(user_id="ann", prompt="", completion="x", score=number / 50)
                print(store.append(ann, rating, evidence_id=f"{sys.argv[2]}-{number}"))
    """
    writers = [python(code, url, name) for name in ("left", "right")]
    printed = "".join(writer.communicate()[0] for writer in writers).split()
    assert len(printed) == 100
    assert sorted(printed) == sorted(evidence.id for evidence in store.evidence(ann))


def test_threads_share_a_store(store, ann):
    with ThreadPoolExecutor(4) as pool:
        ids = list(pool.map(lambda number: store.append(ann, said(str(number))), range(40)))
    assert sorted(ids) == sorted(e.id for e in store.evidence(ann))


def test_a_full_disk_keeps_what_was_saved(store, ann, url):
    before = [store.append(ann, said()) for _ in range(3)]
    with store.database.transaction(READ) as db:  # the pool gives this one connection to all that follow
        pages = db.exec_driver_sql("PRAGMA page_count").scalar_one()
        db.exec_driver_sql(f"PRAGMA max_page_count={pages + 5}").close()
    with pytest.raises(StoreError) as caught:
        store.append(ann, said("very " * 10_000 + "long"))
    assert str(caught.value) == (
        f"Database {url!r} has no room left; free some disk space and try again, what was saved is kept"
    )
    assert before == [e.id for e in store.evidence(ann)]
    store.append(ann, said("Short."))
    assert len(store.evidence(ann)) == 4


def test_a_locked_database_can_be_read_and_says_why_it_cannot_be_written(store, ann, url):
    store.append(ann, said())
    with Store.open(f"{url}?timeout=0.05") as hasty, store.database.transaction(WRITE):
        assert len(hasty.evidence(ann)) == 1
        with pytest.raises(StoreError) as caught:
            hasty.append(ann, said())
    assert str(caught.value) == (
        f"Database '{url}?timeout=0.05' is locked by another process; try again when that is done"
    )


def test_evidence_refers_only_to_queries_that_are_there(store, ann, url):
    with pytest.raises(StoreError) as caught:
        store.append(ann, said(), query_id="q")
    assert str(caught.value) == (
        f"Database {url!r} failed: FOREIGN KEY constraint failed; nothing of this step was saved"
    )


def test_sqlite_is_set_up_for_durability(store):
    with store.database.transaction(WRITE) as db:
        settings = {
            name: db.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "secure_delete", "busy_timeout")
        }
    assert settings == {
        "journal_mode": "wal",
        "synchronous": 2,  # FULL
        "foreign_keys": 1,
        "secure_delete": 1,
        "busy_timeout": 10_000,
    }


# Opening


def test_the_url_comes_from_the_environment_or_is_palate_db(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PALATE_DATABASE", raising=False)
    Store.open().close()
    monkeypatch.setenv("PALATE_DATABASE", "sqlite:///other.db")
    Store.open().close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.db", "palate.db"]


def test_a_missing_database_is_not_made_unasked(path, url):
    with pytest.raises(StoreError) as caught:
        Store.open(url, create=False)
    assert str(caught.value) == f"No Palate database at {url!r}; name another, or ask somebody first (palate onboard)"
    assert not path.exists()
    Store.open(url).close()
    Store.open(url, create=False).close()


def test_what_is_no_database_is_left_alone(path, url):
    path.write_text("Dear diary, " * 100, "utf-8")
    with pytest.raises(StoreError) as caught:
        Store.open(url)
    assert str(caught.value) == f"Database {url!r} is not a database file; name another file"
    assert path.read_text("utf-8") == "Dear diary, " * 100


def test_another_program_s_database_is_not_changed_by_looking(path, url):
    with sqlite3.connect(path) as raw:
        raw.execute("CREATE TABLE logs (line TEXT)")
    raw.close()
    before = path.read_bytes()
    with pytest.raises(StoreError):
        Store.open(url, create=False)
    assert path.read_bytes() == before


def test_a_folder_must_exist(tmp_path):
    url = f"sqlite:///{tmp_path / 'nowhere' / 'palate.db'}"
    with pytest.raises(StoreError) as caught:
        Store.open(url)
    assert str(caught.value) == (f"Database {url!r} cannot be opened; check that its folder exists and can be written")


def test_a_folder_must_be_writable(tmp_path, url):
    tmp_path.chmod(0o555)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("the superuser may write anywhere")
    with pytest.raises(StoreError) as caught:
        Store.open(url)
    assert str(caught.value) == (f"Database {url!r} cannot be opened; check that its folder exists and can be written")


def test_a_read_only_database_can_be_read(store, ann, path):
    store.append(ann, said())
    url = f"sqlite:///file:{path}?mode=ro&uri=true"
    with Store.open(url) as reader:
        assert len(reader.evidence(ann)) == 1
        with pytest.raises(StoreError) as caught:
            reader.append(ann, said())
    shown = url.replace("file:", "file%3A")
    assert str(caught.value) == f"Database {shown!r} cannot be written; allow writing to the file and its folder"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("palate.db", "Invalid database URL: 'palate.db'; give one such as 'sqlite:///palate.db'"),
        ("nosql://ann:pw@host/db", "Invalid database URL: 'nosql'; give one such as 'sqlite:///palate.db'"),
        (
            "sqlite://ann:pw@host:x/db",
            "Invalid database URL: 'sqlite'; give one such as 'sqlite:///palate.db'",
        ),
        (
            "mssql+pymssql://ann:pw@host/db",
            "The database driver 'pymssql' is not installed; install it, or use SQLite",
        ),
    ],
)
def test_a_bad_url_is_refused_without_its_password(url, message):
    with pytest.raises(StoreError) as caught:
        Store.open(url)
    assert str(caught.value) == message
