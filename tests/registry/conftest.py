"""A real SQLite store for the registry tests, and a watch that nothing leaves this machine."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.registry import (
    Tracker,
)
from tests.registry.helpers import Registrar

visited: list[str] = []
"""Hosts other than loopback that this process turned to while `guarded` was set."""
guarded = False


def _watch_network(event: str, arguments: tuple[Any, ...]) -> None:
    if not guarded or event not in ("socket.connect", "socket.getaddrinfo"):
        return
    address = arguments[1] if event == "socket.connect" else arguments
    host = address[0] if isinstance(address, tuple) else "unix"
    if host not in ("unix", "127.0.0.1", "localhost", "::1"):
        visited.append(str(host))


sys.addaudithook(_watch_network)


@pytest.fixture(scope="module", autouse=True)
def _surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No backend from outside, no network, and nothing left in the working directory."""
    global guarded
    empty = tmp_path_factory.mktemp("cwd")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
            patch.delenv(name, raising=False)
        patch.chdir(empty)
        guarded = True
        yield
        guarded = False
        assert "MLFLOW_TRACKING_URI" not in os.environ
    assert visited == []
    assert list(empty.iterdir()) == []


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    return Tracker.open(str(tmp_path_factory.mktemp("a #1 störe")))


@pytest.fixture
def register(tracker: Tracker, tmp_path: Path, request: pytest.FixtureRequest) -> Registrar:
    return Registrar(tracker, tmp_path, request.node.name)
