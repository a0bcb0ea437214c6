"""What the races share."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from chaos.client import Client
from servers import FAST
from support import connect

from solti_store import TaskStore
from solti_store.embedded import EmbeddedServer
from solti_store.migrate import upgrade

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def shared(database_url: str) -> Iterator[TaskStore]:
    """A store for sixteen threads."""
    with TaskStore.open(database_url, pool_size=8, max_overflow=8, max_slot_queue=10_000) as opened:
        yield opened


@pytest.fixture(scope="session")
def ordered_url() -> Iterator[str]:
    """A database on a server of its own, which keeps the time of each commit; and breaks deadlocks at once."""
    root = Path(tempfile.mkdtemp(prefix="solti-ordered-"))
    # The server of root runs as another user, who must reach it.
    root.chmod(0o711)
    server = EmbeddedServer(root / "data", settings=FAST | {"track_commit_timestamp": "on", "deadlock_timeout": "50ms"})
    try:
        url = server.ensure_running()
        upgrade(url)
        yield url
    finally:
        server.destroy()
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def client(ordered_url: str) -> Iterator[Client]:
    """A store that writes down what it does, in an empty registry."""
    with TaskStore.open(ordered_url, max_slot_queue=5) as store, connect(ordered_url) as conn:
        made = Client(store, conn, max_slot_queue=5)
        made.clear()
        yield made
