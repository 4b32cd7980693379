"""Simulated people who answer the questions that tell the most of them, as a product would ask them."""

from dataclasses import dataclass

import numpy as np

from palate.bench.people import Kind, Person
from palate.data import load_answers
from palate.feedback import Comparison, Text, as_text
from palate.rewards import RewardModel
from palate.rewards.beliefs import Belief
from palate.rewards.elicitation import Pair, next_query

_ASKED, _FLIP = 10, 0.05


@dataclass(frozen=True)
class Asked:
    """Somebody who answered ten questions.

    Args:
        kind: what they like.
        number: of the kind, for intervals that draw whole kinds.
        belief: what is known of them.
        said: their answers.
        personal: whether these support personalising.
    """

    kind: Kind
    number: int
    belief: Belief
    said: list[Comparison]
    personal: bool


def ask(model: RewardModel, kind: Kind, number: int, rng: np.random.Generator) -> Asked:
    """Ask a person of a kind ten questions; one answer in twenty is a slip."""
    answers = {(a.prompt, a.text): a for a in load_answers()}
    person = Person(kind)
    said: list[Comparison] = []
    asked: list[Pair] = []
    while len(said) < _ASKED:
        belief = model.posterior(said)
        query = next_query(model, belief, asked=asked, last_prompt=said[-1].prompt if said else None, rng=rng)
        assert query is not None
        asked.append(frozenset(query.rows))
        texts = (query.response_a, query.response_b)
        likes = person.reward([answers[as_text(query.prompt), as_text(text)] for text in texts])
        if likes[0] == likes[1]:
            said.append(_choice(query.prompt, *texts, strength=0.5))
            continue
        better = int(likes[1] > likes[0]) ^ int(rng.random() < _FLIP)
        said.append(_choice(query.prompt, texts[better], texts[1 - better]))
    return Asked(kind, number, model.posterior(said), said, model.weigh(said).personal)


def _choice(prompt: Text, chosen: Text, rejected: Text, strength: float = 1.0) -> Comparison:
    return Comparison(user_id="simulated", prompt=prompt, chosen=chosen, rejected=rejected, strength=strength)
