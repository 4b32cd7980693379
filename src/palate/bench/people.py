"""Simulated people: two style poles each, and choices among the bundled answers drawn by Facets' recipe.

The recipe is PReF's (arXiv 2503.06358, Attributes); we depart from it in what everybody dislikes: a spoilt
answer costs 2 for every person, so that the population has a taste of its own to learn.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from palate.data import POLES, Answer
from palate.errors import InputError
from palate.feedback import Comparison

Kind = tuple[str, str]

ALL_KINDS: tuple[Kind, ...] = tuple(
    (first, second) for first, second in combinations(POLES, 2) if POLES[first][0] != POLES[second][0]
)
"""The 84 pairs of poles on different attributes, each in the order of `POLES`."""

_SPOILT_COST = 2.0


def opposite(pole: str) -> str:
    """The other pole of the same attribute.

    Example:
        >>> opposite("concise")
        'verbose'
    """
    attribute, sign = POLES[pole]
    return next(other for other, value in POLES.items() if value == (attribute, -sign))


def parse_kind(text: str) -> Kind:
    """Read a kind such as ``"concise,humorous"`` or ``"humorous+concise"``.

    Raises:
        InputError: A pole is unknown, or there are not two on different attributes.

    Example:
        >>> parse_kind("humorous, concise")
        ('concise', 'humorous')
    """
    return _checked([pole.strip() for pole in text.replace("+", ",").split(",")])


@dataclass(frozen=True)
class Person:
    """Somebody who likes two poles.

    Attributes:
        kind: Two poles on different attributes, brought into the order of `POLES`.

    Raises:
        InputError: A pole is unknown, or there are not two on different attributes.

    Example:
        >>> Person(("humorous", "concise")).name
        'concise+humorous'
    """

    kind: Kind

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", _checked(self.kind))

    @property
    def name(self) -> str:
        """The kind as feedback files write it."""
        return "+".join(self.kind)

    def reward(self, answers: Iterable[Answer]) -> NDArray[np.float64]:
        """How much this person likes each answer: the sum of signs, less 2 if spoilt; shape (n,), -4 to 2."""
        (first, sign), (second, other_sign) = (POLES[pole] for pole in self.kind)
        rewards = [
            sign * answer.attributes.get(first, 0)
            + other_sign * answer.attributes.get(second, 0)
            - _SPOILT_COST * (answer.spoilt is not None)
            for answer in answers
        ]
        return np.array(rewards, dtype=np.float64)


def simulate(
    kinds: Iterable[Kind],
    answers: Sequence[Answer],
    *,
    people_per_kind: int,
    comparisons: int,
    seed: int,
    flip: float = 0.05,
    split_by_prompt: bool,
) -> list[Comparison]:
    """Let simulated people choose between answers to the prompts at hand.

    A person's pairs are drawn uniformly, without repeats, among the pairs of answers to one prompt with
    unequal rewards. What a person chooses depends on `seed`, their kind and their number within it, never on
    who else is drawn.

    Args:
        kinds: Pairs of poles, as `parse_kind` gives them; see `ALL_KINDS`.
        answers: What is chosen among; only answers with one `prompt_id` meet.
        people_per_kind: How many people each kind gets; they are numbered in rounds over the kinds, so that
            more of them leaves the earlier ones their ids ``"s0000"``, ``"s0001"``, ...
        comparisons: How many each person makes.
        seed: Same seed, same choices.
        flip: Share of choices, in [0, 1], turned round at random; test rows are never turned.
        split_by_prompt: Give each person half of their prompts as ``adapt`` and the other half as ``test``,
            and half of their comparisons to each. Otherwise rows have no split.

    Raises:
        InputError: A kind is wrong, a count is less than 1, `flip` is not in [0, 1], or there are fewer pairs
            than comparisons asked for.

    Example:
        >>> from palate.data import load_answers
        >>> rows = simulate([("concise", "humorous")], load_answers(), people_per_kind=3, comparisons=20,
        ...                 seed=0, split_by_prompt=True)
        >>> len(rows), rows[0].user_id, rows[0].kind, rows[0].split
        (60, 's0000', 'concise+humorous', 'adapt')
    """
    for name, count in (("people_per_kind", people_per_kind), ("comparisons", comparisons)):
        if count < 1:
            raise InputError(f"{name} {count!r} is less than 1; ask for one or more")
    if not 0 <= flip <= 1:
        raise InputError(f"flip {flip!r} is not in [0, 1]; give the share of choices to turn round")
    people = [Person(kind) for kind in kinds]
    rewards = {person.kind: person.reward(answers) for person in people}
    pairs = _pairs(answers)
    number_within: Counter[Kind] = Counter()
    rows: list[Comparison] = []
    for number, person in enumerate(people * people_per_kind):
        # Keyed by who the person is, not by when they are drawn.
        key = (ALL_KINDS.index(person.kind), number_within[person.kind])
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
        number_within[person.kind] += 1
        for chosen, rejected, split in _choices(rng, rewards[person.kind], pairs, comparisons, flip, split_by_prompt):
            rows.append(
                Comparison(
                    user_id=f"s{number:04}",
                    prompt=answers[chosen].prompt,
                    chosen=answers[chosen].text,
                    rejected=answers[rejected].text,
                    kind=person.name,
                    split=split,
                )
            )
    return rows


def _pairs(answers: Sequence[Answer]) -> NDArray[np.intp]:
    """Every pair of answers to one prompt, shape (pairs, 3): two indices and the prompt's number."""
    by_prompt: dict[str, list[int]] = {}
    for index, answer in enumerate(answers):
        by_prompt.setdefault(answer.prompt_id, []).append(index)
    pairs = [
        (left, right, prompt)
        for prompt, indices in enumerate(by_prompt.values())
        for left, right in combinations(indices, 2)
    ]
    return np.array(pairs, dtype=np.intp).reshape(-1, 3)


def _choices(
    rng: np.random.Generator,
    rewards: NDArray[np.float64],
    pairs: NDArray[np.intp],
    comparisons: int,
    flip: float,
    split_by_prompt: bool,
) -> Iterator[tuple[int, int, Literal["adapt", "test"] | None]]:
    """One person's choices as (chosen, rejected, split), chosen and rejected indices into `rewards`."""
    prompt = pairs[:, 2]
    telling = rewards[pairs[:, 0]] != rewards[pairs[:, 1]]
    if not split_by_prompt:
        for chosen, rejected in _draw(rng, rewards, pairs[telling], comparisons, flip):
            yield chosen, rejected, None
        return
    prompts = rng.permutation(prompt.max(initial=-1) + 1)
    adapt = np.isin(prompt, prompts[: (len(prompts) + 1) // 2])
    for chosen, rejected in _draw(rng, rewards, pairs[telling & adapt], (comparisons + 1) // 2, flip):
        yield chosen, rejected, "adapt"
    for chosen, rejected in _draw(rng, rewards, pairs[telling & ~adapt], comparisons // 2, 0.0):
        yield chosen, rejected, "test"


def _draw(
    rng: np.random.Generator,
    rewards: NDArray[np.float64],
    pairs: NDArray[np.intp],
    count: int,
    flip: float,
) -> list[tuple[int, int]]:
    """`count` different pairs, the better answer first but in a share `flip` of them."""
    if count > len(pairs):
        raise InputError(
            f"{count} comparisons are more than the {len(pairs)} pairs of answers that differ for a person; "
            "ask for fewer or give more prompts"
        )
    drawn = pairs[rng.choice(len(pairs), size=count, replace=False), :2]  # (count, 2)
    right_is_better = rewards[drawn[:, 0]] < rewards[drawn[:, 1]]
    turned = right_is_better ^ (rng.random(count) < flip)
    drawn[turned] = drawn[turned, ::-1]
    return [(int(chosen), int(rejected)) for chosen, rejected in drawn]


def _checked(poles: Sequence[str]) -> Kind:
    for pole in poles:
        if pole not in POLES:
            raise InputError(f"{pole!r} is not a style pole; choose two of {', '.join(POLES)}")
    if len(poles) != 2 or POLES[poles[0]][0] == POLES[poles[1]][0]:
        raise InputError(
            f"{'+'.join(poles)!r} is not two poles of different attributes; write them like concise,humorous"
        )
    order = list(POLES)
    first, second = sorted(poles, key=order.index)
    return first, second
