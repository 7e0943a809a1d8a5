"""Around every answer: the security headers, the counting, and nothing that the pages do not need."""

from __future__ import annotations

import logging
import time
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moodal.serving.metrics import Metrics
from moodal.serving.refusal import Refusal

log = logging.getLogger(__name__)

#: Pages load from this server alone, run no script written into them and cannot be framed.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(self), microphone=(self), geolocation=(), payment=(), usb=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


_MISTAKE = "The server made a mistake, which is in its log; try again or report it."


class Shell:
    """ASGI: adds ``HEADERS``, counts requests by path and status, turns other sites' pages away, answers for mistakes.

    A handler says what kind of input it had by setting ``request.state.input``.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, paths: frozenset[str]) -> None:
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status, begun = time.monotonic(), 500, False

        async def with_headers(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        try:
            if foreign(scope):
                await refuse(
                    Refusal(403, "foreign", "A page of another site sent this; it is not served."), with_headers
                )
            else:
                await self._app(scope, receive, with_headers)
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            if not begun:
                await refuse(Refusal(500, "fault", _MISTAKE), with_headers)
        finally:
            self._count(scope, status, time.monotonic() - started)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        path = scope["path"] if scope["path"] in self._paths else "other"
        kind = scope.get("state", {}).get("input", "none")
        self._metrics.requests.labels(path, kind, str(status)).inc()
        self._metrics.seconds.labels(path, kind).observe(seconds)


def foreign(scope: MutableMapping[str, Any]) -> bool:
    """Whether a browser sent this for a page of another site: it could spend our time, though not read the answer."""
    return scope["method"] == "POST" and (b"sec-fetch-site", b"cross-site") in scope["headers"]


async def refuse(refusal: Refusal, send: Send) -> None:
    """Answer with ``refusal`` from outside the application."""
    response = JSONResponse(refusal.body(), refusal.status, refusal.headers())
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body})
