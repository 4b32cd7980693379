"""A taste in plain words, or by example, for a language model's system prompt.

Nothing is said of what is not known: a style is named once answers narrowed it down, and as strongly as it is sure.
"""

from collections.abc import Sequence
from typing import cast

from palate.feedback import Comparison, Message, Record, Text, as_text
from palate.rewards import RewardModel
from palate.rewards.beliefs import Belief
from palate.rewards.explain import style_tastes, telling
from palate.rewards.influence import influences

_HOW = "Answer in that manner where it does not harm the substance, and do not speak of it."


def instruction(model: RewardModel, user: Belief) -> str | None:
    """A person's taste as a system prompt; None where nothing is known well enough to say.

    Args:
        model: the reward model.
        user: the person's posterior.

    Example:
        >>> instruction(model, ana)  # doctest: +SKIP
        'Of answers, whoever you write to clearly prefers concise ones (not verbose) and probably likes informal …'
    """
    sure, likely = telling(style_tastes(model, user))
    return in_system(*([(taste.word, taste.other) for taste in tastes] for tastes in (sure, likely)))


def in_system(sure: Sequence[tuple[str, str]], likely: Sequence[tuple[str, str]] = ()) -> str | None:
    """The system prompt that `instruction` writes, from words for what is liked and for its opposite."""
    if not sure and not likely:
        return None
    certain, leaning = (_listed([f"{word} ones (not {other})" for word, other in words]) for words in (sure, likely))
    first = f"clearly prefers {certain}" if sure else ""
    second = f"probably likes {leaning}" if likely else ""
    return f"Of answers, whoever you write to {' and '.join(part for part in (first, second) if part)}. {_HOW}"


def examples(
    model: RewardModel,
    evidence: Sequence[Record],
    most: int = 4,
    characters: int = 6_000,
    *,
    half_life: float | None = None,
) -> str | None:
    """A person's most telling choices as a system prompt; None where they made none.

    Args:
        model: the reward model.
        evidence: what the person said, in order of time.
        most: choices shown.
        characters: of all texts together; longer ones are cut in the middle.
        half_life: in days, instead of the model's own.
    """
    told = (one.record for one in influences(model, evidence, half_life=half_life))
    # A tie prefers neither.
    chosen = [one for one in told if isinstance(one, Comparison) and one.strength > 0.5][:most]
    if not chosen:
        return None
    room = characters // (3 * len(chosen))
    shown = [
        f"Question: {_cut(c.prompt, room)}\nPreferred: {_cut(c.chosen, room)}\nTo: {_cut(c.rejected, room)}"
        for c in chosen
    ]
    return "Whoever you write to preferred these answers to others:\n\n" + "\n\n".join(shown) + f"\n\n{_HOW}"


def with_system(prompt: Text, words: str | None) -> Text:
    """A prompt with a system message before it, or added to the one that is there.

    Example:
        >>> with_system("Hi", "Be brief.")
        [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'Hi'}]
    """
    if not words:
        return prompt
    turns: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if turns and turns[0]["role"] == "system":
        return [cast(Message, {"role": "system", "content": f"{turns[0]['content']}\n\n{words}"}), *turns[1:]]
    return [{"role": "system", "content": words}, *turns]


def _listed(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _cut(text: Text, room: int) -> str:
    line = " ".join(as_text(text).split())
    return line if len(line) <= room else f"{line[: room // 2]} … {line[-room // 2 :]}"
