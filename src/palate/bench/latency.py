"""What it costs: seconds from an answer to the next question, seconds and memory of a fit."""

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from subprocess import run
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np

from palate.bench.interview import interview
from palate.data import load_people
from palate.encoders import Encoder
from palate.errors import EncoderError
from palate.feedback import Feedback
from palate.rewards import RewardModel, fit
from palate.rewards.posterior import choice_probability

_POOL, _ANSWERS = 10_000, 20
_CHILD = "from palate.bench.latency import fit_in_child; fit_in_child({seed})"


def seconds_per_answer(model: RewardModel, *, seed: int = 0, pool: int = _POOL) -> dict[str, float]:
    """Wall time from one person's answer to their next question, on one core.

    The pairs are drawn with replacement from the model's own, the person from its prior.

    Args:
        model: a fitted model.
        seed: of the draws.
        pool: number of pairs, all scored after each answer.

    Returns:
        `seconds_per_answer` (the median of 20), `seconds_per_answer.p95`, and `seconds_per_answer.cores`: how many
        cores could be used, 1 where threadpoolctl is installed (it comes with scikit-learn).
    """
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(model.pool.v), size=pool)
    v, prompt = model.pool.v[drawn], model.pool.prompt[drawn]
    person = rng.multivariate_normal(model.prior.mean, model.prior.cov)
    label = (rng.random(pool) < choice_probability(v @ person, model.lapse)).astype(np.float64)
    one_core, cores = _one_core()
    seconds = []
    with one_core:
        steps = interview(model.prior, model.lapse, v, prompt, label)
        next(steps)  # the first question follows no answer
        start = perf_counter()
        for _ in islice(steps, _ANSWERS):
            seconds.append(perf_counter() - start)
            start = perf_counter()
    return {
        "seconds_per_answer": float(np.median(seconds)),
        "seconds_per_answer.p95": float(np.quantile(seconds, 0.95)),
        "seconds_per_answer.cores": float(cores),
    }


def _one_core() -> tuple[AbstractContextManager[object], int]:
    try:
        from threadpoolctl import threadpool_limits
    except ModuleNotFoundError:
        return nullcontext(), os.cpu_count() or 1
    return threadpool_limits(1), 1


def timed_fit(load: Callable[[], Encoder], *, seed: int) -> tuple[RewardModel, float]:
    """Fit on the bundled people; the model, and the seconds with loading the encoder."""
    start = perf_counter()
    model = fit(Feedback(comparisons=load_people()), load(), seed=seed)
    return model, perf_counter() - start


def cold_fit(*, seed: int = 0) -> dict[str, float]:
    """Fit on the bundled people in a process of its own with an empty cache: nothing is imported or encoded yet.

    Returns:
        `fit_seconds.cold` from the start of that process to its end, and `fit_peak_memory_mb`, 1 MB = 10⁶ bytes.

    Raises:
        EncoderError: the process failed.
    """
    with TemporaryDirectory(prefix="palate-bench-") as folder:
        start = perf_counter()
        child = run(
            [sys.executable, "-c", _CHILD.format(seed=seed)],
            env=os.environ | {"PALATE_CACHE": folder},
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = perf_counter() - start
    if child.returncode:
        reason = (child.stderr.strip().splitlines() or ["it was killed"])[-1]
        raise EncoderError(f"Fitting with an empty cache failed ({reason}); free some memory, or give --quick")
    return {"fit_seconds.cold": seconds, "fit_peak_memory_mb": float(child.stdout.split()[-1])}


def fit_in_child(seed: int) -> None:
    """What `cold_fit` runs: fit, and print the peak memory."""
    from palate.encoders import load_encoder

    timed_fit(load_encoder, seed=seed)
    print(peak_memory() / 1e6)


def peak_memory() -> float:
    """Most memory that this process ever held, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss: on Linux a new process starts with that of its parent.
        kilobytes = next(line for line in status.read_text("utf-8").splitlines() if line.startswith("VmHWM"))
        return 1024.0 * int(kilobytes.split()[1])
    from resource import RUSAGE_SELF, getrusage

    return float(getrusage(RUSAGE_SELF).ru_maxrss)  # bytes on macOS
