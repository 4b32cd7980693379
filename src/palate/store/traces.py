"""Whether texts still stand in the files of a database, as live rows of somebody else or as what deletion left."""

import json
import mmap
from collections.abc import Iterable, Iterator
from pathlib import Path

import sqlalchemy as sa

from palate.store import tables as t
from palate.store.database import READ, Database

_SHORTEST = 8  # characters; a shorter text stands in any file by chance


def traces_of(database: Database, texts: Iterable[str]) -> list[str]:
    """Those texts that stand in an SQLite database's files although no row holds them.

    Args:
        database: whose files are read, the write-ahead log among them; one that is no file has no traces here: of
            PostgreSQL see the documentation on its log and backups.
        texts: what is looked for; those under 8 characters are not, for they stand anywhere by chance.
    """
    wanted = {text for text in texts if len(text) >= _SHORTEST}
    found = {text for text in wanted if any(_stands_in(path, text) for path in _files(database))}
    if found:
        # What another person's row holds is no trace: a common question, or a known answer.
        for value in _live(database):
            found -= {text for text in found if text in value}
            if not found:
                break
    return sorted(found)


def _files(database: Database) -> Iterator[Path]:
    name = database.engine.url.database
    if database.engine.dialect.name == "sqlite" and name and name != ":memory:" and not name.startswith("file:"):
        yield from (path for path in map(Path, (name, f"{name}-wal", f"{name}-journal")) if path.exists())


def _stands_in(path: Path, text: str) -> bool:
    # As it was written, and as JSON writes it.
    forms = {form.encode("utf-8", "surrogatepass") for form in (text, json.dumps(text, ensure_ascii=False)[1:-1])}
    if not path.stat().st_size:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(form) >= 0 for form in forms)


def _live(database: Database) -> Iterator[str]:
    """Every text that a row holds."""
    for table in t.metadata.sorted_tables:
        columns = [column for column in table.columns if isinstance(column.type, sa.String | sa.JSON)]
        if not columns:
            continue
        with database.transaction(READ) as db:
            for row in db.execute(sa.select(*columns)).yield_per(500):
                yield from (text for value in row for text in texts_in(value))


def texts_in(value: object) -> Iterator[str]:
    """The texts in a value of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from texts_in(each)
    elif isinstance(value, list):
        for each in value:
            yield from texts_in(each)
