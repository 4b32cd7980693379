"""Reading and writing feedback: JSON Lines, Parquet, Hugging Face data sets, rows in memory.

What a row is (comparison, rating, reply) is told by its columns. A bad row is reported with its place and the
reason, and stops the reading unless bad rows are to be skipped; nothing bad passes silently.
"""

import codecs
import gzip
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import TypeVar

from palate.errors import FeedbackError, MissingExtraError
from palate.feedback.hub import Row, open_dataset
from palate.feedback.records import Comparison, Rating, Record, Reply, show

_Raw = TypeVar("_Raw")
_Rows = Iterable[Row]
Columns = Mapping[str, str]
"""Our columns, and the names under which they stand."""

_JSON_LINES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_SPLITS = ("train", "adapt", "test")

# The columns that tell what a row is.
_TELLTALES: Mapping[str, type[Record]] = {
    "chosen": Comparison,
    "rejected": Comparison,
    "score": Rating,
    "reply": Reply,
}

_COLUMNS = tuple(dict.fromkeys(name for kind in (Comparison, Rating, Reply) for name in kind.model_fields))


@dataclass(frozen=True)
class Feedback:
    """All records of some files, by what they are, each list in the order of reading.

    Attributes:
        comparisons: Choices between two completions.
        ratings: Scores of one completion.
        replies: What was typed after one.
        bad_lines: ``file:line: reason`` of each line left out, where these were to be skipped.
    """

    comparisons: list[Comparison] = field(default_factory=list)
    ratings: list[Rating] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    bad_lines: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        """Number of records."""
        return len(self.comparisons) + len(self.ratings) + len(self.replies)


def read_feedback(
    paths: str | Path | Sequence[str | Path],
    *,
    columns: Mapping[str, str] | None = None,
    skip_bad_lines: bool = False,
) -> Feedback:
    """Read feedback files, in order, into one `Feedback`.

    Args:
        paths: Each one JSON Lines (`.jsonl`, `.json`, and these with `.gz`), Parquet (`.parquet`), a folder
            written by ``Dataset.save_to_disk``, or, where nothing of that name exists, the ``owner/name`` of
            a data set on the Hugging Face hub. A data set's splits `train`, `adapt` and `test` set the
            `split` of rows that have none. Those in `palate.feedback.loaders` are known by name.
        columns: Where ours stand under other names, ours to theirs: ``{"user_id": "annotator"}``.
        skip_bad_lines: Collect bad lines in `Feedback.bad_lines` instead of stopping at the first.

    Raises:
        FeedbackError: A file cannot be read or holds nothing, or a line is bad; names file, line and reason. Or
            `columns` names one that a record does not have.
        MissingExtraError: A Parquet file or a data set, without the package that reads it.
    """
    if unknown := [ours for ours in columns or {} if ours not in _COLUMNS]:
        raise FeedbackError(f"{unknown[0]!r} is no column of a record; rename to one of {', '.join(_COLUMNS)}")
    feedback = Feedback()
    for path in [paths] if isinstance(paths, str | Path) else paths:
        before = len(feedback) + len(feedback.bad_lines)
        try:
            _read_into(feedback, path, columns or {}, skip_bad_lines)
        except (OSError, EOFError, zlib.error) as error:
            raise _unreadable(path, error) from None
        if len(feedback) + len(feedback.bad_lines) == before:
            raise FeedbackError(f"{path} holds no records; give a file with one record a line")
    return feedback


def from_rows(rows: _Rows, *, source: str, skip_bad_lines: bool = False) -> Feedback:
    """Read rows already in memory, or a `datasets.Dataset`; columns that are None count as absent.

    Args:
        rows: One mapping of column names per record.
        source: What error messages call them.
        skip_bad_lines: Collect bad rows in `Feedback.bad_lines` instead of stopping at the first.

    Raises:
        FeedbackError: A row is bad; names `source`, the row's number from 1, and the reason.

    Example:
        >>> row = {"user_id": 7, "prompt": "Hi", "completion": "Hello!", "score": 1.7}
        >>> from_rows([row], source="scores")
        Traceback (most recent call last):
        palate.errors.FeedbackError: scores:1: score 1.7 is not a number in [0, 1]; rescale it
    """
    feedback = Feedback()
    _collect(feedback, source, rows, lambda row: row, skip_bad_lines)
    return feedback


def write_jsonl(records: Iterable[Record], path: str | Path) -> None:
    """Write records as JSON Lines that `read_feedback` gives back, gzipped where the name ends in `.gz`.

    The file appears whole or not at all: what stood there before stays until the last record is written.

    Raises:
        FeedbackError: The file cannot be written.
    """
    write_lines((record.model_dump_json(exclude_defaults=True) for record in records), path)


def write_lines(lines: Iterable[str], path: str | Path) -> None:
    """Write lines of JSON as `write_jsonl` does: whole or not at all.

    Raises:
        FeedbackError: The file cannot be written.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with gzip.open(part, "wb") if path.suffix.lower() == ".gz" else part.open("wb") as file:
            for line in lines:
                file.write(line.encode() + b"\n")
        part.replace(path)
    except OSError as error:
        raise FeedbackError(f"{path} cannot be written ({error.strerror}); choose another place") from None
    finally:
        with suppress(OSError):  # gone already where all went well
            part.unlink()


def read_rows(path: str | Path) -> Iterator[tuple[str, object]]:
    """Raw rows of a JSON Lines or Parquet file, each with its place, such as ``a.jsonl:3``.

    Raises:
        FeedbackError: The file cannot be read, or a line is no JSON.
    """
    parquet = Path(path).suffix.lower() == ".parquet"
    raw_rows: Iterator[Row | bytes] = _parquet_rows(path) if parquet else _lines(Path(path))
    try:
        for number, raw in enumerate(raw_rows, start=1):
            try:
                row = _parsed(raw) if isinstance(raw, bytes) else raw
            except FeedbackError as error:
                raise FeedbackError(f"{path}:{number}: {error}") from None
            if row is not None:
                yield f"{path}:{number}", row
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from None


def _read_into(feedback: Feedback, path: str | Path, columns: Columns, skip_bad_lines: bool) -> None:
    source, name = str(path), Path(path).name.lower()
    if Path(path).is_dir():
        _read_dataset(feedback, source, columns, skip_bad_lines)
    elif name.endswith(_JSON_LINES):
        _collect(feedback, source, _lines(Path(path)), lambda line: _renamed(columns, _parsed(line)), skip_bad_lines)
    elif name.endswith(".parquet"):
        _collect(feedback, source, _parquet_rows(path), partial(_renamed, columns), skip_bad_lines)
    elif not Path(path).exists() and _HUB_NAME.fullmatch(source):
        _read_dataset(feedback, source, columns, skip_bad_lines)
    else:
        raise FeedbackError(
            f"{path} is not feedback that Palate can read; give a {', '.join(_JSON_LINES)} or .parquet file, "
            "or a Hugging Face data set"
        )


def _collect(
    feedback: Feedback,
    source: str,
    raw_rows: Iterable[_Raw],
    parse: Callable[[_Raw], object],
    skip_bad_lines: bool,
) -> None:
    """Add what `parse` makes of each raw row (None: nothing there) to `feedback`."""
    for number, raw in enumerate(raw_rows, start=1):
        try:
            row = parse(raw)
            if row is not None:
                _add(feedback, _record(row))
        except FeedbackError as error:
            bad_line = f"{source}:{number}: {error}"
            if not skip_bad_lines:
                raise FeedbackError(bad_line) from None
            feedback.bad_lines.append(bad_line)


def _add(feedback: Feedback, record: Record) -> None:
    match record:
        case Comparison():
            feedback.comparisons.append(record)
        case Rating():
            feedback.ratings.append(record)
        case Reply():
            feedback.replies.append(record)


def _record(row: object) -> Record:
    if not isinstance(row, Mapping):
        raise FeedbackError(f'{show(row)} is not an object; write one {{"user_id": ..., ...}} a line')
    present = _with_prompt({column: value for column, value in row.items() if value is not None})
    kinds = list(dict.fromkeys(kind for column, kind in _TELLTALES.items() if column in present))
    if not kinds:
        raise FeedbackError(f"the row has none of the columns {', '.join(_TELLTALES)}; name the columns as TRL does")
    if len(kinds) > 1:
        names = " and a ".join(kind.__name__.lower() for kind in kinds)
        raise FeedbackError(f"the row is a {names} at once; give each a row of its own")
    return kinds[0].model_validate(present)


def _with_prompt(row: dict[str, object]) -> dict[str, object]:
    """TRL's implicit prompt made explicit: the turns with which chosen and rejected both begin."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if "prompt" in row or not isinstance(chosen, list) or not isinstance(rejected, list):
        return row
    # Each keeps a turn of its own, to be refused where they are equal.
    pairs = zip(chosen[:-1], rejected[:-1], strict=False)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    if shared < 1:
        return row
    return {**row, "prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}


def _lines(path: Path) -> Iterator[bytes]:
    with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as file:
        yield from file


def _parsed(line: bytes) -> object:
    text = line.removeprefix(codecs.BOM_UTF8).strip()
    if not text:
        return None
    try:
        return json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise FeedbackError(f"byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        cause = str(error)
        if isinstance(error, json.JSONDecodeError):  # whose own words call every line the first
            cause = f"{error.msg.removesuffix(' at')} at column {error.colno}"
        raise FeedbackError(f"not JSON ({cause}); write one whole object a line") from None


def _parquet_rows(path: str | Path) -> Iterator[Mapping[str, object]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "datasets") from None
    try:
        with Path(path).open("rb") as file:
            for batch in pyarrow.parquet.ParquetFile(file).iter_batches():
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise _unreadable(path, error) from None


def _read_dataset(feedback: Feedback, source: str, columns: Columns, skip_bad_lines: bool) -> None:
    from palate.feedback.loaders import known  # which read through this module

    rows = None if columns else known(source)
    if rows:
        _collect(feedback, source, rows(source), lambda row: row, skip_bad_lines)
        return
    data = open_dataset(source)
    if not isinstance(data, Mapping):
        _collect(feedback, source, data, partial(_renamed, columns), skip_bad_lines)
        return
    for split, raw_rows in data.items():
        fill = partial(_with_split, split if split in _SPLITS else None, columns)
        _collect(feedback, f"{source}/{split}", raw_rows, fill, skip_bad_lines)


def _with_split(split: str | None, columns: Columns, row: Row) -> Row:
    row = _renamed(columns, row)
    return row if row.get("split") is not None else {**row, "split": split}


def _renamed(columns: Columns, row: _Raw) -> _Raw | Row:
    """The row with our columns filled from those named; a column of ours that is named elsewhere is not read itself."""
    if not columns or not isinstance(row, Mapping):
        return row
    if missing := [name for name in columns.values() if name not in row]:
        raise FeedbackError(f"there is no column {missing[0]!r}; the row has {show(', '.join(map(str, row)))}")
    return {**row, **{ours: row[theirs] for ours, theirs in columns.items()}}


def _unreadable(path: str | Path, error: BaseException) -> FeedbackError:
    cause = getattr(error, "strerror", None) or str(error).partition("\n")[0]
    return FeedbackError(f"{path} cannot be read ({cause}); check the path and that the file is whole")
