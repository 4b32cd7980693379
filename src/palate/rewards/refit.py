"""Posteriors of any number of people given φ, a batch after the other: memory is that of a batch, not of the people.

People are independent given the base rewards, so a stream of their rows is cut between people and each batch is one
call of `laplace_posterior`, vectorised over its people. Batches are worked on by as many threads as asked for: LAPACK
and NumPy's loops let go of the interpreter's lock.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from palate.errors import InputError
from palate.rewards.beliefs import Belief
from palate.rewards.posterior import Observations, laplace_posterior

BATCH = 20_000
"""People in a batch: large enough that Python's share is small, small enough for the processor's cache."""


def posteriors(
    batches: Iterable[Observations], prior: Belief, lapse: float = 0.0, *, threads: int = 2, tolerance: float = 1e-6
) -> Iterator[Belief]:
    """Everybody's posterior, batch by batch and in order.

    Args:
        batches: rows of some people each; a person's rows all in one. See `in_batches`.
        prior: one prior for all.
        lapse: ε in [0, 0.5).
        threads: batches worked on at once, 1 or more; twice as many are held in memory.
        tolerance: largest Newton step, in prior standard deviations, at which a person counts as converged.

    Yields:
        Beliefs of each batch's people, mean (U, J) and cov (U, J, J).

    Raises:
        InputError: `threads` is less than 1.
    """
    if threads < 1:
        raise InputError(f"threads {threads!r} is less than 1; give 1 or more")
    waiting: deque[Future[Belief]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for batch in batches:
            waiting.append(pool.submit(laplace_posterior, batch, prior, lapse, tolerance=tolerance))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def ray_posteriors(
    batches: Iterable[Observations], prior: Belief, lapse: float = 0.0, *, tolerance: float = 1e-6
) -> Iterator[Belief]:
    """As `posteriors`, on the Ray cluster that `palate.encoders.distributed.connect` has joined.

    Twice as many batches as there are cores are on their way at once; the others are not made before.
    """
    import ray

    from palate.encoders.distributed import cores

    @ray.remote(num_cpus=1)
    def task(batch: Observations) -> Belief:
        return laplace_posterior(batch, prior, lapse, tolerance=tolerance)

    at_once = 2 * cores()
    waiting: deque[ray.ObjectRef[Belief]] = deque()
    for batch in batches:
        waiting.append(task.remote(batch))
        if len(waiting) >= at_once:
            yield ray.get(waiting.popleft())
    while waiting:
        yield ray.get(waiting.popleft())


def in_batches(observations: Observations, size: int = BATCH) -> Iterator[Observations]:
    """Cut rows between people, so many people a batch; who has no rows keeps their place.

    Example:
        >>> rows = Observations.of(np.ones((3, 1)), np.array([0, 2, 2]), n_users=3)
        >>> [(batch.n_users, batch.user.tolist()) for batch in in_batches(rows, 2)]
        [(2, [0]), (1, [0, 0])]
    """
    for first in range(0, observations.n_users, size):
        last = min(first + size, observations.n_users)
        start, stop = np.searchsorted(observations.user, [first, last])
        rows = slice(start, stop)
        yield Observations(
            observations.v[rows],
            observations.label[rows],
            observations.weight[rows],
            observations.user[rows] - first,
            last - first,
        )
