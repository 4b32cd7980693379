"""Experience replay: what the shared head learned from, kept in a bounded memory by reservoir sampling.

Each person has a reservoir of their own, so that nobody who talks a lot crowds the others out, and there is one over
all. Every record seen so far is in a reservoir with the same probability (algorithm R, Vitter 1985). The memory is a
protocol: here it lives in the process, `palate.store` keeps it in its database.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from palate.errors import InputError
from palate.rewards.beliefs import Floats


@dataclass(frozen=True)
class Experience:
    """One answer and how pleased somebody was with it.

    Args:
        user: whose.
        key: what it stands for, so that it can be found and erased; such as the id of the evidence.
        phi: (J,) base rewards of the answer, less the centre of its prompt.
        own: what the person's own reward said of it, in logits.
        target: satisfaction to learn, in [0, 1].
        weight: counts so much, > 0; a record and its augmented children share one.
    """

    user: str
    key: str
    phi: Floats
    own: float
    target: float
    weight: float = 1.0


class ReplayMemory(Protocol):
    """Where old experience is kept."""

    def add(self, records: Sequence[Experience]) -> None:
        """Offer records, each of which is kept or not."""

    def sample(self, count: int, rng: np.random.Generator) -> list[Experience]:
        """Some of what is kept, as many as there are at most, by chance and without repeats."""

    def forget(self, user: str) -> int:
        """Drop all of a person's; how many there were."""

    def __len__(self) -> int:
        """How many are kept."""


class NoMemory:
    """A memory that keeps nothing: what learning is without replay."""

    def add(self, records: Sequence[Experience]) -> None:
        """Keep none of them."""

    def sample(self, count: int, rng: np.random.Generator) -> list[Experience]:
        """None."""
        return []

    def forget(self, user: str) -> int:
        """There is nothing to drop."""
        return 0

    def __len__(self) -> int:
        """Always 0."""
        return 0


@dataclass
class Reservoir:
    """At most `size` of a stream of things, each with the same probability.

    Args:
        size: how many are kept.
        seen: how many were offered.
        kept: those that are kept, by slot; who is forgotten leaves slots empty.
    """

    size: int
    seen: int = 0
    kept: dict[int, Experience] = field(default_factory=dict)

    def offer(self, record: Experience, rng: np.random.Generator) -> None:
        """Keep it, in place of another one where full, or let it go."""
        place = slot(self.seen, self.size, rng)
        self.seen += 1
        if place is not None:
            self.kept[place] = record


def slot(seen: int, size: int, rng: np.random.Generator) -> int | None:
    """Where the next of a stream goes in a reservoir that was offered `seen` before; None where it is let go.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> [slot(seen, 3, rng) for seen in range(3)]
        [0, 1, 2]
    """
    place = seen if seen < size else int(rng.integers(seen + 1))
    return place if place < size else None


class InMemoryReplay:
    """Reservoirs in the process's memory.

    Args:
        per_user: records kept of each person.
        overall: records kept of everybody together, beside those.
        people: persons with a reservoir of their own; whoever comes later has the common one alone.
        seed: of what is kept.

    Raises:
        InputError: a size is below 1.

    Example:
        >>> memory = InMemoryReplay(per_user=2, overall=4)
        >>> memory.add([Experience("ann", str(i), np.zeros(2), 0.0, 1.0) for i in range(10)])
        >>> len(memory), memory.forget("ann"), len(memory)
        (6, 6, 0)
    """

    def __init__(self, per_user: int = 32, overall: int = 4_096, people: int = 10_000, seed: int = 0) -> None:
        for name, value in (("per_user", per_user), ("overall", overall), ("people", people)):
            if value < 1:
                raise InputError(f"{name} {value!r} is below 1; give how many to keep")
        self._per_user, self._people = per_user, people
        self._own: dict[str, Reservoir] = {}
        self._common = Reservoir(overall)
        self._rng = np.random.default_rng(seed)

    def add(self, records: Sequence[Experience]) -> None:
        """Offer each to its person's reservoir, and to the common one."""
        for record in records:
            if record.user not in self._own and len(self._own) < self._people:
                self._own[record.user] = Reservoir(self._per_user)
            if own := self._own.get(record.user):
                own.offer(record, self._rng)
            self._common.offer(record, self._rng)

    def sample(self, count: int, rng: np.random.Generator) -> list[Experience]:
        """Half from people's own reservoirs, a person at a time, so that all weigh alike; half from the common one."""
        people = list(self._own.values())
        found: list[Experience] = []
        for who in rng.permutation(len(people))[: count // 2]:
            own = list(people[who].kept.values())
            found.append(own[int(rng.integers(len(own)))])
        rest = list(self._common.kept.values())
        found += [rest[i] for i in rng.permutation(len(rest))[: count - len(found)]]
        return list({(record.user, record.key): record for record in found}.values())

    def forget(self, user: str) -> int:
        """Drop a person's reservoir, and what the common one holds of theirs."""
        own = self._own.pop(user, None)
        before = len(self._common.kept)
        self._common.kept = {place: record for place, record in self._common.kept.items() if record.user != user}
        return (len(own.kept) if own else 0) + before - len(self._common.kept)

    def __len__(self) -> int:
        """Of everybody's reservoirs and the common one together."""
        return sum(len(own.kept) for own in self._own.values()) + len(self._common.kept)
