"""A judge that knows what an answer shows, without a paid model.

Of an answer that is among the written ones it knows the poles. In any other it finds them by probes on n-grams of
characters and words and on counts of marks, which no reward model here sees (its length both do), trained on prompts
p0xx to p3xx. Whether an answer is on its prompt it tells by the words of all written answers.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from palate.bench.people import Kind
from palate.data import POLES, Answer, load_answers
from palate.errors import MissingExtraError
from palate.rewards.posterior import Floats

ATTRIBUTES = tuple(dict.fromkeys(attribute for attribute, _ in POLES.values()))
"""The seven, in the order of the judge's columns."""

_SPOILT_COST = 2.0
_ENDS = re.compile(r"[.!?…)\]\"'”’*:;]\s*$|[^\w\s]\s*$")
_MARKS = (
    r"!",
    r"\?",
    r",",
    r";",
    r":",
    r"\.\.\.|…",
    r"[—–]",
    r"\(",
    r"\n",
    r"\d",
    r"\b[A-Z]",
    r"'\w",
    r"\bI\b",
    r"\byou\b",
)


@dataclass(eq=False)
class Judge:
    """The judge.

    Args:
        probes: one for each attribute: texts to (n, 2), how likely its pole 1 and its pole −1 are shown.
        written: (prompt, text) of the written answers, whole or spoilt, with what they show.
        prompt_of: texts to the (n,) prompts, among the written ones, that they seem to answer.
    """

    probes: list[Callable[[Sequence[str]], Floats]]
    prompt_of: Callable[[Sequence[str]], list[str]]
    written: dict[tuple[str, str], Answer] = field(default_factory=dict)

    @classmethod
    def train(cls) -> "Judge":
        """Learn from the bundled answers to prompts p0xx to p3xx; the same each time.

        Raises:
            MissingExtraError: scikit-learn is not installed.
        """
        try:
            from sklearn.feature_extraction.text import TfidfVectorizer
            from sklearn.linear_model import LogisticRegression
            from sklearn.pipeline import make_pipeline, make_union
            from sklearn.preprocessing import FunctionTransformer, StandardScaler
        except ModuleNotFoundError as error:
            raise MissingExtraError("scikit-learn", "bench") from error
        every = load_answers()
        learned = [a for a in every if a.spoilt is None and a.prompt_id[1] in "0123"]
        features = make_union(
            TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), min_df=3, sublinear_tf=True, max_features=30_000),
            TfidfVectorizer(ngram_range=(1, 2), min_df=3, sublinear_tf=True, lowercase=True),
            make_pipeline(FunctionTransformer(_surface), StandardScaler()),
        )
        texts = [a.text for a in learned]
        x = features.fit_transform(texts)
        probes = []
        for attribute in ATTRIBUTES:
            shown = np.array([a.attributes.get(attribute, 0) for a in learned])
            model = LogisticRegression(C=1.0, max_iter=2_000).fit(x, shown)
            probes.append(_probe(features, model))
        topics = TfidfVectorizer(sublinear_tf=True, stop_words="english")
        whole = [a for a in every if a.spoilt is None]
        t = topics.fit_transform([f"{a.prompt} {a.text}" for a in whole])
        prompts, own = [a.prompt for a in whole], {a.text: i for i, a in enumerate(whole)}

        def prompt_of(said: Sequence[str]) -> list[str]:
            likeness = (topics.transform(said) @ t.T).toarray()
            for row, text in enumerate(said):
                if text in own:
                    likeness[row, own[text]] = -1.0  # it is not to know itself
            return [prompts[i] for i in likeness.argmax(axis=1)]

        return cls(probes, prompt_of, {(a.prompt, a.text): a for a in every})

    def probed(self, texts: Sequence[str]) -> Floats:
        """(n, 7) expected sign of each attribute, by the probes."""
        both = [probe(texts) for probe in self.probes]
        return np.stack([pair[:, 0] - pair[:, 1] for pair in both], axis=1)

    def shows(self, prompts: Sequence[str], texts: Sequence[str]) -> Floats:
        """(n, 7) sign of each attribute: exact of written answers, else as the probes expect."""
        found = self.probed(texts)
        for row, pair in enumerate(zip(prompts, texts, strict=True)):
            if pair in self.written:
                attributes = self.written[pair].attributes
                found[row] = [attributes.get(name, 0) for name in ATTRIBUTES]
        return found

    def broken(self, prompts: Sequence[str], texts: Sequence[str], cut: Sequence[bool]) -> NDArray[np.bool_]:
        """(n,) which are cut short, say one thing over and over, are empty, or answer another prompt."""
        topic = self.prompt_of(texts)
        out = []
        for prompt, text, short, seems in zip(prompts, texts, cut, topic, strict=True):
            if (prompt, text) in self.written:
                out.append(self.written[prompt, text].spoilt is not None)
            else:
                out.append(short or not _ENDS.search(text) or _repeats(text) or seems != prompt)
        return np.array(out, np.bool_)

    def utility(self, kind: Kind, shows: Floats, broken: NDArray[np.bool_]) -> Floats:
        """(n,) how much a person of that kind likes answers: sum of the signs, less 2 of a broken one."""
        total = np.zeros(len(shows))
        for pole in kind:
            attribute, sign = POLES[pole]
            total += sign * shows[:, ATTRIBUTES.index(attribute)]
        return np.asarray(total - _SPOILT_COST * broken, np.float64)

    def validate(self, answers: Sequence[Answer]) -> dict[str, float]:
        """AUC of the probes by pole on whole answers, and the share wrongly taken for broken were none known."""
        from sklearn.metrics import roc_auc_score

        texts, prompts = [a.text for a in answers], [a.prompt for a in answers]
        found = self.probed(texts)
        figures = {}
        for pole, (attribute, sign) in POLES.items():
            true = np.array([a.attributes.get(attribute, 0) == sign for a in answers])
            if 0 < true.sum() < len(true):
                figures[pole] = float(roc_auc_score(true, sign * found[:, ATTRIBUTES.index(attribute)]))
        blind = replace(self, written={})
        figures["wrongly_broken"] = float(np.mean(blind.broken(prompts, texts, [False] * len(texts))))
        return figures


def _probe(features: object, model: object) -> Callable[[Sequence[str]], Floats]:
    places = [list(model.classes_).index(sign) for sign in (1, -1)]  # type: ignore[attr-defined]

    def probe(texts: Sequence[str]) -> Floats:
        said = model.predict_proba(features.transform(list(texts)))  # type: ignore[attr-defined]
        return np.asarray(said[:, places], np.float64)

    return probe


def _surface(texts: Sequence[str]) -> Floats:
    """(n, 3 + marks) length, words, their mean length, and marks for each hundred characters."""
    rows = []
    for text in texts:
        words = text.split()
        marks = [100 * len(re.findall(mark, text)) / (len(text) + 1) for mark in _MARKS]
        rows.append([np.log1p(len(text)), np.log1p(len(words)), len(text) / (len(words) + 1), *marks])
    return np.array(rows, np.float64)


def _repeats(text: str, run: int = 4, times: int = 3) -> bool:
    """Whether some four words stand in a text three times."""
    words = text.lower().split()
    seen: dict[tuple[str, ...], int] = {}
    for i in range(len(words) - run + 1):
        key = tuple(words[i : i + run])
        seen[key] = seen.get(key, 0) + 1
    return max(seen.values(), default=0) >= times
