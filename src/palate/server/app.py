"""The application: routes, what is around them, and what starts and stops with it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
from fastapi import Depends, FastAPI
from fastapi.staticfiles import StaticFiles

from palate import __version__
from palate.server import chat, errors, feedback, operations, people
from palate.server.access import Gate, allowed
from palate.server.logs import configure
from palate.server.middleware import Envelope
from palate.server.pages import routes as pages
from palate.server.service import Service
from palate.server.settings import Settings
from palate.server.work import Worker

log = structlog.get_logger("palate.server")

_ABOUT = """
Palate stands between a product and its language model. Point an OpenAI client at `/v1`, pass `user`, and answers
become personal; what people type next teaches it.
"""


def create_app(settings: Settings, *, work: bool = True) -> FastAPI:
    """The server as an ASGI application.

    Args:
        settings: how it answers, learns and guards itself.
        work: whether this process does background work.

    Example:
        >>> app = create_app(Settings("my-model"))  # doctest: +SKIP
        >>> uvicorn.run(app, port=8600)             # doctest: +SKIP
    """

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        service = Service.start(settings)
        app.state.service = service
        app.state.gate = Gate(service.keys, open_=settings.open, rate=settings.rate)
        worker = Worker(service)
        if work:
            worker.start()
        log.info("started", source=service.loaded.source.name, model=service.model.fingerprint)
        try:
            yield
        finally:
            if work:
                worker.stop()
            await service.stop()
            log.info("stopped")

    app = FastAPI(
        title="Palate",
        version=__version__,
        description=_ABOUT,
        lifespan=life,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    for part in (chat, feedback, people, operations):
        app.include_router(part.router)
    app.include_router(pages.router)
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "pages" / "static"), name="static")
    errors.install(app)
    app.add_middleware(Envelope, max_bytes=settings.max_bytes)

    @app.get("/openapi.json", include_in_schema=False, dependencies=[Depends(allowed(None))])
    async def openapi() -> dict[str, object]:
        return app.openapi()

    return app


def from_environment() -> FastAPI:
    """The application of a worker process that `palate serve` has started."""
    configure()
    return create_app(Settings.from_environment())
