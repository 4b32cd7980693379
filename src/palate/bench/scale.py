"""Posteriors of a thousand to ten million people given φ: seconds and memory, each size in a process of its own.

People, ten choices each between 10,000 answers of rank 8, are drawn inside the stream, a batch at a time: their tables
are never whole in memory, no more than in `palate.rewards.refit`. Drawing them counts in the time.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from subprocess import run as run_process
from time import perf_counter

import numpy as np
from threadpoolctl import threadpool_limits

from palate.bench.latency import peak_memory
from palate.bench.report import Line, Picture, Result, markdown
from palate.errors import InputError
from palate.rewards.beliefs import Gaussian
from palate.rewards.fitting import Stage
from palate.rewards.posterior import Observations, choice_probability
from palate.rewards.refit import BATCH, posteriors

_SIZES, _QUICK_SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000), (1_000, 10_000, 100_000)
_RANK, _CHOICES, _ANSWERS, _LAPSE = 8, 10, 10_000, 0.03
_STEEP_FROM = 100_000  # below, starting up is most of the time
_CHILD = "from palate.bench.scale import in_child; in_child({users}, {seed}, {threads})"


def run(*, quick: bool, seed: int, data: Path | None = None, progress: Stage | None = None) -> Result:
    """Measure every size.

    Args:
        quick: up to 100,000 people.
        seed: of the people.
        data: none is read.
        progress: told of each size.

    Raises:
        InputError: `data` is given, or a size failed, as when memory ran out.
    """
    if data is not None:
        raise InputError(f"The benchmark of scale takes no data, got {str(data)!r}; leave --data out")
    sizes = _QUICK_SIZES if quick else _SIZES
    figures: dict[str, float] = {}
    for number, users in enumerate(sizes):
        if progress:
            progress("Computing posteriors", number, len(sizes))
        figures |= measured(users, seed)
    figures |= {f"slope.{name}": _slope(figures, name, sizes) for name in ("seconds", "peak_memory_mb")}
    return Result("scale", figures, _table(figures, sizes), _picture(sizes))


def measured(users: int, seed: int, threads: int = 2) -> dict[str, float]:
    """Seconds and most memory of so many people's posteriors, in a new process."""
    command = [sys.executable, "-c", _CHILD.format(users=users, seed=seed, threads=threads)]
    child = run_process(command, capture_output=True, text=True, check=False)
    if child.returncode:
        reason = (child.stderr.strip().splitlines() or ["it was killed"])[-1]
        raise InputError(f"{users:,} people could not be measured ({reason}); free some memory, or give --quick")
    seconds, memory = map(float, child.stdout.split())
    return {f"seconds.{users}": seconds, f"peak_memory_mb.{users}": memory}


def in_child(users: int, seed: int, threads: int) -> None:
    """What `measured` runs: print the seconds and the peak memory in MB, 10⁶ bytes."""
    prior = Gaussian(np.zeros(_RANK), np.eye(_RANK))
    done, start = 0, perf_counter()
    with threadpool_limits(1):
        for belief in posteriors(people(users, seed), prior, _LAPSE, threads=threads):
            done += len(belief.mean)
    assert done == users
    print(perf_counter() - start, peak_memory() / 1e6)


def people(users: int, seed: int, batch: int = BATCH) -> Iterator[Observations]:
    """Choices of so many people, drawn a batch at a time."""
    phi = np.random.default_rng(seed).standard_normal((_ANSWERS, _RANK))
    for first in range(0, users, batch):
        rng = np.random.default_rng([seed, first])
        count = min(batch, users - first)
        user = np.repeat(np.arange(count), _CHOICES)
        one, other = rng.integers(_ANSWERS, size=(2, len(user)))
        v = phi[one] - phi[other]
        liked = np.sum(v * rng.standard_normal((count, _RANK))[user], axis=1)
        label = (rng.random(len(user)) < choice_probability(liked, _LAPSE)).astype(np.float64)
        yield Observations(v, label, np.ones(len(user)), user, count)


def _slope(figures: Mapping[str, float], name: str, sizes: tuple[int, ...]) -> float:
    """Of the log over the log of the number of people, by least squares over the large sizes."""
    large = [size for size in sizes if size >= _STEEP_FROM]
    if len(large) < 2:
        large = list(sizes[-2:])
    values = [figures[f"{name}.{size}"] for size in large]
    return float(np.polyfit(np.log(large), np.log(values), 1)[0])


def _table(figures: Mapping[str, float], sizes: tuple[int, ...]) -> str:
    rows = [
        [f"{size:,}", f"{figures[f'seconds.{size}']:.2f}", f"{figures[f'peak_memory_mb.{size}']:.0f}"] for size in sizes
    ]
    return (
        f"# Scale\n\nPosteriors, mean and covariance, of people with {_CHOICES} choices each, rank {_RANK}, φ given, "
        f"two threads, {BATCH:,} people a batch; drawing the people counts. Over the large sizes time grows as the "
        f"{figures['slope.seconds']:.2f}th power of their number, memory as the "
        f"{figures['slope.peak_memory_mb']:.2f}th.\n\n"
        f"{markdown(['people', 'seconds', 'most memory, MB'], rows)}"
    )


def _picture(sizes: tuple[int, ...]) -> Picture:
    return Picture(
        title="Posteriors of many people",
        x_label="people, ten choices each",
        y_label="seconds, and most memory of the process in MB; both axes logarithmic",
        x=sizes,
        lines=[Line("seconds", "seconds", "#d55e00"), Line("peak_memory_mb", "memory, MB", "#0072b2")],
        scale="log",
    )
