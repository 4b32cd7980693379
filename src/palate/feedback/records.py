"""Records of what people liked, each value checked.

The columns are TRL's plus `user_id`. Where we depart from TRL: a record's `prompt` always stands apart from its
completions, and rows that would give the choice away (completions of two forms) or that tell nothing (equal or empty
ones) are refused.
"""

import re
from datetime import UTC, datetime
from numbers import Real
from typing import Annotated, Any, Literal, Self, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ModelWrapValidatorHandler,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from typing_extensions import TypedDict

from palate.errors import FeedbackError

MIXED_FORMS = (
    "one of chosen and rejected is a string and the other a conversation, which gives the choice away; give both in "
    "one form"
)
"""Why such a row is refused."""

_MAX_NAME = 256
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


Text = str | list[Message]
"""Plain text, or a conversation."""


def as_text(text: Text) -> str:
    r"""A text as one string, for encoders and for measuring.

    A single message is just its content, so that plain and conversational completions read alike.

    Example:
        >>> as_text([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}])
        'user: Hi\nassistant: Hello'
        >>> as_text([{"role": "assistant", "content": "Hello"}])
        'Hello'
    """
    if isinstance(text, str):
        return text
    if len(text) == 1:
        return text[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in text)


def show(value: object) -> str:
    """A value as a message quotes it: its `repr`, cut to 60 characters."""
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


# Field validators. They raise FeedbackError, which pydantic lets through as it is: one plain line.


def _storable(value: str, name: str | None) -> str:
    if found := _UNSTORABLE.search(value):
        what = "a NUL character" if found[0] == "\0" else "a lone surrogate"
        raise FeedbackError(f"{name} has {what} at position {found.start()}; remove it")
    return value


def _name(value: object, info: ValidationInfo) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value:
        raise FeedbackError(f"{info.field_name} {show(value)} is not a non-empty string; give it a name")
    if len(value) > _MAX_NAME:
        raise FeedbackError(
            f"{info.field_name} {show(value)} has {len(value)} characters, more than {_MAX_NAME}; shorten it"
        )
    return _storable(value, info.field_name)


def _text(value: object, info: ValidationInfo) -> Text:
    if isinstance(value, str):
        return _storable(value, info.field_name)
    messages: list[Message] = []
    for message in value if isinstance(value, list) else (None,):
        match message:
            case {"role": str(role), "content": str(content)}:
                _storable(role, info.field_name)
                messages.append({"role": role, "content": _storable(content, info.field_name)})
            case _:
                raise FeedbackError(
                    f"{info.field_name} {show(value)} is not a text; "
                    "give a string or a list of {'role': string, 'content': string}"
                )
    return messages


def _completion(value: object, info: ValidationInfo) -> Text:
    text = _text(value, info)
    if not (text if isinstance(text, str) else "".join(message["content"] for message in text)).strip():
        raise FeedbackError(f"{info.field_name} is empty; leave the row out")
    return text


def _reply(value: object, info: ValidationInfo) -> str:
    if not isinstance(value, str):
        raise FeedbackError(f"reply {show(value)} is not a string; give the text that was typed")
    return cast(str, _completion(value, info))


def _number(value: object, low: float, way_out: str, name: str | None) -> float:
    if not isinstance(value, Real) or isinstance(value, bool) or not low <= cast(float, value) <= 1:
        raise FeedbackError(f"{name} {show(value)} is not a number in [{low:g}, 1]; {way_out}")
    return float(value)


def _share(value: object, info: ValidationInfo) -> float:
    return _number(value, 0, "rescale it", info.field_name)


def _strength(value: object) -> float:
    return _number(value, 0.5, "swap chosen and rejected to turn it round", "strength")


def _time(value: object) -> datetime:
    moment = value
    try:
        if isinstance(value, str):
            moment = datetime.fromisoformat(value)
        elif isinstance(value, Real) and not isinstance(value, bool):
            moment = datetime.fromtimestamp(float(value), UTC)
        if isinstance(moment, datetime):
            # One zone for all: equal instants compare equal and sort by when they happened.
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        pass
    raise FeedbackError(f"created_at {show(value)} is not a time; give an ISO 8601 string or epoch seconds")


_Name = Annotated[str, PlainValidator(_name)]
_Prompt = Annotated[Text, PlainValidator(_text)]
_Completion = Annotated[Text, PlainValidator(_completion)]
_Share = Annotated[float, PlainValidator(_share)]
_Split = Literal["train", "adapt", "test"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    user_id: _Name
    prompt: _Prompt
    created_at: Annotated[datetime, BeforeValidator(_time)] | None = None
    split: _Split | None = None

    @model_validator(mode="wrap")
    @classmethod
    def _in_our_words(cls, row: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(row)
        except ValidationError as error:
            raise FeedbackError(_reason(cls, error)) from None


def _reason(record: type[_Record], error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    column = first["loc"][0] if first["loc"] else "row"
    if first["type"] == "missing":
        needed = [name for name, info in record.model_fields.items() if info.is_required()]
        return f"{column} is missing; a {record.__name__.lower()} needs {', '.join(needed)}"
    if first["type"] == "literal_error":
        return f"{column} {show(first['input'])} is not {first['ctx']['expected']}; correct or drop it"
    return f"{column} cannot be read: {first['msg']}; correct it"


class Comparison(_Record):
    """A user preferred `chosen` to `rejected` for `prompt`.

    Attributes:
        user_id: Who; 1 to 256 characters.
        prompt: May be empty.
        chosen: The preferred completion, not empty, of the same form as `rejected` and different from it.
        rejected: The other one.
        strength: Probability in [0.5, 1] that `chosen` is better; 0.5 is a tie.
        chosen_position: On which side `chosen` was shown.
        kind: A group of users that a split must keep together; never an input to a model.
        created_at: When, in UTC; read from ISO 8601 (UTC where it names no zone) or epoch seconds.
        split: ``train``, ``adapt`` (what a new user is asked) or ``test``.

    Raises:
        FeedbackError: A value breaks one of these rules.

    Example:
        >>> Comparison(user_id="ann", prompt="Hi", chosen="Hello!", rejected="What?").strength
        1.0
    """

    chosen: _Completion
    rejected: _Completion
    strength: Annotated[float, PlainValidator(_strength)] = 1.0
    chosen_position: Literal["a", "b"] | None = None
    kind: _Name | None = None

    @model_validator(mode="after")
    def _tells_something(self) -> Self:
        if isinstance(self.chosen, str) is not isinstance(self.rejected, str):
            raise FeedbackError(MIXED_FORMS)
        if self.chosen == self.rejected:
            raise FeedbackError("chosen and rejected are the same, which tells nothing; leave the row out")
        return self


class Rating(_Record):
    """A user's `score`, in [0, 1], of one `completion` for `prompt`; the rest as in `Comparison`.

    Example:
        >>> Rating(user_id="ann", prompt="Hi", completion="Hello!", score=0.75).score
        0.75
    """

    completion: _Completion
    score: _Share
    kind: _Name | None = None


class Reply(_Record):
    """What the user typed after a `completion`; the rest as in `Comparison`.

    Attributes:
        reply: What was typed, not empty.
        satisfaction: How pleased it is, in [0, 1], where known.
        target: What the feeling is on, where known.
        confidence: How sure that reading is, in [0, 1], where a scorer made it.

    Example:
        >>> Reply(user_id="ann", prompt="Hi", completion="Hello!", reply="Shorter, please.").satisfaction
    """

    completion: _Completion
    reply: Annotated[str, PlainValidator(_reply)]
    satisfaction: _Share | None = None
    target: Literal["taste", "task", "both", "none"] | None = None
    confidence: _Share | None = None

    def read_as(self, satisfaction: float, confidence: float, target: str) -> "Reply":
        """With what a scorer read in it, where nothing was given: a label stays, and then has no confidence of it.

        Args:
            satisfaction: in [0, 1].
            confidence: of that, in [0, 1].
            target: what the feeling is on.
        """
        read: dict[str, object] = {}
        if self.satisfaction is None:
            read |= {"satisfaction": satisfaction, "confidence": confidence}
        if self.target is None:
            read["target"] = target
        return self.model_copy(update=read)


Record = Comparison | Rating | Reply
