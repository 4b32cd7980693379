"""The style adapter that ships: what it may have seen, and that it is added as it says."""

import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.test_encoders import load_sentences

from palate.data import POLES, load_answers, load_style_answers
from palate.encoders import load_encoder
from palate.encoders.adapter import ADAPTED, BASE, BASE_REVISION, adapt
from palate.errors import EncoderError

FILE = "src/palate/data/style-adapter/adapter.safetensors"


def test_the_default_encoder_is_the_base_with_the_adapter():
    base, adapted = load_sentences(BASE, cache=False), load_sentences(cache=False)
    assert (base.revision, adapted.name) == (BASE_REVISION, ADAPTED)
    assert adapted.revision != base.revision and adapted.blocks == base.blocks
    low_rank = load_file(FILE)
    weights, tuned = base.model.state_dict(), adapted.model.state_dict()
    changed = {name.removesuffix(".a") for name in low_rank if name.endswith(".a")}
    assert len(changed) == 36
    for name, tensor in tuned.items():
        difference = tensor.numpy() - weights[name].numpy()
        if name in changed:
            expected = low_rank[f"{name}.b"].astype(np.float32) @ low_rank[f"{name}.a"].astype(np.float32)
            np.testing.assert_allclose(difference, expected, atol=1e-5)
            assert np.abs(expected).max() > 1e-4
        else:
            assert not difference.any()


def test_it_fits_no_other_weights():
    with pytest.raises(EncoderError) as caught:
        adapt(load_sentences(BASE, cache=False).model, "0123")
    assert str(caught.value).startswith(
        f"The style adapter does not fit weights of revision '0123': it was made for {BASE_REVISION!r}"
    )


def test_its_name_is_known_to_the_command_line():
    assert load_encoder(ADAPTED, cache=False).name == ADAPTED


def test_the_further_answers_are_written_as_the_others():
    old, new = load_answers(), load_style_answers()
    assert not {answer.prompt for answer in old} & {answer.prompt for answer in new}
    assert not {answer.text for answer in old} & {answer.text for answer in new}
    assert not any(answer.prompt_id.startswith(("p4", "p5")) for answer in new)
    assert len(new) == 12 * len({answer.prompt_id for answer in new})
    assert all(len(answer.attributes) == 3 for answer in new)
    words: dict[str, list[int]] = {"verbose": [], "concise": []}
    for answer in new:
        if length := answer.attributes.get("length"):
            words["verbose" if length == POLES["verbose"][1] else "concise"].append(len(answer.text.split()))
    assert max(words["concise"]) < 40 < 100 < min(words["verbose"])


def test_what_it_is_trained_on_leaves_the_benchmarks_prompts_out():
    script = Path("scripts/train_style_adapter.py").read_text(encoding="utf-8")
    assert re.search(r'^LEFT_OUT = \("p4", "p5"\)$', script, flags=re.MULTILINE)
