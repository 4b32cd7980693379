"""What data is worth: AUC by number of people, comparisons of each, prompts, and layers of the encoder that are read.

PReF's scaling figures (arXiv 2503.06358: "better with larger models and more data") on the bundled Facets. Of the
bundled people, kinds and all, some are left out; who is asked is the same for every fit. Larger encoders cannot be had
offline: the layers read of one stand in for the encoder's size.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from palate.bench.compared import Compared, interval
from palate.bench.report import Line, Picture, Result, markdown
from palate.bench.unseen import Unseen, unseen_people
from palate.data import load_people
from palate.encoders import load_encoder
from palate.errors import InputError
from palate.feedback import Comparison, Feedback
from palate.rewards import DEFAULT_STRATEGY, fit
from palate.rewards.evaluation import learning_curve
from palate.rewards.fitting import Stage
from palate.rewards.indexing import Indexed

_AT = (0, 10)
_Item = TypeVar("_Item")
_PEOPLE, _EACH, _PROMPTS = (14, 28, 56, 112), (10, 20, 40, 80), (10, 20, 40, 80)
_LAYERS: tuple[tuple[int, ...], ...] = ((1,), (2,), (4,), (6,), (1, 2), (1, 2, 3, 4), (1, 2, 3, 4, 5, 6))


def run(*, quick: bool, seed: int, data: Path | None = None, progress: Stage | None = None) -> Result:
    """Fit on parts of the bundled people, and ask the same new ones.

    Args:
        quick: fewer people to ask, the smallest and the largest part only.
        seed: of the parts, the people asked and the fits.
        data: none is read.
        progress: told of each fit.

    Raises:
        InputError: `data` is given.
    """
    if data is not None:
        raise InputError(f"The benchmark of growth takes no data, got {str(data)!r}; leave --data out")
    rows, asked = load_people(), Indexed.of(unseen_people(seed, quick))
    compared = Compared(asked.choices.group, seed)
    parts: dict[str, tuple[list[Comparison], tuple[int, ...] | None]] = {}
    parts |= {f"people.{n}": (_some_people(rows, n, seed), None) for n in _ends(_PEOPLE, quick)}
    parts |= {f"each.{n}": (_some_of_each(rows, n, seed), None) for n in _ends(_EACH, quick)}
    parts |= {f"prompts.{n}": (_some_prompts(rows, n, seed), None) for n in _ends(_PROMPTS, quick)}
    parts |= {f"layers.{'-'.join(map(str, layers))}": (rows, layers) for layers in _ends(_LAYERS, quick)}
    figures: dict[str, float] = {}
    for number, (name, (part, layers)) in enumerate(parts.items()):
        if progress:
            progress("Fitting", number, len(parts))
        encoder = load_encoder(layers=layers)
        model = fit(Feedback(comparisons=part), encoder, seed=seed)
        people = Unseen.of(asked.choices, asked.split == "adapt", asked.split == "test").people(
            model.phi(asked.prompts, asked.completions)
        )
        curve = learning_curve(people, model.prior, model.lapse, _AT, DEFAULT_STRATEGY, seed=seed)
        figures[f"comparisons.{name}"] = float(len(part))
        for t in _AT:
            kind, _, size = name.partition(".")
            figures |= compared.add(f"{kind}.after_{t}.{size}", curve[t].auc)
    return Result("growth", figures, _table(figures, list(parts)), _picture())


def _ends(sizes: Sequence[_Item], quick: bool) -> Sequence[_Item]:
    return (sizes[0], sizes[-1]) if quick else sizes


def _some_people(rows: Sequence[Comparison], count: int, seed: int) -> list[Comparison]:
    """All that so many people said; whole kinds while they last."""
    kinds = np.random.default_rng(seed).permutation(sorted({row.kind or "" for row in rows}))
    users = [user for kind in kinds for user in dict.fromkeys(row.user_id for row in rows if row.kind == kind)]
    kept = set(users[:count])
    return [row for row in rows if row.user_id in kept]


def _some_of_each(rows: Sequence[Comparison], count: int, seed: int) -> list[Comparison]:
    """So many comparisons of everybody, drawn at random."""
    rng, kept = np.random.default_rng(seed), []
    for user in dict.fromkeys(row.user_id for row in rows):
        mine = [row for row in rows if row.user_id == user]
        kept += [mine[i] for i in sorted(rng.permutation(len(mine))[:count])]
    return kept


def _some_prompts(rows: Sequence[Comparison], count: int, seed: int) -> list[Comparison]:
    """All comparisons on so many prompts."""
    prompts = np.random.default_rng(seed).permutation(sorted({str(row.prompt) for row in rows}))
    kept = set(prompts[:count].tolist())
    return [row for row in rows if str(row.prompt) in kept]


_NAMES = {
    "people": "people",
    "each": "comparisons of each",
    "prompts": "prompts",
}


def _table(figures: Mapping[str, float], parts: Sequence[str]) -> str:
    rows = []
    for part in parts:
        kind, _, size = part.partition(".")
        auc = [interval(figures, f"auc.{kind}.after_{t}.{size}") for t in _AT]
        what = f"layers read: {size.replace('-', ', ')}" if kind == "layers" else f"{size} {_NAMES[kind]}"
        rows.append([what, f"{figures[f'comparisons.{part}']:,.0f}", *auc])
    return (
        "# Growth\n\nOne thing less at a time than 112 people, 80 comparisons of each, 80 prompts, layers 1 to 4. AUC "
        "on new people of unseen kinds, on unseen prompts, before any answer and after 10; in brackets 95 % intervals "
        f"over kinds.\n\n{markdown(['fitted on', 'comparisons', 'before', 'after 10'], rows)}"
    )


def _picture() -> Picture:
    # Colours of Okabe and Ito (2008), told apart by the colour-blind.
    return Picture(
        title="What data is worth",
        x_label="people, comparisons of each, or prompts",
        y_label="AUC after 10 answers; bands: 95 % over kinds",
        x=sorted({*_PEOPLE, *_EACH, *_PROMPTS}),
        lines=[
            Line("auc.people.after_10", "people", "#d55e00"),
            Line("auc.each.after_10", "comparisons of each", "#0072b2"),
            Line("auc.prompts.after_10", "prompts", "#007a5a"),
        ],
    )
