"""The bundled Facets: 1,680 answers to 120 prompts, and what 112 simulated people chose among them.

The texts were written for Palate, after the recipe of PReF's Attributes data set (arXiv 2503.06358), and
are kept folded: one prompt a line, and a person's choices as ids. README.md beside this file says how.
"""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType

from palate.feedback import Comparison

POLES: Mapping[str, tuple[str, int]] = MappingProxyType(
    {
        "verbose": ("length", 1),
        "concise": ("length", -1),
        "formal": ("formality", 1),
        "informal": ("formality", -1),
        "humorous": ("humour", 1),
        "serious": ("humour", -1),
        "engaging": ("elicitation", 1),
        "unengaging": ("elicitation", -1),
        "polite": ("politeness", 1),
        "blunt": ("politeness", -1),
        "enthusiastic": ("enthusiasm", 1),
        "demure": ("enthusiasm", -1),
        "confident": ("confidence", 1),
        "uncertain": ("confidence", -1),
    }
)
"""Each style pole as its attribute and its sign there."""


@dataclass(frozen=True)
class Answer:
    """One answer to a prompt, written to show three poles.

    Attributes:
        response_id: Unique over all answers, for example ``"p000r07"``; starts with the prompt's id.
        prompt_id: Unique over all prompts, for example ``"p000"``.
        category: What the prompt is about, in words.
        prompt: What was asked.
        text: The answer.
        attributes: The three attributes that it shows, each 1 or -1 (see `POLES`).
        spoilt: ``"cut"`` (broken off half-way), ``"off-topic"`` (answers another prompt), or None.
    """

    response_id: str
    prompt_id: str
    category: str
    prompt: str
    text: str
    attributes: Mapping[str, int]
    spoilt: str | None = None


def load_answers() -> list[Answer]:
    """The 1,680 bundled answers: 14 to each of 120 prompts, prompt by prompt.

    Example:
        >>> answer = load_answers()[0]
        >>> answer.response_id, answer.category, dict(answer.attributes)
        ('p000r00', 'everyday advice and life admin', {'elicitation': -1, 'formality': 1, 'confidence': 1})
    """
    return list(_answers())


def load_style_answers() -> list[Answer]:
    """More answers in the same poles, to further prompts: 12 to each, none spoilt, nobody's choices among them.

    The style adapter is trained on them (scripts/train_style_adapter.py).

    Example:
        >>> answer = load_style_answers()[0]
        >>> len(answer.attributes), answer.spoilt
        (3, None)
    """
    return list(_unfold_prompts("style_prompts.jsonl"))


def load_people() -> list[Comparison]:
    """The 8,960 choices of the 112 bundled people, 80 each, person by person, with their `kind`.

    Both completions of a comparison answer one prompt. About 5 in 100 choices are slips.

    Example:
        >>> choice = load_people()[0]
        >>> choice.user_id, choice.kind
        ('t0000', 'engaging+blunt')
    """
    return list(_people())


@cache
def _answers() -> tuple[Answer, ...]:
    return tuple(_unfold_prompts("prompts.jsonl"))


def _unfold_prompts(name: str) -> Iterator[Answer]:
    for line in _lines(name):
        row = json.loads(line)
        for answer in row["answers"]:
            yield Answer(
                response_id=row["prompt_id"] + answer["id"],
                prompt_id=row["prompt_id"],
                category=row["category"],
                prompt=row["prompt"],
                text=answer["text"],
                attributes=dict(POLES[pole] for pole in answer["poles"]),
                spoilt=answer.get("spoilt"),
            )


@cache
def _people() -> tuple[Comparison, ...]:
    return tuple(_unfold_choices())


def _unfold_choices() -> Iterator[Comparison]:
    by_id = {answer.response_id: answer for answer in _answers()}
    for row in csv.DictReader(_lines("choices.csv")):
        for choice in row["choices"].split():
            chosen_id, _, suffix = choice.partition(">")
            chosen = by_id[chosen_id]
            yield Comparison(
                user_id=row["user_id"],
                prompt=chosen.prompt,
                chosen=chosen.text,
                rejected=by_id[chosen.prompt_id + suffix].text,
                kind=row["kind"],
            )


def _lines(name: str) -> list[str]:
    return files(__name__).joinpath(name).read_text(encoding="utf-8").rstrip("\n").split("\n")
