"""Health, metrics and background work."""

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from palate import __version__
from palate.errors import PalateError
from palate.server import metrics
from palate.server.access import MayManage
from palate.server.errors import documented
from palate.server.schemas import Health, JobCounts, JobRequest
from palate.server.service import Service

router = APIRouter(tags=["operations"])


@router.get("/health", responses={503: {"model": Health}})
async def health(request: Request, response: Response) -> Health:
    """Whether the server can work: needs no key."""
    service: Service = request.app.state.service
    try:
        await run_in_threadpool(service.store.tenants)
        reached = True
    except PalateError:
        reached = False
        response.status_code = 503
        response.headers["retry-after"] = "1"
    return Health(
        status="ok" if reached else "failing", database=reached, model=service.model.fingerprint, version=__version__
    )


@router.get("/metrics", response_class=Response, responses=documented())
async def prometheus(caller: MayManage) -> Response:
    """Figures for Prometheus."""
    content, media_type = await run_in_threadpool(metrics.exposition)
    return Response(content, media_type=media_type)


@router.get("/v1/jobs", responses=documented())
async def jobs(request: Request, caller: MayManage) -> JobCounts:
    """How much background work waits, is being done, or failed."""
    return JobCounts(**await run_in_threadpool(request.app.state.service.jobs.counts))


@router.post("/v1/jobs", status_code=202, responses=documented())
async def add_job(request: Request, body: JobRequest, caller: MayManage) -> JobCounts:
    """Have work done now that else comes round by itself."""
    service: Service = request.app.state.service

    def add() -> dict[str, int]:
        service.jobs.add(body.kind, "now")
        return service.jobs.counts()

    return JobCounts(**await run_in_threadpool(add))
