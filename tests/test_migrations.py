"""The schema: what migrations make, what they keep, and what they refuse."""

import json
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from palate.errors import StoreError
from palate.feedback import Comparison
from palate.store import Store
from palate.store.database import CHANGE_SCHEMA, READ, Database
from palate.store.tables import HEAD, metadata, pack

# A row in every table, as the first schema holds them: written out, so that no later code can bend them.
FIRST_ROWS = {
    "user": {
        "id": 7,
        "tenant_id": 1,
        "external_id": "ann",
        "created_at": "2025-05-01 12:00:00.000000",
        "paused": 1,
        "half_life_days": 30.5,
    },
    "model": {
        "fingerprint": "f1",
        "path": "reward",
        "encoder": "minilm",
        "encoder_revision": "1",
        "rank": 1,
        "created_at": "2025-05-01 12:00:00.000000",
    },
    "query": {
        "id": "q",
        "tenant_id": 1,
        "user_id": 7,
        "fingerprint": "f1",
        "seq": 1,
        "prompt": '"Hi"',
        "response_a": '"Hello!"',
        "response_b": '[{"role": "assistant", "content": "Ä?"}]',
        "strategy": "bald",
        "expected_information": 0.5,
        "asked_at": "2025-05-01 12:00:00.000000",
    },
    "evidence": {
        "user_id": 7,
        "id": "e",
        "tenant_id": 1,
        "query_id": "q",
        "kind": "comparison",
        "created_at": "2025-05-01 12:00:00.000001",
        "payload": json.dumps({"prompt": "Hi", "chosen": "Hello!", "rejected": "What?", "strength": 0.75}),
        "withdrawn": 0,
    },
    "posterior": {
        "user_id": 7,
        "fingerprint": "f1",
        "shape": "[1]",
        "mean": b"\0\0\0\0\0\0\xf0\x3f",
        "cov": b"\0\0\0\0\0\0\x00\x40",
        "evidence_count": 1,
        "version": 3,
        "updated_at": "2025-05-01 12:00:00.000000",
    },
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "palate.db"


@pytest.fixture
def url(path):
    return f"sqlite:///{path}"


def write(path: Path, *statements: tuple[str, Sequence[object]]) -> None:
    raw = sqlite3.connect(path)
    with raw:
        for statement, values in statements:
            raw.execute(statement, values)
    raw.close()


def alembic() -> Config:
    config = Config()
    config.set_main_option("script_location", "palate.store:migrations")
    return config


@pytest.fixture
def first(path, url):
    """A database as the first schema left it, with rows in it."""
    database, config = Database(url), alembic()
    with database.transaction(CHANGE_SCHEMA) as config.attributes["connection"]:
        command.upgrade(config, "0001")
    database.close()
    write(
        path,
        ("PRAGMA journal_mode=WAL", ()),
        *(
            (
                f'INSERT INTO "{table}" ({", ".join(row)}) VALUES ({", ".join("?" * len(row))})',
                (*row.values(),),
            )
            for table, row in FIRST_ROWS.items()
        ),
    )
    return url


def test_the_newest_revision_is_the_only_head():
    assert ScriptDirectory.from_config(alembic()).get_heads() == [HEAD]


def test_migrations_make_the_tables_that_queries_are_written_against(url):
    with Store.open(url) as store, store.database.transaction(READ) as db:
        options = {"compare_type": True, "compare_server_default": True}
        assert compare_metadata(MigrationContext.configure(db, opts=options), metadata) == []
        made = sa.inspect(db)
        for table in metadata.sorted_tables:
            # Autogenerate does not look at names, but a later revision that drops a constraint needs them.
            found = {key["name"] for key in made.get_foreign_keys(table.name)}
            found |= {constraint["name"] for constraint in made.get_unique_constraints(table.name)}
            assert found == {c.name for c in table.constraints if not isinstance(c, sa.PrimaryKeyConstraint)}


def check_first_rows(store: Store) -> None:
    ann = store.user("ann")
    assert ann is not None
    assert (ann.id, ann.paused, ann.half_life_days) == (7, True, 30.5)
    (evidence,) = store.evidence(ann)
    assert evidence.created_at.isoformat() == "2025-05-01T12:00:00.000001+00:00"
    assert evidence.record == Comparison(
        user_id="ann",
        prompt="Hi",
        chosen="Hello!",
        rejected="What?",
        strength=0.75,
        created_at=evidence.created_at,
    )
    query = store.open_query(ann, "f1")
    assert query is not None
    assert (query.id, query.seq, query.pool_index) == ("q", 1, None)
    assert query.response_b == [{"role": "assistant", "content": "Ä?"}]
    posterior = store.posterior(ann, "f1")
    assert posterior is not None
    assert (posterior.mean.tolist(), posterior.cov.tolist(), posterior.version) == ([1.0], [[2.0]], 3)
    assert posterior.weights is None
    assert (pack(posterior.mean), pack(posterior.cov)) == (
        FIRST_ROWS["posterior"]["mean"],
        FIRST_ROWS["posterior"]["cov"],
    )


def test_rows_of_the_first_schema_are_kept(first):
    with Store.open(first) as store:
        assert store.current_revision == HEAD
        check_first_rows(store)


def test_a_mixture_can_follow_what_the_first_schema_kept(first):
    with Store.open(first) as store:
        ann = store.ensure_user("ann")
        mean, cov, weights = np.zeros((2, 1)), np.ones((2, 1, 1)), np.array([0.25, 0.75])
        version = store.save_posterior(ann, "f1", mean, cov, weights=weights, evidence_count=1, expected_version=3)
        kept = store.posterior(ann, "f1")
        assert kept is not None and kept.weights is not None
        assert (version, kept.weights.tolist(), kept.mean.shape) == (4, [0.25, 0.75], (2, 1))


def test_a_later_revision_can_rewrite_a_table_that_others_refer_to(first):
    with Store.open(first) as store:
        with store.database.transaction(CHANGE_SCHEMA) as db:
            operations = Operations(MigrationContext.configure(db))
            with operations.batch_alter_table("user", recreate="always") as batch:
                batch.add_column(sa.Column("nickname", sa.Text()))
            assert db.exec_driver_sql("PRAGMA foreign_key_check").all() == []
        check_first_rows(store)


def test_upgrading_again_changes_nothing(first, path):
    Store.open(first).close()
    before = path.read_bytes()
    with Store.open(first) as store:
        store.upgrade()
    assert path.read_bytes() == before


def test_a_newer_database_is_refused_and_left_alone(first, path):
    write(path, ("UPDATE alembic_version SET version_num = ?", ("9999",)))
    before = path.read_bytes()
    with pytest.raises(StoreError) as caught:
        Store.open(first)
    assert str(caught.value) == (
        f"Database {first!r} is at revision '9999', and this version of Palate knows only "
        f"those up to {HEAD!r}; upgrade Palate, or name another database"
    )
    assert path.read_bytes() == before


def test_an_upgrade_is_made_whole_or_not_at_all(path, url):
    write(path, ("CREATE TABLE posterior (a TEXT)", ()))  # stands in the way of the last of our tables
    with pytest.raises(StoreError) as caught:
        Store.open(url)
    assert str(caught.value) == (
        f"Database {url!r} failed: table posterior already exists; nothing of this step was saved"
    )
    raw = sqlite3.connect(path)
    assert raw.execute("SELECT name FROM sqlite_master").fetchall() == [("posterior",)]
    raw.close()


def test_processes_may_open_a_new_database_at_once(url):
    code = """if True:
        import sys
        from palate.store import Store
        sys.stdin.readline()
        with Store.open(sys.argv[1]) as store:
            print(store.current_revision, store.ensure_user("ann").id)
    """
    processes = [
        subprocess.Popen([sys.executable, "-c", code, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate()[0] for process in processes] == [f"{HEAD} 1\n"] * 3
