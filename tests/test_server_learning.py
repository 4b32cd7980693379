"""When a reading counts: provisional evidence is supported by what agrees with it, and not by what does not."""

import pytest
from tests.server_support import live
from tests.support import fitted

from palate.feedback import Comparison, Rating
from palate.satisfaction.scorer import SatisfactionScorer
from palate.satisfaction.sensitive import Sensitive
from palate.server.learning import settle, supports


def extremes(model, axis: int = 0):
    """Of some prompts the known answers that one base reward likes most and least."""
    found = []
    for prompt in dict.fromkeys(model.known.prompts):
        rows = model.rows_of(prompt)
        order = sorted(rows, key=lambda row: model.known.phi[row, axis])
        found.append((prompt, model.known.completions[order[-1]], model.known.completions[order[0]]))
    return found


def test_what_agrees_supports_and_what_contradicts_does_not():
    model = fitted()
    (first, liked, disliked), (second, alike, unlike), *_ = extremes(model)
    waiting = Comparison(user_id="ann", prompt=first, chosen=liked, rejected=disliked)
    agrees = Comparison(user_id="ann", prompt=second, chosen=alike, rejected=unlike)
    contradicts = Comparison(user_id="ann", prompt=second, chosen=unlike, rejected=alike)
    assert supports(model, [], waiting, agrees) and not supports(model, [], waiting, contradicts)


def test_provisional_evidence_counts_once_something_agrees_with_it():
    with live() as server:
        store, model = server.service.store, server.service.model
        ann = store.ensure_user("ann")
        (first, liked, _), (second, alike, unlike), *_ = extremes(model)
        waiting = store.append(ann, Rating(user_id="ann", prompt=first, completion=liked, score=1.0), provisional=True)
        against = store.append(ann, Comparison(user_id="ann", prompt=second, chosen=unlike, rejected=alike))
        settle(server.service, ann, against)
        assert [one.id for one in store.evidence(ann)] == [against]
        store.withdraw(ann, against)
        agrees = store.append(ann, Comparison(user_id="ann", prompt=second, chosen=alike, rejected=unlike))
        settle(server.service, ann, agrees)
        assert {one.id for one in store.evidence(ann)} == {waiting, agrees}


@pytest.fixture(scope="module")
def sensitive():
    return Sensitive.load(SatisfactionScorer.load())


@pytest.mark.parametrize(
    ("text", "topic"),
    [
        ("My doctor says my blood sugar is far too high, I have diabetes", "health"),
        ("I'm 40,000 in debt and the bank rejected my loan", "money"),
        ("my password is swordfish99, please remember it", "passwords"),
        ("I was arrested and my lawyer says I may go to prison", "law"),
        ("Far too long, please be brief.", None),
        ("I love this warm, chatty tone!", None),
        ("😀😀😀", None),
        ("", None),
    ],
)
def test_sensitive_topics_are_told(sensitive, text, topic):
    assert sensitive.topic(text) == topic


def test_a_sensitive_sentence_is_found_in_a_long_text(sensitive):
    filler = "That was a lovely answer and I like the tone of it very much. " * 60
    assert sensitive.topic(filler) is None
    assert (
        sensitive.topic(f"{filler} My oncologist says the chemotherapy for my cancer starts on Monday. {filler}")
        == "health"
    )
