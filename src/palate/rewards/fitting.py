"""Fit a reward model on people's comparisons, from texts to a model that can be saved."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from palate.encoders import Encoder
from palate.errors import InputError
from palate.feedback import Comparison, Feedback, Text, as_text
from palate.rewards.calibration import Calibration, cross_fit, fit_prior
from palate.rewards.factorization import Choices, Penalties, fit_weights, fix_gauge
from palate.rewards.features import Coordinates
from palate.rewards.finetuning import Finetune, Tuned
from palate.rewards.indexing import Indexed
from palate.rewards.model import KnownAnswers, RewardModel, base_rewards
from palate.rewards.posterior import Floats, Gaussian
from palate.rewards.ratings import fit_rating_scale
from palate.rewards.styles import StyleProbe

Stage = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, steps in all)."""

# Answers kept in the model for questions and explanations; whole prompts, in order of appearance.
_MAX_KNOWN = 5_000


def fit(
    feedback: Feedback,
    encoder: Encoder,
    *,
    rank: int = 12,
    seed: int = 0,
    penalties: Penalties = Penalties(),
    finetune: Finetune | None = None,
    progress: Stage | None = None,
) -> RewardModel:
    """Learn base rewards and the population prior from comparisons (`split` absent or ``train``).

    Args:
        feedback: what people said. Ratings say how strongly a rating speaks; base rewards are learned from
            comparisons alone. Replies are not read.
        encoder: texts to features.
        rank: J, how many base rewards, 1 to 64; fewer are made where there are fewer people.
        seed: same seed and data, same model.
        penalties: L2 of the base rewards.
        finetune: how the encoder is tuned first; None leaves it frozen.
        progress: told of each stage.

    Returns:
        The reward model, its `figures` filled.

    Raises:
        InputError: `rank` is out of range, there is no comparison to fit on, only one person, or only ties; or the
            encoder cannot be tuned that way.
        MissingExtraError: it is to be tuned and accelerate or peft is not installed.
    """
    if not 1 <= rank <= 64:
        raise InputError(f"Rank {rank!r} is not in 1 to 64; give the number of base rewards to learn")
    rows = [row for row in feedback.comparisons if row.split in (None, "train")]
    _check(rows)
    told = progress or (lambda stage, done, total: None)
    indexed = Indexed.of(rows)
    choices = indexed.choices
    tuned = _tuned(encoder, indexed, rank, penalties, finetune, seed, told)
    encoder = tuned.encoder
    raw = indexed.encode(encoder, progress=lambda done, total: told("Reading texts", done, total))
    coordinates = Coordinates.fit(raw, encoder.blocks)
    z = coordinates(raw)
    # Thousands of small products: more threads only wait for each other, and for whatever else the machine does.
    with threadpool_limits(1, user_api="blas"):
        calibration = tuned.calibration or cross_fit(
            z, choices, rank, penalties, seed=seed, progress=lambda done, total: told("Cross-fitting", done, total)
        )
        told("Learning base rewards", 0, 1)
        weights, mean = _learn(z, choices, rank, penalties, calibration)
        told("Learning base rewards", 1, 1)
    offset = coordinates.offset.astype(np.float32)
    weights32 = (weights @ coordinates.basis.T).astype(np.float32)
    probe = StyleProbe.fit(encoder)
    kept = _kept(indexed.prompts)
    model = RewardModel(
        offset=offset,
        weights=weights32,
        prior=Gaussian(mean, np.eye(len(mean))),
        lapse=calibration.lapse,
        encoder_name=encoder.name,
        encoder_revision=encoder.revision,
        finetune=finetune.method if finetune and tuned.calibration else None,
        known=KnownAnswers(
            prompts=[indexed.prompts[i] for i in kept],
            completions=[indexed.completions[i] for i in kept],
            phi=base_rewards(raw[kept], offset, weights32),
            styles=probe(raw[kept]),
        ),
        style_names=probe.names,
        figures=_figures(choices, len(raw), calibration) | tuned.figures | {"seed": float(seed)},
        encoder=encoder,
    )
    rated = [row for row in feedback.ratings if row.split in (None, "train")]
    return replace(model, ratings=fit_rating_scale(model, rated, seed=seed)) if rated else model


def _tuned(
    encoder: Encoder,
    indexed: Indexed,
    rank: int,
    penalties: Penalties,
    finetune: Finetune | None,
    seed: int,
    told: Stage,
) -> Tuned:
    """The encoder to fit on, and what is known from tuning it."""
    if finetune is None:
        return Tuned(encoder)
    from palate.rewards.finetuning.tuning import tune

    return tune(encoder, indexed, rank, penalties, finetune, seed=seed, told=told)


def _check(rows: Sequence[Comparison]) -> None:
    if not rows:
        raise InputError(
            "There are 0 comparisons to fit on (split absent or 'train'); give rows with chosen and rejected, "
            "ratings alone do not do"
        )
    people = {row.user_id for row in rows}
    if len(people) < 2:
        raise InputError(
            f"All comparisons are of one user, {rows[0].user_id!r}; base rewards need at least 2 people to differ"
        )
    if all(row.strength == 0.5 for row in rows):
        raise InputError(
            f"All {len(rows)} comparisons are ties (strength 0.5), which prefer nothing; give some decided ones"
        )


def _learn(
    z: Floats, choices: Choices, rank: int, penalties: Penalties, calibration: Calibration
) -> tuple[Floats, Floats]:
    weights = fit_weights(z, choices, rank, calibration.lapse, penalties)
    prior = fit_prior(choices.observations(z @ weights.T), calibration.lapse)
    return fix_gauge(weights, calibration.apply(prior), choices, z, calibration.lapse)


def _kept(prompts: Sequence[Text]) -> NDArray[np.int64]:
    """Rows to keep as known answers: whole prompts, as many as fit below the limit."""
    by_prompt: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_prompt.setdefault(as_text(prompt), []).append(i)
    kept: list[int] = []
    for rows in by_prompt.values():
        if len(kept) + len(rows) <= _MAX_KNOWN:
            kept.extend(rows)
    if not kept:  # one prompt with more answers than that
        kept = next(iter(by_prompt.values()))[:_MAX_KNOWN]
    return np.array(kept, np.int64)


def _figures(choices: Choices, answers: int, calibration: Calibration) -> dict[str, float]:
    figures: dict[str, float] = {
        "users": choices.n_users,
        "comparisons": len(choices.user),
        "prompts": len(np.unique(choices.prompt)),
        "answers": answers,
        "lapse": calibration.lapse,
        "prior_mean_scale": calibration.mean_scale,
        "prior_spread_scale": calibration.spread_scale,
        "held_out_users": calibration.people,
    }
    for name, values in (("log_loss", calibration.log_loss), ("auc", calibration.auc)):
        figures |= {f"held_out_{name}.{answers}": value for answers, value in values.items()}
    return figures
