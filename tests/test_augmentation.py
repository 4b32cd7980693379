"""Children of a reply: what is made, that it rests on text and seed alone, and what is dropped."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palate.errors import InputError
from palate.satisfaction import wordnet as module
from palate.satisfaction.augmentation import Augmentation, truncate
from palate.satisfaction.wordnet import lexnames, wordnet

TEXT = "The answer was quick and the recipe is excellent. I will certainly cook it again on Sunday."
words = st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=80)


@given(words, st.floats(0.05, 0.95))
def test_a_truncation_is_a_beginning_with_a_word_at_least(text, share):
    kept = truncate(text, share)
    assert text.startswith(kept)
    count = len(text.split())
    if count > 1:
        assert 1 <= len(kept.split()) <= max(1, int(np.ceil(share * count)))


@given(st.integers(2, 30), st.floats(0.1, 0.9))
def test_without_sentences_the_stated_share_is_kept(count, share):
    text = " ".join(["word"] * count)
    assert len(truncate(text, share).split()) == max(1, int(np.ceil(share * count)))


def test_a_truncation_ends_with_a_sentence_where_one_is_near():
    assert truncate(TEXT, 0.6) == "The answer was quick and the recipe is excellent."
    assert truncate(TEXT, 0.2) == "The answer was quick"


def test_synonyms_are_wordnet_s_and_the_rest_stays():
    found = Augmentation(synonyms=3, truncations=(), seed=1).children(TEXT)
    assert found and all(child.how == "synonyms" for child in found)
    for child in found:
        before, after = TEXT.split(), child.text.split()
        assert len(before) == len(after)
        changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
        assert changed
        for one, other in changed:
            plain, new = (word.strip(".").lower() for word in (one, other))
            assert new in {name.lower() for sense in wordnet().synsets(plain) for name in sense.lemma_names()}
            assert one[0].isupper() == other[0].isupper()


def test_children_rest_on_text_and_seed_alone():
    one, same, other = (Augmentation(seed=seed) for seed in (0, 0, 1))
    texts = [TEXT, "Wonderful story, the ending surprised everybody in the office."]
    assert [one.children(text) for text in texts] == [same.children(text) for text in reversed(texts)][::-1]
    assert one.children(texts[1]) != other.children(texts[1])


@pytest.mark.parametrize("text", ["no", "👍", "ok ok", "   ", "não", "x" * 10_000])
def test_what_cannot_be_said_otherwise_has_no_synonyms(text):
    assert [child.text for child in Augmentation(truncations=()).children(text)] == []


def test_a_child_that_says_something_else_is_dropped():
    kept = Augmentation(distance=0.15).keeps(0.8, np.array([0.8, 0.66, 0.6, 0.95, 0.96]))
    assert kept.tolist() == [True, True, False, True, False]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"synonyms": -1}, "synonyms -1 is below 0"),
        ({"replaced": 0.0}, "replaced 0.0 is not a share above 0 and at most 1"),
        ({"truncations": (1.0,)}, "truncations 1.0 is not a share above 0 and below 1"),
        ({"distance": float("nan")}, "distance nan is not a share"),
    ],
)
def test_settings_out_of_range_are_refused(columns, message):
    with pytest.raises(InputError, match=message):
        Augmentation(**columns)


def test_the_list_of_lexical_files_is_wordnet_s():
    rows = [line.split("\t") for line in lexnames().splitlines()]
    assert [int(number) for number, _, _ in rows] == list(range(45))
    assert (rows[3], rows[29], rows[44]) == (["03", "noun.Tops", "1"], ["29", "verb.body", "2"], ["44", "adj.ppl", "3"])
    # What a sense is filed under is read by that number.
    assert wordnet().synsets("dog")[0].lexname() == "noun.animal"


def test_a_machine_without_wordnet_is_told_how_to_get_it(monkeypatch, tmp_path):
    import nltk

    monkeypatch.setattr(module, "SYSTEM", tmp_path / "none")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    with pytest.raises(InputError, match="apt install wordnet-base wordnet-sense-index"):
        wordnet.__wrapped__()
