"""The command that shows it all: learn from the bundled people, ask ten questions, rank unseen answers."""

import os
import shlex
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from palate.cli.common import JsonOption, SeedOption, note, print_json, progress, short, stderr, stdout
from palate.cli.people import as_object, ask, ask_on, show
from palate.errors import InputError, MissingExtraError, ModelError

if TYPE_CHECKING:
    from rich.console import Console

    from palate.bench.people import Kind, Person
    from palate.data import Answer
    from palate.rewards import Belief, RewardModel
    from palate.rewards.posterior import Ints
    from palate.store import Choice, StoredQuery

QUESTIONS = 10
YOU = "you"
# Prompts that the bundled people never chose on: what is ranked in the end was never seen.
UNSEEN = ("p4", "p5")


def demo(
    simulate: Annotated[
        str | None,
        typer.Option(
            metavar="POLES",
            help="Let a simulated person with this taste answer, such as concise,humorous (the default where "
            "there is no terminal). They never slip.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the model, the answers and the picture go.")
    ] = Path("palate-demo"),
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Learn from 112 bundled people, ask you ten questions, show your taste, and rank unseen answers your way."""
    from palate.bench.people import Person
    from palate.rewards.folder import check_target

    if simulate is None and not sys.stdin.isatty():
        simulate = "concise,humorous"
    person = Person(_kind(simulate)) if simulate is not None else None
    check_target(output / "model")
    console = stderr() if as_json else stdout()
    started = time.perf_counter()
    console.print("Learning from the bundled people; the first time their texts are read, which takes a minute.")
    model = _learn(person, seed, output / "model")
    f = model.figures
    console.print(
        f"{model.n_rewards} base rewards from {f['comparisons']:,.0f} choices of {f['users']:.0f} people, "
        f"after {time.perf_counter() - started:.0f} s."
    )
    belief = _questions(console, model, person, output, seed)
    result = _results(console, model, belief, person, output)
    if person is None:
        words = ["onboard", str(output / "model"), "--user", YOU, "--database", _database(output), "--questions", "20"]
        console.print(f"\nTen more: {shlex.join([_palate(), *words])}", markup=False)
    if as_json:
        print_json({**result, "seconds": round(time.perf_counter() - started, 3)})


def _kind(text: str) -> "Kind":
    from palate.bench.people import parse_kind

    try:
        return parse_kind(text)
    except InputError as error:
        raise typer.BadParameter(str(error), param_hint="'--simulate'") from error


def _learn(person: "Person | None", seed: int, folder: Path) -> "RewardModel":
    """Fit on the bundled people, but for those who share the simulated person's taste: that would be too easy."""
    from palate.data import load_people
    from palate.encoders import load_encoder
    from palate.feedback import Feedback
    from palate.rewards import RewardModel, fit

    rows = [row for row in load_people() if person is None or row.kind != person.name]
    if person is None and folder.exists():
        # Whoever comes back need not wait; a model that was spoilt in between is made anew.
        with suppress(ModelError):
            model = RewardModel.load(folder)
            if (model.figures.get("comparisons"), model.figures.get("seed")) == (len(rows), seed):
                return model
    with progress() as told:
        model = fit(Feedback(comparisons=rows), load_encoder(), seed=seed, progress=told)
    model.save(folder)
    return model


def _database(output: Path) -> str:
    from sqlalchemy import URL

    return URL.create("sqlite", database=str(output / "palate.db")).render_as_string()


def _palate() -> str:
    """This command as it can be typed, with or without an activated environment."""
    return "palate" if shutil.which("palate") else os.path.relpath(sys.argv[0])


def _questions(console: "Console", model: "RewardModel", person: "Person | None", output: Path, seed: int) -> "Belief":
    """Ask the person at the terminal, who goes on where they stopped, or a simulated one, who is new every time."""
    from palate.store import Store
    from palate.store.interview import posterior_of, register

    with Store.open(_database(output)) as store:
        register(store, model, output / "model")
        user = store.ensure_user(YOU if person is None else person.name)
        if person is None:
            console.print(
                f"\nNow {QUESTIONS} questions, chosen for you. There is no wrong answer. Some texts are cut short or "
                "off the topic on purpose: most people dislike that, and it is learned like the rest."
            )
        else:
            store.forget(user)
            user = store.ensure_user(person.name)
            console.print(f"\nA simulated person who likes {' and '.join(person.kind)} answers is asked:")

        def answer(query: "StoredQuery", number: int) -> "Choice | None":
            return _answer(console, person, query, number) if person else ask(console, query, number, QUESTIONS)

        ask_on(store, model, user, answer, answers=QUESTIONS, seed=seed)
        return posterior_of(store, model, user)


def _results(
    console: "Console", model: "RewardModel", belief: "Belief", person: "Person | None", output: Path
) -> dict[str, object]:
    """Show the taste in words and as a picture, and what it changes."""
    from palate.rewards import explain
    from palate.rewards.picture import draw_taste

    told = explain(model, belief)
    console.print()
    show(console, told, axes=0)
    title = "What you like" if person is None else f"Learned of someone who likes {' and '.join(person.kind)} answers"
    files: list[Path] = []
    try:
        files = draw_taste(told.styles, output / "taste", title=title)
        console.print(f"\nThe picture: {files[0]} and {files[1].name}", markup=False)
    except MissingExtraError as error:
        note(str(error))
    result = {"simulated": person.name if person else None, **as_object(told), "pictures": [str(p) for p in files]}
    return result | _unseen(console, model, belief, person)


def _answer(console: "Console", person: "Person", query: "StoredQuery", number: int) -> "Choice":
    """What the simulated person would choose."""
    from palate.data import load_answers

    answers = {(a.prompt, a.text): a for a in load_answers()}
    shown = [answers[str(query.prompt), str(text)] for text in (query.response_a, query.response_b)]
    a, b = person.reward(shown)
    choice: Choice = "tie" if a == b else "a" if a > b else "b"
    console.print(f"  {number:2}. {short(query.prompt, 60)}  →  {choice}", markup=False)
    return choice


def _unseen(console: "Console", model: "RewardModel", belief: "Belief", person: "Person | None") -> dict[str, object]:
    """Rank answers to prompts that nobody was asked about, before and after what was learned."""
    import numpy as np

    from palate.data import load_answers
    from palate.rewards.explain import best_rows

    answers = [a for a in load_answers() if a.prompt_id.startswith(UNSEEN)]
    with progress() as told:
        phi = model.phi(
            [a.prompt for a in answers],
            [a.text for a in answers],
            progress=lambda done, total: told("Reading unseen answers", done, total),
        )
    number = np.unique([a.prompt_id for a in answers], return_inverse=True)[1]
    before, after = (best_rows(phi @ mean, number) for mean in (model.prior.mean, belief.mean))
    result: dict[str, object] = {"unseen_prompts": len(before)}
    if person is not None:
        liked = person.reward(answers)
        best = liked[best_rows(liked, number)]
        hits = [int(np.sum(liked[picks] == best)) for picks in (before, after)]
        result |= {"picked_before": hits[0], "picked_after": hits[1]}
        console.print(
            f"\nOf {len(before)} unseen prompts with 14 answers each, Palate picks an answer that this person likes "
            f"best\n  before any answer:    {hits[0]:2}\n  after {QUESTIONS} answers:     {hits[1]:2}"
        )
    _show_changed(console, answers, before, after)
    return result


def _show_changed(console: "Console", answers: list["Answer"], before: "Ints", after: "Ints", at_most: int = 2) -> None:
    """Show what this person is given where people in general are given something else."""
    from rich.text import Text

    for generic, own in [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]][:at_most]:
        console.print(Text(f"\nFor “{answers[own].prompt}”", style="cyan"))
        console.print("people in general get")
        console.print(Text("  " + short(answers[generic].text, 300), style="dim"))
        console.print("and this taste gets")
        console.print(Text("  " + short(answers[own].text, 300), style="green"))
