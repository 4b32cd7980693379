"""A reward model on disk: written whole or not at all, checked when read, no pickle."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from palate.encoders.tuned import save_encoder
from palate.errors import InputError, ModelError
from palate.rewards.beliefs import Belief, Gaussian, Mixture
from palate.rewards.drift import Drift
from palate.rewards.model import KnownAnswers, RewardModel
from palate.rewards.ratings import RatingScale, Scales

# A model on a tuned encoder has format 3: a Palate that reads 2 would look for its encoder elsewhere.
FORMAT = 3
CONFIG, TENSORS, KNOWN, CARD = "config.json", "model.safetensors", "completions.jsonl", "README.md"
ENCODER = "encoder"


def save(model: RewardModel, path: str | Path) -> None:
    """Write the model's folder; an older model there is replaced only once the new one is complete.

    Raises:
        InputError: the path is a file, or a folder that holds something else than a reward model.
        ModelError: the folder cannot be written (read-only, disk full).
    """
    path = Path(path)
    check_target(path)
    place = path.resolve()  # a link stays, what it leads to is replaced
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        _write(model, fresh)
        old = fresh.with_name(fresh.name + ".old")
        if place.exists():
            place.rename(old)
        try:
            fresh.rename(place)
        except BaseException:
            if old.exists():
                old.rename(place)
            raise
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def check_target(path: str | Path) -> None:
    """Find out, before a long fit, whether its model may be written there.

    Raises:
        InputError: the path is a file or lies below one, or is a folder that holds something else.
    """
    path = Path(path)
    if file := next((parent for parent in path.parents if parent.is_file()), None):
        raise InputError(f"{str(path)!r} lies below the file {str(file)!r}; name a folder")
    if path.exists() and not (path.is_dir() and _replaceable({entry.name for entry in path.iterdir()})):
        raise InputError(f"{str(path)!r} is not a reward model's folder and is not empty; name another")


def _replaceable(names: set[str]) -> bool:
    """Whether a folder of these files is empty or a reward model: many other things have a config.json."""
    return not names or {CONFIG, KNOWN} <= names <= {CONFIG, TENSORS, KNOWN, CARD, ENCODER}


def _unwritable(path: Path, error: OSError) -> ModelError:
    reason = (error.strerror or str(error)).lower()
    return ModelError(f"Cannot write the reward model to {str(path)!r}: {reason}; name a folder with room to write")


def _write(model: RewardModel, folder: Path) -> None:
    folder.chmod(0o755)  # mkdtemp keeps others out; a model is made to be read
    known = model.known
    save_file(
        {
            "offset": np.ascontiguousarray(model.offset),
            "weights": np.ascontiguousarray(model.weights),
            **_prior_arrays(model.prior),
            "ratings.level": np.ascontiguousarray(model.level),
            "known.phi": np.ascontiguousarray(known.phi),
            "known.styles": np.ascontiguousarray(known.styles),
        },
        folder / TENSORS,
    )
    with (folder / KNOWN).open("w", encoding="utf-8") as lines:
        for prompt, completion in zip(known.prompts, known.completions, strict=True):
            lines.write(json.dumps({"prompt": prompt, "completion": completion}, ensure_ascii=False) + "\n")
    config = {
        "format": FORMAT if model.finetune else 2,
        "fingerprint": model.fingerprint,
        "rank": model.n_rewards,
        "lapse": model.lapse,
        "encoder": {"name": model.encoder_name, "revision": model.encoder_revision}
        | ({"finetune": model.finetune} if model.finetune else {}),
        "styles": model.style_names,
        "ratings": vars(model.scales.ratings),
        "replies": vars(model.scales.replies),
        "drift": {name: value if np.isfinite(value) else None for name, value in vars(model.drift).items()},
        "guard": model.guard,
        "figures": model.figures,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / CARD).write_text(card(model), encoding="utf-8")
    (folder / TENSORS).chmod(0o644)  # safetensors keeps others out, too
    if model.finetune:
        (folder / ENCODER).mkdir()
        save_encoder(model.loaded_encoder(), folder / ENCODER)


def _prior_arrays(prior: Belief) -> dict[str, np.ndarray]:
    """A Gaussian's mean (J,) and covariance (J, J); of a mixture (K, J) and (K, J, J), and weights (K,)."""
    if isinstance(prior, Gaussian):
        return {"prior.mean": np.ascontiguousarray(prior.mean), "prior.cov": np.ascontiguousarray(prior.cov)}
    return _prior_arrays(prior.parts) | {"prior.weights": np.ascontiguousarray(prior.weights)}


def load(path: str | Path) -> RewardModel:
    """Read a reward model's folder.

    Raises:
        ModelError: the folder or one of its files is missing, cut short, or of a newer version.
    """
    path = Path(path)
    if not path.is_dir():
        raise ModelError(f"There is no reward model at {str(path)!r}; make one with: palate fit FEEDBACK --output DIR")
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        if config["format"] > FORMAT:
            raise ModelError(
                f"The reward model at {str(path)!r} has format {config['format']!r}, this version of Palate reads "
                f"up to {FORMAT}; update Palate"
            )
        (path / TENSORS).stat()  # safetensors' own error names no file
        tensors = load_file(path / TENSORS)
        # Not splitlines, which also splits at U+2028 and others that texts may hold.
        lines = (path / KNOWN).read_text(encoding="utf-8").split("\n")[:-1]
        rows = [json.loads(line) for line in lines]
        model = _build(config, tensors, rows)
        if model.finetune:
            model.encoder_folder = path / ENCODER
            model.encoder_folder.stat()
    except FileNotFoundError as error:
        raise _broken(path, f"{Path(error.filename).name} is missing") from error
    except SafetensorError as error:
        raise _broken(path, f"{TENSORS} is cut short or is no safetensors file") from error
    except (KeyError, TypeError, ValueError, InputError) as error:
        raise _broken(path, f"{CONFIG} or {KNOWN} is cut short or changed") from error
    except OSError as error:
        raise _broken(path, (error.strerror or str(error)).lower()) from error
    if model.fingerprint != config["fingerprint"]:
        raise _broken(path, f"{TENSORS} does not match {CONFIG}")
    return model


def _broken(path: Path, reason: str) -> ModelError:
    return ModelError(f"Cannot read the reward model at {str(path)!r}: {reason}; copy it again or fit it anew")


def _build(
    config: Mapping[str, object], tensors: Mapping[str, np.ndarray], rows: list[dict[str, object]]
) -> RewardModel:
    c: dict[str, object] = dict(config)
    encoder, ratings, replies = c["encoder"], c["ratings"], c.get("replies", {})  # older folders have no replies
    if not (isinstance(encoder, dict) and isinstance(ratings, dict) and isinstance(replies, dict)):
        raise TypeError("encoder, ratings and replies are objects")
    if len(rows) != len(tensors["known.phi"]):
        raise ValueError("as many completions as rows of known.phi")
    prior = Gaussian(tensors["prior.mean"], tensors["prior.cov"])
    drift = c.get("drift", {})  # format 1 had none
    if not isinstance(drift, dict):
        raise TypeError("drift is an object")
    return RewardModel(
        offset=tensors["offset"],
        weights=tensors["weights"],
        prior=Mixture(tensors["prior.weights"], prior) if "prior.weights" in tensors else prior,
        lapse=float(str(c["lapse"])),
        encoder_name=encoder["name"],
        encoder_revision=encoder["revision"],
        known=KnownAnswers(
            prompts=[row["prompt"] for row in rows],  # type: ignore[misc]
            completions=[row["completion"] for row in rows],  # type: ignore[misc]
            phi=tensors["known.phi"],
            styles=tensors["known.styles"],
        ),
        style_names=[(high, low) for high, low in c["styles"]],  # type: ignore[attr-defined]
        scales=Scales(RatingScale(**ratings), RatingScale(**replies) if replies else Scales().replies),
        level=tensors.get("ratings.level", np.zeros(0)),  # older folders have none
        # JSON knows no infinity.
        drift=Drift(**{name: np.inf if value is None else value for name, value in drift.items()}),
        guard=float(str(c.get("guard", 0.0))),
        figures=dict(c["figures"]),  # type: ignore[call-overload]
        finetune=encoder.get("finetune"),
    )


def counted(figures: Mapping[str, float]) -> str:
    """How much a model was fitted on, in words.

    Example:
        >>> counted({"comparisons": 1200, "ratings": 30})
        '1,200 comparisons and 30 ratings'
    """
    counts = [(name, figures.get(name, 0)) for name in ("comparisons", "ratings", "replies")]
    return " and ".join(f"{count:,.0f} {name}" for name, count in counts if count) or "0 comparisons"


def card(model: RewardModel) -> str:
    """The model card: what it is, what it was fitted on, and how well it did on people left out."""
    f = model.figures
    measured = "\n".join(
        f"| {answers} | {f[f'held_out_auc.{answers}']:.3f} | {f[f'held_out_log_loss.{answers}']:.3f} |"
        for answers in (0, 5, 10)
        if f"held_out_auc.{answers}" in f
    )
    held_out = (
        f"Left out in turn, {f.get('held_out_users', 0):.0f} people on prompts not fitted on, questions at random:\n\n"
        f"| answers | AUC | log loss (nats) |\n| --- | --- | --- |\n{measured}\n"
        if measured
        else "Too few people to leave any out: nothing was measured.\n"
    )
    tuned = f", tuned ({model.finetune}, {f.get('finetune_epochs', 0):.0f} epochs)" if model.finetune else ""
    return f"""---
library_name: palate
tags: [reward-model, personalisation]
base_model: {model.encoder_name}
---

# Palate reward model {model.fingerprint}

{model.n_rewards} base rewards and a prior over people's weights, fitted on {counted(f)}
of {f.get("users", 0):.0f} people between {f.get("answers", 0):.0f} answers to {f.get("prompts", 0):.0f} prompts.
Encoder: {model.encoder_name}{tuned}, revision {model.encoder_revision}. Lapse rate {model.lapse:.3f}.

{held_out}
```python
from palate.rewards import RewardModel

model = RewardModel.load("path/to/this/folder")
model.rank("How do I boil an egg?", ["Nine minutes.", "Gently, my friend, gently!"])
```

`completions.jsonl` holds answers of the fitting data, for questions and explanations: share the folder only with
whom you would share those texts.
"""
