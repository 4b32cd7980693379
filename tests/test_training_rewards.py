"""What a fine-tuning raises: a taste, satisfaction foretold, and a judge over HTTP."""

import numpy as np
import pytest
from tests.endpoint_support import endpoint
from tests.support import fitted

from palate.alignment.best_of_n import length_coefficient
from palate.alignment.endpoint import Endpoint
from palate.bench.judging import JudgeServer
from palate.data import load_answers
from palate.errors import InputError, UpstreamError
from palate.feedback import Comparison
from palate.satisfaction.follower import RewardFollower
from palate.training.rewards import FollowerReward, JudgeReward, TasteReward

ANSWERS = [answer for answer in load_answers() if answer.prompt_id == "p000"]
ASKED, TEXTS = [a.prompt for a in ANSWERS], [a.text for a in ANSWERS]


def person(better: int, worse: int):
    said = Comparison(user_id="ann", prompt=ASKED[0], chosen=TEXTS[better], rejected=TEXTS[worse])
    return fitted().posterior([said])


def turns(text: str, role: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def test_a_taste_is_rewarded_as_the_reward_model_has_it():
    ann = person(0, 1)
    reward = TasteReward(fitted(), [ann])
    np.testing.assert_allclose(reward(ASKED, TEXTS), fitted().reward(ASKED[0], TEXTS, ann), atol=1e-5)
    plain = reward(ASKED, TEXTS)
    assert reward([turns(p, "user") for p in ASKED], [turns(t, "assistant") for t in TEXTS]) == plain
    assert reward([f"{p}\n\n" for p in ASKED], TEXTS) == plain


def test_a_groups_taste_is_the_mean_and_quality_mixes_the_populations_in():
    ann, bo = person(0, 1), person(1, 0)
    apart = [np.array(TasteReward(fitted(), [one])(ASKED, TEXTS)) for one in (ann, bo)]
    np.testing.assert_allclose(TasteReward(fitted(), [ann, bo])(ASKED, TEXTS), np.mean(apart, axis=0), atol=1e-5)
    everybody = np.array(TasteReward(fitted())(ASKED, TEXTS))
    mixed = TasteReward(fitted(), [ann], quality=0.25)(ASKED, TEXTS)
    np.testing.assert_allclose(mixed, 0.75 * apart[0] + 0.25 * everybody, atol=1e-5)
    np.testing.assert_allclose(TasteReward(fitted(), [ann], quality=1.0)(ASKED, TEXTS), everybody, atol=1e-5)


def test_length_control_takes_out_what_mere_length_gives():
    ann = person(0, 1)
    plain, level = (
        np.array(TasteReward(fitted(), [ann], quality=0.2, length=on)(ASKED, TEXTS)) for on in (False, True)
    )
    coefficient = 0.8 * length_coefficient(fitted(), ann) + 0.2 * length_coefficient(fitted())
    np.testing.assert_allclose(plain - level, coefficient * np.log1p([len(t) for t in TEXTS]), atol=1e-5)


def test_texts_that_a_policy_wrote_are_not_kept_in_the_cache():
    reward = TasteReward(fitted())
    encoder = reward.model.loaded_encoder()
    assert getattr(encoder, "cache", None) is None


def test_a_share_outside_its_range_is_refused():
    with pytest.raises(InputError, match=r"quality 1.5 is not in"):
        TasteReward(fitted(), quality=1.5)
    with pytest.raises(InputError, match=r"patience -1 is below 0"):
        JudgeReward(lambda: Endpoint("http://localhost"), "taste", patience=-1)


def test_satisfaction_is_what_the_follower_foretells():
    follower = RewardFollower(fitted())
    found = FollowerReward(follower, person(0, 1))(ASKED, TEXTS)
    np.testing.assert_allclose(found, follower.satisfaction(ASKED[0], TEXTS, person(0, 1)), atol=1e-6)


def longest(request, _: int) -> str:
    question = request["messages"][-1]["content"]
    a, b = question.split("# Answer A\n")[1].split("\n\n# Answer B\n")
    return "A" if len(a) > len(b) else "B"


def test_a_judge_compares_each_answer_with_its_neighbours_at_one_request_each():
    texts = ["a", "aaa", "aa", "aaaa"]
    with endpoint(answer=longest) as served:
        reward = JudgeReward(lambda: Endpoint(served.url, "judge"), "Prefer long answers.")
        found = reward(["p"] * 4 + ["q", "q", "r"], [*texts, "a", "aa", "alone"])
    assert found == [0.0, 1.0, 0.0, 1.0, 0.0, 1.0, None]
    assert len(served.requests) == 4 + 1
    assert all("Prefer long answers." in r["messages"][-1]["content"] for r in served.requests)


def test_a_judge_is_asked_again_about_what_failed_and_about_nothing_else():
    with endpoint(answer=longest, status=lambda number: 500 if number in (1, 2) else 200) as served:
        reward = JudgeReward(lambda: Endpoint(served.url, "judge", retries=0), "t", patience=2)
        assert reward(["p"] * 3, ["a", "aa", "aaa"]) == [0.0, 0.5, 1.0]
    assert len(served.requests) == 5


@pytest.mark.parametrize(
    "answer, told", [("", "nothing but empty"), ("maybe", "said 'maybe' where it was asked for A")]
)
def test_a_judge_that_says_neither_stops_the_training(answer, told):
    with endpoint(answer=lambda *_: answer) as served:
        reward = JudgeReward(lambda: Endpoint(served.url, "judge", retries=0), "t", patience=0)
        with pytest.raises(UpstreamError, match=told):
            reward(["p", "p"], ["a", "b"])


def test_the_judge_of_the_benchmark_knows_a_taste_and_slips_as_often_as_it_is_told():
    weights = person(0, 1).mean
    scores = fitted().phi(ASKED, TEXTS) @ weights
    pairs = list(zip(range(len(TEXTS)), [*range(1, len(TEXTS)), 0], strict=True))
    with JudgeServer(fitted(), weights, 0.0, 0) as server:
        found = JudgeReward(lambda: Endpoint(server.url, "judge"), "t")(ASKED, TEXTS)
    won = [[float(scores[a] > scores[b]) for a, b in pairs if a == i] +
           [float(scores[b] > scores[a]) for a, b in pairs if b == i] for i in range(len(TEXTS))]  # fmt: skip
    assert found == [float(np.mean(each)) for each in won]
    slipping = JudgeServer(fitted(), weights, 0.2, 0)
    asked = [f"# Question\n{i}\n\n# Answer A\n{TEXTS[0]}\n\n# Answer B\n{TEXTS[1]}" for i in range(200)]
    right = [JudgeServer.says(slipping, one) for one in asked]
    sure = JudgeServer(fitted(), weights, 0.0, 0)
    assert 0.1 < np.mean([a != sure.says(q) for a, q in zip(right, asked, strict=True)]) < 0.3
    for one in (slipping, sure):
        one.server.server_close()
    assert sure.says("no question") == "?"
