"""Tastes in words and pictures: the regression against lstsq, words only where earned, the same file twice."""

import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy.stats import norm
from tests.support import KINDS, PlantedEncoder, fitted, people

from palate.errors import InputError, MissingExtraError
from palate.rewards import Gaussian, KnownAnswers, RewardModel, explain
from palate.rewards.explain import StyleTaste, in_words, style_tastes
from palate.rewards.picture import draw_taste
from palate.rewards.posterior import Floats
from palate.rewards.styles import StyleProbe

explain_module = sys.modules["palate.rewards.explain"]
STYLES = [("verbose", "concise"), ("formal", "informal"), ("humorous", "serious")]


def model(styles: list[tuple[str, str]] = STYLES, prompts: int = 30, noise: float = 0.0) -> RewardModel:
    """Two base rewards made of three styles, four answers to a prompt, each prompt with a level of its own."""
    rng = np.random.default_rng(0)
    count = 4 * prompts
    shown = rng.standard_normal((count, len(styles)))
    level = np.repeat(rng.standard_normal((prompts, 2)), 4, axis=0)
    phi = shown @ np.resize([[1.0, 0.0], [0.0, -2.0], [0.5, 0.0]], (len(styles), 2)) + level
    phi = phi + noise * rng.standard_normal(phi.shape)
    known = KnownAnswers([f"prompt {i // 4}" for i in range(count)], [f"answer {i}" for i in range(count)], phi, shown)
    prior = Gaussian(np.array([0.2, 0.1]), np.eye(2))
    return RewardModel(np.zeros(3, np.float32), np.zeros((2, 3), np.float32), prior, 0.0, "none", "r1", known, styles)


def within(values: Floats) -> Floats:
    return np.asarray(values - np.repeat(values.reshape(-1, 4, values.shape[1]).mean(axis=1), 4, axis=0))


# Numbers


def test_likings_are_those_of_least_squares_within_prompts(monkeypatch):
    monkeypatch.setattr(explain_module, "_RIDGE", 1e-12)
    one = model(noise=0.3)
    user = Gaussian(np.array([0.7, -0.4]), np.array([[0.3, 0.1], [0.1, 0.2]]))
    tastes = {taste.high: taste for taste in style_tastes(one, user)}
    shown, phi = within(one.known.styles), within(one.known.phi)
    draws = np.random.default_rng(1).multivariate_normal(user.mean, user.cov, 20_000)
    for s, (high, _) in enumerate(STYLES):
        taste = tastes[high]
        assert taste.liking == pytest.approx(np.linalg.lstsq(shown, phi @ user.mean)[0][s], abs=1e-9)
        assert taste.population == pytest.approx(np.linalg.lstsq(shown, phi @ one.prior.mean)[0][s], abs=1e-9)
        sampled = np.linalg.lstsq(shown, phi @ draws.T)[0][s]
        assert taste.deviation == pytest.approx(sampled.std(), rel=0.03)
        assert taste.certainty == pytest.approx(max((sampled > 0).mean(), (sampled < 0).mean()), abs=0.02)


def test_a_planted_taste_is_told_by_its_style():
    tastes = style_tastes(model(), Gaussian(np.array([0.0, 1.0]), 1e-4 * np.eye(2)))
    assert tastes[0].word == "informal"
    assert tastes[0].liking == pytest.approx(-2.0, rel=0.1)
    assert [taste.certainty for taste in tastes] == sorted((taste.certainty for taste in tastes), reverse=True)


def test_people_of_two_poles_are_told_by_them():
    for kind in KINDS:
        said = [row for row in people(prompts=slice(20, 40), each=1, seed=3) if row.kind is not None]
        own = [row for row in said if set(row.kind.split("+")) == set(kind.split(","))]  # type: ignore[union-attr]
        told = explain(fitted(), fitted().posterior(own))
        sure = {taste.word for taste in told.styles if taste.certainty > 0.95}
        assert set(kind.split(",")) <= sure
        assert all(pole in told.words for pole in kind.split(","))


def taste(high: str, low: str, liking: float, deviation: float, spread: float = 1.0) -> StyleTaste:
    return StyleTaste(high, low, liking, deviation, 0.0, spread)


@pytest.mark.parametrize(("liking", "deviation"), [(0.8, 0.5), (-0.8, 0.5), (0.0, 1.0), (2.0, 0.01)])
def test_certainty_is_the_probability_of_the_end_that_is_liked(liking, deviation):
    assert taste("a", "b", liking, deviation).certainty == pytest.approx(norm.cdf(abs(liking) / deviation))
    assert taste("a", "b", liking, 0.0).certainty == (0.5 if liking == 0 else 1.0)


# Words


SURE, LIKELY = {"liking": 1.0, "deviation": 0.5}, {"liking": 1.0, "deviation": 0.9}
OPEN = {"liking": 0.1, "deviation": 0.9}


@pytest.mark.parametrize(
    ("styles", "words"),
    [
        ([], "No clear taste yet."),
        ([taste("verbose", "concise", **SURE)], "Prefers verbose answers."),
        ([taste("verbose", "concise", -1.0, 0.5)], "Prefers concise answers."),
        ([taste("verbose", "concise", **LIKELY)], "Probably prefers verbose answers."),
        (
            [taste("verbose", "concise", **OPEN)],
            "No clear taste yet.",
        ),
        (
            [
                taste("verbose", "concise", **SURE),
                taste("polite", "blunt", **SURE),
                taste("formal", "informal", **SURE),
            ],
            "Prefers verbose, polite and formal answers.",
        ),
        (
            [taste("verbose", "concise", **SURE), taste("polite", "blunt", **LIKELY), taste("a", "b", **OPEN)],
            "Prefers verbose answers. Probably also polite ones. Nothing clear yet on a or b.",
        ),
    ],
    ids=["nothing", "sure of much", "sure of little", "likely", "open", "three", "one of each"],
)
def test_words_are_as_strong_as_they_are_certain(styles, words):
    assert in_words(styles) == words


def test_a_small_liking_is_not_told_however_certain():
    assert in_words([taste("verbose", "concise", 0.2, 0.01)]) == "No clear taste yet."
    assert in_words([taste("verbose", "concise", 0.6, 0.01)]) == "Prefers verbose answers."


def test_of_somebody_new_nothing_is_claimed():
    told = explain(fitted(), fitted().new_user())
    assert "Prefers" not in told.words
    assert told.example is None


# Axes and the example


def test_axes_come_by_how_far_the_person_is_from_the_population():
    user = Gaussian(np.array([0.3, 2.1]), np.diag([0.25, 0.04]))
    first, second = explain(model(), user).axes
    assert (first.weight, first.deviation) == pytest.approx((2.1, 0.2))
    assert (second.weight, second.deviation) == pytest.approx((0.3, 0.5))
    assert first.words == ["informal"]
    assert second.words[0] == "verbose"


def test_the_ends_of_an_axis_are_the_most_extreme_against_their_prompt():
    one = model()
    phi = within(one.known.phi)
    axis = explain(one, Gaussian(np.array([5.0, 0.1]), np.eye(2))).axes[0]
    order = np.argsort(phi[:, 0])
    assert axis.high == [(one.known.prompts[i], one.known.completions[i]) for i in (order[-1], order[-2])]
    assert axis.low == [(one.known.prompts[i], one.known.completions[i]) for i in (order[0], order[1])]


def test_the_example_is_where_the_picks_differ_most_surely():
    one = model()
    user = Gaussian(np.array([-0.5, 1.5]), 0.2 * np.eye(2))
    found = explain(one, user).example
    sure: dict[tuple[object, object], float] = {}
    for rows in np.arange(len(one.known.phi)).reshape(-1, 4):
        own = rows[np.argmax(one.known.phi[rows] @ user.mean)]
        shared = rows[np.argmax(one.known.phi[rows] @ one.prior.mean)]
        if own != shared:
            d = one.known.phi[own] - one.known.phi[shared]
            sure[one.known.completions[own], one.known.completions[shared]] = norm.cdf(
                d @ user.mean / np.sqrt(d @ user.cov @ d)
            )
    best = max(sure, key=lambda pair: sure[pair])
    assert found is not None
    assert (found.personal, found.generic) == best
    assert found.preferred == pytest.approx(sure[best])


def test_a_model_without_named_styles_is_told_by_its_axes():
    told = explain(model(styles=[]), Gaussian(np.array([1.0, -1.0]), np.eye(2)))
    assert (told.words, told.styles) == ("No clear taste yet.", [])
    assert [axis.words for axis in told.axes] == [[], []]


def test_the_probe_reads_the_styles_that_answers_show():
    probe = StyleProbe.fit(PlantedEncoder())
    assert len(probe.names) == 7
    assert probe.names[0] == ("verbose", "concise")
    read = probe(np.eye(7, 12, dtype=np.float32) - np.float32(0))
    # Each attribute moves its own style most.
    slope = read - probe(np.zeros((1, 12), np.float32))
    assert (np.argmax(np.abs(slope), axis=1) == np.arange(7)).all()
    assert (np.diag(slope) > 0).all()


# The picture


def told() -> list[StyleTaste]:
    return style_tastes(model(), Gaussian(np.array([0.5, 1.0]), 0.1 * np.eye(2)))


@pytest.mark.parametrize("name", ["taste", "taste.svg", "taste.png", "deep/er/taste"])
def test_a_picture_is_drawn_as_svg_and_png(tmp_path, name):
    svg, png = draw_taste(told(), tmp_path / name, title="What Ana likes <& why>")
    assert (svg.name, png.name) == ("taste.svg", "taste.png")
    assert png.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    root = ElementTree.fromstring(svg.read_text("utf-8"))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"


def test_names_with_dots_do_not_overwrite_each_other(tmp_path):
    ana, bob = (draw_taste(told(), tmp_path / name, title="")[0] for name in ("j.ana", "j.bob"))
    assert (ana.name, bob.name) == ("j.ana.svg", "j.bob.svg")


def test_the_same_taste_gives_the_same_files(tmp_path):
    one, two = (draw_taste(told(), tmp_path / name, title="Taste") for name in ("one", "two"))
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in two]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError) as caught:
        draw_taste(told(), tmp_path / "file" / "taste", title="")
    assert str(caught.value) == (
        f"Cannot write the picture {str(tmp_path / 'file' / 'taste')!r}: file exists; name another folder"
    )


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError) as caught:
        draw_taste(told(), tmp_path / "taste", title="")
    assert str(caught.value) == "The package 'matplotlib' is not installed; run: pip install 'palate[plot]'"
    assert list(tmp_path.iterdir()) == []


def test_a_title_is_no_formula(tmp_path):
    assert draw_taste(told(), tmp_path / "taste", title="What a$b^$c likes")[0].exists()
