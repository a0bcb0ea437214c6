"""`TaskStore.open()` without a URL: the private server, started, migrated and revived on demand."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from support import spec

from solti_store import AsyncTaskStore, TaskStore
from solti_store.embedded import EmbeddedServer

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedServer]:
    """The default server of this test alone; not started yet."""
    root = Path(tempfile.mkdtemp(prefix="solti tests "))
    root.chmod(0o711)  # a server that root starts runs as another user
    monkeypatch.setenv("SOLTI_STORE_DATA", str(root / "data"))
    made = EmbeddedServer()
    yield made
    made.destroy()
    shutil.rmtree(root, ignore_errors=True)


def kill(server: EmbeddedServer) -> None:
    """SIGKILL, and wait for the backends to notice: until then one of them may still answer."""
    pid = server.status().pid
    assert pid is not None
    postmaster = psutil.Process(pid)
    family = [postmaster, *postmaster.children(recursive=True)]
    postmaster.kill()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert alive == []


OPENER = """
import sys
from solti_store import Subprocess, TaskSpec, TaskStore
with TaskStore.open() as store:
    store.create(sys.argv[1], TaskSpec.builder(sys.argv[1], Subprocess.command("true"), 1000).build())
"""


def test_eight_cold_opens_at_once_share_one_migrated_server(server: EmbeddedServer) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", OPENER, f"t-{n}"], stderr=subprocess.PIPE, text=True) for n in range(8)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (0, "")
    with TaskStore.open() as store:
        assert {task.id for task in store.list()} == {f"t-{n}" for n in range(8)}


def test_a_store_outlives_its_server(server: EmbeddedServer) -> None:
    with TaskStore.open() as store:
        store.create("a", spec("a"))
        kill(server)
        assert store.get("a").id == "a"
        kill(server)
        store.create("b", spec("b"))
        assert len(store.list()) == 2


def test_the_async_store_outlives_it_too(server: EmbeddedServer) -> None:
    async def check() -> None:
        async with await AsyncTaskStore.open() as store:
            await store.create("a", spec("a"))
            kill(server)
            assert (await store.get("a")).id == "a"

    asyncio.run(check())
    assert server.status().pid is not None
