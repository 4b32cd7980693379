"""Reading texts that a command is given, one a line."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from palate.errors import FeedbackError

if TYPE_CHECKING:
    from palate.feedback import Text


def read_texts(path: Path, column: str, what: str) -> list["Text"]:
    """Texts one a line: a JSON string, a conversation, or an object with the column.

    Args:
        path: the file.
        column: of objects.
        what: one of them is, such as ``candidate``.

    Raises:
        FeedbackError: the file cannot be read, holds none, or a line is not such a text; names the line.
    """
    from pydantic import TypeAdapter

    from palate.feedback import Text

    kind: TypeAdapter[Text] = TypeAdapter(Text)
    found: list[Text] = []
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = str(error.strerror).lower() if isinstance(error, OSError) else "it is not UTF-8 text"
        raise FeedbackError(f"Cannot read {what}s {str(path)!r}: {reason}; name a JSON Lines file") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            found.append(kind.validate_python(value[column] if isinstance(value, dict) else value))
        except (ValueError, KeyError, RecursionError) as error:
            raise FeedbackError(
                f'{path.name}:{number}: not a {what}; write a JSON string or {{"{column}": ...}} on each line'
            ) from error
    if not found:
        raise FeedbackError(f"{path.name} holds no {what}s; write one a line as a JSON string")
    return found


def read_prompts(path: Path) -> list["Text"]:
    """Prompts one a line, each once; as `read_texts`."""
    seen: dict[str, Text] = {}
    for prompt in read_texts(path, "prompt", "prompt"):
        seen.setdefault(json.dumps(prompt), prompt)
    return list(seen.values())
