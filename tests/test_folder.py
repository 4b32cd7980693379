"""A reward model on disk: what is loaded is what was saved, and nothing half-written or foreign is touched."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from safetensors.numpy import load_file, save_file
from tests.support import PlantedEncoder, fitted

from palate.errors import InputError, ModelError
from palate.feedback import Comparison, Feedback, Rating, Record
from palate.rewards import Gaussian, Mixture, RewardModel, fit, folder

FILES = ["README.md", "completions.jsonl", "config.json", "model.safetensors"]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    fitted().save(tmp_path / "model")
    return tmp_path / "model"


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def change_config(path: Path, **columns) -> None:
    config = json.loads((path / "config.json").read_text("utf-8"))
    (path / "config.json").write_text(json.dumps({**config, **columns}), "utf-8")


# What is loaded is what was saved


def test_a_loaded_model_gives_the_same_answers(saved):
    model = RewardModel.load(saved)
    model.encoder = PlantedEncoder()
    prompt, completion = fitted().known.prompts[0], fitted().known.completions[0]
    said: list[Record] = [
        Comparison(user_id="ann", prompt=prompt, chosen=completion, rejected="never seen"),
        Rating(user_id="ann", prompt=prompt, completion=completion, score=0.9),
    ]
    assert names(saved) == FILES
    assert model.fingerprint == fitted().fingerprint
    assert_array_equal(model.phi([prompt] * 2, [completion, "new"]), fitted().phi([prompt] * 2, [completion, "new"]))
    one, two = model.posterior(said), fitted().posterior(said)
    assert_array_equal(one.mean, two.mean)
    assert_array_equal(one.cov, two.cov)
    assert model.rank(prompt, [completion, "new"], one) == fitted().rank(prompt, [completion, "new"], two)
    assert (model.figures, model.style_names, model.scales, model.lapse) == (
        fitted().figures,
        fitted().style_names,
        fitted().scales,
        fitted().lapse,
    )


def test_saving_what_was_loaded_gives_the_same_files(saved, tmp_path):
    RewardModel.load(saved).save(tmp_path / "again")
    assert [(tmp_path / "again" / name).read_bytes() for name in FILES] == [
        (saved / name).read_bytes() for name in FILES
    ]


@pytest.fixture
def mixed() -> RewardModel:
    """The fitted model with a prior of two parts."""
    model = fitted()
    mean = np.stack([model.prior.mean + 0.5, model.prior.mean - 0.5])
    prior = Mixture(np.array([0.25, 0.75]), Gaussian(mean, np.stack([model.prior.cov, model.prior.cov / 4])))
    fields = ("offset", "weights", "lapse", "encoder_name", "encoder_revision", "known")
    return RewardModel(prior=prior, **{name: getattr(model, name) for name in fields})


def test_a_mixture_comes_back(mixed, tmp_path):
    mixed.save(tmp_path / "model")
    model = RewardModel.load(tmp_path / "model")
    assert isinstance(model.prior, Mixture)
    assert model.fingerprint == mixed.fingerprint != fitted().fingerprint
    assert_array_equal(model.prior.weights, mixed.prior.weights)
    assert_array_equal(model.prior.parts.mean, mixed.prior.parts.mean)
    assert_array_equal(model.prior.parts.cov, mixed.prior.parts.cov)
    prompt, completion = model.known.prompts[0], model.known.completions[:2]
    said: list[Record] = [Comparison(user_id="ann", prompt=prompt, chosen=completion[1], rejected=completion[0])]
    one, two = model.posterior(said), mixed.posterior(said)
    assert one.weights.shape == (2,)
    assert_array_equal(one.weights, two.weights)
    assert_array_equal(one.parts.mean, two.parts.mean)
    model.save(tmp_path / "again")
    assert [(tmp_path / "again" / name).read_bytes() for name in FILES] == [
        (tmp_path / "model" / name).read_bytes() for name in FILES
    ]


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        (np.ones(3) / 3, "config.json or completions.jsonl is cut short or changed"),
        (np.array([0.75, 0.25]), "model.safetensors does not match config.json"),
    ],
    ids=["too many", "others"],
)
def test_weights_of_parts_that_were_changed_are_refused(mixed, tmp_path, weights, reason):
    path = tmp_path / "model"
    mixed.save(path)
    save_file({**load_file(path / "model.safetensors"), "prior.weights": weights}, path / "model.safetensors")
    assert refused(path) == broken(path, reason)


def test_a_folder_of_the_first_format_is_read(tmp_path):
    model, path = fitted(), tmp_path / "model"
    fields = ("offset", "weights", "lapse", "encoder_name", "encoder_revision", "known")
    prior = Gaussian(model.prior.mean, model.prior.cov)
    plain = RewardModel(prior=prior, **{name: getattr(model, name) for name in fields})
    plain.save(path)
    # It knew of no drift, no guard, and no level of ratings.
    config = json.loads((path / "config.json").read_text("utf-8"))
    older = {name: value for name, value in config.items() if name not in ("drift", "guard")} | {"format": 1}
    (path / "config.json").write_text(json.dumps(older), "utf-8")
    tensors = load_file(path / "model.safetensors")
    del tensors["ratings.level"]
    save_file(tensors, path / "model.safetensors")
    loaded = RewardModel.load(path)
    assert isinstance(loaded.prior, Gaussian)
    assert (loaded.fingerprint, loaded.guard, loaded.drift.moves) == (plain.fingerprint, 0.0, False)
    assert not loaded.level.any()
    assert_array_equal(loaded.prior.mean, prior.mean)
    assert_array_equal(loaded.prior.cov, prior.cov)


HARD = [
    "emoji 👩‍👩‍👧 and flags 🇳🇵",
    "שלום, עולם — مرحبا ‏(right to left)‎",
    "tab\tline\nreturn\rbell\x07escape\x1bdelete\x7f",
    "separators \u2028 and \u2029 and \x85 and \x0b and \x0c and \x1c and \x1e",
    'quotes " and \\ and {"json": 1}',
    "combining e\u0301 and é, zero\u200bwidth, \ufeff a mark",
    "   ",
    "long " * 20_000,
]


def test_hard_texts_survive_saving_and_ranking(tmp_path):
    rows = [
        Comparison(user_id=user, prompt=text, chosen=f"yes {text}", rejected=f"no {text}")
        for user in ("ann", "bob")
        for text in HARD
    ]
    rows.append(
        Comparison(
            user_id="bob",
            prompt=[{"role": "user", "content": "\u2028"}, {"role": "system", "content": "🙂"}],
            chosen=[{"role": "assistant", "content": "a\x85b"}],
            rejected=[{"role": "assistant", "content": "c"}],
        )
    )
    model = fit(Feedback(comparisons=rows), PlantedEncoder(), rank=2)
    model.save(tmp_path / "model")
    loaded = RewardModel.load(tmp_path / "model")
    assert (loaded.known.prompts, loaded.known.completions) == (model.known.prompts, model.known.completions)
    for text in HARD:
        # All are known: had one changed on the way, an encoder would be looked for.
        candidates = [f"no {text}", f"yes {text}"]
        assert loaded.rank(text, candidates) == model.rank(text, candidates)


def test_the_model_card_holds_the_figures(saved):
    card = (saved / "README.md").read_text("utf-8")
    figures = fitted().figures
    assert f"# Palate reward model {fitted().fingerprint}\n" in card
    assert "fitted on 960 comparisons\nof 24 people between 280 answers to 20 prompts." in card
    assert f"| 10 | {figures['held_out_auc.10']:.3f} | {figures['held_out_log_loss.10']:.3f} |" in card
    assert "Encoder: planted, revision r1." in card


def test_the_card_of_a_model_without_figures_says_so():
    two = [Comparison(user_id=user, prompt="Hi", chosen="Yes", rejected="No", kind="k") for user in ("a", "b")]
    card = folder.card(fit(Feedback(comparisons=two), PlantedEncoder()))
    assert "Too few people to leave any out: nothing was measured.\n" in card


def test_the_folder_can_be_read_by_others_and_its_arrays_without_palate(saved):
    assert saved.stat().st_mode & 0o777 == 0o755
    assert_array_equal(load_file(saved / "model.safetensors")["weights"], fitted().weights)


# Saving


def test_a_new_model_replaces_the_old_one(saved):
    other = fit(
        Feedback(
            comparisons=[
                Comparison(user_id="a", prompt="Hi", chosen="Yes", rejected="No"),
                Comparison(user_id="b", prompt="Hi", chosen="No", rejected="Yes"),
            ]
        ),
        PlantedEncoder(),
    )
    other.save(saved)
    assert RewardModel.load(saved).fingerprint == other.fingerprint
    assert names(saved) == FILES
    assert names(saved.parent) == ["model"]


def test_parents_are_made_and_an_empty_folder_is_taken(tmp_path):
    fitted().save(tmp_path / "a" / "b" / "model")
    (tmp_path / "empty").mkdir()
    fitted().save(str(tmp_path / "empty"))
    assert names(tmp_path / "a" / "b" / "model") == names(tmp_path / "empty") == FILES


def test_a_link_stays_a_link(saved):
    link = saved.with_name("latest")
    link.symlink_to(saved.name, target_is_directory=True)
    fitted().save(link)
    assert link.is_symlink()
    assert RewardModel.load(link).fingerprint == fitted().fingerprint
    assert names(saved.parent) == ["latest", "model"]


@pytest.mark.parametrize("content", [["notes.txt"], ["config.json"], ["config.json", "model.safetensors", "README.md"]])
def test_a_folder_with_other_things_is_left_alone(tmp_path, content):
    for name in content:
        (tmp_path / name).write_text("mine")
    with pytest.raises(InputError) as caught:
        fitted().save(tmp_path)
    assert str(caught.value) == f"{str(tmp_path)!r} is not a reward model's folder and is not empty; name another"
    assert names(tmp_path) == sorted(content)


def test_a_model_among_other_things_is_left_alone(saved):
    (saved / "notes.txt").write_text("mine")
    with pytest.raises(InputError) as caught:
        fitted().save(saved)
    assert str(caught.value) == f"{str(saved)!r} is not a reward model's folder and is not empty; name another"
    assert (saved / "notes.txt").read_text() == "mine"


def test_a_file_is_not_overwritten(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(InputError) as caught:
        fitted().save(file)
    assert str(caught.value) == f"{str(file)!r} is not a reward model's folder and is not empty; name another"
    assert file.read_text() == "mine"


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    path = tmp_path / "file" / "model"
    with pytest.raises(InputError) as caught:
        fitted().save(path)
    assert str(caught.value) == f"{str(path)!r} lies below the file {str(tmp_path / 'file')!r}; name a folder"


def test_a_full_disk_leaves_the_old_model(saved, monkeypatch):
    def full(model: RewardModel, path: Path) -> None:
        (path / "config.json").write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "_write", full)
    with pytest.raises(ModelError) as caught:
        fitted().save(saved)
    assert str(caught.value) == (
        f"Cannot write the reward model to {str(saved)!r}: no space left on device; name a folder with room to write"
    )
    assert RewardModel.load(saved).fingerprint == fitted().fingerprint
    assert names(saved.parent) == ["model"]


def test_an_interrupt_while_writing_leaves_the_old_model(saved, monkeypatch):
    def interrupted(model: RewardModel, path: Path) -> None:
        (path / "config.json").write_text("{")
        raise KeyboardInterrupt

    monkeypatch.setattr(folder, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fitted().save(saved)
    assert RewardModel.load(saved).fingerprint == fitted().fingerprint
    assert names(saved.parent) == ["model"]


def test_an_interrupt_between_the_two_renames_puts_the_old_model_back(saved, monkeypatch):
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        if target == saved and not path.name.endswith(".old"):
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fitted().save(saved)
    assert RewardModel.load(saved).fingerprint == fitted().fingerprint
    assert names(saved.parent) == ["model"]


# Loading


def refused(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        RewardModel.load(path)
    return str(caught.value)


def broken(path: Path, reason: str) -> str:
    return f"Cannot read the reward model at {str(path)!r}: {reason}; copy it again or fit it anew"


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.write_text("a file")], ids=["nothing", "a file"])
def test_no_model_there(tmp_path, make):
    path = tmp_path / "model"
    make(path)
    assert refused(path) == (
        f"There is no reward model at {str(path)!r}; make one with: palate fit FEEDBACK --output DIR"
    )


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "completions.jsonl"])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    assert refused(saved) == broken(saved, f"{name} is missing")


def test_the_card_may_be_missing(saved):
    (saved / "README.md").unlink()
    assert RewardModel.load(saved).fingerprint == fitted().fingerprint


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "completions.jsonl"])
def test_a_file_cut_short_is_refused(saved, name, share):
    data = (saved / name).read_bytes()
    (saved / name).write_bytes(data[: int(share * len(data))])
    reason = (
        "model.safetensors is cut short or is no safetensors file"
        if name == "model.safetensors"
        else "config.json or completions.jsonl is cut short or changed"
    )
    assert refused(saved) == broken(saved, reason)


@pytest.mark.parametrize(
    "text", ["[]", "null", "7", '{"format": 1}', '{"format": "x"}', '{"format": null}', "\xff\xfe"], ids=repr
)
def test_a_config_that_is_none_is_refused(saved, text):
    (saved / "config.json").write_text(text, "latin-1")
    assert refused(saved) == broken(saved, "config.json or completions.jsonl is cut short or changed")


@pytest.mark.parametrize(
    "columns",
    [
        {"encoder": "planted"},
        {"encoder": {"name": "planted"}},
        {"ratings": []},
        {"ratings": {"slope": 1.0, "steepness": 2.0}},
        {"lapse": "much"},
        {"lapse": None},
        {"styles": 3},
        {"styles": [["verbose"]]},
        {"figures": 1},
    ],
    ids=str,
)
def test_a_config_that_was_changed_is_refused(saved, columns):
    change_config(saved, **columns)
    assert refused(saved) == broken(saved, "config.json or completions.jsonl is cut short or changed")


@pytest.mark.parametrize(
    "columns",
    [
        {"lapse": 0.2},
        {"fingerprint": "0" * 16},
        {"encoder": {"name": "planted", "revision": "r9"}},
        {"ratings": {"slope": 2.0, "weight": 1.0, "generosity": 1.0}},
    ],
    ids=str,
)
def test_a_config_of_another_model_is_refused(saved, columns):
    change_config(saved, **columns)
    assert refused(saved) == broken(saved, "model.safetensors does not match config.json")


def test_a_newer_format_is_refused(saved):
    change_config(saved, format=4)
    assert refused(saved) == (
        f"The reward model at {str(saved)!r} has format 4, this version of Palate reads up to 3; update Palate"
    )


def test_tensors_of_another_shape_are_refused(saved):
    tensors = load_file(saved / "model.safetensors")
    save_file({**tensors, "prior.cov": np.eye(2)}, saved / "model.safetensors")
    assert refused(saved) == broken(saved, "config.json or completions.jsonl is cut short or changed")


@pytest.mark.parametrize("name", ["weights", "known.phi", "prior.mean"])
def test_tensors_that_changed_are_refused(saved, name):
    tensors = load_file(saved / "model.safetensors")
    save_file({**tensors, name: tensors[name] + 1}, saved / "model.safetensors")
    assert refused(saved) == broken(saved, "model.safetensors does not match config.json")


def test_completions_in_another_order_are_refused(saved):
    lines = (saved / "completions.jsonl").read_text("utf-8").split("\n")[:-1]
    (saved / "completions.jsonl").write_text("\n".join(lines[::-1]) + "\n", "utf-8")
    assert refused(saved) == broken(saved, "model.safetensors does not match config.json")


@pytest.mark.parametrize("line", ["null", "{}", '{"prompt": 5, "completion": "x"}', '{"prompt": "x"}', "x"])
def test_a_completion_that_is_none_is_refused(saved, line):
    lines = (saved / "completions.jsonl").read_text("utf-8").split("\n")
    (saved / "completions.jsonl").write_text("\n".join([line, *lines[1:]]), "utf-8")
    assert refused(saved) == broken(saved, "config.json or completions.jsonl is cut short or changed")
