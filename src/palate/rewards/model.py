"""The reward model: base rewards φ, what a new person's weights may be, and how evidence moves them.

A folder holds it: `config.json`, `model.safetensors` (φ and prior), `completions.jsonl` (answers of the fitting
data, for questions and explanations; their φ is in the safetensors), and `README.md` (a model card with its own
figures). No pickle anywhere. Loading and asking need no encoder; only texts not known yet do.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np

from palate.encoders import Encoder, Progress, load_encoder
from palate.errors import EncoderError, InputError
from palate.feedback import Comparison, Record, Text, as_text
from palate.rewards.beliefs import Belief, Floats, Ints, Mixture
from palate.rewards.drift import Drift, Followed, elapsed_days, follow
from palate.rewards.evidence import Evidence, columns, heard
from palate.rewards.features import in_chunks
from palate.rewards.guard import Guard
from palate.rewards.posterior import Observations, laplace_posterior, predict
from palate.rewards.queries import pairs_within_prompts
from palate.rewards.ratings import CHOICE, READINGS, Scales
from palate.rewards.vectors import features_of, is_vector_text


@dataclass(frozen=True)
class KnownAnswers:
    """Answers of the fitting data: what new people are asked about, and what explains an axis.

    Args:
        prompts: prompt of each of n answers.
        completions: the answers.
        phi: (n, J) their base rewards.
        styles: (n, S) how much each shows of the named styles, in standard deviations.
    """

    prompts: list[Text]
    completions: list[Text]
    phi: Floats
    styles: Floats

    def prompt_numbers(self) -> Ints:
        """(n,) a number for each distinct prompt, in order of appearance."""
        seen: dict[str, int] = {}
        return np.array([seen.setdefault(as_text(prompt), len(seen)) for prompt in self.prompts], np.int64)


@dataclass(frozen=True)
class Pool:
    """Pairs of known answers to one prompt that may be asked about.

    Args:
        pairs: (M, 2) rows of the known answers.
        v: (M, J) base rewards of the first minus the second.
        prompt: (M,) number of the prompt.
    """

    pairs: Ints
    v: Floats
    prompt: Ints


@dataclass(frozen=True)
class Ranked:
    """One candidate in its place.

    Args:
        index: where it stood among the candidates.
        completion: the text.
        reward: posterior mean of λ · φ, in logits.
        deviation: posterior standard deviation of its difference to the best one; 0 for the best.
        better_than_next: probability that it is preferred to the next in rank; None for the last.
    """

    index: int
    completion: Text
    reward: float
    deviation: float
    better_than_next: float | None


@dataclass(eq=False)
class RewardModel:
    """Base rewards and a population prior; people's posteriors are computed from their evidence.

    Args:
        offset: (D,) float32 mean of the encoder's raw features.
        weights: (J, D) float32, φ = weights @ (e − offset).
        prior: belief about a new person's weights, mean (J,) and cov (J, J), or a mixture of such.
        lapse: ε, share of slips counted half.
        encoder_name: what turns texts into features.
        encoder_revision: of its weights; another revision is refused.
        known: answers of the fitting data.
        style_names: S pairs of words for the two ends of each named style, high first.
        scales: how ratings and replies speak.
        level: (J,) base rewards from which grades start, over the centre; none by default.
        drift: how tastes change; not at all by default.
        guard: log odds, before any answer, that somebody's own taste foretells them better than the population's.
        figures: what was measured while fitting, for the model card.
        finetune: how the encoder's weights were tuned, such as ``lora``; None for the encoder as it came.
        encoder_folder: where the tuned encoder was saved; None while it is only in memory.

    Example:
        >>> from palate.rewards import RewardModel
        >>> model = RewardModel.load("my-model")                              # doctest: +SKIP
        >>> ana = model.posterior([Comparison(user_id="ana", prompt="Hi", chosen="Hey!", rejected="Hello.")])
        ... # doctest: +SKIP
        >>> model.rank("How do I boil an egg?", ["Nine minutes.", "Well, dear friend…"], ana)  # doctest: +SKIP
    """

    offset: np.ndarray
    weights: np.ndarray
    prior: Belief
    lapse: float
    encoder_name: str
    encoder_revision: str
    known: KnownAnswers
    style_names: list[tuple[str, str]] = field(default_factory=list)
    scales: Scales = Scales()
    level: Floats = field(default_factory=lambda: np.zeros(0))
    drift: Drift = Drift()
    guard: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)
    finetune: str | None = None
    encoder_folder: Path | None = field(default=None, repr=False)
    encoder: Encoder | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not len(self.level):
            self.level = np.zeros(len(self.weights))
        self.prompt_number = numbers = self.known.prompt_numbers()
        self._row_of = {
            (as_text(prompt), as_text(completion)): row
            for row, (prompt, completion) in enumerate(zip(self.known.prompts, self.known.completions, strict=True))
        }
        self._rows_of_prompt: dict[str, list[int]] = {}
        for row, prompt in enumerate(self.known.prompts):
            self._rows_of_prompt.setdefault(as_text(prompt), []).append(row)
        pairs = pairs_within_prompts(numbers)
        # A text against a conversation would give away which is which, and is no comparison.
        plain = np.array([isinstance(text, str) for text in self.known.completions], bool)
        pairs = pairs[plain[pairs[:, 0]] == plain[pairs[:, 1]]]
        self.pool = Pool(pairs, self.known.phi[pairs[:, 0]] - self.known.phi[pairs[:, 1]], numbers[pairs[:, 0]])

    def save(self, path: str | Path) -> None:
        """Write the model's folder; see `palate.rewards.folder.save`."""
        from palate.rewards import folder

        folder.save(self, path)

    @staticmethod
    def load(path: str | Path) -> "RewardModel":
        """Read a model's folder; see `palate.rewards.folder.load`."""
        from palate.rewards import folder

        return folder.load(path)

    @property
    def n_rewards(self) -> int:
        """J, the number of base rewards."""
        return len(self.weights)

    def row_of(self, prompt: Text, completion: Text) -> int | None:
        """Where an answer stands among the known ones; None if it is not known."""
        return self._row_of.get((as_text(prompt), as_text(completion)))

    def rows_of(self, prompt: Text) -> list[int]:
        """Where the known answers to a prompt stand."""
        return self._rows_of_prompt.get(as_text(prompt), [])

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change with anything that a posterior depends on."""
        digest = sha256(self.encoder_revision.encode())
        prior = self.prior.parts if isinstance(self.prior, Mixture) else self.prior
        for array in (self.offset, self.weights, prior.mean, prior.cov, self.known.phi):
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(repr(list(self._row_of.items())).encode())
        for scale in (self.scales.ratings, self.scales.replies):
            if scale != READINGS:  # models fitted before replies were read keep their fingerprint
                digest.update(np.array([self.lapse, scale.slope, scale.weight, scale.generosity]).tobytes())
        if self.level.any():
            digest.update(np.ascontiguousarray(self.level).tobytes())
        if isinstance(self.prior, Mixture):
            digest.update(np.ascontiguousarray(self.prior.weights).tobytes())
        if self.drift.moves:
            digest.update(np.array([self.drift.half_life, self.drift.threshold]).tobytes())
        return digest.hexdigest()[:16]

    def phi(self, prompts: Sequence[Text], completions: Sequence[Text], *, progress: Progress | None = None) -> Floats:
        """Base rewards of completions, in prior standard deviations of the weights.

        Args:
            prompts: n prompts.
            completions: n completions, one to each.
            progress: called with (texts done, texts in all).

        Returns:
            (n, J).

        Raises:
            EncoderError: a text is not among the known answers and the encoder cannot be loaded, or is another
                revision than the model was fitted with.
        """
        keys = [(as_text(p), as_text(c)) for p, c in zip(prompts, completions, strict=True)]
        out = np.zeros((len(keys), self.n_rewards))
        known = [(i, self._row_of[key]) for i, key in enumerate(keys) if key in self._row_of]
        vectors = [i for i, (_, text) in enumerate(keys) if is_vector_text(text)]
        unknown = [i for i, key in enumerate(keys) if key not in self._row_of and not is_vector_text(key[1])]
        if known:
            places, rows = np.array(known).T
            out[places] = self.known.phi[rows]
        if vectors:
            raw = np.array([features_of(keys[i][1], self.encoder_revision) for i in vectors])
            out[vectors] = base_rewards(raw, self.offset, self.weights)
        if unknown:
            raw = self.loaded_encoder().encode(
                [keys[i][0] for i in unknown], [keys[i][1] for i in unknown], progress=progress
            )
            out[unknown] = base_rewards(raw, self.offset, self.weights)
        return out

    def loaded_encoder(self) -> Encoder:
        """The encoder, loaded when it is first needed.

        Raises:
            EncoderError: it cannot be loaded, or is another revision than the model was fitted with.
        """
        if self.encoder is None:
            encoder = load_encoder(str(self.encoder_folder) if self.encoder_folder else self.encoder_name)
            self.encoder = self.check_encoder(encoder)
        return self.encoder

    def check_encoder(self, encoder: Encoder) -> Encoder:
        """The encoder, where it is the one that the model was fitted with.

        Raises:
            EncoderError: it is another.
        """
        if encoder.revision != self.encoder_revision:
            raise EncoderError(
                f"Encoder {self.encoder_name!r} has revision {encoder.revision}, the model was fitted with "
                f"{self.encoder_revision}; install that one or fit anew"
            )
        return encoder

    def new_user(self) -> Belief:
        """What is known of somebody who said nothing yet: the population prior."""
        return self.prior

    def observations(self, evidence: Sequence[Evidence], user: Ints | None = None, n_users: int = 1) -> Observations:
        """What people said as rows for the posterior, in the order given within each person.

        The last column is of the person's generosity b_u: 0 in comparisons.

        Args:
            evidence: N records that say something, as `palate.rewards.evidence.heard` picks them.
            user: (N,) whose each is, 0 to n_users − 1; all of one person by default.
            n_users: U.
        """
        first = [r.chosen if isinstance(r, Comparison) else r.completion for r in evidence]
        prompts = [r.prompt for r in evidence]
        form, label, confidence = columns(evidence)
        v = self.phi(prompts, first)  # (N, J)
        compared = [r for r in evidence if isinstance(r, Comparison)]
        v[form == CHOICE] -= self.phi([r.prompt for r in compared], [r.rejected for r in compared])
        graded = np.flatnonzero(form != CHOICE)
        v[graded] -= self._centres([prompts[i] for i in graded])
        v, weight = self.scales.rows(v, form)
        return Observations.of(
            v,
            np.zeros(len(v), np.int64) if user is None else user,
            n_users,
            label=label,
            weight=weight * confidence,
        )

    def centred(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Floats:
        """φ(x, y) − φ̄(x), from which grades are foretold: (n, J), arguments as for `phi`."""
        return self.phi(prompts, completions) - self._centres(prompts)

    def _centres(self, prompts: Sequence[Text]) -> Floats:
        """(n, J) φ̄(x), mean over known answers to a prompt if there are two or more, else over all; less the level."""
        centre: dict[str, Floats] = {}
        for prompt in prompts:
            if (key := as_text(prompt)) not in centre:
                rows = self.rows_of(prompt)
                centre[key] = self.known.phi[rows if len(rows) > 1 else slice(None)].mean(axis=0) - self.level
        return np.array([centre[as_text(prompt)] for prompt in prompts]).reshape(-1, self.n_rewards)

    @property
    def prior_with_generosity(self) -> Belief:
        """The prior over (λ, b_u), b_u in standard deviations."""
        return self.prior.with_column(1.0)

    def posterior(self, evidence: Sequence[Record], *, half_life: float | None = None, level: bool = False) -> Belief:
        """What is known of a person's weights: a function of what they said, and of the model's fingerprint.

        Args:
            evidence: what one person said, in order of time. Replies say nothing until a scorer has read them.
            half_life: in days, instead of the model's own.
            level: whether the person's generosity b_u, in standard deviations, stays as one more, last weight.

        Returns:
            A belief with mean (J,) and cov (J, J), of the prior's kind; the prior for no evidence. Where tastes drift
            it is that of the moment of the last record.
        """
        said = heard(evidence)
        if not said:
            return self.prior_with_generosity if level else self.prior
        if self._drift(half_life).moves:
            belief = self.follow(said, half_life=half_life).belief
        else:
            belief = laplace_posterior(self.observations(said), self.prior_with_generosity, self.lapse)
        return belief[0] if level else belief[0].leading(self.n_rewards)

    def rows_of_people(self, people: Sequence[Sequence[Record]]) -> Observations:
        """What each of U people said, as rows for their posteriors in one go."""
        said = [heard(evidence) for evidence in people]
        user = np.repeat(np.arange(len(said)), [len(one) for one in said])
        return self.observations([record for one in said for record in one], user, len(said))

    def follow(self, evidence: Sequence[Record], *, half_life: float | None = None) -> Followed:
        """One person's evidence taken in record by record: when their taste turned, and how well each was foretold.

        Args:
            evidence: in order of time.
            half_life: in days, instead of the model's own.

        Returns:
            Of one person; the belief is over (λ, b_u).
        """
        said = heard(evidence)
        elapsed = elapsed_days([record.created_at for record in said])
        prior, drift = self.prior_with_generosity, self._drift(half_life)
        return follow(self.observations(said), elapsed, prior, self.lapse, drift)

    def weigh(self, evidence: Sequence[Record], *, half_life: float | None = None) -> Guard:
        """Whether a person's answers support personalising; arguments as for `posterior`."""
        followed = self.follow(evidence, half_life=half_life)
        gain = float(np.sum(followed.prior_log_loss - followed.log_loss))
        return Guard(self.guard, gain, len(followed.log_loss))

    def _drift(self, half_life: float | None) -> Drift:
        return self.drift if half_life is None else Drift.forgetting(half_life)

    def reward(self, prompt: Text, completions: Sequence[Text], user: Belief | None = None) -> Floats:
        """Posterior mean reward of each completion, in logits; the population's for `user` None.

        Returns:
            (n,); only differences between completions of one prompt mean anything.
        """
        belief = self.prior if user is None else user
        return self.phi([prompt] * len(completions), completions) @ belief.mean

    def rank(self, prompt: Text, completions: Sequence[Text], user: Belief | None = None) -> list[Ranked]:
        """Completions from the most to the least liked; equal ones keep their order.

        Raises:
            InputError: there is no completion.
        """
        if not completions:
            raise InputError("There are 0 candidates, at least 1 is needed; give completions to rank")
        belief = self.prior if user is None else user
        phi = self.phi([prompt] * len(completions), completions)
        reward = phi @ belief.mean
        order = np.argsort(-reward, kind="stable")
        _, variance = belief.of(phi - phi[order[0]])
        ahead = predict(belief, phi[order[:-1]] - phi[order[1:]])
        return [
            Ranked(
                index=int(i),
                completion=completions[i],
                reward=float(reward[i]),
                deviation=float(np.sqrt(max(variance[i], 0.0))),
                better_than_next=float(ahead[place]) if place < len(ahead) else None,
            )
            for place, i in enumerate(order)
        ]


def base_rewards(raw: np.ndarray, offset: np.ndarray, weights: np.ndarray) -> Floats:
    """φ = W (e − offset) in double precision: (n, J)."""
    return in_chunks(lambda rows: (rows.astype(np.float64) - offset) @ weights.T.astype(np.float64), raw, len(weights))
