"""People: how many share a pair, and whose answers cannot be told from coin tosses.

Three kinds of evidence say how well a person's answers hang together, each with what a coin would get:

1. *Repeats*: the same pair, asked again, gets the same answer (½).
2. *Triads*: of three answers of a prompt, compared each with each, one is best and one is worst (¾).
3. *Prediction*: a choice follows from the person's other choices and from other people's (½): ridge regression, leave
   one out, on how often the commonest words and marks stand in the chosen and in the rejected completion (the
   function words of stylometry: Burrows 2002), on their lengths, and on how often other people chose each.

A taste that nobody shares is no noise, so the prediction is from a person's own answers first. A person is noise
whose answers are not above a coin in any of the three (binomial test, 5 %), and who is likelier a coin than a person: a
mixture of coins (binomial) and persons (beta-binomial, for people differ in how firm they are), at a false discovery
rate of 5 % (the mean posterior of those flagged: Efron 2007). Where coins and persons explain people hardly better than
persons alone, nobody is. A test against other people would be masked by the noise itself, which widens what passes for
people.
"""

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import expit
from scipy.stats import betabinom, binom

from palate.doctor.findings import ENOUGH, Finding
from palate.doctor.similar import Ints
from palate.doctor.table import Table

Floats = NDArray[np.float64]

_ABOVE_CHANCE = 0.05
_FALSE_DISCOVERIES = 0.05
_FEW = 0.05  # share of people who are coins, before anything is known of them
_TELLING = 0.15  # of the way from a coin to certainty that people must be, for a coin to be unlike them
_BETTER = 3.0  # nats by which coins and persons must explain people better than persons alone
_ROUNDS = 50
_WORDS = 200  # commonest words and marks
_RIDGE = 3.0
_ROWS = 200  # of one person at most: their first
_CELLS = 8_000_000  # of the kernels inverted at once
_TOKEN = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


def raters(table: Table) -> dict[str, float]:
    """How many people chose on one unordered pair of completions to one prompt.

    Returns:
        `raters_per_pair`, the median, and `shared_pairs`, the share of pairs with two or more; empty without rows.
    """
    if not len(table.user):
        return {}
    pairs = np.stack([table.prompt, table.chosen, table.rejected, table.user], axis=1)
    pairs[:, 1:3].sort(axis=1)
    people = np.unique(pairs, axis=0)
    count = np.unique(people[:, :3], axis=0, return_counts=True)[1]
    return {"raters_per_pair": float(np.median(count)), "shared_pairs": round(float(np.mean(count >= 2)), 4)}


@dataclass(frozen=True)
class Evidence:
    """How well each of U people's answers hang together, by one kind of evidence.

    Attributes:
        hits: (U,) how many of their answers agree with what is expected of them.
        total: (U,) of how many.
        chance: What a coin would get.
    """

    hits: Ints
    total: Ints
    chance: float

    @property
    def judged(self) -> NDArray[np.bool_]:
        """(U,) who has enough answers."""
        return self.total >= ENOUGH

    @property
    def share(self) -> float:
        """Agreement of all who are judged."""
        return float(self.hits[self.judged].sum() / max(self.total[self.judged].sum(), 1))

    def above_chance(self) -> NDArray[np.bool_]:
        """(U,) who is above a coin."""
        return np.asarray(self.judged & (binom.sf(self.hits - 1, self.total, self.chance) < _ABOVE_CHANCE), bool)

    def log_likelihoods(self, real: Floats) -> tuple[Floats, Floats]:
        """(U,) of each as a coin, and as a person like the others; 0 for who is not judged.

        Args:
            real: (U,) how likely each is no coin, to learn from them what persons are like.
        """
        coin, person = np.zeros((2, len(self.total)))
        who = self.judged
        hits, total = self.hits[who], self.total[who]
        mean, concentration = _beta(hits, total, real[who])
        coin[who] = binom.logpmf(hits, total, self.chance)
        if mean > self.chance + _TELLING * (1 - self.chance):
            person[who] = betabinom.logpmf(hits, total, mean * concentration, (1 - mean) * concentration)
        else:
            person[who] = coin[who]  # people are so near a coin that nobody can be told from it
        return coin, person


def _beta(hits: Ints, total: Ints, weight: Floats) -> tuple[float, float]:
    """Mean and concentration of people's true shares, by weighted moments; one imagined agreement and one not added."""
    mean = float((weight @ hits + 1) / (weight @ total + 2))
    chance = mean * (1 - mean)
    spread = float(np.average((hits / total - mean) ** 2, weights=weight + 1e-12))
    by_counting = float(np.average(1 / total, weights=weight + 1e-12))
    between = (spread - chance * by_counting) / (1 - by_counting)
    return mean, float(np.clip(chance / max(between, 1e-9) - 1, 2.0, 1e6))


def repeats(table: Table) -> Evidence:
    """Pairs of answers of one person on one pair of completions."""
    rows = np.stack([table.user, table.prompt, table.chosen, table.rejected], axis=1)[table.decided]
    turned = rows[:, 2] > rows[:, 3]
    rows[turned, 2:] = rows[turned, :1:-1]
    pair, place = np.unique(rows, axis=0, return_inverse=True)
    place = place.reshape(-1)
    one, other = (np.bincount(place[way], minlength=len(pair)) for way in (turned, ~turned))
    hits, total = (n * (n - 1) // 2 for n in (np.stack([one, other]), one + other))
    users = len(table.users)
    return Evidence(_sum(pair[:, 0], hits.sum(axis=0), users), _sum(pair[:, 0], total, users), 0.5)


def triads(table: Table) -> Evidence:
    """Three completions to a prompt, compared each with each by one person: ranked, or in a circle."""
    rows = table.decided
    size = len(table.texts)
    nodes = np.stack([table.user, table.prompt], axis=1)[rows]
    group = np.unique(nodes, axis=0, return_inverse=True)[1].reshape(-1) if len(nodes) else np.empty(0, np.int64)
    keys = group * size + np.stack([table.chosen[rows], table.rejected[rows]])
    node, ends = np.unique(keys, return_inverse=True)
    best, worst = ends.reshape(2, -1)
    who = np.zeros(len(node), np.int64)
    who[best], who[worst] = table.user[rows], table.user[rows]
    better = csr_array((np.ones(len(best)), (best, worst)), shape=(len(node), len(node)))
    better.data[:] = 1  # a pair chosen twice is one edge
    better = better - better.multiply(better.T)  # and one chosen both ways none
    two_steps = better @ better
    ranked = np.asarray(two_steps.multiply(better).sum(axis=1)).ravel()
    circles = np.asarray(two_steps.multiply(better.T).sum(axis=1)).ravel() / 3
    users = len(table.users)
    hits, missed = _sum(who, ranked, users), _sum(who, circles, users)
    return Evidence(hits, hits + missed, 0.75)


def _sum(who: Ints, what: NDArray[np.float64] | Ints, users: int) -> Ints:
    return np.rint(np.bincount(who, what, users)).astype(np.int64)


def predictions(table: Table) -> Evidence:
    """Choices that follow from the person's other choices and from other people's; see the module's text."""
    rows = table.sample
    user = table.user[rows]
    order = np.argsort(user, kind="stable")
    rows, user = rows[order], user[order]
    place = np.arange(len(user)) - np.searchsorted(user, user)
    rows, user, place = (column[place < _ROWS] for column in (rows, user, place))
    users = len(table.users)
    total = np.bincount(user, minlength=users)
    if not (total >= ENOUGH).any():
        return Evidence(np.zeros(users, np.int64), total, 0.5)
    v = _differences(table, rows)
    hits = np.zeros(users)
    ranked = np.argsort(total, kind="stable")
    ranked = ranked[total[ranked] >= ENOUGH]
    while len(ranked):  # by how many rows they have, so that a batch has little padding
        longest = total[ranked[-1]]
        ranked, batch = np.split(ranked, [-min(len(ranked), max(1, int(_CELLS // longest**2)))])
        number = np.full(users, -1)
        number[batch] = np.arange(len(batch))
        mine = number[user] >= 0
        padded = np.zeros((len(batch), longest, v.shape[1]))
        padded[number[user[mine]], place[mine]] = v[mine]
        margin = _leave_one_out(padded)
        right = (np.sign(margin) + 1) / 2 * (np.arange(longest) < total[batch][:, None])
        hits[batch] = right.sum(axis=1)
    return Evidence(np.floor(hits).astype(np.int64), total, 0.5)


def _leave_one_out(v: Floats) -> Floats:
    """(U, T) ridge prediction of "the chosen one is better" for each row, from the person's other rows; v (U, T, D)."""
    kernel = v @ v.transpose(0, 2, 1)
    eye = np.eye(v.shape[1])
    hat = np.linalg.solve(kernel + _RIDGE * eye, kernel)  # (U, T, T), symmetric
    own = np.einsum("utt->ut", hat)
    real = np.any(v != 0, axis=2)
    return np.asarray(((hat @ real[..., None].astype(float))[..., 0] - own) / (1 - own), np.float64)


def _differences(table: Table, rows: Ints) -> Floats:
    """(N, D) chosen minus rejected, in units of their own size: words and marks, length, other people's choices."""
    chosen, rejected = table.chosen[rows], table.rejected[rows]
    texts, place = np.unique(np.stack([chosen, rejected]), return_inverse=True)
    place = place.reshape(2, -1)
    counts = [Counter(_TOKEN.findall(table.texts[i].casefold())) for i in texts]
    in_texts = Counter(word for count in counts for word in count)
    # By name where equally common, whatever the order of rows.
    common = sorted(in_texts, key=lambda word: (-in_texts[word], word))[:_WORDS]
    column = {word: i for i, word in enumerate(common)}
    x = np.zeros((len(texts), len(common) + 1))
    for i, count in enumerate(counts):
        size = max(sum(count.values()), 1)
        x[i, -1] = np.log(size)
        for word, number in count.items():
            if (j := column.get(word)) is not None:
                x[i, j] = np.sqrt(number / size)
    spread = x.std(axis=0)
    x[:, spread > 0] /= spread[spread > 0]
    x[:, -1] *= 3.0  # the one column of its kind
    v = x[place[0]] - x[place[1]]
    others = _others_choices(table, rows)
    v = np.column_stack([v, 3.0 * others / max(others.std(), 1e-9)])
    return np.asarray(v / max(float(np.sqrt(np.mean(np.sum(v**2, axis=1)))), 1e-9), np.float64)


def _others_choices(table: Table, rows: Ints) -> Floats:
    """(N,) how much oftener other people chose the chosen completion than the rejected one; 0 where none did."""
    keys = table.prompt * len(table.texts) + np.stack([table.chosen, table.rejected])  # (2, all rows)
    _, answer = np.unique(keys[:, table.decided], return_inverse=True)
    answer = answer.reshape(2, -1)
    user = table.user[table.decided]
    n = int(answer.max()) + 1
    won, shown = np.bincount(answer[0], minlength=n), np.bincount(answer.ravel(), minlength=n)
    _, own = np.unique(user * n + answer, return_inverse=True)
    own = own.reshape(2, -1)
    own_won, own_shown = np.bincount(own[0], minlength=own.max() + 1), np.bincount(own.ravel())
    share = (won[answer] - own_won[own] + 1) / (shown[answer] - own_shown[own] + 2)
    at = np.zeros(len(table.user), np.int64)
    at[table.decided] = np.arange(len(user))
    return np.asarray((share[0] - share[1])[at[rows]], np.float64)


def noise(table: Table) -> tuple[list[str], dict[str, float]]:
    """Whose answers cannot be told from coin tosses, and the figures behind.

    Returns:
        Names, and `judged_users`, `noise_users`, and agreement by each kind of evidence that anyone has enough of.
    """
    kinds = {"repeats": repeats(table), "triads": triads(table), "predictions": predictions(table)}
    kinds = {name: evidence for name, evidence in kinds.items() if evidence.judged.any()}
    if not kinds:
        return [], {}
    judged = np.any([evidence.judged for evidence in kinds.values()], axis=0)
    above = np.any([evidence.above_chance() for evidence in kinds.values()], axis=0)
    flagged = _coins(list(kinds.values()), judged, above)
    names = [table.users[i] for i in np.flatnonzero(flagged & ~above)]
    figures = {f"agreement_{name}": round(evidence.share, 4) for name, evidence in kinds.items()}
    return names, {"judged_users": float(judged.sum()), "noise_users": float(len(names)), **figures}


def _coins(kinds: list[Evidence], judged: NDArray[np.bool_], above: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(U,) who is a coin, by expectation-maximisation over a mixture of coins and persons."""
    coin = np.where(above, _FEW, 1 - _FEW)  # else it settles where persons are so unlike that coins are among them
    for _ in range(_ROUNDS):
        share = (coin[judged].sum() + 1) / (judged.sum() + 1 / _FEW)  # one coin in 1 / _FEW imagined people
        as_coin, as_person = np.sum([evidence.log_likelihoods(1 - coin) for evidence in kinds], axis=0)
        coin = np.asarray(expit(as_coin - as_person + np.log(share / (1 - share))), np.float64)
    mixed = np.logaddexp(as_coin + np.log(share), as_person + np.log1p(-share))
    persons = np.sum([evidence.log_likelihoods(np.ones(len(judged))) for evidence in kinds], axis=0)[1]
    if (mixed - persons).sum() < _BETTER:
        return np.zeros(len(judged), bool)
    order = np.argsort(-np.where(judged, coin, -1.0), kind="stable")
    wrongly = np.cumsum(1 - coin[order]) / np.arange(1, len(order) + 1)
    flagged = np.zeros(len(judged), bool)
    flagged[order[wrongly <= _FALSE_DISCOVERIES]] = True
    return flagged & judged


def noisy(names: list[str], figures: dict[str, float]) -> Finding | None:
    """The finding that goes with what `noise` gave."""
    if not names:
        return None
    first = ", ".join(sorted(names)[:3])
    message = (
        f"Users whose answers cannot be told from coin tosses: {len(names)} of {figures['judged_users']:.0f} judged "
        f"(such as {first}); look at their answers and leave them out if they did not read."
    )
    return Finding("noise-users", "warning", message, len(names))
