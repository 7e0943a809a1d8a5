"""Servers for the tests below."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator

import pytest
from served import Server


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder for temporary files, an empty one."""
    folder, before = tmp_path_factory.mktemp("temporary"), tempfile.tempdir
    tempfile.tempdir = str(folder)
    yield folder
    tempfile.tempdir = before


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
