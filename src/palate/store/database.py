"""One database: its connections, its transactions, its schema's revision, and what its failures mean.

SQLite runs in WAL mode with synchronous=FULL: a transaction is on the disk before it is acknowledged. We emit
BEGIN ourselves, as SQLAlchemy's documentation advises, because the sqlite3 driver begins too late (no
snapshot for reads, no transaction around CREATE TABLE) and not IMMEDIATE (a writer that begins by reading
could fail half way instead of waiting its turn).
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError

from palate.errors import InputError, StoreError
from palate.store.tables import HEAD

# What SQLite is told before a transaction's first statement.
Begin = tuple[str, ...]
READ: Begin = ("BEGIN",)
WRITE: Begin = ("PRAGMA synchronous=FULL", "PRAGMA foreign_keys=ON", "BEGIN IMMEDIATE")
# For what need not outlive a failure of power: it survives `kill -9` all the same, and waits for no disk.
NOTE: Begin = ("PRAGMA synchronous=NORMAL", "PRAGMA foreign_keys=ON", "BEGIN IMMEDIATE")
# To change a table in SQLite is to drop it for a changed copy: no reference to it may stand in the way.
CHANGE_SCHEMA: Begin = ("PRAGMA synchronous=FULL", "PRAGMA foreign_keys=OFF", "BEGIN IMMEDIATE")
NO_TRANSACTION: Begin = ()

# How long to wait for another process's transaction; a URL ending in ?timeout=60 waits a minute.
_TIMEOUT_SECONDS = "10"
_ATTEMPTS = 20
# "palate" as a number: PostgreSQL's lock on changes of the schema.
_SCHEMA_LOCK = 0x70616C617465

_FAILURES = {
    "SQLITE_BUSY": "is locked by another process; try again when that is done",
    "SQLITE_CANTOPEN": "cannot be opened; check that its folder exists and can be written",
    "SQLITE_CORRUPT": "is damaged; restore it from a backup",
    "SQLITE_FULL": "has no room left; free some disk space and try again, what was saved is kept",
    "SQLITE_NOTADB": "is not a database file; name another file",
    "SQLITE_READONLY": "cannot be written; allow writing to the file and its folder",
}

# Texts stand in the file as they were written, not as escapes, which are up to three times as long.
_to_json = partial(json.dumps, ensure_ascii=False)

_version_table = sa.table("alembic_version", sa.column("version_num"))


class Database:
    """A connection pool with transactions; every failure inside one is a StoreError of one line.

    Args:
        url: an SQLAlchemy URL, as sqlite:///palate.db.

    Raises:
        StoreError: the URL is none, or its driver is not installed. Nothing is opened yet.
    """

    def __init__(self, url: str) -> None:
        try:
            self._url = make_url(url)
            self.engine = _engine(self._url)
        except (ArgumentError, ValueError) as error:
            # Only its beginning is repeated: a URL may hold a password.
            scheme = url.partition("://")[0]
            raise StoreError(f"Invalid database URL: {scheme!r}; give one such as 'sqlite:///palate.db'") from error
        except ModuleNotFoundError as error:
            raise StoreError(
                f"The database driver {error.name!r} is not installed; install it, or use SQLite"
            ) from error
        self.name = self._url.render_as_string(hide_password=True)

    @contextmanager
    def transaction(self, begin: Begin) -> Iterator[Connection]:
        """Run a transaction that is committed at the end, or rolled back by an exception.

        Raises:
            StoreError: the database failed.
            InputError: a text is not Unicode.
        """
        try:
            with self.engine.execution_options(sqlite_begin=begin).begin() as connection:
                yield connection
        except DBAPIError as error:
            raise StoreError(f"Database {self.name!r} {_meaning(error)}") from error
        except UnicodeEncodeError as error:
            raise InputError(
                f"Text is not Unicode: {error.object[error.start : error.end]!r}; replace these characters"
            ) from error

    def is_missing(self) -> bool:
        """Whether the URL names an SQLite file that is not there."""
        path = self._url.database
        on_disk = path and path != ":memory:" and not path.startswith("file:")
        return bool(self._url.get_backend_name() == "sqlite" and on_disk and not Path(str(path)).exists())

    def revision(self) -> str | None:
        """The schema's revision, None before the first."""
        with self.transaction(READ) as connection:
            if not sa.inspect(connection).has_table(_version_table.name):
                return None
            return connection.scalar(sa.select(_version_table.c.version_num))

    def upgrade(self) -> None:
        """Bring the schema to the newest revision, all of the way or not at all.

        The transaction takes the only write lock first: of two processes that open a new file, one makes the
        tables and the other finds them made.

        Raises:
            StoreError: the database failed, or it comes from a newer version of Palate.
        """
        # Alembic is imported only when there is something to change: it takes longer to load than the rest.
        from alembic import command
        from alembic.config import Config
        from alembic.script import ScriptDirectory

        config = Config()
        config.set_main_option("script_location", "palate.store:migrations")
        known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
        found = self.revision()
        if found is not None and found not in known:
            raise StoreError(
                f"Database {self.name!r} is at revision {found!r}, and this version of Palate knows only "
                f"those up to {HEAD!r}; upgrade Palate, or name another database"
            )
        if self.engine.dialect.name == "sqlite":
            self._enter_wal()
        with self.transaction(CHANGE_SCHEMA) as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SCHEMA_LOCK)))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def _enter_wal(self) -> None:
        """Switch an SQLite file to WAL mode, which it keeps.

        Where several processes try at once, SQLite lets none wait but refuses all but one; so whoever is
        refused waits for the write lock instead, and tries again.
        """
        for attempt in range(_ATTEMPTS):
            try:
                with self.transaction(NO_TRANSACTION) as connection:
                    connection.exec_driver_sql("PRAGMA journal_mode=WAL").close()
                return
            except StoreError:
                if attempt == _ATTEMPTS - 1:
                    raise
            with self.transaction(WRITE):
                pass

    def scrub(self) -> None:
        """Rebuild an SQLite file without its free pages and empty its write-ahead log.

        Raises:
            StoreError: another process is using the database.
        """
        if self.engine.dialect.name != "sqlite":
            return
        with self.transaction(NO_TRANSACTION) as connection:
            connection.exec_driver_sql("VACUUM")
            busy = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").scalar_one()
        if busy:
            raise StoreError(f"Database {self.name!r} {_FAILURES['SQLITE_BUSY']}")

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def _engine(url: URL) -> sa.Engine:
    if url.get_backend_name() != "sqlite":
        return sa.create_engine(url, json_serializer=_to_json)
    if "timeout" not in url.query:
        url = url.update_query_dict({"timeout": _TIMEOUT_SECONDS})
    engine = sa.create_engine(url, json_serializer=_to_json)
    sa.event.listen(engine, "connect", _prepare_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: DBAPIConnection, record: object) -> None:
    connection.isolation_level = None  # the driver is to begin nothing: `_begin_sqlite` does
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA secure_delete=ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    for statement in connection.get_execution_options().get("sqlite_begin", WRITE):
        connection.exec_driver_sql(statement).close()


def _meaning(error: DBAPIError) -> str:
    """What happened and the way out, to follow the database's name."""
    # SQLITE_READONLY_DIRECTORY and its like are refinements of SQLITE_READONLY.
    code = "_".join(getattr(error.orig, "sqlite_errorname", "").split("_")[:2])
    reason = (str(error.orig).splitlines() or ["unknown reason"])[0]
    return _FAILURES.get(code, f"failed: {reason}; nothing of this step was saved")
