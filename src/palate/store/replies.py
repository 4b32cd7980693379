"""Replies in the store: read, augmented, scored as training targets, and learned from by the shared head.

For each person two steps, each a transaction of its own. What they typed and was never taken in becomes examples, a
reply and its children, and the shared head learns from it, mixed with what the replay memory holds. Then every example
is scored by today's scorer and follower, beside its older scores. What is up to date is passed over, so the job can be
killed and run again, and two at once do no harm.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from palate.feedback import Record, Reply
from palate.rewards import RewardModel
from palate.satisfaction.augmentation import Augmentation
from palate.satisfaction.follower import HeadSettings, RewardFollower, SharedHead
from palate.satisfaction.replay import Experience, slot
from palate.satisfaction.rescoring import Target, biased, training_targets
from palate.satisfaction.scorer import Floats, Readings, SatisfactionScorer
from palate.store import rows
from palate.store import tables as t
from palate.store.database import READ, WRITE
from palate.store.records import StoredEvidence, StoredScore, User
from palate.store.repository import Store

_BATCH = 200  # people at a time
PER_USER, OVERALL = 32, 4_096
"""Records that the replay memory keeps of each person, and of all together beside those."""
KEPT = 50
"""Scores that are kept of an example, the latest."""
_COMMON = "*"


class StoredReplay:
    """The replay memory in the database, within a transaction; see `palate.satisfaction.replay.ReplayMemory`.

    Args:
        db: a connection that may write.
        fingerprint: the reward model in whose base rewards records are.
        users: names of users to their numbers.
        seed: of what is kept.
    """

    def __init__(self, db: Connection, fingerprint: str, users: dict[str, int], seed: int = 0) -> None:
        self._db, self._fingerprint, self._users, self._seed = db, fingerprint, users, seed

    def add(self, records: Sequence[Experience]) -> None:
        """Offer each to its person's reservoir, and to the common one."""
        for record in records:
            user_id = self._users[record.user]
            self._offer(record, user_id, str(user_id), PER_USER, user_id)
            self._offer(record, user_id, _COMMON, OVERALL, None)

    def sample(self, count: int, rng: np.random.Generator) -> list[Experience]:
        """Half of it a record of each of some people, half from the common reservoir."""
        mine = self._of(t.reservoir)
        owners = sorted(
            self._db.scalars(sa.select(t.reservoir.c.owner).where(mine, t.reservoir.c.owner != _COMMON)), key=int
        )
        found: dict[tuple[int, str], Experience] = {}
        for who in rng.permutation(len(owners))[: count // 2]:
            found |= self._some(owners[who], 1, rng)
        found |= self._some(_COMMON, count - len(found), rng)
        return list(found.values())

    def forget(self, user: str) -> int:
        """Drop all of a person's."""
        number = self._users[user]
        gone = self._db.execute(t.replay.delete().where(self._of(t.replay), t.replay.c.user_id == number)).rowcount
        self._db.execute(t.reservoir.delete().where(self._of(t.reservoir), t.reservoir.c.user_id == number))
        return gone

    def __len__(self) -> int:
        """How many are kept."""
        return self._db.scalar(sa.select(sa.func.count()).select_from(t.replay).where(self._of(t.replay))) or 0

    def _of(self, table: sa.Table) -> sa.ColumnElement[bool]:
        return table.c.fingerprint == self._fingerprint

    def _offer(self, record: Experience, user_id: int, owner: str, size: int, of: int | None) -> None:
        mine = self._of(t.reservoir) & (t.reservoir.c.owner == owner)
        seen = self._db.scalar(sa.select(t.reservoir.c.seen).where(mine))
        if seen is None:
            seen = 0
            rows.insert_if_absent(self._db, t.reservoir, fingerprint=self._fingerprint, owner=owner, seen=0, user_id=of)
        # By what was seen before, not by a running generator: the same stream is kept alike in any number of sittings.
        place = slot(seen, size, np.random.default_rng([self._seed, seen, of or 0]))
        self._db.execute(t.reservoir.update().where(mine).values(seen=seen + 1))
        if place is None:
            return
        here = self._of(t.replay) & (t.replay.c.owner == owner) & (t.replay.c.slot == place)
        self._db.execute(t.replay.delete().where(here))
        self._db.execute(
            t.replay.insert().values(
                fingerprint=self._fingerprint,
                owner=owner,
                slot=place,
                user_id=user_id,
                key=record.key,
                phi=t.pack(record.phi),
                own=record.own,
                target=record.target,
                weight=record.weight,
            )
        )

    def _some(self, owner: str, count: int, rng: np.random.Generator) -> dict[tuple[int, str], Experience]:
        """Some of an owner's records, by person and key."""
        mine = self._of(t.replay) & (t.replay.c.owner == owner)
        slots = self._db.scalars(sa.select(t.replay.c.slot).where(mine).order_by(t.replay.c.slot)).all()
        drawn = [slots[i] for i in rng.permutation(len(slots))[:count]]
        names = {number: name for name, number in self._users.items()}
        found = self._db.execute(sa.select(t.replay).where(mine, t.replay.c.slot.in_(drawn)).order_by(t.replay.c.slot))
        return {
            (row.user_id, row.key): Experience(
                names.get(row.user_id, str(row.user_id)),
                row.key,
                t.unpack(row.phi, (-1,)),
                row.own,
                row.target,
                row.weight,
            )
            for row in found
        }


@dataclass(frozen=True)
class Rescorer:
    """Today's scorer and model, and how replies are augmented.

    Args:
        store: where the model is registered.
        model: the reward model.
        scorer: reads replies.
        augmentation: how children are made of new replies; None: none are.
        head: how the shared head learns.
    """

    store: Store
    model: RewardModel
    scorer: SatisfactionScorer
    augmentation: Augmentation | None = None
    head: HeadSettings = HeadSettings()

    def run(self, progress: Callable[[int], None] | None = None) -> dict[str, int]:
        """Take in everybody's new replies, and score all that is not up to date.

        Returns:
            How many replies were `new`, how many examples were `scored`, and of how many people all was `current`.
        """
        done = {"new": 0, "scored": 0, "current": 0}
        seen = last = 0
        while users := self.store.everybody(last, _BATCH):
            last = users[-1].id
            for user in users:
                done["new"] += self.take_in(user)
        last = 0
        while users := self.store.everybody(last, _BATCH):
            last = users[-1].id
            for user in users:
                scored = self.score(user)
                done["scored"] += scored
                done["current"] += not scored
                seen += 1
                if progress:
                    progress(seen)
        return done

    def hear(self, user: User, reply: Reply, evidence_id: str, *, provisional: bool = False) -> None:
        """Keep a reply with what is read in it, so that it counts at once; `take_in` and `score` do the rest later.

        Args:
            user: who typed it.
            reply: without a reading.
            evidence_id: to keep it under.
            provisional: whether it is to count only once `Store.confirm` is called.
        """
        self.store.append(user, reply, evidence_id=evidence_id, provisional=provisional)
        self.read(user, {evidence_id: reply})

    def read(self, user: User, replies: Mapping[str, Reply]) -> None:
        """Keep what is read in replies that are evidence already, by its ids; those that were read stay as they are."""
        if not replies:
            return
        reading = self.scorer.score([reply.reply for reply in replies.values()])
        with self.store.database.transaction(WRITE) as db:
            rows.lock(db, user.id)
            for place, evidence_id in enumerate(replies):
                satisfaction = float(reading.satisfaction[place])
                rows.insert_if_absent(
                    db,
                    t.score,
                    user_id=user.id,
                    evidence_id=evidence_id,
                    number=0,
                    version=f"heard {self.scorer.revision}",
                    seq=1,
                    scorer=self.scorer.revision,
                    satisfaction=satisfaction,
                    confidence=float(reading.confidence[place]),
                    target=reading.target[place],
                    # Nothing was foretold yet: the reading stands for itself.
                    followed=satisfaction,
                    share=0.0,
                    training_target=satisfaction,
                    scored_at=rows.now(),
                )
            counted = t.user.c.readings + len(replies)
            db.execute(t.user.update().where(t.user.c.id == user.id).values(readings=counted))

    def take_in(self, user: User) -> int:
        """Make examples of a person's new replies, and let the shared head learn from them; how many there were."""
        evidence = self.store.evidence(user)
        with self.store.database.transaction(READ) as db:
            known = self._learned(db, user)
            head = self._head(db)
        new = [said for said in evidence if isinstance(said.record, Reply) and said.id not in known]
        if not new:
            return 0
        families = {said.id: self._family(said.record) for said in new if isinstance(said.record, Reply)}
        read = _read(evidence, {name: readings for name, (_, readings) in families.items()})
        targets = training_targets(RewardFollower(self.model, head), read, half_life=user.half_life_days)
        phi = self.model.centred(
            [said.record.prompt for said in new],
            [said.record.completion for said in new if isinstance(said.record, Reply)],
        )
        place = {said.id: i for i, said in enumerate(new)}
        # All that takes long was done before: others wait while this one writes.
        with self.store.database.transaction(WRITE) as db:
            rows.lock(db, user.id)
            head = self._head(db, lock=True)
            taken = self._learned(db, user) | self._withdrawn(db, user)
            records: list[Experience] = []
            count = 0
            for said, target in zip(evidence, targets, strict=True):
                if said.id not in families or target is None or said.id in taken:
                    continue
                count += 1
                texts, readings = families[said.id]
                static = _static(said, readings)
                values = biased(static, np.full(len(texts), target.followed), target.share)
                for number, ((text, how), value) in enumerate(zip(texts, values.tolist(), strict=True)):
                    # Another model may have learned from it before; then its children are what they were.
                    rows.insert_if_absent(
                        db,
                        t.example,
                        user_id=user.id,
                        evidence_id=said.id,
                        number=number,
                        how=how,
                        text=text,
                        weight=1 / len(texts),
                    )
                    key = f"{said.id}#{number}"
                    records.append(
                        Experience(user.external_id, key, phi[place[said.id]], target.own, value, 1 / len(texts))
                    )
                learned = {"fingerprint": self.model.fingerprint, "user_id": user.id, "evidence_id": said.id}
                db.execute(t.learned.insert().values(learned))
            if records:
                names = {user.external_id: user.id}
                head.learn(records, StoredReplay(db, self.model.fingerprint, names, self.head.seed))
                self._keep(db, head)
        return count

    def score(self, user: User) -> int:
        """Score a person's examples by today's scorer, follower and evidence; how many were not up to date.

        What changes meanwhile is left for the next time.
        """
        changes = self.store.evidence_changes(user)
        evidence = self.store.evidence(user)
        with self.store.database.transaction(READ) as db:
            head = self._head(db)
            version = self._version(head, user, changes)
            wanted = sa.select(t.example).where(t.example.c.user_id == user.id)
            examples = db.execute(wanted.order_by(t.example.c.evidence_id, t.example.c.number)).all()
            history = sa.select(t.score).where(t.score.c.user_id == user.id).order_by(t.score.c.seq)
            last = {(row.evidence_id, row.number): row.version for row in db.execute(history)}
        here = {said.id: said for said in evidence if isinstance(said.record, Reply)}
        todo = [
            row for row in examples if row.evidence_id in here and last.get((row.evidence_id, row.number)) != version
        ]
        if not todo:
            return 0
        parents = [row for row in examples if row.number == 0 and row.evidence_id in here]
        readings = self.scorer.score([row.text for row in [*todo, *parents]])
        own = {row.evidence_id: readings[np.array([len(todo) + i])] for i, row in enumerate(parents)}
        targets = training_targets(
            RewardFollower(self.model, head), _read(evidence, own), half_life=user.half_life_days
        )
        target_of = {said.id: target for said, target in zip(evidence, targets, strict=True)}
        with self.store.database.transaction(WRITE) as db:
            owner = rows.lock(db, user.id)
            now = self._version(self._head(db), rows.to_user(owner), rows.changes(db, user.id))
            if now != version:
                return 0
            for place, row in enumerate(todo):
                target = target_of[row.evidence_id]
                if target is not None:
                    self._save(db, here[row.evidence_id], row, version, readings[np.array([place])], target)
        return len(todo)

    def _save(
        self,
        db: Connection,
        said: StoredEvidence,
        row: sa.Row[tuple[object, ...]],
        version: str,
        reading: Readings,
        target: Target,
    ) -> None:
        mine = (
            (t.score.c.user_id == row.user_id) & (t.score.c.evidence_id == said.id) & (t.score.c.number == row.number)
        )
        last = db.execute(sa.select(t.score).where(mine).order_by(t.score.c.seq.desc()).limit(1)).one_or_none()
        seq = 1 if last is None else last.seq + 1
        read = {
            "satisfaction": float(reading.satisfaction[0]),
            "confidence": float(reading.confidence[0]),
            "target": reading.target[0],
        }
        # The same version comes again where a scorer is taken back; and not every score is worth keeping for ever.
        db.execute(t.score.delete().where(mine, (t.score.c.version == version) | (t.score.c.seq <= seq - KEPT)))
        db.execute(
            t.score.insert().values(
                user_id=row.user_id,
                evidence_id=said.id,
                number=row.number,
                version=version,
                seq=seq,
                scorer=self.scorer.revision,
                **read,
                followed=target.followed,
                share=target.share,
                training_target=float(biased(_static(said, reading), np.array([target.followed]), target.share)[0]),
                scored_at=rows.now(),
            )
        )
        if row.number == 0 and (last is None or any(getattr(last, name) != value for name, value in read.items())):
            db.execute(t.user.update().where(t.user.c.id == row.user_id).values(readings=t.user.c.readings + 1))

    def _family(self, reply: Reply) -> tuple[list[tuple[str, str]], Readings]:
        """A reply and the children that are kept, with what is read in each."""
        texts = [(reply.reply, "typed")]
        if self.augmentation is not None:
            texts += [(child.text, child.how) for child in self.augmentation.children(reply.reply)]
        readings = self.scorer.score([text for text, _ in texts])
        keeps = np.ones(len(texts), np.bool_)
        if self.augmentation is not None:
            keeps[1:] = self.augmentation.keeps(float(readings.satisfaction[0]), readings.satisfaction[1:])
        kept = np.flatnonzero(keeps)
        return [texts[i] for i in kept], readings[kept]

    def _learned(self, db: Connection, user: User) -> set[str]:
        mine = (t.learned.c.fingerprint == self.model.fingerprint) & (t.learned.c.user_id == user.id)
        return set(db.scalars(sa.select(t.learned.c.evidence_id).where(mine)))

    def _withdrawn(self, db: Connection, user: User) -> set[str]:
        mine = (t.evidence.c.user_id == user.id) & t.evidence.c.withdrawn
        return set(db.scalars(sa.select(t.evidence.c.id).where(mine)))

    def follower(self) -> RewardFollower:
        """The reward follower, with what the shared head has learned by now."""
        with self.store.database.transaction(READ) as db:
            return RewardFollower(self.model, self._head(db))

    def _head(self, db: Connection, *, lock: bool = False) -> SharedHead:
        head = SharedHead(self.model.n_rewards, self.head)
        state = sa.select(t.shared_head.c.state).where(t.shared_head.c.fingerprint == self.model.fingerprint)
        if lock:
            # First a row that can be locked: of two writers of a new head the second goes on from the first.
            self._keep(db, head, over=False)
            state = state.with_for_update()
        if kept := db.scalar(state):
            head.restore(kept)
        return head

    def _keep(self, db: Connection, head: SharedHead, *, over: bool = True) -> None:
        values = {"state": head.state(), "steps": head.steps, "updated_at": rows.now()}
        fingerprint = self.model.fingerprint
        rows.insert_if_absent(db, t.shared_head, fingerprint=fingerprint, **values)
        if over:
            db.execute(t.shared_head.update().where(t.shared_head.c.fingerprint == fingerprint).values(**values))

    def _version(self, head: SharedHead, user: User, changes: int) -> str:
        parts = (self.scorer.revision, self.model.fingerprint, head.revision, changes, user.half_life_days)
        return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()[:16]


def _read(evidence: Sequence[StoredEvidence], own: Mapping[str, Readings]) -> list[Record]:
    """A person's evidence with today's readings in place of older ones."""
    out: list[Record] = []
    for said in evidence:
        record = said.record
        if said.id in own and isinstance(said.given, Reply):
            found = own[said.id]
            record = said.given.read_as(float(found.satisfaction[0]), float(found.confidence[0]), found.target[0])
        out.append(record)
    return out


def _static(said: StoredEvidence, readings: Readings) -> Floats:
    """(n,) satisfaction of a reply and its children, which is the label where there is one."""
    given = said.given
    if isinstance(given, Reply) and given.satisfaction is not None:
        return np.full(len(readings.satisfaction), given.satisfaction)
    return readings.satisfaction


def scores(store: Store, user: User, evidence_id: str) -> list[StoredScore]:
    """How a reply and its children were scored, number by number, oldest first."""
    wanted = (
        sa.select(t.score, t.example.c.how, t.example.c.text)
        .join(
            t.example,
            (t.example.c.user_id == t.score.c.user_id)
            & (t.example.c.evidence_id == t.score.c.evidence_id)
            & (t.example.c.number == t.score.c.number),
        )
        .where(_about(t.score, user, evidence_id))
        .order_by(t.score.c.number, t.score.c.seq)
    )
    with store.database.transaction(READ) as db:
        return [rows.to_score(row) for row in db.execute(wanted)]


def _about(table: sa.Table, user: User, evidence_id: str) -> sa.ColumnElement[bool]:
    return (table.c.user_id == user.id) & (table.c.evidence_id == evidence_id)
