"""The compose file: what must hold of it, and that Docker's own tool understands it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from deployment_marker import program

FILE = Path(__file__).parents[2] / "docker-compose.yml"


@pytest.fixture
def document() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return found


def test_every_service_says_whether_it_is_well(document: dict[str, Any]) -> None:
    services = document["services"]
    assert set(services) == {"postgres", "migrate", "pgbouncer", "worker", "replica"}
    assert {name for name, service in services.items() if "healthcheck" not in service} == {"migrate"}
    assert services["worker"]["deploy"]["replicas"] == 2


def test_nothing_starts_before_what_it_needs(document: dict[str, Any]) -> None:
    services = document["services"]
    for service in services.values():
        for name, how in service.get("depends_on", {}).items():
            finished = how["condition"] == "service_completed_successfully"
            assert finished == (name == "migrate")
            assert finished or how["condition"] == "service_healthy"
    assert set(services["worker"]["depends_on"]) == {"migrate", "pgbouncer"}


def test_nothing_listens_outside_of_this_machine(document: dict[str, Any]) -> None:
    for service in document["services"].values():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:")


def test_workers_go_through_the_pooler_and_migrations_do_not(document: dict[str, Any]) -> None:
    services = document["services"]
    assert "@pgbouncer:6432/" in services["worker"]["environment"]["SOLTI_STORE_URL"]
    assert "@postgres:5432/" in services["migrate"]["environment"]["SOLTI_STORE_URL"]
    assert "pool_mode = transaction" in document["configs"]["pgbouncer"]["content"]
    for service in services.values():
        for config in service.get("configs", ()):
            assert config["source"] in document["configs"]
        for volume in service.get("volumes", ()):
            assert volume.partition(":")[0] in document["volumes"]


@pytest.mark.deployment("docker-compose")
def test_compose_understands_it() -> None:
    # The plugin runs by itself, and asks no engine.
    done = subprocess.run(
        [program("docker-compose"), "--file", str(FILE), "config", "--format", "json"],
        env={"PATH": os.environ.get("PATH", ""), "SOLTI_POSTGRES_PASSWORD": "other", "SOLTI_REPLICA_PORT": "6000"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    found = json.loads(done.stdout)
    assert found["services"]["replica"]["ports"][0]["published"] == "6000"
    assert found["services"]["worker"]["environment"]["PGPASSWORD"] == "other"
    assert '"solti" "other"' in found["configs"]["pgbouncer_users"]["content"]
