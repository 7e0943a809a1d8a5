"""The HTTP side: routes, errors as sentences, the page and the description of the interface."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import moodal
from moodal.serving.describe import PREDICT, docs_page
from moodal.serving.refusal import Refusal
from moodal.serving.service import Service
from moodal.serving.settings import ServeSettings
from moodal.serving.shell import Shell
from moodal.serving.worker import Maker

if TYPE_CHECKING:
    from moodal.predictor import Predictor

PAGE = Path(__file__).parent / "page"
#: Path -> file of the page and its type.
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/timeline.js": ("timeline.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
}


def create_app(predictor: Predictor, settings: ServeSettings | None = None, *, make: Maker | None = None) -> FastAPI:
    """The application that serves ``predictor``.

    ``make``: builds what reads clips in the decoding processes, in place of an extractor like the predictor's; it is
    sent to them, so it must be importable.
    """
    service = Service(predictor, ServeSettings() if settings is None else settings, make)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(
        title="moodal", version=moodal.__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        description="From a clip, a text or features to a score with reasons.",
    )  # fmt: skip
    _routes(app, service)
    _page(app)
    for fault, handler in ((Refusal, _refused), (HTTPException, _not_here), (ClientDisconnect, _gone)):
        app.add_exception_handler(fault, handler)
    paths = frozenset((*FILES, "/predict", "/health", "/metrics", "/docs", "/openapi.json"))
    app.add_middleware(Shell, metrics=service.metrics, paths=paths)
    return app


def _routes(app: FastAPI, service: Service) -> None:
    @app.post("/predict", openapi_extra=PREDICT, summary="Predict one clip, text or set of features")
    async def predict(request: Request) -> JSONResponse:
        return JSONResponse(await service.predict(request))

    @app.get("/health", summary="Which run is served, its limits, and how busy the server is")
    async def health() -> JSONResponse:
        return JSONResponse(service.health())

    @app.get("/metrics", summary="Counters and times in Prometheus' text format")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _page(app: FastAPI) -> None:
    for path, (name, kind) in FILES.items():
        app.add_route(path, _file((PAGE / name).read_bytes(), kind), include_in_schema=False)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(docs_page(app.openapi()))


def _file(content: bytes, kind: str) -> Any:
    async def answer(_: Request) -> Response:
        return Response(content, media_type=kind)

    return answer


async def _refused(_: Request, fault: Any) -> JSONResponse:
    return JSONResponse(fault.body(), fault.status, fault.headers())


async def _not_here(request: Request, fault: Any) -> JSONResponse:
    wrong = "takes other methods" if fault.status_code == 405 else "is not served here"
    refusal = Refusal(fault.status_code, "not_here", f"{request.url.path[:80]} {wrong}; see /docs.")
    return JSONResponse(refusal.body(), refusal.status, fault.headers)


async def _gone(_: Request, __: Any) -> Response:
    return Response(status_code=400)  # nobody is there to read it
