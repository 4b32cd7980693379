"""A picture of a taste: the liking of each named style, with its uncertainty, over what people in general like."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from palate.errors import InputError, MissingExtraError
from palate.rewards.explain import StyleTaste

_OWN, _OTHERS, _INK = "#c2410c", "#d6d3d1", "#292524"


def draw_taste(styles: Sequence[StyleTaste], path: str | Path, *, title: str) -> list[Path]:
    """Draw a taste and write it beside `path` as SVG and PNG.

    Args:
        styles: what `explain` gives.
        path: where, with or without an ending; `taste` gives taste.svg and taste.png.
        title: above the picture.

    Returns:
        The two files.

    Raises:
        InputError: the folder cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot") from error
    figure = Figure(figsize=(7.2, 0.9 + 0.5 * len(styles)), layout="constrained")
    axes = figure.add_subplot()
    y = np.arange(len(styles))[::-1]
    liking = np.array([s.liking for s in styles])
    own = 1.96 * np.array([s.deviation for s in styles])
    population = np.array([s.population for s in styles])
    spread = 1.96 * np.array([s.spread for s in styles])
    axes.axvline(0, color=_INK, linewidth=0.8, zorder=1)
    axes.hlines(y, population - spread, population + spread, color=_OTHERS, linewidth=11, label="people in general")
    axes.hlines(y, liking - own, liking + own, color=_OWN, linewidth=2.4, zorder=3)
    axes.plot(liking, y, "o", color=_OWN, markersize=8, zorder=4, label="this person (95 %)")
    reach = 1.08 * max(np.max(np.abs(population) + spread), np.max(np.abs(liking) + own))
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-0.6, len(styles) - 0.4)
    axes.set_yticks(y, [s.low for s in styles])
    opposite = axes.secondary_yaxis("right")
    opposite.set_yticks(y, [s.high for s in styles])
    for side in (axes, opposite):
        side.tick_params(length=0, labelsize=11)
        for spine in side.spines.values():
            spine.set_visible(False)
    axes.set_xlabel("reward of one standard deviation more, in logits")
    axes.set_title(title, loc="left", fontsize=13, color=_INK, parse_math=False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    base = Path(path)
    if base.suffix in (".svg", ".png"):
        base = base.with_suffix("")
    files = [base.with_name(base.name + ending) for ending in (".svg", ".png")]
    try:
        base.parent.mkdir(parents=True, exist_ok=True)
        # No date and no random names inside: the same taste gives the same file.
        with rc_context({"svg.hashsalt": "palate"}):
            for file in files:
                figure.savefig(
                    file,
                    dpi=150,
                    bbox_inches="tight",
                    pad_inches=0.15,
                    metadata={"Date": None} if file.suffix == ".svg" else None,
                )
    except OSError as error:
        raise InputError(
            f"Cannot write the picture {str(base)!r}: {(error.strerror or str(error)).lower()}; name another folder"
        ) from error
    return files
