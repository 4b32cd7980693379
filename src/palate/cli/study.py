"""A blind study with real people: which of two answers do you prefer, the personal one or the usual one?"""

import asyncio
import json
import secrets
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from palate.cli.common import DatabaseOption, JsonOption, ModelArgument, SeedOption, print_json, progress, stdout
from palate.cli.people import UserOption, person_of
from palate.cli.sources import (
    AdapterOption,
    CandidatesOption,
    PolicyOption,
    StrategyOption,
    TemperatureOption,
    TokensOption,
    UpstreamModelOption,
    UpstreamOption,
    ValueHeadOption,
    source_of,
)
from palate.cli.texts import read_prompts
from palate.errors import FeedbackError, InputError

app = typer.Typer(name="study", help="A blind study: the personal answer against the usual one.", no_args_is_help=True)

_PAGE = Path(__file__).with_name("study.html")


@app.command()
def make(
    model: ModelArgument,
    user: UserOption,
    prompts: Annotated[
        Path, typer.Option(metavar="FILE", help='What is answered, one a line: a JSON string, or {"prompt": ...}.')
    ],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Where the page and its key go.")],
    upstream: UpstreamOption = None,
    upstream_model: UpstreamModelOption = None,
    policy: PolicyOption = None,
    adapter: AdapterOption = None,
    value_head: ValueHeadOption = None,
    strategy: StrategyOption = "best-of-n",
    candidates: CandidatesOption = 8,
    max_tokens: TokensOption = 512,
    temperature: TemperatureOption = 1.0,
    against: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="What is usual: off, the model's own answer, or population, chosen for people in general.",
        ),
    ] = "off",
    database: DatabaseOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Write a page that asks a person, for each prompt, which of two answers they prefer: their own, or the usual one.

    Sides are drawn at random, and which is which is in a file beside the page, not in it. The page is one file without
    a server: the person opens it, chooses, and sends the file that it saves. Where both answers are the same, nothing
    is asked, and it counts as a tie.
    """
    from palate.alignment.candidates import Sampling
    from palate.alignment.strategies import Effort, Person, Personalizer, parts_of
    from palate.alignment.value_head import ValueHead
    from palate.feedback import as_text
    from palate.rewards import RewardModel
    from palate.store import Store

    if not parts_of(strategy):
        raise InputError("Strategy 'off' is the usual answer itself; give one to hold against it, such as best-of-n")
    if against not in ("off", "population"):
        raise InputError(f"There is no usual answer {against!r}; give off or population")
    _make(output)
    asked = read_prompts(prompts)
    reward_model = RewardModel.load(model)
    with Store.open(database, create=False) as store:
        stored = person_of(store, model, user, database)
        said = [one.record for one in store.evidence(stored)]
        person = Person.of(reward_model, said, half_life=stored.half_life_days)
    head = ValueHead.load(value_head, reward_model) if value_head else None
    sampling = Sampling(temperature=temperature, max_tokens=max_tokens, seed=seed)
    rng = np.random.default_rng(secrets.randbits(64))  # not by the seed: who knows it would know the sides

    async def answers() -> list[tuple[str, str, bool]]:
        found = []
        async with source_of(upstream, upstream_model, policy, adapter) as source:
            answerer = Personalizer(reward_model, source, head, effort=Effort(candidates=candidates))
            with progress() as told:
                for number, prompt in enumerate(asked):
                    told("Answering", number, len(asked))
                    # The usual answer is drawn anew: it must not be one of the candidates.
                    usual = await answerer.answer(
                        prompt, None, "off" if against == "off" else strategy, sampling.moved(7_919 * (number + 1))
                    )
                    own = await answerer.answer(prompt, person, strategy, sampling.moved(104_729 * (number + 1)))
                    found.append((own.text, usual.text, own.guarded))
                told("Answering", len(asked), len(asked))
        return found

    shown: list[dict[str, str]] = []
    key: dict[str, object] = {}
    for prompt, (own, usual, guarded) in zip(asked, asyncio.run(answers()), strict=True):
        name, personal = secrets.token_hex(8), "ab"[int(rng.integers(2))]
        same = own == usual
        key[name] = {"personal": None if same else personal, "guarded": guarded}
        if not same:
            pair = (own, usual) if personal == "a" else (usual, own)
            shown.append({"id": name, "prompt": as_text(prompt), "a": pair[0], "b": pair[1]})
    study = secrets.token_hex(8)
    _write(output / f"study-{study}.html", _page(study, shown))
    _write(
        output / f"key-{study}.json",
        json.dumps({"study": study, "user": user, "strategy": strategy, "against": against, "key": key}),
    )
    if as_json:
        print_json({"study": study, "user": user, "questions": len(shown), "same": len(asked) - len(shown)})
        return
    console = stdout()
    console.print(f"{len(shown)} questions; of {len(asked) - len(shown)} prompts both answers are the same.")
    console.print(f"Give the person {output}/study-{study}.html, and keep key-{study}.json to yourself.", markup=False)
    console.print(f"When they sent what it saved: palate study score {output} answers-{study}.json", markup=False)


@app.command()
def score(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the keys are.")],
    answers: Annotated[list[Path], typer.Argument(metavar="ANSWERS", help="What people's pages saved.")],
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Count how often people preferred their own answer, ties half, with a 95 % interval.

    The interval is by bootstrap over prompts of one person, over persons where there are several.
    """
    from palate.bench.intervals import cluster_interval

    won: dict[str, list[float]] = {}
    seen: set[str] = set()
    guarded = 0
    for path in answers:
        said = _object(path)
        study, choices = str(said.get("study")), said.get("choices")
        kept = _object(folder / f"key-{study}.json")
        if not isinstance(choices, dict) or not isinstance(kept.get("key"), dict):
            raise FeedbackError(f"{path.name} is not what a study's page saved; ask the person to save it again")
        if study in seen:
            raise FeedbackError(f"{path.name} is of a study that was counted already; give each once")
        seen.add(study)
        made = {name: entry for name, entry in kept["key"].items() if entry["personal"] is not None}
        chosen = {name: choice for name, choice in choices.items() if name in made and choice in ("a", "b", "tie")}
        if made and not chosen:
            continue  # nobody has looked at it
        # Where both were the same, nothing was asked: a tie.
        own = [0.5] * (len(kept["key"]) - len(made))
        own += [0.5 if choice == "tie" else float(choice == made[name]["personal"]) for name, choice in chosen.items()]
        won.setdefault(str(kept.get("user")), []).extend(own)
        guarded += sum(bool(kept["key"][name]["guarded"]) for name in (*chosen, *(kept["key"].keys() - made.keys())))
    if not any(won.values()):
        raise FeedbackError("Nobody chose anything; give the files that the pages saved")
    values = np.array([value for own in won.values() for value in own])
    people = np.repeat(np.arange(len(won)), [len(own) for own in won.values()])
    low, high = cluster_interval(values, people if len(won) > 1 else np.arange(len(values)), seed=seed)
    result = {"win_rate": float(values.mean()), "low": low, "high": high}
    if as_json:
        print_json({**result, "choices": len(values), "people": len(won), "guarded": guarded})
        return
    stdout().print(
        f"Their own answer was preferred in {values.mean():.0%} ({low:.0%} to {high:.0%}) of {len(values)} choices of "
        f"{len(won)} people, ties half; in {guarded} the guard gave the usual answer."
    )


def _page(study: str, shown: list[dict[str, str]]) -> str:
    # "</" cannot end the script early, nor can a text be taken for markup: it is set as text.
    data = json.dumps({"study": study, "questions": shown}, ensure_ascii=False).replace("<", "\\u003c")
    return _PAGE.read_text("utf-8").replace("__DATA__", data)


def _make(folder: Path) -> None:
    """Before answers are drawn, which takes long."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"Cannot write to {str(folder)!r}: {reason}; name another folder") from error


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"Cannot write to {str(path.parent)!r}: {reason}; name another folder") from error


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise FeedbackError(f"Cannot read {path.name}: {error}; give a file that a study's page saved") from error
    if not isinstance(found, dict):
        raise FeedbackError(f"{path.name} is not what a study's page saved; ask the person to save it again")
    return found
