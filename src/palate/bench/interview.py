"""One person asked question after question, as a server does it: what `learning_curve` does for many at once."""

from collections.abc import Iterator

import numpy as np

from palate.rewards.posterior import Belief, Floats, Ints, Observations, laplace_posterior
from palate.rewards.queries import DEFAULT_STRATEGY, choose, strategy


def interview(
    prior: Belief, lapse: float, v: Floats, prompt: Ints, label: Floats, query_strategy: str = DEFAULT_STRATEGY
) -> Iterator[tuple[Belief, int]]:
    """Ask what tells the most, learn from the answer, and so on until the pool is empty.

    The work from one answer to the next question is done between two items.

    Args:
        prior: belief before any answer, mean (J,).
        lapse: ε.
        v: (M, J) differences of the pairs that may be asked.
        prompt: (M,) number of each pair's prompt.
        label: (M,) what the person says to each: probability that the first is better.
        query_strategy: one of `queries.STRATEGIES`.

    Yields:
        (belief after t answers, row of the next question) for t = 0, 1, …; −1 once every pair was asked.
    """
    score, rng = strategy(query_strategy), np.random.default_rng(0)
    available = np.ones(len(v), dtype=np.bool_)
    asked = np.empty(0, np.int64)
    belief, last = prior, np.array(-1)
    while True:
        question = int(choose(score(belief, v, lapse, rng), available, prompt, last))
        yield belief, question
        if question < 0:
            return
        available[question], last = False, prompt[question]
        asked = np.append(asked, question)
        said = Observations.of(v[asked], np.zeros(len(asked), np.int64), 1, label[asked])
        belief = laplace_posterior(said, prior, lapse)[0]
