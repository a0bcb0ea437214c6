"""A server that can only read."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from support import connect

from solti_store.embedded import EmbeddedServer, binaries, places
from solti_store.embedded.launch import launch
from solti_store.migrate import upgrade

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def replica() -> Iterator[str]:
    """A server that follows another which is gone: it replays what there is of that one, and waits for more."""
    folder = Path(tempfile.mkdtemp(prefix="solti-replica-"))
    folder.chmod(0o711)  # a server of root runs as another user
    server = EmbeddedServer(folder / "data")
    try:
        url = server.ensure_running()
        upgrade(url)
        # Not shut down in order, so that there is something to replay.
        server.stop("immediate")
        data = folder / "data" / "pgdata"
        owner = data.stat()
        (data / "standby.signal").touch()
        os.chown(data / "standby.signal", owner.st_uid, owner.st_gid)
        account = places.server_account(data)
        programs, _ = binaries.reachable(binaries.find_binaries(), server.data_root, account)
        sockets = places.socket_dir(server.data_root)
        settings = {"listen_addresses": "", "unix_socket_directories": str(sockets), "port": str(places.PORT)}
        launch(programs / "postgres", data, account, settings, folder / "log")
        deadline = time.monotonic() + 60
        while True:
            try:
                connect(url).close()
                break
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.05)
        yield url
    finally:
        server.destroy()
        shutil.rmtree(folder, ignore_errors=True)
