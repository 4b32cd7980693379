"""Commands on one person: ask them, rank for them, explain them."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from palate.cli.common import (
    DatabaseOption,
    EngineOption,
    JsonOption,
    ModelArgument,
    RayAddressOption,
    SeedOption,
    StrategyOption,
    UnusedSeedOption,
    note,
    plain,
    print_json,
    progress,
    short,
    stderr,
    stdout,
)
from palate.cli.texts import read_texts
from palate.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from palate.feedback import Record
    from palate.rewards import Explanation, Guard, RewardModel
    from palate.rewards.influence import Influence
    from palate.store import Choice, Store, StoredQuery, User

UserOption = Annotated[str, typer.Option(metavar="U", help="Who; any name of up to 256 characters.")]

_MOVED = 5  # pieces of evidence that an explanation shows

KEYS = {"a": "a", "b": "b", "t": "tie", "s": "skip"}


def onboard(
    model: ModelArgument,
    user: UserOption,
    questions: Annotated[int, typer.Option(metavar="N", min=1, help="How many answers to ask for.")] = 10,
    stop_below: Annotated[
        float,
        typer.Option(metavar="NATS", min=0, help="Stop once a question is expected to tell less than this, in nats."),
    ] = 0.01,
    query_strategy: StrategyOption = "v-optimal",
    database: DatabaseOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Ask a person which answers they prefer; goes on where it stopped.

    Answer a or b, t where both are alike, s to skip, q to stop for now. Each answer is on disk before the next
    question is shown.
    """
    from palate.rewards import RewardModel, explain
    from palate.store import Store
    from palate.store.interview import posterior_of, register

    reward_model = RewardModel.load(model)
    with Store.open(database) as store:
        register(store, reward_model, model)
        person = store.ensure_user(user)
        console = stderr() if as_json else stdout()
        answered, done = ask_on(
            store,
            reward_model,
            person,
            lambda query, at: ask(console, query, at, questions),
            answers=questions,
            stop_below=stop_below,
            query_strategy=query_strategy,
            seed=seed,
        )
        told = explain(reward_model, posterior_of(store, reward_model, person))
    if as_json:
        print_json({"user": user, "answered": answered, "done": done, **as_object(told)})
        return
    console.print(f"\n[bold]{told.words}[/]")
    if not done:
        console.print(f"{answered} of {questions} answered; the same command goes on from here.")
    elif answered >= questions:
        console.print(f"{answered} of {questions} answered; for more: --questions {answered + 10}")
    else:
        console.print(f"After {answered} answers no question is left that would tell {stop_below:g} nats or more.")


def ask_on(
    store: "Store",
    model: "RewardModel",
    user: "User",
    answer: Callable[["StoredQuery", int], "Choice | None"],
    **options: Any,
) -> tuple[int, bool]:
    """Put question after question until there is no more to ask, or `answer` gives None.

    Args:
        store: where each answer is kept before the next question is chosen.
        model: whose known answers are asked about.
        user: who is asked.
        answer: called with the question and its number.
        options: of `palate.store.interview.next_question`.

    Returns:
        How many answers there are, earlier ones included, and whether all was asked.
    """
    from palate.store.interview import next_question

    while True:
        query, answered = next_question(store, model, user, **options)
        if query is None:
            return answered, True
        choice = answer(query, answered + 1)
        if choice is None:
            return answered, False
        store.answer(query.id, choice)


def ask(console: "Console", query: "StoredQuery", number: int, questions: int) -> "Choice | None":
    """Show a question and read the answer; None to stop."""
    from rich.panel import Panel
    from rich.text import Text as Styled

    console.print(f"\n[bold]{number} of {questions}[/]  ", Styled(plain(query.prompt), style="bold cyan"), sep="")
    for side, text in (("A", query.response_a), ("B", query.response_b)):
        panel = Panel(Styled(plain(text)), title=side, title_align="left", width=min(console.width, 100))
        console.print(panel, soft_wrap=False)  # without wrapping it would be cut, not long
    while True:
        try:
            console.print("Which do you prefer? \\[a/b, t alike, s skip, q stop; then Enter] ", end="")
            key = input().strip().lower()
        except (EOFError, KeyboardInterrupt) as stop:
            console.print()  # what comes next begins on a line of its own
            if isinstance(stop, KeyboardInterrupt):
                raise
            return None
        if key in ("q", "quit"):
            return None
        if key in KEYS or key in KEYS.values():
            return KEYS.get(key, key)  # type: ignore[return-value]
        console.print("Type a, b, t, s or q, then Enter.")


def person_of(store: "Store", path: Path, user: str, database: str | None) -> "User":
    """Somebody who is in the database.

    Raises:
        InputError: they are not.
    """
    person = store.user(user)
    if person is None:
        asking = ["palate", "onboard", str(path), "--user", user, *(["--database", "..."] if database else [])]
        raise InputError(f"User {user!r} is not in the database; ask them first: {shlex.join(asking)}")
    return person


def rank(
    model: ModelArgument,
    prompt: Annotated[str, typer.Option(metavar="P", help="What the candidates answer.")],
    candidates: Annotated[
        Path, typer.Option(metavar="FILE", help='One completion a line: a JSON string, or {"completion": ...}.')
    ],
    user: Annotated[str | None, typer.Option(metavar="U", help="Whose taste; the population's if left out.")] = None,
    database: DatabaseOption = None,
    seed: UnusedSeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Order candidate answers by a person's taste, best first."""
    from palate.rewards import RewardModel
    from palate.store import Store
    from palate.store.interview import posterior_of, weigh

    texts = read_texts(candidates, "completion", "candidate")
    reward_model = RewardModel.load(model)
    belief, guard = reward_model.new_user(), None
    if user is not None:
        with Store.open(database, create=False) as store:
            person = person_of(store, model, user, database)
            guard = weigh(store, reward_model, person)
            if guard.personal:
                belief = posterior_of(store, reward_model, person, keep=False)  # reading never writes
            else:
                note(_doubt(user, guard))
    ranked = reward_model.rank(prompt, texts, belief)
    if as_json:
        rows = [
            {
                "index": r.index,
                "completion": r.completion,
                "reward": r.reward,
                "deviation": r.deviation,
                "better_than_next": r.better_than_next,
            }
            for r in ranked
        ]
        print_json({"user": user, "prompt": prompt, "guard": _guard_object(guard), "ranking": rows})
        return
    from rich.table import Table
    from rich.text import Text as Styled

    table = Table(show_lines=True)
    for name in ("", "reward", "beats the next", "completion"):
        table.add_column(name)
    for place, r in enumerate(ranked, 1):
        sure = f"{r.better_than_next:.0%}" if r.better_than_next is not None else ""
        table.add_row(str(place), f"{r.reward:+.2f}", sure, Styled(plain(r.completion)))
    stdout().print(table, soft_wrap=False)  # without wrapping it would be cut, not long


def _doubt(user: str, guard: "Guard") -> str:
    return (
        f"What {user!r} answered is foretold better by people in general than by their own earlier answers "
        f"({guard.evidence:+.1f} nats over {guard.answers} answers): the population's taste is used"
    )


def _guard_object(guard: "Guard | None") -> dict[str, object] | None:
    """For programs; None where nobody was named."""
    if guard is None:
        return None
    return {"personal": guard.personal, "log_odds": guard.prior + guard.evidence, "answers": guard.answers}


def explain(
    model: ModelArgument,
    user: UserOption,
    picture: Annotated[Path | None, typer.Option(metavar="PATH", help="Draw the taste as PATH.svg and .png.")] = None,
    database: DatabaseOption = None,
    seed: UnusedSeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """A person's taste in words and numbers, with the answers that show it and what they said that moved it most."""
    from palate.rewards import RewardModel
    from palate.rewards import explain as tell
    from palate.rewards.influence import influences
    from palate.store import Store
    from palate.store.interview import posterior_of, turned, weigh

    reward_model = RewardModel.load(model)
    with Store.open(database, create=False) as store:
        person = person_of(store, model, user, database)
        told = tell(reward_model, posterior_of(store, reward_model, person, keep=False))  # reading never writes
        guard, turn = weigh(store, reward_model, person), turned(store, reward_model, person)
        said = [one.record for one in store.evidence(person)]
    moved = influences(reward_model, said, half_life=person.half_life_days)[:_MOVED]
    files = []
    if picture is not None:
        from palate.rewards.picture import draw_taste

        files = draw_taste(told.styles, picture, title=f"What {user} likes")
    if as_json:
        more = {
            "guard": _guard_object(guard),
            "turned": turn.isoformat() if turn else None,
            "influences": [_influence_object(one) for one in moved],
        }
        print_json({"user": user, **as_object(told), **more, "pictures": [str(file) for file in files]})
        return
    console = stdout()
    show(console, told)
    if moved:
        console.print("\nWhat moved it most")
    for one in moved:
        towards = f" towards {one.style}" if one.style else ""
        console.print(f"{one.nats:.2f} nats{towards}: {_said(one.record)}", markup=False)
    if turn:
        console.print(f"The taste turned: what was said before {turn:%d %B %Y, %H:%M} UTC counts no more.")
    if not guard.personal:
        console.print(_doubt(user, guard) + " to rank.", markup=False)
    if files:
        note(f"Drawn as {' and '.join(str(file) for file in files)}")


def _said(record: "Record") -> str:
    """A piece of evidence on one line."""
    from palate.feedback import Comparison, Rating

    when = f"{record.created_at:%d %B %Y}, " if record.created_at else ""
    if isinstance(record, Comparison):
        return f"{when}chose “{short(record.chosen, 60)}” over “{short(record.rejected, 60)}”"
    if isinstance(record, Rating):
        return f"{when}gave {record.score:.2f} to “{short(record.completion, 60)}”"
    read = f"{when}typed “{short(record.reply, 60)}” (read as {record.satisfaction:.2f})"
    return f"{read} to “{short(record.completion, 60)}”"


def _influence_object(one: "Influence") -> dict[str, object]:
    """For programs."""
    record = one.record.model_dump(mode="json", exclude_none=True, exclude={"user_id"})
    kind = type(one.record).__name__.lower()
    return {"kind": kind, "evidence": record, "nats": one.nats, "style": one.style, "shift": one.shift}


def show(console: "Console", told: "Explanation", axes: int = 3) -> None:
    """Print an explanation for a person to read."""
    from rich.table import Table
    from rich.text import Text as Styled

    console.print(f"[bold]{told.words}[/]")
    table = Table("style", "liking", "±", "sure", box=None, pad_edge=False)
    for s in told.styles:
        row = f"{s.word} rather than {s.low if s.word == s.high else s.high}"
        table.add_row(row, f"{abs(s.liking):.2f}", f"{s.deviation:.2f}", f"{s.certainty:.0%}")
    console.print(table)
    if told.example:
        console.print(Styled(f"\nFor “{plain(told.example.prompt)}”", style="cyan"))
        console.print(f"this taste gets ({told.example.preferred:.0%} sure that it is liked better)")
        console.print(Styled("  " + plain(told.example.personal), style="green"))
        console.print("where people in general get")
        console.print(Styled("  " + plain(told.example.generic), style="dim"))
    if axes:
        console.print("\nThe base rewards in which this taste departs most from people in general")
    for axis in told.axes[:axes]:
        name = ", ".join(axis.words) or "no named style"
        console.print(f"{name}: weight {axis.weight:+.2f} ± {axis.deviation:.2f}", markup=False)
        for sign, ends in (("+", axis.high), ("−", axis.low)):
            console.print(Styled(f"  {sign} " + short(ends[0][1])))


def as_object(told: "Explanation") -> dict[str, object]:
    """An explanation for programs."""
    from dataclasses import asdict

    return {
        "words": told.words,
        "styles": [{**asdict(s), "word": s.word, "certainty": s.certainty} for s in told.styles],
        "axes": [asdict(axis) for axis in told.axes],
        "example": asdict(told.example) if told.example else None,
    }


def refit(
    model: ModelArgument,
    database: DatabaseOption = None,
    engine: EngineOption = "local",
    ray_address: RayAddressOption = None,
    seed: UnusedSeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Compute everybody's posterior under a new model, which the old one need not wait for.

    Killed and run again, it goes on where it stopped.
    """
    from palate.rewards import RewardModel
    from palate.rewards.refit import posteriors, ray_posteriors
    from palate.store import Store
    from palate.store.refit import refit as compute

    reward_model = RewardModel.load(model)
    if engine == "ray":
        from palate.encoders.distributed import connect

        connect(ray_address)
    with Store.open(database, create=False) as store, progress() as told:
        done = compute(
            store,
            reward_model,
            model,
            engine=ray_posteriors if engine == "ray" else posteriors,
            progress=lambda people: told("People", people, people),
        )
    if as_json:
        print_json({"fingerprint": reward_model.fingerprint, **done})
        return
    stdout().print(f"{done['computed']:,} people computed, {done['current']:,} were up to date")
