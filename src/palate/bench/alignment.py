"""Whether answers get better: personal best-of-n, guided decoding and words, on the small policy, by the judge.

Base rewards are fitted on the bundled people, and people of unseen kinds answer ten questions about prompts p0xx to
p3xx. The policy knows 24 prompts of p4xx and p5xx, which reward and probes have not seen. Half of them are answered in
each of the ways, and the judge says how much the person likes what they got; the strength of guiding is chosen on the
other half. A value head learns from the policy's answers to all 24, as a product's does from what its users ask, and
another, `guided_unseen`, from those of the other half alone. Intervals are 95 % bootstrap intervals over kinds of
people, who come in three seeds; examples, the other head and further strengths are measured on one seed of people.
"""

import re
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from palate.alignment.best_of_n import gain_of_more, length_coefficient
from palate.alignment.candidates import Candidate, Sampling
from palate.alignment.guided import guided, guided_answers
from palate.alignment.instruct import examples, instruction, with_system
from palate.alignment.local import LocalModel
from palate.alignment.value_head import HeadRecipe, ValueHead, train_value_head
from palate.bench.asked import Asked, ask
from palate.bench.compared import Compared, interval
from palate.bench.judge import Judge
from palate.bench.policy import Stand, answers_of, policy
from palate.bench.report import Points, Result, markdown
from palate.bench.unseen import unseen_kinds
from palate.data import load_answers, load_people
from palate.encoders import load_encoder
from palate.feedback import Feedback, Text
from palate.rewards import RewardModel, fit
from palate.rewards.fitting import Stage
from palate.rewards.posterior import Floats, Ints

_NS = (1, 2, 4, 8, 16)
_TAUS = (8.0, 4.0, 2.0, 1.0, 0.5)
_SAMPLING = Sampling(max_tokens=320)

Bools = NDArray[np.bool_]


def run(*, quick: bool, seed: int, data: Path | None = None, progress: Stage | None = None) -> Result:
    """Fit, ask, answer, judge.

    Args:
        quick: one person of each kind, fewer candidates and strengths.
        seed: of everything drawn by chance.
        data: not used.
        progress: told of each stage.
    """
    told = progress or (lambda stage, done, total: None)
    told("Fitting", 0, 1)
    model = fit(Feedback(comparisons=load_people()), load_encoder(), seed=seed)
    source, figures = policy(Stand(seed=seed), told)
    figures = {f"policy.{name}": value for name, value in figures.items()}
    told("Training the judge", 0, 1)
    judge = Judge.train()
    every = list(dict.fromkeys(answer.prompt for answer in answers_of(Stand(seed=seed))))
    others, prompts = every[::2], every[1::2]
    people = _people(model, 1 if quick else 3, seed, told)
    shelf = _shelf(source, model, judge, prompts, 32 if quick else 64, seed, told)
    figures |= _judged(judge, shelf)
    compared = Compared(np.array([person.number for person in people]), seed)
    bench = _Bench(model, source, judge, prompts, people, shelf, compared, seed)
    figures |= bench.chosen(_NS[:4] if quick else _NS) | bench.stopped_early()
    once = people[: len(unseen_kinds())]
    few = _Bench(model, source, judge, prompts, once, shelf, Compared(np.array([p.number for p in once]), seed), seed)
    recipe = HeadRecipe(answers=64, seed=seed)
    head = train_value_head(source, model, every, recipe, _SAMPLING, told=told)
    figures["guided.explained"] = head.explained or 0.0
    tau = _strength(source, model, judge, head, others, once, told)
    figures["guided.temperature"] = tau
    figures |= bench.guided("guided", head, bench.mean, tau)
    figures |= bench.guided("guided_population", head, np.broadcast_to(model.prior.mean, bench.mean.shape), tau)
    for number, one in enumerate(() if quick else _TAUS):
        told("Guiding", number, len(_TAUS))
        figures |= few.guided(f"guided_{one:g}", head, few.mean, one)
    if not quick:
        other = train_value_head(source, model, others, recipe, _SAMPLING, told=told)
        figures["guided_unseen.explained"] = other.explained or 0.0
        figures |= few.guided("guided_unseen", other, few.mean, tau)
    told("Words", 0, 2)
    figures |= bench.said("instruct", [instruction(model, person.belief) for person in people])
    told("Words", 1, 2)
    figures |= few.said("examples", [examples(model, person.said, 2, 900) for person in once])
    figures |= {
        "broken.best_of_8": figures["broken.best_of_8.personal"],
        "guided.share_of_gain": figures["gain.guided"] / figures["gain.best_of_8.personal"],
        "guided.forward_ratio": figures["tokens.guided"] / float(shelf.texts.tokens.mean()),
    }
    told("Timing", 0, 1)
    figures |= _overheads(model, source, head, prompts, people, shelf, tau)
    return Result(
        "alignment",
        figures,
        _table(figures),
        more={"pareto": _pareto(figures)},
        pages={"answers": bench.side_by_side()},
    )


def _strength(
    source: LocalModel,
    model: RewardModel,
    judge: Judge,
    head: ValueHead,
    prompts: list[str],
    people: list[Asked],
    told: Stage,
) -> float:
    """The τ under which the judge likes answers best to prompts that nothing else is measured on."""
    asked = prompts * len(people)
    weights = np.repeat(np.stack([person.belief.mean for person in people]), len(prompts), axis=0)
    found = []
    for number, tau in enumerate(_TAUS):
        told("Finding the strength", number, len(_TAUS))
        drawn = [one for [one] in guided_answers(source, head, asked, weights, 1, replace(_SAMPLING, seed=17), tau)]
        texts = [one.text for one in drawn]
        shows, broken = judge.shows(asked, texts), judge.broken(asked, texts, [one.cut for one in drawn])
        parts = np.split(np.arange(len(asked)), len(people))
        likes = [judge.utility(x.kind, shows[part], broken[part]) for x, part in zip(people, parts, strict=True)]
        found.append(float(np.mean(likes)))
    return _TAUS[int(np.argmax(found))]


def _people(model: RewardModel, each: int, seed: int, told: Stage) -> list[Asked]:
    kinds = unseen_kinds()
    every = [(round_, kind) for round_ in range(each) for kind in range(len(kinds))]
    found = []
    for number, (round_, kind) in enumerate(every):
        told("Asking", number, len(every))
        found.append(ask(model, kinds[kind], kind, np.random.default_rng([seed, round_, kind])))
    return found


class _Texts(NamedTuple):
    """Answers by people or by draws, (A, P) each, as the judge and the policy see them."""

    text: list[list[str]]
    tokens: Ints
    shows: Floats  # (A, P, 7)
    broken: Bools
    likelihood: Floats  # total log π(y | x), in nats


class _Shelf(NamedTuple):
    """The policy's own answers, N to each of P prompts."""

    texts: _Texts  # (N, P)
    phi: Floats  # (N, P, J)


def _shelf(
    source: LocalModel, model: RewardModel, judge: Judge, prompts: list[str], n: int, seed: int, told: Stage
) -> _Shelf:
    told("Answering", 0, 1)
    drawn = source.draw(prompts, n, replace(_SAMPLING, seed=seed))
    texts = _judge(source, judge, prompts, [[drawn[p][i] for p in range(len(prompts))] for i in range(n)])
    flat = [text for row in texts.text for text in row]
    phi = model.phi(prompts * n, flat).reshape(n, len(prompts), -1)
    return _Shelf(texts, phi)


def _judge(source: LocalModel, judge: Judge, prompts: list[str], answers: Sequence[Sequence[Candidate]]) -> _Texts:
    asked = prompts * len(answers)
    flat = [one for row in answers for one in row]
    texts = [one.text for one in flat]
    shape = (len(answers), len(prompts))
    broken = judge.broken(asked, texts, [one.cut for one in flat])
    return _Texts(
        [[one.text for one in row] for row in answers],
        np.array([one.tokens for one in flat], np.int64).reshape(shape),
        judge.shows(asked, texts).reshape(*shape, -1),
        broken.reshape(shape),
        log_likelihood(source, asked, flat).reshape(shape),
    )


def log_likelihood(
    source: LocalModel,
    prompts: Sequence[Text],
    answers: Sequence[Candidate],
    steered: Callable[[Sequence[int]], AbstractContextManager[object]] | None = None,
) -> Floats:
    """(n,) log π(answer | prompt) in nats, of the policy or as `steered` moves it (see `LocalModel.draw`)."""
    import torch

    pairs = []
    for prompt, one in zip(prompts, answers, strict=True):
        before, after = source.tokens(prompt, one.text)
        pairs.append((before, list(one.ids) or after))
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    found = np.zeros(len(pairs))
    for first in range(0, len(order), source.batch):
        part = order[first : first + source.batch]
        width = max(sum(map(len, pairs[i])) for i in part)
        ids = torch.zeros(len(part), width, dtype=torch.long)
        own = torch.zeros(len(part), width - 1)
        for row, i in enumerate(part):
            before, after = pairs[i]
            ids[row, : len(before) + len(after)] = torch.tensor(before + after)
            own[row, len(before) - 1 : len(before) + len(after) - 1] = 1
        with torch.inference_mode(), steered(part) if steered else nullcontext():
            said = source.model(input_ids=ids).logits[:, :-1].log_softmax(-1)
        each = said.gather(2, ids[:, 1:, None])[..., 0]
        found[part] = (each * own).sum(1).double().numpy()
    return found


class _Bench:
    """The ways of answering, each measured on the same people and prompts."""

    def __init__(
        self,
        model: RewardModel,
        source: LocalModel,
        judge: Judge,
        prompts: list[str],
        people: list[Asked],
        shelf: _Shelf,
        compared: Compared,
        seed: int,
    ) -> None:
        self.model, self.source, self.judge, self.prompts = model, source, judge, prompts
        self.people, self.shelf, self.compared, self.seed = people, shelf, compared, seed
        self.mean = np.stack([person.belief.mean for person in people])  # (U, J)
        texts = shelf.texts
        self.liked = np.stack([judge.utility(p.kind, *_flat(texts)).reshape(texts.broken.shape) for p in people])
        self.usual = self.liked.mean(axis=1)  # (U, P) what an answer is worth without choosing
        n, p = texts.broken.shape
        rng = np.random.default_rng([seed, 1])
        self.order = rng.permuted(np.broadcast_to(np.arange(n)[:, None], (len(people), n, p)), axis=1)
        self.other = self._of(self.liked, self.order[:, -1])  # the usual answer that each is held against

    def _of(self, values: Floats, places: Ints) -> Floats:
        """(U, P) of (U, N, P) values."""
        return np.asarray(np.take_along_axis(values, places[:, None], axis=1)[:, 0], np.float64)

    def _wins(self, name: str, got: Floats) -> dict[str, float]:
        won = (got > self.other) + 0.5 * (got == self.other)
        gain = (got - self.usual).mean(axis=1)
        return self.compared.figures(f"win_rate.{name}", won.mean(axis=1)) | self.compared.figures(f"gain.{name}", gain)

    def chosen(self, ns: Sequence[int]) -> dict[str, float]:
        """Best of n by the person's own reward, by the population's, and by the judge itself; and under control."""
        phi, texts = self.shelf.phi, self.shelf.texts
        personal = np.einsum("npj,uj->unp", phi, self.mean)
        popular = np.broadcast_to((phi @ self.model.prior.mean)[None], personal.shape)
        lengths = np.log1p([[len(text) for text in row] for row in texts.text])
        level = personal - length_coefficient(self.model) * lengths
        personally = np.array([p.personal for p in self.people])[:, None, None]
        ways = {
            "personal": personal,
            "population": popular,
            "judge": self.liked,
            "length": level,
            # Of whom the guard holds back, the usual answer: the first.
            "guarded": np.where(personally, personal, 0.0),
        }
        figures = self._state("generic", self.order[:, 0])
        for n in ns:
            first = self.order[:, :n]
            likes = np.take_along_axis(self.liked, first, axis=1)
            ways["careful"] = personal.copy()
            np.put_along_axis(ways["careful"], first, self._careful(first), axis=1)
            got: dict[str, Floats] = {}
            for way, score in ways.items():
                best = np.take_along_axis(score, first, axis=1).argmax(axis=1)
                got[way] = self._of(likes, best)
                name = f"best_of_{n}.{way}"
                figures |= self._wins(name, got[way])
                figures[f"kl.{name}"] = float(np.log(n) - (n - 1) / n)
                figures |= self._state(name, self._of(first, best).astype(np.int64))
            most = (got["judge"] - self.usual).mean(axis=1)
            figures |= self.compared.figures(
                f"gain.best_of_{n}.personal_over_population", (got["personal"] - got["population"]).mean(axis=1)
            )
            for way in ("personal", "population") if n > 1 else ():
                share = (got[way] - self.usual).mean(axis=1) / most
                figures |= self.compared.figures(f"gain_share.best_of_{n}.{way}", share, most)
        return figures

    def side_by_side(self, count: int = 10, n: int = 8) -> str:
        """Ten prompts with the usual answer and three people's best of eight, in Markdown."""
        phi, texts = self.shelf.phi[:n], self.shelf.texts.text
        people = [self.people[i] for i in range(0, len(self.people), max(len(self.people) // 3, 1))][:3]
        parts = [
            "# Ten prompts, the usual answer and three people's",
            f"Each the best of the same {n} answers of the small policy.",
        ]
        for p, prompt in enumerate(self.prompts[:count]):
            parts += [f"## {prompt}", f"**The first of them.** {_quoted(texts[0][p])}"]
            for person in people:
                best = int((phi[:, p] @ person.belief.mean).argmax())
                parts.append(f"**Who likes {' and '.join(person.kind)} answers.** {_quoted(texts[best][p])}")
        return "\n\n".join(parts) + "\n"

    def _careful(self, first: Ints) -> Floats:
        """(U, n, P) rewards of the first candidates less one standard deviation, as `best_of_n` has them."""
        phi = self.shelf.phi[first, np.arange(len(self.prompts))]  # (U, n, P, J)
        phi = phi - phi.mean(axis=1, keepdims=True)
        beliefs = [
            person.belief.of(each.reshape(-1, phi.shape[3])) for person, each in zip(self.people, phi, strict=True)
        ]
        mean, variance = (np.stack(values).reshape(phi.shape[:3]) for values in zip(*beliefs, strict=True))
        return np.asarray(mean - np.sqrt(np.maximum(variance, 0.0)), np.float64)

    def stopped_early(self, most: int = 16, round_: int = 4, tolerance: float = 0.1) -> dict[str, float]:
        """Best of at most so many, in rounds until more are expected to gain little: how many, and what is kept."""
        personal = np.einsum("npj,uj->unp", self.shelf.phi, self.mean)
        drawn, got, whole = [], [], []
        for u in range(len(self.people)):
            for p in range(len(self.prompts)):
                order = self.order[u, :most, p]
                rewards = personal[u, order, p]
                n = round_
                while n < most and gain_of_more(rewards[:n].tolist(), most - n) >= tolerance:
                    n += round_
                drawn.append(n)
                got.append(self.liked[u, order[rewards[:n].argmax()], p])
                whole.append(self.liked[u, order[rewards.argmax()], p])
        return {
            "early_stop.drawn": float(np.mean(drawn)),
            "early_stop.share_of_gain": float(
                (np.mean(got) - self.usual.mean()) / (np.mean(whole) - self.usual.mean())
            ),
        }

    def _state(self, name: str, places: Ints) -> dict[str, float]:
        """Whether answers are whole, how long, how likely, and how many differ."""
        texts, p = self.shelf.texts, np.arange(len(self.prompts))
        length = np.array([[len(text) for text in row] for row in texts.text])
        without = np.array(["verbose" not in x.kind and "concise" not in x.kind for x in self.people])
        return {
            f"broken.{name}": float(texts.broken[places, p].mean()),
            f"characters.{name}": float(length[places, p][without].mean()),
            f"perplexity.{name}": _perplexity(texts.likelihood[places, p], texts.tokens[places, p]),
            f"distinct.{name}": float(
                np.mean([len({texts.text[i][q] for i in places[:, q]}) for q in p]) / len(places)
            ),
        }

    def guided(self, name: str, head: ValueHead, lam: Floats, tau: float) -> dict[str, float]:
        """Guided answers, one to each person and prompt, by (U, J) weights."""
        prompts = self.prompts * len(self.people)
        weights = np.repeat(lam, len(self.prompts), axis=0)
        sampling = replace(_SAMPLING, seed=self.seed + 1)
        flat = [one for [one] in guided_answers(self.source, head, prompts, weights, 1, sampling, tau)]
        moved = log_likelihood(
            self.source, prompts, flat, lambda rows: guided(self.source.model, head, weights[list(rows)], tau)
        )
        return self._written(name, flat, moved)

    def said(self, name: str, systems: Sequence[str | None]) -> dict[str, float]:
        """Answers to the prompt with words before it."""
        prompts = [with_system(prompt, words) for words in systems for prompt in self.prompts]
        flat = [one for [one] in self.source.draw(prompts, 1, replace(_SAMPLING, seed=self.seed + 2))]
        moved = log_likelihood(self.source, prompts, flat)
        return self._written(name, flat, moved)

    def _written(self, name: str, flat: list[Candidate], moved: Floats) -> dict[str, float]:
        p = len(self.prompts)
        texts = _judge(self.source, self.judge, self.prompts, [flat[k : k + p] for k in range(0, len(flat), p)])
        got = np.stack([self.judge.utility(x.kind, texts.shows[u], texts.broken[u]) for u, x in enumerate(self.people)])
        length = np.array([[len(text) for text in row] for row in texts.text])
        without = np.array(["verbose" not in x.kind and "concise" not in x.kind for x in self.people])
        return self._wins(name, got) | {
            f"kl.{name}": float(np.mean(moved - texts.likelihood.ravel())),
            f"broken.{name}": float(texts.broken.mean()),
            f"characters.{name}": float(length[without].mean()),
            f"perplexity.{name}": _perplexity(texts.likelihood, texts.tokens),
            f"tokens.{name}": float(texts.tokens.mean()),
        }


def _flat(texts: _Texts) -> tuple[Floats, Bools]:
    return texts.shows.reshape(-1, texts.shows.shape[2]), texts.broken.ravel()


def _quoted(text: str) -> str:
    """A text in Markdown: none of it is taken for markup."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", " ".join(text.split()))


def _perplexity(likelihood: Floats, tokens: Ints) -> float:
    return float(np.exp(-likelihood.sum() / (tokens.sum() + tokens.size)))


def _judged(judge: Judge, shelf: _Shelf) -> dict[str, float]:
    """How good the judge's probes are: on answers to prompts that it never saw, and on those that the policy wrote."""
    unseen = [a for a in load_answers() if a.spoilt is None and a.prompt_id[1] in "45"]
    figures = {f"judge.auc.{name}": value for name, value in judge.validate(unseen).items()}
    by_text = {a.text: a for a in unseen}
    exact = [by_text[text] for row in shelf.texts.text for text in row if text in by_text]
    total = sum(map(len, shelf.texts.text))
    figures["judge.exact"] = len(exact) / total
    if exact:
        figures |= {f"judge.auc.samples.{name}": value for name, value in judge.validate(exact).items()}
    return figures


def _overheads(
    model: RewardModel,
    source: LocalModel,
    head: ValueHead,
    prompts: list[str],
    people: list[Asked],
    shelf: _Shelf,
    tau: float,
) -> dict[str, float]:
    """Seconds of answers plain and guided, by batch; and of scoring candidates, against a plain pass of the encoder."""
    weights = np.stack([people[i % len(people)].belief.mean for i in range(64)])
    figures: dict[str, float] = {}
    for batch in (1, 16, 64):
        asked, lam = [prompts[i % len(prompts)] for i in range(batch)], weights[:batch]

        def plainly(now: Sampling, asked: list[str] = asked) -> list[list[Candidate]]:
            return source.draw(asked, 1, now)

        def steered(now: Sampling, asked: list[str] = asked, lam: Floats = lam) -> list[list[Candidate]]:
            return guided_answers(source, head, asked, lam, 1, now, tau)

        # By turns, so that whatever else the machine does meets both; the first warms up.
        seconds = np.array([[_per_token(write, turn) for write in (plainly, steered)] for turn in range(6)])[1:]
        plain, moved = np.median(seconds, axis=0)
        figures[f"seconds_per_token.plain.{batch}"] = float(plain)
        figures[f"seconds_per_token.guided.{batch}"] = float(moved)
        figures[f"guided.overhead.{batch}"] = float(np.median(seconds[:, 1] / seconds[:, 0])) - 1
    return figures | _scoring(model, prompts, shelf)


def _per_token(write: Callable[[Sampling], list[list[Candidate]]], turn: int) -> float:
    """Seconds for each step of a batch, the prompt's pass included."""
    begun = time.perf_counter()
    drawn = write(Sampling(max_tokens=64, seed=turn))
    return (time.perf_counter() - begun) / max(one.tokens + 1 for [one] in drawn)


def _scoring(model: RewardModel, prompts: list[str], shelf: _Shelf) -> dict[str, float]:
    """Scoring eight candidates, as best-of-n does, against the encoder's plain pass over the same texts."""
    from dataclasses import replace

    from palate.alignment.best_of_n import best_of_n
    from palate.encoders import SentenceEncoder

    encoder = model.loaded_encoder()
    assert isinstance(encoder, SentenceEncoder)
    bare = replace(encoder, cache=None)
    unknown = replace(model, encoder=bare)
    plain, scored = [], []
    for p, prompt in enumerate(prompts):
        texts = list(dict.fromkeys(f"{row[p]} " for row in shelf.texts.text))[:8]
        candidates = [Candidate(text, 1) for text in texts]
        begun = time.perf_counter()
        bare.encode([prompt] * len(texts), texts)
        middle = time.perf_counter()
        best_of_n(unknown, None, prompt, candidates)
        plain.append(middle - begun)
        scored.append(time.perf_counter() - middle)
    return {
        "seconds.encoder": float(np.median(plain)),
        "seconds.best_of_8": float(np.median(scored)),
        "best_of_8.overhead": float(np.median(np.array(scored[1:]) / np.array(plain[1:]))) - 1,
    }


def _table(figures: dict[str, float]) -> str:
    names = sorted(
        {
            name.removeprefix("win_rate.").removesuffix(".low").removesuffix(".high")
            for name in figures
            if name.startswith("win_rate.")
        },
        key=_in_order,
    )
    rows = [
        [
            name.replace("_", " ").replace(".", ", "),
            interval(figures, f"gain.{name}"),
            interval(figures, f"win_rate.{name}"),
            f"{figures[f'kl.{name}']:.2f}",
            f"{figures[f'broken.{name}']:.3f}",
            f"{figures[f'perplexity.{name}']:.2f}",
            f"{figures[f'characters.{name}']:.0f}",
        ]
        for name in names
    ]
    return markdown(["way", "gain", "win rate", "KL", "broken", "perplexity", "characters"], rows)


def _in_order(name: str) -> tuple[str, float]:
    words = name.split(".")
    return words[0].rstrip("0123456789"), float(words[0].rpartition("_")[2]) if words[0][-1].isdigit() else 0.0


def _pareto(figures: dict[str, float]) -> Points:
    ways = {
        "best of n": [f"best_of_{n}.personal" for n in _NS],
        "by the population": [f"best_of_{n}.population" for n in _NS],
        "by the judge": [f"best_of_{n}.judge" for n in _NS],
        "guided": [f"guided_{tau:g}" for tau in _TAUS],
        "instruct": ["instruct"],
        "examples": ["examples"],
    }
    series = {
        way: [(figures[f"kl.{name}"], figures[f"gain.{name}"]) for name in names if f"kl.{name}" in figures]
        for way, names in ways.items()
    }
    return Points(
        "What is gained, and how far the answers move",
        "KL from the policy, nats an answer",
        "Judged utility over the usual answer",
        series,
    )
