"""Open a run and serve it until a signal says stop."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from moodal.core.errors import MissingExtra, MoodalError, check
from moodal.serving.settings import ServeSettings

if TYPE_CHECKING:
    from moodal.predictor import Predictor
    from moodal.serving.worker import Maker

log = logging.getLogger(__name__)


def run(
    predictor_source: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    settings: ServeSettings | None = None,
    announce: Callable[[str], None] = log.info,
) -> None:
    """Serve what ``Predictor.open`` finds in ``predictor_source`` (:func:`serve`)."""
    from moodal.predictor import Predictor

    serve(Predictor.open(predictor_source, watch=True), host=host, port=port, settings=settings, announce=announce)


def serve(
    predictor: Predictor,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    settings: ServeSettings | None = None,
    make: Maker | None = None,
    announce: Callable[[str], None] = log.info,
) -> None:
    """Serve ``predictor`` until SIGINT or SIGTERM, then finish what is in flight and return.

    ``port``: 0 takes a free one; ``announce``: told the address once requests can be sent to it; ``make``: see
    :func:`moodal.serving.app.create_app`. Raises MoodalError where the address cannot be had.
    """
    try:
        import uvicorn

        from moodal.serving.app import create_app
    except ModuleNotFoundError as fault:
        raise MissingExtra(fault.name or "uvicorn", "serve") from fault
    settings = ServeSettings() if settings is None else settings
    listening = _socket(host, port)
    try:
        config = uvicorn.Config(
            create_app(predictor, settings, make=make), log_config=None, access_log=False, server_header=False, date_header=False,
            limit_concurrency=settings.connections, timeout_graceful_shutdown=ceil(settings.request_seconds) + 5,
        )  # fmt: skip
        announce(_address(listening))
        with _signals_end_here():
            uvicorn.Server(config).run(sockets=[listening])
    finally:
        listening.close()


@contextmanager
def _signals_end_here() -> Iterator[None]:
    """uvicorn sends itself the signal that stopped it once more when it is done; here it has then done its work."""
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _socket(host: str, port: int) -> socket.socket:
    check(0 <= port <= 65535, f"port is {port}; give 0 to 65535.")
    listening = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
    except OSError as fault:
        if listening is not None:
            listening.close()
        raise MoodalError(
            f"{host}:{port} cannot be served on ({fault.strerror}); choose another --host or --port."
        ) from fault
    return listening


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
