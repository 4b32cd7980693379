"""What an operator sees: people and answers, whether personalising helps, and whether figures can be trusted."""

from datetime import timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import sqlalchemy as sa

from palate.rewards.evidence import heard
from palate.server.pages.drawing import bars, points
from palate.server.service import Service
from palate.store import rows
from palate.store import tables as t
from palate.store.database import READ

_DAYS = 14
_PEOPLE = 200  # whose choices calibration is looked at on


def dashboard(service: Service, tenant: str) -> dict[str, Any]:
    """Tiles and plots of a tenant, over the last fortnight."""
    since = rows.now() - timedelta(days=_DAYS)
    number = service.tenant(tenant).id
    here = (t.completion.c.tenant_id == number) & (t.completion.c.created_at >= since)
    names = ("id", "user_id", "created_at", "generic", "strategy", "guarded", "seconds")
    columns = [t.completion.c[name] for name in names]
    with service.store.database.transaction(READ) as db:
        users = db.scalar(sa.select(sa.func.count()).where(t.user.c.tenant_id == number)) or 0
        answers = db.execute(sa.select(*columns).where(here)).all()
        pleased = _pleased(db, number)
    days = [(rows.now() - timedelta(days=back)).date() for back in range(_DAYS - 1, -1, -1)]
    by_day = {day: [0.0, 0.0] for day in days}
    for row in answers:
        if row.created_at.date() in by_day:
            by_day[row.created_at.date()][int(row.strategy == "off")] += 1
    seconds = np.array([row.seconds for row in answers] or [0.0])
    jobs = service.jobs.counts()
    tiles = [
        ("people", f"{users:,}"),
        ("answers in a fortnight", f"{len(answers):,}"),
        ("median seconds an answer", f"{np.median(seconds):.2f}"),
        ("jobs waiting", f"{jobs['queued']:,}"),
        ("jobs failed", f"{jobs['failed']:,}"),
    ]
    plots = [
        _helps(answers, pleased),
        {
            "title": "Answers a day",
            "words": "Personal ones in colour, usual ones in grey.",
            "svg": bars(
                [(f"{d:%d %b}", by_day[d][0], by_day[d][1]) for d in days], ("personal", "usual"), "Answers a day"
            ),
        },
        _calibration(service, tenant),
        {
            "title": "Seconds an answer takes",
            "words": ", ".join(f"{q} %: {np.quantile(seconds, q / 100):.2f} s" for q in (50, 90, 99)) + ".",
            "svg": bars(_histogram(seconds), ("answers", ""), "Seconds an answer takes"),
        },
    ]
    return {"tiles": tiles, "plots": plots}


def _pleased(db: sa.Connection, tenant: int) -> dict[str, float]:
    """How pleased people were with each answer, in [0, 1]: by their last rating, else by the reply to it."""
    found: dict[str, float] = {}
    replies = (
        sa.select(t.score.c.evidence_id, t.score.c.satisfaction)
        .join(t.user, t.user.c.id == t.score.c.user_id)
        .where(t.user.c.tenant_id == tenant, t.score.c.number == 0, t.score.c.evidence_id.like("%/reply/%"))
        .order_by(t.score.c.seq)
    )
    found |= {row.evidence_id.partition("/")[0]: row.satisfaction for row in db.execute(replies)}
    said = sa.select(t.feedback.c.completion_id, t.feedback.c.value).where(
        t.feedback.c.tenant_id == tenant, t.feedback.c.name == "rating"
    )
    found |= {row.completion_id: float(row.value) for row in db.execute(said) if row.value is not None}
    return found


def _helps(answers: Any, pleased: dict[str, float]) -> dict[str, Any]:
    """Personal answers against those that chance made usual ones."""
    arms: dict[str, list[tuple[int, float]]] = {"personal": [], "usual": []}
    for row in answers:
        if row.id in pleased and (row.generic or (row.strategy != "off" and not row.guarded)):
            arms["usual" if row.generic else "personal"].append((row.user_id, pleased[row.id]))
    counts = {name: len(values) for name, values in arms.items()}
    title = "Does personalising help?"
    if min(counts.values()) < 2:
        words = (
            "A small share of answers is the usual one by chance, so that this can be told. So far people said how "
            f"pleased they were with {counts['personal']:,} personal and {counts['usual']:,} such usual answers: "
            "too few."
        )
        return {"title": title, "words": words, "svg": None}
    means = {name: float(np.mean([value for _, value in values])) for name, values in arms.items()}
    low, high = _interval(arms)
    words = (
        f"People are {100 * means['personal']:.0f} % pleased with personal answers ({counts['personal']:,}) and "
        f"{100 * means['usual']:.0f} % with usual ones by chance ({counts['usual']:,}): {100 * low:+.0f} to "
        f"{100 * high:+.0f} points at 95 %."
    )
    return {
        "title": title,
        "words": words,
        "svg": bars([("pleased", means["personal"], means["usual"])], ("personal", "usual"), words),
    }


def _interval(arms: dict[str, list[tuple[int, float]]], draws: int = 1_000) -> tuple[float, float]:
    """Bootstrap over people of the difference of means."""
    rng = np.random.default_rng(0)
    users = sorted({user for values in arms.values() for user, _ in values})
    place = {user: i for i, user in enumerate(users)}
    sums, counts = np.zeros((2, len(users))), np.zeros((2, len(users)))
    for arm, values in enumerate(arms.values()):
        for user, value in values:
            sums[arm, place[user]] += value
            counts[arm, place[user]] += 1
    weights = rng.multinomial(len(users), np.full(len(users), 1 / len(users)), draws)
    totals, sizes = weights @ sums.T, np.maximum(weights @ counts.T, 1e-9)
    difference = totals[:, 0] / sizes[:, 0] - totals[:, 1] / sizes[:, 1]
    whole = (weights @ counts.T).min(axis=1) > 0
    low, high = np.quantile(difference[whole], [0.025, 0.975]) if whole.any() else (np.nan, np.nan)
    return float(low), float(high)


def _calibration(service: Service, tenant: str) -> dict[str, Any]:
    """How often choices came out as they were foretold before they were made."""
    foretold: list[float] = []
    for user in service.store.users(tenant)[-_PEOPLE:]:
        said = heard([one.record for one in service.store.evidence(user)])
        if said and (choices := [i for i, one in enumerate(said) if getattr(one, "strength", None) == 1.0]):
            loss = service.model.follow(said, half_life=user.half_life_days).log_loss
            foretold += np.exp(-loss[choices]).tolist()
    title = "Do choices come out as foretold?"
    if len(foretold) < 20:
        return {"title": title, "words": f"{len(foretold)} choices so far: too few to tell.", "svg": None}
    p = np.array(foretold)
    both, came = np.concatenate([p, 1 - p]), np.concatenate([np.ones_like(p), np.zeros_like(p)])
    edges = np.linspace(0, 1, 11)
    rows_ = []
    for low, high in pairwise(edges.tolist()):
        inside = (both >= low) & (both < high if high < 1 else both <= high)
        if inside.any():
            rows_.append((float(both[inside].mean()), float(came[inside].mean()), float(inside.mean())))
    off = sum(share * abs(observed - expected) for expected, observed, share in rows_)
    words = f"Each of {len(p):,} choices, foretold from what the person had said before; on average {off:.3f} off."
    return {"title": title, "words": words, "svg": points(rows_, words)}


def _histogram(seconds: Any) -> list[tuple[str, float, float]]:
    edges = [0, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, np.inf]
    counts, _ = np.histogram(seconds, edges)
    names = [f"<{edge:g}" for edge in edges[1:-1]] + [">10"]
    return [(name, float(count), 0.0) for name, count in zip(names, counts, strict=True)]
