"""Comparisons as indices into a table of distinct answers, so that every answer is encoded once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from palate.encoders import Encoder, Progress
from palate.feedback import Comparison, Text, as_text
from palate.rewards.factorization import Choices


@dataclass(frozen=True)
class Indexed:
    """N comparisons of U people between n distinct answers.

    Args:
        prompts: prompt of each of n answers, in order of appearance.
        completions: the answers.
        choices: the comparisons; people in order of appearance, grouped by `kind` where they have one.
        split: (N,) `split` of each comparison, "" where absent.
    """

    prompts: list[Text]
    completions: list[Text]
    choices: Choices
    split: NDArray[np.str_]

    @classmethod
    def of(cls, rows: Sequence[Comparison]) -> "Indexed":
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
            for side, completion in enumerate((row.chosen, row.rejected)):
                key = (prompt, as_text(completion))
                if key not in answers:
                    answers[key] = len(answers)
                    texts.append((row.prompt, completion))
                table[i, side] = answers[key]
            user = users.setdefault(row.user_id, len(users))
            # Without a kind everybody is a kind of their own.
            kind = (row.kind, row.user_id if row.kind is None else "")
            group[user] = kinds.setdefault(kind, len(kinds))
            table[i, 2:] = user, prompts.setdefault(prompt, len(prompts))
        choices = Choices(
            chosen=table[:, 0],
            rejected=table[:, 1],
            user=table[:, 2],
            strength=np.array([row.strength for row in rows]),
            prompt=table[:, 3],
            group=np.array(list(group.values()), np.int64),
        )
        split = np.array([row.split or "" for row in rows], dtype=np.str_)
        return cls([prompt for prompt, _ in texts], [completion for _, completion in texts], choices, split)

    def encode(self, encoder: Encoder, progress: Progress | None = None) -> NDArray[np.float32]:
        """(n, D) raw features of the answers."""
        return encoder.encode(
            [as_text(prompt) for prompt in self.prompts],
            [as_text(completion) for completion in self.completions],
            progress=progress,
        )
