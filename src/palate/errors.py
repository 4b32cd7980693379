"""Every error that Palate raises on purpose, in one tree.

```
PalateError                 anything below: catch this one to catch all
├── InputError              a value given by the caller breaks a rule (an argument, a score, a name)
│   └── FeedbackError       a feedback file or row cannot be read; names file, line and reason
├── ModelError              a reward model folder is missing, cut short, or of another version
├── EncoderError            a text encoder cannot be found or does not fit the reward model
├── UpstreamError           a language model that answers are drawn from is out of reach, or answers rubbish
├── StoreError              the database cannot be opened, is read-only, full, or of a newer version
└── MissingExtraError       an optional package is not installed; names the extra to install
```

A message is one line: the bad value, the rule it breaks, and the way out.
"""


class PalateError(Exception):
    """Base of all errors that Palate raises on purpose."""


class InputError(PalateError):
    """A value given by the caller breaks a rule."""


class FeedbackError(InputError):
    """A feedback file or row cannot be read."""


class ModelError(PalateError):
    """A reward model folder is missing, cut short, or written by another version."""


class EncoderError(PalateError):
    """A text encoder cannot be found, or is not the one that the reward model was fitted with."""


class UpstreamError(PalateError):
    """A language model that answers are drawn from is out of reach, or its answers are no answers.

    Attributes:
        status: of HTTP, where it gave one.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class StoreError(PalateError):
    """The database cannot be opened or written, or was made by a newer version of Palate."""


class MissingExtraError(PalateError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"The package {package!r} is not installed; run: pip install 'palate[{extra}]'")
