#!/usr/bin/env python
"""Train what tells sensitive topics, and say how well, cross-validated; run it whenever a new scorer ships.

.venv/bin/python scripts/train_sensitive.py
"""

import json

import numpy as np
from safetensors.numpy import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from palate.satisfaction.scorer import SatisfactionScorer
from palate.satisfaction.sensitive import FILE, features

CAUGHT = 0.98  # share of sensitive texts that must be told


def main() -> None:
    """Train, measure, save."""
    rows = [json.loads(line) for line in FILE.with_suffix(".jsonl").read_text("utf-8").splitlines()]
    topic = np.array(["" if row["topic"] == "none" else row["topic"] for row in rows])
    scorer = SatisfactionScorer.load()
    x = features(scorer, [row["text"] for row in rows])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.03, max_iter=5_000, class_weight="balanced"))
    held_out = cross_val_predict(
        model, x, topic, cv=StratifiedKFold(5, shuffle=True, random_state=0), method="predict_proba"
    )
    p = 1 - held_out[:, 0]  # the first class is ""
    sensitive = topic != ""
    least = float(np.quantile(p[sensitive], 1 - CAUGHT))
    named = held_out[:, 1:].argmax(axis=1) + 1 == np.searchsorted(np.unique(topic), topic)
    print(f"AUC {roc_auc_score(sensitive, p):.4f}; at {least:.3f} it tells {np.mean(p[sensitive] >= least):.3f} of the "
          f"sensitive texts, {np.mean(named[sensitive]):.3f} by the right name, and stops "
          f"{np.mean(p[~sensitive] >= least):.3f} of the others")  # fmt: skip
    model.fit(x, topic)
    scale, fitted = model.steps[0][1], model.steps[1][1]
    slope = fitted.coef_ / scale.scale_
    constant = fitted.intercept_ - slope @ scale.mean_
    weights = np.ascontiguousarray(np.column_stack([slope, constant]), np.float32)
    told = {"scorer": scorer.revision, "topics": ",".join(fitted.classes_), "least": repr(least)}
    save_file({"weights": weights}, FILE, metadata=told)


if __name__ == "__main__":
    main()
