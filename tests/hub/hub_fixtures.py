"""A stand-in for the Hub and the processes that talk to it, one each for the whole run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_client import Client, client
from hub_files import adapter_at, write
from hub_server import HubServer, serve


@pytest.fixture(scope="session")
def server() -> Iterator[HubServer]:
    with serve() as running:
        yield running


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hf")


@pytest.fixture(scope="session")
def hub(server: HubServer, home: Path) -> Iterator[Client]:
    with client(server.url, home) as running:
        yield running


@pytest.fixture(scope="session")
def offline(server: HubServer, home: Path) -> Iterator[Client]:
    with client(server.url, home, offline=True) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "task", {**adapter_at(""), "adapterhub.json": b"{}", "task.yaml": b"description: x\n"})
