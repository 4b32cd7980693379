"""The satisfaction scorer: what it says of plain cases, that it reads each reply by itself, and its folder."""

import json
import shutil
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from palate.data import POLES
from palate.errors import InputError, ModelError
from palate.feedback import Reply
from palate.satisfaction.figures import ece, reliability, reply_figures
from palate.satisfaction.lessons import read_replies
from palate.satisfaction.network import LEVELS, TARGETS
from palate.satisfaction.scorer import Readings, SatisfactionScorer

PLEASED = ["Perfect, exactly the tone I wanted!", "this is brilliant, thank you so much", "love it"]
DISPLEASED = ["This is awful, dull and useless.", "no, that is completely wrong", "useless, I'm cancelling"]


@cache
def scorer() -> SatisfactionScorer:
    return SatisfactionScorer.load()


def reply(text: str, **columns) -> Reply:
    return Reply(user_id="ann", prompt="How do I boil an egg?", completion="Nine minutes.", reply=text, **columns)


def test_plain_cases_are_read_as_anybody_would():
    assert scorer().score(PLEASED).satisfaction.min() > 0.65
    assert scorer().score(DISPLEASED).satisfaction.max() < 0.35
    targets = scorer().score(["far too long and rambling, be brief", "the formula gives #REF"]).target
    assert targets[0] in ("taste", "both")
    assert targets[1] == "task"


def test_another_language_is_left_open():
    foreign = [
        "das war leider gar nicht hilfreich",
        "非常感谢，太好了",
        "это просто ужасно",
        "c'est parfait, merci bien",
    ]
    assert scorer().score(foreign).confidence.max() < 0.35
    assert scorer().score(PLEASED).confidence.min() > scorer().score(foreign).confidence.max()


def test_a_reply_is_read_alone_as_in_company():
    texts = [*PLEASED, *DISPLEASED, "ok", "x " * 400]
    together = scorer().score(texts)
    alone = np.concatenate([scorer().score([text]).levels for text in texts])
    assert_allclose(together.levels, alone, atol=1e-4)
    turned = scorer().score(texts[::-1]).levels[::-1]
    assert_allclose(together.levels, turned, atol=1e-4)


def test_the_same_reply_a_thousand_times_is_read_once(monkeypatch):
    lengths: list[int] = []
    plain = SatisfactionScorer._read

    def counted(self, texts, *rest):
        lengths.append(len(texts))
        return plain(self, texts, *rest)

    monkeypatch.setattr(SatisfactionScorer, "_read", counted)
    read = scorer().score(["love it"] * 1000)
    assert lengths == [1] and len(read.satisfaction) == 1000 and np.ptp(read.satisfaction) == 0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=60).filter(str.strip), min_size=1, max_size=5))
def test_anything_that_can_be_typed_is_read(texts):
    read = scorer().score(texts)
    for values in (read.satisfaction, read.confidence, read.pleased):
        assert values.shape == (len(texts),)
        assert (values >= 0).all() and (values <= 1).all()
    assert_allclose(read.levels.sum(axis=1), 1)
    assert_allclose(read.targets.sum(axis=1), 1)
    assert set(read.target) <= set(TARGETS)


@pytest.mark.parametrize(
    "text",
    ["👍", "😡😡😡", "def f(x):\n    return x  # KeyError", "a" * 50_000, "great " * 10_000, "\ud800 bad", "שלום", "?"],
    ids=["thumb", "anger", "code", "a", "long", "surrogate", "rtl", "mark"],
)
def test_odd_replies_are_read(text):
    assert np.isfinite(scorer().score([text]).levels).all()


def test_emoji_are_seen():
    read = scorer().score(["❤️❤️❤️", "😡"]).satisfaction
    assert read[0] > read[1] + 0.2


def test_what_it_answers_is_read_along():
    alone, beside = (
        scorer().score(["ok so that's it?"], [context]).levels
        for context in (None, ("How do I boil an egg?", "Boil it."))
    )
    assert not np.array_equal(alone, beside)
    long = ("A prompt " * 500, "An answer " * 5_000)
    assert np.isfinite(scorer().score(PLEASED, [long] * 3).levels).all()


def test_records_are_filled_in_and_labels_stay():
    said = [reply("love it"), reply("love it", satisfaction=0.1, target="task"), reply("love it", target="none")]
    first, second, third = scorer().read(said)
    assert first.satisfaction and first.satisfaction > 0.6 and first.confidence and first.target
    assert second == said[1]
    assert third.target == "none" and third.satisfaction == first.satisfaction
    assert scorer().read([]) == []


@pytest.mark.parametrize("texts", [[""], ["ok", "  \n"]])
def test_an_empty_reply_is_refused(texts):
    with pytest.raises(InputError, match=f"Reply {len(texts) - 1} is empty"):
        scorer().score(texts)


def test_as_many_contexts_as_replies_are_needed():
    with pytest.raises(InputError, match="Got 1 replies and 2 contexts"):
        scorer().score(["ok"], [None, None])


# The measure of confidence


def test_confidence_is_none_of_a_uniform_reading_and_full_of_a_single_level():
    uniform, sure = np.full((1, 5), 0.2), np.eye(5)[[3]]
    read = Readings(np.concatenate([uniform, sure]), np.zeros((2, 4)), np.zeros((2, 4)))
    assert_allclose(read.confidence, [0, 1], atol=1e-9)
    assert_allclose(read.satisfaction, [0.5, LEVELS[3]])
    assert_allclose(read.pleased, [0.6, 1.0])


# Figures


def test_figures_of_a_perfect_reading_are_perfect():
    lessons = [x for x in read_replies() if not x.foreign][:400]
    levels = np.eye(5)[[LEVELS.index(x.satisfaction or 0) for x in lessons]]
    targets = np.eye(4)[[TARGETS.index(x.target or "none") for x in lessons]]
    figures = reply_figures(lessons, Readings(levels, targets, np.zeros((len(lessons), 4))))
    assert figures["spearman"] == pytest.approx(1)
    assert figures["target_accuracy"] == 1
    assert figures["ece"] == 0
    assert figures["mae"] == 0


def test_the_calibration_error_is_the_gap_between_said_and_seen():
    happened = np.arange(1000) % 4 == 0
    assert ece(np.full(1000, 0.75), happened) == pytest.approx(0.5)
    assert ece(np.full(1000, 0.25), happened) == pytest.approx(0, abs=1e-9)
    assert [size for size, *_ in reliability(np.linspace(0, 1, 95), np.zeros(95))] == [10] * 5 + [9] * 5


def test_the_bundled_replies_are_sound():
    lessons = read_replies()
    assert len(lessons) > 1_500 and len({x.text.lower().strip() for x in lessons}) == len(lessons)
    assert len({x.name for x in lessons}) == len(lessons)
    assert all((x.satisfaction is None) == x.foreign for x in lessons)
    assert {x.about for x in lessons if x.about} == set(POLES)
    groups: dict[str, list] = {}
    for lesson in lessons:
        groups.setdefault(lesson.group, []).append(lesson)
    twins = [group for group in groups.values() if len(group) == 2]
    assert len(twins) > 150
    assert all((one.satisfaction >= 0.5) != (other.satisfaction >= 0.5) for one, other in twins)


# The folder


def test_it_is_small_enough_to_ship_and_says_what_it_was_trained_on():
    from importlib.resources import as_file, files

    with as_file(files("palate.data").joinpath("satisfaction-scorer")) as folder:
        # The readings of its own replies stand beside; the scorer is the rest.
        size = sum(file.stat().st_size for file in folder.iterdir() if file.name != "held_out.jsonl")
        card = (folder / "README.md").read_text(encoding="utf-8")
    assert size <= 25e6
    for words in ("GoEmotions", "palate replies train", "CC BY 4.0", f"{scorer().figures['spearman']:.3f}"):
        assert words in card


def test_a_saved_scorer_reads_alike(tmp_path):
    scorer().save(tmp_path / "s")
    again = SatisfactionScorer.load(tmp_path / "s")
    assert (again.revision, again.figures, again.trained) == (scorer().revision, scorer().figures, scorer().trained)
    assert np.array_equal(again.score(PLEASED).levels, scorer().score(PLEASED).levels)
    assert again.held_out == scorer().held_out
    again.save(tmp_path / "s")
    assert SatisfactionScorer.load(tmp_path / "s").revision == scorer().revision


@pytest.fixture
def folder(tmp_path):
    from importlib.resources import as_file, files

    with as_file(files("palate.data").joinpath("satisfaction-scorer")) as shipped:
        return shutil.copytree(shipped, tmp_path / "s")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "held_out.jsonl"])
def test_a_missing_or_half_written_file_is_said(folder, name):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="copy it again"):
        SatisfactionScorer.load(folder)
    (folder / name).unlink()
    with pytest.raises(ModelError, match="copy it again"):
        SatisfactionScorer.load(folder)


@pytest.mark.parametrize(
    ("columns", "message"),
    [({"format": 2}, "has format 2"), ({"temperatures": {"satisfaction": 9.0}}, "does not match config.json")],
)
def test_a_folder_that_is_not_what_it_says_is_refused(folder, columns, message):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **columns}))
    with pytest.raises(ModelError, match=message):
        SatisfactionScorer.load(folder)


def test_a_folder_of_something_else_is_not_written_over(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not a scorer's folder"):
        scorer().save(tmp_path)
    with pytest.raises(ModelError, match="There is no scorer at"):
        SatisfactionScorer.load(tmp_path / "none")
