"""Which PostgreSQL the tests run on."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import docker
import pytest
from docker.errors import DockerException

from solti_store.embedded import EmbeddedServer
from solti_store.errors import EmbeddedError

if TYPE_CHECKING:
    from collections.abc import Callable

URL_VARIABLE = "SOLTI_STORE_TEST_URL"
IMAGE_VARIABLE = "SOLTI_STORE_TEST_IMAGE"

# Speed for data that nobody will miss. Commits stay synchronous: an immediate stop must not lose one.
FAST = {"fsync": "off", "full_page_writes": "off", "max_connections": "300", "shared_buffers": "256MB"}


@dataclass(frozen=True)
class TestServer:
    """A running server.

    Attributes:
        url: Of a database from which others can be created.
        description: For the test run's header.
        stop: Ends what was started for this run.
    """

    url: str
    description: str
    stop: Callable[[], object]


def choose_server() -> TestServer:
    """The first real server there is; the run fails without one."""
    if url := os.environ.get(URL_VARIABLE):
        return TestServer(url, f"{URL_VARIABLE}", lambda: None)
    return _docker() or _embedded()


def _docker() -> TestServer | None:
    try:
        docker.from_env(timeout=5).ping()
    except DockerException:
        return None
    from testcontainers.community.postgres import PostgresContainer  # noqa: PLC0415 - costs a second of imports

    image = os.environ.get(IMAGE_VARIABLE, "postgres:18")
    container = PostgresContainer(image, driver="psycopg").with_command("-c max_connections=300 -c fsync=off")
    try:
        container.start()
    except DockerException as error:
        print(f"Docker answers, but testcontainers cannot start {image} there: {error}", file=sys.stderr)  # noqa: T201
        return None
    return TestServer(container.get_connection_url(), f"Docker, {image}", container.stop)


def _embedded() -> TestServer:
    # Not pytest's own folder: it is closed to the system user that a server of root runs as.
    root = Path(tempfile.mkdtemp(prefix="solti-tests-"))
    root.chmod(0o711)
    server = EmbeddedServer(root / "data", settings=FAST)
    try:
        url = server.ensure_running()
    except EmbeddedError as error:
        raise pytest.UsageError(
            f"no PostgreSQL to test on: {URL_VARIABLE} is not set, no Docker engine answers, and {error}"
        ) from error

    def stop() -> None:
        server.destroy()
        shutil.rmtree(root, ignore_errors=True)

    return TestServer(url, f"embedded PostgreSQL {server.status().major}", stop)
