"""A file of verdicts of its own for every test; `stub` and `chat_server` importable, whatever folder pytest starts in."""

import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from chat_server import Server

from plo.caches import CACHES


@pytest.fixture
def serve():
    """Start a server; it stops with the test."""
    servers = []

    def start(says, **arguments):
        servers.append(Server(says, **arguments))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    """Verdicts of a test are gone after it, else a second run would ask nothing; no key of the user's is sent anywhere."""
    verdicts = replace(CACHES["verdicts"], pattern=str(tmp_path / "plo_home" / "verdicts.db"))
    monkeypatch.setitem(CACHES, "verdicts", verdicts)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
