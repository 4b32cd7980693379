"""What a benchmark leaves behind: figures as JSON, a table, and a picture."""

import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.optimize import isotonic_regression

from palate.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _GRID = "#292524", "#e7e5e4"
_COLOURS = ("#0f766e", "#b45309", "#57534e", "#7c3aed", "#be123c", "#1d4ed8", "#a16207")


@dataclass(frozen=True)
class Line:
    """One method in a picture, from figures called `{key}.{x}` and, for its interval, the same with `.low` and `.high`.

    Args:
        key: such as ``"auc.bald"``; a figure called just that is drawn level over all x.
        label: in a few words, at the line's end.
        colour: of the line and its interval.
    """

    key: str
    label: str
    colour: str


@dataclass(frozen=True)
class Picture:
    """Lines over the same counts.

    Args:
        title: above.
        x_label: under the counts.
        y_label: of the figures.
        x: the counts, ascending.
        lines: the methods.
        scale: of the counts: ``answers`` (each further one tells less than the one before), ``linear``, or ``log`` for
            both axes.
    """

    title: str
    x_label: str
    y_label: str
    x: Sequence[int]
    lines: Sequence[Line] = field(default_factory=list)
    scale: Literal["answers", "linear", "log"] = "answers"


@dataclass(frozen=True)
class Matrix:
    """Counts by what is true and what was said, each row shaded by its shares.

    Args:
        title: above.
        rows: what is true.
        columns: what was said.
        counts: (rows, columns).
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    counts: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Points:
    """Methods as points in a plane, those of one kind joined.

    Args:
        title: above.
        x_label: under the axis.
        y_label: above the axis.
        series: (x, y) of each method, by kind.
    """

    title: str
    x_label: str
    y_label: str
    series: Mapping[str, Sequence[tuple[float, float]]]


@dataclass(frozen=True)
class Result:
    """What a benchmark measured.

    Args:
        name: of the benchmark.
        figures: by flat name, such as ``auc.bald.10``; intervals end in ``.low`` and ``.high``.
        table: the same for reading, in Markdown.
        picture: what to draw of it, if anything.
        more: further pictures by what their files' names end in, such as ``turned`` for NAME-turned.svg.
        pages: further pages in Markdown, in the same way.
    """

    name: str
    figures: dict[str, float]
    table: str
    picture: Picture | None = None
    more: Mapping[str, Picture | Matrix | Points] = field(default_factory=dict)
    pages: Mapping[str, str] = field(default_factory=dict)

    def write(self, command: str, seconds: float, output: str | Path) -> dict[str, object]:
        """Write NAME.json, NAME.md, and NAME.svg and NAME.png; see `write`."""
        linked = "".join(f"\n[{end.capitalize()}]({self.name}-{end}.md)\n" for end in self.pages)
        shown = "".join(f"\n![{picture.title}]({self.name}-{end}.svg)\n" for end, picture in self.more.items())
        written = write(
            self.name, command, self.figures, seconds, output, table=self.table + linked + shown, picture=self.picture
        )
        for end, page in self.pages.items():
            _replace(Path(output) / f"{self.name}-{end}.md", page.encode())
        for end, picture in self.more.items():
            for kind in ("svg", "png"):
                match picture:
                    case Picture():
                        drawn = draw(picture, self.figures, kind)
                    case Matrix():
                        drawn = draw_matrix(picture, kind)
                    case Points():
                        drawn = draw_points(picture, kind)
                _replace(Path(output) / f"{self.name}-{end}.{kind}", drawn)
        return written


def machine() -> str:
    """The machine in words, without its name.

    Example:
        >>> " cores, " in machine() and "Python 3" in machine()
        True
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        torch = f"PyTorch {version('torch')}"
    except PackageNotFoundError:
        torch = "no PyTorch"
    return f"{_processor()}, {cores} cores, {platform.system()}, Python {platform.python_version()}, {torch}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write(
    name: str,
    command: str,
    figures: Mapping[str, float],
    seconds: float,
    output: str | Path,
    *,
    table: str,
    picture: Picture | None,
) -> dict[str, object]:
    """Write NAME.json, NAME.md, NAME.svg and NAME.png; each appears whole or not at all.

    Args:
        name: of the benchmark.
        command: that measured it, as typed.
        figures: flat, by name.
        seconds: that it took.
        output: folder, made where it is missing.
        table: the figures for reading, in Markdown.
        picture: what to draw of them.

    Returns:
        What the JSON file holds.

    Raises:
        InputError: the folder cannot be written.
        MissingExtraError: matplotlib is not installed; JSON and table are written before.
    """
    folder, on = Path(output), machine()
    record: dict[str, object] = {
        "command": command,
        "machine": on,
        "seconds": round(seconds, 1),
        "figures": dict(figures),
    }
    shown = f"![{picture.title}]({name}.svg)\n\n" if picture else ""
    page = f"{table}\n{shown}`{command}`, {seconds:.0f} s on {on}.\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / f"{name}.json", (json.dumps(record, indent=2, allow_nan=False) + "\n").encode())
        _replace(folder / f"{name}.md", page.encode())
        if picture:
            for kind in ("svg", "png"):
                _replace(folder / f"{name}.{kind}", draw(picture, figures, kind))
    except OSError as error:
        raise InputError(
            f"Cannot write figures to {str(folder)!r}: {(error.strerror or str(error)).lower()}; name another folder"
        ) from error
    return record


def _replace(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, its first column left-aligned and the others right, padded so that it reads as plain text too.

    Example:
        >>> print(markdown(["answers", "0"], [["bald", "0.66"]]), end="")
        | answers |    0 |
        | :------ | ---: |
        | bald    | 0.66 |
    """
    widths = [max(4, *(len(row[i]) for row in (header, *rows))) for i in range(len(header))]
    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]

    def line(cells: Sequence[str]) -> str:
        padded = [cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]
        return "| " + " | ".join(padded) + " |\n"

    return line(header) + line(rule) + "".join(line(row) for row in rows)


@contextmanager
def _canvas(kind: str, width: float = 7.6) -> Iterator[tuple["Axes", BytesIO]]:
    """Axes to draw on, and where the picture is once the context ends; the same drawing gives the same file.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError("matplotlib", "plot") from error
    out = BytesIO()
    with rc_context({"svg.hashsalt": "palate", "font.size": 11, "text.color": _INK, "axes.labelcolor": _INK}):
        figure = Figure(figsize=(width, 4.4), layout="constrained")
        yield figure.add_subplot(), out
        figure.savefig(out, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)


def draw(picture: Picture, figures: Mapping[str, float], kind: str) -> bytes:
    """The picture as `svg` or `png`; the same figures give the same file.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    with _canvas(kind) as (axes, out):
        if picture.scale == "log":
            axes.set(xscale="log", yscale="log")
        elif picture.scale == "answers":
            axes.set_xscale("function", functions=(np.log1p, np.expm1))
        if picture.scale != "linear":
            axes.set_xticks(list(picture.x), [f"{x:,}" for x in picture.x], minor=False)
        axes.grid(axis="y", color=_GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0, colors=_INK)
        axes.tick_params(axis="x", length=3)
        axes.set_xlabel(picture.x_label)
        axes.set_title(f"{picture.title}\n", loc="left", fontsize=13)
        axes.text(0, 1.02, picture.y_label, transform=axes.transAxes, color="#57534e")
        ends = [_draw_line(axes, line, picture.x, figures) for line in picture.lines]
        _label(axes, picture, ends)
    return out.getvalue()


def draw_matrix(matrix: Matrix, kind: str) -> bytes:
    """The matrix as `svg` or `png`.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    counts = np.array(matrix.counts, np.float64)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    with _canvas(kind, width=5.6) as (axes, out):
        axes.imshow(share, cmap="Greens", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(matrix.columns)), list(matrix.columns))
        axes.set_yticks(range(len(matrix.rows)), list(matrix.rows))
        axes.tick_params(length=0, colors=_INK)
        axes.spines[:].set_visible(False)
        axes.set(xlabel="read", ylabel="true")
        axes.set_title(f"{matrix.title}\n", loc="left", fontsize=13)
        for (i, j), count in np.ndenumerate(counts):
            axes.text(j, i, f"{count:.0f}", ha="center", va="center", color="white" if share[i, j] > 0.55 else _INK)
    return out.getvalue()


def _draw_line(axes: "Axes", line: Line, x: Sequence[int], figures: Mapping[str, float]) -> float:
    """Draw one line with its interval; where it ends."""
    level = line.key in figures
    keys = {at: line.key if level else f"{line.key}.{at}" for at in x}
    at = [place for place, key in keys.items() if key in figures]
    value = [figures[keys[place]] for place in at]
    if all(f"{keys[place]}.low" in figures for place in at):
        low, high = ([figures[keys[place] + suffix] for place in at] for suffix in (".low", ".high"))
        axes.fill_between(at, low, high, color=line.colour, alpha=0.16, linewidth=0)
    axes.plot(at, value, color=line.colour, linewidth=2, marker=None if level or len(at) > 20 else "o", markersize=4.5)
    return value[-1]


def _label(axes: "Axes", picture: Picture, ends: Sequence[float]) -> None:
    """Put each label at its line's end, no two closer than a line of text."""
    unit = np.log10 if picture.scale == "log" else np.asarray
    bottom, top = unit(axes.get_ylim())
    order = np.argsort(ends)
    gaps = 0.062 * (top - bottom) * np.arange(len(ends))
    # The nearest places, by least squares, that keep the gaps.
    place = isotonic_regression(unit(np.array(ends))[order] - gaps).x + gaps
    for i, y in zip(order, place, strict=True):
        line = picture.lines[i]
        axes.annotate(
            line.label,
            xy=(picture.x[-1], 10**y if picture.scale == "log" else y),
            xytext=(9, 0),
            textcoords="offset points",
            color=line.colour,
            va="center",
            annotation_clip=False,
        )


def draw_points(points: Points, kind: str) -> bytes:
    """The points as `svg` or `png`.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    with _canvas(kind) as (axes, out):
        axes.grid(axis="y", color=_GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0, colors=_INK)
        for (name, places), colour, mark in zip(points.series.items(), _COLOURS, "os^Dvp*", strict=False):
            x, y = zip(*places, strict=True)
            axes.plot(x, y, color=colour, marker=mark, markersize=5, label=name)
        axes.set_xlabel(points.x_label)
        axes.set_title(f"{points.title}\n", loc="left", fontsize=13)
        axes.text(0, 1.02, points.y_label, transform=axes.transAxes, color="#57534e")
        axes.legend(frameon=False, fontsize=9, loc="lower right")
    return out.getvalue()
