"""What a server is told when it starts."""

import json
import os
from dataclasses import asdict, dataclass, fields

from palate.errors import InputError

_VARIABLE = "PALATE_SERVER"


@dataclass(frozen=True)
class Settings:
    """How a server answers, learns, and guards itself; `palate serve` has an option for each.

    Args:
        model: folder of the reward model; one saved in its place is put to use without a stop.
        database: URL of the database; by default the environment's PALATE_DATABASE, else sqlite:///palate.db.
        upstream: URL of an OpenAI-compatible endpoint that answers are drawn from.
        upstream_model: which of its models, where a request names none.
        policy: a causal language model on this machine that answers are drawn from instead; with neither, bundled
            answers.
        adapters: folder of adapters that `palate train` made of the policy: whoever has one is answered with it.
        value_head: folder of the policy's value head, for guided answers.
        strategy: where a request names none: `off`, or parts joined by a plus.
        candidates: drawn for best-of-n where a request does not say how many.
        max_tokens: of an answer, where a request does not say.
        generic: share of personal answers that chance replaces by the usual one, so that what personalising brings is
            measured.
        open: whether requests need no key; for this machine alone.
        rate: requests a minute that a key may make.
        max_bytes: of a request's body.
        keep_alive: seconds between the comments that keep a stream open while candidates are drawn.
        at_once: requests to the upstream in flight at most.
        public_url: under which people's browsers reach the server, for links.

    Raises:
        InputError: a value is out of its range.
    """

    model: str
    database: str | None = None
    upstream: str | None = None
    upstream_model: str | None = None
    policy: str | None = None
    adapters: str | None = None
    value_head: str | None = None
    strategy: str = "best-of-n"
    candidates: int = 8
    max_tokens: int = 512
    generic: float = 0.05
    open: bool = False
    rate: int = 6_000
    max_bytes: int = 1_000_000
    keep_alive: float = 10.0
    at_once: int = 1_000
    public_url: str | None = None

    def __post_init__(self) -> None:
        if self.upstream is not None and self.policy is not None:
            raise InputError("Both an upstream and a policy are given; answers come from one of them, so leave one out")
        if (self.adapters is not None or self.value_head is not None) and self.policy is None:
            raise InputError("Adapters and a value head change a model on this machine; give that as the policy")
        if not 0 <= self.generic < 1:
            raise InputError(f"generic {self.generic!r} is not in [0, 1); give a small share, such as 0.05")
        for name in ("candidates", "max_tokens", "rate", "max_bytes", "keep_alive", "at_once"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} {getattr(self, name)!r} is not above 0; give more")

    def to_environment(self) -> None:
        """Hand these to the worker processes that are started from here."""
        os.environ[_VARIABLE] = json.dumps(asdict(self))

    @classmethod
    def from_environment(cls) -> "Settings":
        """What `to_environment` has left.

        Raises:
            InputError: nothing was left, or something else.
        """
        try:
            told = json.loads(os.environ[_VARIABLE])
            return cls(**{field.name: told[field.name] for field in fields(cls) if field.name in told})
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(f"{_VARIABLE} holds no settings: {error}; start the server with palate serve") from error
