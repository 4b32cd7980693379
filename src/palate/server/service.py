"""What all requests share: the store, the model and the source that answers come from, and what is known of people.

The reward model can be exchanged while requests are served: whoever holds the old one finishes with it.
"""

import asyncio
import hmac
import time
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from threading import Lock

import structlog

from palate.alignment.adapters import adapter_revision, find_adapters
from palate.alignment.candidates import Known, Source
from palate.alignment.endpoint import Endpoint
from palate.alignment.local import LocalModel
from palate.alignment.strategies import Effort, Person, Personalizer
from palate.alignment.value_head import ValueHead
from palate.encoders import load_encoder
from palate.errors import ModelError, PalateError
from palate.rewards import RewardModel
from palate.satisfaction.augmentation import Augmentation
from palate.satisfaction.scorer import SatisfactionScorer
from palate.satisfaction.sensitive import Sensitive
from palate.satisfaction.wordnet import wordnet
from palate.server.recent import RecentEncoder
from palate.server.settings import Settings
from palate.store import Store, Tenant, User
from palate.store.completions import Completions
from palate.store.interview import posterior_of, register, weigh
from palate.store.jobs import Jobs
from palate.store.keys import Keys, secret
from palate.store.replies import Rescorer

log = structlog.get_logger("palate.server")

_PEOPLE = 10_000
_ADAPTED = 4  # models with an adapter merged in that are held at once


@dataclass(frozen=True)
class Loaded:
    """What answers are chosen with, exchanged as one.

    Args:
        model: the reward model.
        source: where answers come from.
        head: the source's value head.
        stamp: tells whether the model's folder has changed since.
    """

    model: RewardModel
    source: Source
    head: ValueHead | None
    stamp: str

    def personalizer(self, effort: Effort, source: Source | None = None) -> Personalizer:
        """Answers from the source, or from one that carries somebody's adapter."""
        if source is not None:
            return Personalizer(self.model, source, effort=effort)
        return Personalizer(self.model, self.source, self.head, effort=effort)


@dataclass(eq=False)
class Service:
    """What all requests share; made by `Service.start`, ended by `stop`.

    Args:
        settings: how it was started.
        store: the database.
        loaded: what answers are chosen with.
        scorer: reads replies.
        sensitive: knows what is never learned from.
    """

    settings: Settings
    store: Store
    loaded: Loaded
    scorer: SatisfactionScorer
    sensitive: Sensitive
    keys: Keys = field(init=False)
    completions: Completions = field(init=False)
    jobs: Jobs = field(init=False)
    _people: "OrderedDict[int, tuple[tuple[object, ...], Person]]" = field(default_factory=OrderedDict)
    _adapted: "OrderedDict[Path, tuple[str, LocalModel | None]]" = field(default_factory=OrderedDict)
    _tenants: dict[str, tuple[float, Tenant]] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        self.keys, self.completions, self.jobs = Keys(self.store), Completions(self.store), Jobs(self.store)
        self._pseudonyms = secret(self.store, "pseudonyms")

    @classmethod
    def start(cls, settings: Settings) -> "Service":
        """Open the database and load all that answers take.

        Raises:
            PalateError: something cannot be had.
        """
        store = Store.open(settings.database)
        try:
            model, stamp = load_model(settings.model)
            register(store, model, Path(settings.model))
            scorer = SatisfactionScorer.load()
            source: Source
            head = None
            if settings.upstream is not None:
                source = Endpoint(settings.upstream, settings.upstream_model, at_once=settings.at_once)
            elif settings.policy is not None:
                source = LocalModel.load(settings.policy)
                head = ValueHead.load(settings.value_head, model) if settings.value_head else None
            else:
                source = Known.bundled()
            loaded = Loaded(model, source, head, stamp)
            loaded.personalizer(Effort())  # a head of another model is refused now, not with the first request
            return cls(settings, store, loaded, scorer, Sensitive.load(scorer))
        except BaseException:
            store.close()
            raise

    async def stop(self) -> None:
        """Close what is open."""
        if isinstance(self.loaded.source, Endpoint):
            await self.loaded.source.aclose()
        self.store.close()

    # What answers are chosen with

    @property
    def model(self) -> RewardModel:
        """The reward model of now."""
        return self.loaded.model

    def reader(self) -> Rescorer:
        """Reads replies as they come."""
        return Rescorer(self.store, self.model, self.scorer)

    def rescorer(self) -> Rescorer:
        """Takes replies in, with children where WordNet is there; it takes seconds to load, so not in a request."""
        try:
            wordnet()
        except PalateError:
            return Rescorer(self.store, self.model, self.scorer)
        return Rescorer(self.store, self.model, self.scorer, Augmentation())

    def exchange(self) -> None:
        """Put the reward model that lies in the folder to use.

        Raises:
            ModelError: it cannot be read; the old one stays.
        """
        model, stamp = load_model(self.settings.model)
        register(self.store, model, Path(self.settings.model))
        head = self.loaded.head
        if head is not None and model.fingerprint != self.model.fingerprint:
            log.warning("value head left out", reason="it was trained for the reward model before")
            head = None
        self.loaded = replace(self.loaded, model=model, head=head, stamp=stamp)
        log.info("reward model exchanged", fingerprint=model.fingerprint)

    async def source_for(self, user: User) -> Source | None:
        """The model with a person's own adapter, once it is loaded; None where the common one answers."""
        if self.settings.adapters is None:
            return None
        found = await asyncio.to_thread(find_adapters, self.settings.adapters, user.external_id)
        if not found:
            return None
        path = found[-1][0]
        kept = self._adapted.get(path)
        if kept is None or kept[0] != adapter_revision(path):
            # Until it is there the common model answers: nobody waits for weights.
            self._adapted[path] = (adapter_revision(path), None)
            asyncio.get_running_loop().run_in_executor(None, self._load_adapter, path)
            return None
        self._adapted.move_to_end(path)
        return kept[1]

    def _load_adapter(self, path: Path) -> None:
        try:
            source = LocalModel.load(str(self.settings.policy), adapter=path)
        except ModelError as error:
            log.warning("adapter left out", adapter=str(path), reason=str(error))
            return
        with self._lock:
            self._adapted[path] = (adapter_revision(path), source)
            while len(self._adapted) > _ADAPTED:
                self._adapted.popitem(last=False)

    # People

    def tenant(self, name: str) -> Tenant:
        """The settings of a tenant, not looked up again for a second."""
        kept = self._tenants.get(name)
        if kept is None or kept[0] < time.monotonic():
            kept = self._tenants[name] = (time.monotonic() + 1.0, self.store.tenant(name))
        return kept[1]

    def person(self, user: User, count: int | None = None) -> Person:
        """What is known of somebody, computed only where they said something new.

        Args:
            user: who.
            count: their `evidence_count`, where it was just read.
        """
        model = self.model
        count = self.store.evidence_count(user) if count is None else count
        key = (model.fingerprint, count, user.half_life_days)
        kept = self._people.get(user.id)
        if kept is not None and kept[0] == key:
            return kept[1]
        belief = posterior_of(self.store, model, user)
        said = tuple(one.record for one in self.store.evidence(user))
        personal = weigh(self.store, model, user).personal
        person = Person(belief, model.fingerprint, personal, said, user.half_life_days)
        with self._lock:
            self._people[user.id] = key, person
            self._people.move_to_end(user.id)
            while len(self._people) > _PEOPLE:
                self._people.popitem(last=False)
        return person

    def drop(self, user: User) -> None:
        """Keep nothing of a person in memory."""
        with self._lock:
            self._people.pop(user.id, None)
        if isinstance(self.model.encoder, RecentEncoder):
            self.model.encoder.forget()

    def pseudonym(self, user: User) -> str:
        """What the upstream is told in place of a person's id: the same each time, and no way back."""
        return hmac.digest(self._pseudonyms, f"{user.tenant}\n{user.external_id}".encode(), "sha256").hex()[:32]


def load_model(folder: str) -> tuple[RewardModel, str]:
    """A reward model that keeps nothing of what it reads on disk, and the stamp of its folder."""
    stamp = stamp_of(folder)
    model = RewardModel.load(folder)
    # What people asked and were answered must leave no trace beside the database.
    encoder = load_encoder(str(model.encoder_folder or model.encoder_name), cache=False)
    model.encoder = RecentEncoder(model.check_encoder(encoder))
    return model, stamp or ""


def stamp_of(folder: str) -> str | None:
    """A digest of a model's folder that changes when another is saved there; None while there is none."""
    digest = sha256()
    try:
        for name in ("config.json", "model.safetensors"):
            found = (Path(folder) / name).stat()
            digest.update(f"{name} {found.st_mtime_ns} {found.st_size} {found.st_ino}".encode())
    except OSError:
        return None
    return digest.hexdigest()
