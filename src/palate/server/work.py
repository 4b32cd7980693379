"""Background work: one thread of each server process takes what waits in the database, whoever put it there."""

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import structlog

from palate.errors import PalateError
from palate.server import metrics
from palate.server.service import Service, load_model, stamp_of
from palate.store import User
from palate.store.jobs import LEASE, Job
from palate.store.refit import refit
from palate.store.retention import drop_texts

log = structlog.get_logger("palate.server")

_POLL = 1.0
_HOURLY = 3_600.0
"""How often all replies are scored anew, and what was kept long enough is erased."""


class Worker:
    """Takes job after job until it is stopped.

    Args:
        service: what all requests share.
        poll: seconds between two looks at what waits.
    """

    def __init__(self, service: Service, poll: float = _POLL) -> None:
        self._service, self._poll = service, poll
        self._name = f"{socket.gethostname()[:24]}-{os.getpid()}-{uuid4().hex[:8]}"
        self._stopped = threading.Event()
        self._asked = self._refused = ""
        self._thread = threading.Thread(target=self._run, name="palate-worker", daemon=True)
        self._work: dict[str, Callable[[Job], None]] = {
            "take_in": self._take_in,
            "rescore": self._rescore,
            "refit": self._refit,
            "retain": self._retain,
            "scrub": lambda _: self._service.store.scrub(),
        }

    def start(self) -> None:
        """Begin; work that comes round is put on the list."""
        self._service.jobs.add("rescore", after=_HOURLY)
        self._service.jobs.add("retain", after=_HOURLY)
        self._thread.start()

    def stop(self, timeout: float = 30.0) -> None:
        """Finish the job in hand and end."""
        self._stopped.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._look_at_the_model()
                busy = self.step()
            except PalateError as error:  # the database is away: it may come back
                log.warning("worker waits", reason=str(error))
                busy = False
            if not busy:
                self._stopped.wait(self._poll)

    def _look_at_the_model(self) -> None:
        """Once another model lies in the folder one process computes everybody's posterior; then all exchange it."""
        stamp = stamp_of(self._service.settings.model)
        if stamp is None or stamp in (self._service.loaded.stamp, self._refused):
            return
        if stamp != self._asked:
            self._asked = stamp
            self._service.jobs.add("refit", stamp)
        elif not self._service.jobs.waits("refit", stamp):
            try:
                self._service.exchange()
            except PalateError as error:
                self._refused = stamp
                log.error("reward model not exchanged", reason=str(error))

    def step(self) -> bool:
        """Do one job; False where none waits."""
        job = self._service.jobs.take(self._name)
        if job is None:
            return False
        ended = threading.Event()
        keeper = threading.Thread(target=self._keep, args=(job, ended), daemon=True)
        keeper.start()
        try:
            self._work[job.kind](job)
        except Exception as error:
            log.exception("job failed", kind=job.kind, attempt=job.attempts)
            self._service.jobs.failed(job, f"{type(error).__name__}: {error}")
            metrics.JOBS.labels(job.kind, "failed").inc()
        else:
            self._service.jobs.done(job)
            metrics.JOBS.labels(job.kind, "done").inc()
        finally:
            ended.set()
            keeper.join()
        return True

    def _keep(self, job: Job, ended: threading.Event) -> None:
        """Ask for more time while the job is worked on."""
        while not ended.wait(LEASE / 3):
            try:
                if not self._service.jobs.keep(job):
                    return
            except PalateError as error:
                log.warning("lease not renewed", kind=job.kind, reason=str(error))

    def _user(self, job: Job) -> User | None:
        return None if job.user_id is None else self._service.store.user_of(job.user_id)

    def _take_in(self, job: Job) -> None:
        """Let the shared head learn from somebody's new replies, and score them as training targets."""
        user = self._user(job)
        if user is not None:
            rescorer = self._service.rescorer()
            rescorer.take_in(user)
            rescorer.score(user)

    def _rescore(self, job: Job) -> None:
        """Score everybody's replies by today's scorer, follower and weights."""
        self._service.rescorer().run()
        self._again(job)

    def _retain(self, job: Job) -> None:
        """Erase answers that were kept long enough, and texts where a tenant keeps vectors alone."""
        store = self._service.store
        erased = 0
        for tenant in store.tenants():
            erased += self._service.completions.drop_old(tenant)
            if tenant.retention == "vectors":
                erased += drop_texts(store, self._service.model, tenant)
        if erased:
            store.scrub()
        self._again(job)

    def _refit(self, job: Job) -> None:
        """Compute what is known of everybody under the model that lies in the folder, while the old one serves on."""
        folder = Path(self._service.settings.model)
        refit(self._service.store, load_model(str(folder))[0], folder)

    def _again(self, job: Job) -> None:
        self._service.jobs.add(job.kind, after=_HOURLY)
