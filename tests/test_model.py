"""The reward model: beliefs about one person, ratings, ranking, and the laws that they keep."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from tests.support import PlantedEncoder, comparison, evidence, fitted

from palate.errors import EncoderError, InputError
from palate.feedback import Rating, Record, Reply, Text
from palate.rewards import Gaussian, Mixture, RatingScale, RewardModel, Scales
from palate.rewards import model as model_module


def rating(completion: Text, score: float, prompt: str = "Hi") -> Rating:
    return Rating(user_id="ann", prompt=prompt, completion=completion, score=score)


def known_pair() -> tuple[str, str, str]:
    """A prompt and two of its answers that the model tells apart, the better one first."""
    known = fitted().known
    prompt = known.prompts[0]
    texts = [text for p, text in zip(known.prompts, known.completions, strict=True) if p == prompt]
    ranked = fitted().rank(prompt, texts)
    return str(prompt), str(ranked[0].completion), str(ranked[-1].completion)


# One person


def test_who_said_nothing_is_the_prior():
    model = fitted()
    silent = [Reply(user_id="ann", prompt="Hi", completion="Hello!", reply="Thanks.")]
    for belief in (model.new_user(), model.posterior([]), model.posterior(silent)):
        assert_array_equal(belief.mean, model.prior.mean)
        assert_array_equal(belief.cov, model.prior.cov)


def test_one_answer_moves_towards_what_was_chosen():
    model = fitted()
    prompt, best, worst = known_pair()
    belief = model.posterior([comparison(prompt=prompt, chosen=worst, rejected=best)])
    gap = [np.subtract(*model.reward(prompt, [worst, best], b)) for b in (model.prior, belief)]
    assert gap[1] > gap[0] + 0.1
    assert np.linalg.slogdet(belief.cov)[1] < 0


@settings(max_examples=20)
@given(order=st.permutations(range(8)))
def test_the_order_of_evidence_does_not_matter(order):
    said: list[Record] = [*evidence(6), rating("Hello!", 0.9), rating("What?", 0.2)]
    one, two = fitted().posterior(said), fitted().posterior([said[i] for i in order])
    assert_allclose(one.mean, two.mean, atol=1e-9)
    assert_allclose(one.cov, two.cov, atol=1e-9)


def test_withdrawn_evidence_was_never_said():
    model = fitted()
    with_it = [*evidence(8), rating("Hello!", 0.9)]
    model.posterior(with_it)
    for gone in range(len(with_it)):
        left = with_it[:gone] + with_it[gone + 1 :]
        belief = model.posterior(left)
        fresh = RewardModel(**{name: getattr(model, name) for name in FIELDS}).posterior(left)
        assert_array_equal(belief.mean, fresh.mean)
        assert_array_equal(belief.cov, fresh.cov)


FIELDS = (
    "offset",
    "weights",
    "prior",
    "lapse",
    "encoder_name",
    "encoder_revision",
    "known",
    "style_names",
    "scales",
    "figures",
    "encoder",
)


def test_asking_changes_nothing():
    model = fitted()
    before = (model.fingerprint, model.known.phi.copy(), model.prior.mean.copy(), dict(model.figures))
    belief = model.posterior(evidence())
    mean = belief.mean.copy()
    for _ in range(2):
        model.rank("Hi", ["Hello!", "What?"], belief)
        model.reward("Hi", ["Hello!"])
        model.posterior([rating("Hello!", 1.0)])
    assert_array_equal(belief.mean, mean)
    assert model.fingerprint == before[0]
    assert_array_equal(model.known.phi, before[1])
    assert_array_equal(model.prior.mean, before[2])
    assert model.figures == before[3]


def test_a_tie_and_a_weak_choice_say_less_than_a_sure_one():
    prompt, best, worst = known_pair()
    gaps = [
        float(np.subtract(*fitted().reward(prompt, [worst, best], fitted().posterior([row]))))
        for row in (comparison(prompt=prompt, chosen=worst, rejected=best, strength=s) for s in (0.5, 0.75, 1.0))
    ]
    assert gaps == sorted(gaps)
    assert gaps[0] < gaps[1] < gaps[2]


def test_a_conversation_of_one_turn_reads_like_its_text():
    prompt, best, worst = known_pair()
    talk = comparison(
        prompt=[{"role": "user", "content": prompt}],
        chosen=[{"role": "assistant", "content": best}],
        rejected=[{"role": "assistant", "content": worst}],
    )
    plain = comparison(prompt=prompt, chosen=best, rejected=worst)
    assert_array_equal(fitted().posterior([talk]).mean, fitted().posterior([plain]).mean)


# Ratings


def rewards_after(said: Sequence[Record], model: RewardModel | None = None) -> np.ndarray:
    model = model or fitted()
    return model.reward(PROMPT, ANSWERS, model.posterior(said)) - model.reward(PROMPT, ANSWERS)


PROMPT = str(fitted().known.prompts[0])
ANSWERS = [str(text) for p, text in zip(fitted().known.prompts, fitted().known.completions, strict=True) if p == PROMPT]


def test_ratings_move_rewards_their_way():
    high, low = (rewards_after([rating(ANSWERS[0], score, PROMPT)]) for score in (1.0, 0.0))
    assert high[0] - high.mean() > 0.05
    assert low[0] - low.mean() < -0.05


def test_a_rating_of_the_expected_score_says_little():
    assert np.abs(rewards_after([rating("an answer like any other", 0.5, PROMPT)])).max() < 0.5


def test_generosity_hardly_counts():
    def rated(shift: float) -> list[Record]:
        return [rating(text, 0.3 + 0.4 * (i % 2) + shift, PROMPT) for i, text in enumerate(ANSWERS)]

    level, generous = rewards_after(rated(0.0)), rewards_after(rated(0.2))
    moved = np.linalg.norm(level - level.mean())
    assert np.linalg.norm((generous - generous.mean()) - (level - level.mean())) < 0.25 * moved


def test_who_scores_everything_alike_has_little_taste_however_generous():
    spread = [np.std(fitted().reward(PROMPT, ANSWERS))]
    for score in (0.5, 0.9):
        belief = fitted().posterior([rating(text, score, PROMPT) for text in ANSWERS])
        spread.append(np.std(fitted().reward(PROMPT, ANSWERS, belief)))
    assert max(spread[1:]) < 0.65 * spread[0]


def test_heavier_and_steeper_ratings_say_more():
    base = {name: getattr(fitted(), name) for name in FIELDS}
    said = [rating(ANSWERS[0], 1.0, PROMPT)]
    sizes = [
        np.linalg.norm(rewards_after(said, RewardModel(**{**base, "scales": Scales(scale)})))
        for scale in (RatingScale(weight=0.1), RatingScale(), RatingScale(weight=4.0))
    ]
    assert sizes == sorted(sizes)


# Ranking


def test_ranks_follow_rewards():
    belief = fitted().posterior(evidence())
    ranked = fitted().rank(PROMPT, ANSWERS, belief)
    rewards = fitted().reward(PROMPT, ANSWERS, belief)
    assert sorted(r.index for r in ranked) == list(range(len(ANSWERS)))
    assert [r.reward for r in ranked] == pytest.approx(sorted(rewards, reverse=True))
    assert all(r.completion == ANSWERS[r.index] for r in ranked)
    assert ranked[0].deviation == 0
    assert all(r.deviation > 0 for r in ranked[1:])
    assert all(0.5 <= (r.better_than_next or 0) < 1 for r in ranked[:-1])
    assert ranked[-1].better_than_next is None


def test_the_deviation_is_that_of_the_difference_to_the_best():
    belief = fitted().posterior(evidence())
    ranked = fitted().rank(PROMPT, ANSWERS, belief)
    phi = fitted().phi([PROMPT] * len(ANSWERS), ANSWERS)
    for one in ranked:
        d = phi[one.index] - phi[ranked[0].index]
        assert one.deviation == pytest.approx(np.sqrt(d @ belief.cov @ d))


def test_without_a_user_the_population_ranks():
    assert fitted().rank(PROMPT, ANSWERS) == fitted().rank(PROMPT, ANSWERS, fitted().prior)


def test_equal_candidates_keep_their_order():
    ranked = fitted().rank(PROMPT, [ANSWERS[1], ANSWERS[0], ANSWERS[1], ANSWERS[0]])
    ties = [r.index for r in ranked]
    assert ties in ([0, 2, 1, 3], [1, 3, 0, 2])
    assert ranked[0].better_than_next == 0.5


def test_one_candidate_is_the_best():
    (only,) = fitted().rank("Hi", ["Hello!"])
    assert (only.index, only.completion, only.deviation, only.better_than_next) == (0, "Hello!", 0.0, None)


def test_no_candidate_is_refused():
    with pytest.raises(InputError) as caught:
        fitted().rank("Hi", [])
    assert str(caught.value) == "There are 0 candidates, at least 1 is needed; give completions to rank"


# Texts and encoders


def without_encoder() -> RewardModel:
    return RewardModel(**{name: getattr(fitted(), name) for name in FIELDS if name != "encoder"})


def test_known_answers_need_no_encoder_and_others_do(monkeypatch):
    loaded: list[str] = []

    def load_encoder(name: str) -> PlantedEncoder:
        loaded.append(name)
        return PlantedEncoder()

    monkeypatch.setattr(model_module, "load_encoder", load_encoder)
    model = without_encoder()
    assert_array_equal(model.reward(PROMPT, ANSWERS), fitted().reward(PROMPT, ANSWERS))
    assert loaded == []
    mixed = ["never seen", ANSWERS[0], "nor this"]
    assert_array_equal(model.reward(PROMPT, mixed), fitted().reward(PROMPT, mixed))
    model.reward(PROMPT, mixed)
    assert loaded == ["planted"]


def test_known_answers_have_the_base_rewards_of_their_texts():
    known = fitted().known
    raw = PlantedEncoder().encode([str(p) for p in known.prompts], [str(c) for c in known.completions])
    expected = (raw.astype(float) - fitted().offset) @ fitted().weights.T.astype(float)
    assert_allclose(known.phi, expected, atol=1e-9)


def test_an_encoder_of_another_revision_is_refused(monkeypatch):
    monkeypatch.setattr(model_module, "load_encoder", lambda name: PlantedEncoder(revision="r2"))
    with pytest.raises(EncoderError) as caught:
        without_encoder().reward("Hi", ["Hello!"])
    assert str(caught.value) == (
        "Encoder 'planted' has revision r2, the model was fitted with r1; install that one or fit anew"
    )


def test_the_fingerprint_tells_of_whatever_a_posterior_depends_on():
    model = fitted()
    base = {name: getattr(model, name) for name in FIELDS}
    other_answers = type(model.known)(
        model.known.prompts, model.known.completions[::-1], model.known.phi, model.known.styles
    )
    other_phi = type(model.known)(
        model.known.prompts, model.known.completions, model.known.phi + 1e-6, model.known.styles
    )
    one = Gaussian(model.prior.mean, model.prior.cov)
    two = one.parts[np.zeros(2, int)]
    changes: list[dict[str, object]] = [
        {"prior": Mixture(np.array([0.5, 0.5]), two)},
        {"prior": Mixture(np.array([0.5 - 1e-9, 0.5 + 1e-9]), two)},
        {"prior": Mixture(one.weights, one.parts)},
        {"offset": model.offset + 1},
        {"weights": model.weights * 2},
        {"prior": Gaussian(model.prior.mean + 1e-9, model.prior.cov)},
        {"lapse": model.lapse + 1e-9},
        {"encoder_revision": "r2"},
        {"scales": Scales(RatingScale(slope=1.5))},
        {"scales": Scales(RatingScale(weight=1.5))},
        {"scales": Scales(replies=RatingScale(weight=1.5))},
        {"scales": Scales(RatingScale(generosity=1.5))},
        {"known": other_answers},
        {"known": other_phi},
    ]
    prints = {RewardModel(**{**base, **change}).fingerprint for change in [{}, *changes]}
    assert len(prints) == 1 + len(changes)
    assert RewardModel(**{**base, "figures": {}, "encoder": None}).fingerprint == model.fingerprint


def test_every_pair_of_the_pool_answers_one_prompt():
    model = fitted()
    prompts = [str(p) for p in model.known.prompts]
    assert len(model.pool.pairs) == 20 * 14 * 13 // 2
    for (one, two), v, number in list(zip(model.pool.pairs, model.pool.v, model.pool.prompt, strict=True))[::37]:
        assert prompts[one] == prompts[two] and one != two
        assert_array_equal(v, model.known.phi[one] - model.known.phi[two])
        assert list(dict.fromkeys(prompts))[number] == prompts[one]
