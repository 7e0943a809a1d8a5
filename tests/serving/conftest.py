"""Servers for the tests below."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from served import Server


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Iterator[Callable[..., Server]]:
    """Starts servers that are gone at the end, whatever happens."""
    servers: list[Server] = []

    def started(**options) -> Server:
        servers.append(Server(tmp_path_factory.mktemp("server"), **options))
        return servers[-1]

    yield started
    for server in servers:
        server.kill()
