"""The reward follower: a person's own part is their posterior's, the shared head learns what is common, and goes on."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import expit
from tests.support import answers_to, evidence, fitted

from palate.errors import InputError
from palate.feedback import Reply
from palate.satisfaction.follower import HeadSettings, RewardFollower, SharedHead
from palate.satisfaction.replay import Experience, InMemoryReplay, NoMemory

ANSWERS = [answer.text for answer in answers_to(slice(20, 21))]
PROMPT = answers_to(slice(20, 21))[0].prompt


def stream(users: int = 6, each: int = 10, seed: int = 0) -> list[Experience]:
    """Everybody is pleased with much of the first base reward, beyond what their own taste says."""
    rng = np.random.default_rng(seed)
    phi = rng.standard_normal((users * each, 3))
    target = expit(2 * phi[:, 0])
    return [Experience(f"u{i // each}", f"{i}", phi[i], 0.0, float(target[i]), 1.0) for i in range(users * each)]


def loss(head: SharedHead, records: list[Experience]) -> float:
    p = expit(head(np.stack([r.phi for r in records])))
    target = np.array([r.target for r in records])
    return float(-np.mean(target * np.log(p) + (1 - target) * np.log1p(-p)))


def test_until_somebody_replied_the_posterior_speaks_alone():
    model = fitted()
    ann = model.posterior(evidence(), level=True)
    phi = model.phi([PROMPT] * len(ANSWERS), ANSWERS) - model.known.phi.mean(axis=0) + model.level
    if len(model.rows_of(PROMPT)) > 1:
        phi = model.centred([PROMPT] * len(ANSWERS), ANSWERS)
    scale = model.scales.replies
    expected = expit(scale.slope * phi @ ann.mean[:-1] + scale.generosity * ann.mean[-1])
    assert_allclose(RewardFollower(model).satisfaction(PROMPT, ANSWERS, ann), expected, atol=1e-12)


def test_it_orders_answers_as_the_reward_does():
    model = fitted()
    ann = model.posterior(evidence())
    assert_array_equal(
        np.argsort(RewardFollower(model).satisfaction(PROMPT, ANSWERS, ann)),
        np.argsort(model.reward(PROMPT, ANSWERS, ann)),
    )


def test_a_pleased_reply_moves_the_follower_up_there():
    model = fitted()
    said = Reply(user_id="ann", prompt=PROMPT, completion=ANSWERS[0], reply="love it", satisfaction=1.0, target="taste")
    before, after = (
        RewardFollower(model).satisfaction(PROMPT, ANSWERS[:1], model.posterior(rows, level=True))
        for rows in ([], [said])
    )
    assert after[0] > before[0]


def test_the_head_learns_what_is_common():
    head, records = SharedHead(3), stream()
    before = loss(head, records)
    for _ in range(20):
        head.learn(records, InMemoryReplay())
    assert loss(head, records) < before - 0.1


def test_the_same_stream_gives_the_same_head_and_a_restored_one_goes_on_alike():
    one, other = SharedHead(3), SharedHead(3)
    records = stream()
    for head in (one, other):
        head.learn(records[:30], NoMemory())
    restored = SharedHead(3)
    restored.restore(one.state())
    assert restored.revision == one.revision == other.revision
    for head in (one, restored):
        head.learn(records[30:], NoMemory())
    assert restored.state() == one.state()
    assert one.revision != other.revision


def test_without_replay_the_last_ones_overwrite_the_first():
    """Two groups, told apart by the last base reward, that like opposite things, one after the other."""
    rng = np.random.default_rng(0)
    phi = rng.standard_normal((80, 3))
    phi[:, 2] = np.where(np.arange(80) < 40, 1.5, -1.5)
    target = np.where(np.arange(80) < 40, expit(2 * phi[:, 0]), expit(-2 * phi[:, 0]))
    records = [Experience(f"u{i // 10}", str(i), phi[i], 0.0, float(target[i])) for i in range(80)]
    forgotten = {}
    for name, replayed in (("with", 3.0), ("without", 0.0)):
        head = SharedHead(3, HeadSettings(rate=0.01, replayed=replayed))
        memory = InMemoryReplay() if replayed else NoMemory()
        for _ in range(6):
            head.learn(records[:40], memory)
        just = loss(head, records[:40])
        for _ in range(6):
            head.learn(records[40:], memory)
        forgotten[name] = loss(head, records[:40]) - just
    assert forgotten["without"] > 2 * max(forgotten["with"], 0.01)


def test_a_head_of_another_shape_is_refused():
    with pytest.raises(InputError, match="of another shape"):
        SharedHead(4).restore(SharedHead(3).state())


@pytest.mark.parametrize("column", ["hidden", "batch", "passes", "replayed", "rate"])
def test_settings_out_of_range_are_refused(column):
    with pytest.raises(InputError, match=column):
        HeadSettings(**{column: -1})
