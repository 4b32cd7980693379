"""A start for base rewards by singular value decomposition (PReF §3.2; our departures below).

PReF factorises the matrix of users × pairs, which needs many users to choose on the same pair: the limitation its
authors name. So there are two cases:

1. *Shared pairs*: rank-J factorisation of the sparse ±1 matrix, its missing cells filled by the current estimate
   with soft-thresholded singular values (Mazumder, Hastie, Tibshirani 2010, "soft-impute"). The matrix is never
   dense: sparse residual plus low rank, as a linear operator. Then ridge regression of the pair factors on the
   feature differences.
2. *None shared*: each person's mean whitened feature difference is a noisy view of their weights in feature
   space; the SVD of these views, each counted by √n, gives the directions in which people differ.

In both, what all people share is taken out first: the population's taste is a base reward of its own (see
factorization.py).
"""

from collections.abc import Iterator

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.linalg import LinearOperator, svds

from palate.rewards.posterior import Floats, Ints

_ROUNDS = 30
_CHUNK = 16_384  # rows whose differences are held at once
_SHRINK = 0.1  # of the covariance of differences towards a multiple of the identity, before whitening


def raters_per_pair(left: Ints, right: Ints, user: Ints) -> float:
    """Median number of distinct people who chose on one unordered pair of answers."""
    pairs = np.stack([np.minimum(left, right), np.maximum(left, right), user], axis=1)
    people = np.unique(pairs, axis=0)
    return float(np.median(np.unique(people[:, :2], axis=0, return_counts=True)[1]))


def svd_start(
    z: Floats, chosen: Ints, rejected: Ints, user: Ints, n_users: int, rank: int, vote: Floats | None = None
) -> Floats:
    """Directions in which people differ, most important first.

    Args:
        z: (n, K) coordinates of the answers.
        chosen: (N,) row of `z` preferred in each comparison, or rated.
        rejected: (N,) the other one, or the centre that a rated one is held against.
        user: (N,) who chose, 0 to n_users − 1.
        n_users: U.
        rank: J, how many directions are wanted.
        vote: (N,) in [−1, 1], how much each row speaks for `chosen`; a tie counts nothing. All 1 by default.

    Returns:
        (J', K) with J' ≤ min(rank, n_users, K), scaled so that differences z_a − z_b have unit variance along each;
        fewer where people do not differ in so many ways.
    """
    vote = np.ones(len(user)) if vote is None else vote
    pairs = np.unique(np.sort(np.stack([chosen, rejected], axis=1), axis=1), axis=0)
    if len(pairs) > rank and raters_per_pair(chosen, rejected, user) >= max(rank, 2):
        weights = _from_shared_pairs(z, chosen, rejected, user, n_users, rank, vote)
    else:
        weights = _from_user_means(z, chosen, rejected, user, n_users, rank, vote)
    along = np.concatenate([d @ weights.T for _, d in _differences(z, chosen, rejected)])  # (N, J)
    spread = np.std(along, axis=0)
    size = sum(float(np.sum(d**2)) for _, d in _differences(z, chosen, rejected)) / (len(user) * z.shape[1])
    telling = spread > 1e-6 * np.linalg.norm(weights, axis=1) * np.sqrt(size)
    return np.asarray(weights[telling] / spread[telling, None], np.float64)


def _differences(z: Floats, chosen: Ints, rejected: Ints) -> Iterator[tuple[slice, Floats]]:
    """The (N, K) differences of rows of z, some at a time: all at once they would fill the memory."""
    for first in range(0, len(chosen), _CHUNK):
        rows = slice(first, first + _CHUNK)
        yield rows, z[chosen[rows]] - z[rejected[rows]]


def _from_user_means(
    z: Floats, chosen: Ints, rejected: Ints, user: Ints, n_users: int, rank: int, vote: Floats
) -> Floats:
    """Case 2: SVD of everybody's mean whitened difference."""
    covariance, total = np.zeros((z.shape[1], z.shape[1])), np.zeros((n_users, z.shape[1]))
    shared = np.zeros(z.shape[1])
    for rows, difference in _differences(z, chosen, rejected):
        covariance += difference.T @ difference
        shape = (n_users, len(difference))
        total += csr_array((vote[rows], (user[rows], np.arange(len(difference)))), shape=shape) @ difference
        shared += vote[rows] @ difference
    covariance /= len(user)
    level = np.trace(covariance) / len(covariance)
    values, vectors = np.linalg.eigh((1 - _SHRINK) * covariance + _SHRINK * level * np.eye(len(covariance)))
    whiten = (vectors / np.sqrt(np.maximum(values, 1e-12))) @ vectors.T
    count = np.bincount(user, np.abs(vote), n_users)
    shared /= max(np.abs(vote).sum(), 1e-12)
    views = (total - count[:, None] * shared) @ whiten / np.sqrt(np.maximum(count, 1e-12))[:, None]
    # Right singular vectors, by the smaller of the two Gram matrices: there are more people than features.
    directions = np.linalg.eigh(views.T @ views)[1].T[::-1][: min(rank, n_users)]
    return np.asarray((_signs(directions)[:, None] * directions) @ whiten, np.float64)


def _from_shared_pairs(
    z: Floats, chosen: Ints, rejected: Ints, user: Ints, n_users: int, rank: int, vote: Floats
) -> Floats:
    """Case 1: soft-impute of the users × pairs matrix, then ridge of its pair factors on feature differences."""
    low, high = np.minimum(chosen, rejected), np.maximum(chosen, rejected)
    pairs, column = np.unique(np.stack([low, high], axis=1), axis=0, return_inverse=True)
    shape = (n_users, len(pairs))
    sign = np.where(chosen == low, vote, -vote)
    # Someone who answered one pair twice counts by the mean of the two.
    total = csr_array((sign, (user, column.ravel())), shape=shape)
    count = csr_array((np.ones(len(sign)), (user, column.ravel())), shape=shape)
    said = total.copy()
    said.data = total.data / count.data
    raters = np.asarray((count > 0).sum(axis=0), np.float64)
    said.data -= (said.sum(axis=0) / raters)[said.indices]
    factors = _soft_impute(said, min(rank, min(shape) - 1))
    d = z[pairs[:, 0]] - z[pairs[:, 1]]
    gram = d.T @ (raters[:, None] * d)
    ridge = np.trace(gram) / len(gram)
    return np.asarray(
        np.linalg.solve(gram + ridge * np.eye(len(gram)), d.T @ (raters[:, None] * factors)).T, np.float64
    )


def _soft_impute(said: csr_array, rank: int) -> Floats:
    """Pair factors (pairs, rank) of the completed matrix; the threshold is half the first J-th singular value."""
    cells = said.tocoo()  # a 0 that was said stays, unlike with nonzero()
    (rows, columns), values = cells.coords, np.asarray(cells.data, np.float64)
    if not values.any():  # all agree on every pair
        return np.zeros((said.shape[1], rank))
    u, s, vt = np.zeros((said.shape[0], 1)), np.zeros(1), np.zeros((1, said.shape[1]))
    threshold: float | None = None
    for _ in range(_ROUNDS):
        estimate = np.sum(u[rows] * s * vt.T[columns], axis=1)
        residual = csr_array((values - estimate, (rows, columns)), shape=said.shape)
        new_u, new_s, new_vt = _svds(residual, u * s, vt, rank)
        if threshold is None:
            threshold = 0.5 * float(new_s[-1])
        shrunk = np.maximum(new_s - threshold, 0.0)
        moved = np.linalg.norm(shrunk - np.resize(s, len(shrunk))) / np.maximum(np.linalg.norm(shrunk), 1e-12)
        u, s, vt = new_u, shrunk, new_vt
        if moved < 1e-4:
            break
    return np.asarray(vt.T * np.sqrt(s), np.float64)


def _svds(residual: csr_array, left: Floats, right: Floats, rank: int) -> tuple[Floats, Floats, Floats]:
    """Leading singular triplets of residual + left @ right, without forming the sum."""
    operator = LinearOperator(
        residual.shape,
        matvec=lambda x: residual @ x + left @ (right @ x),
        rmatvec=lambda x: residual.T @ x + right.T @ (left.T @ x),
        dtype=np.float64,
    )
    # A fixed start vector: ARPACK's own is random. Not ones: the residual's columns sum to zero.
    u, s, vt = svds(operator, k=rank, v0=np.random.default_rng(0).standard_normal(min(residual.shape)))
    order = np.argsort(s)[::-1]
    sign = _signs(vt[order])
    return sign * u[:, order], s[order], sign[:, None] * vt[order]


def _signs(rows: Floats) -> Floats:
    """Signs that make the largest entry of each row positive: that of a singular vector is arbitrary."""
    return np.asarray(np.where(rows[np.arange(len(rows)), np.abs(rows).argmax(axis=1)] < 0, -1.0, 1.0), np.float64)
