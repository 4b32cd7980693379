"""Replies in the store: read, augmented, scored as training targets, and learned from by the shared head.

For each person two steps, each a transaction of its own. What they typed and was never taken in becomes examples, a
reply and its children, and the shared head learns from it, mixed with what the replay memory holds. Then every example
is scored by today's scorer and follower, beside its older scores. What is up to date is passed over, so the job can be
killed and run again, and two at once do no harm.
"""

import hashlib
from collections.abc import Callable, Sequence
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
from palate.satisfaction.scorer import Readings, SatisfactionScorer
from palate.store import rows
from palate.store import tables as t
from palate.store.database import READ, WRITE
from palate.store.records import StoredEvidence, StoredScore, User
from palate.store.repository import Store

_BATCH = 200  # people at a time
PER_USER, OVERALL = 32, 4_096
"""Records that the replay memory keeps of each person, and of all together beside those."""
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
        found = []
        for who in rng.permutation(len(owners))[: count // 2]:
            found += self._some(owners[who], 1, rng)
        found += self._some(_COMMON, count - len(found), rng)
        return list({(record.user, record.key): record for record in found}.values())

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
            self._db.execute(
                t.reservoir.insert().values(fingerprint=self._fingerprint, owner=owner, seen=0, user_id=of)
            )
        seen = seen or 0
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

    def _some(self, owner: str, count: int, rng: np.random.Generator) -> list[Experience]:
        mine = self._of(t.replay) & (t.replay.c.owner == owner)
        slots = self._db.scalars(sa.select(t.replay.c.slot).where(mine).order_by(t.replay.c.slot)).all()
        drawn = [slots[i] for i in rng.permutation(len(slots))[:count]]
        names = {number: name for name, number in self._users.items()}
        found = self._db.execute(sa.select(t.replay).where(mine, t.replay.c.slot.in_(drawn)).order_by(t.replay.c.slot))
        return [
            Experience(
                names.get(row.user_id, str(row.user_id)),
                row.key,
                t.unpack(row.phi, (-1,)),
                row.own,
                row.target,
                row.weight,
            )
            for row in found
        ]


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

    def take_in(self, user: User) -> int:
        """Make examples of a person's new replies, and let the shared head learn from them; how many there were."""
        evidence = self.store.evidence(user)
        with self.store.database.transaction(READ) as db:
            known = set(db.scalars(sa.select(t.example.c.evidence_id).where(t.example.c.user_id == user.id)))
        new = [said for said in evidence if isinstance(said.record, Reply) and said.id not in known]
        if not new:
            return 0
        families = {said.id: self._family(said.record) for said in new if isinstance(said.record, Reply)}
        read = self._read(evidence, {name: readings for name, (_, readings) in families.items()})
        with self.store.database.transaction(WRITE) as db:
            rows.lock(db, user.id)
            head = self._head(db)
            targets = training_targets(RewardFollower(self.model, head), read, half_life=user.half_life_days)
            records: list[Experience] = []
            for said, record, target in zip(evidence, read, targets, strict=True):
                if said.id not in families or target is None or not isinstance(record, Reply):
                    continue
                # Somebody else may have taken it in since.
                if db.scalar(sa.select(sa.func.count()).where(_about(t.example, user, said.id))):
                    continue
                texts, readings = families[said.id]
                phi = self.model.centred([record.prompt], [record.completion])[0]
                values = biased(readings.satisfaction, np.full(len(texts), target.followed), target.share)
                for number, ((text, how), value) in enumerate(zip(texts, values.tolist(), strict=True)):
                    db.execute(
                        t.example.insert().values(
                            user_id=user.id,
                            evidence_id=said.id,
                            number=number,
                            how=how,
                            text=text,
                            weight=1 / len(texts),
                        )
                    )
                    key = f"{said.id}#{number}"
                    records.append(Experience(user.external_id, key, phi, target.own, value, 1 / len(texts)))
            head.learn(records, StoredReplay(db, self.model.fingerprint, {user.external_id: user.id}, self.head.seed))
            self._keep(db, head)
        return len(families)

    def score(self, user: User) -> int:
        """Score a person's examples by today's scorer, follower and evidence; how many were not up to date."""
        changes = self.store.evidence_changes(user)
        evidence = self.store.evidence(user)
        with self.store.database.transaction(READ) as db:
            head = self._head(db)
            version = self._version(head, changes)
            stale = sa.select(t.example).where(t.example.c.user_id == user.id)
            examples = [row for row in db.execute(stale.order_by(t.example.c.evidence_id, t.example.c.number))]
            scored = sa.select(t.score.c.evidence_id, t.score.c.number).where(
                t.score.c.user_id == user.id, t.score.c.version == version
            )
            current = {(row.evidence_id, row.number) for row in db.execute(scored)}
        here = {said.id: said.record for said in evidence if isinstance(said.record, Reply)}
        todo = [row for row in examples if (row.evidence_id, row.number) not in current and row.evidence_id in here]
        if not todo:
            return 0
        parents = [row for row in examples if row.number == 0 and row.evidence_id in here]
        readings = self._score([row.text for row in [*todo, *parents]])
        own = {row.evidence_id: readings[np.array([len(todo) + i])] for i, row in enumerate(parents)}
        read = self._read(evidence, own)
        targets = training_targets(RewardFollower(self.model, head), read, half_life=user.half_life_days)
        target_of = {said.id: target for said, target in zip(evidence, targets, strict=True)}
        with self.store.database.transaction(WRITE) as db:
            rows.lock(db, user.id)
            for place, row in enumerate(todo):
                target = target_of[row.evidence_id]
                if target is not None:
                    self._save(db, user, row, version, readings, place, target)
        return len(todo)

    def _save(
        self,
        db: Connection,
        user: User,
        row: sa.Row[tuple[object, ...]],
        version: str,
        readings: Readings,
        place: int,
        target: Target,
    ) -> None:
        mine = _about(t.score, user, row.evidence_id) & (t.score.c.number == row.number)
        static = float(readings.satisfaction[place])
        rows.insert_if_absent(
            db,
            t.score,
            user_id=user.id,
            evidence_id=row.evidence_id,
            number=row.number,
            version=version,
            seq=(db.scalar(sa.select(sa.func.max(t.score.c.seq)).where(mine)) or 0) + 1,
            scorer=self.scorer.revision,
            satisfaction=static,
            confidence=float(readings.confidence[place]),
            target=readings.target[place],
            followed=target.followed,
            share=target.share,
            training_target=(1 - target.share) * static + target.share * target.followed,
            scored_at=rows.now(),
        )

    def _family(self, reply: Reply) -> tuple[list[tuple[str, str]], Readings]:
        """A reply and the children that are kept, with what is read in each."""
        texts = [(reply.reply, "typed")]
        if self.augmentation is not None:
            texts += [(child.text, child.how) for child in self.augmentation.children(reply.reply)]
        readings = self._score([text for text, _ in texts])
        keeps = np.ones(len(texts), np.bool_)
        if self.augmentation is not None:
            keeps[1:] = self.augmentation.keeps(float(readings.satisfaction[0]), readings.satisfaction[1:])
        kept = np.flatnonzero(keeps)
        return [texts[i] for i in kept], readings[kept]

    def _score(self, texts: Sequence[str]) -> Readings:
        return self.scorer.score(texts)

    def _read(self, evidence: Sequence[StoredEvidence], own: dict[str, Readings]) -> list[Record]:
        """A person's evidence with today's readings in place of older ones."""
        out: list[Record] = []
        for said in evidence:
            record = said.record
            if said.id in own and isinstance(record, Reply):
                found = own[said.id]
                record = record.model_copy(
                    update={
                        "satisfaction": float(found.satisfaction[0]),
                        "confidence": float(found.confidence[0]),
                        "target": found.target[0],
                    }
                )
            out.append(record)
        return out

    def _head(self, db: Connection) -> SharedHead:
        head = SharedHead(self.model.n_rewards, self.head)
        mine = t.shared_head.c.fingerprint == self.model.fingerprint
        if state := db.scalar(sa.select(t.shared_head.c.state).where(mine).with_for_update()):
            head.restore(state)
        return head

    def _keep(self, db: Connection, head: SharedHead) -> None:
        values = {"state": head.state(), "steps": head.steps, "updated_at": rows.now()}
        fingerprint = self.model.fingerprint
        rows.insert_if_absent(db, t.shared_head, fingerprint=fingerprint, **values)
        db.execute(t.shared_head.update().where(t.shared_head.c.fingerprint == fingerprint).values(**values))

    def _version(self, head: SharedHead, changes: int) -> str:
        parts = (self.scorer.revision, self.model.fingerprint, head.revision, str(changes))
        return hashlib.sha256("/".join(parts).encode()).hexdigest()[:16]


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
