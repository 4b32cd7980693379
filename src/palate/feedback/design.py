"""Which pairs to ask whom: every pair to as many people, every person as many pairs, and everybody linked.

PReF's authors (arXiv 2503.06358) call for data in which people overlap more: base rewards are learned from how people
differ on the *same* pair. So each pair is given to K people here, and people are put together so that any two share
about as many pairs as any other two, as in a balanced incomplete block design (Bose 1939). Those exist for few numbers
only: this one is greedy, exact in what each person and each pair get, and as near to balance as it comes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from palate.errors import InputError
from palate.feedback.records import Text, as_text

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Candidates:
    """A prompt and the completions that may be compared for it: two or more, no two the same."""

    prompt: Text
    completions: Sequence[Text]


@dataclass(frozen=True)
class Pair:
    """Two completions to a prompt: the numbers of the prompt's `Candidates` and of its two completions."""

    prompt: int
    one: int
    other: int


@dataclass(frozen=True)
class Design:
    """Who is asked about which pair.

    Attributes:
        pairs: M pairs.
        people: (M, K) numbers of the people who are asked about each; no number twice in a row.
        count: P, how many people there are.
    """

    pairs: Sequence[Pair]
    people: Ints
    count: int

    def answers(self) -> Ints:
        """(P,) how many pairs each person is asked about: all the same, or one less."""
        return np.bincount(self.people.ravel(), minlength=self.count)

    def shared(self) -> Ints:
        """(P, P) how many pairs two people are both asked about; their own number on the diagonal."""
        asked = csr_array(
            (
                np.ones(self.people.size, np.int64),
                (np.repeat(np.arange(len(self.people)), self.people.shape[1]), self.people.ravel()),
            ),
            shape=(len(self.people), self.count),
        )
        return np.asarray((asked.T @ asked).toarray(), np.int64)

    def connected(self) -> bool:
        """Whether any two people are linked by a chain of people who share pairs."""
        return int(connected_components(self.shared(), directed=False, return_labels=False)) == 1


def design(
    candidates: Sequence[Candidates],
    people: int,
    answers: int,
    overlap: int,
    *,
    balance_length: bool = False,
    seed: int = 0,
) -> Design:
    """Choose pairs, and who is asked about each.

    There are ⌊P·n / K⌋ pairs, each asked of exactly K people; each person is asked about n of them, or n − 1 where the
    numbers do not divide.

    Args:
        candidates: What may be asked.
        people: P, at least 2.
        answers: n, at most so many a person.
        overlap: K people a pair, 2 to P.
        balance_length: Of each prompt's pairs take those nearest in length, so that length says little of the choice.
        seed: Same seed, same design.

    Raises:
        InputError: The numbers do not fit one another, or there are too few pairs.

    Example:
        >>> made = design([Candidates("Hi", ["Hello!", "What?", "Hey."])], people=3, answers=2, overlap=2)
        >>> made.answers().tolist(), made.people.shape, made.connected()
        ([2, 2, 2], (3, 2), True)
    """
    if not 2 <= overlap <= people:
        raise InputError(
            f"Overlap {overlap!r} is not in 2 to {people}, the number of people; give each pair to so many"
        )
    needed = people * answers // overlap
    if answers < 1 or needed * (overlap - 1) < people - 1:
        raise InputError(
            f"With {answers} answers each and an overlap of {overlap}, {people} people cannot all be linked; raise the "
            "answers or the overlap"
        )
    rng = np.random.default_rng(seed)
    pairs = _pairs(candidates, needed, balance_length, rng)
    return Design(pairs, _assign(len(pairs), people, overlap, rng), people)


def _pairs(candidates: Sequence[Candidates], needed: int, balance_length: bool, rng: np.random.Generator) -> list[Pair]:
    """As many pairs, in turn one of each prompt, prompts and pairs in random order."""
    queues = []
    for i in rng.permutation(len(candidates)):
        completions = candidates[i].completions
        pairs = [Pair(int(i), one, other) for one, other in combinations(range(len(completions)), 2)]
        mixed = [pairs[j] for j in rng.permutation(len(pairs))]
        size = [np.log(len(as_text(text))) for text in completions]
        queues.append(sorted(mixed, key=lambda p: abs(size[p.one] - size[p.other])) if balance_length else mixed)
    available = sum(map(len, queues))
    if available < needed:
        raise InputError(
            f"The candidates make {available} pairs, fewer than the {needed} that these people, answers and overlap "
            "take; give more candidates, or raise the overlap"
        )
    rounds = max(map(len, queues))
    in_turn = [queue[i] for i in range(rounds) for queue in queues if i < len(queue)][:needed]
    return [in_turn[i] for i in rng.permutation(needed)]


def _assign(pairs: int, people: int, overlap: int, rng: np.random.Generator) -> Ints:
    """(M, K) people for each pair: of those asked least, who shares the fewest pairs with those already on it."""
    shared = np.zeros((people, people), np.int64)
    load = np.zeros(people, np.int64)
    group = np.arange(people)  # people linked so far have one number
    chosen = np.empty((pairs, overlap), np.int64)
    for row in chosen:
        cost, chance = np.zeros(people), rng.random(people)
        for place in range(overlap):
            # Loads first: nobody is ever two ahead. Who is on this pair already has an infinite cost.
            best = int(np.lexsort((chance, cost, load + np.where(np.isinf(cost), pairs, 0)))[0])
            row[place] = best
            # Half a pair for who is linked already: others come first, until all are.
            cost += shared[best] + 0.5 * (group == group[best])
            cost[best] = np.inf
        load[row] += 1
        group[np.isin(group, group[row])] = group[row[0]]
        shared[np.ix_(row, row)] += 1
    return chosen
