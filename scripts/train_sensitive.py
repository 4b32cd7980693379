#!/usr/bin/env python
"""Train what tells sensitive topics, and say how well, cross-validated; run it whenever a new scorer ships.

.venv/bin/python scripts/train_sensitive.py
"""

import json
import re

import numpy as np
from safetensors.numpy import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from palate.data import load_answers
from palate.satisfaction.lessons import read_replies
from palate.satisfaction.scorer import SatisfactionScorer
from palate.satisfaction.sensitive import FILE, features

CAUGHT = 0.95  # share of sensitive texts that must be told
PLAIN = 5_000  # of our own replies that stand for what is not sensitive
# Replies and prompts with any of these words may touch a sensitive topic, and are left out.
_WORDS = r"""
    doctor dr gp nurse hospital ward surgery surgeon operation ill illness sick pain ache hurts?
    bleed\w* blood heart kidney liver lung cancer tumou?r chemo insulin diabet\w+ pregnan\w+ baby birth
    therap\w+ depress\w+ anxi\w+ panic medic\w+ pills? dose drugs? pharmac\w+ allerg\w+ asthma fever
    flu cough rash hip knee ankle spine stroke seizure clinic symptom\w* diagnos\w+ disab\w+ dement\w+
    funeral died dead death kill\w* suicid\w+ sleep slept weight diet blind deaf wheelchair nose throat
    skin teeth tooth dentist vet money pay paid pays payment payroll salary wage\w* rent landlord
    tenant mortgage loan debt\w* owe\w* bank\w* bill\w* budget tax\w* hmrc irs pension savings?
    invest\w* shares insur\w+ refund\w* fined? penalt\w+ fee fees price cost\w* cash card cards
    account\w* credit broke bankrupt\w* invoice grand quid euros? dollars? pounds? benefit\w* raise job
    boss fired redundan\w+ password\w* pin login log hack\w* scam\w* identity court judge lawyer\w*
    solicitor\w* legal law sue sued police arrest\w* jail prison divorc\w+ custody visa immigra\w+
    asylum deport\w* home office passport licen[cs]e will estate probate contract\w* tribunal evict\w*
    deposit claim\w* appeal\w* crime stolen robbed husband wife left him ex abus\w+
"""
TOUCHING = re.compile(rf"(?i)\b({'|'.join(_WORDS.split())})\b|[£$€]\s?\d")


def main() -> None:
    """Train, measure, save."""
    rows = [json.loads(line) for line in FILE.with_suffix(".jsonl").read_text("utf-8").splitlines()]
    others = plain_texts()
    topic = np.array(["" if row["topic"] == "none" else row["topic"] for row in rows] + [""] * len(others))
    scorer = SatisfactionScorer.load()
    x = features(scorer, [*(row["text"] for row in rows), *others])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500, class_weight="balanced"))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    held_out = cross_val_predict(model, x, topic, cv=folds, method="predict_proba")
    p = 1 - held_out[:, 0]  # the first class is ""
    sensitive = topic != ""
    least = float(np.quantile(p[sensitive], 1 - CAUGHT))
    named = held_out[:, 1:].argmax(axis=1) + 1 == np.searchsorted(np.unique(topic), topic)
    stopped = p >= least
    hard, replies = ~sensitive[: len(rows)], slice(len(rows), len(rows) + PLAIN)
    print(
        f"AUC {roc_auc_score(sensitive, p):.4f}; at {least:.3f} it tells {stopped[sensitive].mean():.3f} of the "
        f"sensitive texts, {named[sensitive].mean():.3f} by the right name, and stops "
        f"{stopped[: len(rows)][hard].mean():.3f} of those written to look like them, "
        f"{stopped[replies].mean():.3f} of replies"
    )
    model.fit(x, topic)
    scale, fitted = model.steps[0][1], model.steps[1][1]
    slope = fitted.coef_ / scale.scale_
    constant = fitted.intercept_ - slope @ scale.mean_
    # Row after row: safetensors writes an array as it lies in memory.
    weights = np.ascontiguousarray(np.column_stack([slope, constant]), np.float32)
    told = {"scorer": scorer.revision, "topics": ",".join(fitted.classes_), "least": repr(least)}
    save_file({"weights": weights}, FILE, metadata=told)


def plain_texts() -> list[str]:
    """Replies and prompts that touch nothing sensitive."""
    said = [text for text in dict.fromkeys(one.text for one in read_replies()) if not TOUCHING.search(text)]
    asked = [text for text in dict.fromkeys(answer.prompt for answer in load_answers()) if not TOUCHING.search(text)]
    return [*np.random.default_rng(0).permutation(said)[:PLAIN].tolist(), *asked]


if __name__ == "__main__":
    main()
