"""One answer, or several, for a request: what is known of whom, what is drawn and chosen, and what is remembered."""

import asyncio
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from starlette.concurrency import run_in_threadpool

from palate.alignment.best_of_n import Scored
from palate.alignment.candidates import Sampling, Source
from palate.alignment.endpoint import Endpoint
from palate.alignment.strategies import Answer, Effort, Person, parts_of
from palate.errors import InputError
from palate.feedback import Text
from palate.server import metrics
from palate.server.learning import going_on, read_reply
from palate.server.schemas import ChatRequest, PalateOptions, Personal, Reading, Usage
from palate.server.service import Service
from palate.store import User
from palate.store.completions import Completion

_CHANCE = random.SystemRandom()
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True)
class Turn:
    """What is known before an answer is drawn.

    Args:
        user: for whom; None for nobody in particular.
        person: what is known of them.
        source: that carries their own adapter, if there is one.
        reading: how their last message was read.
        keep: whether the answer is remembered, so that feedback can refer to it.
    """

    user: User | None = None
    person: Person | None = None
    source: Source | None = None
    reading: Reading | None = None
    keep: bool = False

    @property
    def known(self) -> bool:
        """Whether the person has said anything that counts."""
        return self.person is not None and bool(self.person.evidence)


@dataclass(frozen=True)
class Answered:
    """Answers to one request.

    Args:
        completion: as it is remembered.
        cut: whether each one that is shown ran into the most tokens allowed.
        chosen_tokens: of those that are shown.
    """

    completion: Completion
    cut: list[bool]
    chosen_tokens: int

    @property
    def texts(self) -> list[str]:
        """The answers that are shown."""
        return self.completion.texts

    @property
    def usage(self) -> Usage:
        """The spend of all candidates."""
        read, written = self.completion.prompt_tokens, self.completion.completion_tokens
        return Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)

    def personal(self, turn: Turn) -> Personal:
        """How they came about."""
        one = self.completion
        return Personal(
            strategy=one.strategy,
            personal=one.strategy != "off" and turn.known and not one.guarded,
            guarded=one.guarded,
            generic=one.generic,
            candidates=len(one.candidates),
            chosen_tokens=self.chosen_tokens,
            reading=turn.reading,
        )


async def begin(
    service: Service, tenant: str, who: str | None, messages: list[dict[str, str]], options: PalateOptions
) -> Turn:
    """Look somebody up, and learn from what they typed last."""
    if who is None:
        return Turn()
    turn = await run_in_threadpool(_begin, service, tenant, who, messages, options.learn)
    if turn.user is None:
        return turn
    return replace(turn, source=await service.source_for(turn.user))


def _begin(service: Service, tenant: str, who: str, messages: list[dict[str, str]], learn: bool) -> Turn:
    store = service.store
    learn = learn and service.tenant(tenant).learn
    found = store.user_and_count(who, tenant)
    if found is None:
        # Nobody is made known who asks that nothing be learned.
        if not learn:
            return Turn()
        found = store.ensure_user(who, tenant), 0
    user, count = found
    reading = None
    if learn and not user.paused and (typed := going_on(service, user, messages)) is not None:
        reading = read_reply(service, user, typed)
        count = store.evidence_count(user)
    return Turn(user, service.person(user, count), None, reading, keep=learn)


async def answer(
    service: Service,
    turn: Turn,
    completion_id: str,
    prompt: Text,
    request: ChatRequest,
    heard: Callable[[str], object] | None = None,
) -> Answered:
    """Draw, choose and remember.

    Args:
        service: what all requests share.
        turn: what `begin` found.
        completion_id: under which it is remembered.
        prompt: what is asked.
        request: how.
        heard: called with pieces of the first answer, as they come where they do.
    """
    options = request.palate or PalateOptions()
    strategy = options.strategy or service.settings.strategy
    parts = parts_of(strategy)
    share = service.settings.generic if parts and turn.known else 0.0
    generic = _CHANCE.random() < share
    if generic:
        strategy, parts = "off", ()
    n = request.n or 1
    candidates = max(options.candidates or service.settings.candidates, n)
    personalizer = service.loaded.personalizer(Effort(candidates=candidates, at_once=candidates), turn.source)
    sampling = sampling_of(service, turn, request)
    # The usual answer is nobody's in particular.
    person = None if generic else turn.person
    if "best-of-n" in parts or n == 1:
        made = [await personalizer.answer(prompt, person, strategy, sampling, heard=heard)]
    else:
        each = [sampling.moved(1 + i) for i in range(n)]
        made = list(await asyncio.gather(*(personalizer.answer(prompt, person, strategy, one) for one in each)))
        if heard:
            heard(made[0].text)
    answered = _collected(made, n, completion_id, prompt, turn, service.loaded.model.fingerprint)
    propensity = share if generic else 1.0 - share
    name = personalizer.source.name
    kept = replace(answered.completion, generic=generic, propensity=propensity, model=name)
    answered = replace(answered, completion=kept)
    arm = "generic" if generic else "guarded" if kept.guarded else "personal" if turn.known else "unknown"
    metrics.ANSWERS.labels(kept.strategy, arm).inc()
    metrics.TOKENS.labels("prompt").inc(kept.prompt_tokens)
    metrics.TOKENS.labels("completion").inc(kept.completion_tokens)
    if turn.keep and turn.user is not None:
        await run_in_threadpool(service.completions.add, turn.user, kept)
    return answered


def _collected(made: list[Answer], n: int, completion_id: str, prompt: Text, turn: Turn, fingerprint: str) -> Answered:
    """All candidates of all draws, and which of them are shown."""
    every: list[Scored] = [one for answer in made for one in answer.taken.candidates]
    if len(made) == 1:
        taken = made[0].taken
        others = sorted((i for i in range(len(every)) if i != taken.index), key=lambda i: -every[i].score)
        shown = [taken.index, *others][:n]
    else:
        firsts = [sum(len(one.taken.candidates) for one in made[:place]) for place in range(len(made))]
        shown = [first + one.taken.index for first, one in zip(firsts, made, strict=True)]
    # Where there are fewer answers than asked for, as of known ones, the best comes again.
    shown += shown[:1] * (n - len(shown))
    completion = Completion(
        id=completion_id,
        user_id=turn.user.id if turn.user else 0,
        fingerprint=fingerprint,
        prompt=prompt,
        candidates=[_card(one) for one in every],
        shown=shown,
        strategy=made[0].strategy,
        system=made[0].system,
        guarded=made[0].guarded,
        prompt_tokens=sum(one.prompt_tokens for one in made),
        completion_tokens=sum(one.tokens for one in made),
        seconds=max(one.seconds for one in made),
    )
    return Answered(completion, [every[place].cut for place in shown], sum(every[place].tokens for place in shown))


def _card(one: Scored) -> dict[str, Any]:
    return {
        "text": one.text,
        "reward": round(one.reward, 4),
        "deviation": round(one.deviation, 4),
        "population": round(one.population, 4),
        "score": round(one.score, 4),
        "contributions": [round(float(value), 4) for value in one.contributions],
    }


_OURS = {"messages", "model", "stream", "stream_options", "n", "stop", "seed", "max_tokens", "max_completion_tokens",
         "temperature", "top_p", "user", "safety_identifier", "metadata", "palate"}  # fmt: skip


def sampling_of(service: Service, turn: Turn, request: ChatRequest) -> Sampling:
    """How answers are drawn; what only an upstream knows is passed on to it."""
    more: dict[str, Any] = {}
    if isinstance(service.loaded.source, Endpoint):
        more = dict(request.model_extra or {}) | upstream_names(service, turn, request)
        if request.max_completion_tokens is not None:
            # Newer models refuse the older name.
            more |= {"max_tokens": None, "max_completion_tokens": request.max_completion_tokens}
        elif request.max_tokens is None:
            more["max_tokens"] = None  # the upstream's own limit
        if request.temperature is None:
            more["temperature"] = None
    stop = request.stop
    return Sampling(
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        max_tokens=request.max_completion_tokens or request.max_tokens or service.settings.max_tokens,
        stop=(stop,) if isinstance(stop, str) else tuple(stop or ()),
        seed=request.seed,
        more=more,
    )


def upstream_names(service: Service, turn: Turn, request: ChatRequest) -> dict[str, Any]:
    """Which model the upstream is asked, and for whom: a pseudonym, never the person's own id."""
    named = {"model": request.model} if request.model not in (None, "palate") else {}
    return named | ({"user": service.pseudonym(turn.user)} if turn.user is not None else {})


def plain(messages: Sequence[Mapping[str, Any]], extra: Mapping[str, Any]) -> list[dict[str, str]] | None:
    """A conversation of texts alone; None where it holds, or asks for, what only an upstream understands."""
    if any(extra.get(name) for name in ("tools", "functions", "logprobs", "audio", "modalities", "prediction")):
        return None
    out: list[dict[str, str]] = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            if not all(part.get("type") == "text" and isinstance(part.get("text"), str) for part in content):
                return None
            content = "\n".join(part["text"] for part in content)
        if not isinstance(content, str) or message["role"] in ("tool", "function") or message.get("tool_calls"):
            return None
        if found := _UNSTORABLE.search(content):
            raise InputError(f"Message {len(out)} has a character that no text can hold: {found[0]!r}; remove it")
        role = "system" if message["role"] == "developer" else message["role"]
        out.append({"role": role, "content": content})
    return out
