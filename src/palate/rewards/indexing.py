"""What people said as indices into a table of distinct answers, so that every answer is encoded once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from palate.encoders import Encoder, Progress
from palate.feedback import Comparison, Reply, Text, as_text
from palate.rewards.evidence import Evidence, columns
from palate.rewards.factorization import Choices
from palate.rewards.posterior import Floats
from palate.rewards.ratings import CHOICE


@dataclass(frozen=True)
class Indexed:
    """N records of U people, of n distinct answers.

    Args:
        prompts: prompt of each of n answers, in order of appearance.
        completions: the answers.
        choices: what was said; people in order of appearance, grouped by `kind` where they have one. The centre
            that graded answers of prompt p are held against is row n + p of `with_centres`.
        split: (N,) `split` of each row, "" where absent.
    """

    prompts: list[Text]
    completions: list[Text]
    choices: Choices
    split: NDArray[np.str_]

    @classmethod
    def of(cls, rows: Sequence[Evidence]) -> "Indexed":
        """Number answers, people, prompts and kinds as they appear."""
        answers: dict[tuple[str, str], int] = {}
        texts: list[tuple[Text, Text]] = []
        prompts: dict[str, int] = {}
        users: dict[str, int] = {}
        kinds: dict[tuple[str | None, str], int] = {}
        group: dict[int, int] = {}
        table = np.empty((len(rows), 4), np.int64)
        for i, row in enumerate(rows):
            prompt = as_text(row.prompt)
            for side, completion in enumerate(_completions(row)):
                key = (prompt, as_text(completion))
                if key not in answers:
                    answers[key] = len(answers)
                    texts.append((row.prompt, completion))
                table[i, side] = answers[key]
            user = users.setdefault(row.user_id, len(users))
            # Without a kind everybody is a kind of their own.
            named = None if isinstance(row, Reply) else row.kind
            kind = (named, row.user_id if named is None else "")
            group[user] = kinds.setdefault(kind, len(kinds))
            table[i, 2:] = user, prompts.setdefault(prompt, len(prompts))
        form, label, confidence = columns(rows)
        table[form != CHOICE, 1] = len(answers) + table[form != CHOICE, 3]
        choices = Choices(
            chosen=table[:, 0],
            rejected=table[:, 1],
            user=table[:, 2],
            strength=label,
            prompt=table[:, 3],
            group=np.array(list(group.values()), np.int64),
            form=form,
            confidence=confidence,
        )
        split = np.array([row.split or "" for row in rows], dtype=np.str_)
        return cls([prompt for prompt, _ in texts], [completion for _, completion in texts], choices, split)

    def with_centres(self, z: Floats) -> Floats:
        """(n, K) coordinates of the answers; where answers are graded, the centre of each prompt under them.

        A centre is the mean over the prompt's answers where there are two or more, else over all. One more column
        is −1 in centres alone: along it base rewards learn how far a grade starts from level, since who likes one
        thing may be generous, and who likes another severe.
        """
        if not self.choices.graded.any():
            return z
        numbers: dict[str, int] = {}
        prompt = np.array([numbers.setdefault(as_text(text), len(numbers)) for text in self.prompts], np.int64)
        count = np.bincount(prompt)
        sums = csr_array((np.ones(len(z)), (prompt, np.arange(len(z)))), shape=(len(count), len(z))) @ z
        centres = np.where((count > 1)[:, None], sums / count[:, None], z.mean(axis=0))
        return np.column_stack([np.concatenate([z, centres]), np.repeat([0.0, -1.0], [len(z), len(centres)])])

    def encode(self, encoder: Encoder, progress: Progress | None = None) -> NDArray[np.float32]:
        """(n, D) raw features of the answers."""
        return encoder.encode(
            [as_text(prompt) for prompt in self.prompts],
            [as_text(completion) for completion in self.completions],
            progress=progress,
        )


def _completions(row: Evidence) -> tuple[Text, ...]:
    return (row.chosen, row.rejected) if isinstance(row, Comparison) else (row.completion,)
