"""Best of n, a taste in words, and the strategies joined: laws, and what a person gets."""

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import KINDS, PlantedEncoder, answers_to, evidence, fitted, people
from tests.test_local_model import local

from palate.alignment.best_of_n import Taking, best_of_n, gain_of_more, length_coefficient
from palate.alignment.candidates import Candidate, Known, Sampling
from palate.alignment.instruct import examples, instruction, with_system
from palate.alignment.strategies import Effort, Person, Personalizer, parts_of
from palate.alignment.value_head import ValueHead
from palate.errors import InputError, ModelError
from palate.feedback import Feedback, Record
from palate.rewards import fit
from palate.rewards.beliefs import Gaussian

ANSWERS = answers_to(slice(0, 1))
PROMPT = ANSWERS[0].prompt
CANDIDATES = [Candidate(answer.text, 5) for answer in ANSWERS]


def ana(count: int = 20) -> list[Record]:
    return evidence(count)


def person(count: int = 20) -> Person:
    return Person.of(fitted(), ana(count))


def test_the_best_is_what_ranking_puts_first():
    belief = person().belief
    taken = best_of_n(fitted(), belief, PROMPT, CANDIDATES)
    [first, *_] = fitted().rank(PROMPT, [one.text for one in CANDIDATES], belief)
    assert taken.text == first.completion
    assert taken.candidates[taken.index].probability == 1
    assert np.isclose(taken.divergence, np.log(len(CANDIDATES)))


def test_contributions_add_up_to_the_reward_and_rewards_to_nothing():
    taken = best_of_n(fitted(), person().belief, PROMPT, CANDIDATES)
    for one in taken.candidates:
        assert np.isclose(one.contributions.sum(), one.reward)
    assert np.isclose(sum(one.reward for one in taken.candidates), 0)


def test_the_population_is_who_is_not_known():
    taken = best_of_n(fitted(), None, PROMPT, CANDIDATES)
    assert all(np.isclose(one.reward, one.population) for one in taken.candidates)


@given(st.floats(0.01, 100.0))
def test_a_soft_choice_is_by_the_exponential_of_the_score(tau):
    taken = best_of_n(fitted(), person().belief, PROMPT, CANDIDATES, Taking(tau), np.random.default_rng(0))
    score, p = (np.array([getattr(one, name) for one in taken.candidates]) for name in ("score", "probability"))
    expected = np.exp((score - score.max()) / tau)
    np.testing.assert_allclose(p, expected / expected.sum())
    assert 0 <= taken.divergence <= np.log(len(p)) + 1e-9


def test_caution_takes_an_unsure_person_nearer_to_the_usual_answer():
    belief = person(2).belief
    careless, careful = (best_of_n(fitted(), belief, PROMPT, CANDIDATES, Taking(caution=c)) for c in (0.0, 50.0))
    assert careful.candidates[careful.index].deviation == min(one.deviation for one in careful.candidates)
    assert careful.candidates[careful.index].deviation <= careless.candidates[careless.index].deviation
    sure = Gaussian(belief.mean, 1e-12 * belief.cov)
    assert best_of_n(fitted(), sure, PROMPT, CANDIDATES, Taking(caution=1.0)).index == careless.index


def test_length_is_taken_off():
    long = [Candidate("word " * k, k) for k in (1, 10, 100)]
    taken = best_of_n(fitted(), person().belief, PROMPT, long, Taking(length=1e6))
    assert taken.index == 0
    assert best_of_n(fitted(), person().belief, PROMPT, long, Taking(length=-1e6)).index == 2


def test_what_length_earns_is_read_off_the_known_answers():
    model = fitted()
    wordy = Gaussian(np.zeros(model.n_rewards), np.eye(model.n_rewards))
    assert length_coefficient(model, wordy) == 0
    doubled = Gaussian(2 * model.prior.mean, model.prior.cov)
    assert np.isclose(length_coefficient(model, doubled), 2 * length_coefficient(model))


def test_what_more_candidates_would_gain_is_what_simulation_says():
    rng, rewards = np.random.default_rng(0), [0.0, 0.4, 1.0, 1.5, 2.0]
    df, spread = len(rewards) - 1, np.std(rewards, ddof=1) * np.sqrt(1 + 1 / len(rewards))
    drawn = np.mean(rewards) + spread * rng.standard_t(df, 400_000)
    assert np.isclose(gain_of_more(rewards, 1), np.maximum(drawn - 2.0, 0).mean(), rtol=0.02)
    assert gain_of_more([1.0, 1.0, 1.0], 5) == 0 == gain_of_more(rewards, 0)
    assert gain_of_more([1.0, 2.0], 1) == np.inf


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"temperature": float("inf")}, {"caution": -0.1}, {"length": float("nan")}]
)
def test_a_way_of_taking_out_of_range_is_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Taking(**wrong)


def test_nothing_to_choose_from_and_a_taste_of_another_rank_are_refused():
    with pytest.raises(InputError, match="no candidate"):
        best_of_n(fitted(), None, PROMPT, [])
    with pytest.raises(InputError, match="has 2 weights"):
        best_of_n(fitted(), Gaussian(np.zeros(2), np.eye(2)), PROMPT, CANDIDATES)


def test_a_taste_in_words_names_what_is_known_and_nothing_else():
    words = instruction(fitted(), person(40).belief)
    assert words is not None
    assert all(f"{pole} ones (" in words for pole in KINDS[0].split(","))
    assert instruction(fitted(), fitted().prior) is None


def test_examples_are_the_persons_choices():
    shown = examples(fitted(), ana(), most=2)
    assert shown is not None and shown.count("Preferred: ") == 2
    assert any(" ".join(str(r.chosen).split()) in shown for r in ana())  # type: ignore[union-attr]
    assert examples(fitted(), []) is None
    assert len(examples(fitted(), ana(), most=4, characters=600) or "") < 1_200


def test_words_join_a_system_message_that_is_there():
    turns = with_system([{"role": "system", "content": "a"}, {"role": "user", "content": "u"}], "b")
    assert [turn["content"] for turn in turns if isinstance(turn, dict)] == ["a\n\nb", "u"]
    assert with_system("Hi", None) == "Hi"


class Counting:
    """A source that numbers its answers and remembers what it was asked."""

    name = "counting"

    def __init__(self, same: bool = False) -> None:
        self.asked: list[tuple[object, int, Sampling]] = []
        self.same = same

    async def sample(self, prompts: Sequence[object], n: int, sampling: Sampling) -> list[list[Candidate]]:
        self.asked.append((prompts[0], n, sampling))
        texts = [one.text for one in CANDIDATES]
        first = 0 if self.same else sum(count for _, count, _ in self.asked) - n
        return [[Candidate(texts[(first + i) % len(texts)] if not self.same else texts[0], 5) for i in range(n)]]


def answered(source: Counting, who: Person | None, strategy: str, effort: Effort = Effort(), **more):
    return asyncio.run(Personalizer(fitted(), source, effort=effort).answer(PROMPT, who, strategy, **more))  # type: ignore[arg-type]


def test_off_is_one_plain_answer_and_best_of_n_the_best_of_them():
    source = Counting()
    off = answered(source, person(), "off")
    assert (off.drawn, off.strategy, off.system, source.asked[0][0]) == (1, "off", None, PROMPT)
    best = answered(Counting(), person(), "best-of-n", Effort(candidates=12))
    assert best.drawn == 12 and best.tokens == 60
    assert best.text == best_of_n(fitted(), person().belief, PROMPT, CANDIDATES[:12]).text


def test_words_go_before_the_prompt_and_the_reward_sees_the_prompt_alone():
    source = Counting()
    answer = answered(source, person(40), "instruct+best-of-n")
    assert answer.strategy == "instruct+best-of-n"
    assert source.asked[0][0] == with_system(PROMPT, answer.system)
    assert answered(Counting(), None, "instruct").system is None


def test_no_further_round_once_it_would_gain_nothing():
    source = Counting(same=True)
    assert answered(source, person(), "best-of-n", Effort(candidates=100, at_once=4)).drawn == 8
    few = answered(Counting(), person(), "best-of-n", Effort(candidates=100, at_once=4, tolerance=1e3))
    all_ = answered(Counting(), person(), "best-of-n", Effort(candidates=12, at_once=4))
    assert (few.drawn, all_.drawn) == (4, 12)


def test_later_rounds_are_hotter_and_of_other_seeds():
    source = Counting()
    answered(source, person(), "best-of-n", Effort(candidates=9, at_once=3, hotter=0.5), sampling=Sampling(seed=5))
    assert [(s.temperature, s.seed) for _, _, s in source.asked] == [(1.0, 5), (1.5, 8), (2.0, 11)]


def test_who_cannot_be_foretold_gets_the_usual_answer():
    guarded = Person(person().belief, fitted().fingerprint, personal=False)
    answer = answered(Counting(), guarded, "instruct+best-of-n")
    assert (answer.strategy, answer.guarded, answer.drawn, answer.system) == ("off", True, 1, None)


def test_a_taste_of_another_reward_model_is_refused():
    other = fit(Feedback(comparisons=people()), PlantedEncoder(), rank=4)
    with pytest.raises(ModelError, match="computed with reward model"):
        answered(Counting(), Person.of(other, ana()), "best-of-n")
    with pytest.raises(ModelError, match="value head"):
        Personalizer(fitted(), Counting(), ValueHead(4, 8, 9, fingerprint=other.fingerprint))  # type: ignore[arg-type]


def test_a_source_that_cannot_be_guided_says_so():
    with pytest.raises(InputError, match="cannot be guided"):
        answered(Counting(), person(), "guided")


def test_guided_and_best_of_n_compose_on_a_model_of_ones_own():
    model = fitted()
    head = ValueHead(model.n_rewards, 16, 260, rank=2, fingerprint=model.fingerprint)
    who = Personalizer(model, local(), head, effort=Effort(candidates=3))
    answer = asyncio.run(who.answer("Hi", person(), "guided+best-of-n", Sampling(max_tokens=6, seed=0)))
    assert answer.drawn == 3 and len(answer.taken.candidates) <= 3


def test_strategies_by_name():
    assert parts_of("off") == ()
    assert parts_of("best-of-n+guided+instruct") == ("instruct", "guided", "best-of-n")
    with pytest.raises(InputError, match="no strategy 'best'"):
        parts_of("best")


@pytest.mark.parametrize("wrong", [{"candidates": 0}, {"at_once": 5_000}, {"tolerance": -1.0}, {"strength": 0.0}])
def test_an_effort_out_of_range_is_refused(wrong):
    with pytest.raises(InputError):
        Effort(**wrong)


def test_known_answers_serve_everybody():
    known = Known({PROMPT: [one.text for one in CANDIDATES]})
    answer = asyncio.run(Personalizer(fitted(), known).answer(PROMPT.lower(), person(), sampling=Sampling(seed=0)))
    assert answer.drawn == 8 and answer.text in known.answers[PROMPT]
