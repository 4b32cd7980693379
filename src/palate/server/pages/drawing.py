"""Pictures and sentences of the pages."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup, escape

from palate.feedback import as_text
from palate.server.schemas import Style

_MIDDLE, _HALF = 320.0, 185.0


def drawn(styles: Sequence[Style]) -> list[dict[str, Any]]:
    """Where dots and bands of a taste stand in a picture 640 wide; the same style in the same row each time."""
    rows = []
    for s in sorted(styles, key=lambda s: min(s.word, s.other)):
        # A row's left end is the word that comes first in the alphabet.
        low, high = sorted((s.word, s.other))
        toward = 1.0 if s.word == high else -1.0
        population = s.population if s.high == high else -s.population
        rows.append((low, high, toward * s.liking, s.deviation, population, s.spread))
    reach = max(
        [abs(middle) + 1.96 * half for *_, own, sure, people, spread in rows for middle, half in
         ((own, sure), (people, spread))], default=0.0
    ) or 1.0  # fmt: skip

    def at(value: float) -> float:
        return round(_MIDDLE + _HALF * value / reach, 1)

    def span(middle: float, half: float) -> dict[str, float]:
        return {"x": at(middle - half), "width": round(at(middle + half) - at(middle - half), 1)}

    return [
        {
            "low": low,
            "high": high,
            "liked": "high" if own > 0 else "low",
            "at": at(own),
            "own": span(own, 1.96 * deviation),
            "people": span(population, 1.96 * spread),
        }
        for low, high, own, deviation, population, spread in rows
    ]


def told(said: dict[str, Any]) -> str:
    """A piece of evidence in a sentence."""

    def cut(text: Any) -> str:
        shown = " ".join(as_text(text).split())
        return shown if len(shown) <= 90 else shown[:89] + "…"

    if "chosen" in said:
        if said.get("strength") == 0.5:
            return f"Found “{cut(said['chosen'])}” and “{cut(said['rejected'])}” alike"
        return f"Chose “{cut(said['chosen'])}” over “{cut(said['rejected'])}”"
    if "score" in said:
        return f"Gave {said['score']:.2g} to “{cut(said['completion'])}”"
    return f"Typed “{cut(said['reply'])}”, read as {100 * said.get('satisfaction', 0.5):.0f} % pleased"


def bars(rows: Sequence[tuple[str, float, float]], names: tuple[str, str], label: str) -> Markup:
    """Two bars beside each other for each row: (name, first, second)."""
    width, height, foot = 640, 200, 24
    most = max([max(a, b) for _, a, b in rows] + [1e-9])
    step = width / max(len(rows), 1)
    parts = [Markup('<line class="grid" x1="0" x2="{}" y1="{}" y2="{}"/>').format(width, height, height)]
    for place, (name, *values) in enumerate(rows):
        for number, value in enumerate(values):
            tall = round((height - 20) * value / most, 1)
            x = round(step * (place + 0.15 + 0.35 * number), 1)
            mark = Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}"><title>{} {}: {}</title></rect>')
            of = ("bar", "other")[number]
            size = round(0.3 * step, 1), tall
            parts.append(mark.format(of, x, height - tall, *size, name, names[number], f"{value:g}"))
        if len(rows) <= 9 or place % 2 == 0:
            text = Markup('<text x="{}" y="{}">{}</text>')
            parts.append(text.format(round(step * (place + 0.15), 1), height + 18, name))
    return _svg(width, height + foot, label, parts)


def points(rows: Sequence[tuple[float, float, float]], label: str) -> Markup:
    """Observed over foretold, with the diagonal: (foretold, observed, share of all)."""
    side = 260
    parts = [
        Markup('<line class="grid" x1="0" y1="{}" x2="{}" y2="0"/>').format(side, side),
        Markup('<line class="grid" x1="0" y1="{}" x2="{}" y2="{}"/>').format(side, side, side),
        Markup('<line class="grid" x1="0" y1="0" x2="0" y2="{}"/>').format(side),
    ]
    for foretold, observed, share in rows:
        circle = Markup('<circle class="bar" cx="{}" cy="{}" r="{}"><title>foretold {}, observed {}</title></circle>')
        where = round(side * foretold, 1), round(side * (1 - observed), 1), round(3 + 12 * share**0.5, 1)
        parts.append(circle.format(*where, f"{foretold:.2f}", f"{observed:.2f}"))
    return _svg(side, side, label, parts, "-16 -16 292 292")


def _svg(width: float, height: float, label: str, parts: Sequence[Markup], box: str | None = None) -> Markup:
    head = Markup('<svg class="plot" viewBox="{}" role="img" aria-label="{}">').format(
        box or f"0 0 {width} {height}", escape(label)
    )
    return head + Markup("").join(parts) + Markup("</svg>")
