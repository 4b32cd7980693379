"""The command that talks: answers one person's way, and learns from what they type next."""

import asyncio
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from palate.cli.common import (
    DatabaseOption,
    JsonOption,
    ModelArgument,
    SeedOption,
    plain,
    print_json,
    short,
    stderr,
    stdout,
)
from palate.cli.people import UserOption
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
from palate.errors import PalateError

if TYPE_CHECKING:
    from rich.console import Console

    from palate.alignment.candidates import Sampling
    from palate.alignment.strategies import Answer, Personalizer
    from palate.feedback import Message
    from palate.satisfaction.scorer import SatisfactionScorer
    from palate.store import Store, User
    from palate.store.replies import Rescorer

_HELP = "/why shows why the last answer was given, /taste what is known of you, /new begins anew; Ctrl-D ends."


def chat(
    model: ModelArgument,
    user: UserOption,
    upstream: UpstreamOption = None,
    upstream_model: UpstreamModelOption = None,
    policy: PolicyOption = None,
    adapter: AdapterOption = None,
    value_head: ValueHeadOption = None,
    strategy: StrategyOption = "best-of-n",
    candidates: CandidatesOption = 8,
    max_tokens: TokensOption = 512,
    temperature: TemperatureOption = 1.0,
    database: DatabaseOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Talk. What you type after an answer teaches what you like; /why, /taste and /new are commands.

    With --json each line of input is a message, and one object at the end tells all turns.
    """
    from palate.alignment.candidates import Sampling
    from palate.alignment.strategies import Effort, Personalizer, parts_of
    from palate.alignment.value_head import ValueHead
    from palate.rewards import RewardModel
    from palate.satisfaction.scorer import SatisfactionScorer
    from palate.store import Store
    from palate.store.interview import register
    from palate.store.replies import Rescorer

    parts_of(strategy)
    sampling = Sampling(temperature=temperature, max_tokens=max_tokens, seed=seed)
    effort = Effort(candidates=candidates)
    reward_model = RewardModel.load(model)
    head = ValueHead.load(value_head, reward_model) if value_head else None

    async def talk() -> _Talk:
        async with source_of(upstream, upstream_model, policy, adapter) as source:
            answerer = Personalizer(reward_model, source, head, effort=effort)
            with Store.open(database) as store:
                register(store, reward_model, model)
                scorer = SatisfactionScorer.load()
                rescorer = Rescorer(store, reward_model, scorer)
                one = _Talk(console, store, store.ensure_user(user), answerer, scorer, rescorer, strategy, sampling)
                await one.run()
                return one

    console = stderr() if as_json else stdout()
    talked = asyncio.run(talk())
    if as_json:
        print_json({"user": user, "source": talked.answerer.source.name, "turns": talked.turns})


@dataclass
class _Talk:
    """One conversation."""

    console: "Console"
    store: "Store"
    person: "User"
    answerer: "Personalizer"
    scorer: "SatisfactionScorer"
    rescorer: "Rescorer"
    strategy: str
    sampling: "Sampling"
    said: list["Message"] = field(default_factory=list)
    last: "Answer | None" = None
    turns: list[dict[str, object]] = field(default_factory=list)

    async def run(self) -> None:
        """Turn after turn, until the input ends."""
        if sys.stdin.isatty():
            self.console.print(f"Answers come from {self.answerer.source.name}. {_HELP}", markup=False)
        while (line := self._line()) is not None:
            if not line.strip():
                continue
            match line.strip():
                case "/why":
                    self._why()
                case "/taste":
                    self._taste()
                case "/new":
                    self.said, self.last = [], None
                case command if command.startswith("/") and " " not in command:
                    self.console.print(f"There is no {command}. {_HELP}", markup=False)
                case _:
                    await self._turn(line)

    def _line(self) -> str | None:
        with suppress(EOFError):
            if sys.stdin.isatty():
                self.console.print("\n[bold cyan]you[/] ", end="")
            return input()
        return None

    async def _turn(self, line: str) -> None:
        turn: dict[str, object] = {"message": line}
        said: list[Message] = [*self.said, {"role": "user", "content": line}]
        try:
            if self.last is not None:
                turn["read"] = self._learn(line)
            answer = await self._answer(said[0]["content"] if len(said) == 1 else said)
        except PalateError as error:
            if not sys.stdin.isatty():
                raise
            # What was said before stays, and what was typed can be typed again.
            self.last = None
            self.console.print(f"{plain(str(error))} (/new begins anew)", style="red", markup=False)
            return
        self.last = answer
        self.said = [*said, {"role": "assistant", "content": answer.text}]
        self.turns.append(
            turn
            | {"answer": answer.text, "strategy": answer.strategy, "drawn": answer.drawn, "guarded": answer.guarded}
        )

    def _learn(self, line: str) -> dict[str, object]:
        """Keep a reply, read it, and say how it was read."""
        from palate.feedback import Reply

        *before, answer = self.said
        prompt = before[0]["content"] if len(before) == 1 else list(before)
        reply = Reply(
            user_id=self.person.external_id,
            prompt=prompt,
            completion=answer["content"],
            reply=line,
            created_at=datetime.now(UTC),
        )
        name = self.store.append(self.person, reply)
        self.rescorer.take_in(self.person)
        self.rescorer.score(self.person)
        read = next(one.record for one in self.store.evidence(self.person) if one.id == name)
        assert isinstance(read, Reply)
        told: dict[str, object] = {
            "satisfaction": read.satisfaction,
            "confidence": read.confidence,
            "target": read.target,
        }
        if read.target in ("taste", "both") and sys.stdin.isatty():
            self.console.print(f"[dim](read as {read.satisfaction:.0%} pleased, on {read.target})[/]")
        return told

    async def _answer(self, prompt: "str | list[Message]") -> "Answer":
        from palate.alignment.strategies import Person
        from palate.store.interview import posterior_of, weigh

        model = self.answerer.model
        person = Person(
            posterior_of(self.store, model, self.person),
            model.fingerprint,
            weigh(self.store, model, self.person).personal,
            tuple(one.record for one in self.store.evidence(self.person)),
            self.person.half_life_days,
        )
        sampling = self.sampling.moved(1_000 * len(self.said))
        pieces = 0

        def hear(piece: str) -> None:
            nonlocal pieces
            # Only before an answer that comes: a failure is one line.
            self.console.print("" if pieces else "\n", plain(piece), sep="", end="", markup=False, soft_wrap=True)
            pieces += 1

        answer = await self.answerer.answer(prompt, person, self.strategy, sampling, heard=hear)
        self.console.print()
        return answer

    def _why(self) -> None:
        """The candidates of the last answer, best first, with what each base reward added to the one taken."""
        from rich.table import Table
        from rich.text import Text as Styled

        if self.last is None:
            self.console.print("There is no answer yet.")
            return
        answer = self.last
        if answer.guarded:
            self.console.print(
                "What you said so far is foretold better by people in general: the usual answer was given."
            )
        if answer.system:
            self.console.print(f"Asked with: {answer.system}", markup=False)
        table = Table("", "your reward", "±", "everybody's", "answer", box=None, pad_edge=False)
        order = sorted(range(len(answer.taken.candidates)), key=lambda i: -answer.taken.candidates[i].score)
        for i in order:
            one = answer.taken.candidates[i]
            mark = "•" if i == answer.taken.index else ""
            shown = Styled(short(one.text, 70))
            table.add_row(mark, f"{one.reward:+.2f}", f"{one.deviation:.2f}", f"{one.population:+.2f}", shown)
        self.console.print(table)

    def _taste(self) -> None:
        from palate.cli.people import show
        from palate.rewards import explain
        from palate.store.interview import posterior_of

        show(self.console, explain(self.answerer.model, posterior_of(self.store, self.answerer.model, self.person)))
