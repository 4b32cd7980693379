"""Fit a reward model on people's comparisons and ratings, from texts to a model that can be saved."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from palate.encoders import Encoder
from palate.errors import InputError
from palate.feedback import Comparison, Feedback, Text, as_text
from palate.rewards.beliefs import Belief, Floats
from palate.rewards.drift import Drift, elapsed_days, learn_half_life
from palate.rewards.evidence import Evidence, grade_of, heard
from palate.rewards.factorization import Choices, Penalties, fit_weights, fix_gauge
from palate.rewards.features import Coordinates
from palate.rewards.finetuning import Finetune, Tuned
from palate.rewards.indexing import Indexed
from palate.rewards.model import KnownAnswers, RewardModel, base_rewards
from palate.rewards.population import fit_prior
from palate.rewards.ratings import RATING, REPLY
from palate.rewards.selection import Settings, choose_settings
from palate.rewards.styles import StyleProbe

Stage = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, steps in all)."""

# Answers kept in the model for questions and explanations; whole prompts, in order of appearance.
_MAX_KNOWN = 5_000


def fit(
    feedback: Feedback,
    encoder: Encoder,
    *,
    rank: int | Literal["auto"] = 12,
    seed: int = 0,
    penalties: Penalties = Penalties(),
    finetune: Finetune | None = None,
    half_life: float | Literal["learn"] = np.inf,
    progress: Stage | None = None,
) -> RewardModel:
    """Learn base rewards and the population prior from what people said (`split` absent or ``train``).

    Args:
        feedback: what people said. A reply counts once it was read: with its `satisfaction`, and a `target` of taste
            or both.
        encoder: texts to features.
        rank: J, how many base rewards, 1 to 64; fewer are made where there are fewer people. With ``"auto"``, it and
            the strength of `penalties` are chosen on people left out, which takes several times as long.
        seed: same seed and data, same model.
        penalties: L2 of the base rewards.
        finetune: how the encoder is tuned first; None leaves it frozen.
        half_life: days after which half of what was learned of a person is forgotten; ``"learn"`` takes the one under
            which dated answers are foretold best, each by the ones before it.
        progress: told of each stage.

    Returns:
        The reward model, its `figures` filled.

    Raises:
        InputError: `rank` is out of range, there is nothing to fit on, only one person, or nothing is preferred; or
            the encoder cannot be tuned that way.
        MissingExtraError: it is to be tuned and accelerate or peft is not installed.
    """
    if rank != "auto" and not 1 <= rank <= 64:
        raise InputError(f"Rank {rank!r} is not in 1 to 64; give the number of base rewards to learn")
    if half_life != "learn":
        Drift.forgetting(half_life)  # refused before a long fit, not after
    said = heard([*feedback.comparisons, *feedback.ratings, *feedback.replies])
    rows = [row for row in said if row.split in (None, "train")]
    _check(rows)
    if half_life == "learn":
        rows = _in_order_of_time(rows)
    told = progress or (lambda stage, done, total: None)
    indexed = Indexed.of(rows)
    choices = indexed.choices
    raw, coordinates, z = _read(indexed, encoder, told)
    # Thousands of small products: more threads only wait for each other, and for whatever else the machine does.
    with threadpool_limits(1, user_api="blas"):
        settings = choose_settings(
            z, choices, rank, penalties, seed=seed, progress=lambda done, total: told("Cross-fitting", done, total)
        )
    tuned = Tuned(encoder, settings)
    if finetune is not None:
        from palate.rewards.finetuning.tuning import tune

        tuned = tune(encoder, indexed, settings, finetune, seed=seed, told=told)
    if tuned.encoder is not encoder:
        encoder, settings = tuned.encoder, tuned.settings
        raw, coordinates, z = _read(indexed, encoder, told)
    with threadpool_limits(1, user_api="blas"):
        told("Learning base rewards", 0, 1)
        weights, prior = _learn(z, choices, settings)
        told("Learning base rewards", 1, 1)
        days = _half_life(rows, choices, z @ weights.T, prior, settings) if half_life == "learn" else half_life
    calibration = settings.calibration
    offset = coordinates.offset.astype(np.float32)
    n_features = coordinates.basis.shape[1]  # with graded answers there is a column more, their level
    weights32 = (weights[:, :n_features] @ coordinates.basis.T).astype(np.float32)
    probe = StyleProbe.fit(encoder)
    kept = _kept(indexed.prompts)
    return RewardModel(
        offset=offset,
        weights=weights32,
        prior=prior,
        drift=Drift.forgetting(float(days)),
        guard=calibration.guard,
        lapse=calibration.lapse,
        encoder_name=encoder.name,
        encoder_revision=encoder.revision,
        finetune=tuned.method,
        known=KnownAnswers(
            prompts=[indexed.prompts[i] for i in kept],
            completions=[indexed.completions[i] for i in kept],
            phi=base_rewards(raw[kept], offset, weights32),
            styles=probe(raw[kept]),
        ),
        style_names=probe.names,
        scales=calibration.scales,
        level=weights[:, n_features:].sum(axis=1),
        figures=_figures(choices, len(raw), settings) | tuned.figures | {"seed": float(seed)},
        encoder=encoder,
    )


def _in_order_of_time(rows: list[Evidence]) -> list[Evidence]:
    times = [row.created_at.timestamp() for row in rows if row.created_at]
    if undated := len(rows) - len(times):
        raise InputError(
            f"A half-life cannot be learned from {undated} of {len(rows)} rows: they have no created_at; date them, or "
            "give a number of days"
        )
    return [rows[i] for i in np.argsort(times, kind="stable")]


def _half_life(rows: Sequence[Evidence], choices: Choices, phi: Floats, prior: Belief, settings: Settings) -> float:
    """Under which the fitted people's own answers, in order of time, were foretold best."""
    lapse = settings.calibration.lapse
    said = choices.observations(phi, settings.calibration.scales)
    order = np.argsort(choices.user, kind="stable")
    elapsed = elapsed_days([rows[i].created_at for i in order])
    if choices.graded.any():
        prior = prior.with_column(1.0)
    first = np.diff(said.user, prepend=-1) != 0
    return learn_half_life(said, np.where(first, 0.0, elapsed), prior, lapse)


def _read(indexed: Indexed, encoder: Encoder, told: Stage) -> tuple[NDArray[np.float32], Coordinates, Floats]:
    """Raw features of the answers (n, D), their standardisation, and coordinates with the centres of ratings."""
    raw = indexed.encode(encoder, progress=lambda done, total: told("Reading texts", done, total))
    coordinates = Coordinates.fit(raw, encoder.blocks)
    return raw, coordinates, indexed.with_centres(coordinates(raw))


def _check(rows: Sequence[Evidence]) -> None:
    if not rows:
        raise InputError(
            "There are 0 comparisons and 0 ratings to fit on (split absent or 'train'); give rows with chosen and "
            "rejected, or with completion and score"
        )
    people = {row.user_id for row in rows}
    if len(people) < 2:
        raise InputError(
            f"All rows are of one user, {rows[0].user_id!r}; base rewards need at least 2 people to differ"
        )
    grades = [grade_of(row) for row in rows]
    scores = {grade for grade in grades if grade is not None}
    if len(scores) < 2 and all(not isinstance(row, Comparison) or row.strength == 0.5 for row in rows):
        what = f"grades are {scores.pop()!r}" if scores else "comparisons are ties (strength 0.5)"
        raise InputError(f"All {len(rows)} {what}, which prefer nothing; give some decided ones")


def _learn(z: Floats, choices: Choices, settings: Settings) -> tuple[Floats, Belief]:
    calibration, scales = settings.calibration, settings.scales
    lapse = calibration.lapse
    weights = fit_weights(z, choices, settings.rank, lapse, settings.penalties, scales=scales)
    prior = fit_prior(choices.observations(z @ weights.T, scales), lapse, calibration.parts).leading(len(weights))
    return fix_gauge(weights, calibration.apply(prior), choices, z, lapse, scales)


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


def _figures(choices: Choices, answers: int, settings: Settings) -> dict[str, float]:
    calibration = settings.calibration
    figures: dict[str, float] = {
        "users": choices.n_users,
        "comparisons": int(np.sum(~choices.graded)),
        "prompts": len(np.unique(choices.prompt)),
        "answers": answers,
        "lapse": calibration.lapse,
        "prior_mean_scale": calibration.mean_scale,
        "prior_spread_scale": calibration.spread_scale,
        "prior_parts": calibration.parts,
        "held_out_users": calibration.people,
    }
    for name, form in (("ratings", RATING), ("replies", REPLY)):
        if count := int(np.sum(choices.form == form)):
            figures[name] = count
    if settings.penalties != Penalties():
        figures["penalty"] = settings.penalties.individual
    for name, values in (("log_loss", calibration.log_loss), ("auc", calibration.auc)):
        figures |= {f"held_out_{name}.{answers}": value for answers, value in values.items()}
    return figures
