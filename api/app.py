"""The application: `uvicorn --factory api.app:create_app`."""

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_fastapi_instrumentator import Instrumentator
from starlette.types import ASGIApp

import calc
from dashboards import pages
from dashboards.example import EXAMPLE

from . import problems, routes
from .documentation import with_scenario
from .middleware import AccessLog, BodyLimit, SecurityHeaders
from .settings import Settings

GC_THRESHOLDS = (20_000, 20, 100)
"""Answers hold no cycles, so that reference counts free them; the collector pauses all who wait, and comes rarely."""


@asynccontextmanager
async def warmed_up(_app: FastAPI) -> AsyncIterator[None]:
    """Answers once before the first client asks; what is loaded by then stays, so the collector need not walk it."""
    calc.estimate(EXAMPLE).to_dict()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    yield


def create_app(settings: Settings | None = None) -> ASGIApp:
    """The service with `settings`, by default those of the environment."""
    settings = settings or Settings()
    app = FastAPI(
        title="gpucalc",
        summary="What a training step of a transformer needs: memory, its peak and FLOPs",
        version=version("gpucalc"),
        docs_url=None,
        redoc_url=None,
        max_body_size=settings.max_body_bytes,
        lifespan=warmed_up,
    )
    app.state.settings = settings
    app.include_router(routes.router)
    app.include_router(pages.router)
    app.mount(pages.STATIC_URL, pages.static_files())
    problems.install(app)
    app.openapi = with_scenario(app.openapi)
    _expose_metrics(app)
    # Outside of FastAPI's own middleware, so that answers to unexpected errors are wrapped too.
    wrapped = SecurityHeaders(BodyLimit(app, settings.max_body_bytes))
    return AccessLog(wrapped) if settings.access_log else wrapped


def _expose_metrics(app: FastAPI) -> None:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    Instrumentator(registry=registry).instrument(app).expose(app, include_in_schema=False)
