"""Fine-tuning for four domains of taste: TraceBias against PPO, DPO, GRPO, RLOO and a judging model.

The small policy of `palate bench policy` answers the same 24 prompts again and again, is scored by a reward that was
learned from people's choices about other prompts, and is judged by probes that the reward does not know. All methods
have the same model, prompts, number of scored completions and passes over them, and learning rates from the same grid,
each its best by the reward it was trained on. What they reach is compared at the same divergence from the untouched
policy. Every cell is kept as soon as it is measured, and is not measured again.
"""

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from palate.bench.cells import DOMAINS, Cell, at_kl, measure, settings_of, world
from palate.bench.intervals import cluster_interval
from palate.bench.report import Points, Result, markdown
from palate.encoders.cache import default_cache_dir
from palate.rewards.fitting import Stage
from palate.training.methods import METHODS, trainer_of
from palate.training.rewards import TasteReward

RATES = (3e-4, 1e-3, 3e-3)
"""The grid of learning rates that each method chooses from."""
_WIDE = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
"""Three decades, for stability."""
_SEEDS = (0, 1, 2)
_KL = 1.5
"""Nats an answer, at which methods are compared: to write but one of the twelve styles of a prompt costs 2.5."""
_JUDGED = ("tracebias", "ppo", "dpo", "grpo")
_NOISE = (0.5, 1.0, 2.0)
_ABLATIONS: dict[str, tuple[tuple[str, Any], ...]] = {
    "dam_mean": (("averaging", "dam-mean"),),
    "clip": (("averaging", "clip"),),
    "neither": (("averaging", "none"),),
    "even_lengths": (("random_lengths", False),),
    "gamma_0": (("gamma", 0.0),),
    "gamma_1": (("gamma", 1.0),),
    "eta_0": (("eta", 0.0),),
    "eta_1": (("eta", 1.0),),
}
_FIRST = next(iter(DOMAINS))


def run(*, quick: bool, seed: int, data: Path | None = None, progress: Stage | None = None) -> Result:
    """Train and judge all cells that were not measured before.

    Args:
        quick: one domain, three methods, one seed, one learning rate.
        seed: of the policy and the reward.
        data: folder that measured cells are kept in; one in the cache by default.
        progress: told of each stage.
    """
    told = progress or (lambda stage, done, total: None)
    folder = data or default_cache_dir() / "training"
    told("Making what all cells share", 0, 1)
    world(seed)
    if quick:
        cells = [Cell(_FIRST, method, 1e-3) for method in ("tracebias", "ppo", "dpo")]
        found = _measure(cells, folder, seed, told)
        figures = _compared(found, dict.fromkeys(("tracebias", "ppo", "dpo"), 1e-3))
    else:
        grid = [Cell(_FIRST, method, rate) for method in METHODS for rate in RATES]
        best = _best(_measure(grid, folder, seed, told))
        found = _measure(list(dict.fromkeys([*grid, *_cells(best)])), folder, seed, told)
        figures = _compared(found, best) | _ablated(found, best) | _stable(found) | _noised(found, best)
        figures |= {f"rate.{method}": rate for method, rate in best.items()}
    figures |= _step_times(seed, told)
    return Result("training", figures, _table(figures), more={"curves": _curves(found, quick)} | _stability(found))


def _cells(best: dict[str, float]) -> Iterator[Cell]:
    for domain in DOMAINS:
        for seed in _SEEDS:
            yield from (Cell(domain, method, rate, seed) for method, rate in best.items())
        yield from (Cell(domain, method, best[method], judged=True) for method in _JUDGED)
    mine = best["tracebias"]
    yield from (Cell(_FIRST, "tracebias", mine, seed, more=more) for more in _ABLATIONS.values() for seed in _SEEDS)
    for rate in _WIDE:
        yield from (Cell(_FIRST, "tracebias", rate, more=more) for more in _AVERAGED.values())
    for noise in _NOISE:
        yield from (Cell(_FIRST, method, best[method], noise=noise) for method in ("tracebias", "ppo", "grpo"))


_AVERAGED = {"dam": (), "clip": _ABLATIONS["clip"], "neither": _ABLATIONS["neither"]}

Measured = dict[Cell, dict[str, Any]]


def _measure(cells: Sequence[Cell], folder: Path, seed: int, told: Stage) -> Measured:
    """Each cell on a thread of its own, as many at once as there are cores."""
    found: Measured = {}
    cores = max(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 1)
    with ProcessPoolExecutor(min(cores, len(cells)), get_context("spawn"), _on_one_thread) as pool:
        futures = {pool.submit(measure, cell, folder, seed): cell for cell in cells}
        for done, future in enumerate(as_completed(futures)):
            found[futures[future]] = future.result()
            told("Training policies", done + 1, len(cells))
    return found


def _on_one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _best(found: Measured) -> dict[str, float]:
    """The learning rate of each method with the most of what it was trained on, at the divergence of the comparison."""
    reached: dict[str, dict[float, float]] = {}
    for cell, one in found.items():
        reached.setdefault(cell.method, {})[cell.rate] = at_kl(one["curve"], _KL, "reward")
    return {method: max(rates, key=rates.__getitem__) for method, rates in reached.items()}


@dataclass(frozen=True)
class _Runs:
    """One figure of all runs of a method, by domain."""

    values: np.ndarray
    domains: np.ndarray

    def figures(self, name: str) -> dict[str, float]:
        low, high = cluster_interval(self.values, self.domains, seed=0)
        return {name: float(self.values.mean()), f"{name}.low": low, f"{name}.high": high}


def _runs(found: Measured, method: str, rate: float, name: str, judged: bool = False) -> dict[tuple[str, int], float]:
    return {
        (cell.domain, cell.seed): at_kl(one["curve"], _KL, name)
        for cell, one in found.items()
        if (cell.method, cell.rate, cell.judged, cell.noise, cell.more) == (method, rate, judged, 0.0, ())
    }


def _of(runs: dict[tuple[str, int], float], less: dict[tuple[str, int], float] | None = None) -> _Runs:
    keys = [key for key in runs if less is None or key in less]
    values = [runs[key] - (less[key] if less else 0.0) for key in keys]
    places = {domain: place for place, domain in enumerate(DOMAINS)}
    # Of a single domain the seeds are what is drawn.
    single = len({domain for domain, _ in keys}) == 1
    return _Runs(np.array(values), np.array([seed if single else places[domain] for domain, seed in keys]))


def _compared(found: Measured, best: dict[str, float]) -> dict[str, float]:
    figures: dict[str, float] = {}
    scores = {method: _runs(found, method, rate, "expected") for method, rate in best.items()}
    for method, rate in best.items():
        figures |= _of(scores[method]).figures(f"judged.{method}")
        for name in ("score", "mass", "win", "reward", "quality", "whole", "characters", "perplexity", "kl"):
            figures[f"{name}.{method}"] = float(_of(_runs(found, method, rate, name)).values.mean())
        if method != "tracebias":
            figures |= _of(scores["tracebias"], scores[method]).figures(f"judged.tracebias_minus_{method}")
        same = [one for cell, one in found.items() if (cell.method, cell.rate) == (method, rate)]
        figures[f"seconds.{method}"] = float(np.mean([one["seconds"] for one in same]))
        figures[f"reward_calls.{method}"] = float(np.mean([one["reward_calls"] for one in same]))
    start = [one["curve"][0] for one in found.values()]
    for name in ("expected", "score", "mass", "reward", "whole", "characters", "perplexity"):
        figures[f"untouched.{name}"] = float(np.mean([point[name] for point in start]))
    judged = {m: _runs(found, m, best[m], "expected", judged=True) for m in _JUDGED if m in best}
    judged = {method: runs for method, runs in judged.items() if runs}
    for method, runs in judged.items():
        figures |= _of(runs).figures(f"judged.rlaif_{method}")
    if judged:
        name = max(judged, key=lambda method: float(_of(judged[method]).values.mean()))
        figures |= _of(judged[name]).figures("judged.rlaif")
        figures |= _of(scores["tracebias"], judged[name]).figures("judged.tracebias_minus_rlaif")
    return figures


def _ablated(found: Measured, best: dict[str, float]) -> dict[str, float]:
    figures: dict[str, float] = {}
    rate = best["tracebias"]
    whole = {k: v for k, v in _runs(found, "tracebias", rate, "expected").items() if k[0] == _FIRST}
    for name, more in _ABLATIONS.items():
        runs = {
            (cell.domain, cell.seed): at_kl(one["curve"], _KL, "expected")
            for cell, one in found.items()
            if (cell.method, cell.rate, cell.noise, cell.more) == ("tracebias", rate, 0.0, more)
        }
        if runs:
            figures |= _of(runs).figures(f"ablated.{name}")
            figures |= _of(whole, runs).figures(f"ablated.tracebias_minus_{name}")
    return figures


def _stable(found: Measured) -> dict[str, float]:
    """The judged score after the last round, by learning rate and averaging."""
    figures = {}
    for name, more in _AVERAGED.items():
        for cell, one in found.items():
            if (cell.method, cell.domain, cell.seed, cell.noise, cell.more, cell.judged) == (
                "tracebias", _FIRST, 0, 0.0, more, False,
            ):  # fmt: skip
                figures[f"stability.{name}.{cell.rate:g}"] = one["curve"][-1]["score"]
        # A rate is good whose last score keeps nine tenths of the most that any reached over the untouched policy.
    start = float(np.mean([one["curve"][0]["score"] for cell, one in found.items() if cell.domain == _FIRST]))
    most = max((value for key, value in figures.items()), default=start) - start
    for name in _AVERAGED:
        good = [rate for rate in _WIDE if figures.get(f"stability.{name}.{rate:g}", -np.inf) >= start + 0.9 * most]
        figures[f"stability.{name}.good_rates"] = float(len(good))
    return figures


def _noised(found: Measured, best: dict[str, float]) -> dict[str, float]:
    return {
        f"noise.{cell.method}.{cell.noise:g}": at_kl(one["curve"], _KL, "expected")
        for cell, one in found.items()
        if cell.noise and cell.rate == best.get(cell.method)
    }


def _step_times(seed: int, told: Stage, turns: int = 4) -> dict[str, float]:
    """Seconds of a round, generation and scoring included, by turns."""
    here = world(seed)
    seconds: dict[str, list[float]] = {"tracebias": [], "grpo": []}
    for turn in range(turns):
        for number, method in enumerate(seconds):
            told("Timing", turn * 2 + number, turns * 2)
            settings = replace(settings_of(Cell(_FIRST, method, 1e-6, rounds=2)), seed=turn)
            reward = TasteReward(here.model)
            trainer = trainer_of(method, here.policy(), here.prompts, reward, settings, Path("unused"))
            begun = time.perf_counter()
            trainer.train()
            seconds[method].append((time.perf_counter() - begun) / settings.rounds)
    ratios = np.array(seconds["tracebias"]) / np.array(seconds["grpo"])
    return {
        "seconds_per_round.tracebias": float(np.median(seconds["tracebias"])),
        "seconds_per_round.grpo": float(np.median(seconds["grpo"])),
        "step_time_ratio": float(np.median(ratios[1:])),  # the first warms up
    }


def _table(figures: dict[str, float]) -> str:
    methods = [m for m in METHODS if f"judged.{m}" in figures]
    rows = [["untouched policy", f"{figures['untouched.expected']:.1f}", "", "0.500", "0.0", "0.500",
             f"{figures['untouched.whole']:.3f}", f"{figures['untouched.characters']:.0f}", "", ""]]  # fmt: skip
    for method in methods:
        rows.append(
            [
                method,
                _interval(figures, f"judged.{method}", ".1f"),
                "" if method == "tracebias" else _interval(figures, f"judged.tracebias_minus_{method}", "+.1f"),
                f"{figures[f'win.{method}']:.3f}",
                f"{figures[f'kl.{method}']:.1f}",
                f"{figures[f'quality.{method}']:.3f}",
                f"{figures[f'whole.{method}']:.3f}",
                f"{figures[f'characters.{method}']:.0f}",
                f"{figures[f'seconds.{method}']:.0f}",
                f"{figures[f'reward_calls.{method}']:.0f}",
            ]
        )
    header = ["method", "judged, of 100", "TraceBias less it", "win rate", "KL", "quality", "whole", "characters",
              "seconds", "scored"]  # fmt: skip
    parts = [markdown(header, rows)]
    for title, prefix in (
        ("TraceBias but", "ablated."),
        ("noise in scores", "noise."),
        ("learning rate", "stability."),
    ):
        those = {k: v for k, v in figures.items() if k.startswith(prefix) and not k.endswith((".low", ".high"))}
        if those:
            parts.append(markdown([title, ""], [[k.removeprefix(prefix), f"{v:.1f}"] for k, v in those.items()]))
    return "\n\n".join(parts)


def _interval(figures: dict[str, float], name: str, form: str) -> str:
    low, high = figures[f"{name}.low"], figures[f"{name}.high"]
    return f"{figures[name]:{form}} ({low:{form}} to {high:{form}})"


def _curves(found: Measured, quick: bool) -> Points:
    """Judged score over divergence, one line a method, mean over domains and seeds by round."""
    series: dict[str, list[tuple[float, float]]] = {}
    for method in METHODS:
        those = [
            one["curve"]
            for cell, one in found.items()
            if cell.method == method and not cell.judged and not cell.more and not cell.noise
        ]
        if those:
            points = np.array(
                [[(p["kl"], p["expected"]) for p in curve] for curve in those if len(curve) == len(those[0])]
            )
            series[method] = [(float(x), float(y)) for x, y in points.mean(axis=0)]
    return Points(
        "What a taste gains, and how far the policy moves",
        "KL from the policy, nats an answer",
        "Judged, of 100",
        series,
    )


def _stability(found: Measured) -> dict[str, Points]:
    figures = _stable(found)
    series = {
        name: [
            (float(np.log10(rate)), figures[f"stability.{name}.{rate:g}"])
            for rate in _WIDE
            if f"stability.{name}.{rate:g}" in figures
        ]
        for name in _AVERAGED
    }
    if not all(len(points) > 2 for points in series.values()):
        return {}
    return {
        "stability": Points("Judged after the last round", "learning rate, powers of ten", "Judged, of 100", series)
    }
