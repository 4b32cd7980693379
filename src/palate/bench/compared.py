"""Methods held against each other on the same people: AUC per person by name, with intervals of the same draws."""

from collections.abc import Mapping, Sequence

import numpy as np

from palate.bench.intervals import cluster_interval
from palate.bench.peers import RANDOM_DRAWS
from palate.rewards import RewardModel
from palate.rewards.evaluation import NewPeople, learning_curve
from palate.rewards.fitting import Stage
from palate.rewards.posterior import Floats, Ints

_DRAWN = ("random", "thompson")  # strategies of chance, averaged over RANDOM_DRAWS draws of the questions


class Compared:
    """AUC per person of each method; what it returns are figures for a `report.Result`.

    Args:
        kind: (U,) the kind of each person, drawn as a whole in intervals.
        seed: of the draws.

    Example:
        >>> compared = Compared(np.arange(3), seed=0)
        >>> compared.add("one", np.array([0.5, 0.6, 0.7]))["auc.one"].__round__(3)
        0.6
        >>> figures = compared.add("other", np.array([0.6, 0.7, 0.8])) | compared.difference("gain", "other", "one")
        >>> {name: round(value, 3) for name, value in figures.items() if "gain" in name}
        {'auc.gain': 0.1, 'auc.gain.low': 0.1, 'auc.gain.high': 0.1}
    """

    def __init__(self, kind: Ints, seed: int) -> None:
        self.kind, self.seed = kind, seed
        self.auc: dict[str, Floats] = {}

    def figures(self, name: str, values: Floats, weight: Floats | None = None) -> dict[str, float]:
        """Mean over people, weighted where so wished, and its interval, as `name`, `name.low` and `name.high`."""
        low, high = cluster_interval(values, self.kind, weight=weight, seed=self.seed)
        known = np.isfinite(values)
        mean = np.average(values[known], weights=None if weight is None else weight[known])
        return {name: float(mean), f"{name}.low": low, f"{name}.high": high}

    def add(self, method: str, auc: Floats) -> dict[str, float]:
        """Keep a method's (U,) AUC; its figures are called `auc.{method}`."""
        self.auc[method] = auc
        return self.figures(f"auc.{method}", auc)

    def difference(self, name: str, one: str, other: str) -> dict[str, float]:
        """One method's AUC less another's, paired by person; the figures are called `auc.{name}`."""
        return self.figures(f"auc.{name}", self.auc[one] - self.auc[other])

    def asked(
        self,
        people: NewPeople,
        model: RewardModel,
        strategies: Sequence[str],
        answers: Sequence[int],
        told: Stage,
        *,
        prefix: str = "",
    ) -> dict[str, float]:
        """Figures of new people asked by each strategy, called `auc.{prefix}{strategy}.{answers}` and so on."""
        figures: dict[str, float] = {}
        for number, name in enumerate(strategies):
            told("Asking new people", number, len(strategies))
            curves = [
                learning_curve(people, model.prior, model.lapse, answers, name, seed=self.seed + 1_000 * draw)
                for draw in range(RANDOM_DRAWS if name in _DRAWN else 1)
            ]
            for t in answers:
                measured, method = [curve[t] for curve in curves], f"{prefix}{name}.{t}"
                figures |= self.add(method, np.mean([m.auc for m in measured], axis=0))
                figures[f"accuracy.{method}"] = float(np.mean([m.accuracy for m in measured]))
                figures[f"log_loss.{method}"] = float(np.mean([m.log_loss for m in measured]))
                figures[f"ece.{method}"] = float(np.mean([m.ece for m in measured]))
        return figures


def interval(figures: Mapping[str, float], name: str) -> str:
    """A figure as a table shows it, with its interval where it has one.

    Example:
        >>> interval({"auc.one": 0.5, "auc.one.low": 0.4, "auc.one.high": 0.6}, "auc.one")
        '0.500 (0.400–0.600)'
    """
    if f"{name}.low" not in figures:
        return f"{figures[name]:.3f}"
    return f"{figures[name]:.3f} ({figures[name + '.low']:.3f}–{figures[name + '.high']:.3f})"
