"""A real PostgreSQL for every test that wants one, chosen once a run and named in the header.

In this order: SOLTI_STORE_TEST_URL, Docker through testcontainers, the embedded wheel. With none of them the run
fails; nothing is skipped. Each test gets a database of its own, cloned from a migrated template (35 ms);
SOLTI_STORE_TEST_TEMPLATE names one that is there, for tests on a schema that other code made.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, cast

import deployment_marker
import pytest
from hypothesis import HealthCheck, settings
from servers import TestServer, choose_server
from sqlalchemy import make_url
from support import ODD_SCHEMA, BlockingStore, connect

from solti_store import TaskStore
from solti_store.embedded import EmbeddedServer
from solti_store.migrate import upgrade
from solti_store.schema_name import SCHEMA_VARIABLE
from solti_store.sql.naming import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVER_VARIABLE = "SOLTI_STORE_TESTS_SERVER"  # from the controller to its xdist workers
TEMPLATE_VARIABLE = "SOLTI_STORE_TESTS_TEMPLATE"
ODD_TEMPLATE_VARIABLE = "SOLTI_STORE_TESTS_ODD_TEMPLATE"
GIVEN_TEMPLATE_VARIABLE = "SOLTI_STORE_TEST_TEMPLATE"

_server: TestServer | None = None


# No test may fail for the time it takes: the machine may be busy.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    """Start the server, in the one process that has workers or is alone."""
    global _server  # noqa: PLW0603 - the run's server is a process-wide thing
    # What the developer's shell points at is never what tests write to.
    os.environ.pop("SOLTI_STORE_URL", None)
    os.environ.pop(SCHEMA_VARIABLE, None)
    if not hasattr(config, "workerinput"):
        # Nor is the developer's own embedded server, should a test that names none start it.
        os.environ["SOLTI_STORE_DATA"] = f"{tempfile.gettempdir()}/solti-stray-{os.getpid()}"
    if hasattr(config, "workerinput") or config.option.collectonly:
        return
    _server = choose_server()
    os.environ[SERVER_VARIABLE] = _server.url
    if GIVEN_TEMPLATE_VARIABLE in os.environ:
        os.environ[TEMPLATE_VARIABLE] = os.environ[GIVEN_TEMPLATE_VARIABLE]
    for variable, schema in _own_templates().items():
        os.environ[variable] = template = f"solti_template_{uuid.uuid4().hex[:8]}"
        _execute(_server.url, f'CREATE DATABASE "{template}"')
        upgrade(_database(_server.url, template), schema=schema)


def _own_templates() -> dict[str, str]:
    """The templates that this run makes, and the schema of each: one may have been given."""
    templates = {TEMPLATE_VARIABLE: SCHEMA, ODD_TEMPLATE_VARIABLE: ODD_SCHEMA}
    if GIVEN_TEMPLATE_VARIABLE in os.environ:
        del templates[TEMPLATE_VARIABLE]
    return templates


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say which server this run uses, and which tests it has to do without."""
    return [f"database: {_server.description}" if _server else "database: none", *deployment_marker.header(config)]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests whose programs are not installed."""
    deployment_marker.leave_out(config, items)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail them where they were asked for."""
    deployment_marker.require(item)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the deployment tests measured."""
    for line in deployment_marker.told(terminalreporter.getreports("passed")):
        terminalreporter.write_line(line)


def pytest_unconfigure() -> None:
    """Stop what `pytest_configure` started, and what no test should have."""
    if _server is not None:
        for variable in _own_templates():
            _execute(_server.url, f'DROP DATABASE IF EXISTS "{os.environ[variable]}" WITH (FORCE)')
        _server.stop()
        if Path(os.environ["SOLTI_STORE_DATA"]).exists():
            EmbeddedServer().destroy()


def _execute(url: str, statement: str) -> None:
    with connect(url) as connection:
        connection.execute(statement.encode())


def _database(url: str, name: str) -> str:
    return make_url(url).set(database=name).render_as_string(hide_password=False)


def _clone(template: str | None) -> Iterator[str]:
    server = os.environ[SERVER_VARIABLE]
    name = f"solti_test_{uuid.uuid4().hex}"
    _execute(server, f'CREATE DATABASE "{name}"' + (f' TEMPLATE "{template}"' if template else ""))
    try:
        yield _database(server, name)
    finally:
        _execute(server, f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def database_url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a migrated database of the test's own.

    Beside the async `store` the schema has another name, by the environment, and there is none that is named `solti`.
    """
    callspec = getattr(request.node, "callspec", None)
    if callspec is not None and callspec.params.get("store") == "async":
        monkeypatch.setenv(SCHEMA_VARIABLE, ODD_SCHEMA)
        yield from _clone(os.environ[ODD_TEMPLATE_VARIABLE])
    else:
        yield from _clone(os.environ[TEMPLATE_VARIABLE])


@pytest.fixture
def empty_database_url() -> Iterator[str]:
    """The URL of a database without our schema."""
    yield from _clone(None)


@pytest.fixture(params=["sync", "async"])
def store(request: pytest.FixtureRequest, database_url: str) -> Iterator[TaskStore]:
    """Each store in turn; the async one behind plain calls, so that a test reads the same for both.

    And in a schema of another name, so that whatever a test sees of a store is seen in both.
    """
    opened = TaskStore.open(database_url) if request.param == "sync" else cast("TaskStore", BlockingStore(database_url))
    yield opened
    opened.close()
