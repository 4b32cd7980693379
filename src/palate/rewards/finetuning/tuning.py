"""How far to tune: as many epochs as people and prompts bear that no gradient came from.

Features tuned on some people's choices foresee these people too well, and a prior calibrated on them would be too
sure of itself. So an encoder is tuned without each of the first parts of `calibration.splits` in turn; where its
held-out loss is lowest, that part calibrates the prior; the last tuning, on everything, takes the mean number of
epochs. Epoch 0, the frozen encoder, is among the candidates: where tuning does not help, nothing is tuned.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np
from threadpoolctl import threadpool_limits

from palate.encoders import Encoder
from palate.errors import InputError, MissingExtraError
from palate.feedback import as_text
from palate.rewards.calibration import LAPSE, Calibration, cross_fit, splits
from palate.rewards.factorization import Choices, fit_weights
from palate.rewards.features import Coordinates
from palate.rewards.finetuning.settings import Finetune, Tuned
from palate.rewards.indexing import Indexed
from palate.rewards.population import fit_prior
from palate.rewards.posterior import laplace_posterior
from palate.rewards.selection import Settings

try:
    from palate.rewards.finetuning.towers import Tower, tower_of
    from palate.rewards.finetuning.training import Progress, Raw, Reading, Task, train
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "accelerate":
        raise
    raise MissingExtraError("accelerate", "finetune") from error


@dataclass(frozen=True)
class Light:
    """The light fit on whatever features, for a tuning's people or its held-out part.

    Args:
        blocks: of the features' columns.
        indexed: what everybody said.
        settings: rank, L2, and how ratings speak.
        seed: of the splits.
    """

    blocks: dict[str, slice]
    indexed: Indexed
    settings: Settings
    seed: int

    def coordinates(self, features: Raw) -> Coordinates:
        """The features' standardisation."""
        with threadpool_limits(1, user_api="blas"):
            return Coordinates.fit(features, self.blocks)

    def solve(self, features: Raw, choices: Choices) -> Reading:
        """Base rewards, and the weights of the people of `choices`."""
        with threadpool_limits(1, user_api="blas"):
            coordinates = Coordinates.fit(features, self.blocks)
            z = coordinates(features)
            weights = fit_weights(z, choices, self.settings.rank, LAPSE, self.settings.penalties)
            said = choices.observations(z @ weights.T)
            people = laplace_posterior(said, fit_prior(said, LAPSE), LAPSE).mean
        return Reading(coordinates.offset, weights @ coordinates.basis.T, people, LAPSE)

    def calibrate(self, features: dict[int, Raw]) -> Calibration:
        """By the parts that features were tuned without."""
        with threadpool_limits(1, user_api="blas"):
            z = {part: self.indexed.with_centres(self.coordinates(table)(table)) for part, table in features.items()}
            given = self.settings
            return cross_fit(z, self.indexed.choices, given.rank, given.penalties, scales=given.scales, seed=self.seed)

    def loss(self, features: Raw, part: int) -> float:
        """Mean nats of a part's people after 0, 5 and 10 answers, under the best prior for them."""
        return float(np.mean(list(self.calibrate({part: features}).log_loss.values())))


def tune(
    encoder: Encoder,
    indexed: Indexed,
    settings: Settings,
    how: Finetune,
    *,
    seed: int,
    told: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Tuned:
    """Fine-tune an encoder by people's comparisons; ratings only calibrate.

    Args:
        encoder: where to start; it is not changed.
        indexed: what people said.
        settings: of the light fit on this encoder.
        how: what moves, and how far.
        seed: of the splits, the order of comparisons, and what starts at random.
        told: told of each stage.

    Raises:
        InputError: the encoder cannot be tuned that way, or there are no comparisons, or too few groups of people or
            prompts to leave some out.
        MissingExtraError: accelerate or peft is not installed.
    """
    choices = indexed.choices
    if choices.graded.all():
        raise InputError("There are 0 comparisons to tune by, ratings alone do not do; give some, or finetune 'none'")
    parts = [
        (part, seen & ~choices.graded)
        for part, (seen, unseen) in enumerate(splits(choices, np.random.default_rng(seed)))
        if part < how.folds and np.any(seen & ~choices.graded) and np.any(unseen & ~choices.graded)
    ]
    if not parts:
        raise InputError(
            f"Fine-tuning needs groups of people to leave out, and there are {len(np.unique(choices.group))!r} in all; "
            "give comparisons of more people, or kinds that differ, or finetune 'none'"
        )
    raw = indexed.encode(encoder, progress=lambda done, total: told("Reading texts", done, total))
    light = Light(dict(encoder.blocks), indexed, settings, seed)
    answers = [as_text(prompt) for prompt in indexed.prompts], [as_text(text) for text in indexed.completions]
    start = raw, light.coordinates(raw)

    def build() -> Tower:
        return tower_of(encoder, answers, start, how, seed)

    def task(name: str, among: Choices, judge: Callable[[Raw], float] | None) -> Task:
        return Task(
            among,
            len(raw),
            solve=lambda features: light.solve(features, among),
            judge=judge,
            signature=_signature(encoder, among, light, how),
            folder=how.checkpoints and how.checkpoints / name,
            told=lambda done, total: told(f"Fine-tuning, {name}", done, total),
        )

    runs: dict[int, Progress] = {}
    for part, seen in parts:
        held_out = task(f"without part {part + 1}", choices.where(seen), lambda table, k=part: light.loss(table, k))  # type: ignore[misc]
        runs[part], _ = train(build(), held_out, how, how.max_epochs, seed)
    epochs = round(float(np.mean([run.best for run in runs.values()])))
    figures = _figures(runs, epochs)
    if epochs == 0:
        return Tuned(encoder, settings, figures=figures)
    _, weights = train(build(), task("everything", choices.where(~choices.graded), None), how, epochs, seed)
    tower = build()
    tower.load_state_dict(weights)
    tables = {part: run.features for part, run in runs.items() if run.features is not None}
    calibrated = replace(settings, calibration=light.calibrate(tables))
    return Tuned(tower.encoder(), calibrated, how.method, figures)


def _figures(runs: dict[int, Progress], epochs: int) -> dict[str, float]:
    losses = [run.losses for run in runs.values()]
    return {
        "finetune_epochs": float(epochs),
        "finetune_log_loss.before": float(np.mean([loss[0] for loss in losses])),
        "finetune_log_loss.after": float(np.mean([min(loss) for loss in losses])),
    }


def _signature(encoder: Encoder, choices: Choices, light: Light, how: Finetune) -> str:
    fit = light.settings
    digest = sha256(f"{encoder.revision} {how.words} {fit.rank} {fit.penalties} {light.seed}".encode())
    for array in (choices.chosen, choices.rejected, choices.user, choices.strength, choices.prompt, choices.group):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
