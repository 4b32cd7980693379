"""Hugging Face data sets: on the hub, as a folder that holds a copy of one, or as `save_to_disk` wrote it."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path

from palate.errors import FeedbackError, MissingExtraError

Row = Mapping[str, object]
Rows = Iterable[Row]

# What `save_to_disk` leaves in a folder, and a copy of a data set on the hub does not have.
_SAVED = ("dataset_dict.json", "state.json")


def open_dataset(source: str, config: str | None = None) -> Rows | Mapping[str, Rows]:
    """Rows of a data set, or rows by split.

    Args:
        source: A folder, or ``owner/name`` on the hub.
        config: Which configuration, where the data set has several; a folder written by `save_to_disk` has one.

    Raises:
        FeedbackError: It is no data set, or cannot be reached.
        MissingExtraError: The package `datasets` is not installed.
    """
    try:
        import datasets
    except ImportError:
        raise MissingExtraError("datasets", "datasets") from None
    folder = Path(source)
    try:
        if any((folder / name).exists() for name in _SAVED):
            data: Rows | Mapping[str, Rows] = datasets.load_from_disk(source)
        else:
            data = datasets.load_dataset(source, *([config] if config else []))
    except Exception as error:  # whatever the libraries below it raise
        cause = type(error).__name__
        if folder.is_dir():
            reason = f"is a folder but not a Hugging Face data set ({cause}); name the files in it one by one"
        else:
            reason = f"is no file here and did not come from the Hugging Face hub ({cause}); check the name"
        raise FeedbackError(f"{source} {reason}") from None
    return data


def by_split(source: str, config: str | None = None) -> Mapping[str, Rows]:
    """As `open_dataset`; a data set without splits is all ``train``."""
    data = open_dataset(source, config)
    return data if isinstance(data, Mapping) else {"train": data}


def column(row: Row, name: str, source: str) -> object:
    """A column that the layout must have.

    Raises:
        FeedbackError: It has not.
    """
    if name not in row:
        raise FeedbackError(f"{source} has no column {name!r}; give the data set as it is on the hub")
    return row[name]


def messages(value: object) -> Iterator[Row]:
    """The mappings in a list of them, as nested columns come; None is an empty list."""
    for item in value if isinstance(value, list) else []:
        if isinstance(item, Mapping):
            yield item


def moment(value: object) -> datetime | None:
    """A time where it is one; these data sets write it in more than one way, and a record can do without."""
    if isinstance(value, datetime):
        return value
    try:
        return datetime.fromisoformat(str(value))
    except ValueError:
        return None
