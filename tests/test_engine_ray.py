"""The Ray engine, on a local cluster: the same vectors and posteriors as without it."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from tests.test_encoders import save_tiny

from palate.encoders import load_encoder
from palate.encoders.distributed import RayEncoder, connect
from palate.errors import EncoderError
from palate.rewards.beliefs import Gaussian
from palate.rewards.posterior import Observations, laplace_posterior
from palate.rewards.refit import in_batches, ray_posteriors

# What Ray does on its own, not what we do with it.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:ray"),
]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    import ray

    # The workers import what this process does, wherever it was started.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path("src").resolve()), os.environ.get("PYTHONPATH")]))
    connect()
    yield
    ray.shutdown()


def test_texts_are_read_as_without_a_cluster(tmp_path):
    encoder = load_encoder(str(save_tiny(tmp_path / "tiny")), cache=False, device="cpu")
    prompts, completions = [f"question {i % 7}" for i in range(150)], [f"answer {i}" for i in range(150)]
    told: list[tuple[int, int]] = []
    spread = RayEncoder(encoder, copies=1)
    features = spread.encode(prompts, completions, progress=lambda done, total: told.append((done, total)))
    assert_allclose(features, encoder.encode(prompts, completions), atol=1e-6)
    assert told[-1] == (150, 150)
    assert (spread.name, spread.revision, spread.width) == (encoder.name, encoder.revision, encoder.width)
    assert spread.encode([], []).shape == (0, encoder.width)


def test_posteriors_are_those_without_a_cluster():
    rng = np.random.default_rng(0)
    said = Observations.of(rng.standard_normal((600, 4)), rng.integers(0, 60, 600), 60, rng.random(600))
    prior = Gaussian(np.ones(4), np.eye(4))
    found = list(ray_posteriors(in_batches(said, 25), prior, 0.03))
    together = laplace_posterior(said, prior, 0.03)
    assert [len(belief.mean) for belief in found] == [25, 25, 10]
    assert_allclose(np.concatenate([belief.mean for belief in found]), together.mean, atol=1e-6)
    assert_allclose(np.concatenate([belief.cov for belief in found]), together.cov, atol=1e-6)


def test_a_copy_of_other_weights_is_refused(tmp_path):
    from palate.encoders.distributed import _Reader

    folder = str(save_tiny(tmp_path / "tiny"))
    with pytest.raises(EncoderError, match="install the same one there"):
        _Reader(folder, "0000000000000000")
