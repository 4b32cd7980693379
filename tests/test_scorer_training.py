"""Training the scorer: on a tiny network that learns two words; folds, reproducibility, resuming, bad lessons."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.cli_support import tiny_encoder

from palate.errors import InputError
from palate.satisfaction.augmentation import Augmentation
from palate.satisfaction.learning import Lessons, learn_all
from palate.satisfaction.lessons import Lesson, read_goemotions, read_remarks, read_replies, with_contexts
from palate.satisfaction.network import EMOTIONS, LEVELS, TARGETS, sequences
from palate.satisfaction.training import (
    FOLDS,
    Recipe,
    base_network,
    folds,
    learn_emotions,
    remembered_emotions,
    reply_jobs,
    train,
)


def recipe(**columns) -> Recipe:
    slow = {"emotion_epochs": 3, "reply_epochs": 6, "emotion_rate": 3e-2, "reply_rate": 3e-2, "dropout": 0.0}
    slow |= {"emotion_networks": 2}
    return Recipe(**{"encoder": str(tiny_encoder()), **slow, "batch": 8, **columns})


# Words that the tiny encoder knows.
GOOD, BAD = "you can do it", "is the for not"
REPLIES = [
    lesson
    for i in range(20)
    for lesson in (
        Lesson(f"{GOOD} {'and ' * (i % 5)}to {i}", 1.0, "taste", name=f"u{2 * i}"),
        Lesson(f"{BAD} {'and ' * (i % 5)}to {i}", 0.0, "task", name=f"u{2 * i + 1}"),
    )
]
FOREIGN = [Lesson("hallo", foreign=True, name="f1"), Lesson("danke", foreign=True, name="f2")]
COMMENTS = [
    Lesson(text, emotions=frozenset([emotion]))
    for i in range(16)
    for text, emotion in ((f"{GOOD} with {i}", "positive"), (f"{BAD} with {i}", "negative"))
]


def test_it_learns_what_there_is_to_learn():
    scorer = train(REPLIES, COMMENTS, recipe())
    assert scorer.figures["spearman"] > 0.7 and scorer.figures["target_accuracy"] > 0.9
    read = scorer.score([f"{GOOD} to", f"{BAD} to"])
    assert read.satisfaction[0] > read.satisfaction[1] + 0.3
    assert read.emotions[0, 3] > read.emotions[1, 3]
    assert len(scorer.held_out) == len(REPLIES)


def test_the_same_seed_gives_the_same_scorer_another_another():
    some = REPLIES[:12]
    one, same, other = (train(some, COMMENTS, recipe(seed=seed, reply_epochs=1)) for seed in (0, 0, 1))
    assert one.revision == same.revision != other.revision
    assert one.held_out == same.held_out


def test_networks_that_learn_in_processes_of_their_own_learn_the_same():
    network, tokenizer = base_network(recipe())
    jobs = reply_jobs(network, tokenizer, REPLIES[:12], COMMENTS, recipe(reply_epochs=2))
    told = []
    apart = learn_all(jobs, "Learning", lambda *now: told.append(now), processes=2)
    for one, other in zip(learn_all(jobs, "Learning"), apart, strict=True):
        for name, value in one.state_dict().items():
            torch.testing.assert_close(value, other.state_dict()[name])
    assert len(apart) == 2
    assert not torch.equal(apart[0].satisfaction.weight, apart[1].satisfaction.weight)
    assert all(stage == "Learning" and 0 <= done <= total for stage, done, total in told)
    with pytest.raises(IndexError):
        learn_all([jobs[0]._replace(order=[[10_000]])] * 2, "Learning", processes=2)


def test_what_was_learned_of_emotions_is_kept_and_found_again(tmp_path, monkeypatch):
    network, tokenizer = base_network(recipe())
    plain = learn_emotions(network, tokenizer, COMMENTS, recipe())
    kept = remembered_emotions(network, tokenizer, COMMENTS, recipe(), tmp_path)
    monkeypatch.setattr("palate.satisfaction.training.learn_emotions", lambda *_: pytest.fail("learned again"))
    found = remembered_emotions(network, tokenizer, COMMENTS, recipe(), tmp_path)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, kept.state_dict()[name]) and torch.equal(value, found.state_dict()[name])
    monkeypatch.undo()
    remembered_emotions(network, tokenizer, COMMENTS[:8], recipe(), tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_children_learn_along_and_share_a_weight():
    scorer = train(REPLIES[:16], COMMENTS, recipe(reply_epochs=1), augmentation=Augmentation(distance=1.0))
    assert np.isfinite(scorer.figures["spearman"])


def test_twins_are_in_one_fold_and_folds_are_alike():
    twins = [Lesson(f"t {i}{side}", 0.0, "task", name=f"t{i:03}{side}") for i in range(50) for side in "ab"]
    fold = folds(twins, seed=0)
    assert (fold[::2] == fold[1::2]).all()
    assert np.bincount(fold, minlength=FOLDS).tolist() == [20] * FOLDS


def test_labels_are_what_was_said_and_a_foreign_one_is_uniform():
    _, tokenizer = base_network(recipe())
    table = Lessons.of(tokenizer, [REPLIES[0], Lesson("hallo", foreign=True), COMMENTS[0]])
    assert float(table.satisfaction[0] @ torch.tensor(LEVELS)) == REPLIES[0].satisfaction
    assert torch.allclose(table.satisfaction[1], torch.full((5,), 0.2))
    assert table.satisfaction[2].isnan().all() and table.emotion[:2].isnan().all()
    assert table.target.tolist() == [TARGETS.index("taste"), -1, -1]


def test_a_long_reply_is_read_at_both_ends_and_its_context_after_it():
    _, tokenizer = base_network(recipe())
    read = sequences(tokenizer, ["you " * 500 + "it", "it"], [None, ("the " * 100, "can " * 100)])
    assert read.own == [128, 3] and len(read.ids[0]) == 128
    assert read.ids[0][-2] == read.ids[1][1]
    assert len(read.ids[1]) == 3 + 24 + 1 + 64 + 1
    ids, mask, segments = read.batch([0, 1])
    assert ids.shape == mask.shape == segments.shape == (2, 128)
    assert (mask.sum(1).tolist(), segments.sum(1).tolist()) == ([128, 93], [0, 90])


def test_a_context_shows_the_pole_that_the_reply_speaks_of():
    lessons = [replace(REPLIES[0], about="concise"), REPLIES[1]] * 20
    shown = with_contexts(lessons, seed=0, share=0.5)
    assert 0 < sum(x.context is not None for x in shown) < 40
    assert with_contexts(lessons, seed=0, share=0.5) == shown
    assert with_contexts(lessons, seed=0, share=0.0) == lessons


@pytest.mark.parametrize(
    ("replies", "comments"), [([], COMMENTS), (REPLIES[:1], COMMENTS), (FOREIGN, COMMENTS), (REPLIES, [])]
)
def test_too_little_to_learn_from_is_said(replies, comments):
    with pytest.raises(InputError, match="give two replies with labels and one comment at least"):
        train(replies, comments, recipe())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not a reply"),
        ('{"reply": "ok"}', "not a reply"),
        ('{"reply": " ", "satisfaction": 1, "target": "task"}', "reply is empty"),
        ('{"reply": "ok", "satisfaction": 2, "target": "task"}', "satisfaction 2.0 is not in"),
        ('{"reply": "ok", "satisfaction": NaN, "target": "task"}', "satisfaction nan is not in"),
        ('{"reply": "ok", "satisfaction": 1, "target": "me"}', "target 'me' is not one of"),
        ('{"reply": "ok", "satisfaction": 1, "target": "task", "about": "blue"}', "about 'blue' is no style pole"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "replies.jsonl"
    path.write_text('{"reply": "fine", "satisfaction": 1, "target": "task"}\n' + line + "\n")
    with pytest.raises(InputError, match=f"replies.jsonl:2: {message}"):
        read_replies(path)
    path.write_text("")
    with pytest.raises(InputError, match="holds no replies"):
        read_replies(path)


def test_goemotions_are_read_and_a_bad_line_is_named(tmp_path):
    (tmp_path / "labels.txt").write_text("ambiguous\nnegative\nneutral\npositive")
    (tmp_path / "test.tsv").write_text('I "like it\t3\tid1\nso so\t2,0\tid2\n')
    one, two = read_goemotions(tmp_path, "test")
    assert (one.text, one.emotions, two.emotions) == (
        'I "like it',
        frozenset(["positive"]),
        frozenset(["neutral", "ambiguous"]),
    )
    (tmp_path / "test.tsv").write_text("fine\t3\tid1\nno label\n")
    with pytest.raises(InputError, match="line 2"):
        read_goemotions(tmp_path, "test")
    (tmp_path / "labels.txt").write_text("anger\njoy")
    with pytest.raises(InputError, match="give the grouped labels"):
        read_goemotions(tmp_path, "test")
    with pytest.raises(InputError, match="GoEmotions cannot be read"):
        read_goemotions(tmp_path / "none", "test")


def test_remarks_ship_with_palate_and_no_two_are_alike():
    remarks = read_remarks()
    assert len(remarks) == len({" ".join(remark.text.lower().split()) for remark in remarks}) > 2_000
    emotions = [next(iter(remark.emotions or ())) for remark in remarks]
    assert {name: emotions.count(name) for name in EMOTIONS if name != "ambiguous"}.keys() == set(emotions)
