"""The page of the Facets benchmark: its tables and its picture, from the figures."""

from collections.abc import Iterable, Mapping, Sequence

from palate.bench.ablations import ABLATED_AT, ARMS
from palate.bench.peers import OWN_QUESTIONS, RANDOM_DRAWS
from palate.bench.report import Line, Picture, markdown
from palate.rewards import DEFAULT_STRATEGY

PEER_NAMES: Mapping[str, str] = {
    "bradley_terry": "one reward for all (Bradley–Terry)",
    "per_user": "a model per person",
    "neighbours": "nearest neighbours",
    "pref": "PReF as published",
    OWN_QUESTIONS: "PReF as published, its own questions",
    "vpl": "VPL",
    "pal": "PAL",
    "lore": "LoRe",
}
"""What peers are called in tables and pictures."""

_OURS = {DEFAULT_STRATEGY: "Palate, its own questions", "random": "Palate, asked at random"}
_CALIBRATION = {"accuracy": "accuracy", "log_loss": "log loss (nats)", "ece": "calibration error"}
_SINGLE = {
    "pick_rate.0": "the best of 12 answers is picked, before any answer",
    "pick_rate.10": "the best of 12 answers is picked, after 10 answers",
    "seconds_per_answer": "seconds from an answer to the next question, 10,000 pairs (median)",
    "seconds_per_answer.p95": "the same, 95th percentile",
    "fit_seconds.warm": "seconds to fit, texts read before",
    "fit_seconds.cold": "seconds to fit, from nothing",
    "fit_peak_memory_mb": "most memory of that fit, MB",
}

Figures = Mapping[str, float]


def page(figures: Figures, strategies: Sequence[str], answers: Sequence[int], peers: Iterable[str]) -> str:
    """Everything for reading, in Markdown."""
    peers = list(peers)
    single = [[text, f"{figures[key]:.3g}"] for key, text in _SINGLE.items() if key in figures]
    more = [[name, *_cells(figures, f"{key}.{DEFAULT_STRATEGY}", answers)] for key, name in _CALIBRATION.items()]
    return (
        f"# Facets\n\n{figures['people']:.0f} people of {figures['kinds']:.0f} kinds, unknown to the fit like the "
        "prompts that they are asked about; in brackets 95 % intervals over kinds. What is asked at random is averaged "
        f"over {RANDOM_DRAWS} draws of the questions, the same for every method.\n\n"
        + _questions(figures, strategies, answers)
        + _against_peers(figures, answers, peers)
        + _picks(figures, answers, peers)
        + _ablated(figures)
        + f"With `{DEFAULT_STRATEGY}`, the default:\n\n{markdown(['', *map(str, answers)], more)}\n"
        + markdown(["", "figure"], single)
    )


def _questions(figures: Figures, strategies: Sequence[str], answers: Sequence[int]) -> str:
    after = [t for t in answers if t > 0]
    auc = [[f"asked by `{name}`", *_cells(figures, f"auc.{name}", answers)] for name in strategies]
    gain = [
        [f"`{name}` less `random`", *_cells(figures, f"auc.{name}_minus_random", after)]
        for name in strategies
        if name != "random"
    ]
    return (
        f"AUC on what they were not asked, after so many answers:\n\n{markdown(['', *map(str, answers)], auc)}\n"
        f"What choosing the questions gains:\n\n{markdown(['', *map(str, after)], gain)}\n"
    )


def _against_peers(figures: Figures, answers: Sequence[int], peers: Sequence[str]) -> str:
    after = [t for t in answers if t in (5, 10, 20)]
    auc = [[text, *_cells(figures, f"auc.{key}", answers)] for key, text in _OURS.items()]
    auc += [[PEER_NAMES[peer], *_cells(figures, f"auc.{peer}", answers)] for peer in peers]
    rows = [
        [
            PEER_NAMES[peer],
            *(cell for ours in _OURS for cell in _cells(figures, f"auc.{ours}_minus_{peer}", after, signed=True)),
        ]
        for peer in peers
    ]
    header = ["less", *(f"{way} {t}" for way in ("own", "random") for t in after)]
    tuned = "tuned on held-out bundled people with the same budget" if _tuned(figures) else "untuned, at their defaults"
    return (
        f"## Against peers\n\nAUC on the same features and rows, peers {tuned}, all but two asked the same random "
        f"questions:\n\n{markdown(['', *map(str, answers)], auc)}\n"
        "Palate less each peer, paired by person, after so many answers, with its own questions and with the "
        f"same random ones:\n\n{markdown(header, rows)}\n"
    )


def _picks(figures: Figures, answers: Sequence[int], peers: Sequence[str]) -> str:
    after = [t for t in answers if f"gain_share.{t}" in figures]
    if not after:
        return ""
    methods = {"": _OURS[DEFAULT_STRATEGY], ".random": _OURS["random"]} | {
        f".{peer}": PEER_NAMES[peer] for peer in peers
    }
    gain, wins = (
        [[text, *_cells(figures, f"{key}{end}", after)] for end, text in methods.items()]
        for key in ("gain_share", "win_rate")
    )
    header = ["", *map(str, after)]
    return (
        "## The picked answer\n\nOf the 14 answers to a prompt, spoilt ones among them, the one that a method puts "
        "first, by what the person truly likes: the share of what a perfect picker gains over one reward for all, "
        f"after so many answers:\n\n{markdown(header, gain)}\n"
        f"How often it is liked better than the pick of one reward for all, ties half:\n\n{markdown(header, wins)}\n"
    )


def _ablated(figures: Figures) -> str:
    rows = [
        [
            text,
            *_cells(figures, f"ablation.{arm}", ABLATED_AT),
            *_cells(figures, f"ablation.{arm}_minus_full", (10,), True),
        ]
        for arm, text in ARMS.items()
        if f"ablation.{arm}.0" in figures
    ]
    if not rows:
        return ""
    header = ["", *map(str, ABLATED_AT), "less the whole, 10"]
    return (
        f"## What each part does\n\nAUC with `{DEFAULT_STRATEGY}` and the prior as it is fitted, its scale not "
        f"cross-fitted:\n\n{markdown(header, rows)}\n"
    )


def _tuned(figures: Figures) -> bool:
    return any(name.startswith("held_out_auc.") for name in figures)


def _cells(figures: Figures, key: str, answers: Sequence[int], signed: bool = False) -> list[str]:
    return [_interval(figures, f"{key}.{t}", signed) for t in answers]


def _interval(figures: Figures, name: str, signed: bool = False) -> str:
    if name not in figures:
        return ""
    form = "+.3f" if signed else ".3f"
    low, high, sd = (figures.get(name + end) for end in (".low", ".high", ".sd"))
    value = format(figures[name], form)
    if sd is not None:
        return f"{value} ± {sd:.3f}"
    return value if low is None or high is None else f"{value} ({low:{form}} to {high:{form}})"


def picture(answers: Sequence[int]) -> Picture:
    """AUC over answers: ours, and those of the peers that stand for a family."""
    # Colours of Okabe and Ito (2008), told apart by the colour-blind.
    lines = [
        Line(f"auc.{DEFAULT_STRATEGY}", "Palate, its own questions", "#d55e00"),
        Line("auc.random", "Palate, asked at random", "#0072b2"),
        Line(f"auc.{OWN_QUESTIONS}", "PReF, its own questions", "#cc79a7"),
        Line("auc.lore", "LoRe", "#56b4e9"),
        Line("auc.vpl", "VPL", "#e69f00"),
        Line("auc.per_user", "a model per person", "#007a5a"),
        Line("auc.bradley_terry", "one reward for all", "#57534e"),
    ]
    return Picture(
        title="How well a new person is known",
        x_label="answers given",
        y_label="AUC on unseen prompts, people of unseen kinds; bands: 95 %",
        x=answers,
        lines=lines,
    )
