"""Preference-biased scoring: how much the follower counts, and that no record speaks for itself."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import evidence, fitted

from palate.feedback import Rating, Record, Reply
from palate.satisfaction.follower import RewardFollower
from palate.satisfaction.rescoring import biased, follower_share, training_targets

errors = st.lists(st.floats(0, 1), max_size=30)


def reply(place: int, satisfaction: float | None = 0.9, target: str | None = "taste", **columns) -> Reply:
    model = fitted()
    return Reply(
        user_id="s0000",
        prompt=model.known.prompts[place],
        completion=model.known.completions[place],
        reply="Lovely.",
        satisfaction=satisfaction,
        target=target,
        **columns,
    )


@given(errors, errors)
def test_the_share_is_between_the_two_and_falls_with_the_follower_s_errors(static, followed):
    share = follower_share(static, followed)
    assert 0 < share < 1
    assert follower_share(static, [*followed, 1.0]) < share
    assert follower_share([*static, 1.0], followed) > share


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_a_target_lies_between_what_was_read_and_what_was_foretold(static, followed, share):
    value = biased(np.array([static]), np.array([followed]), share)[0]
    assert min(static, followed) - 1e-12 <= value <= max(static, followed) + 1e-12


def test_no_reply_speaks_for_itself():
    said: list[Record] = [*evidence(6), reply(3, 0.9), reply(20, 0.1)]
    other = [*said[:6], reply(3, 0.2), said[7]]
    one, two = (training_targets(RewardFollower(fitted()), rows)[6] for rows in (said, other))
    assert one is not None and two is not None
    assert one.followed == pytest.approx(two.followed, abs=1e-6)
    assert one.value == pytest.approx((1 - one.share) * 0.9 + one.share * one.followed)
    assert one.value > two.value


def test_what_is_no_reply_or_was_not_read_has_no_target():
    said = [*evidence(2), reply(3, None, None), reply(4, 0.5, "none")]
    found = training_targets(RewardFollower(fitted()), said)
    assert [one is None for one in found] == [True, True, True, False]
    assert training_targets(RewardFollower(fitted()), []) == []


def test_who_rates_otherwise_than_they_type_is_followed_more():
    typed = [reply(place, 0.95) for place in range(0, 60, 6)]
    rated = [
        Rating(user_id="s0000", prompt=r.prompt, completion=r.completion, score=score)
        for r, score in zip(typed, np.tile([0.0, 0.1], 5).tolist(), strict=True)
    ]
    agreeing = [r.model_copy(update={"score": 0.95}) for r in rated]
    follower = RewardFollower(fitted())
    shares = [training_targets(follower, [*typed, *rows])[0] for rows in (rated, agreeing)]
    assert shares[0] is not None and shares[1] is not None
    assert shares[0].share > shares[1].share
