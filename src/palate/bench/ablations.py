"""What each part of the fit does: the same benchmark without it.

The arms differ in the base rewards alone. The prior is used as it is fitted, without the scale that `fit` cross-fits
on held-out people, since that moves calibration and hardly an order; so the whole stands a little beside the
benchmark's own curve.
"""

from collections.abc import Mapping

import numpy as np

from palate.bench.intervals import cluster_interval
from palate.bench.unseen import new_people
from palate.encoders import Encoder
from palate.rewards.calibration import LAPSE
from palate.rewards.evaluation import learning_curve
from palate.rewards.factorization import Penalties, fit_weights
from palate.rewards.features import Coordinates
from palate.rewards.fitting import Stage
from palate.rewards.indexing import Indexed
from palate.rewards.population import fit_prior
from palate.rewards.posterior import Floats
from palate.rewards.queries import DEFAULT_STRATEGY

ABLATED_AT = (0, 5, 10, 20)
"""Answers after which every arm is measured."""

_RANK, _RANKS = 12, (1, 2, 4, 6, 8, 12, 16)
_STARTS = 5
_NO_PENALTY = 1e-3

ARMS: Mapping[str, str] = {
    "full": "the whole",
    "random_start": f"a random start ({_STARTS} seeds)",
    "no_l2": "no L2",
    "last_layer": "the last layer alone",
    **{f"rank_{rank}": f"rank {rank}" for rank in _RANKS if rank != _RANK},
}
"""What is measured, by the name of its figures."""


def ablations(
    train: Indexed,
    new: Indexed,
    encoder: Encoder,
    last_layer: Encoder,
    *,
    seed: int = 0,
    progress: Stage | None = None,
) -> dict[str, float]:
    """AUC of every arm after 0, 5, 10 and 20 answers, and what it lacks against the whole, paired by person.

    Args:
        train: training people.
        new: new people, `adapt` and `test`.
        encoder: of the whole.
        last_layer: the same model, its last layer alone.
        seed: of the random starts and the bootstrap.
        progress: told of each arm.

    Returns:
        `ablation.ARM.ANSWERS` with its interval over kinds of people (`.sd` over seeds for random starts, too), and
        `ablation.ARM_minus_full.ANSWERS`.
    """
    told = progress or (lambda stage, done, total: None)
    here = _coordinates(train, new, encoder)
    figures: dict[str, float] = {}
    whole: dict[int, Floats] = {}
    for number, arm in enumerate(ARMS):
        told("Ablations", number, len(ARMS))
        if arm == "random_start":
            curves = [_curve(train, new, here, start=seed + 1_000 * k) for k in range(_STARTS)]
        elif arm == "no_l2":
            curves = [_curve(train, new, here, penalties=Penalties(_NO_PENALTY, _NO_PENALTY))]
        elif arm == "last_layer":
            curves = [_curve(train, new, _coordinates(train, new, last_layer))]
        else:
            curves = [_curve(train, new, here, rank=int(arm.removeprefix("rank_")) if arm != "full" else _RANK)]
        whole = whole or curves[0]
        for t in ABLATED_AT:
            values = np.mean([curve[t] for curve in curves], axis=0)
            figures |= _figures(f"ablation.{arm}.{t}", values, new, seed)
            if len(curves) > 1:
                figures[f"ablation.{arm}.{t}.sd"] = float(np.std([curve[t].mean() for curve in curves], ddof=1))
            if arm != "full":
                figures |= _figures(f"ablation.{arm}_minus_full.{t}", values - whole[t], new, seed)
    return figures


def _coordinates(train: Indexed, new: Indexed, encoder: Encoder) -> tuple[Floats, Floats]:
    raw = train.encode(encoder)
    coordinates = Coordinates.fit(raw, encoder.blocks)
    return coordinates(raw), coordinates(new.encode(encoder))


def _curve(
    train: Indexed,
    new: Indexed,
    coordinates: tuple[Floats, Floats],
    *,
    rank: int = _RANK,
    penalties: Penalties = Penalties(),
    start: int | None = None,
) -> dict[int, Floats]:
    """{answers: (U,) AUC} of base rewards fitted in one way."""
    z, z_new = coordinates
    weights = fit_weights(z, train.choices, rank, LAPSE, penalties, random_start=start)
    prior = fit_prior(train.choices.observations(z @ weights.T), LAPSE)
    people = new_people(z_new @ weights.T, new.choices, new.split == "adapt", new.split == "test")
    return {t: figures.auc for t, figures in learning_curve(people, prior, LAPSE, ABLATED_AT, DEFAULT_STRATEGY).items()}


def _figures(name: str, values: Floats, new: Indexed, seed: int) -> dict[str, float]:
    low, high = cluster_interval(values, new.choices.group, seed=seed)
    return {name: float(np.nanmean(values)), f"{name}.low": low, f"{name}.high": high}
