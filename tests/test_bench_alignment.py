"""The measuring stand for answers: the small policy, the judge, likelihoods, and the picture of points."""

from functools import cache

import numpy as np
import pytest
import torch
from tests.test_local_model import local

from palate.alignment.candidates import Candidate, Sampling
from palate.bench import policy as stand
from palate.bench.alignment import log_likelihood
from palate.bench.judge import ATTRIBUTES, Judge
from palate.bench.people import ALL_KINDS, Person
from palate.bench.policy import Stand, answers_of, policy
from palate.bench.report import Points, draw_points
from palate.data import load_answers

SMALL = Stand(prompts=2, hidden=16, layers=1, vocabulary=300, epochs=2)


@cache
def judge() -> Judge:
    return Judge.train()


def test_the_policy_learns_whole_answers_of_both_groups_of_unseen_prompts():
    answers = answers_of(SMALL)
    assert {answer.prompt_id[1] for answer in answers} == {"4", "5"} and len(answers) == 24
    assert all(answer.spoilt is None for answer in answers)


def test_the_policy_is_made_once_and_is_the_same_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("PALATE_CACHE", str(tmp_path / "one"))
    source, figures = policy(SMALL)
    assert figures["epochs"] == 2 and figures["loss"] < np.log(300)
    assert source.tokenizer.decode(source.tokens("Hi", "Ho")[1]) == "Ho<|end|>"
    drawn = source.draw(["Hi"], 4, Sampling(max_tokens=5, seed=0))
    monkeypatch.setattr(stand, "_train", lambda *_: pytest.fail("trained again"))
    assert policy(SMALL)[0].draw(["Hi"], 4, Sampling(max_tokens=5, seed=0)) == drawn
    monkeypatch.undo()
    monkeypatch.setenv("PALATE_CACHE", str(tmp_path / "two"))
    assert policy(SMALL)[0].draw(["Hi"], 4, Sampling(max_tokens=5, seed=0)) == drawn


def test_of_written_answers_the_judge_knows_what_the_person_knows():
    answers = [answer for answer in load_answers() if answer.prompt_id in ("p000", "p400")]
    prompts, texts = [a.prompt for a in answers], [a.text for a in answers]
    shows = judge().shows(prompts, texts)
    broken = judge().broken(prompts, texts, [False] * len(texts))
    for kind in ALL_KINDS[::7]:
        np.testing.assert_array_equal(judge().utility(kind, shows, broken), Person(kind).reward(answers))


def test_the_probes_read_styles_of_prompts_that_they_never_saw():
    figures = judge().validate([a for a in load_answers() if a.spoilt is None and a.prompt_id[1] in "45"])
    assert figures.pop("wrongly_broken") < 0.3
    assert np.mean(list(figures.values())) > 0.9 and min(figures.values()) > 0.75
    assert len(ATTRIBUTES) == 7 and len(figures) == 14


def test_broken_answers_are_noticed():
    prompt = load_answers()[0].prompt
    whole = next(a.text for a in load_answers() if a.prompt == prompt and a.spoilt is None)
    told = [
        whole + " Truly.",
        whole[: len(whole) // 2].rstrip(".!?") + " and the",
        "Do it now and " * 9 + ".",
        whole + " So.",
        "",
    ]
    found = judge().broken([prompt] * 5, told, [False, False, False, True, False])
    assert found.tolist() == [False, True, True, True, True]
    other = load_answers()[600]
    assert other.prompt != prompt
    assert judge().broken([prompt], [other.text + " Truly."], [False]).tolist() == [True]


def test_a_likelihood_is_the_sum_over_the_answers_tokens_and_its_end():
    source = local()
    prompts, texts = ["Hi", "How are you?", "Hi"], ["Ho", "Well, thank you.", "H"]
    found = log_likelihood(source, prompts, [Candidate(text, 1) for text in texts])
    for prompt, text, value in zip(prompts, texts, found, strict=True):
        before, after = source.tokens(prompt, text)
        with torch.inference_mode():
            said = source.model(input_ids=torch.tensor([before + after])).logits[0].log_softmax(-1)
        expected = sum(float(said[len(before) - 1 + i, token]) for i, token in enumerate(after))
        assert value == pytest.approx(expected, abs=1e-3)


def test_points_are_drawn():
    points = Points("title", "x", "y", {"one": [(0.0, 0.0), (1.0, 2.0)], "other": [(0.5, 1.0)]})
    assert draw_points(points, "png").startswith(b"\x89PNG")
    assert draw_points(points, "svg") == draw_points(points, "svg")
